"""Reading .onnx files that anybody may have written, and writing them so that anybody's tools can read them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import ModelProto

from edgesam_deploy.errors import UsageError

if TYPE_CHECKING:
    import onnx_ir as ir


def read_graph(path: Path) -> ModelProto:
    """The model without its external weights. Raises UsageError for a file that is missing, cut short, or no ONNX."""
    if not path.is_file():
        what = "a folder, not an .onnx file" if path.is_dir() else "no such file"
        raise UsageError(f"{path}: {what}")
    try:
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except DecodeError as e:
        raise UsageError(f"{path} is not an ONNX file, or a truncated one; export or copy it again") from e
    except OSError as e:
        raise UsageError(f"{path} cannot be read: {e.strerror}") from e
    if not model.HasField("graph") or not model.opset_import:
        # any short file may parse as an empty message, and a cut one lacks what stands at its end
        raise UsageError(f"{path} is not an ONNX file, or a truncated one: it has no graph or no opset")
    return model


def write_graph(model: ir.Model, path: Path, *, external: bool) -> None:
    """Write ``path``, its weights into ``<path>.data`` where ``external``.

    The weights' shapes stand in the weights alone. Said once more in ``value_info``, as onnx_ir does, they become
    untrue in tools that replace weights: ``onnxruntime.quantization.quantize_dynamic`` ends in an error of shape
    inference, since it turns Gemm's weights round.
    """
    import onnx_ir as ir

    if external:
        ir.save(model, path, external_data=f"{path.name}.data")
        proto = onnx.load(path, load_external_data=False)
    else:
        proto = ir.to_proto(model)
    _forget_shapes_of_weights(proto.graph)
    onnx.save(proto, path)


def _forget_shapes_of_weights(graph: onnx.GraphProto) -> None:
    weights = {tensor.name for tensor in graph.initializer}
    results = [value for value in graph.value_info if value.name not in weights]
    del graph.value_info[:]
    graph.value_info.extend(results)
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            _forget_shapes_of_weights(inner)
