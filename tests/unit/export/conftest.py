"""An untrained network of every kind of head, its bundle, and pictures for both."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.data.module import VisionData
from pipeline.export.graph import AnswerGraph
from tests.unit.export.trial import SHAPES, network, write


@pytest.fixture(scope="module")
def data():
    """Scenes larger than the input, so that letterbox and inverse have work to do."""
    return VisionData(size=64, batch_size=4, shapes=SHAPES)


@pytest.fixture(scope="module")
def exported(data, tmp_path_factory):
    graph = AnswerGraph(network(data).network).eval()
    return graph, write(graph, tmp_path_factory.mktemp("exported") / "bundle")


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 255, (5, 64, 64, 3), np.uint8)
