"""ops on the command line: lists of targets, gates, the page, pieces of a graph, and models that are not built."""

from __future__ import annotations

import json

import onnx
import pytest
from command_line import DONE, UNSUPPORTED, USAGE, edgesam_deploy
from onnx import parser

from edgesam_deploy.targets.rules import REPORTS

TEXT = """<ir_version: 10, opset_import: ["": 11]>
net (float[1,3] x) => (float[1,3] y) { a = Sin (x)  b = Relu (a)  y = Abs (b) }"""


@pytest.fixture
def file(tmp_path):
    onnx.save(parser.parse_model(TEXT), tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def reported(*args):
    ended = edgesam_deploy("ops", *args, "--json")
    assert ended.code == DONE
    return json.loads(ended.out)


@pytest.mark.parametrize(
    ("given", "targets"),
    [
        ([], ["onnx"]),
        (["-t", "onnx,qnn"], ["onnx", "qnn"]),
        (["-t", "onnx", "--target", "tv, rknn"], ["onnx", "tv", "rknn"]),
        (["-t", "all"], list(REPORTS)),
        (["-t", "npu-tv,npu"], ["npu-tv", "npu"]),
    ],
)
def test_targets(file, given, targets):
    found = reported(file, *given)["net.onnx"]
    assert found["targets"] == targets
    assert {row["target"] for row in found["rows"]} == set(targets)


def test_a_row_has_every_column(file):
    (row,) = [r for r in reported(file, "-t", "tv")["net.onnx"]["rows"] if r["operator"] == "Sin"]
    assert row == {
        "target": "tv", "operator": "Sin", "domain": "", "count": 1, "dtypes": ["float32"], "ranks": [2],
        "status": "unsupported", "reason": "refused by the compiler", "fixed_by": "hoist_positional_encoding",
        "source": "NPU export of Kitemanul/EdgeSAM: its list of operators", "nodes": ["a"], "lowers_to": "",
        "version": "NPU compiler of a television's SoC as described in 2025",
    }  # fmt: skip


def test_gates(file):
    assert edgesam_deploy("ops", file, "-t", "qnn", "--fail-on", "partial").code == DONE
    ended = edgesam_deploy("ops", file, "-t", "qnn,tv", "--fail-on", "unsupported")
    assert ended.code == UNSUPPORTED
    assert "Abs, Sin" in ended.words
    partial = edgesam_deploy("ops", file, "-t", "tensorrt11", "--fail-on", "unsupported")
    assert partial.code == DONE
    assert edgesam_deploy("ops", file, "-t", "tensorrt11", "--fail-on", "partial").code == UNSUPPORTED


def test_many_targets_on_a_terminal_list_what_does_not_run(file):
    text = edgesam_deploy("ops", file, "-t", "all").out
    assert "unsupported   float32" in text
    assert "   supported   float32" not in text
    assert "qnn: 3 supported" in text


def test_the_page(file, tmp_path):
    ended = edgesam_deploy("ops", file, "-t", "tv", "--html", tmp_path / "ops.html")
    assert ended.code == DONE
    assert "refused by the compiler" in (tmp_path / "ops.html").read_text()
    assert edgesam_deploy("ops", file, "--html", tmp_path / "none" / "ops.html").code == USAGE


def test_pieces(file, tmp_path):
    ended = edgesam_deploy("ops", file, "-t", "tv", "--save-subgraph", tmp_path / "cut")
    assert "2 nodes of net.onnx" in ended.words
    names = sorted(path.name for path in (tmp_path / "cut").iterdir())
    assert names == ["Abs_y.onnx", "Sin_a.onnx"]
    for name in names:
        onnx.checker.check_model(onnx.load(tmp_path / "cut" / name), full_check=True)


def test_a_bundle_is_judged_for_its_own_target(bundles):
    found = reported(bundles().path)
    assert [part["targets"] for part in found.values()] == [["onnx"], ["onnx"]]


@pytest.mark.slow
def test_a_model_that_is_not_built():
    ended = edgesam_deploy("ops", "edge_sam", "-t", "onnx", "--json", "--fail-on", "unsupported")
    assert ended.code == DONE
    assert "random weights" in ended.words
    assert len(json.loads(ended.out)) == 2
    assert edgesam_deploy("ops", "edge_sam", "--save-subgraph", "cut").code == USAGE
