"""Backbones by name: our own, any segmentation-models-pytorch encoder (so any timm model) and torchvision's, as maps."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from pipeline.errors import CheckpointError, ConfigError, nearest

STRIDES = (2, 4, 8, 16, 32)

OWN = ("pipeline.backbones.light",)
"""Modules of our own backbones; each registers its names."""

_BUILDERS: dict[str, Callable[[int], Backbone]] = {}


class Backbone(nn.Module):
    """Feature maps at strides 2, 4, 8, 16 and 32 of an image float (B, C, H, W), H and W divisible by 32.

    Attributes:
        channels: channels per stride of `STRIDES`; 0 where the network has no map at that stride.
        name: the name it was built from.
    """

    def __init__(self, body: nn.Module, channels: tuple[int, ...], name: str, stage_names: tuple[str, ...]) -> None:
        super().__init__()
        self.body = body
        self.channels = channels
        self.name = name
        self.stage_names = stage_names

    def forward(self, images: Tensor) -> list[Tensor]:
        """Float (B, C, H, W) to five maps (B, channels[i], H / STRIDES[i], W / STRIDES[i])."""
        maps = self.body(images)
        if isinstance(maps, dict):
            maps = list(maps.values())
        # smp's encoders give the image itself first.
        return list(maps)[-len(STRIDES) :]

    def stages(self) -> list[nn.Module]:
        """The network's children with parameters in the order the image passes them: what `freeze_stages` counts."""
        return [self.body.get_submodule(name) for name in self.stage_names]


def register_backbone(name: str) -> Callable[[Callable[[int], Backbone]], Callable[[int], Backbone]]:
    """Makes a function of the image's channels reachable as backbone `name`."""

    def enter(build: Callable[[int], Backbone]) -> Callable[[int], Backbone]:
        _BUILDERS[name] = build
        return build

    return enter


def build_backbone(name: str, in_channels: int = 3, weights: str | None = None, stages: int | None = None) -> Backbone:
    """A backbone from its name.

    Args:
        name: one of ours (`light`), an smp encoder (`resnet18`, `mobilenet_v2`, `tu-<any timm model>`), or `torchvision/<model>`.
        in_channels: channels of the image, 1 or more.
        weights: None for random, a local file (`.safetensors`, or a state dict read without unpickling code), or
            the hub's name of a weight set (`imagenet`), which downloads.
        stages: of a local file, take only this many stages from the input on; None = all that fits.

    Raises:
        ConfigError: an unknown name, or a network that has no maps at strides 8, 16 and 32.
        CheckpointError: a weights file that is missing or fits another network.
    """
    local = weights is not None and (Path(weights).suffix in {".safetensors", ".pt", ".pth", ".ckpt"})
    hub = None if local else weights
    for module in OWN:
        importlib.import_module(module)
    if name in _BUILDERS:
        if hub is not None:
            raise ConfigError(f"backbone {name!r} has no weights {hub!r} on the hub; give a local file, or none")
        backbone = _BUILDERS[name](in_channels)
    elif name.startswith("torchvision/"):
        backbone = _from_torchvision(name.removeprefix("torchvision/"), in_channels, hub)
    else:
        backbone = _from_smp(name, in_channels, hub)
    if weights is not None and local:
        load_weights(backbone, Path(weights), stages)
    elif stages is not None:
        raise ConfigError(
            "weights_stages takes part of a local file: give it as weights, e.g. outputs/runs/RUN/best.ckpt"
        )
    return backbone


def _from_smp(name: str, in_channels: int, weights: str | None) -> Backbone:
    from segmentation_models_pytorch.encoders import encoders, get_encoder

    if not name.startswith("tu-") and name not in encoders:
        raise ConfigError(f"unknown backbone {name!r}{_near_backbone(name, [*encoders, *_BUILDERS])}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            encoder = get_encoder(name, in_channels=in_channels, depth=5, weights=weights)
    except (KeyError, RuntimeError, ValueError) as error:
        raise ConfigError(f"backbone {name!r} with weights {weights!r} cannot be built: {error}") from error
    channels = tuple(encoder.out_channels)[-len(STRIDES) :]
    return Backbone(encoder, channels, name, _stage_names(encoder))


def _near_backbone(name: str, known: list[str]) -> str:
    hint = nearest(name, known)
    if "did you mean" in hint:
        return hint
    return "; known: 'light', segmentation-models-pytorch's encoders, 'tu-<timm model>' and 'torchvision/<model>'"


def _from_torchvision(name: str, in_channels: int, weights: str | None) -> Backbone:
    from torchvision import models
    from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

    known = models.list_models(module=models)
    if name not in known:
        raise ConfigError(f"unknown torchvision backbone {name!r}{_near_backbone(name, known)}")
    full = models.get_model(name, weights="DEFAULT" if weights == "imagenet" else weights).eval()
    _widen_input(full, in_channels)
    # The last map at each stride is that stage's output.
    nodes = get_graph_node_names(full)[1][1:]
    probe = create_feature_extractor(full, nodes)
    with torch.no_grad():
        maps = probe(torch.zeros(1, in_channels, 224, 224))
    last: dict[int, tuple[str, int]] = {}
    for node, value in maps.items():
        is_map = isinstance(value, Tensor) and value.ndim == 4 and value.shape[-1] > 1
        if is_map and value.shape[-1] == value.shape[-2] and 224 // value.shape[-1] in STRIDES:
            last[224 // value.shape[-1]] = (node, value.shape[1])
    missing = [stride for stride in STRIDES if stride not in last]
    if missing:
        raise ConfigError(
            f"torchvision backbone {name!r} has no feature map at stride {', '.join(map(str, missing))};"
            f" take the same network through timm: 'tu-<model>'"
        )
    body = create_feature_extractor(full, {last[stride][0]: str(stride) for stride in STRIDES}).train()
    return Backbone(body, tuple(last[stride][1] for stride in STRIDES), f"torchvision/{name}", _stage_names(body))


def _widen_input(network: nn.Module, in_channels: int) -> None:
    """Gives the first convolution another number of input channels; its weights are averaged over the old ones."""
    if in_channels == 3:
        return
    for path, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            fresh = nn.Conv2d(
                in_channels,
                module.out_channels,
                cast("tuple[int, int]", module.kernel_size),
                cast("tuple[int, int]", module.stride),
                cast("tuple[int, int]", module.padding),
                bias=module.bias is not None,
            )
            with torch.no_grad():
                fresh.weight.copy_(module.weight.mean(1, keepdim=True).expand_as(fresh.weight) * (3 / in_channels))
            parent, _, leaf = path.rpartition(".")
            setattr(network.get_submodule(parent), leaf, fresh)
            return


def _stage_names(body: nn.Module) -> tuple[str, ...]:
    """Names of the direct children that have parameters; a container of one child is opened (timm's wrappers)."""
    children = [(name, child) for name, child in body.named_children() if any(True for _ in child.parameters())]
    if len(children) == 1:
        prefix, only = children[0]
        return tuple(f"{prefix}.{name}" for name in _stage_names(only)) or (prefix,)
    return tuple(name for name, _ in children)


def load_weights(backbone: Backbone, path: Path, stages: int | None = None) -> None:
    """Fills a backbone from a local file: safetensors, a state dict, or a checkpoint of this project.

    Args:
        backbone: is changed.
        path: the file; its heads and what does not fit are left out.
        stages: take only this many of `backbone.stage_names`, all of whose weights must be there.

    Raises:
        ConfigError: the backbone has fewer stages.
        CheckpointError: the file is missing, or fewer than half of the backbone's weights are in it.
    """
    if not path.is_file():
        raise CheckpointError(f"weights file {path} does not exist")
    state: dict[str, Any]
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        state = load_file(path)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("state_dict", state)
    state = {key.removeprefix("network.backbone.").removeprefix("body."): value for key, value in state.items()}
    own = backbone.body.state_dict()
    fitting = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    if stages is not None:
        if not 0 < stages <= len(backbone.stage_names):
            raise ConfigError(
                f"weights_stages is {stages}; backbone {backbone.name!r} has 1 to {len(backbone.stage_names)}"
            )
        own = {
            k: v for k, v in own.items() if k.startswith(tuple(f"{name}." for name in backbone.stage_names[:stages]))
        }
        fitting = {key: value for key, value in fitting.items() if key in own}
    if len(fitting) < (len(own) if stages is not None else len(own) / 2):
        raise CheckpointError(
            f"{path} does not fit backbone {backbone.name!r}: {len(fitting)} of {len(own)} tensors fit"
        )
    backbone.body.load_state_dict(fitting, strict=False)
