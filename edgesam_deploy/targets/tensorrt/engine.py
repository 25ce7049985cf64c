"""Engines on a GPU: found by the machine they were built for, fed and read through CUDA's own bindings."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesam_deploy.errors import BundleError, EdgeSamDeployError, MissingToolkit, UsageError
from edgesam_deploy.targets.base import Arrays
from edgesam_deploy.targets.tensorrt.build_engine import FOLDER, EngineError, device, sha256_of

INSTALL = "pip install tensorrt cuda-python"
Address = int


def require_gpu(purpose: str) -> tuple[ModuleType, str]:
    """TensorRT and the GPU's name. Raises MissingToolkit that says what is missing and how to get it."""
    try:
        import tensorrt
        from cuda.bindings import runtime  # noqa: F401 (so that it is missed now, not after the build)
    except ImportError as e:
        raise MissingToolkit(f"{purpose} needs TensorRT and CUDA's bindings: {INSTALL} ({e})") from e
    try:
        return tensorrt, device()[0]
    except EngineError as e:
        raise MissingToolkit(f"{purpose}: {e}") from e


def engine_of(onnx: Path, version: str, gpu: str) -> Path:
    """The engine that was built of this file for this TensorRT and this GPU. Raises BundleError where there is none."""
    others = []
    for file in sorted((onnx.parent / FOLDER).glob(f"{onnx.stem}.*.json")):
        about = json.loads(file.read_text())
        where = f"TensorRT {about['tensorrt']} on {about['gpu']}"
        if about["onnx_sha256"] != sha256_of(onnx):
            others.append(f"{where}, of another {onnx.name}")
        elif (about["tensorrt"], about["gpu"]) == (version, gpu):
            engine = file.with_name(about["engine"])
            if not engine.is_file() or sha256_of(engine) != about["sha256"]:
                raise BundleError(f"{engine} is not whole (half copied?); run {onnx.parent / 'build_engine.py'} again")
            return engine
        else:
            others.append(where)
    known = f"; there are some for {'; '.join(others)}" if others else ""
    raise BundleError(
        f"{onnx} has no engine for TensorRT {version} on {gpu}{known}; run {onnx.parent / 'build_engine.py'}"
    )


class EngineRunner:
    """The engine of one part. ``graphs``: the launch is captured once per shape as a CUDA graph and replayed."""

    def __init__(self, path: Path, *, graphs: bool = False) -> None:
        trt, gpu = require_gpu("running an engine")
        file = engine_of(path, trt.__version__, gpu)
        self._logger = trt.Logger(trt.Logger.WARNING)
        self._runtime = trt.Runtime(self._logger)
        engine = self._runtime.deserialize_cuda_engine(file.read_bytes())
        if engine is None:
            raise BundleError(f"{file} cannot be loaded by TensorRT {trt.__version__}; build it again")
        self._engine, self._context = engine, engine.create_execution_context()
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        self.inputs = [n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
        self.outputs = [n for n in names if n not in self.inputs]
        self._types = {name: np.dtype(trt.nptype(engine.get_tensor_dtype(name))) for name in names}
        self._cuda = _Cuda()
        self._stream = self._cuda.stream()
        self._buffers: dict[str, _Buffer] = {}
        self._host: dict[str, NDArray[Any]] = {}
        self.graphs = graphs
        self._graph: Any = None  # of the shapes and addresses that are set
        self.description = f"TensorRT {trt.__version__} on {gpu}"

    def __call__(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        self._shape({name: inputs[name] for name in self.inputs})
        self._copy_in()
        self._launch(graph=self.graphs)
        self._copy_out()
        self._cuda.wait(self._stream)
        return {name: self._host[name].copy() for name in self.outputs}

    def device_latency(self, warmup: int, runs: int) -> dict[str, list[float]]:
        """Milliseconds by the GPU's clock of what the last call did: copy in, compute with and without a CUDA graph,
        copy out. The first of each list is the first after warming up.
        """
        stages: dict[str, Callable[[], None]] = {
            "H2D": self._copy_in,
            "GPU": lambda: self._launch(graph=False),
            "GPU, CUDA graph": lambda: self._launch(graph=True),
            "D2H": self._copy_out,
        }
        for _ in range(warmup):
            for stage in stages.values():
                stage()
        return {name: [self._cuda.timed(self._stream, stage) for _ in range(runs)] for name, stage in stages.items()}

    def _shape(self, inputs: Arrays) -> None:
        """Give the engine the shapes of a call, and every tensor room on either side."""
        for name, value in inputs.items():
            array = np.ascontiguousarray(value, self._types[name])
            known = self._host.get(name)
            if (known is None or known.shape != array.shape) and not self._context.set_input_shape(name, array.shape):
                raise UsageError(f"{name} {array.shape}: outside of the engine's profile; build it with a wider one")
            self._room(name, array.shape)
            self._host[name] = array
        for name in self.outputs:
            shape = tuple(self._context.get_tensor_shape(name))
            self._room(name, shape)
            if name not in self._host or self._host[name].shape != shape:
                self._host[name] = np.empty(shape, self._types[name])

    def _room(self, name: str, shape: Sequence[int]) -> None:
        if name in self._host and self._host[name].shape == tuple(shape):
            return
        self._graph = None
        size = max(int(np.prod(shape)) * self._types[name].itemsize, 1)
        if name not in self._buffers or self._buffers[name].size < size:
            self._buffers[name] = _Buffer(self._cuda, size)
        self._context.set_tensor_address(name, self._buffers[name].address)

    def _copy_in(self) -> None:
        for name in self.inputs:
            self._cuda.copy_in(self._buffers[name].address, self._host[name], self._stream)

    def _copy_out(self) -> None:
        for name in self.outputs:
            self._cuda.copy_out(self._host[name], self._buffers[name].address, self._stream)

    def _launch(self, *, graph: bool) -> None:
        if graph and self._graph is None:
            self._run()  # TensorRT allocates on a shape's first run, which a capture does not allow
            self._graph = self._cuda.captured(self._stream, self._run)
        if graph:
            self._cuda.launch(self._graph, self._stream)
        else:
            self._run()

    def _run(self) -> None:
        if not self._context.execute_async_v3(self._stream):
            raise EdgeSamDeployError(f"{self.description}: the engine did not start; its log above says why")


class _Buffer:
    """Memory on the device, freed with the object."""

    def __init__(self, cuda: _Cuda, size: int) -> None:
        self._cuda, self.size = cuda, size
        self.address: Address = cuda.allocate(size)

    def __del__(self) -> None:
        if hasattr(self, "address"):
            self._cuda.free(self.address)


class _Cuda:
    """The calls of CUDA's runtime that this needs. Each raises EdgeSamDeployError with the error's name."""

    def __init__(self) -> None:
        from cuda.bindings import runtime

        self._runtime: Any = runtime

    def _call(self, name: str, *arguments: Any) -> Any:
        error, *results = getattr(self._runtime, name)(*arguments)
        if int(error):
            raise EdgeSamDeployError(f"CUDA: {name} gave {getattr(error, 'name', error)}")
        return results[0] if results else None

    def stream(self) -> Any:
        return int(self._call("cudaStreamCreate"))

    def allocate(self, size: int) -> Address:
        return int(self._call("cudaMalloc", size))

    def free(self, address: Address) -> None:
        self._call("cudaFree", address)

    def copy_in(self, device: Address, host: NDArray[Any], stream: Any) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", device, host.ctypes.data, host.nbytes, kind, stream)

    def copy_out(self, host: NDArray[Any], device: Address, stream: Any) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", host.ctypes.data, device, host.nbytes, kind, stream)

    def wait(self, stream: Any) -> None:
        self._call("cudaStreamSynchronize", stream)

    def captured(self, stream: Any, work: Callable[[], None]) -> Any:
        """The work as a graph that can be launched."""
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)
        work()
        return self._call("cudaGraphInstantiate", self._call("cudaStreamEndCapture", stream), 0)

    def launch(self, graph: Any, stream: Any) -> None:
        self._call("cudaGraphLaunch", graph, stream)

    def timed(self, stream: Any, work: Callable[[], None]) -> float:
        """Milliseconds between two events around the work."""
        start, end = self._call("cudaEventCreate"), self._call("cudaEventCreate")
        self._call("cudaEventRecord", start, stream)
        work()
        self._call("cudaEventRecord", end, stream)
        self._call("cudaEventSynchronize", end)
        elapsed = float(self._call("cudaEventElapsedTime", start, end))
        for event in (start, end):
            self._call("cudaEventDestroy", event)
        return elapsed
