"""A whole build of a small model, and its run on the HTP emulator."""

from __future__ import annotations

import io
import json
import re

import graphs
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from rich.console import Console

import edgesam_deploy as ed
from edgesam_deploy.bundle import sha256_of
from edgesam_deploy.errors import EdgeSamDeployError, UnsupportedOperators
from edgesam_deploy.parity.cases import least_pictures, shipped_pictures
from edgesam_deploy.precision.calibration_rows import HELD_OUT
from edgesam_deploy.report import print_build
from edgesam_deploy.targets import make_target
from edgesam_deploy.targets.qnn import compiler
from edgesam_deploy.targets.qnn.quantize import float_nodes
from edgesam_deploy.targets.qnn.verdict import compile_part

pytest.importorskip("onnxruntime_qnn", reason="onnxruntime-qnn is not installed")


@pytest.fixture(scope="module")
def bundle(tiny_model, tmp_path_factory):
    return ed.build(tiny_model, "qnn", tmp_path_factory.mktemp("qnn") / "out", proof="off", optimization=1)


def test_the_bundle_holds_binaries_beside_the_onnx_they_came_from(bundle):
    names = set(bundle.manifest["files"])
    assert {"encoder.onnx", "encoder.qnn.onnx", "decoder.onnx", "decoder.qnn.onnx", "compiler.json"} <= names
    assert bundle.manifest["parts"]["image_encoder"]["file"] == "encoder.qnn.onnx"
    assert bundle.read_json("ops.json")["parts"]["image_encoder"]["file"] == "encoder.onnx"
    assert bundle.manifest["tools"]["onnxruntime-qnn"]
    ed.verify(bundle.path)


def test_both_parts_run_whole_on_the_npu_in_one_partition(bundle):
    verdict = bundle.read_json("compiler.json")
    assert verdict["soc"]["name"] == "SM8650"
    assert verdict["compiler"].startswith("QAIRT 2.")
    for part in verdict["parts"].values():
        assert (part["end"], part["partitions"], part["cpu_nodes"], part["off_npu"]) == ("compiled", 1, 0, [])
        assert part["npu_nodes"] == sum(part["npu_operators"].values()) == sum(row["nodes"] for row in part["npu"])
        assert part["traffic"]["dram_read"] > 0
        assert "no latency" in part["traffic"]["what"]


def test_a_build_prints_the_verdict(bundle):
    out = io.StringIO()
    print_build(Console(file=out, width=200), bundle)
    assert re.search(
        r"mask_decoder: \d+ nodes on the NPU, 0 on the CPU, partitions on the NPU: 1; DRAM", out.getvalue()
    )


def test_parity_is_left_to_check(bundle):
    parity = bundle.read_json("parity.json")
    assert parity["verdict"] == "not verified"
    assert "edgesam-deploy check" in parity["reasons"][0]


def test_check_runs_one_photograph_and_two_prompts_on_the_emulator(bundle, tiny_model):
    told = []
    parity = ed.check(bundle.path, tiny_model, progress=told.append)
    assert told == ["parity: chelsea.jpg", "parity: chelsea.jpg, point", "parity: chelsea.jpg, box"]
    assert parity.executed.startswith("HTP emulator, QAIRT 2.")
    assert parity.verdict == "pass", parity.reasons
    assert parity.precision == "fp16"
    assert any("--full" in reason for reason in parity.skipped)
    # fp16 and not fp32, which would be 1e-6
    assert 1e-4 < parity.summary()["outputs"]["embeddings"]["relative_l2"] < 1e-2


def test_calibration_pictures_are_none_to_judge_on():
    assert list(least_pictures({"chelsea.jpg": ""})) == ["coffee.jpg"]
    assert list(least_pictures([name for name in shipped_pictures() if name != HELD_OUT])) == [HELD_OUT]


def test_two_builds_are_the_same_bytes(bundle, tiny_model, tmp_path):
    again = ed.build(tiny_model, "qnn", tmp_path / "out", proof="off", optimization=1)
    assert again.manifest["files"] == bundle.manifest["files"]


def test_a_killed_compiler_leaves_nothing(tiny_model, tmp_path, monkeypatch):
    (tmp_path / "killed.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(compiler, "MODULE", "killed")
    with pytest.raises(EdgeSamDeployError, match="killed") as caught:
        ed.build(tiny_model, "qnn", tmp_path / "out", proof="off", optimization=1)
    assert caught.value.exit_code == 1
    assert [path.name for path in tmp_path.iterdir()] == ["killed.py"]


@pytest.mark.parametrize(("make", "said"), [(graphs.lone_erf, "Erf the_erf"), (graphs.identity_tile, "Tile the_tile")])
def test_operators_that_the_npu_does_not_run_end_a_build(tmp_path, make, said):
    """As the target judges the compiler's verdict; its own graphs have none."""
    target = make_target("qnn", optimization=1)
    verdict = compile_part(make(tmp_path / "foreign.onnx"), tmp_path / "foreign.qnn.onnx", target._settings())
    with pytest.raises(UnsupportedOperators, match=said) as caught:
        target._gate("mask_decoder", verdict)
    assert caught.value.exit_code == 5


def test_with_leave_the_cpu_may_help(tmp_path):
    target = make_target("qnn", optimization=1, cpu_fallback=True)
    model = graphs.lone_erf(tmp_path / "erf.onnx")
    verdict = compile_part(model, tmp_path / "erf.qnn.onnx", target._settings())
    target._gate("mask_decoder", verdict)
    x = np.linspace(-1, 1, 24, dtype=np.float32).reshape(1, 2, 3, 4)
    y = target.load(tmp_path / "erf.qnn.onnx")({"x": x})["y"]
    assert np.allclose(y[x < 0], 0)
    assert y.max() > 1.6  # 2 erf(1) is 1.685


@pytest.fixture(scope="module")
def quantised(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("qnn") / "out"
    return ed.build(tiny_model, "qnn", folder, proof="off", optimization=1, precision="w8a16")


def test_a_quantised_bundle_says_what_it_was_calibrated_with(quantised):
    said = quantised.read_json("calibration.json")
    assert said["source"] == quantised.manifest["options"]["calibration"] == "shipped photographs"
    assert sorted(said["pictures"]) == sorted(name for name in shipped_pictures() if name != HELD_OUT)
    assert said["samples"] == {"image_encoder": 3, "mask_decoder": 12}
    verdict = quantised.read_json("compiler.json")["parts"]
    assert all((part["partitions"], part["cpu_nodes"]) == (1, 0) for part in verdict.values())


def test_coordinates_labels_and_their_encoding_stay_float(quantised):
    graph = onnx.load(quantised.path / "decoder.onnx").graph
    readers = {name: [n.op_type for n in graph.node if name in n.input] for name in ("point_coords", "point_labels")}
    assert all("QuantizeLinear" not in found and found for found in readers.values())
    made = {node.output[0]: node.op_type for node in graph.node}
    waves = [node for node in graph.node if node.op_type in ("Sin", "Cos")]
    assert waves
    assert all(made[node.input[0]] != "DequantizeLinear" for node in waves)
    image = [n.op_type for n in graph.node if "image_embeddings" in n.input]
    assert image == ["QuantizeLinear"]


def test_products_of_two_activations_stay_float_in_16_bit(quantised):
    graph = onnx.load(quantised.path / "decoder.onnx").graph
    weights = {weight.name for weight in graph.initializer}
    weights |= {n.output[0] for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in weights}
    products = {n.name for n in graph.node if n.op_type == "MatMul" and not weights & set(n.input)}
    assert len(products) == 15  # two for each of seven attentions, and the masks
    assert products <= set(quantised.read_json("calibration.json")["float_nodes"]["mask_decoder"])


def test_convolutions_are_quantised_by_channel(quantised):
    graph = onnx.load(quantised.path / "encoder.onnx").graph
    weights = {w.name: numpy_helper.to_array(w) for w in graph.initializer}
    scales = {n.output[0]: weights[n.input[1]].size for n in graph.node if n.op_type == "DequantizeLinear"}
    kernels = [scales[n.input[1]] for n in graph.node if n.op_type == "Conv"]
    assert kernels
    assert all(size > 1 for size in kernels)


def test_the_quantised_decoder_follows_its_float_form_on_the_emulator(quantised, bundle, tiny_model):
    parity = ed.check(quantised.path, tiny_model)
    assert {row.picture for row in parity.rows} == {HELD_OUT}
    assert parity.precision == "w8a16"
    assert parity.summary()["outputs"]["embeddings"]["decibels"] > 15  # random weights, ranges as they fall


def test_masks_and_what_depends_on_the_prompt_alone_are_left_float():
    names = ("image_embeddings", "point_labels")
    inputs = [helper.make_tensor_value_info(name, 1, [1, 4]) for name in names]
    nodes = [
        helper.make_node("Mul", ["point_labels", "c"], ["mask"], name="prompt"),
        helper.make_node("Relu", ["image_embeddings"], ["scores"], name="image"),
        helper.make_node("Add", ["scores", "mask"], ["masked"], name="masking"),
        helper.make_node("Softmax", ["masked"], ["share"], name="softmax"),
        helper.make_node("Add", ["share", "mask"], ["y"], name="later"),
    ]
    constant = numpy_helper.from_array(np.ones(1, np.float32), "c")
    output = helper.make_tensor_value_info("y", 1, [1, 4])
    graph = helper.make_graph(nodes, "g", inputs, [output], [constant])
    assert float_nodes(graph) == ["prompt", "masking", "softmax"]


@pytest.mark.slow
def test_edge_sam_at_its_real_size_is_within_the_bounds_of_fp16(tmp_path):
    model = ed.load("edge_sam", seed=0)
    bundle = ed.build(model, "qnn", tmp_path / "out", proof="off")
    parts = json.loads((bundle.path / "compiler.json").read_text())["parts"]
    assert all((part["partitions"], part["cpu_nodes"]) == (1, 0) for part in parts.values())
    parity = ed.check(bundle.path, model)
    assert parity.verdict == "pass", parity.reasons
    assert sha256_of(bundle.path / "encoder.qnn.onnx") == bundle.manifest["files"]["encoder.qnn.onnx"]["sha256"]
