"""Small foreign graphs for the compiler."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def chain(path, middle, shape, weights=(), dtype=TensorProto.FLOAT):
    """x -> Relu ``first`` -> ``middle`` (a -> b) -> Add ``last`` -> y, written to ``path``."""
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="first"),
        *middle,
        helper.make_node("Add", ["b", "b"], ["y"], name="last"),
    ]
    ends = [helper.make_tensor_value_info(name, dtype, shape) for name in "xy"]
    graph = helper.make_graph(nodes, "foreign", ends[:1], ends[1:], list(weights))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def identity_tile(path):
    """A Tile that repeats five axes once each, as tracing repeat_interleave(x, 1) leaves it."""
    ones = numpy_helper.from_array(np.ones(5, np.int64), "ones")
    return chain(path, [helper.make_node("Tile", ["a", "ones"], ["b"], name="the_tile")], [1, 2, 3, 4, 5], [ones])


def lone_erf(path):
    """An operator that QNN does not have."""
    return chain(path, [helper.make_node("Erf", ["a"], ["b"], name="the_erf")], [1, 2, 3, 4])


def plain(path):
    """What any NPU runs."""
    return chain(path, [helper.make_node("Sigmoid", ["a"], ["b"], name="middle")], [1, 2, 3, 4])
