"""The process that Qualcomm's compiler runs in, and may crash: python -m edgesam_deploy.targets.qnn.compile REQUEST.

REQUEST is a JSON file: ``model`` and ``context`` (paths in the working folder), ``embed``, ``provider`` (options of the
execution provider) and ``disabled`` (ONNX Runtime's optimisers to leave out). ``result.json`` beside it says which
processor took which node, or ``error``, or ``unusable`` where the installation is broken. The compiler's own words
go to stderr, its schematic into the working folder.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path
from typing import Any

MODULE = "edgesam_deploy.targets.qnn.compile"
PROVIDER = "QNNExecutionProvider"
RESULT = "result.json"
ADDR_NO_RANDOMIZE = 0x0040000


def qnn_devices() -> list[Any]:
    """The devices that the QNN execution provider offers; registers it the first time."""
    import onnxruntime
    import onnxruntime_qnn

    def offered() -> list[Any]:
        return [device for device in onnxruntime.get_ep_devices() if device.ep_name == PROVIDER]

    if not offered():
        onnxruntime.register_execution_provider_library(PROVIDER, onnxruntime_qnn.get_library_path())
    return offered()[:1]


def compile_model(request: dict[str, Any]) -> dict[str, Any]:
    """Compile as asked; which nodes each partition of each processor has, or the error."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 0  # reasons are given in the verbose log only
    for key, value in (
        ("ep.context_enable", "1"),
        ("ep.context_file_path", request["context"]),
        ("ep.context_embed_mode", "1" if request["embed"] else "0"),
        ("session.record_ep_graph_assignment_info", "1"),
    ):
        options.add_session_config_entry(key, value)
    try:
        devices = qnn_devices()
    except Exception as e:  # a library that is missing, or two versions that do not fit together
        return {"unusable": f"{type(e).__name__}: {e}"}
    if not devices:
        return {"unusable": "its execution provider offers no device"}
    try:
        options.add_provider_for_devices(devices, request["provider"])
        # enable_fallback: without it the runtime retries on the CPU and hides the error
        session = onnxruntime.InferenceSession(
            request["model"], options, enable_fallback=0, disabled_optimizers=request["disabled"]
        )
    except Exception as e:  # the runtime's error types derive from Exception alone
        return {"error": str(e)}
    partitions = session.get_provider_graph_assignment_info()
    return {"partitions": [[p.ep_name, [[n.name, n.op_type] for n in p.get_nodes()]] for p in partitions]}


def fix_addresses() -> None:
    """Start this process again at addresses that do not vary, where the system allows it.

    The compiler pads weights with what lies behind them on the heap. Without this, pointers end up in the binary, and
    no two builds are alike.
    """
    libc = ctypes.CDLL(None)
    if not sys.platform.startswith("linux") or libc.personality(0xFFFFFFFF) & ADDR_NO_RANDOMIZE:
        return
    if libc.personality(ADDR_NO_RANDOMIZE) != -1 and libc.personality(0xFFFFFFFF) & ADDR_NO_RANDOMIZE:
        os.execv(sys.executable, [sys.executable, "-P", "-m", MODULE, *sys.argv[1:]])


def main(path: str) -> None:
    result = compile_model(json.loads(Path(path).read_text()))
    Path(RESULT).write_text(json.dumps(result))


if __name__ == "__main__":
    fix_addresses()
    main(sys.argv[1])
