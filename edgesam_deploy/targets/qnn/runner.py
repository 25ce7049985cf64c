"""A compiled part in the HTP emulator that onnxruntime-qnn brings along: the NPU on a CPU, minutes a run."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray

from edgesam_deploy.errors import BundleError, EdgeSamDeployError
from edgesam_deploy.targets.base import Arrays
from edgesam_deploy.targets.qnn.compile import qnn_devices
from edgesam_deploy.toolkits import installed_version, require


class QnnRunner:
    """One EPContext model. Loading it says nothing of the chip: a context for one loads as any other's."""

    def __init__(self, path: Path) -> None:
        ort = require("onnxruntime", "running a QNN artifact")
        require("onnxruntime_qnn", "running a QNN artifact")
        options = ort.SessionOptions()
        options.log_severity_level = 3
        try:
            with _stdout_to_stderr():
                options.add_provider_for_devices(qnn_devices(), {"backend_type": "htp"})
                self.session = ort.InferenceSession(str(path), options, enable_fallback=0)
        except Exception as e:  # its error types derive from Exception alone
            first = str(e).splitlines()[0]
            raise BundleError(f"{path} cannot be loaded ({first}); edgesam-deploy verify tells if it is damaged") from e
        version = installed_version("onnxruntime-qnn")
        self.description = f"HTP emulator, {compiler_version(path)}, onnxruntime-qnn {version}"
        self.outputs = [out.name for out in self.session.get_outputs()]

    def __call__(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        try:
            with _stdout_to_stderr():
                values = self.session.run(self.outputs, dict(inputs))
        except Exception as e:  # its error types derive from Exception alone
            raise EdgeSamDeployError(f"the artifact failed in the HTP emulator: {str(e).splitlines()[0]}") from e
        return dict(zip(self.outputs, values, strict=True))


def compiler_version(context: Path) -> str:
    """``QAIRT 2.51.0.260929181845``, from an EPContext model."""
    graph = onnx.load(context, load_external_data=False).graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name == "ep_sdk_version":
                return f"QAIRT {attribute.s.decode().removeprefix('v')}"
    return "QAIRT of an unknown version"


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """The vendor's library prints to stdout, where results go."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
