"""Groups of images that every batch mixes by weight: sources, and within each the classes of one label field."""

from __future__ import annotations

from collections import Counter

from pipeline.errors import ConfigError, nearest
from pipeline.labels import LabelSpace
from pipeline.records import Record


def require_classes(field: str, spaces: dict[str, LabelSpace]) -> None:
    """Raises ConfigError where `data.balance` names no field with one class per image."""
    known = [name for name, space in spaces.items() if space.kind == "classes"]
    if field not in known:
        told = f"it has {', '.join(known)}{nearest(field, known)}" if known else "it has none"
        raise ConfigError(f"data.balance: {field!r} is no field of the data with one class per image; {told}")


def group_records(
    records: list[Record], sources: list[int], weights: list[float] | None, field: str | None
) -> tuple[list[int], list[float] | None]:
    """The group of each image, and each group's share of a batch; without shares every image comes once.

    Within a source a class of n images gets a share in proportion to sqrt(n) (Mahajan et al. 2018,
    https://arxiv.org/abs/1805.00932): rare classes are seen more often, without being learnt by heart. Images that the
    field does not label are a class of their own.

    Args:
        records: N images.
        sources: number of each one's source.
        weights: of each source, above 0; None for one source.
        field: a label field with one class per image; None makes each source one group.
    """
    if field is None:
        return sources, weights
    keys = [(source, str(record.labels.get(field))) for source, record in zip(sources, records, strict=True)]
    counts = Counter(keys)
    order = {key: number for number, key in enumerate(sorted(counts))}
    roots = {key: count**0.5 for key, count in counts.items()}
    whole = {source: sum(root for (of, _), root in roots.items() if of == source) for source in set(sources)}
    shares = [(weights[key[0]] if weights else 1.0) * roots[key] / whole[key[0]] for key in order]
    return [order[key] for key in keys], shares
