"""A .tflite file as data: what operators and types are in it, its signatures, and metadata of our own.

The schema's classes come with the runtime (ai-edge-litert). Quantisers store weights behind the tables, as an offset
and a size; ``packed`` writes every file with its weights inside, which all runtimes read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from copy import copy
from functools import cache
from typing import Any

import numpy as np

from edgesam_deploy.errors import BundleError, TooLarge, UnsupportedOperators
from edgesam_deploy.toolkits import require

METADATA = "edgesam_deploy"  # the name under which a file carries its contract and licence, as JSON
IDENTIFIER = b"TFL3"
MOST = 2**31 - 2**24  # bytes of weights: offsets are signed 32-bit numbers, and the tables need some
BEHIND = 1  # a buffer's offset above this says that its bytes lie behind the tables


def parse(content: bytes) -> Any:
    """The model in ``content`` as the schema's ModelT. Raises BundleError where it is none."""
    if content[4:8] != IDENTIFIER:
        raise BundleError("not a TFLite file: the identifier TFL3 is missing; build it again")
    model = _schema().ModelT.InitFromPackedBuf(content, 0)
    for buffer in model.buffers:
        if (buffer.offset or 0) > BEHIND:
            buffer.data = np.frombuffer(content, np.uint8, buffer.size, buffer.offset)
            buffer.offset = buffer.size = 0
    return model


def packed(model: Any) -> bytes:
    """The bytes of a model: the same ones for the same model."""
    flatbuffers = require("flatbuffers", "writing a TFLite file")
    weights = sum(0 if buffer.data is None else len(buffer.data) for buffer in model.buffers)
    if weights > MOST:
        raise TooLarge(
            f"{weights / 2**30:.1f} GiB of weights do not fit into one TFLite file, whose offsets end at 2 GiB; use "
            "--precision fp16, a smaller model, or --target onnx"
        )
    builder = flatbuffers.Builder(weights + (1 << 20))  # in one piece: growing copies what is there
    builder.Finish(model.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())


def operators(model: Any) -> Counter[str]:
    """Names of the operators of all subgraphs and how often each occurs; a custom one as ``CUSTOM name``."""
    counts: Counter[str] = Counter()
    for graph in model.subgraphs:
        counts.update(operator_name(model, node) for node in graph.operators)
    return counts


def operator_name(model: Any, node: Any) -> str:
    code = model.operatorCodes[node.opcodeIndex]
    # files keep codes below 127 in the older field as well
    name = _names("BuiltinOperator")[max(code.builtinCode, code.deprecatedBuiltinCode)]
    return f"CUSTOM {text(code.customCode)}" if name == "CUSTOM" else name


def feeding(model: Any, readers: Sequence[str]) -> list[str]:
    """Names of the values that operators called one of ``readers`` read, in order."""
    found: dict[str, None] = {}
    for graph in model.subgraphs:
        for node in graph.operators:
            if operator_name(model, node) in readers:
                found.update({text(graph.tensors[index].name): None for index in node.inputs if index >= 0})
    return list(found)


def separate_readers(model: Any) -> int:
    """Give every further kind of operator that reads a constant a tensor of its own over the same bytes, and return how
    many tensors that adds: ai-edge-quantizer 0.10 cannot convert a constant for one kind and keep it for another.
    """
    added = 0
    for graph in model.subgraphs:
        own: dict[tuple[int, str], int] = {}  # tensor and kind of its reader -> tensor
        first: dict[int, str] = {}
        for node in graph.operators:
            kind = operator_name(model, node)
            node.inputs = list(node.inputs)  # read-only where they come from a file
            for position, index in enumerate(node.inputs):
                if index < 0 or model.buffers[graph.tensors[index].buffer].data is None:
                    continue
                if first.setdefault(index, kind) != kind:
                    if (index, kind) not in own:
                        own[index, kind] = len(graph.tensors)
                        graph.tensors.append(_renamed(graph.tensors[index], f";{kind}"))
                        added += 1
                    node.inputs[position] = own[index, kind]
    return added


def _renamed(tensor: Any, ending: str) -> Any:
    twin = copy(tensor)
    twin.name = (text(tensor.name) + ending).encode()
    return twin


def check_builtin(model: Any, what: str, *, wide: bool = False) -> None:
    """Raise UnsupportedOperators naming every custom and Flex operator, and, unless ``wide``, every INT64 tensor."""
    bad = sorted(name for name in operators(model) if name.startswith(("CUSTOM", "STABLEHLO", "DELEGATE")))
    kinds = _names("TensorType")
    if not wide:
        tensors = (t for graph in model.subgraphs for t in graph.tensors if kinds[t.type] == "INT64")
        bad += sorted(f"INT64 tensor {text(tensor.name)}" for tensor in tensors)
    if bad:
        shown = ", ".join(bad[:8]) + (f" and {len(bad) - 8} more" if len(bad) > 8 else "")
        raise UnsupportedOperators(
            f"{what}: {shown}; only builtin operators run on every device: see edgesam-deploy ops for the pass that "
            "removes them, or choose --target onnx"
        )


def type_name(tensor: Any) -> str:
    """The schema's name of a tensor's element type."""
    return _names("TensorType")[tensor.type]


def tensor_types(model: Any) -> Counter[str]:
    """Element types of all tensors and how often each occurs."""
    kinds = _names("TensorType")
    return Counter(kinds[tensor.type] for graph in model.subgraphs for tensor in graph.tensors)


def attach(model: Any, metadata: str, description: str) -> None:
    """Put ``metadata`` (JSON) into the model under this project's name."""
    schema = _schema()
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = np.frombuffer(metadata.encode(), np.uint8)
    model.buffers.append(buffer)
    entry.name, entry.buffer = METADATA, len(model.buffers) - 1
    model.metadata = [*(model.metadata or ()), entry]
    model.description = description


def read_metadata(content: bytes) -> str | None:
    """The JSON that ``attach`` wrote, or None."""
    model = parse(content)
    for entry in model.metadata or ():
        if text(entry.name) == METADATA:
            return bytes(model.buffers[entry.buffer].data).decode()
    return None


def signatures(model: Any) -> Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """Names of inputs and outputs by the signature's name."""
    return {
        text(s.signatureKey): (
            tuple(text(entry.name) for entry in s.inputs),
            tuple(text(entry.name) for entry in s.outputs),
        )
        for s in model.signatureDefs or ()
    }


def text(value: Any) -> str:
    """A name as the schema's classes give it, which is bytes in some of them."""
    return value.decode() if isinstance(value, bytes) else str(value)


@cache
def _names(enumeration: str) -> dict[int, str]:
    return {number: name for name, number in vars(getattr(_schema(), enumeration)).items() if isinstance(number, int)}


def _schema() -> Any:
    return require("ai_edge_litert.schema_py_generated", "reading a TFLite file")
