"""How far two engines' answers lie apart, and how far they may: for export's check and for every machine's self-test."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.bundle import COLUMNS, Bundle, HeadSpec
from pipeline.errors import BundleError
from serving.engines.base import Engine, Outputs


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far an engine may be from eager PyTorch.

    Attributes:
        probability: of probabilities and scores, absolute.
        box: of box sides, as a share of the input's longer side.
        pixels: share of mask pixels of another class.
        metric: of each head's main metric, absolute.
    """

    probability: float
    box: float
    pixels: float
    metric: float


TOLERANCES = {
    "fp32": Tolerance(1e-3, 1e-3, 1e-3, 0.001),
    "bf16": Tolerance(0.1, 0.05, 0.05, 0.003),
    "int8": Tolerance(math.inf, math.inf, math.inf, 0.005),
}
"""By precision, for export. int8 moves single values far; what counts there is the metric."""

SELFTEST = {**TOLERANCES, "int8": Tolerance(0.5, math.inf, 0.2, math.inf)}
"""By precision, on a machine that has only the bundle: what is grossly wrong is found without labels."""


def differences(wanted: Outputs, found: Outputs, heads: dict[str, HeadSpec]) -> dict[str, float]:
    """The largest difference per output.

    Probabilities and scores: absolute. Boxes: pixels, of the boxes that both sides rank alike. Masks: the share of
    pixels of another class. NaN where an answer is not a number, infinite where its shape differs.
    """
    out: dict[str, float] = {}
    for name, head in heads.items():
        for output in head.outputs:
            a, b = wanted[output], found[output]
            if a.shape != b.shape:
                out[output] = math.inf
            elif output.endswith(".mask"):
                out[output] = float((a != b).mean())
            elif output.endswith((".probabilities", ".scores")):
                out[output] = float(np.abs(a.astype(np.float64) - b).max(initial=0))
        if head.kind == "boxes" and math.inf not in (out.get(output, 0.0) for output in head.outputs):
            out[f"{name}.boxes"] = _box_difference(wanted, found, name)
    return out


def _box_difference(wanted: Outputs, found: Outputs, name: str) -> float:
    """Largest distance in pixels from a wanted box to the nearest found one of its class and about its score.

    Rows near the last rank are left out: of two almost equal scores either may be the one that is cut off.
    """
    worst = 0.0
    boxes, scores, classes = (wanted[f"{name}.{c}"] for c in ("boxes", "scores", "classes"))
    others, theirs, kinds = (found[f"{name}.{c}"] for c in ("boxes", "scores", "classes"))
    slack = 2 * float(np.abs(scores - theirs).max(initial=0)) + 1e-6
    for image in range(len(boxes)):
        sure = scores[image] > scores[image][-1] + slack
        for row in np.nonzero(sure)[0]:
            same = (kinds[image] == classes[image][row]) & (np.abs(theirs[image] - scores[image][row]) <= slack)
            if not same.any():
                return math.inf
            off = np.abs(others[image][same] - boxes[image][row]).max(1).min()
            worst = float(np.maximum(worst, off))  # unlike max, it keeps what is not a number
    return worst


def raw_failures(found: dict[str, float], tolerance: Tolerance, side: int) -> list[str]:
    """A line for each output that differs by more than its tolerance; `side` is the input's longer side in pixels."""
    lines = []
    for name, value in found.items():
        column = name.rpartition(".")[2]
        limit = {"mask": tolerance.pixels, "boxes": tolerance.box * side}.get(column, tolerance.probability)
        if not value <= limit:
            lines.append(f"{name} differs by {value:.2g} (at most {limit:.2g})")
    return lines


def precision_of(spec: str) -> str:
    """The precision an engine's variant computes in: `fp32`, `bf16` or `int8`."""
    return {"int8": "int8", "bf16": "bf16"}.get(spec.partition(":")[2], "fp32")


def read_selftest(bundle: Bundle) -> tuple[NDArray[np.uint8], Outputs] | None:
    """The bundle's images uint8 (B, H, W, 3) with the trained network's answers; None where it has none."""
    name = bundle.find("selftest", "")
    if name is None:
        return None
    data = bundle.content(name)
    try:
        return _known_answers(data)
    except Exception as error:  # a reader of damaged archives fails in any way it likes
        told = " ".join(str(error).split())
        raise BundleError(f"bundle {bundle.path}: {name} is no self-test ({told}); export it again") from error


def _known_answers(data: bytes) -> tuple[NDArray[np.uint8], Outputs]:
    """A self-test's images and answers; raises what it likes for bytes that are none."""
    with np.load(io.BytesIO(data), allow_pickle=False) as content:
        found = {key: content[key] for key in content.files}
    images = found.pop("images")
    if images.dtype != np.uint8 or images.ndim != 4 or not len(images):
        raise ValueError(f"images of {images.dtype} {images.shape}")
    if any(value.dtype.kind not in "fiub" for value in found.values()):
        raise ValueError("answers that are no numbers")
    return images, found


def selftest(bundle: Bundle, engine: Engine) -> list[str]:
    """Runs the bundle's own images through an engine; a line for each answer that is too far from the network's."""
    known = read_selftest(bundle)
    if known is None:
        return []
    images, wanted = known
    heads = {
        name: HeadSpec(head.kind, head.classes, tuple(o for o in head.outputs if o in wanted), head.threshold)
        for name, head in bundle.heads.items()
    }
    unknown = [name for name, head in heads.items() if any(f"{name}.{c}" not in wanted for c in COLUMNS[head.kind])]
    if unknown:
        raise BundleError(f"bundle {bundle.path}: its self-test knows no {', '.join(unknown)}; export it again")
    found = differences(wanted, engine.infer(images), heads)
    return raw_failures(found, SELFTEST[precision_of(engine.report().spec)], max(bundle.manifest.input.size))
