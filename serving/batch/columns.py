"""Python values as Arrow columns without `pyarrow.array`, which would import pandas: a second that a small folder feels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

_NUMBERS = {pa.int32(): np.int32, pa.int64(): np.int64, pa.float32(): np.float32}


def column(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Values as an array of text, numbers, truth, or lists of them; only text may be None."""
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(column(_flat(values), kind.value_type), kind.list_size)
    if pa.types.is_list(kind):
        ends = np.cumsum([0, *map(len, values)], dtype=np.int32)
        return pa.ListArray.from_arrays(_buffered(ends, pa.int32()), column(_flat(values), kind.value_type))
    if pa.types.is_string(kind):
        builder = pa.lib.StringBuilder()
        builder.append_values(values)
        return builder.finish()
    if pa.types.is_boolean(kind):
        bits = np.packbits(np.asarray(values, bool), bitorder="little")
        return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(bits)])
    return _buffered(np.asarray(values, _NUMBERS[kind]), kind)


def _flat(values: Iterable[Iterable[Any]]) -> list[Any]:
    return list(chain.from_iterable(values))


def _buffered(values: NDArray[Any], kind: pa.DataType) -> pa.Array:
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])
