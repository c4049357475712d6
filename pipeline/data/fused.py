"""The presets' augmentation: one affine warp and one lookup table per image, applied alike to boxes and masks."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.data.presets import Preset
from pipeline.imaging.geometry import FILL
from pipeline.labels import IGNORE_INDEX
from pipeline.records import Boxes, SampleLabel

Image = NDArray[np.uint8]


Labels = dict[str, SampleLabel]


def augment(
    image: Image,
    labels: Labels,
    size: tuple[int, int],
    preset: Preset,
    rng: np.random.Generator,
    fit: tuple[int, int] | None = None,
) -> tuple[Image, Labels]:
    """One random view.

    Args:
        image: RGB uint8 (h, w, 3) of any size.
        labels: boxes in its pixels; masks of its size.
        size: (height, width) of the answer.
        preset: how far to go.
        rng: decides.
        fit: (height, width) of the input; a smaller `size` is cut out of a view of that scale. None is `size`.
    """
    matrix = draw_matrix(image.shape[:2], size, preset, rng, fit)
    lens = float(rng.uniform(-0.25, 0.25)) if rng.random() < preset.lens else 0.0
    view = _warp(image, matrix, size, cv2.INTER_LINEAR, (FILL, FILL, FILL), lens)
    moved: Labels = {}
    for name, label in labels.items():
        if isinstance(label, Boxes):
            moved[name] = move_boxes(label, matrix, size, lens)
        elif label.ndim == 2:
            moved[name] = _warp(label.astype(np.uint8, copy=False), matrix, size, cv2.INTER_NEAREST, IGNORE_INDEX, lens)
        else:
            moved[name] = label
    view = cv2.LUT(view, draw_table(preset, rng))
    if rng.random() < preset.blur:
        view = cv2.GaussianBlur(view, (0, 0), float(rng.uniform(0.4, 1.2)))
    if rng.random() < preset.vignette:
        view = (view * _vignette(size, float(rng.uniform(0.3, 0.7)))).astype(np.uint8)
    if rng.random() < preset.erase:
        _erase(view, rng)
    return view, moved


def draw_matrix(
    source: tuple[int, int],
    size: tuple[int, int],
    preset: Preset,
    rng: np.random.Generator,
    fit: tuple[int, int] | None = None,
) -> NDArray[np.float64]:
    """A random affine matrix (2, 3) from source pixels to the view's, about the scale at which letterbox fits `fit`."""
    height, width = fit or size
    zoom = min(height / source[0], width / source[1]) * np.exp(rng.uniform(*np.log(preset.scale)))
    stretch = np.exp(rng.uniform(-1, 1) * np.log(preset.stretch) / 2)
    angle = np.deg2rad(rng.uniform(-preset.degrees, preset.degrees))
    flip_x = -1.0 if rng.random() < preset.flip else 1.0
    flip_y = -1.0 if rng.random() < preset.flip_vertical else 1.0
    turn = np.asarray([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = turn @ np.diag([zoom * stretch * flip_x, zoom / stretch * flip_y])
    # A zoomed-in view may look anywhere in the picture, a zoomed-out one may lie anywhere in the view.
    free = np.abs(np.asarray([source[1] * zoom - size[1], source[0] * zoom - size[0]])) / 2
    slack = free + preset.shift * np.asarray([size[1], size[0]])
    moves = preset.shift > 0 or (height, width) != size
    offset = np.asarray([size[1], size[0]]) / 2 + rng.uniform(-1, 1, 2) * slack * moves
    centre = np.asarray([source[1], source[0]]) / 2
    return np.concatenate([linear, (offset - linear @ centre)[:, None]], 1)


def _warp(
    plane: Image,
    matrix: NDArray[np.float64],
    size: tuple[int, int],
    how: int,
    fill: int | tuple[int, int, int],
    lens: float,
) -> Image:
    """The plane seen through the matrix; pixel centres lie at half coordinates, so both sides are shifted by 0.5."""
    linear, shift = matrix[:, :2], matrix[:, 2]
    centred = np.concatenate([linear, (shift + linear @ [0.5, 0.5] - 0.5)[:, None]], 1)
    if lens == 0:
        view: Image = cv2.warpAffine(plane, centred, size[::-1], flags=how, borderValue=fill)
        return view
    inverse = cv2.invertAffineTransform(centred)
    rows, columns = np.mgrid[0 : size[0], 0 : size[1]].astype(np.float32)
    x, y = _bend(columns, rows, size, lens)
    map_x = (inverse[0, 0] * x + inverse[0, 1] * y + inverse[0, 2]).astype(np.float32)
    map_y = (inverse[1, 0] * x + inverse[1, 1] * y + inverse[1, 2]).astype(np.float32)
    bent: Image = cv2.remap(plane, map_x, map_y, how, borderMode=cv2.BORDER_CONSTANT, borderValue=fill)
    return bent


def _bend(
    x: NDArray[np.float32], y: NDArray[np.float32], size: tuple[int, int], lens: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Radial distortion of the first order: where each view pixel looks in the undistorted view."""
    cx, cy = (size[1] - 1) / 2, (size[0] - 1) / 2
    dx, dy = (x - cx) / max(size), (y - cy) / max(size)
    factor = 1 + lens * (dx * dx + dy * dy) * 2
    return (cx + dx * factor * max(size)).astype(np.float32), (cy + dy * factor * max(size)).astype(np.float32)


def move_boxes(boxes: Boxes, matrix: NDArray[np.float64], size: tuple[int, int], lens: float = 0.0) -> Boxes:
    """Boxes through the matrix, as the upright hull of their corners, clipped; those mostly out of view are left out."""
    if len(boxes) == 0:
        return boxes
    xyxy = boxes.xyxy.astype(np.float64)
    x, y = xyxy[:, [0, 2, 2, 0]], xyxy[:, [1, 1, 3, 3]]
    if abs(matrix[0, 1]) > 1e-6:
        # Under rotation the hull of an ellipse in the box is nearer to most objects than that of its corners.
        angle = np.arange(16) / 16 * 2 * np.pi
        middle, half = (xyxy[:, :2] + xyxy[:, 2:]) / 2, (xyxy[:, 2:] - xyxy[:, :2]) / 2
        x = middle[:, :1] + half[:, :1] * np.cos(angle) * 1.06
        y = middle[:, 1:] + half[:, 1:] * np.sin(angle) * 1.06
    new_x = matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2]
    new_y = matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2]
    if lens:
        new_x, new_y = _unbend(new_x, new_y, size, lens)
    hull = np.stack([new_x.min(1), new_y.min(1), new_x.max(1), new_y.max(1)], 1)
    cut = np.clip(hull, 0, np.asarray([size[1], size[0], size[1], size[0]]))
    area = (hull[:, 2:] - hull[:, :2]).prod(1)
    sides = cut[:, 2:] - cut[:, :2]
    keep = (sides.min(1) > 2) & (sides.prod(1) > 0.2 * area)
    return boxes.select(keep).moved(cut[keep].astype(np.float32))


def _unbend(
    x: NDArray[np.float64], y: NDArray[np.float64], size: tuple[int, int], lens: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Inverse of `_bend` by fixed-point steps."""
    cx, cy, side = (size[1] - 1) / 2, (size[0] - 1) / 2, max(size)
    dx, dy = (x - cx) / side, (y - cy) / side
    ux, uy = dx, dy
    for _ in range(6):
        factor = 1 + lens * (ux * ux + uy * uy) * 2
        ux, uy = dx / factor, dy / factor
    return cx + ux * side, cy + uy * side


def draw_table(preset: Preset, rng: np.random.Generator) -> Image:
    """A random lookup table uint8 (1, 256, 3): brightness, contrast about the middle, and colour balance."""
    gain = (1 + preset.contrast * rng.uniform(-1, 1)) * (1 + preset.colour * rng.uniform(-1, 1, 3))
    lift = 255 * preset.brightness * rng.uniform(-0.5, 0.5)
    values = (np.arange(256)[:, None] - 128) * gain + 128 + lift
    return np.clip(values, 0, 255).astype(np.uint8)[None]


def _vignette(size: tuple[int, int], depth: float) -> NDArray[np.float32]:
    """Factors float32 (H, W, 1): 1 in the middle, 1 - depth in the corners."""
    y, x = np.linspace(-1, 1, size[0], dtype=np.float32), np.linspace(-1, 1, size[1], dtype=np.float32)
    return (1 - depth * (y[:, None, None] ** 2 + x[None, :, None] ** 2) / 2).astype(np.float32)


def _erase(view: Image, rng: np.random.Generator) -> None:
    """Hides 2 to 20 % of the view, in place, under a grey rectangle."""
    height, width = view.shape[:2]
    area, aspect = rng.uniform(0.02, 0.2) * height * width, np.exp(rng.uniform(-1, 1))
    h, w = min(round((area * aspect) ** 0.5), height), min(round((area / aspect) ** 0.5), width)
    top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
    view[top : top + h, left : left + w] = FILL
