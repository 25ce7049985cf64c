"""Converters and runtimes are accepted when they work, not when they import."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgesam_deploy.errors import MissingToolkit
from edgesam_deploy.targets.tflite import toolkits

schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
flatbuffers = pytest.importorskip("flatbuffers")


def one_addition() -> bytes:
    """y = x + x for one float, from the schema: how ``PROBE`` was made."""
    code, node, graph, model = schema.OperatorCodeT(), schema.OperatorT(), schema.SubGraphT(), schema.ModelT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.ADD
    code.version = 1
    node.opcodeIndex, node.inputs, node.outputs = 0, [0, 0], [1]
    node.builtinOptionsType, node.builtinOptions = schema.BuiltinOptions.AddOptions, schema.AddOptionsT()
    for name in ("x", "y"):
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type, tensor.buffer = name, [1], schema.TensorType.FLOAT32, 0
        graph.tensors = [*(graph.tensors or ()), tensor]
    graph.inputs, graph.outputs, graph.operators = [0], [1], [node]
    model.version, model.operatorCodes, model.subgraphs, model.buffers = 3, [code], [graph], [schema.BufferT()]
    builder = flatbuffers.Builder(64)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def test_the_probe_is_what_the_schema_makes() -> None:
    assert one_addition() == toolkits.PROBE


def test_the_installed_runtime_is_accepted() -> None:
    interpreter, name = toolkits.resolve_runtime()
    assert name.startswith("ai-edge-litert ")
    assert hasattr(interpreter, "get_signature_runner")


class Broken:
    def __init__(self, **_: Any) -> None:
        raise SystemError("_ARRAY_API not found")


class Wrong:
    """Runs, and computes something else."""

    def __init__(self, **_: Any) -> None:
        self.get_input_details = self.get_output_details = lambda: [{"index": 0}]
        self.allocate_tensors = self.invoke = lambda: None

    def set_tensor(self, index: int, value: Any) -> None:
        self.value = value

    def get_tensor(self, index: int) -> Any:
        return np.array([7], np.float32)


def test_a_runtime_that_imports_but_does_not_run_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "old_runtime", SimpleNamespace(Interpreter=Broken))
    monkeypatch.setitem(sys.modules, "odd_runtime", SimpleNamespace(Interpreter=Wrong))
    bad = (("old_runtime", "old-runtime"), ("odd_runtime", "odd-runtime"), ("no_such_runtime", "none"))
    assert toolkits.resolve_runtime((*bad, *toolkits.RUNTIMES))[1].startswith("ai-edge-litert ")
    with pytest.raises(MissingToolkit, match="edgesam-deploy\\[tflite\\]") as caught:
        toolkits.resolve_runtime(bad)
    assert caught.value.exit_code == 3
    for reason in ("_ARRAY_API not found", "3 + 3 = [7.0]", "No module named"):
        assert reason in str(caught.value)


def test_a_converter_without_convert_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "empty_alias", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "converter", SimpleNamespace(convert=len))
    assert toolkits.resolve_converter(("empty_alias", "converter")).convert is len
    with pytest.raises(MissingToolkit, match=r"edgesam-deploy\[tflite\].*empty_alias: it has no convert"):
        toolkits.resolve_converter(("empty_alias", "no_such_converter"))
