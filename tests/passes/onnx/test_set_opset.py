"""The same program in older and newer operator sets; what has no form there is named."""

from __future__ import annotations

import re

import onnx
import pytest
from passes.programs import counts, initializer, node_named, parsed, rewritten, wrapped

from edgesam_deploy.errors import PassError, UsageError
from edgesam_deploy.passes.engine import Engine
from edgesam_deploy.passes.onnx import set_opset
from edgesam_deploy.passes.program import Program

W = """float[4] w = {1, 2, 3, 4}, float[4] b = {5, 6, 7, 9}, int64[1] last = {-1}, int64[2] two = {0, 2},
    int64[2] parts = {1, 3}"""
DOWN = [  # body over x (2, 3, 4), result's shape, opset before and after, operators after
    ("y = Gelu(x)", "2,3,4", 20, 19, {"Mul": 3, "Erf": 1, "Add": 1}),
    ('y = Gelu<approximate = "tanh">(x)', "2,3,4", 20, 11, {"Mul": 6, "Tanh": 1, "Add": 2}),
    ('y = Gelu<approximate = "none">(x)', "2,3,4", 20, 19, {"Mul": 3, "Erf": 1, "Add": 1}),
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
    ("y = ReduceMean(x, none)", "1,1,1", 18, 17, {"ReduceMean": 1}),
    ("y = ReduceMean<noop_with_empty_axes = 0>(x, none)", "1,1,1", 18, 17, {"ReduceMean": 1}),
    ("y = ReduceMean<noop_with_empty_axes = 1>(x, none)", "2,3,4", 18, 17, {"Identity": 1}),
    ("y = ReduceMax<keepdims = 0>(x, two)", "3", 20, 18, {"ReduceMax": 1}),
    ("a = ReduceMean(x, last) y = Squeeze(a)", "2,3", 20, 11, {"ReduceMean": 1, "Squeeze": 1}),
    ("y = Unsqueeze(x, two)", "1,2,1,3,4", 21, 13, {"Unsqueeze": 1}),
    ("g = GreaterOrEqual(x, w) y = Cast<to = 1>(g)", "2,3,4", 20, 12, {"GreaterOrEqual": 1, "Cast": 1}),
    ("g = LessOrEqual(x, w) y = Cast<to = 1>(g)", "2,3,4", 20, 12, {"LessOrEqual": 1, "Cast": 1}),
    ("y = Concat<axis = 1>(x, x, x)", "2,9,4", 20, 11, {"Concat": 1}),
    ("p, q = Split<axis = 2>(x, parts) y = Neg(q)", "2,3,3", 20, 13, {"Split": 1, "Neg": 1}),
    ("p, q = Split<axis = 2>(x) y = Neg(q)", "2,3,2", 13, 11, {"Split": 1, "Neg": 1}),
    ("y = LayerNormalization(x, w, )", "2,3,4", 17, 16,
     {"ReduceMean": 2, "Sub": 1, "Mul": 2, "Add": 1, "Sqrt": 1, "Div": 1}),
    ("y = Resize(x, , , sizes)", "2,6,8", 18, 11, {"Resize": 1}),
    ("k = Constant<value_float = 2.0>() y = Mul(x, k)", "2,3,4", 13, 11, {"Mul": 1}),
    ("y = Softmax(x)", "2,3,4", 20, 13, {"Softmax": 1}),
    ("a = Add(x, w) c = Transpose<perm = [0, 2, 1]>(a) y = MatMul(x, c)", "2,3,3", 20, 11,
     {"Add": 1, "Transpose": 1, "MatMul": 1}),
]  # fmt: skip


def program(body: str, shape: str, opset: int) -> Program:
    more = """float[3] s = {1, 2, 2}, float tiny = {0.001}, float sc = {0.1}, uint8 zp = {128}, int64[2] shape = {3, 8},
        int64[0] none = {}, int64[3] sizes = {2, 6, 8}"""
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
        ("a = Cast<to = 1, saturate = 1>(x) d = Cast<to = 1, saturate = 1>(a) y = Cast<to = 1>(d)", 19, 13, 2),
        ("a = Gelu(x) d = HardSwish(a) y = Relu(d)", 20, 13, 2),
        ("a = ReduceMax(x, last) d = ReduceMean(x, last) y = Add(a, d)", 20, 18, 1),
        ("a = Squeeze(x) p, q = Split<axis = 2>(x) y = Neg(q)", 13, 11, 1),  # no axes and no parts to move
        ("c, d = Split<axis = 2>(x, parts) p, q = Split<axis = 2>(x, parts) y = Concat<axis = 2>(c, q)", 13, 11, 2),
        ("a = Softmax(x) d = Softmax(a) y = Relu(d)", 13, 12, 2),
        ("a = Unsqueeze(x, two) d = Squeeze(a, two) y = Relu(d)", 20, 12, 2),
    ],
)
def test_sites_are_the_nodes_that_changed(body: str, before: int, after: int, sites: int) -> None:
    shape = "2,6,8" if "Resize" in body else "2,3,1" if "Reduce" in body else "2,3,2" if "Neg" in body else "2,3,4"
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
        ('y = Pad<mode = "wrap">(x, six)', 18, "no mode wrap"),
        (
            'y = Resize<coordinate_transformation_mode = "half_pixel_symmetric">(x, , , shape)',
            18,
            "half_pixel_symmetric",
        ),
        ("y = Dropout(x)", 11, "something else before opset 12"),
        ("r = Squeeze(x) y = Gelu(r)", 19, "type of its input"),
        ("r = Squeeze(x) p, q = Split<num_outputs = 2>(r) y = Identity(p)", 13, "different sizes"),
    ],
)
def test_what_has_no_form_is_named(body: str, after: int, message: str) -> None:
    six = "int64[6] six = {0, 0, 1, 0, 0, 1}"
    text = f"part (float[2,3,4] x) => (float y) <{W}, int64[3] shape = {{2, 3, 4}}, {six}> {{ {body} }}"
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


def test_a_node_with_bodies_is_no_site() -> None:
    text = """part (float[2] x, bool f) => (float[2] y) {
        a = Cast<to = 1, saturate = 1>(x)
        y = If (f) <then_branch = p () => (float[2] u) { u = Abs(a) },
            else_branch = q () => (float[2] v) { v = Neg(a) }> }"""
    rewritten(parsed(text, 19), set_opset(13), 1)


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
    before.onnx.producer_name, before.onnx.producer_version = "them", "2.1"
    after = rewritten(before, set_opset(20), 3)
    assert after.onnx.opset_imports[""] == 20
    assert after.onnx.metadata_props["who"] == "me"
    assert (after.onnx.producer_name, after.onnx.producer_version) == ("them", "2.1")
    assert [v.name for v in after.onnx.graph.inputs] == ["x"]
    assert after.onnx.graph.initializers["w"].const_value is not None
    assert counts(after)["Softmax"] == 1
    assert "Flatten" not in counts(after)


def test_it_is_called_the_same_for_every_version() -> None:
    assert {set_opset(version).name for version in (11, 20)} == {"set_opset"}


def test_the_same_version_is_no_work() -> None:
    rewritten(program("y = Gelu(x)", "2,3,4", 20), set_opset(20), 0)


DEFAULTS = [  # operator of x with its attribute, opset before and after
    ('ScatterND<reduction = "%s">(x, index, x)', "none", "add", 16, 13),
    ('ScatterElements<reduction = "%s">(x, index, x)', "none", "add", 16, 13),
    ("BatchNormalization<training_mode = %s>(x, w, w, w, w)", 0, 1, 14, 13),
    ("AveragePool<kernel_shape = [2, 2], dilations = %s>(x)", "[1, 1]", "[1, 2]", 19, 18),
    ("CastLike<saturate = %s>(x, w)", 1, 0, 19, 18),
    ("Cast<to = 1, saturate = %s>(x)", 1, 0, 19, 18),
    ('Cast<to = 1, round_mode = "%s">(x)', "up", "down", 24, 23),
    ("Shape<start = %s>(x)", 0, 1, 15, 14),
    ("Reshape<allowzero = %s>(x, index)", 0, 1, 14, 13),
    ("Resize<antialias = %s>(x, , w)", 0, 1, 18, 13),
    ('Resize<keep_aspect_ratio_policy = "%s">(x, , w)', "stretch", "not_larger", 18, 13),
    ("QuantizeLinear<saturate = %s>(x, w)", 1, 0, 19, 18),
    ("QuantizeLinear<block_size = %s>(x, w)", 0, 2, 21, 19),
    ("QuantizeLinear<output_dtype = %s>(x, w)", 0, 3, 21, 19),
    ("QuantizeLinear<precision = %s>(x, w)", 0, 1, 23, 21),
    ("DequantizeLinear<block_size = %s>(x, w)", 0, 2, 21, 19),
    ("DequantizeLinear<output_dtype = %s>(x, w)", 0, 1, 23, 21),
]


def untyped(body: str, opset: int) -> Program:
    """Types and shapes of what comes in and is computed are not known."""
    program = parsed(
        f"""part (float[4,4] x) => (float y, float z) <float[4] w = {{1, 2, 3, 4}}, int64[1] index = {{0}}> {{
        {body} }}""",
        opset,
        infer=False,
    )
    for value in (*program.onnx.graph.inputs, *program.onnx.graph.outputs):
        value.type = None
    return program


@pytest.mark.parametrize(("operator", "default", "other", "before", "after"), DEFAULTS)
def test_an_attribute_of_later_times_goes_where_it_says_nothing(
    operator: str, default: object, other: object, before: int, after: int
) -> None:
    name = re.findall(r"(\w+) = \"?%s", operator)[0]
    program = untyped(f"y = {operator % default} z = {operator % default}", before)
    assert set_opset(after)(program) == 2
    assert [name in node.attributes for node in program.onnx.graph] == [False, False]
    with pytest.raises(PassError, match=f"has no attribute {name} of it"):
        set_opset(after)(untyped(f"y = {operator % other} z = Neg(y)", before))


@pytest.mark.parametrize(
    ("operator", "before", "after"),
    [("GridSample(x, x)", 22, 20), ("RoiAlign(x, x, index)", 22, 16), ("Dropout(x)", 20, 12), ("Relu(x)", 20, 13)],
)
def test_what_meant_the_same_stays(operator: str, before: int, after: int) -> None:
    program = untyped(f"y = {operator} z = {operator}", before)
    assert set_opset(after)(program) == 1
    assert len(program.onnx.graph) == 2


def test_an_output_that_the_older_form_lacks_is_named() -> None:
    text = """part (float[2,3,4] x) => (float[2,3,4] y, float[2,3,1] m) <float[4] w = {1, 2, 3, 4}> {
        y, m = LayerNormalization(x, w) }"""
    with pytest.raises(PassError, match="deviation is read"):
        set_opset(16)(parsed(text, 20))


def test_axes_that_are_attributes_now_are_no_constants_any_more() -> None:
    lowered = program("y = Unsqueeze(x, two)", "1,2,1,3,4", 20)
    set_opset(11)(lowered)
    assert not lowered.onnx.graph.initializers


@pytest.mark.parametrize(("after", "empty"), [(13, False), (11, True)])
def test_an_input_left_out_of_a_resize(after: int, empty: bool) -> None:
    """It may be left out from 13 on; before, an empty tensor says so."""
    lowered = program("y = Resize<antialias = 0>(x, , s)", "2,6,8", 18)
    set_opset(after)(lowered)
    region = node_named(lowered, "Resize").inputs[1]
    assert (region is not None) == empty
    if region is not None:
        assert initializer(lowered, region.name or "").size == 0


def test_operators_of_other_domains_are_no_business_of_the_opset() -> None:
    mixed = program("a = Cast<to = 1, saturate = 1>(x) y = Relu(a)", "2,3,4", 19)
    mixed.onnx.opset_imports["com.microsoft"] = 1
    node_named(mixed, "Relu").domain = "com.microsoft"
    assert set_opset(13)(mixed) == 1
    assert mixed.onnx.opset_imports == {"": 13, "com.microsoft": 1}


# --- bodies ----------------------------------------------------------------------------------------------------------


def branches(then: str, otherwise: str = "v = Neg(x)") -> str:
    return f"""part (float[1,1,2,2] x, float[1,2,2,2] g, bool f) => (float[1,1,2,2] y) {{
        y = If (f) <then_branch = p () => (float[1,1,2,2] u) {{ {then} }},
            else_branch = q () => (float[1,1,2,2] v) {{ {otherwise} }}> }}"""


@pytest.mark.parametrize(
    ("then", "before", "after"), [("u = Relu(x)", 20, 13), ("u = GridSample(x, g)", 19, 16), ("u = Abs(x)", 20, 12)]
)
def test_bodies_whose_operators_fit_pass(then: str, before: int, after: int) -> None:
    program = parsed(branches(then), before)
    assert set_opset(after)(program) == 1
    assert counts(program) == {"If": 1}


@pytest.mark.parametrize("place", ["then", "else"])
def test_an_input_that_the_older_operator_needs_is_named(place: str) -> None:
    bodies = "s = Constant<value_floats = [1.0, 1.0, 1.0, 1.0]>() %s = Resize(x, , s)"
    text = branches(bodies % "u") if place == "then" else branches("u = Abs(x)", bodies % "v")
    with pytest.raises(PassError, match=r"Resize inside of If .*: opset 11 needs its input roi"):
        set_opset(11)(parsed(text, 18))


@pytest.mark.parametrize(
    ("body", "before", "after", "message"),
    [
        ("a = SequenceConstruct(x) i = If(f) <then_branch = p () => (seq(float[2]) u) { u = Identity(a) },"
         " else_branch = q () => (seq(float[2]) v) { v = SequenceConstruct(x) }> y = SequenceAt(i, zero)",
         20, 12, r"If .*: opset 12 does not take seq\(tensor\(float\)\)"),
        ("o = Optional(x) i = Identity(o) y = OptionalGetElement(i)", 20, 15,
         r"Identity .*: opset 15 does not take optional\(tensor\(float\)\)"),
    ],
)  # fmt: skip
def test_types_are_named_as_onnx_names_them(body: str, before: int, after: int, message: str) -> None:
    text = f"part (float[2] x, bool f) => (float[2] y) <int64 zero = {{0}}> {{ {body} }}"
    with pytest.raises(PassError, match=message):
        set_opset(after)(parsed(text, before))


# --- up --------------------------------------------------------------------------------------------------------------


def test_functions_of_the_model_are_written_out_first() -> None:
    text = """<ir_version: 9, opset_import: ["" : 20, "mine" : 1]>
        part (float[2] x) => (float[2] y) { y = mine.twice(x) }
        <domain: "mine", opset_import: ["" : 20]> twice (a) => (b) { c = HardSwish(a) b = Add(c, c) }"""
    program = wrapped(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text)))
    assert set_opset(13)(program) == 1
    assert counts(program) == {"HardSigmoid": 1, "Mul": 1, "Add": 1}


def test_only_large_weights_stay_out_of_the_converter(monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks into small ones (axes, scales), and copies what it is given many times."""
    seen: list[set[str]] = []
    convert = onnx.version_converter.convert_version
    monkeypatch.setattr(
        onnx.version_converter, "convert_version",
        lambda model, to: seen.append({t.name for t in model.graph.initializer}) or convert(model, to),
    )  # fmt: skip
    ones = ", ".join("1" for _ in range(1025))
    text = f"""part (float[1025] x, float[1024] v) => (float[1025] y, float[1024] z)
        <float[1025] large = {{{ones}}}, float[1024] even = {{{ones[3:]}}}, float[1] small = {{2}}> {{
        a = Mul(x, large) y = Mul(a, small) z = Mul(v, even) }}"""
    after = rewritten(parsed(text, 11), set_opset(13), 1)
    assert seen == [{"small", "even"}]
    assert set(after.onnx.graph.initializers) == {"small", "even", "large"}


def test_a_weight_that_is_an_input_too_stays_one() -> None:
    """So wrote PyTorch before 1.3: whoever runs the model may give another value."""
    ones = ", ".join("1" for _ in range(2000))
    before = parsed(f"part (float[2000] x) => (float[2000] y) <float[2000] w = {{{ones}}}> {{ y = Mul(x, w) }}", 11)
    before.onnx.graph.inputs.append(before.onnx.graph.initializers["w"])
    before.onnx.ir_version = 3
    set_opset(13)(before)
    assert [v.name for v in before.onnx.graph.inputs] == ["x", "w"]
    assert initializer(before, "w").sum() == 2000
    assert before.onnx.graph.name == "part"


def test_a_format_of_old_whose_weights_were_inputs() -> None:
    before = parsed("part (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = Mul(x, w) }", 11)
    before.onnx.ir_version = 3
    assert set_opset(13)(before) == 1
    assert initializer(before, "w").tolist() == [1, 2]


@pytest.mark.parametrize(
    ("body", "sites"),
    [
        ("k = Constant<value = float {2.0}>() y = Mul(x, k)", 1),
        ("t = Reshape(x, two) y = Softmax(t)", 1),  # the default axis of that time, which is the last one here
        ("t = Reshape(x, two) u = Softmax<axis = 1>(t) y = Concat<axis = 1>(u, u)", 1),
        ("y = Hardmax<axis = 2>(x)", 1),
    ],
)
def test_up(body: str, sites: int) -> None:
    shape = "2,3,4" if "Reshape" not in body else "6,8" if "Concat" in body else "6,4"
    text = f"part (float[2,3,4] x) => (float[{shape}] y) <int64[2] two = {{6, 4}}> {{ {body} }}"
    after = rewritten(parsed(text, 11), set_opset(13), sites)
    assert not {"Flatten", "Shape"} & set(counts(after)), "the last axis needs no flattening"
    if "Concat" in body:
        assert node_named(after, "Concat").attributes["axis"].as_int() == 1


def test_what_the_converter_cannot_take_is_named() -> None:
    text = "part (float[2] x) => (float[2] y) { y = NoSuchOperator(x) }"
    with pytest.raises(PassError, match=r"converter cannot take part from opset 11 to 13: .*NoSuchOperator"):
        set_opset(13)(parsed(text, 11, infer=False))


@pytest.mark.parametrize("version", [8, 9])
def test_a_scan_of_before_opset_9(version: int) -> None:
    """It had an axis for the batch then, which the converter does not take away."""
    text = """part (float[2,3] s, float[2,5,3] x) => (float y) { e, y = Scan<num_scan_inputs = 1,
        body = step (a, b) => (c, d) { c = Add(a, b) d = Identity(c) }>(s, x) }"""
    scan = parsed(text, version, infer=False)
    if version == 9:
        assert set_opset(11)(scan) == 1
        return
    with pytest.raises(PassError, match="one axis more before opset 9"):
        set_opset(11)(scan)


def test_other_operators_of_before_opset_9() -> None:
    rewritten(program("y = Relu(x)", "2,3,4", 8), set_opset(13), 1)
