"""The built-in data: textured scenes with partly hidden objects, drawn from a seed, labelled for every kind of head."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.data.formats.base import SourceData
from pipeline.errors import ConfigError
from pipeline.labels import LabelSpace
from pipeline.records import Boxes, FieldLabel, Record

SCENES = ("meadow", "desert", "sea", "town")
DAYTIMES = ("day", "night")
OBJECTS = ("disc", "square", "triangle", "star", "ring")

_GROUND = {"meadow": (70, 140, 60), "desert": (205, 170, 110), "sea": (50, 105, 170), "town": (130, 125, 125)}
_PAINT = {
    "disc": (215, 60, 50),
    "square": (240, 200, 40),
    "triangle": (150, 60, 180),
    "star": (245, 245, 240),
    "ring": (240, 130, 30),
}
_VISIBLE = 0.25
"""Objects of which less than this share can be seen have no box."""

Image = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Scene:
    """One drawn scene: image RGB uint8 (S, S, 3), mask uint8 (S, S), boxes, and its two labels as indices."""

    image: Image
    mask: Image
    boxes: Boxes
    scene: int
    daytime: int


@lru_cache(maxsize=8)
def draw_scene(seed: int, index: int, size: int) -> Scene:
    """Scene `index` of the data set `seed`, `size` pixels square; the same pixels every time."""
    rng = np.random.default_rng((seed, index))
    scene, daytime = int(rng.integers(len(SCENES))), int(rng.integers(len(DAYTIMES)))
    canvas = _ground(SCENES[scene], size, rng)
    owner = np.full((size, size), -1, np.int16)
    kinds: list[int] = []
    whole: list[int] = []
    for _ in range(int(rng.integers(1, 7))):
        kind = int(rng.integers(len(OBJECTS)))
        shape = _silhouette(OBJECTS[kind], size, rng)
        if not shape.any():
            continue
        paint = np.clip(np.asarray(_PAINT[OBJECTS[kind]]) + rng.normal(0, 14, 3), 0, 255)
        light = 1 + 0.12 * np.sin(np.arange(size) / size * rng.uniform(4, 12) + rng.uniform(0, 6))
        canvas[shape] = (paint * light[:, None, None] * np.ones((1, size, 1)))[shape]
        owner[shape] = len(kinds)
        kinds.append(kind)
        whole.append(int(shape.sum()))
    return _finish(canvas, owner, kinds, whole, scene, daytime, rng)


def _finish(
    canvas: NDArray[np.float32],
    owner: NDArray[np.int16],
    kinds: list[int],
    whole: list[int],
    scene: int,
    daytime: int,
    rng: np.random.Generator,
) -> Scene:
    """Light and noise over the canvas; mask and visible boxes from who owns each pixel."""
    if DAYTIMES[daytime] == "night":
        canvas = canvas * np.asarray([0.38, 0.42, 0.62], np.float32)
    image = np.clip(canvas + rng.normal(0, 6, canvas.shape).astype(np.float32), 0, 255).astype(np.uint8)
    mask = np.zeros(owner.shape, np.uint8)
    rows, classes = [], []
    for number, (kind, total) in enumerate(zip(kinds, whole, strict=True)):
        visible = owner == number
        mask[visible] = kind + 1
        if visible.sum() >= max(12, _VISIBLE * total):
            ys, xs = np.nonzero(visible.any(1))[0], np.nonzero(visible.any(0))[0]
            rows.append([float(xs[0]), float(ys[0]), float(xs[-1] + 1), float(ys[-1] + 1)])
            classes.append(kind)
    return Scene(image, mask, Boxes.of(rows, classes), scene, daytime)


def _ground(name: str, size: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """The scene's textured ground, float32 (S, S, 3): blotches, dunes, waves or blocks."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    if name == "meadow":
        coarse = rng.random((size // 4 + 1, size // 4 + 1)).astype(np.float32)
        texture = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_LINEAR)
    elif name == "desert":
        texture = 0.5 + 0.5 * np.sin(14 * y + 3 * np.sin(5 * x + rng.uniform(0, 6)) + rng.uniform(0, 6))
    elif name == "sea":
        texture = 0.5 + 0.5 * np.sin(45 * y + 2 * np.sin(12 * x + rng.uniform(0, 6)))
    else:
        cells = rng.random((7, 7)).astype(np.float32)
        texture = cv2.resize(cells, (size, size), interpolation=cv2.INTER_NEAREST)
    base = np.asarray(_GROUND[name], np.float32) + rng.normal(0, 10, 3).astype(np.float32)
    ground: NDArray[np.float32] = (base * (0.75 + 0.4 * texture[..., None])).astype(np.float32)
    return ground


def _silhouette(name: str, size: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Where one object of a random size, place and turn lies, bool (S, S)."""
    radius = float(rng.uniform(0.07, 0.2) * size)
    centre = rng.uniform(0.08 * size, 0.92 * size, 2)
    turn = rng.uniform(0, 2 * np.pi)
    plane = np.zeros((size, size), np.uint8)
    if name in {"disc", "ring"}:
        middle = (int(centre[0]), int(centre[1]))
        cv2.circle(plane, middle, int(radius), 1, -1)
        if name == "ring":
            cv2.circle(plane, middle, int(radius * 0.55), 0, -1)
        return plane.astype(bool)
    corners = {"square": 4, "triangle": 3, "star": 10}[name]
    angles = turn + np.arange(corners) * 2 * np.pi / corners
    reach = np.where(np.arange(corners) % 2, 0.45, 1.15) * radius if name == "star" else np.full(corners, radius * 1.15)
    points = centre + np.stack([np.cos(angles), np.sin(angles)], 1) * reach[:, None]
    cv2.fillPoly(plane, [points.round().astype(np.int32)], (1,))
    return plane.astype(bool)


@dataclass(frozen=True, slots=True)
class ShapesImage:
    """A scene's pixels, drawn when read."""

    seed: int
    index: int
    side: int

    @property
    def name(self) -> str:
        """`shapes-<seed>-<index>`."""
        return f"shapes-{self.seed}-{self.index:06d}"

    def read(self, at_least: int | None = None) -> tuple[Image, tuple[int, int]]:  # noqa: ARG002  # drawn at its own size
        """RGB uint8 (S, S, 3) and (S, S)."""
        return draw_scene(self.seed, self.index, self.side).image, (self.side, self.side)


@dataclass(frozen=True, slots=True)
class ShapesMask:
    """A scene's semantic mask, drawn when read."""

    seed: int
    index: int
    side: int

    def read(self, size: tuple[int, int]) -> Image:  # noqa: ARG002  # drawn at its own size
        """Class indices uint8 (S, S)."""
        return draw_scene(self.seed, self.index, self.side).mask


def read_shapes(images: int = 1000, size: int = 160, seed: int = 0) -> SourceData:
    """`images` scenes of `size` pixels square with their own split, 80 / 10 / 10.

    Raises:
        ConfigError: fewer than ten images, or a size below 32.
    """
    if images < 10 or size < 32:
        raise ConfigError(f"shapes needs at least 10 images of 32 pixels, not {images} of {size}")
    records = []
    for index in range(images):
        drawn = draw_scene(seed, index, size)
        labels: dict[str, FieldLabel] = {
            "scene": drawn.scene,
            "daytime": drawn.daytime,
            "objects": drawn.boxes,
            "surface": ShapesMask(seed, index, size),
        }
        split = {8: "val", 9: "test"}.get(index % 10, "train")
        records.append(Record(ShapesImage(seed, index, size), labels, split, None, (size, size)))
    spaces = {
        "scene": LabelSpace("classes", SCENES),
        "daytime": LabelSpace("classes", DAYTIMES),
        "objects": LabelSpace("boxes", OBJECTS),
        "surface": LabelSpace("mask", ("background", *OBJECTS)),
    }
    return SourceData(f"shapes ({images} scenes of {size} pixels, seed {seed})", spaces, records)
