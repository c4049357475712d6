"""The network alone: uint8 pixels in, each head's raw outputs out; knows nothing of Lightning."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.backbones.build import Backbone, build_backbone
from pipeline.backbones.traits import SizeError, follow_sizes
from pipeline.errors import CheckpointError, ConfigError, nearest
from pipeline.labels import LabelSpace
from pipeline.records import ImageTarget
from pipeline.registered import weights_at_hand
from tasks.head import DEFAULT_KIND, HEADS, Head, build_head
from tasks.init import Init, initialise

IMAGE_SPACE = LabelSpace("image", ("red", "green", "blue"))
"""Of heads that learn from the images themselves."""

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""ImageNet's statistics of RGB in 0 to 1, as the hub's weights expect; other channel counts take their average."""


class VisionNetwork(nn.Module):
    """One backbone and named heads on its features.

    Args:
        backbone: the shared feature maps.
        heads: by name.
        in_channels: channels of the image; with 1 an RGB image is turned into grey first.
        size: (height, width) of the input it is meant for, where that is known.
    """

    def __init__(
        self, backbone: Backbone, heads: dict[str, Head], in_channels: int = 3, size: tuple[int, int] | None = None
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.keys = module_keys(heads)
        self.heads = nn.ModuleDict({self.keys[name]: head for name, head in heads.items()})
        self.in_channels, self.size = in_channels, size
        mean, std = (MEAN, STD) if in_channels == 3 else ((sum(MEAN) / 3,) * in_channels, (sum(STD) / 3,) * in_channels)
        self.register_buffer("mean", 255 * torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> dict[str, Any]:
        """Pixels uint8 or float 0 to 255 (B, C, H, W) to each head's raw outputs."""
        features = self.backbone(self.normalise(images))
        size = (images.shape[2], images.shape[3])
        return {name: self.heads[key](features, size) for name, key in self.keys.items()}

    def normalise(self, images: Tensor) -> Tensor:
        """Pixels 0 to 255 to zero mean and unit variance, float32 (B, C, H, W)."""
        if self.in_channels == 1 and images.shape[1] == 3:
            images = grey(images)
        return (images.float() - self.get_buffer("mean")) / self.get_buffer("std")

    def decode(self, raw: dict[str, Any]) -> dict[str, Any]:
        """Final predictions of every head."""
        return {name: head.decode(raw[name]) for name, head in self.named_heads().items()}

    def spoilt(self, images: Tensor, names: list[str], training: bool) -> tuple[Tensor, dict[str, ImageTarget]]:
        """The images as heads that learn from them alone want them, with these heads' targets; themselves where none does."""
        targets: dict[str, ImageTarget] = {}
        for name, head in self.named_heads().items():
            found = head.spoil(images, names, training)
            if found is not None:
                images, targets[name] = found
        return images, targets

    def named_heads(self) -> dict[str, Head]:
        """The heads by name, typed."""
        return {name: head for name, key in self.keys.items() if isinstance(head := self.heads[key], Head)}


def require_classes(spaces: dict[str, LabelSpace], trained: dict[str, dict[str, Any]]) -> None:
    """Raises CheckpointError where the data numbers the classes of a field otherwise than the network was trained for."""
    for name, plain in trained.items():
        ours, theirs = spaces[name].names if name in spaces else (), tuple(plain["names"])
        if name in spaces and ours != theirs:
            raise CheckpointError(
                f"the checkpoint's {name!r} was trained for {len(theirs)} classes ({', '.join(theirs[:5])}), the data has"
                f" {len(ours)} ({', '.join(ours[:5])}): give data of the same classes in the same order"
            )


def module_keys(names: Iterable[str]) -> dict[str, str]:
    """Under which key an nn.ModuleDict takes each name: its own, but for dots and its attributes (`type`, `items`)."""
    keys: dict[str, str] = {}
    for name in names:
        key = name.replace(".", "_")
        while hasattr(nn.ModuleDict, key) or key in keys.values() or key == "training":
            key += "_"
        keys[name] = key
    return keys


def grey(images: Tensor) -> Tensor:
    """Luma float32 (B, 1, H, W) of RGB (B, 3, H, W), by the weights of ITU-R BT.601."""
    rgb = images.float()
    return 0.299 * rgb[:, 0:1] + 0.587 * rgb[:, 1:2] + 0.114 * rgb[:, 2:3]


def require_rgb(channels: int) -> None:
    """Raises ConfigError for a number of image channels that the data's RGB pictures do not fit."""
    if channels not in {1, 3}:
        raise ConfigError(f"model.in_channels is {channels}, but the data gives RGB: take 3, or 1 for grey")


def build_network(
    backbone: str,
    in_channels: int,
    weights: str | None,
    heads: dict[str, dict[str, Any]],
    spaces: dict[str, LabelSpace],
    backbone_options: dict[str, Any] | None = None,
    size: tuple[int, int] | None = None,
    weights_stages: int | None = None,
    init: Init = "default",
    train_size: tuple[int, int] | None = None,
) -> VisionNetwork:
    """The network of a config: `heads` as `select_heads` returns them, `size` (height, width) where it is known.

    `weights` as `build_backbone`, or those of a run, `runs:/RUN_ID` or `models:/NAME@ALIAS`; `weights_stages` as its
    `stages`; `init` as `initialise` takes it, where no weights are loaded; `train_size` where training sees another
    size.

    Raises:
        ConfigError: unknown names or options, values of the wrong type, or a size that does not fit.
        CheckpointError: weights that are not there or do not fit.
    """

    def build(size: tuple[int, int] | None, local: str | None, stages: int | None) -> VisionNetwork:
        body = build_backbone(backbone, in_channels, local, stages, backbone_options, size)
        if weights is None:
            initialise(body, init)
        built = {n: build_head(n, o, spaces.get(n, IMAGE_SPACE), body, size) for n, o in heads.items()}
        return VisionNetwork(body, built, in_channels, size)

    def attempt(size: tuple[int, int]) -> None:
        with torch.device("meta"):  # no memory, no numbers
            build(size, None, None)

    try:
        with weights_at_hand(weights) as local:
            network = build(size, local, weights_stages)
    except SizeError as error:
        raise follow_sizes(error, attempt) from error
    if train_size is not None and train_size != size:
        require_input(network, train_size, "data.train_size")
    return network


def require_input(network: VisionNetwork, size: tuple[int, int], setting: str) -> None:
    """Refuses pictures of (height, width), given as `setting`, that the backbone or a head cannot take; raises ConfigError."""

    def check(size: tuple[int, int]) -> None:
        network.backbone.require_size(size, setting)
        for name, head in network.named_heads().items():
            try:
                if head.demand is not None:
                    head.demand.check(size, setting)
            except SizeError as error:
                raise SizeError(f"head {name!r}: {error.told}", error.nearest) from error
            except ConfigError as error:
                raise ConfigError(f"head {name!r}: {error}") from error

    try:
        check(size)
    except SizeError as error:
        raise follow_sizes(error, check) from error


def select_heads(
    given: dict[str, dict[str, Any] | None] | None, spaces: dict[str, LabelSpace], kinds: tuple[str, ...]
) -> dict[str, dict[str, Any]]:
    """Which heads to build, with their options: a head per label field of the data.

    An entry of `given` is named for a field (`objects`), or for a kind of head (`detection`), which selects and sets
    all fields of that kind that are not named themselves. Without entries every field gets a head. A kind that needs
    no labels (`denoising`) gets a head of its own name; where nothing else is trained, without an entry.

    Args:
        given: the config's `heads`.
        spaces: the data's label fields.
        kinds: kinds of labels this module trains.

    Raises:
        ConfigError: an entry that is neither a field nor a kind, a kind that the data has no labels for, or no head.
    """
    usable = {name: space for name, space in spaces.items() if space.kind in kinds}
    own = {name for name in given or {} if getattr(HEADS.get(name), "kind", None) == "image" and "image" in kinds}
    own |= {DEFAULT_KIND["image"]} if kinds == ("image",) else set()
    if not usable and not own:
        found = ", ".join(f"{name} ({space.kind})" for name, space in spaces.items()) or "none"
        raise ConfigError(
            f"the data has no labels of kind {' or '.join(k for k in kinds if k != 'image')}; its fields: {found}"
        )
    given = given or {}
    for name in given:
        if name not in usable and name not in HEADS:
            raise ConfigError(
                f"model.heads: {name!r} is neither a label field nor a kind of head{nearest(name, [*usable, *HEADS])}"
            )
    chosen: dict[str, dict[str, Any]] = {}
    for name, space in usable.items():
        kind = DEFAULT_KIND[space.kind]
        if name in given:
            chosen[name] = {**(given.get(kind) or {}), **(given[name] or {})}
        elif not given.keys() - own or kind in given:
            chosen[name] = dict(given.get(kind) or {})
    chosen |= {name: dict(given.get(name) or {}) for name in sorted(own)}
    if not chosen:
        raise ConfigError(f"model.heads selects none of the data's fields: {', '.join(usable)}")
    return chosen
