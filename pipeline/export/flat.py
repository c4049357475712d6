"""Pixels normalised in rows of interleaved channels: for ONNX Runtime's int8, which computes channels last."""

from __future__ import annotations

from typing import Any

import numpy as np

CHAIN = ("Transpose", "Cast", "Sub", "Div")
"""How an exported graph begins: (B, H, W, C) to (B, C, H, W), to float, less the mean, by the deviation."""


def flatten_normalisation(model: Any) -> bool:
    """Rewrites the beginning of an onnx.ModelProto so that mean and deviation lie along whole rows; whether it could.

    ONNX Runtime moves the transposition behind the arithmetic, whose innermost dimension is then three channels long: at
    320 pixels that took 1.4 of 14 ms. Rows of (W C) values take a tenth of it. Every value is computed as before.
    """
    from onnx import helper, numpy_helper

    graph = model.graph
    nodes = _beginning(graph)
    size = [each.dim_value for each in graph.input[0].type.tensor_type.shape.dim]
    if nodes is None or len(size) != 4 or not all(size[1:]):
        return False
    transpose, cast, subtract, divide = nodes
    known = {each.name: each for each in graph.initializer}
    order = [list(each.ints) for each in transpose.attribute if each.name == "perm"]
    if order != [[0, 3, 1, 2]] or not {subtract.input[1], divide.input[1]} <= known.keys():
        return False
    (kind,) = (each.i for each in cast.attribute if each.name == "to")
    rows = {}
    for node in (subtract, divide):
        values = numpy_helper.to_array(known[node.input[1]])
        if values.shape not in {(1, size[3], 1, 1), (size[3], 1, 1)}:
            return False
        rows[node.name] = np.tile(values.reshape(-1), size[2])
    constants = {
        "flat.rows": np.asarray([0, 0, -1]),
        "flat.pixels": np.asarray([0, 0, size[2], size[3]]),
        "flat.mean": rows[subtract.name],
        "flat.deviation": rows[divide.name],
    }
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    made = [
        helper.make_node("Reshape", [graph.input[0].name, "flat.rows"], ["flat.0"], "flat.reshape"),
        helper.make_node("Cast", ["flat.0"], ["flat.1"], "flat.cast", to=kind),
        helper.make_node("Sub", ["flat.1", "flat.mean"], ["flat.2"], "flat.sub"),
        helper.make_node("Div", ["flat.2", "flat.deviation"], ["flat.3"], "flat.div"),
        helper.make_node("Reshape", ["flat.3", "flat.pixels"], ["flat.4"], "flat.back"),
        helper.make_node("Transpose", ["flat.4"], divide.output, "flat.transpose", perm=[0, 3, 1, 2]),
    ]
    others = [node for node in graph.node if node not in nodes]
    del graph.node[:]
    graph.node.extend([*made, *others])
    used = {name for node in graph.node for name in node.input}
    for name in {subtract.input[1], divide.input[1]} - used:
        graph.initializer.remove(known[name])
    return True


def _beginning(graph: Any) -> list[Any] | None:
    """The chain's nodes, where each is all that the one before it leads to; the pixels, which stay, may lead elsewhere too."""
    found: list[Any] = []
    at = graph.input[0].name
    answers = {each.name for each in graph.output}
    for kind in CHAIN:
        takers = [node for node in graph.node if at in node.input]
        if not found:
            takers = [node for node in takers if node.op_type == kind]
        if len(takers) != 1 or takers[0].op_type != kind or takers[0].input[0] != at or at in answers:
            return None
        found.append(takers[0])
        at = takers[0].output[0]
    return found
