"""Rows gathered over a split and, under several processes, over all of them."""

from __future__ import annotations

from typing import TypeVar

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
