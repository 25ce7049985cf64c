"""The table's exceptions, asked of the installed compiler again; and that its crash is an answer like any other."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import onnx
import pytest

from edgesam_deploy.targets.rules import load_table, probe_qnn, qnn_nodes
from edgesam_deploy.targets.rules.qnn_compiler import assignments
from edgesam_deploy.targets.rules.qnn_nodes import SHAPES, Node, data, model_of, numbers, unary

pytest.importorskip("onnxruntime_qnn")
TILE = Node("Tile", (data("float32", SHAPES[5]), numbers(1, 1, 1, 1, 1)))
MODELS = {
    "Tile of ones": model_of(TILE),
    "Sin": model_of(unary("Sin")("float32", SHAPES[4])),
    "Erf": model_of(unary("Erf")("float32", SHAPES[4])),
    "GELU": probe_qnn.gelu(),
    "NonZero": model_of(unary("NonZero")("float32", SHAPES[2])),
    "rank 6": model_of(Node("Transpose", (data("float32", SHAPES[6]),), {"perm": [5, 4, 3, 2, 1, 0]})),
    "bool to int16": probe_qnn.cast("bool", "int16"),
    "bool to float32": probe_qnn.cast("bool", "float32"),
    "dynamic": model_of(unary("Relu")("float32", SHAPES[3]), dynamic=True),
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    paths = []
    for name, model in MODELS.items():
        paths.append(folder / f"{name}.onnx")
        onnx.save(model, paths[-1])
    return dict(zip(MODELS, assignments(paths), strict=True))


def test_a_crash_is_an_answer_and_what_follows_is_asked_all_the_same(answers):
    crashed = answers["Tile of ones"]
    assert crashed.crashed
    assert not crashed.on_npu
    assert "crashed (exit code -" in crashed.refused
    assert answers["Sin"].on_npu


@pytest.mark.parametrize(
    ("name", "runs"),
    [
        ("Sin", True), ("Erf", False), ("GELU", True), ("NonZero", False), ("rank 6", False), ("bool to int16", False),
        ("bool to float32", True), ("dynamic", False),
    ],
)  # fmt: skip
def test_the_exceptions(answers, name, runs):
    assert not answers[name].crashed
    assert answers[name].on_npu is runs


def test_every_model_is_well_formed():
    compiler = probe_qnn.Compiler({})
    list(probe_qnn._rules(compiler.ask))
    assert len(compiler.models) > 1000
    for content in compiler.models:
        onnx.shape_inference.infer_shapes(onnx.load_from_string(content), check_type=True, strict_mode=True)


def test_the_table_is_of_the_operators_that_are_probed():
    table = load_table("qnn_htp")
    probed = {probe.op for probe in qnn_nodes.PROBES}
    assert probed <= {rule.op for rule in table.rules}
    assert all(rule.source == probe_qnn.SOURCE for rule in table.rules)


@pytest.mark.slow
def test_the_table_is_what_the_probe_generates(tmp_path):
    committed = Path(probe_qnn.__file__).with_name("qnn_htp.json")
    installed = f"onnxruntime-qnn {version('onnxruntime-qnn')} and onnxruntime {version('onnxruntime')}"
    if load_table("qnn_htp").source != installed:
        pytest.skip(f"the table is of {load_table('qnn_htp').source}; installed: {installed}")
    probe_qnn.main(["-o", str(tmp_path / "again.json")])
    assert (tmp_path / "again.json").read_bytes() == committed.read_bytes()
