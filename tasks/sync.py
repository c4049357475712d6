"""Rows gathered over a split and, under several processes, over all of them."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

T = TypeVar("T")


class Gathered:
    """Columns of CPU tensors collected batch by batch; `all` joins them, across processes too."""

    def __init__(self, *columns: str) -> None:
        self.columns = columns
        self.parts: list[tuple[Tensor, ...]] = []

    def add(self, *values: Tensor) -> None:
        """One tensor per column, each with its rows in the first dimension."""
        self.parts.append(values)

    def reset(self) -> None:
        """Forgets every row."""
        self.parts = []

    def all(self) -> list[Tensor]:
        """Each column's rows in one tensor; empty (0,) when there are none. Every process must call it."""
        parts = gather(self.parts)
        return [torch.cat([part[i] for part in parts]) if parts else torch.zeros(0) for i in range(len(self.columns))]


class Means:
    """Weighted means by name, over all processes; a name may be missing in some of them, which Lightning's own sync would wait for."""

    def __init__(self) -> None:
        self.totals: dict[str, Tensor] = {}
        self.weights: dict[str, float] = {}

    def add(self, name: str, value: Tensor, weight: float = 1.0) -> None:
        """One scalar; stays where it was computed, so that nothing waits for the device."""
        value = value.detach() * weight
        self.totals[name] = self.totals[name] + value if name in self.totals else value
        self.weights[name] = self.weights.get(name, 0.0) + weight

    def reset(self) -> None:
        """Forgets every value."""
        self.totals, self.weights = {}, {}

    def all(self) -> dict[str, float]:
        """Each name's mean, names in sorted order. Every process must call it."""
        rows = gather([(name, float(total), self.weights[name]) for name, total in self.totals.items()])
        names = sorted({name for name, _, _ in rows})
        parts = {name: [(total, weight) for n, total, weight in rows if n == name] for name in names}
        return {name: sum(t for t, _ in part) / sum(w for _, w in part) for name, part in parts.items()}


def gather(rows: list[T]) -> list[T]:
    """The lists of all processes, joined in rank order; the list itself in a single process."""
    if not (dist.is_available() and dist.is_initialized()):
        return rows
    parts: list[list[T]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(parts, rows)
    return [row for part in parts for row in part]


def sum_over_processes(value: Tensor) -> Tensor:
    """The sum of a tensor over all processes; the tensor itself in a single one."""
    if dist.is_available() and dist.is_initialized():
        value = value.clone()
        dist.all_reduce(value)
    return value


def touch(raw: dict[str, Any], used: set[str]) -> Tensor | float:
    """Zero that depends on the heads not in `used`: under several processes each weight must get a gradient."""
    unused = [tensor for name in raw if name not in used for tensor in _tensors(raw[name])]
    return torch.stack([tensor.float().mean() * 0 for tensor in unused]).sum() if unused else 0.0


def _tensors(value: Any) -> list[Tensor]:
    """The floating tensors in a tensor, tuple or NamedTuple that can carry a gradient."""
    if isinstance(value, Tensor):
        return [value] if value.requires_grad else []
    return [tensor for item in value for tensor in _tensors(item)] if isinstance(value, (tuple, list)) else []
