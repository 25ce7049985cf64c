"""Reading .onnx files that anybody may have written: what is none is refused with what to do about it."""

from __future__ import annotations

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import ModelProto

from edgesam_deploy.errors import UsageError


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
