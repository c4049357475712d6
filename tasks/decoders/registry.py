"""Decoders by the name the segmentation head's `decoder` gives; each is one file and one registration."""

from __future__ import annotations

import importlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from pipeline.backbones.build import Backbone
from pipeline.backbones.traits import Demand
from pipeline.errors import ConfigError, nearest

DEFAULT = "light-unet"
"""What answers where the config names none."""

SMP = "smp-unet"
"""smp's U-Net decoder, which the head builds itself."""

OWN = tuple(f"tasks.decoders.{module}" for module in ("light_unet", "fcn", "unet", "unpooling", "hourglass"))
"""Modules of decoders; each registers its names."""

_DECODERS: dict[str, type[Decoder]] = {}


class Decoder(nn.Module, ABC):
    """Logits of every pixel from a backbone's maps; built as `Decoder(backbone, classes, size, **options)`.

    Attributes:
        valid: it serves a network of valid convolutions, whose maps do not lie on their stride's grid.
        demand: what it asks of the input's size beside the backbone; None = nothing.
    """

    valid = False
    demand: Demand | None = None

    @abstractmethod
    def forward(self, features: list[Tensor], size: tuple[int, int]) -> list[Tensor]:
        """Logits (B, classes, h, w) of any resolution over the whole input of `size`: the last is the answer, earlier
        ones are trained beside it.
        """


def register_decoder(name: str) -> Callable[[type[Decoder]], type[Decoder]]:
    """Makes a Decoder class known to configs by name."""

    def enter(decoder: type[Decoder]) -> type[Decoder]:
        _DECODERS[name] = decoder
        return decoder

    return enter


def build_decoder(
    name: str, backbone: Backbone | None, classes: int, size: tuple[int, int] | None, options: dict[str, Any]
) -> Decoder:
    """A decoder from the head's config.

    Args:
        name: as registered.
        backbone: whose maps it takes.
        classes: channels of the logits.
        size: (height, width) of the input, where it is known.
        options: its constructor's further arguments.

    Raises:
        ConfigError: an unknown name or option, or a backbone that lacks what the decoder needs.
    """
    for module in OWN:
        importlib.import_module(module)
    if name not in _DECODERS:
        raise ConfigError(f"unknown decoder {name!r}{nearest(name, [SMP, *_DECODERS])}")
    if backbone is None:
        raise ConfigError(f"decoder {name!r} is built for a backbone; none was given")
    kind = _DECODERS[name]
    known = [key for key in inspect.signature(kind).parameters if key not in {"backbone", "classes", "size"}]
    for key in options:
        if key not in known:
            raise ConfigError(
                f"decoder {name!r}: unknown option {key!r}{nearest(key, known) if known else '; it has none'}"
            )
    if not backbone.traits.dense and not kind.valid:
        raise ConfigError(
            f"decoder {name!r} needs maps on the grid of their strides; backbone {backbone.name!r} has valid convolutions:"
            " take decoder: unet where it is U-Net's, or another backbone ('vgg-d', 'resnet18', 'light')"
        )
    try:
        return kind(backbone, classes, size, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"decoder {name!r} cannot be built with {options}: {' '.join(str(error).split())}") from error


def require_pooled(backbone: Backbone, who: str) -> tuple[int, ...]:
    """Channels of the maps before each pooling; raises ConfigError where the network remembers none."""
    if not backbone.traits.pooled:
        raise ConfigError(
            f"{who} needs the maps before each 2x2 pooling; backbone {backbone.name!r} keeps none: take 'vgg-a' to"
            " 'vgg-e', 'convnet' with down: pooled, or 'unet'"
        )
    return backbone.traits.pooled


def pooled_maps(features: list[Tensor]) -> list[Tensor]:
    """The maps before each pooling, fine to coarse."""
    return list(getattr(features, "pooled", ()))
