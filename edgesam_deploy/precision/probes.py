"""Models that are run here to look into them, never written for anyone."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from edgesam_deploy.toolkits import require

MOST = 1 << 30  # bytes of weights that are handed over in one piece: protobuf ends at 2 GiB


def probe_session(model: onnx.ModelProto, purpose: str) -> Any:
    """The model in ONNX Runtime on the CPU; a large one by way of a file with its weights beside it, gone at once."""
    ort = require("onnxruntime", purpose)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    providers = ["CPUExecutionProvider"]
    if sum(len(weight.raw_data) for weight in model.graph.initializer) <= MOST:
        return ort.InferenceSession(model.SerializeToString(), options, providers=providers)
    with tempfile.TemporaryDirectory(prefix="probe_") as folder:
        path = Path(folder) / "probe.onnx"
        ir.save(ir.from_proto(model), path, external_data=f"{path.name}.data")
        return ort.InferenceSession(str(path), options, providers=providers)
