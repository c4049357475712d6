"""torchvision's models as backbones: the last map at each stride, found by tracing."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from pipeline.backbones.build import Backbone, find_stages, near_backbone, unreachable
from pipeline.backbones.traits import STRIDES
from pipeline.errors import ConfigError


def from_torchvision(name: str, in_channels: int, weights: str | None) -> Backbone:
    """A torchvision model as a backbone; raises ConfigError for an unknown one, or one without a map at every stride, CheckpointError for weights out of reach."""
    from torchvision import models
    from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

    known = models.list_models(module=models)
    if name not in known:
        raise ConfigError(f"unknown torchvision backbone {name!r}{near_backbone(name, known)}")
    try:
        full = models.get_model(name, weights="DEFAULT" if weights == "imagenet" else weights).eval()
    except OSError as error:
        raise unreachable(f"torchvision/{name}", weights, error) from error
    except (KeyError, ValueError) as error:
        raise ConfigError(f"backbone 'torchvision/{name}' has no weights {weights!r}: {error}") from error
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
    return Backbone(body, tuple(last[stride][1] for stride in STRIDES), f"torchvision/{name}", find_stages(body))


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
