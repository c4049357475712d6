"""Train, val and test: by the data set's own word, else by a seeded, stratified fraction that keeps groups together."""

from __future__ import annotations

import numpy as np

from pipeline.errors import ConfigError
from pipeline.records import Boxes, Record

Splits = dict[str, list[Record]]


def split_records(records: list[Record], fractions: tuple[float, float, float], seed: int) -> Splits:
    """Records by split.

    Where the data set says itself where an image belongs, that holds; a `val` it lacks is taken out of `train`, a
    `test` it lacks stays empty, and images it says nothing of go to `train`. Where it says nothing at all,
    `fractions` decide. Images of one group never part by this.

    Args:
        records: all images.
        fractions: of train, val and test; they sum to 1.
        seed: decides who goes where.

    Raises:
        ConfigError: fractions that are negative or do not sum to 1.
    """
    if len(fractions) != 3 or min(fractions) < 0 or not abs(sum(fractions) - 1) <= 1e-6:
        raise ConfigError(f"data.split must be three fractions that sum to 1, not {list(fractions)}")
    out: Splits = {"train": [], "val": [], "test": []}
    free = [record for record in records if record.split not in out]
    if len(free) == len(records):
        return out | _draw(free, dict(zip(out, fractions, strict=True)), seed)
    homes = {record.group: record.split for record in records if record.group is not None and record.split is not None}
    for record in records:
        known = homes.get(record.group) if record.group is not None else None
        split = record.split if record.split in out else known
        out[split if split in out else "train"].append(record)
    if not out["val"] and fractions[1] > 0:
        share = fractions[1] / (fractions[0] + fractions[1])
        out |= _draw(out["train"], {"train": 1 - share, "val": share}, seed)
    return out


def stratum(record: Record) -> str:
    """What a split keeps in proportion: the image labels, or the kinds of boxes present."""
    kinds = [f"{name}={label}" for name, label in sorted(record.labels.items()) if isinstance(label, (int, tuple))]
    boxes = [f"{n}={sorted(set(b.classes.tolist()))}" for n, b in record.labels.items() if isinstance(b, Boxes)]
    return ";".join(kinds or boxes or sorted(record.labels))


def _draw(records: list[Record], shares: dict[str, float], seed: int) -> Splits:
    """Random members per split: groups whole, each stratum in proportion, counted in images."""
    rng = np.random.default_rng(seed)
    groups: dict[tuple[bool, str], list[Record]] = {}
    for record in sorted(records, key=lambda r: r.image.name):
        alone = record.group is None
        groups.setdefault((not alone, record.image.name if alone else str(record.group)), []).append(record)
    strata: dict[str, list[list[Record]]] = {}
    for members in groups.values():
        strata.setdefault(stratum(members[0]), []).append(members)
    out: Splits = {name: [] for name in shares}
    for key in sorted(strata):
        # Large groups first: singles can still make up for them.
        for at in sorted(rng.permutation(len(strata[key])), key=lambda at: -len(strata[key][int(at)])):
            members = strata[key][int(at)]
            # To the split that is furthest behind its share.
            total = sum(map(len, out.values())) + len(members)
            behind = max(shares, key=lambda split: shares[split] * total - len(out[split]))
            out[behind] += members
    return out
