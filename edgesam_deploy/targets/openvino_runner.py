"""OpenVINO as a runtime of .onnx files, which it reads itself: the file that runs is the one that was built."""

from __future__ import annotations

import functools
import threading
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgesam_deploy.errors import BundleError, EdgeSamDeployError
from edgesam_deploy.targets.base import Arrays
from edgesam_deploy.toolkits import require

OPENVINO = "openvino"  # as a provider
# f32: of itself the plugin computes in bf16 where the CPU has such instructions, and says nothing
CONFIG = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}


_MAKING = threading.Lock()


def openvino_core() -> Any:
    """The process's one ``openvino.Core``, kept for good.

    A core's CPU plugin gives the thread that loads it a stack for signals, and puts back the one before when it goes.
    Of two cores, the one that goes last puts back the first one's, which is unmapped by then: the next signal with a
    handler of Python's, a Ctrl-C or the end of a data loader's worker, ends the process.
    """
    with _MAKING:  # of two that are made at once, one would be dropped
        return _core()


@functools.cache
def _core() -> Any:
    return require("openvino", "--provider openvino").Core()


class OpenvinoRunner:
    """One .onnx file in OpenVINO's CPU plugin; ``threads`` 0 leaves their number to it."""

    def __init__(self, path: Path, threads: int = 0) -> None:
        import onnx

        ov = require("openvino", "--provider openvino")
        config = {**CONFIG, "INFERENCE_NUM_THREADS": threads} if threads else CONFIG
        try:
            model = openvino_core().compile_model(str(path), "CPU", config)
            names = [value.name for value in onnx.load(path, load_external_data=False).graph.output]
            self.outputs = {name: model.output(name) for name in names}  # a port has other names beside the file's own
        except Exception as e:  # its error types derive from Exception alone
            raise BundleError(
                f"{path} cannot be loaded by OpenVINO ({_first_line(e)}); edgesam-deploy verify tells if it is damaged"
            ) from e
        self.request = model.create_infer_request()
        self.description = f"openvino {ov.__version__.split('-')[0]}, CPU"

    def __call__(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        try:
            values = self.request.infer(dict(inputs))
        except Exception as e:  # its error types derive from Exception alone
            raise EdgeSamDeployError(f"the artifact failed in OpenVINO: {_first_line(e)}") from e
        return {name: values[port] for name, port in self.outputs.items()}


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
