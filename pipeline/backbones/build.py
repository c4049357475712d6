"""Backbones by name: our own, any segmentation-models-pytorch encoder (so any timm model) and torchvision's, as maps."""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pipeline.backbones.traits import STRIDES, Features, Natural, Traits, require_output_stride, require_size
from pipeline.backbones.weights import is_local, load_weights
from pipeline.errors import CheckpointError, ConfigError, nearest

__all__ = [
    "STRIDES",
    "Backbone",
    "Features",
    "Traits",
    "build_backbone",
    "load_weights",
    "natural_input",
    "register_backbone",
    "require_strides",
]

OWN = tuple(
    f"pipeline.backbones.{module}"
    for module in (
        "light",
        "classic",
        "vgg",
        "signals",
        "convnet",
        "residual",
        "inception",
        "hourglass",
        "unet",
        "yolo",
    )
)
"""Modules of our own backbones; each registers its names."""

_BUILDERS: dict[str, Callable[..., Backbone]] = {}
_NATURAL: dict[str, Natural] = {}


class Backbone(nn.Module):
    """Feature maps at strides 2, 4, 8, 16 and 32 of an image float (B, C, H, W), H and W divisible by 32.

    Attributes:
        channels: channels per stride of `STRIDES`; 0 where the network has no map at that stride.
        name: the name it was built from.
        traits: what else heads and configs must know of it.
    """

    def __init__(
        self,
        body: nn.Module,
        channels: tuple[int, ...],
        name: str,
        stage_names: tuple[str, ...],
        traits: Traits | None = None,
    ) -> None:
        super().__init__()
        self.body = body
        self.channels = channels
        self.name = name
        self.stage_names = stage_names
        self.traits = traits or Traits()

    def forward(self, images: Tensor) -> Features:
        """Float (B, C, H, W) to five maps (B, channels[i], H / strides[i], W / strides[i]); empty where channels are 0."""
        maps = self.body(images)
        if isinstance(maps, Features):
            left = iter(maps)
            empty = images.new_zeros(images.shape[0], 0, 1, 1) if 0 in self.channels else images
            return Features([next(left) if channels else empty for channels in self.channels], maps.pooled, maps.along)
        if isinstance(maps, dict):
            maps = list(maps.values())
        # smp's encoders give the image itself first.
        return Features(list(maps)[-len(STRIDES) :])

    @property
    def coarsest(self) -> int:
        """Which of the five maps is the last one there is."""
        return max(i for i, channels in enumerate(self.channels) if channels)

    @property
    def present(self) -> list[int]:
        """The strides at which there is a map."""
        return [stride for stride, channels in zip(self.traits.strides, self.channels, strict=True) if channels]

    def require_size(self, size: tuple[int, int], setting: str = "data.size") -> None:
        """Refuses an input (height, width), given as `setting`, that the network leaves nothing of; raises ConfigError."""
        require_size(f"backbone {self.name!r}", size, self.traits.smallest, self.traits.multiple, setting)

    def stages(self) -> list[nn.Module]:
        """The network's children with parameters in the order the image passes them: what `freeze_stages` counts."""
        return [self.body.get_submodule(name) for name in self.stage_names]


def register_backbone(
    name: str, natural: Natural | None = None
) -> Callable[[Callable[..., Backbone]], Callable[..., Backbone]]:
    """Makes a function of the image's channels, and of its own options, reachable as backbone `name`.

    A function with an argument `size` is given the input's (height, width). `natural` is what it was published for;
    None = 224 pixels, three channels.
    """

    def enter(build: Callable[..., Backbone]) -> Callable[..., Backbone]:
        _BUILDERS[name], _NATURAL[name] = build, natural or Natural()
        return build

    return enter


def build_backbone(
    name: str,
    in_channels: int = 3,
    weights: str | None = None,
    stages: int | None = None,
    options: dict[str, Any] | None = None,
    size: tuple[int, int] | None = None,
) -> Backbone:
    """A backbone from its name.

    Args:
        name: one of ours (`light`, `vgg-d`), an smp encoder (`resnet18`, `mobilenet_v2`, `tu-<any timm model>`), or `torchvision/<model>`.
        in_channels: channels of the image, 1 or more.
        weights: None for random, a local file (`.safetensors`, or a state dict read without unpickling code), or
            the hub's name of a weight set (`imagenet`), which downloads.
        stages: of a local file, take only this many stages from the input on; None = all that fits.
        options: of our own networks, the arguments of the function that builds them; of smp's and timm's,
            `output_stride` 8 or 16: dilation instead of the last strides.
        size: (height, width) of the input, checked where it is known.

    Raises:
        ConfigError: an unknown name or option, a value that is refused, a network that has no maps at strides 8, 16
            and 32, or an input that does not fit.
        CheckpointError: weights that are not there, cannot be read or fit another network.
    """
    hub = None if weights is None or is_local(weights) else weights
    if in_channels < 1:
        raise ConfigError(f"in_channels is {in_channels}; an image has 3 channels, or 1 where it is grey")
    if name in registered():
        if hub is not None:
            raise ConfigError(f"backbone {name!r} has no weights {hub!r} on the hub; give a local file, or none")
        backbone = _build_own(name, in_channels, dict(options or {}), size)
    elif name.startswith("torchvision/"):
        _check_options(name, options or {}, [])
        from pipeline.backbones.from_torchvision import from_torchvision

        backbone = from_torchvision(name.removeprefix("torchvision/"), in_channels, hub)
    else:
        backbone = _from_smp(name, in_channels, hub, dict(options or {}))
    if size is not None:
        backbone.require_size(size)
    if weights is not None and hub is None:
        load_weights(backbone.body, backbone.name, backbone.stage_names, Path(weights), stages)
    elif stages is not None:
        raise ConfigError(
            "weights_stages takes part of a file or run: give it as weights, e.g. outputs/runs/RUN/best.ckpt or runs:/ID"
        )
    return backbone


def _build_own(name: str, in_channels: int, options: dict[str, Any], size: tuple[int, int] | None) -> Backbone:
    build = _BUILDERS[name]
    arguments = inspect.signature(build).parameters
    # What a name stands for (`vgg-d`: the configuration) is no option of it.
    fixed = {"size", *getattr(build, "keywords", {})}
    _check_options(name, options, [argument for argument in list(arguments)[1:] if argument not in fixed])
    if "size" in arguments:
        if size is None:
            raise ConfigError(f"backbone {name!r} is built for one input size; give model.size (data.size does)")
        options["size"] = size
    try:
        return build(in_channels, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"backbone {name!r} cannot be built with {options}: {' '.join(str(error).split())}"
        ) from error


def registered() -> list[str]:
    """Names of our own backbones."""
    for module in OWN:
        importlib.import_module(module)
    return sorted(_BUILDERS)


def needs_size(name: str) -> bool:
    """Whether a backbone is built for one input size."""
    return name in registered() and "size" in inspect.signature(_BUILDERS[name]).parameters


def natural_input(name: str) -> Natural:
    """What a backbone was published for, as far as it is known: our own, timm's by their configuration, else 224 pixels."""
    if name in registered():
        return _NATURAL[name]
    if name.startswith("tu-"):
        from timm import get_pretrained_cfg

        found = get_pretrained_cfg(name.removeprefix("tu-"), allow_unregistered=True)
        if found is not None:
            _, height, width = found.input_size
            return Natural(size=(height, width))
    return Natural()


def _check_options(name: str, options: dict[str, Any], known: list[str]) -> None:
    for key in options:
        if key not in known:
            hint = nearest(key, known) if known else "; it has none"
            if key == "output_stride":
                hint = "; smp's and timm's residual networks ('resnet50', 'tu-resnet50') and 'light' have it"
            raise ConfigError(f"backbone {name!r}: unknown option {key!r}{hint}")


def require_strides(backbone: Backbone, wanted: tuple[int, ...], who: str, instead: str) -> None:
    """Refuses a backbone that has not a map, on the grid, at each stride wanted; raises ConfigError."""
    found = set(backbone.present) if backbone.traits.dense else set()
    lacking = [stride for stride in wanted if stride not in found]
    if lacking:
        has = f"maps at strides {backbone.present}" if found else "maps for image labels only"
        told = f"{who} needs maps at strides {list(wanted)}; backbone {backbone.name!r} has {has}"
        choices = f"{instead}, or another backbone" if found else "another backbone"
        raise ConfigError(f"{told}: take {choices} ('vgg-d', 'resnet18', 'light')")


def _from_smp(name: str, in_channels: int, weights: str | None, options: dict[str, Any]) -> Backbone:
    from segmentation_models_pytorch.encoders import encoders, get_encoder

    if not name.startswith("tu-") and name not in encoders:
        raise ConfigError(f"unknown backbone {name!r}{near_backbone(name, [*encoders, *_BUILDERS])}")
    _check_options(name, options, ["output_stride"])
    stride = options.get("output_stride", 32)
    require_output_stride(name, stride)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            encoder = get_encoder(name, in_channels=in_channels, depth=5, weights=weights, output_stride=stride)
    except OSError as error:
        raise unreachable(name, weights, error) from error
    except (KeyError, RuntimeError, ValueError, NotImplementedError) as error:
        if "Unknown model" in str(error):
            from timm import list_models

            hint = nearest(name, [f"tu-{known}" for known in list_models()])
            raise ConfigError(f"unknown backbone {name!r}{hint if 'mean' in hint else ''}") from error
        asked = f"weights {weights!r}" + (f" and output_stride {stride}" if stride != 32 else "")
        raise ConfigError(f"backbone {name!r} with {asked} cannot be built: {error}") from error
    channels = tuple(encoder.out_channels)[-len(STRIDES) :]
    traits = Traits(strides=tuple(min(s, stride) for s in STRIDES))
    return Backbone(encoder, channels, name, find_stages(encoder), traits)


def unreachable(name: str, weights: str | None, error: OSError) -> CheckpointError:
    """The error for a hub's weights that cannot be fetched."""
    reason = " ".join(str(error).split())[:200]
    return CheckpointError(
        f"weights {weights!r} of backbone {name!r} cannot be fetched ({reason}); give a local file as weights, or none"
    )


def near_backbone(name: str, known: list[str]) -> str:
    """A hint for an unknown name: the nearest, or where names come from."""
    hint = nearest(name, known)
    if "did you mean" in hint:
        return hint
    return "; known: 'light' and the others of docs/networks.md, segmentation-models-pytorch's encoders, 'tu-<timm model>' and 'torchvision/<model>'"


def find_stages(body: nn.Module) -> tuple[str, ...]:
    """Names of the direct children that have parameters; a container of one child is opened (timm's wrappers)."""
    children = [(name, child) for name, child in body.named_children() if any(True for _ in child.parameters())]
    if len(children) == 1:
        prefix, only = children[0]
        return tuple(f"{prefix}.{name}" for name in find_stages(only)) or (prefix,)
    return tuple(name for name, _ in children)
