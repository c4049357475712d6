"""int8 by static post-training quantisation: QDQ ONNX for ONNX Runtime, NNCF for OpenVINO; what hurts stays in float.

Activations are unsigned with a zero point, weights signed and per output channel (u8s8). The ladder of layers kept in
float is climbed only as far as the gate asks.
"""

from __future__ import annotations

import contextlib
import logging
import re
import tempfile
import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.module import VisionData
from pipeline.errors import ExportError, ImageError
from pipeline.export.flat import flatten_normalisation
from pipeline.imaging.geometry import Letterbox
from pipeline.imaging.letterbox import letterbox_image
from serving.engines.own_thread import in_own_thread

LADDER = (
    (
        "the heads' last convolutions",
        r"heads\.[^.]+\.(classifier|decoder\.score|(one|many)\.(class|side)_tower\.\d+\.1)$",
    ),
    ("the first convolution", r"^0 "),
    ("the box branch", r"heads\.[^.]+\.(one|many)\.side_tower\."),
    ("detection's branches", r"heads\.[^.]+\.(one|many)\."),
    ("detection's pyramid", r"heads\.[^.]+\.neck\."),
    ("the heads", r"heads\."),
)
"""What is kept in float, in addition to the former step, and its convolutions: their number from 0, a space, the name.

The first convolution comes early: it has few channels, so that int8 gains little there, and what it rounds all others see.
On dsb2018 at 320 it was what cost 0.006 of 0.0067 AP on OpenVINO, for 0.6 of 8.9 ms.
"""

QUANTISED = ("Conv", "Add", "Concat", "MaxPool", "Resize", "Relu")
"""Operators that compute in int8; the answers' own arithmetic stays in float."""


def float_layers(path: Path, steps: int) -> list[str]:
    """Names of the ONNX file's nodes that stay in float after `steps` steps of the ladder (at least 1).

    These are the convolutions of the ladder, and what follows the last convolutions.
    """
    import onnx

    graph = onnx.load(str(path)).graph
    kept = _layers(graph, steps)
    # Backwards from the outputs up to the last convolutions.
    leads_to_convolution: set[str] = set()
    tail = []
    for node in reversed(graph.node):
        if node.op_type == "Conv" or any(output in leads_to_convolution for output in node.output):
            leads_to_convolution.update(node.input)
        elif node.op_type in QUANTISED:
            tail.append(node.name)
    return [*sorted(kept), *tail]


def _layers(graph: Any, steps: int) -> set[str]:
    """Names of a graph's convolutions that the ladder's first steps keep in float."""
    convolutions = enumerate(node.name for node in graph.node if node.op_type == "Conv")
    patterns = [pattern for _, pattern in LADDER[:steps]]
    return {name for number, name in convolutions if any(re.search(each, f"{number} {name}") for each in patterns)}


def ladder(path: Path) -> Iterator[tuple[list[str], list[str]]]:
    """What an ONNX file's network keeps in float, in words and as its nodes' names, step by step.

    Steps that keep nothing of this network are left out.
    """
    import onnx

    graph = onnx.load(str(path)).graph
    words: list[str] = []
    before: set[str] = set()
    for step, (what, _) in enumerate(LADDER, 1):
        layers = _layers(graph, step)
        words = [*words, what] if layers > before else words
        if layers > before or step == 1:
            yield words, float_layers(path, step)
        before = layers


def calibration_images(data: VisionData, size: tuple[int, int], count: int = 128) -> NDArray[np.uint8]:
    """Images of the training split, evenly spaced, letterboxed: uint8 (N, H, W, 3); raises ExportError for none."""
    records = data.records("train")
    step = max(1, len(records) // count)
    found = []
    for record in islice(records, 0, None, step):
        with contextlib.suppress(ImageError):
            pixels, full = record.image.read(max(size))
            found.append(letterbox_image(pixels, Letterbox.fit(full, size)))
        if len(found) == count:
            break
    if not found:
        raise ExportError("int8 needs readable training images to calibrate on; see `lightning check-data`")
    return np.stack(found)


def quantize_onnx(source: Path, target: Path, images: NDArray[np.uint8], keep: list[str]) -> None:
    """A QDQ variant of an ONNX file, for ONNX Runtime; `keep` names nodes that stay in float."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    name = onnx.load(str(source), load_external_data=False).graph.input[0].name

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # untyped
        """Batches of the calibration images."""

        def __init__(self) -> None:
            self.batches = iter([images[at : at + 8] for at in range(0, len(images), 8)])

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {name: batch}

    with _quiet(), tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(target),
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=[op for op in QUANTISED if op != "Relu"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=keep,
            extra_options={"ActivationSymmetric": False, "WeightSymmetric": True},
        )
    model = onnx.load(str(target))
    if flatten_normalisation(model):
        onnx.save(model, str(target))


def quantize_openvino(source: Path, target: Path, images: NDArray[np.uint8], keep: list[str]) -> None:
    """A quantised variant for OpenVINO (`target` .xml, beside it .bin); raises ExportError where nncf is missing."""
    import openvino

    with _quiet():
        import nncf
        from nncf.quantization.range_estimator import RangeEstimatorParametersSet

        logging.getLogger("nncf").setLevel(logging.ERROR)  # not its handlers too, as nncf.set_log_level does
        model = openvino.Core().read_model(source)
        # OpenVINO reads a convolution with a bias as two operations, `NAME/WithoutBiases` and the addition `NAME`.
        names = {op.get_friendly_name() for op in model.get_ops()}
        kept = {name for name in names if name.removesuffix("/WithoutBiases") in keep} | _tail(model)
        quantized = in_own_thread(
            lambda: nncf.quantize(
                model,
                nncf.Dataset([image[None] for image in images]),
                preset=nncf.QuantizationPreset.MIXED,
                subset_size=len(images),
                # Averaging each image's range, nncf's default, cuts off what few images show: it cost 0.009 AP, this 0.003.
                advanced_parameters=nncf.AdvancedQuantizationParameters(
                    activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX
                ),
                ignored_scope=nncf.IgnoredScope(names=sorted(kept), validate=False),
            )
        )
        openvino.save_model(quantized, target, compress_to_fp16=False)


def _tail(model: Any) -> set[str]:
    """Names of an openvino.Model's operations behind its last layers with weights: the answers' own arithmetic."""
    found: set[str] = set()
    left = [result.input_value(0).get_node() for result in model.get_results()]
    while left:
        node = left.pop()
        name = node.get_friendly_name()
        if name not in found and node.get_type_name() not in {"Convolution", "GroupConvolution", "MatMul"}:
            found.add(name)
            left += [value.get_node() for value in node.input_values()]
    return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the libraries' progress and advice from the user."""
    with warnings.catch_warnings(), open("/dev/null", "w") as nowhere, contextlib.redirect_stdout(nowhere):  # noqa: PTH123
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)
