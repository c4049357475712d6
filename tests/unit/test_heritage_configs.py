"""Every shipped config of a historical network builds, fits its own input size, and is told of in the docs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import yaml

from pipeline.backbones.build import build_backbone, registered
from pipeline.data.module import VisionData
from pipeline.data.shapes import read_shapes
from pipeline.data.signals import read_signals
from tasks import multitask

ROOT = Path(__file__).parents[2]
NAMED = re.findall(r"`([\w-]+)`", (ROOT / "docs" / "networks.md").read_text())
CONFIGS = [path for path in sorted((ROOT / "configs" / "heritage").glob("*.yaml")) if path.stem in NAMED]


@pytest.mark.parametrize("path", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_it_builds_for_its_own_input(path):
    config = yaml.safe_load(path.read_text())
    assert path.read_text().startswith("# ")
    data = VisionData(**config["data"])
    source = read_signals(100) if data.signals else read_shapes(10, 32)
    spaces = {name: space.to_dict() for name, space in source.spaces.items()}
    kind = getattr(multitask, config["model"]["class_path"])
    with torch.device("meta"):
        module = kind(spaces=spaces, size=data.size, **config["model"]["init_args"])
    for name, head in module.network.named_heads().items():
        assert head.space.kind == source.spaces[name].kind


def test_every_config_that_names_a_backbone_is_in_the_docs():
    others = [path for path in (ROOT / "configs" / "heritage").glob("*.yaml") if path not in CONFIGS]
    assert len(CONFIGS) == 37
    # The others are overlays of practices, and denoising's configs.
    assert [path.stem for path in others if "backbone_options" in path.read_text()] == []


def test_every_network_written_here_has_a_line_in_the_docs():
    build_backbone("light")
    text = (ROOT / "docs" / "networks.md").read_text() + (ROOT / "configs" / "model" / "light.yaml").read_text()
    small = {f"{kind}{depth}" for kind in ("resnet", "plain") for depth in (20, 32, 44, 56, 110)}
    left_out = (
        {name for name in registered() if name not in text} - small - {f"vgg-{k}" for k in ("a-lrn", "b", "c", "d")}
    )
    assert left_out <= {"light", "light-deep", "light-nano"}
