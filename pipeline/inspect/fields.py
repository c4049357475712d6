"""Which input pixels each position of a map depends on: intervals per axis, moved through every operation by its rule.

An interval is exact for convolutions and pools on any path (branches, sums, concatenations, upsampling); of a dilated
kernel it is the hull. An operation without a rule that changes the map's shape, or mixes positions (attention), makes
the positions depend on the whole image.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from pipeline.inspect.moves import MOVES, Reach


@dataclass(frozen=True)
class Field:
    """The reach of a map's rows and columns, and which of the tensor's dimensions these are.

    Both are the same dimension where rows and columns were flattened into one of tokens.
    """

    rows: Reach
    columns: Reach
    axes: tuple[int, int]

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of that shape has these rows and columns."""
        first, second = self.axes
        if first == second:
            return shape[first] == len(self.rows) * len(self.columns)
        return shape[first] == len(self.rows) and shape[second] == len(self.columns)


def channels_first(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps as (B, C, H, W), also of a layer that keeps its channels last (Swin): told by the proportions of the image's `size`."""
    if maps.ndim != 4:
        return maps
    _, first, second, third = maps.shape
    last = first * size[1] == second * size[0] and second * size[1] != third * size[0]
    return maps.movedim(3, 1) if last else maps


class FieldMode(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """While active, keeps the Field of every tensor computed from a marked image."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # likewise
        self._known: Any = WeakIdKeyDictionary()
        self._size = (0, 0)

    def mark(self, images: Tensor) -> None:
        """Takes float (1, C, H, W) for the image."""
        self._size = (images.shape[2], images.shape[3])
        self._known[images] = Field(Reach.of_pixels(self._size[0]), Reach.of_pixels(self._size[1]), (2, 3))

    def field(self, tensor: Tensor) -> Field | None:
        """A tensor's Field; None where its positions depend on the whole image, or are no rows and columns."""
        found: Field | None = self._known.get(tensor)
        return found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operation, then its rule."""
        out = func(*args, **(kwargs or {}))
        seen = [tensor for tensor in _tensors(args) if tensor in self._known]
        if seen:
            given = [(tensor, field) for tensor in seen if (field := self._known[tensor]) is not None]
            for result in _tensors((out,)):
                field = _rule(func, args, given, result) if given else None
                if field is not None and len(given) < len(seen):  # one of them depends on everything
                    field = Field(
                        _everything(field.rows, self._size[0]), _everything(field.columns, self._size[1]), field.axes
                    )
                self._known[result] = field
        return out


def _everything(reach: Reach, size: int) -> Reach:
    return Reach(np.zeros(len(reach), np.int64), np.full(len(reach), size - 1))


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    out: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            out.append(value)
        elif isinstance(value, (list, tuple)):
            out += _tensors(value)
    return out


def _rule(func: Any, args: Any, given: list[tuple[Tensor, Field]], result: Tensor) -> Field | None:
    """The Field of one result of an operation."""
    name = func.overloadpacket.__name__
    tensor, field = given[0]
    if name in MOVES and field.axes == (tensor.ndim - 2, tensor.ndim - 1):
        rows, columns = MOVES[name](args, (field.rows, field.columns), result)
        return Field(rows, columns, (result.ndim - 2, result.ndim - 1))
    if name in {"permute", "transpose", "t"}:
        return _permuted(name, args, tensor, field)
    if name in {"view", "_unsafe_view", "reshape", "unsqueeze", "squeeze"}:
        return _viewed(tensor, field, result)
    if name == "cat":
        return _concatenated(args, given)
    if name == "slice":
        return _sliced(args, tensor, field, result)
    if name in {"mean", "sum", "amax", "var_mean"} and result.ndim == tensor.ndim:
        return _elementwise(given, result) or _reduced(field, result)
    if name in {"mm", "addmm"} and len(given) == 1 and field.axes == (0, 0):  # tokens times weights
        return field
    if name in _MIXING or name.startswith("_scaled_dot_product"):
        return None
    return _elementwise(given, result)


_MIXING = {"mm", "addmm", "bmm", "baddbmm", "_softmax", "sort", "roll", "native_group_norm"}
"""Operations that keep a shape but let every position see the others."""


def _elementwise(given: list[tuple[Tensor, Field]], result: Tensor) -> Field | None:
    """The union over the inputs, where the result has their rows and columns."""
    joined: Field | None = None
    for tensor, field in given:
        shift = result.ndim - tensor.ndim
        axes = (field.axes[0] + shift, field.axes[1] + shift)
        if shift < 0 or (joined is not None and joined.axes != axes):
            return None
        if joined is None:
            joined = Field(field.rows, field.columns, axes)
        else:
            joined = Field(joined.rows.joined(field.rows), joined.columns.joined(field.columns), axes)
    return joined if joined is not None and joined.fits(tuple(result.shape)) else None


def _viewed(tensor: Tensor, field: Field, result: Tensor) -> Field | None:
    """The same numbers in another shape: rows and columns apart or flattened, found by what stands before them."""
    before = math.prod(tensor.shape[: field.axes[0]])
    if field.axes[1] - field.axes[0] > 1:
        return None
    for axis in range(result.ndim):
        if math.prod(result.shape[:axis]) == before:
            for axes in ((axis, axis + 1), (axis, axis)):
                moved = Field(field.rows, field.columns, axes)
                if axes[1] < result.ndim and moved.fits(tuple(result.shape)):
                    return moved
    return None


def _reduced(field: Field, result: Tensor) -> Field:
    """Rows and columns that were averaged or summed to one."""
    rows, columns = (result.shape[a] for a in field.axes)
    return Field(
        field.rows if rows == len(field.rows) else field.rows.whole(rows),
        field.columns if columns == len(field.columns) else field.columns.whole(columns),
        field.axes,
    )


def _permuted(name: str, args: Any, tensor: Tensor, field: Field) -> Field:
    order = list(range(tensor.ndim))
    if name == "permute":
        order = [a % tensor.ndim for a in args[1]]
    else:
        a, b = (args[1] % tensor.ndim, args[2] % tensor.ndim) if name == "transpose" else (0, 1)
        order[a], order[b] = b, a
    return Field(field.rows, field.columns, (order.index(field.axes[0]), order.index(field.axes[1])))


def _concatenated(args: Any, given: list[tuple[Tensor, Field]]) -> Field | None:
    ndim = given[0][0].ndim
    axis = (args[1] if len(args) > 1 else 0) % ndim
    axes = given[0][1].axes
    if axis in axes or any(field.axes != axes for _, field in given):
        return None
    rows, columns = given[0][1].rows, given[0][1].columns
    for _, field in given[1:]:
        rows, columns = rows.joined(field.rows), columns.joined(field.columns)
    return Field(rows, columns, axes)


def _sliced(args: Any, tensor: Tensor, field: Field, result: Tensor) -> Field:
    axis = int(args[1]) % tensor.ndim if len(args) > 1 else 0
    start = int(args[2] or 0) if len(args) > 2 else 0
    step = int(args[4]) if len(args) > 4 else 1
    if axis not in field.axes:
        return field
    start = max(0, start + tensor.shape[axis] if start < 0 else start)
    taps = [start + step * np.arange(result.shape[axis])]
    if axis == field.axes[0]:
        return Field(field.rows.gather(taps), field.columns, field.axes)
    return Field(field.rows, field.columns.gather(taps), field.axes)
