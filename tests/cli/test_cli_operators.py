"""ops on the command line: lists of targets, gates, the page, pieces of a graph, and models that are not built."""

from __future__ import annotations

import json

import onnx
import pytest
from command_line import DONE, UNSUPPORTED, USAGE, edgesam_deploy
from onnx import parser

from edgesam_deploy.targets.rules import REPORTS
from edgesam_deploy.targets.tflite.toolkits import PROBE

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


# ------------------------------------------------------------------------------------- files of a runtime's own kind


@pytest.fixture
def tflite(tmp_path):
    pytest.importorskip("ai_edge_litert")
    (tmp_path / "m.tflite").write_bytes(PROBE)
    return tmp_path / "m.tflite"


def test_a_tflite_file_is_judged_for_tflite(tflite):
    found = reported(tflite)["m.tflite"]
    assert found["targets"] == ["tflite"]
    assert [(row["operator"], row["status"]) for row in found["rows"]] == [("ADD", "supported")]
    assert edgesam_deploy("ops", tflite, "-t", "xnnpack", "--fail-on", "partial").code == DONE


def test_what_needs_onnx_says_so(tflite, tmp_path):
    ended = edgesam_deploy("ops", tflite, "--save-subgraph", tmp_path / "cut")
    assert (ended.code, "m.tflite is none" in ended.words) == (USAGE, True)
    assert edgesam_deploy("ops", tflite, "-t", "onnx").code == USAGE


@pytest.fixture
def package(tmp_path):
    pytest.importorskip("coremltools")
    from targets.coreml.interpreter.mil_packages import built, ct, mb

    @mb.program(input_specs=[mb.TensorSpec(shape=(1, 4))], opset_version=ct.target.iOS17)
    def program(x):
        return mb.sin(x=mb.relu(x=x, name="relu"), name="sin")

    return built(program, tmp_path / "p.mlpackage")


def plan(folder, device="ANE"):
    rows = [
        {"operator": "relu", "output": "relu", "device": device},
        {"operator": "sin", "output": "sin", "device": "CPU"},
    ]
    content = {"schema": 1, "machine": "Mac14,2", "system": "macOS 15.3", "packages": {"p.mlpackage": rows}}
    (folder / "plan.json").write_text(json.dumps(content))
    return folder / "plan.json"


def test_a_package_is_judged_for_core_ml_and_placed(package):
    found = reported(package)["p.mlpackage"]
    assert found["targets"] == ["coreml", "coreml-ane-m1", "coreml-ane-m2", "coreml-ane-m3"]
    assert [placement["places"] for placement in found["placements"]] == [["elsewhere", "elsewhere"]] * 3  # fp32
    ended = edgesam_deploy("ops", package, "--fail-on", "unsupported")
    assert ended.code == DONE  # what the Neural Engine does not take runs elsewhere
    assert "static estimate: 0 of 2 operators on the Neural Engine" in ended.out
    assert edgesam_deploy("ops", package, "-t", "coreml-ane", "--fail-on", "unsupported").code == UNSUPPORTED


def test_a_compute_plan_is_shown_beside_the_estimate(package, tmp_path):
    ended = edgesam_deploy("ops", package, "--compute-plan", plan(tmp_path))
    assert ended.code == DONE
    for words in ("compute plan of p.mlpackage", "operators: ANE 50.0%, GPU 0.0%, CPU 50.0%", "relu relu on ANE"):
        assert words in " ".join(ended.out.split())
    found = reported(package, "--compute-plan", plan(tmp_path))["p.mlpackage"]["compute_plan"]
    assert {row["target"] for row in found["disagreements"]} == {"coreml-ane-m1", "coreml-ane-m2", "coreml-ane-m3"}


def test_compute_plans_that_do_not_fit(package, tflite, tmp_path):
    ended = edgesam_deploy("ops", package, "--compute-plan", plan(tmp_path, device="NPU"))
    assert (ended.code, "packages.p.mlpackage.0.device" in ended.words) == (USAGE, True)
    ended = edgesam_deploy("ops", tflite, "--compute-plan", plan(tmp_path))
    assert (ended.code, "judged are m.tflite" in ended.words) == (USAGE, True)
    assert edgesam_deploy("ops", "edge_sam", "--compute-plan", plan(tmp_path)).code == USAGE
