"""The 8-bit encoder of the ONNX target: what ONNX Runtime makes of it, what it costs, and what the bundle says."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import TINY
from scenes import picture

from edgesam_deploy.builder import build
from edgesam_deploy.bundle import verify
from edgesam_deploy.errors import UsageError
from edgesam_deploy.model.registry import load
from edgesam_deploy.precision.calibration import encoder_inputs
from edgesam_deploy.runtime import open_artifact
from edgesam_deploy.targets import make_target

PICTURES = {"scene": picture(150, 225, 10)}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The tiny model's bundle in 8 bit, and the tiny model's own in fp32."""
    model, folder = load("edge_sam", seed=0, config=TINY), tmp_path_factory.mktemp("int8")
    return [build(model, "onnx", folder / p, proof="off", pictures=PICTURES, precision=p) for p in ("int8", "fp32")]


def executed(path, folder):
    """Operators that ONNX Runtime runs, after its own rewriting."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(folder / "run.onnx"), 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "run.onnx").graph.node)


def test_the_trunk_runs_in_8_bit(small, tmp_path):
    whole = small[1].manifest["parts"]["image_encoder"]["operators"]
    found = executed(small[0].path / "encoder.onnx", tmp_path)
    assert (found["Gelu"], found["QLinearSigmoid"]) == (1, whole["Gelu"] - 1)  # the first layer stays float
    assert found["QLinearConv"] == len(
        json.loads((small[0].path / "calibration.json").read_text())["quantised"]["image_encoder"]
    )
    assert found["QLinearConv"] > whole["Conv"] / 2
    assert found["QLinearGlobalAveragePool"] > 0
    assert found["QLinearMul"] > whole["Gelu"] - 1  # the gates of squeeze and excitation as well


def test_nothing_of_the_float_weights_is_left(small):
    model = onnx.load(small[0].path / "encoder.onnx")
    onnx.checker.check_model(model, full_check=True)
    read = {name for node in model.graph.node for name in node.input}
    assert {weight.name for weight in model.graph.initializer} <= read
    sizes = [small[i].manifest["files"]["encoder.onnx"]["bytes"] for i in (0, 1)]
    assert sizes[0] < 0.6 * sizes[1]
    assert small[0].manifest["files"]["decoder.onnx"]["bytes"] == pytest.approx(
        small[1].manifest["files"]["decoder.onnx"]["bytes"], rel=0.01
    )


def test_what_it_costs_is_measured_and_not_claimed(small):
    parity = small[0].read_json("parity.json")
    assert (parity["verdict"], parity["precision"]) == ("not verified", "int8")
    assert "depends on the weights" in parity["reasons"][0]
    scene = picture(180, 240, 4)
    maps = []
    for bundle in small:
        predictor = open_artifact(bundle.path)
        maps.append(predictor.set_image(scene))
    apart = np.linalg.norm(maps[0] - maps[1]) / np.linalg.norm(maps[1])
    assert 1e-3 < apart < 0.5  # random weights; 8 bit it is, and the same function
    shift = np.abs(maps[0].mean((2, 3)) - maps[1].mean((2, 3))).mean() / np.abs(maps[1].mean((2, 3))).mean()
    assert shift < 0.3  # biases took up what rounding and the other GELU shift


def test_the_bundle_says_what_it_was_calibrated_with(small, tmp_path):
    content = json.loads((small[0].path / "calibration.json").read_text())
    assert content["source"] == "shipped photographs"
    assert "hopper.jpg" not in content["pictures"]
    assert content["samples"]["image_encoder"] == len(content["pictures"])
    assert small[0].manifest["options"]["calibration"] == "shipped photographs"
    verify(small[0].path)


def test_the_same_twice(small, tmp_path):
    again = build(
        load("edge_sam", seed=0, config=TINY),
        "onnx",
        tmp_path / "again",
        proof="off",
        pictures=PICTURES,
        precision="int8",
    )
    assert again.manifest == small[0].manifest


def test_options(tmp_path):
    with pytest.raises(UsageError, match="--precision fp32 takes none"):
        make_target("onnx", calibration=str(tmp_path))
    with pytest.raises(UsageError, match="no picture in it"):
        make_target("onnx", precision="int8", calibration=str(tmp_path))
    with pytest.raises(UsageError, match="the npu target has fp32"):
        make_target("npu", precision="int8")
    with pytest.raises(UsageError, match="the onnx target has fp32 and int8"):
        make_target("onnx", precision="int4")
    assert make_target("npu").precision == "fp32"


def test_calibration_feeds_what_the_predictor_feeds(small):
    predictor = open_artifact(small[0].path)
    scene = picture(180, 240, 4)
    fed = encoder_inputs(predictor.interface, scene)
    np.testing.assert_array_equal(fed["image"], predictor.encoder_inputs(scene)["image"])
