"""Files of a runtime's own kind are read and judged in its own operators."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from edgesam_deploy.errors import MissingToolkit, UsageError
from edgesam_deploy.ops import parts_report, report
from edgesam_deploy.ops.tflite_graph import read_tflite
from edgesam_deploy.targets.rules import Rule, RuleTable, Tensor, Use, load_table, parse_table
from edgesam_deploy.targets.tflite import flatbuffer
from edgesam_deploy.targets.tflite.toolkits import PROBE

schema = pytest.importorskip("ai_edge_litert.schema_py_generated")


def tflite(folder: Path, operator: str = "ADD", change: Any = None) -> Path:
    """The one-operator model with another operator in it, and ``change`` made to it."""
    model = flatbuffer.parse(PROBE)
    code = getattr(schema.BuiltinOperator, operator)
    model.operatorCodes[0].builtinCode, model.operatorCodes[0].deprecatedBuiltinCode = code, min(code, 127)
    if change is not None:
        change(model)
    (folder / "m.tflite").write_bytes(flatbuffer.packed(model))
    return folder / "m.tflite"


# ---------------------------------------------------------------------------------------------------- TFLite


def test_what_the_reader_knows_of_an_operator(tmp_path: Path) -> None:
    (use,) = read_tflite(tflite(tmp_path)).uses
    assert (use.op, use.domain, use.name) == ("ADD", "tflite", "y")
    assert [tensor.dtype for tensor in (*use.inputs, *use.outputs)] == ["float32"] * 3
    assert use.inputs[0].shape == tuple(flatbuffer.parse(PROBE).subgraphs[0].tensors[0].shape)


@pytest.mark.parametrize(
    ("operator", "target", "status", "words"),
    [
        ("ADD", "tflite", "supported", ""),
        ("RSQRT", "tflite", "supported", ""),
        ("RSQRT", "xnnpack", "partial", "LiteRT's own kernel runs"),
        ("SQUARED_DIFFERENCE", "xnnpack", "supported", ""),
        ("BROADCAST_TO", "tflite-gpu", "unsupported", "not among what the delegate takes"),
        ("RFFT2D", "tflite", "unknown", "no rule for this operator"),
    ],
)
def test_tflite_operators_by_their_own_names(
    tmp_path: Path, operator: str, target: str, status: str, words: str
) -> None:
    (row,) = report(tflite(tmp_path, operator), [target]).rows
    assert (row.operator, row.status) == (operator, status)
    assert words in row.reason
    assert row.source


def test_a_dynamic_dimension_is_seen(tmp_path: Path) -> None:
    def widen(model: Any) -> None:
        model.subgraphs[0].tensors[0].shapeSignature = [-1]

    (row,) = report(tflite(tmp_path, change=widen), ["tflite"]).rows
    assert (row.status, row.reason) == ("unsupported", "a dimension is dynamic")


def test_all_are_those_that_speak_its_operators(tmp_path: Path) -> None:
    assert report(tflite(tmp_path), ["all"]).targets == ("tflite", "tflite-gpu", "xnnpack")
    with pytest.raises(UsageError, match="qnn judges onnx operators, the file holds tflite"):
        report(tflite(tmp_path), ["qnn"])


def test_parts_in_one_file_have_one_report(tmp_path: Path) -> None:
    path = tflite(tmp_path)
    found = parts_report("tflite", {"mask_decoder": path, "image_encoder": path})
    assert list(found["parts"]) == ["image_encoder + mask_decoder"]
    assert "placements" not in found["parts"]["image_encoder + mask_decoder"]


@pytest.mark.parametrize("content", [b"", b"no flatbuffer", b"\x08\0\0\0TFL3" + b"\xff" * 40, PROBE[:120]])
def test_what_is_no_tflite_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.tflite").write_bytes(content)
    with pytest.raises(UsageError, match=r"m\.tflite"):
        read_tflite(tmp_path / "m.tflite")
    with pytest.raises(UsageError, match=r"none\.tflite cannot be read"):
        read_tflite(tmp_path / "none.tflite")


def test_without_the_schema_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tflite(tmp_path)
    monkeypatch.setitem(sys.modules, "ai_edge_litert.schema_py_generated", None)
    with pytest.raises(MissingToolkit, match=r"edgesam-deploy\[tflite\]"):
        report(path, ["tflite"])


# ---------------------------------------------------------------------------------------------------- the tables


NATIVE = {"name": "t", "runtime": "r", "version": "1", "source": "s", "generated_by": "g", "native": "mine"}
WIDE, NARROW = Tensor("float32", (1, 3)), Tensor("float16", (1, 3))


def table(*rules: dict[str, Any], **header: Any) -> RuleTable:
    return parse_table(json.dumps({**NATIVE, **header, "rules": rules}))


def judged(found: RuleTable, op: str, *inputs: Tensor) -> str:
    return found.judge(Use(op, "mine", 1, inputs=inputs, outputs=inputs[:1])).status


def test_rules_are_read_backwards_the_most_favourable_first() -> None:
    costly = {"op": "Norm", "lowers_to": "MUL", "status": "partial", "reason": "taken apart"}
    found = table(costly, {"op": "Mul", "lowers_to": "MUL", "inputs": [["float32"]], "status": "supported"})
    assert judged(found, "MUL", WIDE) == "supported"
    assert judged(found, "Mul", WIDE) == "unknown"  # a name of the other vocabulary


def test_own_rules_stand_in_front_and_alone() -> None:
    easy = {"op": "Mean", "lowers_to": "MEAN", "status": "supported"}
    own = {"op": "MEAN", "domain": "mine", "min_rank": 4, "status": "supported"}
    assert judged(table(easy), "MEAN", WIDE) == "supported"
    assert judged(table(easy, own), "MEAN", WIDE) == "unsupported"


def test_a_rule_that_hangs_on_a_value_says_nothing_backwards() -> None:
    rule = {"op": "Mean", "lowers_to": "MEAN", "values": {"1": [2, 3]}, "status": "supported"}
    assert judged(table(rule), "MEAN", WIDE) == "unknown"


def test_types_that_a_converter_would_change() -> None:
    rule = {"op": "Mul", "lowers_to": "mul", "inputs": [["float32", "float16"]], "status": "supported"}
    found = table(rule, native_without=["float32"])
    assert (judged(found, "mul", NARROW), judged(found, "mul", WIDE)) == ("supported", "unsupported")
    assert found.judge(Use("Mul", "", 1, inputs=(WIDE,))).status == "supported"


def test_sizes_are_limits() -> None:
    found = table({"op": "Mul", "lowers_to": "mul", "status": "supported"}, max_side=8, max_channels=4)
    for shape, words in (((1, 4, 8, 8), ""), ((1, 5, 8, 8), "channels 5"), ((1, 4, 8, 9), "width 9"), ((9, 9), "")):
        verdict = found.judge(Use("mul", "mine", 1, inputs=(Tensor("float16", shape),)))
        assert (verdict.status == "unsupported") == bool(words)
        assert verdict.reason.startswith(words)
        assert verdict.source == "s"


def test_a_kernel_that_is_too_wide_for_the_m1() -> None:
    image = Tensor("float16", (1, 3, 64, 64))
    for width, status in ((13, "supported"), (16, "unsupported")):
        use = Use("conv", "mil", 1, inputs=(image, Tensor("float16", (8, 3, width, width), True)), outputs=(image,))
        assert load_table("coreml_ane_m1").judge(use).status == status
        assert load_table("coreml_ane_m2").judge(use).status == "supported"


@pytest.mark.parametrize("name", ["tflite_builtin", "tflite_gpu", "xnnpack"])
def test_native_rules_name_operators_of_the_schema(name: str) -> None:
    known = {word for word in dir(schema.BuiltinOperator) if word.isupper()}
    rules: list[Rule] = [rule for rule in load_table(name).rules if rule.domain]
    assert rules
    assert {rule.op for rule in rules} <= known
    assert {rule.domain for rule in rules} == {load_table(name).native} == {"tflite"}
