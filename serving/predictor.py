"""Bytes in, answers out: the one inference path of the service, the folder command and export's parity check."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.bundle import Bundle, read_bundle
from pipeline.errors import ConfigError, ImageError, nearest
from pipeline.imaging.decode import decode_bytes, read_image
from pipeline.imaging.geometry import Letterbox
from pipeline.imaging.letterbox import letterbox_image
from serving.answers import Answer, Options, answer_of
from serving.engines.base import Engine, Outputs
from serving.engines.choose import Choice, open_engine

ALL = Options()


class Prepared(NamedTuple):
    """One image ready for the engine: RGB uint8 (H, W, 3), and how the full image lies in it."""

    pixels: NDArray[np.uint8]
    frame: Letterbox


class Predictor:
    """A bundle on an engine. Holds no state between calls: every method may be called from several threads.

    Args:
        bundle: the exported network.
        engine: loaded over it.
        choice: how the engine was chosen, to be shown.
    """

    def __init__(self, bundle: Bundle, engine: Engine, choice: Choice | None = None) -> None:
        self.bundle, self.engine = bundle, engine
        self.choice = choice or Choice(engine.report().spec)
        self.heads = bundle.heads
        self.size = bundle.manifest.input.size

    @classmethod
    def load(
        cls,
        bundle_dir: Path,
        engine: str = "auto",
        threads: int | None = None,
        streams: int = 1,
        heads: Iterable[str] | None = None,
    ) -> Predictor:
        """Opens a bundle on an engine.

        Args:
            bundle_dir: the bundle's folder.
            engine: `auto`, or a name such as `onnxruntime`, `onnxruntime:int8`, `openvino:bf16`.
            threads: threads of one `infer`; None shares the cores among the streams.
            streams: calls of `infer` that run side by side; more wait where the engine cannot take them.
            heads: names of those that are wanted: what the others alone need is not computed. None for all.

        Raises:
            BundleError: a bundle that is missing, altered or newer than this version.
            ConfigError: heads that the model does not have, or none.
            EngineError: an engine that is unknown, not installed or cannot run here.
        """
        bundle = read_bundle(Path(bundle_dir))
        if heads is not None:
            bundle = replace(bundle, only=frozenset(heads))
            _require_known(bundle.only or (), bundle.manifest.heads, "the model")
            if not bundle.only:
                raise ConfigError(f"no head is wanted of the model; it has {', '.join(bundle.manifest.heads)}")
        choice, loaded = open_engine(bundle, engine, threads, streams)
        return cls(bundle, loaded, choice)

    def decode(self, source: bytes | Path, name: str = "image") -> Prepared:
        """An encoded image, or its file, upright and letterboxed as in training's evaluation; raises ImageError."""
        at_least = max(self.size)
        if isinstance(source, Path):
            pixels, full = read_image(source, at_least)
        else:
            pixels, full = decode_bytes(source, name, at_least)
        return self.letterbox(pixels, full)

    def letterbox(self, pixels: NDArray[np.uint8], full: tuple[int, int] | None = None) -> Prepared:
        """Upright RGB uint8 (h, w, 3), perhaps shrunk from the full (height, width), in the network's frame."""
        frame = Letterbox.fit(full or (pixels.shape[0], pixels.shape[1]), self.size)
        return Prepared(letterbox_image(pixels, frame), frame)

    def infer(self, batch: NDArray[np.uint8]) -> Outputs:
        """RGB uint8 (B, H, W, 3) to the graph's outputs by name; raises EngineError."""
        return self.engine.infer(batch)

    def answers(self, outputs: Outputs, frames: Sequence[Letterbox], options: Options = ALL) -> list[Answer]:
        """A batch's outputs as one Answer per image, in pixels of each full image; raises ConfigError for unknown heads."""
        _require_known(
            options.heads or (), self.heads, "the model" if self.bundle.only is None else "the model as loaded"
        )
        return [answer_of(outputs, index, frame, self.heads, options) for index, frame in enumerate(frames)]

    def predict(
        self, images: Sequence[bytes | Path], options: Options = ALL, batch_size: int = 8
    ) -> list[Answer | ImageError]:
        """One Answer per image in order; an image that cannot be decoded gets its error, the others their answers."""
        results: list[Answer | ImageError] = []
        for at in range(0, len(images), batch_size):
            results += self._predict_batch(images[at : at + batch_size], options)
        return results

    def _predict_batch(self, images: Sequence[bytes | Path], options: Options) -> list[Answer | ImageError]:
        slots: list[Prepared | ImageError] = []
        for source in images:
            try:
                slots.append(self.decode(source))
            except ImageError as error:
                slots.append(error)
        ready = [slot for slot in slots if isinstance(slot, Prepared)]
        if not ready:
            return [slot for slot in slots if isinstance(slot, ImageError)]
        outputs = self.infer(np.stack([item.pixels for item in ready]))
        answered = iter(self.answers(outputs, [item.frame for item in ready], options))
        return [slot if isinstance(slot, ImageError) else next(answered) for slot in slots]


def _require_known(names: Iterable[str], heads: Iterable[str], what: str) -> None:
    known = list(heads)
    for name in names:
        if name not in known:
            raise ConfigError(f"{what} has no head {name!r}{nearest(name, known)}")
