"""Batch norms that the exporter leaves behind, folded into the convolutions before them."""

from __future__ import annotations

from typing import Any

import numpy as np


def fold_batch_norms(graph: Any) -> int:
    """Folds in place every BatchNormalization that follows a convolution; returns how many are left.

    With gain g, shift b, mean m and variance v, the convolution's weights become w g / sqrt(v + eps) and its bias
    (bias - m) g / sqrt(v + eps) + b. The exporter does so itself, but where sizes are open it also asks the
    convolution for its output's shape, and then gives up.
    """
    from onnx import numpy_helper

    values = {tensor.name: tensor for tensor in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    left = 0
    for norm in [node for node in graph.node if node.op_type == "BatchNormalization"]:
        convolution = makers.get(norm.input[0])
        others = [n for n in graph.node if n is not norm and norm.input[0] in n.input and n.op_type != "Shape"]
        if (
            convolution is None
            or convolution.op_type != "Conv"
            or others
            or any(n not in values for n in norm.input[1:])
        ):
            left += 1
            continue
        gain, shift, mean, variance = (numpy_helper.to_array(values[name]) for name in norm.input[1:5])
        epsilon = next((a.f for a in norm.attribute if a.name == "epsilon"), 1e-5)
        factor = gain / np.sqrt(variance + epsilon)
        weights = numpy_helper.to_array(values[convolution.input[1]])
        bias = (
            numpy_helper.to_array(values[convolution.input[2]]) if len(convolution.input) > 2 else np.zeros_like(mean)
        )
        stem = convolution.input[1].removesuffix(".weight")
        folded = weights * factor.reshape(-1, 1, 1, 1)
        names = []
        for name, value in ((f"{stem}.weight", folded), (f"{stem}.weight_bias", (bias - mean) * factor + shift)):
            shared = sum(name in node.input for node in graph.node) > 1
            tensor = numpy_helper.from_array(value.astype(np.float32), f"{name}.folded" if shared else name)
            if tensor.name in values:
                values[tensor.name].CopyFrom(tensor)
            else:
                graph.initializer.append(tensor)
                values[tensor.name] = graph.initializer[-1]
            names.append(tensor.name)
        convolution.input[1:] = names
        for node in graph.node:
            node.input[:] = [norm.output[0] if name == convolution.output[0] else name for name in node.input]
        convolution.output[0] = norm.output[0]
        graph.node.remove(norm)
    used = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)
    return left
