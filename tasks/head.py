"""What every head offers: raw outputs, loss, final predictions, metrics; and the registry of head kinds."""

from __future__ import annotations

import inspect
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from pipeline.backbones.build import Backbone
from pipeline.backbones.traits import Demand, SizeError
from pipeline.errors import ConfigError, NonFiniteLossError, nearest
from pipeline.imaging.geometry import Letterbox
from pipeline.labels import LabelSpace
from pipeline.ranges import require_between
from pipeline.records import ImageTarget, Target

Losses = dict[str, Tensor]


class HeadMetrics(Protocol):
    """What a head measures over a whole split."""

    def update(self, prediction: Any, target: Any, frames: list[Letterbox | None]) -> None:
        """Adds a batch; images without a label for the head do not count."""

    def compute(self) -> dict[str, float]:
        """Named figures, stable over versions; NaN where nothing was labelled."""

    def curves(self) -> dict[str, Any]:
        """Tables and curves as plain values (confusion matrix, precision over recall, reliability)."""

    def reset(self) -> None:
        """Forgets everything."""


class Head(nn.Module, ABC):
    """One task on the shared feature maps.

    Attributes:
        kind: the LabelSpace kind it answers.
        main_metric: the figure that stands for the head in `val/score`; larger is better.
        space: what its classes mean.
        demand: what it asks of the input's size beside the backbone; None = nothing.
    """

    demand: Demand | None = None
    kind: ClassVar[str]
    main_metric: ClassVar[str]

    def __init__(self, space: LabelSpace) -> None:
        super().__init__()
        self.space = space

    @abstractmethod
    def forward(self, features: list[Tensor], size: tuple[int, int]) -> Any:
        """Five maps at strides 2 to 32 of an input of `size` (height, width) to raw outputs."""

    @abstractmethod
    def loss(self, raw: Any, target: Any) -> Losses:
        """Named scalar losses, float32, averaged over the labelled images of the batch (at least one is)."""

    @abstractmethod
    def decode(self, raw: Any) -> Any:
        """Final predictions as a NamedTuple of fixed-shape tensors, for metrics and the exported graph alike."""

    @abstractmethod
    def metrics(self) -> HeadMetrics:
        """A fresh set of metrics."""

    def spoil(self, images: Tensor, names: list[str], training: bool) -> tuple[Tensor, ImageTarget] | None:  # noqa: ARG002  # for those that override it
        """Of a head that learns from the images themselves: a changed copy of them and the target; else None."""
        return None


HeadFactory = Callable[..., Head]
HEADS: dict[str, HeadFactory] = {}
"""Head kinds by the name a config gives: one entry for each file that offers a head."""

DEFAULT_KIND = {
    "classes": "classification",
    "multilabel": "classification",
    "boxes": "detection",
    "mask": "segmentation",
    "image": "denoising",
}


def register(name: str) -> Callable[[type[Head]], type[Head]]:
    """Makes a Head class known to configs by name."""

    def add(head: type[Head]) -> type[Head]:
        HEADS[name] = head
        return head

    return add


FROM_THE_NETWORK = {"space", "channels", "backbone", "size"}
"""Constructor arguments of heads that no config gives."""


def build_head(
    name: str, options: dict[str, Any], space: LabelSpace, backbone: Backbone, size: tuple[int, int] | None = None
) -> Head:
    """A head from its config entry; `options` are its kind's constructor arguments, and `kind` itself.

    A head whose constructor has an argument `backbone` or `size` is given the backbone, or the input's (height, width).

    Raises:
        ConfigError: an unknown kind or option, a kind that does not fit the labels or the backbone, or a value of the
            wrong type.
    """
    options = dict(options)
    kind = str(options.pop("kind", DEFAULT_KIND[space.kind]))
    if kind not in HEADS:
        raise ConfigError(f"head {name!r}: unknown kind {kind!r}{nearest(kind, HEADS)}")
    factory = HEADS[kind]
    if DEFAULT_KIND[space.kind] != kind and DEFAULT_KIND.get(getattr(factory, "kind", "")) != DEFAULT_KIND[space.kind]:
        raise ConfigError(f"head {name!r} is of kind {kind!r}, but the data's field {name!r} holds {space.kind}")
    arguments = inspect.signature(factory).parameters
    known = [key for key in arguments if key not in FROM_THE_NETWORK]
    for key in options:
        if key not in known:
            raise ConfigError(f"head {name!r} ({kind}): unknown option {key!r}{nearest(key, known)}")
    extra = {key: value for key, value in (("backbone", backbone), ("size", size)) if key in arguments}
    try:
        checked = _typed(factory, options)
        for key, value in checked.items():
            _require_in_range(key, value)
        return factory(space=space, channels=backbone.channels, **extra, **checked)
    except SizeError as error:
        raise SizeError(f"head {name!r} ({kind}): {error.told}", error.nearest) from error
    except ConfigError as error:
        raise ConfigError(f"head {name!r} ({kind}): {error}") from error


RANGES = {
    "dropout": (0.0, 1.0),
    "label_smoothing": (0.0, 1.0),
    "threshold": (0.0, 1.0),
    "nms_iou": (0.0, 1.0),
    "one_gradient": (0.0, 1.0),
    "share": (0.0, 1.0),
    "bins": (2, math.inf),
}
RANGES |= dict.fromkeys(
    ("width", "hidden", "max_boxes", "topk", "boxes", "proposals", "decoder_channels"), (1, math.inf)
)
RANGES |= dict.fromkeys(("focal_gamma", "dice", "lovasz", "auxiliary", "weight", "class_weights"), (0.0, math.inf))
"""Smallest and largest value of heads' options; those whose names end in `_weight` are 0 or more too."""


def _require_in_range(key: str, value: Any) -> None:
    """Raises ConfigError for an option, or an entry of one, outside its range."""
    low, high = RANGES.get(key, (0.0 if key.endswith("_weight") else -math.inf, math.inf))
    for entry in value if isinstance(value, list) else [value]:
        if isinstance(entry, (int, float)) and not isinstance(entry, bool):
            require_between(key, entry, low, high)


def _typed(factory: HeadFactory, options: dict[str, Any]) -> dict[str, Any]:
    """The options checked against, and turned into, the types of the head's constructor."""
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(factory, skip=FROM_THE_NETWORK, fail_untyped=False)
    try:
        checked = parser.parse_object(options)
    except ArgumentError as error:
        key = next((key for key in options if f'Parser key "{key}' in str(error)), None)
        if key is None:
            raise ConfigError(" ".join(str(error).split())) from error
        wanted, value = str(inspect.signature(factory).parameters[key].annotation), options[key]
        literals = re.findall(r"'([^']+)'", wanted)
        hint = nearest(value, literals) if literals and isinstance(value, str) else f"; it takes {wanted}"
        raise ConfigError(f"{key} cannot be {value!r}{hint}") from error
    return dict(checked.as_dict())


def labelled(target: Target | ImageTarget) -> bool:
    """Whether any image of the batch is labelled for the head."""
    return bool(target.present.any())


def require_finite(losses: Losses, step: int, files: list[str]) -> None:
    """Raises NonFiniteLossError naming the heads, the step and the batch's files when a head's loss is NaN or infinite."""
    if not losses or torch.isfinite(torch.stack(list(losses.values())).detach()).all():
        return
    broken = [name for name, loss in losses.items() if not math.isfinite(float(loss.detach()))]
    raise NonFiniteLossError(
        f"the loss of head {', '.join(map(repr, broken))} became NaN or infinite at step {step};"
        f" batch files: {', '.join(files)}. Lower model.lr, or set trainer.gradient_clip_val"
    )
