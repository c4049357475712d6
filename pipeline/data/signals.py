"""Built-in signals of one dimension: ten curves, bent, moved and hidden in noise; 40 samples each, as grey images 1 x 40.

Made as MNIST-1D is (Greydanus 2020, Scaling down deep learning, https://arxiv.org/abs/2011.14439): a template of twelve
points, padded, stretched, shifted, sheared, with noise that is correlated along the signal. The templates are our own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.data.formats.base import SourceData
from pipeline.errors import ConfigError
from pipeline.labels import LabelSpace
from pipeline.records import Record

SAMPLES = 40
LENGTH = 72
"""Points a signal is drawn with, before every second or so is taken."""

RANGE = 4.0
"""Signals lie within plus and minus this; it becomes 0 to 255."""

TEMPLATES: dict[str, tuple[float, ...]] = {
    "arch": (0.0, 0.5, 0.8, 1.0, 1.1, 1.2, 1.2, 1.1, 1.0, 0.8, 0.5, 0.0),
    "ramp": (-1.2, -1.0, -0.8, -0.6, -0.4, -0.1, 0.1, 0.4, 0.6, 0.8, 1.0, 1.2),
    "fall": (1.2, 1.0, 0.8, 0.6, 0.4, 0.1, -0.1, -0.4, -0.6, -0.8, -1.0, -1.2),
    "step": (-1.0, -1.0, -1.0, -1.0, -1.0, -1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0),
    "wave": (0.0, 0.6, 1.0, 1.0, 0.6, 0.0, 0.0, -0.6, -1.0, -1.0, -0.6, 0.0),
    "spike": (0.0, 0.0, 0.0, 0.2, 0.8, 1.8, 1.8, 0.8, 0.2, 0.0, 0.0, 0.0),
    "camel": (0.0, 0.7, 1.3, 0.7, 0.1, -0.3, -0.3, 0.1, 0.7, 1.3, 0.7, 0.0),
    "saw": (-1.0, 0.0, 1.0, -1.0, 0.0, 1.0, -1.0, 0.0, 1.0, -1.0, 0.0, 1.0),
    "bowl": (1.0, 0.4, -0.1, -0.5, -0.8, -1.0, -1.0, -0.8, -0.5, -0.1, 0.4, 1.0),
    "hook": (0.9, 1.1, 1.2, 1.1, 0.7, 0.1, -0.5, -0.9, -1.0, -0.7, -0.2, 0.2),
}


def draw_signal(seed: int, index: int, kind: int) -> NDArray[np.uint8]:
    """Signal `index` of the data set `seed`, of class `kind`: uint8 (40,), the same every time."""
    rng = np.random.default_rng((seed, index, 1))
    template = np.asarray(list(TEMPLATES.values())[kind])
    span = int(rng.integers(28, 45))
    start = int(rng.integers(0, LENGTH - span))
    curve = np.zeros(LENGTH)
    curve[start : start + span] = np.interp(np.linspace(0, 11, span), np.arange(12), template)
    curve *= 1 + 0.4 * rng.uniform(-1, 1)
    curve += 0.6 * rng.uniform(-1, 1) * np.linspace(-0.5, 0.5, LENGTH)
    noise = np.convolve(rng.normal(0, 1, LENGTH + 8), np.hanning(11)[1:-1], "valid")
    curve += 0.25 * noise / noise.std()
    taken = np.interp(np.linspace(0, LENGTH - 1, SAMPLES), np.arange(LENGTH), curve)
    return np.clip((taken + RANGE) * (255 / (2 * RANGE)), 0, 255).round().astype(np.uint8)


@dataclass(frozen=True, slots=True)
class SignalImage:
    """A signal as a grey picture one pixel high, drawn when read."""

    seed: int
    index: int
    kind: int

    @property
    def name(self) -> str:
        """`signals-<seed>-<index>`."""
        return f"signals-{self.seed}-{self.index:06d}"

    def read(self, at_least: int | None = None) -> tuple[NDArray[np.uint8], tuple[int, int]]:  # noqa: ARG002  # drawn at its own size
        """RGB uint8 (1, 40, 3), its channels alike, and (1, 40)."""
        signal = draw_signal(self.seed, self.index, self.kind)
        return np.repeat(signal[None, :, None], 3, axis=2), (1, SAMPLES)


def read_signals(images: int = 4000, seed: int = 0) -> SourceData:
    """`images` signals with the label field `shape`, with their own split, 80 / 10 / 10.

    Raises:
        ConfigError: fewer than one hundred.
    """
    if images < 100:
        raise ConfigError(f"signals needs at least 100 signals, not {images}")
    records = []
    for index in range(images):
        kind = int(np.random.default_rng((seed, index, 0)).integers(len(TEMPLATES)))
        split = {8: "val", 9: "test"}.get(index % 10, "train")
        records.append(Record(SignalImage(seed, index, kind), {"shape": kind}, split, None, (1, SAMPLES)))
    name = f"signals ({images} of {SAMPLES} samples, seed {seed})"
    return SourceData(name, {"shape": LabelSpace("classes", tuple(TEMPLATES))}, records)
