"""Reading and marking .tflite files."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from edgesam_deploy.errors import BundleError, UnsupportedOperators
from edgesam_deploy.targets.tflite import flatbuffer
from edgesam_deploy.targets.tflite.toolkits import PROBE, runtime

schema = pytest.importorskip("ai_edge_litert.schema_py_generated")


def probe() -> Any:
    return flatbuffer.parse(PROBE)


def custom(name: bytes) -> Any:
    model = probe()
    model.operatorCodes[0].builtinCode = schema.BuiltinOperator.CUSTOM
    model.operatorCodes[0].deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM
    model.operatorCodes[0].customCode = name
    return model


def test_operators_and_types() -> None:
    assert flatbuffer.operators(probe()) == {"ADD": 1}
    assert flatbuffer.tensor_types(probe()) == {"FLOAT32": 2}
    assert flatbuffer.feeding(probe(), ("ADD",)) == ["x"]
    assert flatbuffer.feeding(probe(), ("SIN",)) == []


def test_builtin_operators_pass() -> None:
    flatbuffer.check_builtin(probe(), "part.tflite")


@pytest.mark.parametrize("name", ["FlexErf", "MyOwn"])
def test_custom_operators_are_named(name: str) -> None:
    with pytest.raises(UnsupportedOperators, match=f"part.tflite: CUSTOM {name}") as caught:
        flatbuffer.check_builtin(custom(name.encode()), "part.tflite")
    assert caught.value.exit_code == 5


def test_wide_integers_are_named() -> None:
    model = probe()
    model.subgraphs[0].tensors[1].type = schema.TensorType.INT64
    with pytest.raises(UnsupportedOperators, match="INT64 tensor y"):
        flatbuffer.check_builtin(model, "part.tflite")
    flatbuffer.check_builtin(model, "part.tflite", wide=True)


def test_metadata_comes_back_and_the_file_still_runs() -> None:
    model = probe()
    flatbuffer.attach(model, '{"license": "Apache-2.0"}', "a probe")
    content = flatbuffer.packed(model)
    assert content == flatbuffer.packed(model)
    assert flatbuffer.read_metadata(content) == '{"license": "Apache-2.0"}'
    assert flatbuffer.read_metadata(PROBE) is None
    running = runtime()[0](model_content=content)
    running.allocate_tensors()
    running.set_tensor(0, np.array([4], np.float32))
    running.invoke()
    assert running.get_tensor(1) == 8


def test_a_constant_that_two_kinds_read_gets_a_tensor_for_each() -> None:
    """Of ADD, MUL, MUL and ADD the products read a second tensor over the same bytes."""
    model = probe()
    graph, add = model.subgraphs[0], model.subgraphs[0].operators[0]
    constant, code = schema.BufferT(), schema.OperatorCodeT()
    constant.data = np.frombuffer(np.array([2], np.float32).tobytes(), np.uint8)
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.MUL
    model.buffers.append(constant)
    model.operatorCodes.append(code)
    shared = copy.copy(graph.tensors[0])
    shared.name, shared.buffer = b"two", len(model.buffers) - 1
    graph.tensors.append(shared)
    index = len(graph.tensors) - 1
    graph.operators = [copy.copy(add) for _ in range(4)]
    for node, opcode in zip(graph.operators, (0, 1, 1, 0), strict=True):
        node.opcodeIndex, node.inputs = opcode, np.array([0, index], np.int32)
    assert flatbuffer.separate_readers(model) == 1
    assert [list(node.inputs)[1] for node in graph.operators] == [index, index + 1, index + 1, index]
    twin = graph.tensors[index + 1]
    assert (twin.name, twin.buffer) == (b"two;MUL", shared.buffer)
    assert shared.name == b"two"
    assert flatbuffer.separate_readers(model) == 0
    assert flatbuffer.separate_readers(probe()) == 0  # an input that is no constant stays one tensor


def test_weights_behind_the_tables_come_inside() -> None:
    """As quantisers store them: an offset from the start of the file, and a size."""
    model = probe()
    weight = schema.BufferT()
    weight.offset, weight.size = 1, 12  # until it is known where the tables end
    model.buffers.append(weight)
    ends = len(flatbuffer.packed(model))
    weight.offset, weight.size = ends, 12
    content = flatbuffer.packed(model) + bytes(range(12))
    found = flatbuffer.parse(content).buffers[-1]
    assert bytes(found.data) == bytes(range(12))
    assert bytes(flatbuffer.parse(flatbuffer.packed(flatbuffer.parse(content))).buffers[-1].data) == bytes(range(12))


def test_something_else() -> None:
    with pytest.raises(BundleError, match="TFL3"):
        flatbuffer.parse(b"not a flatbuffer")
