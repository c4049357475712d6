"""OpenVINO's networks laid out anew answer as before; batches are computed in parts of the sizes that were warmed up."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.bundle import read_bundle
from serving.engines.openvino_layout import enlarge_planes, flatten_pixels, lay_out
from serving.engines.registry import load_engine, usable_specs
from tests.unit.bundles import known_bundle

openvino = pytest.importorskip("openvino")
from openvino import opset13 as ops  # noqa: E402  # only where it is installed

MEAN, DEVIATION = np.float32([123.7, 116.3, 103.5]), np.float32([58.4, 57.1, 57.4])
EXACT = {"INFERENCE_PRECISION_HINT": "f32"}


def network(classes=2, quantised=True, order=(0, 3, 1, 2), scale=4, mean=MEAN):
    """A small network as export writes it: pixels transposed and normalised, a convolution, scores enlarged."""
    images = ops.parameter([2, 24, 16, 3], np.uint8, "images")
    moved = ops.transpose(images, np.array(order))
    less = ops.subtract(ops.convert(moved, "f32"), mean.reshape(1, -1, 1, 1))
    by = ops.divide(less, DEVIATION.reshape(1, 3, 1, 1))
    if quantised:
        low, high = np.float32(-2.2), np.float32(2.7)
        by = ops.fake_quantize(by, low, high, low, high, 256)
    weights = np.random.default_rng(0).normal(size=(classes, 3, 3, 3)).astype(np.float32)
    scores = ops.convolution(by, weights, [2, 2], [1, 1], [1, 1], [1, 1])
    large = ops.interpolate(
        scores,
        np.array([12 * scale, 8 * scale]),
        "linear_onnx",
        "sizes",
        coordinate_transformation_mode="half_pixel",
        axes=np.array([2, 3]),
    )
    return openvino.Model([large], [images])


def answer(model):
    pixels = np.random.default_rng(1).integers(0, 255, (2, 24, 16, 3), np.uint8)
    return openvino.Core().compile_model(model, "CPU", EXACT)([pixels])[0]


def kinds(model):
    return [node.get_type_name() for node in model.get_ordered_ops() if node.get_type_name() != "Constant"]


@pytest.mark.parametrize("quantised", [True, False])
def test_a_network_laid_out_anew_gives_the_same_numbers(quantised):
    wanted, model = answer(network(quantised=quantised)), network(quantised=quantised)
    lay_out(model)
    found = kinds(model)
    assert found.index("Divide") < found.index("Transpose") < found.index("Convolution")
    assert ("FakeQuantize" in found[: found.index("Transpose")]) == quantised
    assert found[found.index("Interpolate") - 1] == "Reshape"
    np.testing.assert_allclose(answer(model), wanted, atol=1e-5)
    assert model.outputs[0].get_partial_shape() == network().outputs[0].get_partial_shape()


def test_a_constant_of_all_channels_is_laid_along_rows_too():
    wanted, model = answer(network(mean=np.float32([99.0]))), network(mean=np.float32([99.0]))
    flatten_pixels(model)
    assert kinds(model)[1] == "Reshape"
    np.testing.assert_allclose(answer(model), wanted, atol=1e-5)


def test_what_is_not_known_stays_as_it_is():
    images = ops.parameter([1, 24, 16, 3], np.uint8, "images")
    only = openvino.Model([ops.transpose(images, np.array([0, 3, 1, 2]))], [images])  # nothing to normalise
    again = ops.parameter([1, 24, 16, 3], np.uint8, "images")
    turned = ops.convert(ops.transpose(again, np.array([0, 3, 2, 1])), "f32")  # another order
    for model in (only, openvino.Model([turned], [again])):
        before = kinds(model)
        lay_out(model)
        assert kinds(model) == before


def test_many_channels_are_enlarged_together():
    model = network(classes=16)
    enlarge_planes(model)
    assert kinds(model) == kinds(network(classes=16))


def test_maps_of_open_sizes_are_left_alone():
    maps = ops.parameter([1, 2, -1, 8], np.float32, "maps")
    large = ops.interpolate(maps, np.float32([2, 2]), "linear_onnx", "scales", axes=np.array([2, 3]))
    model = openvino.Model([large], [maps])
    before = kinds(model)
    enlarge_planes(model)
    assert kinds(model) == before


@pytest.mark.parametrize("spec", ["openvino:fp32", "openvino:bf16"])
def test_batches_are_computed_in_parts_that_were_warmed_up(tmp_path, spec, monkeypatch):
    bundle = read_bundle(known_bundle(tmp_path / "bundle"))
    if spec not in usable_specs(bundle):
        pytest.skip("this processor does not compute in bf16")
    engine = load_engine(bundle, spec, threads=1, streams=2)
    images = np.random.default_rng(0).integers(0, 255, (7, 32, 32, 3), np.uint8)
    sizes = []
    run = engine._run
    monkeypatch.setattr(engine, "_run", lambda size, *more: sizes.append(size) or run(size, *more))
    alone = engine.infer(images)
    assert sizes == [1] * 7
    engine.warm_up(3)
    sizes.clear()
    together = engine.infer(images)
    assert sizes == [3, 3, 1]
    for name, value in alone.items():
        assert len(value) == 7
        np.testing.assert_array_equal(together[name], value)
