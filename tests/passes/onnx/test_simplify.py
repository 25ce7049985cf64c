"""onnxsim as a stage, and when it is refused."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import onnx
import pytest
from passes.programs import counts, parsed, rewritten

from edgesam_deploy.errors import MissingToolkit, PassError
from edgesam_deploy.passes.onnx import simplify

TEXT = """part (float[2] x) => (float[2] y)
    <float[2] w = {1, 2}, float[2] v = {3, 4}> { a = Add(w, v) b = Identity(x) y = Mul(a, b) }"""


def test_fewer_nodes() -> None:
    assert counts(rewritten(parsed(TEXT), simplify, 2)) == {"Mul": 1}


def test_nothing_to_do() -> None:
    before = parsed("part (float[2] x) => (float[2] y) { y = Sin(x) }")
    rewritten(before, simplify, 0)
    model = before.onnx
    assert simplify(before) == 0
    assert before.onnx is model, "it was rewritten without need"


def test_the_file_format_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A converter that reads formats up to 8 must not be given 10 because onnxsim was built with a newer onnx."""

    def newer(model: onnx.ModelProto) -> tuple[onnx.ModelProto, bool]:
        model.ir_version = 10
        del model.graph.node[2:]
        model.graph.node[1].output[0] = "y"
        return model, True

    monkeypatch.setitem(sys.modules, "onnxsim", SimpleNamespace(simplify=newer))
    program = parsed(TEXT)
    program.onnx.ir_version = 8
    assert simplify(program) == 1
    assert program.onnx.ir_version == 8


def test_a_foreign_domain_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def attend(model: onnx.ModelProto) -> tuple[onnx.ModelProto, bool]:
        model.graph.node[0].domain = "com.microsoft"
        model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
        return model, True

    monkeypatch.setitem(sys.modules, "onnxsim", SimpleNamespace(simplify=attend))
    with pytest.raises(PassError, match=r"brought operators of com\.microsoft into part"):
        simplify(parsed(TEXT))


def test_without_onnxsim(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxsim", None)
    with pytest.raises(MissingToolkit, match="pip install onnxsim"):
        simplify(parsed(TEXT))
