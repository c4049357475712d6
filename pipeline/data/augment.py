"""The one albumentations adapter: transforms described in YAML by their own class names, strictly checked."""

from __future__ import annotations

import inspect
import os
import re
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError, nearest
from pipeline.imaging.geometry import FILL
from pipeline.labels import IGNORE_INDEX
from pipeline.records import Boxes, SampleLabel

Labels = dict[str, SampleLabel]


class Albumentations:
    """A list of albumentations' transforms, the same spatial one for image, boxes and masks.

    Args:
        described: one mapping a transform: `{class_name: HorizontalFlip, p: 0.5}`.
        size: (height, width) of the input; where the transforms leave another, the view is letterboxed.
        view: (height, width) of the views; smaller than `size`, they are cut out at random at the input's scale.

    Raises:
        ConfigError: an unknown class or argument, or a value albumentations refuses.
    """

    def __init__(
        self, described: list[dict[str, Any]], size: tuple[int, int], view: tuple[int, int] | None = None
    ) -> None:
        # It would ask the network for a newer release.
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
        import albumentations as A  # its documentation's own short name

        transforms = [build_transform(A, dict(entry)) for entry in described]
        for transform in transforms:
            try_out(A, transform, size)
        fit = [A.LongestMaxSize(max_size_hw=size)]
        height, width = view or size
        pad = [A.PadIfNeeded(min_height=height, min_width=width, fill=FILL, fill_mask=IGNORE_INDEX)]
        if (height, width) == tuple(size):
            steps = [*transforms, *fit, *pad]
        else:
            steps = [*fit, *transforms, *pad, A.RandomCrop(height, width)]
        boxes = A.BboxParams(format="pascal_voc", label_fields=["row"], min_area=4, min_visibility=0.2, clip=True)
        self.compose = A.Compose(steps, bbox_params=boxes, keypoint_params=None)

    def __call__(
        self, image: NDArray[np.uint8], labels: Labels, rng: np.random.Generator
    ) -> tuple[NDArray[np.uint8], Labels]:
        """One random view of the image with its labels."""
        names = [name for name, label in labels.items() if isinstance(label, Boxes)]
        masks = [name for name, label in labels.items() if isinstance(label, np.ndarray) and label.ndim == 2]
        boxes = {name: label for name in names if isinstance(label := labels[name], Boxes)}
        flat = [(name, i) for name in names for i in range(len(boxes[name]))]
        xyxy = np.concatenate([boxes[n].xyxy for n in names]) if flat else np.zeros((0, 4), np.float32)
        self.compose.set_random_seed(int(rng.integers(1 << 31)))
        given: dict[str, Any] = {"image": image, "bboxes": xyxy, "row": np.arange(len(flat))}
        if masks:
            given["masks"] = [np.asarray(labels[name]) for name in masks]
        try:
            out = self.compose(**given)
        except Exception as error:  # a library's transforms fail in any way they like
            raise ConfigError(
                f"data.augment: on a picture of {image.shape[1]} x {image.shape[0]}: {_said(error)}"
            ) from error
        moved = np.asarray(out["bboxes"], np.float32).reshape(-1, 4)
        rows = np.asarray(out["row"], np.int64).reshape(-1)
        result: Labels = dict(labels)
        for name in names:
            mine = np.asarray([flat[row][0] == name for row in rows], bool)
            kept = np.asarray([flat[row][1] for row in rows[mine]], np.int64)
            result[name] = boxes[name].select(kept).moved(moved[mine])
        for name, plane in zip(masks, out.get("masks", []), strict=True):
            result[name] = np.asarray(plane, np.uint8)
        return np.ascontiguousarray(out["image"], np.uint8), result


def build_transform(library: Any, described: dict[str, Any]) -> Any:
    """One transform of the library from `{class_name: ..., argument: value}`; raises ConfigError.

    `OneOf` and its like take others in their turn, as `transforms`.
    """
    name = described.pop("class_name", None)
    bases = (library.BasicTransform, library.BaseCompose)
    known = [n for n, v in vars(library).items() if inspect.isclass(v) and issubclass(v, bases)]
    known = [n for n in known if n not in _NOT_TO_NAME]
    if not isinstance(name, str) or name not in known:
        raise ConfigError(f"data.augment: unknown transform {name!r}{nearest(str(name), known) if name else ''}")
    kind = getattr(library, name)
    arguments = [argument for argument in inspect.signature(kind).parameters if argument != "self"]
    for argument in described:
        if argument not in arguments:
            raise ConfigError(f"data.augment: {name} has no argument {argument!r}{nearest(argument, arguments)}")
    given = {key: tuple(v) if isinstance(v, list) else v for key, v in described.items()}
    if issubclass(kind, library.BaseCompose) and "transforms" in given:
        if not all(isinstance(entry, dict) for entry in given["transforms"]):
            raise ConfigError(f"data.augment: transforms of {name} are mappings with a class_name each")
        given["transforms"] = [build_transform(library, dict(entry)) for entry in given["transforms"]]
    with warnings.catch_warnings():
        # albumentations only warns of values it ignores.
        warnings.simplefilter("error", UserWarning)
        try:
            return kind(**given)
        except (ValueError, TypeError, UserWarning) as error:
            raise ConfigError(f"data.augment: {name}: {_said(error)}") from error


_NOT_TO_NAME = {"BasicTransform", "DualTransform", "ImageOnlyTransform", "Transform3D", "NoOp3D"}
_NOT_TO_NAME |= {"BaseCompose", "Compose", "ReplayCompose"}
"""Bases, and what the adapter itself is."""


def try_out(library: Any, transform: Any, size: tuple[int, int]) -> None:
    """Applies a transform once, as a mistake in it is better told now than by a loader's worker.

    Raises:
        ConfigError: it fails on a picture as large as they come, or leaves something else than RGB pixels.
    """
    name = type(transform).__name__
    if isinstance(transform, library.BaseCompose):
        for inner in transform.transforms:
            try_out(library, inner, size)
        return
    sides = [round(1.5 * max(size))] * 2  # larger ones are shrunk to this when they are read
    image = np.random.default_rng(0).integers(0, 256, (*sides, 3), np.uint8)
    chance, transform.p = transform.p, 1.0
    boxes = library.BboxParams(format="pascal_voc", label_fields=["row"], min_area=4, clip=True)
    given = {"bboxes": np.asarray([[2, 2, 20, 20]], np.float32), "row": np.zeros(1), "masks": [image[..., 0] // 128]}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of boxes that a change of colour does not move
            out = library.Compose([transform], bbox_params=boxes, seed=0)(image=image, **given)["image"]
    except Exception as error:  # a library's transforms fail in any way they like
        raise ConfigError(f"data.augment: {name}: {_said(error)}") from error
    finally:
        transform.p = chance
    if not isinstance(out, np.ndarray) or out.dtype != np.uint8 or out.ndim != 3 or out.shape[2] != 3:
        form = f"{out.dtype} of shape {list(out.shape)}" if hasattr(out, "shape") else type(out).__name__
        raise ConfigError(
            f"data.augment: {name} gives {form}, where uint8 RGB pixels are expected; the network normalises by itself"
        )


def _said(error: BaseException) -> str:
    """An error's message in one line, without what pydantic puts about it."""
    text = " ".join(str(error).split())
    text = re.sub(r"^\d+ validation errors? for \w+ ", "", text)
    text = re.sub(
        r"\[type=\w+, input_value=(.*?), input_type=\w+\] For further information visit \S+", r"(not \1)", text
    )
    return text[:300] or type(error).__name__
