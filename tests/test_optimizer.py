"""Any ONNX file through a target's onnx-level passes: what comes out, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import typer
from typer.testing import CliRunner

from edgesam_deploy import optimizer
from edgesam_deploy.cli import optimize as command
from edgesam_deploy.errors import OutputError, PassError, UnknownName, UnsupportedOperators, UsageError
from edgesam_deploy.optimizer import optimize

GONE = {"Shape", "Gather", "OneHot", "Tile", "Where", "ConstantOfShape", "Expand", "If", "NonZero"}
TEXT = """<ir_version: 9, opset_import: ["" : 18, "own" : 1]>
    part (float[1,num_points,2] point_coords, float[1,num_points] point_labels, float[batch,4] z, int64[3] i)
    => (float[r,c] y, float[p,q] w) {
        s = Shape(point_labels)
        one = Constant<value_int = 1>()
        n = Gather(s, one)
        axis = Constant<value_ints = [0]>()
        u = Unsqueeze(n, axis)
        four = Constant<value_ints = [2]>()
        t = Concat<axis = 0>(u, four)
        y = Reshape(point_coords, t)
        k = Gather(z, zero)
        g = Unsqueeze(k, axis)
        j = Cast<to = 1>(i)
        h = ReduceSum(j)
        a = Mul(g, h)
        w = own.twice(a)
    }
    <domain: "own", opset_import: ["" : 18]> twice (x) => (y) { y = Add(x, x) }"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    model = onnx.parser.parse_model(TEXT)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(0), "zero"))
    onnx.save(model, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def run(path: Path, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, inputs)


def inputs(points: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "point_coords": rng.standard_normal((1, points, 2)).astype(np.float32),
        "point_labels": np.ones((1, points), np.float32),
        "z": rng.standard_normal((2, 4)).astype(np.float32),
        "i": np.array([3, 4, 5]),
    }


@pytest.mark.parametrize(
    "options", [{}, {"int64": "narrow"}, {"opset": 13}, {"opset": 11}, {"opset": 22}, {"proof": "full"}]
)
def test_static_and_clean(path: Path, tmp_path: Path, options: dict) -> None:
    out = tmp_path / "out.onnx"
    found = optimize(path, out, points=3, dims={"batch": 2}, **options)
    left = {n.op_type for n in onnx.load(out).graph.node}
    assert not GONE & left
    assert "Unsqueeze" not in left or found.opset
    assert (found.nodes, found.nodes_before) == (sum(found.operators.values()), 14)
    assert found.opset == options.get("opset", 18)
    assert found.frozen == {"num_points": 3, "batch": 2}
    for before, after in zip(run(path, inputs()), run(out, inputs()), strict=True):
        np.testing.assert_allclose(before, after, rtol=1e-5)
    assert [d.dim_value for d in onnx.load(out).graph.input[0].type.tensor_type.shape.dim] == [1, 3, 2]


def test_dimensions_may_stay_dynamic(path: Path, tmp_path: Path) -> None:
    optimize(path, tmp_path / "out.onnx")
    for points in (1, 4):
        before, after = (run(p, inputs(points)) for p in (path, tmp_path / "out.onnx"))
        np.testing.assert_allclose(before[0], after[0])


def test_without_proof_the_steps_are_counted_alike(path: Path, tmp_path: Path) -> None:
    proved = optimize(path, tmp_path / "a.onnx", points=3)
    quick = optimize(path, tmp_path / "b.onnx", points=3, proof="off")
    assert [(s.name, s.sites, s.operators_before, s.operators_after) for s in proved.steps] == [
        (s.name, s.sites, s.operators_before, s.operators_after) for s in quick.steps
    ]
    assert all(s.error is None for s in quick.steps)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_force_is_labelled(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    found = optimize(path, out, points=3, int64="force")
    assert not found.standard
    model = onnx.load(out)
    assert onnx.TensorProto.INT64 not in {t.data_type for t in model.graph.initializer}
    assert "not standard ONNX" in {p.key: p.value for p in model.metadata_props}["edgesam_deploy.int64"]


def test_external_data(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "ext"
    folder.mkdir()
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 20]> part (float[2] x) => (float[300,2] y) { y = Mul(x, w) }'
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((300, 2), np.float32), "w"))
    onnx.save(model, folder / "m.onnx", save_as_external_data=True, location="w.bin")
    monkeypatch.setattr(optimizer, "EXTERNAL_ABOVE", 100)
    found = optimize(folder / "m.onnx", tmp_path / "out.onnx")
    assert found.external_data
    assert (tmp_path / "out.onnx.data").is_file()
    assert run(tmp_path / "out.onnx", {"x": np.ones(2, np.float32)})[0].shape == (300, 2)
    (folder / "w.bin").unlink()
    with pytest.raises(UsageError, match="not a valid ONNX model"):
        optimize(folder / "m.onnx", tmp_path / "out2.onnx")


@pytest.mark.parametrize("content", [b"", b"garbage" * 100, b"\x08\x07", b"\x00" * 50])
def test_garbage(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.onnx").write_bytes(content)
    with pytest.raises(UsageError, match=r"bad\.onnx is not"):
        optimize(tmp_path / "bad.onnx", tmp_path / "out.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["bad.onnx"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"points": 0}, UsageError, "size 0 for num_points"),
        ({"dims": {"bach": 2}}, UnknownName, "did you mean batch"),
        ({"target": "onyx"}, UnknownName, "did you mean onnx"),
        ({"int64": "all"}, UsageError, "keep, narrow, force"),
        ({"opset": 9}, UsageError, "11 to 23"),
    ],
)
def test_what_cannot_be(path: Path, tmp_path: Path, options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        optimize(path, tmp_path / "out.onnx", **options)
    assert not (tmp_path / "out.onnx").exists()


def test_never_overwrites(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    out.write_bytes(b"mine")
    with pytest.raises(OutputError, match="there already"):
        optimize(path, out)
    assert out.read_bytes() == b"mine"
    optimize(path, out, points=3, overwrite=True)
    for bad, message in (
        (path, "file that is read"),
        (tmp_path, "is a folder"),
        (tmp_path / "no" / "x", "no such folder"),
    ):
        with pytest.raises(OutputError, match=message):
            optimize(path, bad, overwrite=True)
    with pytest.raises(UsageError, match="no such file"):
        optimize(tmp_path / "none.onnx", tmp_path / "new.onnx")


def test_no_points_to_freeze(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 20]> part (float[n] x) => (float[n] y) { y = Sin(x) }'
    )
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(UsageError, match=r"no dynamic number of points \(dynamic: n of x\)"):
        optimize(tmp_path / "m.onnx", tmp_path / "out.onnx", points=3)


def test_a_file_that_does_not_run(tmp_path: Path) -> None:
    text = '<ir_version: 9, opset_import: ["" : 20]> part (float[n] x, float[4] w) => (float y) { y = MatMul(x, w) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    with pytest.raises(UsageError, match=r"does not run on random inputs.*\(here: n\)"):
        optimize(tmp_path / "m.onnx", tmp_path / "out.onnx")
    optimize(tmp_path / "m.onnx", tmp_path / "out.onnx", dims={"n": 4})


def test_an_operator_without_a_form(tmp_path: Path) -> None:
    text = '<ir_version: 9, opset_import: ["" : 20]> part (float[3,3] x) => (float[3,3] y) { y = Trilu(x) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    with pytest.raises(PassError, match=r"m\.onnx.*Trilu"):
        optimize(tmp_path / "m.onnx", tmp_path / "out.onnx", opset=11)


def test_command(path: Path, tmp_path: Path) -> None:
    app = typer.Typer()
    app.callback()(lambda: None)
    command.register(app)
    out = str(tmp_path / "out.onnx")
    args = ["optimize", str(path), "-o", out, "--points", "3", "--dim", "batch=2"]
    result = CliRunner().invoke(app, [*args, "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["nodes_before"] == 14
    result = CliRunner().invoke(app, [*args, "--overwrite", "--int64", "force"])
    assert "nodes instead of 14" in result.stdout
    assert "not standard ONNX" in result.stderr
    result = CliRunner().invoke(app, [*args[:-1], "batch"])
    assert isinstance(result.exception, UsageError)


LAYERS = """<ir_version: 9, opset_import: ["" : 20]>
    part (float[1,8,4,4] x, float[1,2] point_coords) => (float[1,8,4,4] y, float[1,2] phase)
    <float[8,8,1,1] w = {%s}, float turn = {0.05}> {
        a = Conv(x, w) y = Softmax<axis = 1>(a) t = Mul(point_coords, turn) phase = Sin(t) }"""


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_typed_for_tensorrt(tmp_path: Path, precision: str) -> None:
    weights = ", ".join(f"{value:.4f}" for value in np.random.default_rng(1).standard_normal(64))
    onnx.save(onnx.parser.parse_model(LAYERS % weights), tmp_path / "m.onnx")
    opset = 22 if precision == "bf16" else None  # from where on a convolution takes it
    found = optimize(tmp_path / "m.onnx", tmp_path / "out.onnx", "tensorrt", precision=precision, opset=opset)
    assert found.precision == precision
    model = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "out.onnx"))
    kinds = {v.name: v.type.tensor_type.elem_type for v in (*model.graph.value_info, *model.graph.output)}
    made = {node.op_type: kinds[node.output[0]] for node in model.graph.node}
    half = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16, "fp32": onnx.TensorProto.FLOAT}
    assert made["Conv"] == half[precision]
    assert {made["Softmax"], made["Sin"], made["Mul"]} == {onnx.TensorProto.FLOAT}  # the role of point_coords is known
    (step,) = [s for s in found.steps if s.name == "cast_to_half"] or [None]
    assert (step is None) == (precision == "fp32")
    assert step is None or 0 < step.error <= step.bound


def test_what_tensorrts_parser_ends_at_is_refused(path: Path, tmp_path: Path) -> None:
    text = """<ir_version: 9, opset_import: ["" : 18]>
        part (float[2,3] x, int64[2] size) => (float[a,b] y) { y = Reshape(x, size) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    with pytest.raises(UnsupportedOperators, match=r"input size becomes a shape .*nothing was written"):
        optimize(tmp_path / "m.onnx", tmp_path / "out.onnx", "tensorrt", proof="off")
    assert not (tmp_path / "out.onnx").exists()
    with pytest.raises(UsageError, match="--precision fp16: for onnx it is fp32"):
        optimize(path, tmp_path / "out.onnx", precision="fp16")


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"opset": 20}, {"int64": "narrow"}])
def test_the_references_decoder(tmp_path: Path, options: dict) -> None:
    """1,038 nodes with a dynamic number of points become a static graph without a shape in it."""
    reference = pytest.importorskip("benchmarks.reference_export")
    from edgesam_deploy.model.registry import load

    model = load("edge_sam", seed=0)
    path = reference.export_reference(model, "decoder", tmp_path / "decoder.onnx")
    found = optimize(path, tmp_path / "out.onnx", points=5, **options)
    assert not GONE & found.operators.keys()
    assert found.nodes < (300 if options.get("opset") else 360)
    given = {name: x.numpy() for name, x in reference.example_inputs(model, "decoder").items()}
    for before, after in zip(run(path, given), run(tmp_path / "out.onnx", given), strict=True):
        np.testing.assert_allclose(before, after, atol=1e-4 * np.abs(before).max())
