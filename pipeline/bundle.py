"""The exported model's folder: its manifest, files and checksums; read here, written by pipeline/export/folder.py.

    bundle.json       what the network answers, its input, where it came from, how it was checked; a checksum per file
    model.onnx        pixels in, answers out
    model.ts.pt       the same graph for TorchScript
    model.int8.onnx   a quantised variant, where asked for
    selftest.npz      a few images and the trained network's answers, to test an engine on any machine

Reading never unpickles and never writes. The folder appears under its name only when it is whole.
"""

from __future__ import annotations

import hashlib
import json
import math
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import BundleError, DataError
from pipeline.labels import LabelSpace
from pipeline.manifest_shape import misfit

SCHEMA = 1
"""Raised when a reader of the former schema would misread the folder."""

MANIFEST = "bundle.json"
COLUMNS = {
    "classes": ("probabilities",),
    "multilabel": ("probabilities",),
    "boxes": ("boxes", "scores", "classes"),
    "mask": ("mask",),
}
"""By kind of head, the outputs `<head>.<column>` that an answer is made of; a mask may have `probabilities` too."""


@dataclass(frozen=True, slots=True)
class InputSpec:
    """What the graph takes: RGB uint8 (B, height, width, 3), letterboxed on grey `fill`; it normalises by itself.

    With `dynamic_size` other heights and widths that divide by `multiple` serve as well.
    """

    height: int
    width: int
    fill: int
    name: str = "images"
    dynamic_size: bool = False
    multiple: int = 32

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.height, self.width


@dataclass(frozen=True, slots=True)
class HeadSpec:
    """One head: its kind and classes, the graph's outputs that are its answer, and the score from which it counts."""

    kind: str
    classes: tuple[str, ...]
    outputs: tuple[str, ...]
    threshold: float

    @property
    def space(self) -> LabelSpace:
        """The classes as a LabelSpace (for colours)."""
        return LabelSpace(self.kind, self.classes)  # type: ignore[arg-type]  # checked when the manifest is read


@dataclass(frozen=True, slots=True)
class FileSpec:
    """One file: its checksum and size, and what it is (`onnx`, `torchscript`, `selftest`) in which precision."""

    sha256: str
    bytes: int
    format: str
    precision: str = ""


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of `bundle.json`.

    Attributes:
        name: the model's name.
        input: what the graph takes.
        heads: by name.
        files: by file name; filled when the bundle is written.
        preprocessing: what the graph does to the pixels first, for people.
        opset: the ONNX operator set.
        provenance: run id, commit, data digest, checkpoint, package versions.
        checks: by engine, how its answers compare with the trained network's.
        schema: version of this layout.
        version: tells this export from every other one.
    """

    name: str
    input: InputSpec
    heads: dict[str, HeadSpec]
    files: dict[str, FileSpec] = field(default_factory=dict)
    preprocessing: dict[str, Any] = field(default_factory=dict)
    opset: int = 0
    provenance: dict[str, Any] = field(default_factory=dict)
    checks: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA
    version: str = ""

    @property
    def spaces(self) -> dict[str, LabelSpace]:
        """The heads' classes, for drawing."""
        return {name: head.space for name, head in self.heads.items()}

    @property
    def outputs(self) -> list[str]:
        """The graph's outputs in order."""
        return [output for head in self.heads.values() for output in head.outputs]


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle on disk.

    Attributes:
        path: its folder.
        manifest: what lies in it.
        only: names of the heads that are wanted of it, None for all; engines compute as little else as they can.
    """

    path: Path
    manifest: Manifest
    only: frozenset[str] | None = None

    @property
    def heads(self) -> dict[str, HeadSpec]:
        """The heads that are wanted, by name."""
        return {name: head for name, head in self.manifest.heads.items() if self.only is None or name in self.only}

    @property
    def outputs(self) -> list[str]:
        """Their outputs in the graph's order."""
        return [output for head in self.heads.values() for output in head.outputs]

    def find(self, file_format: str, precision: str) -> str | None:
        """Name of the file of a format and precision, or None."""
        found = (n for n, f in self.manifest.files.items() if (f.format, f.precision) == (file_format, precision))
        return next(found, None)

    def content(self, name: str) -> bytes:
        """A file's bytes, checked against its checksum; raises BundleError."""
        try:
            data = (self.path / name).read_bytes()
        except OSError as error:
            raise BundleError(
                f"bundle {self.path}: {name} cannot be read ({error.strerror}); export it again"
            ) from error
        if hashlib.sha256(data).hexdigest() != self.manifest.files[name].sha256:
            raise BundleError(f"bundle {self.path}: {name} was altered (its checksum differs); export or copy it again")
        return data

    def verify(self) -> None:
        """Checks every file; raises BundleError."""
        for name in self.manifest.files:
            self.content(name)


def read_bundle(path: Path) -> Bundle:
    """Opens a bundle and sees that its files are there; `content` checks each as it is read.

    Raises:
        BundleError: no bundle, a broken or newer manifest, an unknown kind of head, a file missing or of another size.
    """
    try:
        text = (path / MANIFEST).read_bytes()
    except OSError as error:
        raise BundleError(
            f"{path} is no bundle ({MANIFEST}: {error.strerror}); `lightning export --ckpt … --out DIR` writes one"
        ) from error
    try:
        plain = json.loads(text)
        schema = int(plain["schema"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise BundleError(f"bundle {path}: {MANIFEST} is broken ({error!r}); export or copy it again") from error
    if schema > SCHEMA:
        raise BundleError(f"bundle {path} has schema {schema}; this version reads up to {SCHEMA}: update trifocal")
    try:
        manifest = manifest_from(plain)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"bundle {path}: {MANIFEST} is incomplete ({error!r}); export it again") from error
    nonsense = misfit(plain)
    if nonsense is None:
        for name, head in manifest.heads.items():
            if head.kind not in COLUMNS:
                raise BundleError(
                    f"bundle {path}: head {name!r} is of unknown kind {head.kind!r}; known: {', '.join(COLUMNS)}; update trifocal"
                )
        nonsense = _nonsense(manifest)
    if nonsense is not None:
        told = " ".join(nonsense.split())
        raise BundleError(f"bundle {path}: {MANIFEST} makes no sense: {told}; export or copy it again")
    for name, spec in manifest.files.items():
        _require_file(path, name, spec)
    return Bundle(path, manifest)


def _require_file(path: Path, name: str, spec: FileSpec) -> None:
    if Path(name).name != name or name in {".", ".."}:
        raise BundleError(
            f"bundle {path}: file {name!r} lies outside the bundle; a bundle names files of its own folder"
        )
    try:
        found = (path / name).stat()
    except (OSError, ValueError) as error:
        raise BundleError(f"bundle {path}: {name} is missing; export or copy it again") from error
    if not stat.S_ISREG(found.st_mode):
        raise BundleError(f"bundle {path}: {name} is no file; export or copy it again")
    if found.st_size != spec.bytes:
        raise BundleError(
            f"bundle {path}: {name} has {found.st_size} bytes instead of {spec.bytes}; export or copy it again"
        )


def _nonsense(manifest: Manifest) -> str | None:
    """What of a manifest cannot be meant: a size, a class list or an output of a wrong kind; None for sense."""
    given = manifest.input
    if not all(_between(side, 1, 1 << 16) for side in (*given.size, given.multiple)) or not _between(
        given.fill, 0, 255
    ):
        return f"an input of {given.height!r} x {given.width!r} on grey {given.fill!r}"
    for name, head in manifest.heads.items():
        if not head.classes or not all(isinstance(each, str) for each in head.classes):
            return f"head {name!r} has no list of classes"
        try:
            head.space  # noqa: B018  # it checks the names
        except DataError as error:
            return f"head {name!r}: {error}"
        wanted = {f"{name}.{column}" for column in COLUMNS[head.kind]}
        if set(head.outputs) - ({f"{name}.probabilities"} if head.kind == "mask" else set()) != wanted:
            return f"head {name!r} ({head.kind}) answers {', '.join(map(str, head.outputs))}"
        if not isinstance(head.threshold, (int, float)) or not math.isfinite(head.threshold):
            return f"head {name!r} counts from {head.threshold!r}"
    return None


def _between(value: Any, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def manifest_from(plain: dict[str, Any]) -> Manifest:
    """A Manifest from plain values; keys that this version does not know are left out."""

    def known(kind: type, values: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in values.items() if key in kind.__dataclass_fields__}  # type: ignore[attr-defined]

    def texts(value: list[str]) -> tuple[str, ...]:
        if not isinstance(value, list):
            raise TypeError(f"{value!r} is no list")
        return tuple(value)

    heads = {
        name: HeadSpec(**known(HeadSpec, head) | {"classes": texts(head["classes"]), "outputs": texts(head["outputs"])})
        for name, head in plain["heads"].items()
    }
    files = {name: FileSpec(**known(FileSpec, values)) for name, values in plain["files"].items()}
    nested = {"input": InputSpec(**known(InputSpec, plain["input"])), "heads": heads, "files": files}
    return Manifest(**known(Manifest, plain) | nested)
