"""Graphs of onnx-graphsurgeon go through the ONNX-level passes and come back as such."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from edgesam_deploy.errors import UnknownName
from edgesam_deploy.graphsurgeon import optimize_graph

gs = pytest.importorskip("onnx_graphsurgeon")
TEXT = """<ir_version: 9, opset_import: ["" : 20]>
decoder (float[2,3,8] x) => (float[2,3,8] y) <float root = {1.4142135}, float unit = {1}, float half = {0.5}> {
    i = Identity(x)
    scaled = Div(i, root)
    error = Erf(scaled)
    more = Add(error, unit)
    product = Mul(i, more)
    y = Mul(product, half)
}"""


def run(graph, x):
    model = gs.export_onnx(graph)
    onnx.checker.check_model(model, full_check=True)
    (y,) = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    return y


def test_a_graph_is_rewritten_and_the_one_given_is_left_alone():
    graph = gs.import_onnx(onnx.parser.parse_model(TEXT))
    before = [node.op for node in graph.nodes]
    after = optimize_graph(graph)
    assert [node.op for node in after.nodes] == ["Gelu"]
    assert [node.op for node in graph.nodes] == before
    x = np.random.default_rng(0).standard_normal((2, 3, 8)).astype(np.float32)
    np.testing.assert_allclose(run(after, x), run(graph, x), atol=1e-6)


def test_surgery_goes_on_behind_it():
    graph = optimize_graph(gs.import_onnx(onnx.parser.parse_model(TEXT)))
    graph.outputs = [graph.nodes[0].outputs[0]]
    graph.outputs[0].name = "renamed"
    assert "renamed" in [o.name for o in gs.export_onnx(graph.cleanup()).graph.output]


def test_an_unknown_target():
    with pytest.raises(UnknownName, match="tensorflow"):
        optimize_graph(gs.import_onnx(onnx.parser.parse_model(TEXT)), "tensorflow")
