"""Train, val and test: by the data set's own word, else by a seeded, stratified fraction that keeps groups together."""

from __future__ import annotations

import numpy as np

from pipeline.errors import ConfigError
from pipeline.records import Boxes, Record

Splits = dict[str, list[Record]]


def split_records(records: list[Record], fractions: tuple[float, float, float], seed: int) -> Splits:
    """Records by split.

    Where the data set says itself where an image belongs, that holds; a `val` it lacks is taken out of `train`, a
    `test` it lacks stays empty. Where it says nothing, `fractions` decide.

    Args:
        records: all images.
        fractions: of train, val and test; they sum to 1.
        seed: decides who goes where.

    Raises:
        ConfigError: fractions that are negative or do not sum to 1.
    """
    if min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ConfigError(f"data.split must be three fractions that sum to 1, not {list(fractions)}")
    out: Splits = {"train": [], "val": [], "test": []}
    for record in records:
        if record.split in out:
            out[record.split].append(record)
    free = [record for record in records if record.split not in out]
    if len(free) == len(records):
        return _draw(free, dict(zip(("train", "val", "test"), fractions, strict=True)), seed)
    out["train"] += free
    if not out["val"] and fractions[1] > 0 and len(out["train"]) > 1:
        share = fractions[1] / (fractions[0] + fractions[1])
        drawn = _draw(out["train"], {"train": 1 - share, "val": share}, seed)
        out |= {"train": drawn["train"], "val": drawn["val"]}
    return out


def stratum(record: Record) -> str:
    """What a split keeps in proportion: the image labels, or the kinds of boxes present."""
    kinds = [f"{name}={label}" for name, label in sorted(record.labels.items()) if isinstance(label, (int, tuple))]
    boxes = [f"{n}={sorted(set(b.classes.tolist()))}" for n, b in record.labels.items() if isinstance(b, Boxes)]
    return ";".join(kinds or boxes or sorted(record.labels))


def _draw(records: list[Record], shares: dict[str, float], seed: int) -> Splits:
    """Random members per split: groups whole, each stratum in proportion."""
    rng = np.random.default_rng(seed)
    groups: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda r: r.image.name):
        groups.setdefault(record.group or record.image.name, []).append(record)
    strata: dict[str, list[str]] = {}
    for name, members in groups.items():
        strata.setdefault(stratum(members[0]), []).append(name)
    out: Splits = {name: [] for name in ("train", "val", "test") if name in shares or len(shares) == 3}
    given = dict.fromkeys(shares, 0.0)
    for key in sorted(strata):
        names = strata[key]
        for at in rng.permutation(len(names)):
            # To the split that is furthest behind its share.
            total = sum(given.values()) + 1
            behind = max(shares, key=lambda split: shares[split] * total - given[split])
            given[behind] += 1
            out[behind] += groups[names[int(at)]]
    return out
