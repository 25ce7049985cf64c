"""8 bit of the ONNX target: what ONNX Runtime makes of it, what it costs, and what the bundle says."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from conftest import TINY
from onnx import helper, numpy_helper
from scenes import picture

from edgesam_deploy.builder import build
from edgesam_deploy.bundle import verify
from edgesam_deploy.capture import capture
from edgesam_deploy.contract import TensorSpec
from edgesam_deploy.cost import onnx_macs
from edgesam_deploy.errors import UsageError
from edgesam_deploy.model.registry import load
from edgesam_deploy.passes.engine import Engine
from edgesam_deploy.passes.execute import run_program
from edgesam_deploy.passes.program import Program
from edgesam_deploy.precision.calibration import encoder_inputs
from edgesam_deploy.runtime import open_artifact
from edgesam_deploy.targets import make_target
from edgesam_deploy.targets.onnx_int8 import quantise
from edgesam_deploy.targets.onnx_int8_products import quantise_products

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


def test_the_decoders_upscaling_runs_in_8_bit(small, tmp_path):
    """Of this small map only the second upscaling has enough rows; tokens and coordinates stay as they are."""
    layers = json.loads((small[0].path / "calibration.json").read_text())["quantised"]["mask_decoder"]
    found = executed(small[0].path / "decoder.onnx", tmp_path)
    assert found["DynamicQuantizeMatMul"] + found["MatMulIntegerToFloat"] == len(layers) == 1
    assert found["DynamicQuantizeLinear"] == found["MatMulIntegerToFloat"]  # the range: inside, or before
    model = onnx.load(small[0].path / "decoder.onnx")
    onnx.checker.check_model(model, full_check=True)
    read = {name for node in model.graph.node for name in node.input}
    assert {weight.name for weight in model.graph.initializer} <= read, "the products' weights in fp32 are gone"
    macs = [sum(onnx_macs(bundle.path / "decoder.onnx").values()) for bundle in small]
    assert macs[0] == macs[1]
    predictors = [open_artifact(bundle.path) for bundle in small]
    features = [predictor.set_image(picture(180, 240, 4)) for predictor in predictors]
    assert features[0] is not None
    predictors[0].features = predictors[1].features
    coords, labels = np.full((3, 2, 2), 90, np.float32), np.tile(np.array([1, -1], np.float32), (3, 1))
    coords[:, 0] += np.arange(3, dtype=np.float32)[:, None] * 20
    answers = [[p.predict_slots(c[None], v[None]) for c, v in zip(coords, labels, strict=True)] for p in predictors]
    for (masks, scores), (expected, exact) in zip(*answers, strict=True):
        np.testing.assert_array_equal(scores, exact)  # made from tokens, which nothing has touched
        assert 1e-5 < np.linalg.norm(masks - expected) / np.linalg.norm(expected) < 0.05


@pytest.mark.parametrize(
    ("name", "options", "upscalings"),
    [
        ("edge_sam", {"io": "sam", "batch": 1}, 2),  # dynamic points: projections of attention over as many rows
        ("edge_sam", {"points": "dynamic", "batch": "dynamic"}, 2),
        ("edge_sam", {"points": 2, "batch": 200}, 2),  # tokens: 200 x 7 rows
        ("edge_sam_dyt", {}, 0),  # upscales by transposed convolutions
    ],
)
def test_nothing_that_attention_reads_is_8_bit(name, options, upscalings):
    model = load(name, seed=0, config={**TINY, "image_size": 512})  # 1,024 cells
    target = make_target("onnx", **options)
    program = capture(model, target.interface(model.config))[1]
    program = Engine("off").run(program, target.pipeline(model.config))
    before = [node.op_type for node in program.onnx.graph]
    assert len(quantise_products(program)) == upscalings
    after = [node.op_type for node in program.onnx.graph]
    assert before.count("MatMul") - after.count("MatMul") == upscalings
    reached, ahead = set(), [node for node in program.onnx.graph if node.op_type == "MatMulInteger"]
    while ahead:
        reached.add(ahead[-1])
        ahead += [usage.node for value in ahead.pop().outputs for usage in value.uses()]
    assert not {node.op_type for node in reached} & {"Softmax", "Exp"}


def product(rows, weight, bias=True):
    """``x (rows, K) times a constant``, with or without a bias behind it, as a program."""
    outputs = weight.shape[1]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["p" if bias else "y"], name="product")]
    constants = [numpy_helper.from_array(weight, "w")]
    if bias:
        nodes.append(helper.make_node("Add", ["p", "b"], ["y"], name="sum"))
        constants.append(numpy_helper.from_array(np.linspace(-1, 1, outputs, dtype=np.float32), "b"))
    ends = [helper.make_tensor_value_info(n, 1, [*rows, size]) for n, size in (("x", weight.shape[0]), ("y", outputs))]
    model = helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:], constants), opset_imports=[
        helper.make_opsetid("", 18)], ir_version=8)  # fmt: skip
    model = onnx.shape_inference.infer_shapes(model)
    specs = [(TensorSpec(name, (*rows, size)),) for name, size in (("x", weight.shape[0]), ("y", outputs))]
    return Program("mask_decoder", *specs, ir.from_proto(model))


def test_products_that_pay_and_those_that_do_not():
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((64, 32)).astype(np.float32)
    weight[:, 3] = 0
    assert quantise_products(product((1, 1023), weight)) == []
    assert quantise_products(product((2048, 4), weight)) == []  # a batch is not rows of one prompt
    assert quantise_products(product((1, 2048), weight, bias=False)) == []  # a resize written as a product
    large = product((1, 2048), weight)
    x = rng.standard_normal((1, 2048, 64)).astype(np.float32)
    exact = run_program(large, {"x": x})["y"]
    assert quantise_products(large) == [node.name for node in large.onnx.graph if node.op_type == "MatMulInteger"]
    found = run_program(large, {"x": x})["y"]
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[..., 3], exact[..., 3], atol=1e-6)  # an output without weights is its bias
    assert 1e-4 < np.linalg.norm(found - exact) / np.linalg.norm(exact) < 0.02


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


def test_a_channel_without_weights_keeps_its_bias():
    """In steps of a weight of 0 the bias would not fit into int32."""
    weight = np.random.default_rng(0).standard_normal((4, 8, 3, 3)).astype(np.float32)
    weight[1] = 0
    bias = np.array([0.5, 0.5, -0.5, 0.0], np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w", "b"], ["h"], pads=[1] * 4, name="first"),
         helper.make_node("Conv", ["h", "v", "c"], ["y"], name="second")],
        "g", [helper.make_tensor_value_info("x", 1, (1, 8, 6, 6))],
        [helper.make_tensor_value_info("y", 1, (1, 8, 6, 6))],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b"),
         numpy_helper.from_array(np.eye(8, 4, dtype=np.float32)[..., None, None], "v"),
         numpy_helper.from_array(np.zeros(8, np.float32), "c")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    program = Program("part", (TensorSpec("x", (1, 8, 6, 6)),), (TensorSpec("y", (1, 8, 6, 6)),), ir.from_proto(model))
    rows = [{"x": np.random.default_rng(seed).standard_normal((1, 8, 6, 6)).astype(np.float32)} for seed in range(3)]
    before = run_program(program, rows[0])["y"]
    quantise(program, rows)
    after = run_program(program, rows[0])["y"]
    np.testing.assert_allclose(after[:, 1], 0.5, atol=0.05)
    assert np.linalg.norm(after - before) / np.linalg.norm(before) < 0.05


def test_a_layer_that_reads_an_output_of_the_part(tmp_path):
    """The stem's map is an output in this layout, and the next convolution reads it."""
    model = load("edge_sam_dyt_hq", seed=0, config=TINY)
    bundle = build(model, "onnx", tmp_path / "b", proof="off", pictures=PICTURES, precision="int8", io="edgesam-dyt")
    assert bundle.read_json("parity.json")["verdict"] == "not verified"
    assert executed(bundle.path / "encoder.onnx", tmp_path)["QLinearConv"] > 10


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
