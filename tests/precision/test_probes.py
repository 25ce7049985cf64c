"""Models that are looked into: the large ones go by way of a file."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgesam_deploy.precision import probes


@pytest.mark.parametrize("most", [1 << 30, 0])
def test_a_large_model_computes_the_same(monkeypatch, tmp_path, most):
    monkeypatch.setattr(probes, "MOST", most)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    weight = np.arange(400, dtype=np.float32).reshape(20, 20)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [helper.make_tensor_value_info("x", 1, (1, 20))],
        [helper.make_tensor_value_info("y", 1, (1, 20))], [numpy_helper.from_array(weight, "w")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    before = onnx.ModelProto()
    before.CopyFrom(model)
    (y,) = probes.probe_session(model, "a test").run(None, {"x": np.ones((1, 20), np.float32)})
    np.testing.assert_array_equal(y[0], weight.sum(0))
    assert model == before
    assert list(tmp_path.iterdir()) == []
