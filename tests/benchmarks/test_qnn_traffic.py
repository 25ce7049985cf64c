from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from benchmarks.qnn_traffic import OURS, ratio, remove_identity_tiles, table


def test_only_tiles_of_ones_are_removed():
    ones, twos = (numpy_helper.from_array(np.full(2, n, np.int64), name) for n, name in ((1, "ones"), (2, "twos")))
    nodes = [
        helper.make_node("Tile", ["x", "ones"], ["a"], name="gone"),
        helper.make_node("Tile", ["a", "twos"], ["y"], name="kept"),
    ]
    x, y = helper.make_tensor_value_info("x", 1, [1, 1]), helper.make_tensor_value_info("y", 1, [2, 2])
    graph = helper.make_graph(nodes, "g", [x], [y], [ones, twos])
    assert remove_identity_tiles(graph) == 1
    assert [(node.name, list(node.input)) for node in graph.node] == [("kept", ["x", "twos"])]
    onnx.checker.check_graph(graph)


def cells(dram):
    keys = ("dram_write", "vtcm_read", "vtcm_write", "htp_operations", "dma_operations")
    return {"dram_read": dram, **dict.fromkeys(keys, 0)}


@pytest.mark.parametrize(("dram", "said"), [(80, "0.80, goal 0.8 reached"), (90, "0.90, goal 0.8 not reached")])
def test_our_share_is_of_the_reference_that_moves_least(dram, said):
    row = {"reference, opset 11": cells(500), "reference, opset 17": cells(100), OURS: cells(dram)}
    assert ratio(row) == dram / 100
    data = {"command": "", "date": "", "machine": "", "optimization": 3, "versions": {}, "parts": {"decoder": row}}
    assert said in table(data)
