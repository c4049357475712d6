"""What `bundle.json` is made of: the kind of value under each key that something here reads."""

from __future__ import annotations

from types import NoneType
from typing import Any

ANY = "*"
"""In a shape: under whatever name."""

_FIGURES = {ANY: (int, float, NoneType)}

SHAPE: dict[str, Any] = {
    "name": (str,),
    "version": (str,),
    "opset": (int,),
    "preprocessing": {},
    "input": {"name": (str,), "dynamic_size": (bool,)},
    "heads": {ANY: {"kind": (str,), "outputs": [(str,)]}},
    "files": {ANY: {"sha256": (str,), "bytes": (int,), "format": (str,), "precision": (str,)}},
    "provenance": {"data": {ANY: {"sha256": (str,)}}, "code": {ANY: (str,)}, "run_id": (str, NoneType)},
    "checks": {
        ANY: {
            "passed": (bool,),
            "failures": [(str,)],
            "float": [(str,)],
            "raw": _FIGURES,
            "metrics": {ANY: _FIGURES},
            "difference": _FIGURES,
            "milliseconds": (int, float),
        }
    },
}
"""Types stand in tuples, the members of a list in a list. Keys may be missing, and others stand beside them."""


def misfit(value: Any, shape: Any = SHAPE, where: str = "") -> str | None:
    """The first value that is not of its kind, such as `checks.eager.metrics is 3`; None where all fit."""
    if isinstance(shape, tuple):
        inner: list[tuple[Any, Any, Any]] = []
        fits = type(value) in shape  # a bool is no int here
    elif isinstance(shape, list):
        fits = isinstance(value, list)
        inner = [(at, each, shape[0]) for at, each in enumerate(value)] if fits else []
    else:
        fits = isinstance(value, dict)
        named = [(key, shape.get(key, shape.get(ANY))) for key in value] if fits else []
        inner = [(key, value[key], kind) for key, kind in named if kind is not None]
    if not fits:
        return f"{where or 'it'} is {value!r:.60}"
    found = (misfit(each, kind, f"{where}.{key}".lstrip(".")) for key, each, kind in inner)
    return next((line for line in found if line is not None), None)
