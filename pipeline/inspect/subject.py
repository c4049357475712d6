"""What is looked at: a named backbone or a checkpoint's network, and the images it is shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.backbones.build import Backbone, build_backbone, natural_input, needs_size
from pipeline.backbones.traits import Published, SizeError, fitting_size, follow_sizes, require_size
from pipeline.data.formats.files import images_under
from pipeline.data.module import VisionData
from pipeline.errors import ConfigError, DataError, ImageError, nearest
from pipeline.export.graph import load_trained
from pipeline.export.source import find_checkpoint
from pipeline.imaging.decode import FORMATS, read_image
from pipeline.imaging.geometry import Letterbox
from pipeline.imaging.letterbox import letterbox_image
from pipeline.labels import LabelSpace
from pipeline.registered import weights_at_hand
from tasks.network import VisionNetwork, grey, require_input

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Subject:
    """A network in evaluation mode, and how it is shown images.

    Attributes:
        name: the backbone's name, or the checkpoint's path.
        network: backbone and heads; a named backbone has no heads.
        channels: of the image.
        size: (height, width) of the input.
        spaces: by head.
        data: settings of the data it was trained on, else None.
        run: the MLflow run that trained it, else None.
        classifier: the published one behind a named backbone, else None.
    """

    name: str
    network: VisionNetwork
    channels: int
    size: tuple[int, int]
    spaces: dict[str, LabelSpace]
    data: dict[str, Any] | None = None
    run: str | None = None
    classifier: nn.Module | None = None

    @property
    def module(self) -> nn.Module:
        """What is listed: the whole network; where there are no heads, the backbone and its published classifier."""
        backbone: Backbone = self.network.backbone
        if self.spaces:
            return self.network
        return backbone if self.classifier is None else Classified(backbone, self.classifier)

    @property
    def prefix(self) -> str:
        """What of the layers' paths says nothing, where there are no heads."""
        if self.spaces:
            return ""
        return "body." if self.classifier is None else "backbone.body."

    def layer(self, name: str) -> nn.Module:
        """A layer or block by its path as the layer table tells it; raises ConfigError with the nearest path."""
        known: dict[str, nn.Module] = dict(self.module.named_modules())
        found = known.get(self.prefix + name) or known.get(name)
        if found is None or not name:
            paths = [path.removeprefix(self.prefix) for path in known if path]
            raise ConfigError(f"--layers: {self.name} has no layer {name!r}{nearest(name, paths)}")
        return found

    def stages(self) -> list[str]:
        """Paths of the backbone's stages, as `layer` takes them."""
        front = "backbone.body." if self.spaces else ""
        return [front + name for name in self.network.backbone.stage_names]

    def batch(self, images: list[Pixels]) -> Tensor:
        """Pictures of the input's size as uint8 (B, C, H, W); networks of other than three channels see their luma."""
        stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        if self.channels == 3:
            return stacked
        return grey(stacked).round().expand(-1, self.channels, -1, -1).to(torch.uint8)

    def given(self, images: list[Pixels]) -> Tensor:
        """The same as `module` takes it: pixels as float32 for the network, normalised for a backbone alone."""
        batch = self.batch(images).float()
        return batch if self.spaces else self.network.normalise(batch)


class Classified(nn.Module):
    """A backbone and the classifier it was published with."""

    def __init__(self, backbone: Backbone, classifier: nn.Module) -> None:
        super().__init__()
        self.backbone, self.classifier = backbone, classifier
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Normalised (B, C, H, W) to logits (B, classes)."""
        logits: Tensor = self.classifier(self.backbone(images)[self.backbone.coarsest])
        return logits


def named_backbone(
    name: str,
    channels: int | None = None,
    size: tuple[int, int] | None = None,
    weights: str | None = None,
    classes: int | None = None,
) -> Subject:
    """A backbone by its name, with random weights unless some are named.

    Args:
        name: as `build_backbone` takes it.
        channels: of the image; None takes those it was published for.
        size: (height, width); None takes the one it was published for, or the nearest that fits.
        weights: as `build_backbone`, or a run's, `runs:/RUN_ID` or `models:/NAME@ALIAS`.
        classes: of its published classifier, where it has one; 0 leaves it out, None takes as many as published.

    Raises:
        ConfigError, CheckpointError: as `build_backbone`.
    """
    natural = natural_input(name)
    channels = natural.channels if channels is None else channels
    classes = natural.classes if classes is None else classes
    with torch.random.fork_rng():  # the same filters every time
        torch.manual_seed(0)
        with weights_at_hand(weights) as local:
            needed = (size or natural.size) if needs_size(name) else None
            backbone = build_backbone(name, channels, local, size=needed)
        published = backbone.traits.published if classes else None
        classifier = published.build(classes).requires_grad_(False) if published is not None else None
    if size is not None:
        require_both(backbone, published, size)
    network = VisionNetwork(backbone, {}, channels).eval().requires_grad_(False)
    own = size or fitting_size(natural.size, backbone.traits.smallest, backbone.traits.multiple)
    return Subject(name, network, channels, own, {}, classifier=classifier)


def require_both(backbone: Backbone, published: Published | None, size: tuple[int, int]) -> None:
    """Refuses a (height, width) that the backbone, or its published classifier where there is one, does not take.

    Raises:
        SizeError: names the nearest that both take.
    """

    def check(size: tuple[int, int]) -> None:
        backbone.require_size(size, "--size")
        if published is not None:
            name = f"the published classifier of {backbone.name!r}, which --classes 0 leaves out"
            require_size(name, size, published.smallest, backbone.traits.multiple, "--size")

    try:
        check(size)
    except SizeError as error:
        raise follow_sizes(error, check) from error


def from_checkpoint(reference: str, size: tuple[int, int] | None) -> Subject:
    """A checkpoint's network: a file, `runs:/RUN_ID` or `models:/NAME@ALIAS`; its data's size unless one is given.

    Raises:
        CheckpointError: there is none, or it cannot be read.
        ConfigError: a size that the network does not take.
    """
    trained = load_trained(find_checkpoint(reference))
    settings = trained.data or {}
    own = settings.get("size", 320)
    own = (own, own) if isinstance(own, int) else (int(own[0]), int(own[1]))
    network = trained.network.float()
    if size is not None:
        require_input(network, size, "--size")
    spaces = {name: head.space for name, head in network.named_heads().items()}
    channels = int(trained.settings.get("in_channels", 3))
    return Subject(reference, network, channels, size or own, spaces, trained.data, trained.run_id)


def find_images(
    subject: Subject, place: Path | None, count: int, say: Callable[[str], None]
) -> list[tuple[str, Pixels]]:
    """Up to `count` pictures with their names, letterboxed to the input's size: RGB uint8 (H, W, 3).

    Args:
        subject: gives the size, and its own validation images where no place is named.
        place: a picture or a folder of pictures; None takes the checkpoint's data, or for a backbone none at all.
        count: how many at most; of a folder the first by name.
        say: told of pictures of a folder that cannot be decoded, which are left out.

    Raises:
        DataError: no such file, a folder without pictures, or the checkpoint's data is not at hand.
        ImageError: the picture, or every one of the folder, cannot be decoded.
    """
    if place is not None:
        return _decoded(_files(place), subject.size, count, say)
    if subject.data is None:
        return []
    data = VisionData.from_settings(subject.data)
    records = islice(data.records("val") or data.records("train"), count)
    return [(r.image.name, _shown(r.image.read(max(subject.size)), subject.size)) for r in records]


def _decoded(
    paths: list[Path], size: tuple[int, int], count: int, say: Callable[[str], None]
) -> list[tuple[str, Pixels]]:
    """The first `count` of the pictures that can be decoded; raises ImageError where none can."""
    found: list[tuple[str, Pixels]] = []
    broken: ImageError | None = None
    for path in paths:
        if len(found) == count:
            break
        try:
            found.append((str(path), _shown(read_image(path, max(size)), size)))
        except ImageError as error:
            broken = broken or error
            if len(paths) > 1:
                say(f"left out: {error}")
    if broken is not None and not found:
        raise broken
    return found


def _shown(read: tuple[Pixels, tuple[int, int]], size: tuple[int, int]) -> Pixels:
    return letterbox_image(read[0], Letterbox.fit(read[1], size))


def _files(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise DataError(f"--images {place} is neither a picture nor a folder")
    found = images_under(place)
    if not found:
        raise DataError(f"--images {place}: no pictures in this folder ({', '.join(FORMATS)})")
    return found
