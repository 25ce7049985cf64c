"""The shipped rule tables: their words are their runtimes' own, their remedies exist, and remove what they claim to."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import pytest
from onnx import parser

from edgesam_deploy.errors import UnknownName
from edgesam_deploy.optimizer import as_program, run_passes
from edgesam_deploy.passes import aten
from edgesam_deploy.passes import onnx as onnx_passes
from edgesam_deploy.targets.rules import ALIASES, REPORTS, Rule, Tensor, Use, load_table, report_table, table_names

HEADER = '<ir_version: 9, opset_import: ["": 20]>\n'
# operator and pass -> a graph in which the pass removes the operator, or makes it conform
WITNESSES = {
    ("Shape", "fold_shapes"): "net (float[2,3] x) => (int64[2] y) { s = Shape (x)  y = Add (s, s) }",
    ("Size", "fold_shapes"): "net (float[2,3] x) => (int64 y) { s = Size (x)  y = Add (s, s) }",
    ("ConstantOfShape", "fold_constants"):
        "net (float[2,3] x) => (float[2,3] y) { s = Shape (x)  c = ConstantOfShape (s)  y = Add (x, c) }",
    ("Range", "fold_constants"): """net (int64[6] x) => (int64[6] y) <int64 z = {0}, int64 o = {1}, int64 n = {6}> {
        r = Range (z, n, o)  y = Add (r, x) }""",
    ("Where", "fold_constants"): """net (float[2,3] x, float[1] z) => (float[2,3] y) <int64 o = {1}> {
        s = Shape (x)  e = Equal (s, o)  w = Where (e, o, s)  y = Expand (z, w) }""",
    ("If", "fold_branches"): """net (float[2] x) => (float[2] y) <bool c = {1}> {
        y = If (c) <then_branch = a () => (float[2] p) { p = Relu (x) }, else_branch = b () => (float[2] q) {
        q = Neg (x) }> }""",
    ("OneHot", "legalize_one_hot"): """net (int64[3] x) => (float[3,4] y) <int64 d = {4}, float[2] v = {0.0, 1.0}> {
        y = OneHot (x, d, v) }""",
    ("Expand", "eliminate_expand"): """net (float[1,3] x, float[2,3] z) => (float[2,3] y) <int64[2] s = {2, 3}> {
        e = Expand (x, s)  y = Add (e, z) }""",
    ("Tile", "eliminate_expand"): """net (float[1,3] x, float[2,3] z) => (float[2,3] y) <int64[2] s = {2, 1}> {
        e = Tile (x, s)  y = Add (e, z) }""",
    ("Tile", "eliminate_identity"): """net (float[1,3] x) => (float[1,3] y) <int64[2] s = {1, 1}> {
        e = Tile (x, s)  y = Relu (e) }""",
    ("Identity", "eliminate_identity"): "net (float[2] x) => (float[2] y) { e = Identity (x)  y = Relu (e) }",
    ("CastLike", "legalize_cast_like"): """net (float[2] x, int32[2] z) => (int32[2] y) {
        e = CastLike (x, z)  y = Add (e, z) }""",
    ("Gather", "legalize_gather"): """net (float[4,3] x) => (float[3] y) <int64 i = {2}> { y = Gather (x, i) }""",
    ("Erf", "fuse_gelu"): """net (float[2] x) => (float[2] y)
        <float r = {1.4142135}, float o = {1.0}, float h = {0.5}> {
        a = Div (x, r)  b = Erf (a)  c = Add (b, o)  d = Mul (x, c)  y = Mul (d, h) }""",
    ("Gelu", "set_opset"): "net (float[2] x) => (float[2] y) { y = Gelu (x) }",
}  # fmt: skip
# onnx-level passes that mend a condition, by it: a graph, and what is wrong in it before
MENDED = {
    "dynamic": ("freeze_dims", "net (float[n,3] x) => (float[n,3] y) { y = Relu (x) }"),
    "constant": ("fold_shapes", """net (float[2,3] x, float[6] z) => (float[2,3] y) {
        s = Shape (x)  y = Reshape (z, s) }"""),
    "value": ("fold_constants", """net (float[2,3] x) => (float[2,3] y) <int64[2] a = {0, 0}, int64[2] b = {1, 1}> {
        s = Add (a, b)  y = Tile (x, s) }"""),
    "int64": ("narrow_int64_data", """net (int64[2] x) => (float[2] y) <int64[2] a = {0, 1}> {
        s = Add (x, a)  y = Cast <to = 1> (s) }"""),
}  # fmt: skip


def rules() -> Iterator[tuple[str, Rule]]:
    """Every rule with its table; those that a table takes over from another once."""
    for name in table_names():
        table = load_table(name)
        if table.extends is None:
            yield from ((name, rule) for rule in table.rules)


def run(text: str, name: str):
    """The operators of the graph, and the graph, after the pass called ``name``."""
    model = onnx.shape_inference.infer_shapes(parser.parse_model(HEADER + text), data_prop=True)
    made = {
        "set_opset": lambda: onnx_passes.set_opset(13), "freeze_dims": lambda: onnx_passes.freeze_dims({"n": 2}),
    }  # fmt: skip
    rewrite = made[name]() if name in made else getattr(onnx_passes, name)
    import onnx_ir as ir

    program = as_program("part", ir.from_proto(model), {"n": 2})
    after, _ = run_passes(program, (rewrite, onnx_passes.eliminate_dead), "fast")
    return after


@pytest.mark.parametrize("key", sorted(WITNESSES), ids="-".join)
def test_the_pass_removes_the_operator(key):
    operator, name = key
    text = WITNESSES[key]
    assert operator in text
    assert operator not in run(text, name).operators()


def test_every_onnx_level_remedy_has_a_witness():
    named = {
        (rule.op, name)
        for _, rule in rules()
        for name in (rule.fixed_by or "").split(", ")
        if name in onnx_passes.__all__ and name not in aten.__all__
    }
    assert named <= set(WITNESSES)


def test_every_remedy_is_a_pass():
    known = {*aten.__all__, *onnx_passes.__all__}
    for name in table_names():
        table = load_table(name)
        assert set(table.remedies.values()) <= known
        assert {rule.fixed_by for rule in table.rules} - {None} <= known


def test_conditions_are_mended():
    after = {condition: run(text, name) for condition, (name, text) in MENDED.items()}
    (relu,) = after["dynamic"].onnx.graph
    assert list(relu.outputs[0].shape) == [2, 3]
    (reshape,) = [node for node in after["constant"].onnx.graph if node.op_type == "Reshape"]
    assert reshape.inputs[1].const_value is not None
    (tile,) = after["value"].onnx.graph
    assert tile.inputs[1].const_value.numpy().tolist() == [1, 1]
    add = next(node for node in after["int64"].onnx.graph if node.op_type == "Add")
    assert {value.dtype.name for value in add.inputs} == {"INT32"}
    remedies = {c: n for name in table_names() for c, n in load_table(name).remedies.items() if c != "rank"}
    assert remedies == {condition: name for condition, (name, _) in MENDED.items()}


def test_every_report_has_its_table():
    assert sorted(REPORTS.values()) == table_names()
    assert set(ALIASES.values()) <= set(REPORTS)
    assert report_table("npu-rknn") is report_table("rknn") is load_table("npu_rknn")
    with pytest.raises(UnknownName, match="did you mean"):
        report_table("tensorrt12")


@pytest.mark.parametrize("name", table_names())
def test_every_row_says_where_it_comes_from(name):
    table = load_table(name)
    assert table.version
    assert table.source
    assert table.generated_by
    assert all(rule.source or table.source for rule in table.rules)
    assert table.newest_opset


@pytest.mark.parametrize("name", table_names())
def test_an_operator_without_a_rule_is_unknown(name):
    use = Use("NoSuchOperator", "", 13, inputs=(Tensor("float32", (1, 2)),), outputs=(Tensor("float32", (1, 2)),))
    assert load_table(name).judge(use).status == "unknown"


def test_an_unverified_table_is_sure_of_nothing():
    def judged(table, op):
        use = Use(op, "", 20, inputs=(Tensor("float32", (1, 2)),), outputs=(Tensor("float32", (1, 2)),))
        return load_table(table).judge(use)

    assert judged("tensorrt_10", "Relu").status == "supported"
    assert judged("tensorrt_11", "Relu")[:2] == ("partial", load_table("tensorrt_11").unverified)
    assert judged("tensorrt_10", "Unique").status == "unsupported"
    assert judged("tensorrt_11", "Unique").status == "unknown"
    assert "10.15" in judged("tensorrt_11", "Relu").source


@pytest.mark.parametrize("name", ["tflite_builtin", "tflite_gpu", "xnnpack", "npu_mediatek"])
def test_what_operators_become_in_tflite_is_in_its_schema(name):
    schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
    known = {word for word in dir(schema.BuiltinOperator) if word.isupper()}
    assert {rule.lowers_to for rule in load_table(name).rules} - {""} <= known


# ------------------------------------------------------------------------------------------- what the tables must say


def single(op: str, *inputs: Tensor, **attributes) -> Use:
    return Use(op, "", 11, inputs=inputs, outputs=(Tensor("float32", inputs[0].shape),), attributes=attributes)


FLAT, MAP = Tensor("float32", (1, 6, 64)), Tensor("float32", (1, 64, 8, 8))
SIZES = Tensor("float32", (4,), constant=True)
ONES = Tensor("int64", (5,), constant=True, values=(1,) * 5)


@pytest.mark.parametrize(
    ("target", "use", "status", "fixed_by"),
    [
        ("tv", single("Sin", FLAT), "unsupported", "hoist_positional_encoding"),
        ("tv", single("Relu", Tensor("float32", (1, None, 64))), "unsupported", "freeze_dims"),
        ("tv", single("Relu", Tensor("float32", (1,) * 5)), "unsupported", "limit_rank"),
        ("rknn", single("Not", Tensor("bool", (1, 6))), "unsupported", "boolean_to_float"),
        ("rknn", single("Slice", Tensor("float32", (2, 6))), "unsupported", None),
        ("qnn", single("Erf", FLAT), "unsupported", "fuse_gelu"),
        ("qnn", single("NonZero", FLAT), "unsupported", None),
        ("qnn", single("Transpose", Tensor("float32", (1, 2, 2, 4, 8, 8))), "unsupported", "limit_rank"),
        ("qnn", single("Tile", Tensor("float32", (1, 1, 2, 4, 4)), ONES), "unsupported", "eliminate_identity"),
        ("qnn", single("Relu", Tensor("float32", (1, None))), "unsupported", "freeze_dims"),
        ("qnn", single("Sin", FLAT), "supported", None),
        ("coreml", single("Resize", MAP, SIZES, mode="cubic"), "unsupported", "legalize_bicubic"),
        ("tflite", single("Resize", MAP, SIZES, mode="cubic"), "partial", "legalize_bicubic"),
        ("tflite-gpu", single("Resize", MAP, SIZES, mode="cubic"), "unsupported", "legalize_bicubic"),
        ("tflite-gpu", single("Relu", Tensor("float32", (1,) * 5)), "unsupported", "limit_rank"),
        ("tflite-gpu", single("GatherND", FLAT), "unsupported", None),
        ("coreml-ane-m1", single("Sin", FLAT), "unsupported", "hoist_positional_encoding"),
        ("coreml-ane-m3", single("Sin", FLAT), "supported", None),
        ("coreml-ane-m1", single("Resize", MAP, SIZES, mode="linear"), "partial", None),
        ("coreml-ane-m2", single("Resize", MAP, SIZES, mode="linear"), "supported", None),
        ("tensorrt10", single("Resize", MAP, SIZES, mode="cubic", coordinate_transformation_mode="half_pixel"),
         "unsupported", "legalize_bicubic"),
        ("xnnpack", single("MatMul", FLAT, FLAT), "partial", None),
    ],
    ids=lambda value: value.op if isinstance(value, Use) else None,
)  # fmt: skip
def test_what_is_known_of_these_runtimes(target, use, status, fixed_by):
    verdict = report_table(target).judge(use)
    assert (verdict.status, verdict.fixed_by) == (status, fixed_by)


def test_qnn_takes_no_cast_from_bool_to_int16():
    boolean = Tensor("bool", (1, 6))
    for wanted, status in (("int16", "unsupported"), ("int32", "supported"), ("float32", "supported")):
        use = Use("Cast", "", 17, inputs=(boolean,), outputs=(Tensor(wanted, (1, 6)),))
        assert report_table("qnn").judge(use).status == status
