"""The same program in older and newer operator sets; what has no form there is named."""

from __future__ import annotations

import onnx
import pytest
from passes.programs import counts, node_named, parsed, rewritten

from edgesam_deploy.errors import PassError, UsageError
from edgesam_deploy.passes.engine import Engine
from edgesam_deploy.passes.onnx import set_opset
from edgesam_deploy.passes.program import Program

W = """float[4] w = {1, 2, 3, 4}, float[4] b = {5, 6, 7, 9}, int64[1] last = {-1}, int64[2] two = {0, 2},
    int64[2] parts = {1, 3}"""
DOWN = [  # body over x (2, 3, 4), result's shape, opset before and after, operators after
    ("y = Gelu(x)", "2,3,4", 20, 19, {"Mul": 3, "Erf": 1, "Add": 1}),
    ('y = Gelu<approximate = "tanh">(x)', "2,3,4", 20, 11, {"Mul": 6, "Tanh": 1, "Add": 2}),
    ("y = LayerNormalization(x, w, b)", "2,3,4", 17, 16,
     {"ReduceMean": 2, "Sub": 1, "Mul": 2, "Add": 2, "Sqrt": 1, "Div": 1}),
    ("y = LayerNormalization<axis = 1, epsilon = 0.1>(x, w)", "2,3,4", 20, 11,
     {"ReduceMean": 2, "Sub": 1, "Mul": 2, "Add": 1, "Sqrt": 1, "Div": 1}),
    ("y = ReduceMean(x, last)", "2,3,1", 18, 17, {"ReduceMean": 1}),
    ("y = ReduceMax<keepdims = 0>(x, two)", "3", 20, 13, {"ReduceMax": 1}),
    ("y = ReduceSum(x, last)", "2,3,1", 18, 11, {"ReduceSum": 1}),
    ("y = ReduceSum(x, last)", "2,3,1", 18, 13, {"ReduceSum": 1}),
    ("y = ReduceMean<noop_with_empty_axes = 1>(x)", "2,3,4", 18, 17, {"Identity": 1}),
    ("y = ReduceMean(x)", "1,1,1", 18, 17, {"ReduceMean": 1}),
    ("y = Unsqueeze(x, two)", "1,2,1,3,4", 20, 12, {"Unsqueeze": 1}),
    ("a = ReduceMean(x, last) y = Squeeze(a, last)", "2,3", 20, 11, {"ReduceMean": 1, "Squeeze": 1}),
    ("y = Softmax<axis = 2>(x)", "2,3,4", 20, 11, {"Softmax": 1}),
    ("y = Softmax(x)", "2,3,4", 13, 12, {"Softmax": 1}),
    ("y = Softmax<axis = 1>(x)", "2,3,4", 13, 12, {"Transpose": 2, "Softmax": 1}),
    ("y = LogSoftmax<axis = 0>(x)", "2,3,4", 13, 11, {"Transpose": 2, "LogSoftmax": 1}),
    ("y = HardSwish(x)", "2,3,4", 14, 13, {"HardSigmoid": 1, "Mul": 1}),
    ("y = Mish(x)", "2,3,4", 18, 17, {"Softplus": 1, "Tanh": 1, "Mul": 1}),
    ("p, q = Split<axis = 2>(x, parts) y = Neg(q)", "2,3,3", 20, 11, {"Split": 1, "Neg": 1}),
    ("p, q = Split<axis = 2, num_outputs = 2>(x) y = Neg(q)", "2,3,2", 18, 13, {"Split": 1, "Neg": 1}),
    ("g = GreaterOrEqual(x, w) y = Cast<to = 1>(g)", "2,3,4", 20, 11, {"Less": 1, "Not": 1, "Cast": 1}),
    ("g = LessOrEqual(x, w) y = Cast<to = 1>(g)", "2,3,4", 20, 11, {"Greater": 1, "Not": 1, "Cast": 1}),
    ("y = Resize<mode = \"linear\">(x, , s)", "2,6,8", 18, 11, {"Resize": 1}),
    ("y = Unsqueeze(x, two)", "1,2,1,3,4", 20, 13, {"Unsqueeze": 1}),
    ("q = QuantizeLinear<saturate = 1>(x, sc, zp) y = DequantizeLinear(q, sc, zp)", "2,3,4", 19, 13,
     {"QuantizeLinear": 1, "DequantizeLinear": 1}),
    ("y = Reshape<allowzero = 0>(x, shape)", "3,8", 20, 13, {"Reshape": 1}),
    ("y = Cast<to = 1, saturate = 1>(x)", "2,3,4", 19, 13, {"Cast": 1}),
    ("n = Shape<start = 0>(x) y = Cast<to = 1>(n)", "3", 15, 13, {"Shape": 1, "Cast": 1}),
    ("y = Resize<antialias = 0>(x, , s)", "2,6,8", 18, 13, {"Resize": 1}),
    ("p, q = Split<num_outputs = 2>(x) y = Neg(q)", "1,3,4", 18, 13, {"Split": 1, "Neg": 1}),
    ("p, q = Split<num_outputs = 2>(x) y = Neg(q)", "1,3,4", 20, 18, {"Split": 1, "Neg": 1}),
    ("t = Mul(x, tiny) y = LayerNormalization(t, w)", "2,3,4", 17, 16,
     {"ReduceMean": 2, "Sub": 1, "Mul": 3, "Add": 1, "Sqrt": 1, "Div": 1}),  # so small that the default eps counts
    ("a = Add(x, w) c = Transpose<perm = [0, 2, 1]>(a) y = MatMul(x, c)", "2,3,3", 20, 11,
     {"Add": 1, "Transpose": 1, "MatMul": 1}),
]  # fmt: skip


def program(body: str, shape: str, opset: int) -> Program:
    more = "float[3] s = {1, 2, 2}, float tiny = {0.001}, float sc = {0.1}, uint8 zp = {128}, int64[2] shape = {3, 8}"
    return parsed(f"part (float[2,3,4] x) => (float[{shape}] y) <{W}, {more}> {{ {body} }}", opset)


@pytest.mark.parametrize(("body", "shape", "before", "after", "left"), DOWN)
def test_down(body: str, shape: str, before: int, after: int, left: dict[str, int]) -> None:
    engine = Engine("fast")
    found = engine.run(program(body, shape, before), (set_opset(after),))
    assert engine.steps[0].sites > 0
    assert counts(found) == left
    assert found.onnx.opset_imports[""] == after
    assert engine.run(found, (set_opset(after),)) is found
    back = engine.run(found, (set_opset(20),))
    assert back.onnx.opset_imports[""] == 20


@pytest.mark.parametrize(
    ("body", "before", "after", "sites"),
    [
        ("a = Cast<to = 1, saturate = 1>(x) y = Relu(a)", 19, 13, 1),
        ("a = Resize(x, , s) d = Resize<antialias = 0>(x, , s) y = Add(a, d)", 19, 11, 2),
        ("a = Resize(x, , s) d = Resize<antialias = 0>(x, , s) y = Add(a, d)", 19, 13, 1),
        ("a = ReduceSum(x, last) d = ReduceMean(x, last) y = Add(a, d)", 18, 13, 1),
        ("y = Relu(x)", 20, 14, 1),  # for the number alone
    ],
)
def test_sites_are_the_nodes_that_changed(body: str, before: int, after: int, sites: int) -> None:
    shape = "2,6,8" if "Resize" in body else "2,3,1" if "Reduce" in body else "2,3,4"
    rewritten(program(body, shape, before), set_opset(after), sites)


def test_axes_become_attributes() -> None:
    found = Engine("fast").run(program("y = ReduceMean(x, last)", "2,3,1", 18), (set_opset(17),))
    node = node_named(found, "ReduceMean")
    assert (list(node.attributes["axes"].as_ints()), len(node.inputs)) == ([-1], 1)


@pytest.mark.parametrize(
    ("body", "after", "message"),
    [
        ("y = Reshape<allowzero = 1>(x, shape)", 13, "allowzero"),
        ("t = Trilu(x) y = Identity(t)", 13, "Trilu.*no such operator"),
        ("k = Abs(last) y = ReduceMean(x, k)", 17, "computed"),
        ("p, q, r = Split<axis = 2, num_outputs = 3>(x) y = Identity(p)", 13, "different sizes"),
        ("y, m = LayerNormalization(x, w) z = Neg(m)", 16, "deviation is read"),
        ("g = Sin(x) r = Squeeze(g) y = Softmax<axis = 1>(r)", 12, "rank, which is unknown"),
        ("r = Squeeze(x) y = LayerNormalization(r, w)", 16, "rank is unknown"),
        ("y = Pad(x, two, , last)", 13, "takes 2 to 3 inputs, not 4"),
        ("y = GridSample(x, x)", 19, "something else before opset 20"),
        ("y = RoiAlign(x, x, last)", 15, "something else before opset 16"),
        ("y = Dropout(x)", 11, "something else before opset 12"),
        ("r = Squeeze(x) y = Gelu(r)", 19, "type of its input"),
    ],
)
def test_what_has_no_form_is_named(body: str, after: int, message: str) -> None:
    text = f"part (float[2,3,4] x) => (float y) <{W}, int64[3] shape = {{2, 3, 4}}> {{ {body} }}"
    with pytest.raises(PassError, match=message):
        set_opset(after)(parsed(text, 20, infer=False))


@pytest.mark.parametrize("after", [11, 12])
def test_bodies_that_would_have_to_change_are_named(after: int) -> None:
    text = """part (float[2] x, bool f) => (float[2] y) {
        y = If (f) <then_branch = p () => (float[2] u) { u = HardSwish(x) },
            else_branch = q () => (float[2] v) { v = Neg(x) }> }"""
    with pytest.raises(PassError, match="HardSwish inside of If"):
        set_opset(after)(parsed(text, 20))


def test_a_type_that_the_older_operator_does_not_take() -> None:
    text = "part (float[2] x) => (float[2] y) { i = Cast<to = 6>(x) r = Relu(i) y = Cast<to = 1>(r) }"
    with pytest.raises(PassError, match=r"does not take tensor\(int32\)"):
        set_opset(13)(parsed(text, 14))


def test_a_group_norm_meant_something_else() -> None:
    text = """part (float[1,4,2] x) => (float[1,4,2] y) <float[4] w = {1, 2, 3, 4}, float[4] b = {5, 6, 7, 9}> {
        y = GroupNormalization<num_groups = 2>(x, w, b) }"""
    with pytest.raises(PassError, match="something else before opset 21"):
        set_opset(20)(parsed(text, 21))


@pytest.mark.parametrize("version", range(11, 24))
def test_the_file_format_is_the_one_that_came_with_the_opset(version: int) -> None:
    """A reader of that age refuses a newer format, whatever the operators."""
    official = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", version)])
    text = "part (float[2] x) => (float[2] y) { y = Relu(x) }"
    newest, oldest = parsed(text, 23 if version < 23 else 22), parsed(text, 11 if version > 11 else 12)
    newest.onnx.ir_version, oldest.onnx.ir_version = 11, 6
    assert set_opset(version)(oldest) > 0
    assert oldest.onnx.ir_version == official
    if version < 23:
        assert set_opset(version)(newest) > 0
        assert newest.onnx.ir_version == official


def test_bodies_that_need_no_change_pass() -> None:
    text = """part (float[2] x, bool f) => (float[2] y) {
        y = If (f) <then_branch = p () => (float[2] u) { u = Abs(x) },
            else_branch = q () => (float[2] v) { v = Neg(x) }> }"""
    assert counts(rewritten(parsed(text, 20), set_opset(13), 1)) == {"If": 1}


def test_sizes_of_a_split_must_be_known() -> None:
    text = """part (float[n,4] x) => (float[m,4] y) { p, q = Split<num_outputs = 2>(x) y = Neg(q) }"""
    with pytest.raises(PassError, match="different sizes"):
        set_opset(13)(parsed(text, 18))


def test_other_domains_keep_their_version() -> None:
    before = program("y = Relu(x)", "2,3,4", 13)
    before.onnx.opset_imports["com.microsoft"] = 1
    set_opset(20)(before)
    assert before.onnx.opset_imports == {"": 20, "com.microsoft": 1}


@pytest.mark.parametrize("version", [10, 24])
def test_versions_there_are(version: int) -> None:
    with pytest.raises(UsageError, match="11 to 23"):
        set_opset(version)


def test_up_keeps_weights_and_names() -> None:
    many = ", ".join("1" for _ in range(2000))
    text = f"""part (float[2,2000] x) => (float[2,2000] y) <float[2000] w = {{{many}}}> {{
        a = Mul(x, w) b = Unsqueeze<axes = [0]>(a) c = Softmax<axis = 2>(b) y = Squeeze<axes = [0]>(c) }}"""
    before = parsed(text, 11)
    before.onnx.metadata_props["who"] = "me"
    after = rewritten(before, set_opset(20), 3)
    assert after.onnx.opset_imports[""] == 20
    assert after.onnx.metadata_props["who"] == "me"
    assert [v.name for v in after.onnx.graph.inputs] == ["x"]
    assert after.onnx.graph.initializers["w"].const_value is not None
    assert counts(after)["Softmax"] == 1
    assert "Flatten" not in counts(after)


def test_the_same_version_is_no_work() -> None:
    rewritten(program("y = Gelu(x)", "2,3,4", 20), set_opset(20), 0)
