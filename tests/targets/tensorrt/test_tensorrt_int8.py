"""int8 for TensorRT: symmetric, by channel, zero point 0, and around nothing but layers with weights."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import numpy_helper
from passes.programs import parsed
from scenes import picture

from edgesam_deploy.builder import build
from edgesam_deploy.errors import UsageError
from edgesam_deploy.passes.execute import relative_l2, run_program
from edgesam_deploy.passes.islands import MARK
from edgesam_deploy.targets import make_target
from edgesam_deploy.targets.tensorrt.quantize import LEAST, quantise

TEXT = """part (float[1,8,6,6] x) => (float[1,8,6,6] y)
    <float[8,8,1,1] w = {%s}, float[8] b = {1, 2, 3, 4, 5, 6, 7, 8}, float[8,8,1,1] v = {%s}> {
        a = Conv(x, w, b) r = Relu(a) c = Conv(r, v) s = Add(c, r) y = Neg(s) }"""


@pytest.fixture
def program(rng):
    weights = [", ".join(f"{value:.6f}" for value in rng.standard_normal(64)) for _ in range(2)]
    found = parsed(TEXT % tuple(weights))
    for index, node in enumerate(found.onnx.graph):
        node.name = f"{node.op_type}_{index}"
    return found


def test_layers_and_the_other_summand_are_quantised(program, rng):
    rows = [{"x": rng.standard_normal((1, 8, 6, 6)).astype(np.float32)} for _ in range(3)]
    before = [run_program(program, row)["y"] for row in rows]
    assert quantise(program, rows) == ["Conv_0", "Conv_2"]
    graph = program.onnx.graph
    kinds = {n.name: [v.producer().op_type if v.producer() else "" for v in n.inputs] for n in graph}
    assert kinds["Conv_0"][:2] == kinds["Conv_2"][:2] == ["DequantizeLinear"] * 2
    (sums,) = (kinds[n.name] for n in graph if n.op_type == "Add")
    assert sorted(sums) == ["Conv", "DequantizeLinear"]  # the sum joins the kernel of the convolution before it
    pairs = [n for n in graph if n.op_type == "QuantizeLinear"]
    assert len(pairs) == 4  # x and w, r (once for both that read it) and v
    for node in pairs:
        scale, zero = (v.const_value.numpy() for v in node.inputs[1:])
        assert zero.dtype == np.int8
        assert not zero.any()
        assert scale.shape in ((), (8,))
        np.testing.assert_array_equal(scale, scale.astype(np.float16).astype(np.float32))
    for row, expected in zip(rows, before, strict=True):
        assert relative_l2(expected, run_program(program, row)["y"]) < 0.03


def test_a_marked_layer_is_left_alone_and_its_mark_is_spent(program, rng):
    first = next(node for node in program.onnx.graph if node.op_type == "Conv")
    first.metadata_props[MARK] = "conv2d"
    assert quantise(program, [{"x": rng.standard_normal((1, 8, 6, 6)).astype(np.float32)}]) == ["Conv_2"]
    assert not any(MARK in node.metadata_props for node in program.onnx.graph)  # or the cast would make it fp32


def test_a_dead_channel_has_a_scale_that_half_holds(program, rng):
    weight = program.onnx.graph.initializers["v"]
    array = weight.const_value.numpy().copy()
    array[3] = 0
    weight.const_value = ir.Tensor(array, name="v")
    quantise(program, [{"x": rng.standard_normal((1, 8, 6, 6)).astype(np.float32)}])
    node = next(n for n in program.onnx.graph if n.op_type == "QuantizeLinear" and n.inputs[0].name == "v")
    assert node.inputs[1].const_value.numpy()[3] == np.float16(LEAST)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"calibration": "."}, "takes none"), ({"precision": "int8", "opset": 18}, "needs 19"),
     ({"precision": "int8", "calibration": "/nowhere"}, "no such folder")],
)  # fmt: skip
def test_options(options, words):
    with pytest.raises(UsageError, match=words):
        make_target("tensorrt", **options)


@pytest.fixture(scope="module")
def bundle(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("int8") / "out"
    return build(
        tiny_model, "tensorrt", folder, proof="off", pictures={"scene": picture(150, 225, 10)}, precision="int8"
    )


def test_a_bundle_in_int8(bundle):
    parity = bundle.read_json("parity.json")
    assert parity["verdict"] == "not verified"  # what 8 bit costs depends on the weights
    said = bundle.read_json("calibration.json")
    assert said["source"] == bundle.manifest["options"]["calibration"] == "shipped photographs"
    parts = bundle.read_json("build_engine.json")["parts"]
    assert {name: part["precision"] for name, part in parts.items()} == {
        "image_encoder": "int8",
        "mask_decoder": "fp16",
    }
    status = {row["status"] for part in bundle.read_json("ops.json")["parts"].values() for row in part["rows"]}
    assert status == {"supported"}
    encoder, decoder = (onnx.load(bundle.part(part)) for part in ("image_encoder", "mask_decoder"))
    assert "QuantizeLinear" not in {node.op_type for node in decoder.graph.node}
    weights = {w.name: numpy_helper.to_array(w) for w in encoder.graph.initializer}
    made = {node.output[0]: node for node in encoder.graph.node}
    pairs = [node for node in encoder.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert all(not weights[node.input[2]].any() and weights[node.input[2]].dtype == np.int8 for node in pairs)
    assert all(weights[node.input[1]].dtype == np.float16 for node in pairs)
    for node in encoder.graph.node:
        sources = [made[name].op_type for name in node.input if name in made]
        if node.op_type == "Conv":
            assert sources[:2] == ["DequantizeLinear"] * 2
            assert weights[made[node.input[1]].input[1]].size > 1
        elif node.op_type in ("LayerNormalization", "Softmax", "Gelu", "ReduceMean"):
            assert "DequantizeLinear" not in sources


def test_a_wrong_zero_point_is_seen_in_the_operator_report(bundle, tmp_path):
    """QNN's zero points are not TensorRT's: one that is not 0 is refused by the table."""
    from edgesam_deploy.ops import parts_report

    model = onnx.load(bundle.part("image_encoder"))
    zero = next(node.input[2] for node in model.graph.node if node.op_type == "QuantizeLinear")
    held = next(weight for weight in model.graph.initializer if weight.name == zero)
    array = numpy_helper.to_array(held)
    held.CopyFrom(numpy_helper.from_array(np.full(array.shape, 3, np.int8), zero))
    onnx.save(model, tmp_path / "encoder.onnx")
    rows = parts_report("tensorrt", {"e": tmp_path / "encoder.onnx"}, rules="tensorrt_10")["parts"]["e"]["rows"]
    refused = [row for row in rows if row["status"] == "unsupported"]
    assert refused
    assert all("input 2 is 3" in row["reason"] for row in refused)


def test_onnx_runtime_runs_it(bundle):
    session = onnxruntime.InferenceSession(str(bundle.part("image_encoder")), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"image": np.ones((1, 3, 256, 256), np.float32)})
    assert np.isfinite(found).all()
