"""Reads a .tflite file as rules see it: every operator of every signature with the types and shapes of its tensors."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edgesam_deploy.errors import BundleError, UsageError
from edgesam_deploy.ops.onnx_graph import LIST_LENGTH, Graph
from edgesam_deploy.targets.rules import Tensor, Use
from edgesam_deploy.targets.tflite import flatbuffer

VOCABULARY = "tflite"
INTEGERS = {"int32": np.int32, "int64": np.int64}  # of lists: axes, shapes, bounds
# what reading past the end of a damaged file raises, table by table
DAMAGED = (struct.error, IndexError, TypeError, ValueError, AttributeError, KeyError, MemoryError, AssertionError)


def read_tflite(path: Path) -> Graph:
    """Every operator of a .tflite file. Raises UsageError for one that is missing, damaged or no TFLite file,
    MissingToolkit where its schema is not installed.
    """
    try:
        model = flatbuffer.parse(path.read_bytes())
        return Graph(VOCABULARY, {VOCABULARY: int(model.version)}, tuple(_uses(model)))
    except OSError as e:
        raise UsageError(f"{path} cannot be read: {e.strerror or e}") from e
    except BundleError as e:
        raise UsageError(f"{path}: {e}") from e
    except DAMAGED as e:
        raise UsageError(f"{path} is damaged ({type(e).__name__}: {e}); build it again") from e


def _uses(model: Any) -> Iterator[Use]:
    several = len(model.subgraphs) > 1
    for graph in model.subgraphs:
        tensors = [_tensor(model, tensor) for tensor in graph.tensors]
        for node in graph.operators:
            name = flatbuffer.text(graph.tensors[node.outputs[0]].name)
            yield Use(
                flatbuffer.operator_name(model, node),
                VOCABULARY,
                1,
                f"{flatbuffer.text(graph.name)}/{name}" if several else name,
                tuple(tensors[index] if index >= 0 else None for index in node.inputs),
                tuple(tensors[index] for index in node.outputs),
            )


def _tensor(model: Any, tensor: Any) -> Tensor:
    dtype = flatbuffer.type_name(tensor).lower()
    data = model.buffers[tensor.buffer].data
    fixed = [] if tensor.shape is None else [int(d) for d in tensor.shape]
    # the signature has -1 where the shape has 1 for a dimension that is not known yet
    known = fixed if tensor.shapeSignature is None else [int(d) for d in tensor.shapeSignature]
    shape = tuple(None if d < 0 else d for d in known)
    constant = data is not None and len(data) > 0
    listed = constant and dtype in INTEGERS and len(data) <= 8 * LIST_LENGTH
    values = tuple(int(v) for v in np.frombuffer(bytes(data), INTEGERS[dtype])) if listed else None
    return Tensor(dtype, shape, constant, values)
