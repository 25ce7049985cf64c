"""The operator report: on made-up graphs with a known answer, on damaged files, and against ONNX Runtime itself."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper, parser
from pydantic import ValidationError
from rich.console import Console

from edgesam_deploy import ops
from edgesam_deploy.bundle import dump_json
from edgesam_deploy.errors import UnknownName, UsageError
from edgesam_deploy.ops import OpsReport, debris, parts_report, render, report
from edgesam_deploy.targets.rules import (
    Rule,
    RuleTable,
    Tensor,
    Use,
    dump_table,
    load_table,
    parse_table,
    probe_onnxruntime,
    table_names,
)

PASSES = Path(ops.__file__).parents[1] / "passes"
NESTED = """
<ir_version: 10, opset_import: ["": 20, "local": 1]>
net (float[2,3] x, bool c) => (float[2,3] y) {
  a = local.likewise (x)
  y = If (c) <
    then_branch = yes () => (float[2,3] o) { s = Shape (a)  o = Reshape (a, s) },
    else_branch = no () => (float[2,3] p) {
      one = Constant <value = float {1.0}> ()  q = Mul (a, one)  p = local.likewise (q)
    }
  >
}
<domain: "local", opset_import: ["": 20]>
likewise (u) => (v) { w = Erf (u)  v = CastLike (w, u) }
"""


@pytest.fixture
def judged(tmp_path):
    """``judged(text)``: the onnx target's rows on a model given as text or as proto, by operator."""

    def get(model: str | onnx.ModelProto) -> dict[str, ops.OpsRow]:
        path = tmp_path / "model.onnx"
        onnx.save(parser.parse_model(model) if isinstance(model, str) else model, path)
        return {row.operator: row for row in report(path, ["onnx"]).rows}

    return get


def one_node(op: str, *dtypes: int, opset: int = 20, domain: str = "", **attributes) -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info(f"x{i}", dtype, None) for i, dtype in enumerate(dtypes)]
    node = helper.make_node(op, [value.name for value in inputs], ["y"], name="it", domain=domain, **attributes)
    graph = helper.make_graph([node], "one", inputs, [onnx.ValueInfoProto(name="y")])
    opsets = [helper.make_opsetid("", opset)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def loads(model: onnx.ModelProto) -> bool:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:
        return False
    return True


def decoder(nodes: int, width: int = 64) -> onnx.ModelProto:
    """A graph of the size and kind of a traced decoder: MatMul, Add, LayerNormalization, Transpose, no shapes given."""
    body, weights = [], [numpy_helper.from_array(np.zeros((width, width), np.float32), "w")]
    weights.append(numpy_helper.from_array(np.ones(width, np.float32), "g"))
    kinds = [("MatMul", ["w"]), ("Add", ["g"]), ("LayerNormalization", ["g"]), ("Transpose", []), ("Transpose", [])]
    for i in range(nodes):
        op, rest = kinds[i % len(kinds)]
        attributes = {"perm": [0, 2, 1]} if op == "Transpose" else {}
        body.append(helper.make_node(op, [f"v{i}", *rest], [f"v{i + 1}"], name=f"node_{i}", **attributes))
    edges = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, width, width]) for name in ("v0", f"v{nodes}")]
    graph = helper.make_graph(body, "decoder", edges[:1], edges[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


# ---------------------------------------------------------------------------------------------------- reading graphs


def test_bodies_and_functions_are_counted_at_each_use_with_their_types(judged):
    rows = judged(NESTED)
    assert {name: row.count for name, row in rows.items()} == {
        "CastLike": 2, "Constant": 1, "Erf": 2, "If": 1, "Mul": 1, "Reshape": 1, "Shape": 1,
    }  # fmt: skip
    assert rows["Erf"].dtypes == ("float32",)
    assert rows["Erf"].ranks == (2,)
    assert rows["Reshape"].dtypes == ("float32", "int64")
    assert rows["Reshape"].nodes == ("o",)  # unnamed nodes go by their output


def test_a_function_that_cannot_be_inlined_is_counted_at_each_call_and_its_types_are_unknown(judged):
    model = parser.parse_model(NESTED)
    model.functions[0].opset_import[0].version = 17
    rows = judged(model)
    assert (rows["Erf"].count, rows["Erf"].status) == (2, "unknown")
    assert rows["Erf"].reason == "the model does not give the type of input 0"


def test_debris_is_named(tmp_path):
    path = tmp_path / "nested.onnx"
    onnx.save(parser.parse_model(NESTED), path)
    assert debris(report(path, ["onnx"])) == ["If y", "Shape s"]


def test_types_and_ranks_are_inferred_where_the_file_has_none(judged):
    rows = judged(decoder(10))
    assert rows["LayerNormalization"].ranks == (1, 3)
    assert rows["MatMul"].dtypes == ("float32",)
    assert all(row.status == "supported" for row in rows.values())


def test_weights_are_not_needed(tmp_path):
    path = tmp_path / "external.onnx"
    onnx.save(decoder(10), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (tmp_path / "weights.bin").unlink()
    assert report(path, ["onnx"]).worst == "supported"


def test_a_graph_that_inference_rejects_is_reported_all_the_same(judged):
    text = """<ir_version: 10, opset_import: ["": 20]>
    net (float[2,3] x, float[5,7] w) => (float[2,7] y) { h = MatMul (x, w)  y = Relu (h) }"""
    assert judged(text)["MatMul"].status == "supported"


def test_one_row_for_each_verdict_worst_first(judged, tmp_path):
    text = """<ir_version: 10, opset_import: ["": 20, "acme": 1]>
    net (float[2] x, float16[2] h, double[2] d) => (float[2] y) {
      a = Erf (x)  b = Erf (a)  c = Erf (h)  e = Erf (d)  f = acme.Magic (x)  y = Neg (b)
    }"""
    judged(text)
    rows = report(tmp_path / "model.onnx", ["onnx", "onnx"]).rows
    assert [(row.operator, row.count, row.status, row.reason) for row in rows] == [
        ("Erf", 1, "unsupported", "input 0 is float64; allowed: float32"),
        ("Magic", 1, "unknown", "no rule for this operator"),
        ("Erf", 1, "partial", "runs in float32, between casts that ONNX Runtime inserts"),
        ("Erf", 2, "supported", ""),
        ("Neg", 1, "supported", ""),
    ]
    assert rows[0].source == "kernel registry"
    assert rows[0].version == f"ONNX Runtime, CPUExecutionProvider {load_table('onnxruntime_cpu').version}"


def test_what_an_unknown_operator_gives_is_unknown_too(judged):
    text = """<ir_version: 10, opset_import: ["": 20, "acme": 1]>
    net (float[2] x) => (y) { a = acme.Magic (x)  b = Erf (a)  y = Identity (b) }"""
    rows = judged(text)
    assert [rows[op].status for op in ("Magic", "Erf")] == ["unknown", "unknown"]


def test_opsets_out_of_the_table(judged):
    newest = load_table("onnxruntime_cpu").newest_opset[""]
    assert judged(one_node("Relu", TensorProto.FLOAT, opset=newest))["Relu"].status == "supported"
    newer = judged(one_node("Relu", TensorProto.FLOAT, opset=newest + 1))["Relu"]
    assert (newer.status, newer.reason) == ("unknown", f"opset {newest + 1} is newer than these rules ({newest})")
    assert judged(one_node("Add", TensorProto.FLOAT, TensorProto.FLOAT, opset=6))["Add"].status == "unsupported"


def test_contrib_is_marked(judged):
    row = judged(one_node("QuickGelu", TensorProto.FLOAT, domain="com.microsoft"))["QuickGelu"]
    assert (row.status, row.reason) == ("supported", "contrib operator, outside of the ONNX standard")


# ---------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("content", [b"", b"not ONNX", b"\x80\x05pickle", b"PK\x03\x04" + bytes(60), bytes(2000)])
def test_files_that_are_no_onnx(tmp_path, content):
    path = tmp_path / "odd.onnx"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"odd\.onnx is not an ONNX file"):
        report(path, ["onnx"])


def test_truncation_anywhere_is_noticed(tmp_path):
    whole = decoder(20).SerializeToString()
    path = tmp_path / "cut.onnx"
    for length in range(0, len(whole), 199):
        path.write_bytes(whole[:length])
        with pytest.raises(UsageError, match=r"cut\.onnx is not an ONNX file, or a truncated one"):
            report(path, ["onnx"])


def test_missing_file_folder_and_names(tmp_path):
    with pytest.raises(UsageError, match=r"none\.onnx: no such file"):
        report(tmp_path / "none.onnx", ["onnx"])
    with pytest.raises(UsageError, match="a folder"):
        report(tmp_path, ["onnx"])
    with pytest.raises(UnknownName, match=r"unknown target 'onx'; did you mean onnx"):
        report(tmp_path / "none.onnx", ["onx"])
    with pytest.raises(UsageError, match="no target"):
        report(tmp_path / "none.onnx", [])


def test_recursive_functions_are_refused(tmp_path):
    model = parser.parse_model(NESTED.replace("w = Erf (u)", "w = local.likewise (u)"))
    model.functions[0].opset_import.append(helper.make_opsetid("local", 1))
    onnx.save(model, tmp_path / "loop.onnx")
    with pytest.raises(UsageError, match=r"loop\.onnx is not a valid ONNX model"):
        report(tmp_path / "loop.onnx", ["onnx"])


# ---------------------------------------------------------------------------------------------------- the report


def _row(status: str, count: int = 1) -> ops.OpsRow:
    nodes = tuple(f"n{i}" for i in range(count))
    return ops.OpsRow("onnx", "Op", "", count, (), (), status, "why", "here", "1", None, nodes)


@pytest.mark.parametrize(
    ("found", "worst", "unsupported", "partial"),
    [
        ([], "supported", 0, 0),
        (["supported"], "supported", 0, 0),
        (["supported", "partial"], "partial", 0, 1),
        (["partial", "unknown"], "unknown", 1, 2),
        (["unknown", "unsupported", "partial"], "unsupported", 2, 3),
    ],
)
def test_gates(found, worst, unsupported, partial):
    result = OpsReport("m.onnx", {"": 20}, ("onnx",), tuple(map(_row, found)))
    assert result.worst == worst
    assert len(result.failures()) == len(result.failures("unsupported")) == unsupported
    assert len(result.failures("partial")) == partial


def test_rendering_is_plain_text_and_names_no_more_nodes_than_fit():
    result = OpsReport("m[bold].onnx", {"": 20}, ("onnx",), (_row("unknown", 5), _row("supported", 2)))
    out = io.StringIO()
    render(result, Console(file=out, width=140))
    text = out.getvalue()
    assert "m[bold].onnx" in text
    assert "n0, n1, n2 and 2 more" in text
    assert "onnx: 2 supported, 5 unknown" in text
    assert "\x1b" not in text


def test_json_of_a_bundle_is_the_same_wherever_it_lies(tmp_path):
    written = []
    for folder in (tmp_path / "a", tmp_path / "b" / "c"):
        folder.mkdir(parents=True)
        onnx.save(decoder(20), folder / "decoder.onnx")
        onnx.save(parser.parse_model(NESTED), folder / "encoder.onnx")
        files = {"mask_decoder": folder / "decoder.onnx", "image_encoder": folder / "encoder.onnx"}
        written.append(dump_json(parts_report("onnx", files)))
    assert written[0] == written[1]
    content = json.loads(written[0])
    assert content["parts"]["image_encoder"]["worst"] == "partial"
    assert content["parts"]["mask_decoder"]["totals"] == {
        "onnx": {"supported": 20, "partial": 0, "unknown": 0, "unsupported": 0}
    }


def test_a_thousand_nodes_in_a_second_with_imports_and_without_torch(tmp_path):
    path = tmp_path / "decoder.onnx"
    onnx.save(decoder(1000), path)
    code = (
        "import sys, time; from pathlib import Path; from edgesam_deploy.ops import report;"
        f"assert report(Path({str(path)!r}), ['onnx']).worst == 'supported';"
        "assert 'torch' not in sys.modules and 'onnxruntime' not in sys.modules;"
        "print(time.process_time())"
    )
    # the processor's time, since the machine is shared, and the best of two, since the first reads the disk
    seconds = min(float(subprocess.check_output([sys.executable, "-c", code], text=True)) for _ in range(2))
    assert seconds < 1.0


# ---------------------------------------------------------------------------------------------------- rules


def table(*rules: dict) -> RuleTable:
    header = {"name": "t", "runtime": "Toy", "version": "1", "source": "test", "generated_by": "hand"}
    return RuleTable.model_validate({**header, "rules": rules})


def use(dtype: str | None = "float32", shape: tuple | None = (1, 2), constant: bool = False, **attributes) -> Use:
    return Use("Op", "", 20, inputs=(Tensor(dtype, shape, constant),), outputs=(Tensor(dtype, shape),), **attributes)


RUNS = {"op": "Op", "status": "supported"}
FAILS = {"op": "Op", "status": "unsupported", "reason": "crashes"}


@pytest.mark.parametrize(
    ("rules", "node", "status", "reason"),
    [
        ([], use(), "unknown", "no rule for this operator"),
        ([RUNS], use(None, None), "supported", ""),
        ([{**RUNS, "domain": "acme"}], use(), "unknown", "no rule for this operator"),
        ([{**RUNS, "until": 19}], use(), "unknown", "no rule for opset 20"),
        ([{**RUNS, "until": 19}, {**FAILS, "since": 20}], use(), "unsupported", "crashes"),
        ([{**RUNS, "inputs": [["float32"]]}], use("int64"), "unsupported", "input 0 is int64; allowed: float32"),
        ([{**RUNS, "inputs": [["int64"]]}], use(None), "unknown", "the model does not give the type of input 0"),
        ([{**RUNS, "outputs": [["bool"]]}], use(), "unsupported", "output 0 is float32; allowed: bool"),
        ([{**RUNS, "max_rank": 4}], use(shape=(1,) * 5), "unsupported", "rank 5; at most 4"),
        ([{**RUNS, "max_rank": 4}], use(shape=None), "unknown", "the model does not give a rank"),
        ([{**RUNS, "static_shape": True}], use(shape=(None, 2)), "unsupported", "a dimension is dynamic"),
        ([{**RUNS, "constant_inputs": [0]}], use(), "unsupported", "input 0 is not a constant"),
        ([{**RUNS, "constant_inputs": [0, 3]}], use(constant=True), "supported", ""),
        ([{**RUNS, "attributes": {"m": ["a"]}}], use(attributes={"m": "a"}), "supported", ""),
        ([{**RUNS, "attributes": {"m": ["a"]}}], use(attributes={"m": "b"}), "unsupported", "m is b; allowed: a"),
        # the first that holds
        ([{**FAILS, "inputs": [["bool"]]}, RUNS], use("bool"), "unsupported", "crashes"),
        ([{**FAILS, "inputs": [["bool"]]}, RUNS], use(), "supported", ""),
        ([{**RUNS, "max_rank": 4}, FAILS], use(shape=(1,) * 5), "unsupported", "crashes"),
        # an exception that may hold leaves the rest open; one that cannot says nothing of what runs
        ([{**FAILS, "inputs": [["bool"]]}, RUNS], use(None), "unknown", "the model does not give the type of input 0"),
        ([{**RUNS, "inputs": [["bool"]]}, RUNS], use(None), "supported", ""),
        ([{**FAILS, "inputs": [["bool"]]}], use(), "unknown", "no rule for this use of the operator"),
        # the nearest of several
        (
            [{**RUNS, "inputs": [["bool"]], "max_rank": 1}, {**RUNS, "max_rank": 1}],
            use(),
            "unsupported",
            "rank 2; at most 1",
        ),
    ],
)  # fmt: skip
def test_verdicts(rules, node, status, reason):
    verdict = table(*rules).judge(node)
    assert (verdict.status, verdict.reason) == (status, reason)


def test_the_remedy_is_named_only_where_something_is_to_be_remedied():
    limited = table({**RUNS, "max_rank": 4, "fixed_by": "reduce_rank", "source": "probe"})
    assert limited.judge(use()).fixed_by is None
    assert limited.judge(use(shape=(1,) * 5))[2:4] == ("probe", "reduce_rank")


def test_an_attribute_left_out_has_its_default(tmp_path, monkeypatch):
    rules = table({"op": "Gelu", "status": "supported", "attributes": {"approximate": ["none"]}})
    monkeypatch.setattr(ops.judge, "report_table", lambda name: rules)
    found = []
    for attributes in ({}, {"approximate": "tanh"}):
        onnx.save(one_node("Gelu", TensorProto.FLOAT, **attributes), tmp_path / "m.onnx")
        found.append(report(tmp_path / "m.onnx", ["onnx"]).worst)
    assert found == ["supported", "unsupported"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"op": "Op"},
        {"op": "Op", "status": "unknown"},
        {"op": "Op", "status": "partial"},
        {**RUNS, "since": 9, "until": 8},
        {**RUNS, "max_ranks": 4},
        {**RUNS, "inputs": ["float32"]},
    ],
)
def test_wrong_rules_are_refused(wrong):
    with pytest.raises(ValidationError):
        table(wrong)


def test_tables_survive_writing_and_reading():
    rules = table(RUNS, {**FAILS, "inputs": [["bool"], None], "attributes": {"mode": ["a", 1]}, "fixed_by": "fold"})
    assert parse_table(dump_table(rules)) == rules


def test_an_unknown_table():
    with pytest.raises(UnknownName, match="unknown rule table"):
        load_table("onnxruntime_gpu")


@pytest.mark.parametrize("name", table_names())
def test_shipped_tables(name):
    found = load_table(name)
    passes = {path.stem for path in PASSES.rglob("*.py")}
    assert found.name == name
    assert all(rule.fixed_by is None or rule.fixed_by in passes for rule in found.rules)


# ---------------------------------------------------------------------------------------------------- ONNX Runtime


@pytest.fixture(scope="module")
def committed() -> RuleTable:
    found = load_table("onnxruntime_cpu")
    if found.source != probe_onnxruntime.source():
        pytest.skip(f"the table is of {found.source}; installed: {probe_onnxruntime.source()}")
    return found


def test_the_table_is_what_the_probe_generates(committed, tmp_path):
    probe_onnxruntime.main(["-o", str(tmp_path / "again.json")])
    again = (tmp_path / "again.json").read_bytes()
    assert again == Path(probe_onnxruntime.__file__).with_name("onnxruntime_cpu.json").read_bytes()
    assert len(again) < 200_000
    assert again.count(b"\n") == len(committed.rules) + 9


FLOATS = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "float64": TensorProto.DOUBLE}
UNARY = ("Abs", "Cos", "Erf", "Gelu", "Greater", "HardSwish", "Mish", "Neg", "Relu", "Round", "Sin", "Softmax", "Tanh")
UNARY += ("Add", "Div", "Equal", "LayerNormalization", "MatMul", "Max", "Mul", "Pow", "PRelu", "Sub", "CastLike")


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("op", UNARY)
def test_verdicts_are_those_of_a_session(committed, judged, op, dtype):
    schema = onnx.defs.get_schema(op, 20)
    model = one_node(op, *[FLOATS[dtype]] * max(schema.min_input, 1))
    assert (judged(model)[op].status in ("supported", "partial")) == loads(model)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning:onnx.backend")  # its cases divide by zero on purpose
def test_verdicts_are_those_of_sessions_on_onnx_own_node_tests(committed, tmp_path):
    """Every standard operator's tests: nothing that runs is denied, and what is promised runs.

    The promise cannot hold for an attribute's value, which a registry of kernels does not speak of: 18 of 1,525.
    """
    from onnx.backend.test.case.node import collect_testcases

    promised, broken, denied = 0, [], []
    for case in collect_testcases(None):
        if case.model is None or {entry.domain for entry in case.model.opset_import} - {"", "ai.onnx"}:
            continue
        onnx.save(case.model, tmp_path / "case.onnx")
        says = not report(tmp_path / "case.onnx", ["onnx"]).failures()
        runs = loads(case.model)
        promised += says
        if says and not runs:
            broken.append(case.name)
        if runs and not says:
            denied.append(case.name)
    assert denied == []
    assert len(broken) <= 0.02 * promised, broken


def test_rule_defaults_are_what_the_file_leaves_out():
    assert Rule(op="Op", status="supported").model_dump(exclude_defaults=True) == RUNS
