"""What quantising does for precision: corrected biases, headroom of 16-bit ranges, products of activations in float."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgesam_deploy.precision.bias_correction import rounded
from edgesam_deploy.targets.onnx import OnnxRunner
from edgesam_deploy.targets.qnn import quantize
from edgesam_deploy.targets.qnn.quantize import PER_CHANNEL, dynamic_products, quantise

pytest.importorskip("onnxruntime_qnn", reason="onnxruntime-qnn is not installed")
SHAPES = {"Conv": (8, 2, 3, 3), "ConvTranspose": (8, 8, 2, 2), "MatMul": (8, 6), "Gemm": (5, 6)}


@pytest.fixture
def layers(tmp_path):
    """x (1, 8, 6, 6) through a grouped convolution, a transposed one, a matrix product and a Gemm."""
    rng = np.random.default_rng(0)
    weights = [numpy_helper.from_array(rng.normal(0, 1, s).astype(np.float32), f"{op}.w") for op, s in SHAPES.items()]
    widths = {"Conv": 8, "ConvTranspose": 8, "MatMul": 6, "Gemm": 5}
    weights += [numpy_helper.from_array(rng.normal(0, 1, n).astype(np.float32), f"{op}.b") for op, n in widths.items()]
    weights.append(numpy_helper.from_array(np.array([144, 6]), "shape"))
    nodes = [
        helper.make_node("Conv", ["x", "Conv.w", "Conv.b"], ["a"], name="conv", group=4, pads=[1, 1, 1, 1]),
        helper.make_node(
            "ConvTranspose", ["a", "ConvTranspose.w", "ConvTranspose.b"], ["b"], name="up", strides=[2, 2]
        ),
        helper.make_node("Transpose", ["b"], ["c"], name="last", perm=[0, 2, 3, 1]),
        helper.make_node("MatMul", ["c", "MatMul.w"], ["d"], name="product"),
        helper.make_node("Add", ["d", "MatMul.b"], ["e"], name="bias"),
        helper.make_node("Reshape", ["e", "shape"], ["f"], name="rows"),
        helper.make_node("Gemm", ["f", "Gemm.w", "Gemm.b"], ["y"], name="gemm", transB=1),
    ]
    ends = [helper.make_tensor_value_info("x", 1, [1, 8, 6, 6]), helper.make_tensor_value_info("y", 1, [144, 5])]
    graph = helper.make_graph(nodes, "layers", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, tmp_path / "layers.onnx")
    return tmp_path / "layers.onnx"


def rows_of(count, seed=1):
    """Inputs of which the mean is most, as tokens and norms' outputs have it."""
    rng = np.random.default_rng(seed)
    mean = rng.normal(0, 2, (1, 8, 1, 1))
    return [{"x": (mean + rng.normal(0, 0.2, (1, 8, 6, 6))).astype(np.float32)} for _ in range(count)]


def test_rounding_is_the_quantisers_own(layers):
    before = {w.name: numpy_helper.to_array(w) for w in onnx.load(layers).graph.initializer}
    quantise(layers, rows_of(2), 16)
    held = {w.name: numpy_helper.to_array(w) for w in onnx.load(layers).graph.initializer}
    for op in SHAPES:
        axis = PER_CHANNEL.get(op)
        scale, zero = (held[f"{op}.w_{kind}"].astype(np.float32) for kind in ("scale", "zero_point"))
        if axis is not None:
            scale, zero = (
                value.reshape([-1 if i == axis else 1 for i in range(len(SHAPES[op]))]) for value in (scale, zero)
            )
        stored = (held[f"{op}.w_quantized"].astype(np.float32) - zero) * scale
        assert np.abs(stored - before[f"{op}.w"]).max() > 0
        np.testing.assert_allclose(rounded(before[f"{op}.w"], axis), stored, atol=1e-6)


@pytest.mark.parametrize("bits", [8, 16])
def test_biases_take_up_what_rounding_shifts_the_mean_by(layers, monkeypatch, tmp_path, bits):
    rows, plain = rows_of(4), tmp_path / "plain.onnx"
    plain.write_bytes(layers.read_bytes())
    unseen = rows_of(6)[4:]
    wanted = [OnnxRunner(layers)(row)["y"] for row in unseen]
    quantise(layers, rows, bits)
    monkeypatch.setattr(quantize, "bias_corrected", lambda *_: 0)
    quantise(plain, rows, bits)

    def off(path):
        run = OnnxRunner(path)
        return np.abs(np.mean([run(row)["y"] - y for row, y in zip(unseen, wanted, strict=True)], (0, 1))).max()

    assert off(layers) < off(plain) / (4 if bits == 16 else 1.5)


def test_ranges_of_16_bit_have_room_for_what_calibration_did_not_see(layers, tmp_path):
    narrow = tmp_path / "narrow.onnx"
    narrow.write_bytes(layers.read_bytes())
    rows = rows_of(2)
    beyond = {"x": rows[0]["x"] * 1.8}
    wanted = OnnxRunner(layers)(beyond)["y"]
    quantise(layers, rows, 16)
    quantise(narrow, rows, 8)
    errors = [
        np.linalg.norm(OnnxRunner(path)(beyond)["y"] - wanted) / np.linalg.norm(wanted) for path in (layers, narrow)
    ]
    assert errors[0] < 0.02 < 0.1 < errors[1]


def test_products_of_activations_and_the_softmax_between_are_left_float():
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["q"], name="projection"),
        helper.make_node("MatMul", ["q", "x"], ["scores"], name="scores"),
        helper.make_node("Softmax", ["scores"], ["share"], name="softmax"),
        helper.make_node("MatMul", ["share", "q"], ["a"], name="mixing"),
        helper.make_node("Softmax", ["a"], ["y"], name="classes"),
    ]
    ends = [helper.make_tensor_value_info(name, 1, [4, 4]) for name in "xy"]
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    assert dynamic_products(helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight])) == [
        "scores", "softmax", "mixing",
    ]  # fmt: skip
