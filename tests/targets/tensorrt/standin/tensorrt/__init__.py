"""A stand-in for TensorRT: records what is asked of it, and "engines" run the ONNX they were made of in ONNX Runtime.

It shows that the calls, files and failures of this project's code fit together, not what TensorRT makes of a model.
Environment: STANDIN_VERSION, STANDIN_LOG (a file of JSON lines), STANDIN_FAIL (parse or build).
"""

import ctypes
import json
import os
from enum import IntEnum

import numpy as np
import onnx

__version__ = os.environ.get("STANDIN_VERSION", "10.15.1.29")
MAJOR = int(__version__.split(".")[0])
GPU = "Stand-in GPU (1)"


def record(call, *arguments):
    if "STANDIN_LOG" in os.environ:
        with open(os.environ["STANDIN_LOG"], "a") as file:
            file.write(json.dumps([call, *arguments]) + "\n")


class _Driver:
    @staticmethod
    def cuInit(_):
        return 100 if os.environ.get("STANDIN_FAIL") == "gpu" else 0

    @staticmethod
    def cuDeviceGet(*_):
        return 0

    @staticmethod
    def cuDeviceGetName(text, size, _):
        text.value = GPU.encode()
        return 0

    @staticmethod
    def cuDeviceGetAttribute(number, attribute, _):
        number._obj.value = {75: 9, 76: 0}[attribute]
        return 0


if not hasattr(ctypes, "real_CDLL"):
    ctypes.real_CDLL = ctypes.CDLL


def _cdll(name, *rest, **more):
    return _Driver() if name == "libcuda.so.1" else ctypes.real_CDLL(name, *rest, **more)


ctypes.CDLL = _cdll


class Logger:
    VERBOSE, WARNING = 4, 2

    def __init__(self, severity):
        self.severity = severity


if MAJOR < 11:

    class NetworkDefinitionCreationFlag(IntEnum):
        STRONGLY_TYPED = 1
else:

    class NetworkDefinitionCreationFlag(IntEnum):  # as if it were gone altogether
        pass


class BuilderFlag(IntEnum):
    TF32 = 7


class MemoryPoolType(IntEnum):
    WORKSPACE = 0


class TensorIOMode(IntEnum):
    INPUT = 1
    OUTPUT = 2


def nptype(dtype):
    return dtype


class _Tensor:
    def __init__(self, name):
        self.name, self.is_shape_tensor = name, False


class _Network:
    path = None

    @property
    def num_inputs(self):
        return len(self._inputs())

    def get_input(self, index):
        return _Tensor(self._inputs()[index])

    def _inputs(self):
        return [value.name for value in onnx.load(self.path, load_external_data=False).graph.input]


class _Profile:
    def __init__(self):
        self.shapes = {}

    def set_shape(self, name, least, usual, most):
        self.shapes[name] = least, usual, most
        record("set_shape", name, least, usual, most)


class _Cache:
    def __init__(self, content):
        self.content = content

    def serialize(self):
        return self.content + b"+"


class _Config:
    profile = None

    def clear_flag(self, flag):
        record("clear_flag", flag.name)

    def set_memory_pool_limit(self, pool, size):
        record("set_memory_pool_limit", pool.name, size)

    def create_timing_cache(self, content):
        record("create_timing_cache", len(content))
        return _Cache(content)

    def set_timing_cache(self, cache, ignore_mismatch):
        self.cache = cache

    def get_timing_cache(self):
        return self.cache

    def add_optimization_profile(self, profile):
        self.profile = profile


class Builder:
    def __init__(self, logger):
        record("Builder", logger.severity)

    def create_network(self, flags):
        record("create_network", flags)
        return _Network()

    def create_builder_config(self):
        return _Config()

    def create_optimization_profile(self):
        return _Profile()

    def build_serialized_network(self, network, config):
        record("build_serialized_network", os.path.basename(network.path))
        if os.environ.get("STANDIN_FAIL") == "build":
            return None
        shapes = {} if config.profile is None else config.profile.shapes
        head = json.dumps(shapes).encode() + b"\n"
        with open(network.path, "rb") as file:
            return memoryview(head + file.read())


class OnnxParser:
    def __init__(self, network, logger):
        self.network = network

    @property
    def num_errors(self):
        return 2

    def get_error(self, index):
        return f"In node {index} with name: Mystery_{index} (importer): UNSUPPORTED_NODE"

    def parse_from_file(self, path):
        record("parse_from_file", os.path.basename(path))
        self.network.path = path
        return os.environ.get("STANDIN_FAIL") != f"parse {os.path.basename(path)}"


class Runtime:
    def __init__(self, logger):
        pass

    def deserialize_cuda_engine(self, plan):
        head, _, model = plan.partition(b"\n")
        return _Engine(json.loads(head), model)


class _Engine:
    def __init__(self, profile, model):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        self.profile = profile
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.ins = [value.name for value in self.session.get_inputs()]
        self.outs = [value.name for value in self.session.get_outputs()]
        self.num_io_tensors = len(self.ins) + len(self.outs)

    def get_tensor_name(self, index):
        return (self.ins + self.outs)[index]

    def get_tensor_mode(self, name):
        return TensorIOMode.INPUT if name in self.ins else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name):
        return np.float32

    def create_execution_context(self):
        return _Context(self)


class _Context:
    def __init__(self, engine):
        self.engine, self.shapes, self.addresses = engine, {}, {}

    def set_input_shape(self, name, shape):
        record("set_input_shape", name, list(shape))
        if name in self.engine.profile:
            least, _, most = self.engine.profile[name]
            if not all(a <= size <= b for a, size, b in zip(least, shape, most, strict=True)):
                return False
        self.shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name):
        value = next(v for v in self.engine.session.get_outputs() if v.name == name)
        batch = next(iter(self.shapes.get("point_coords", (1,))))
        return [batch if isinstance(size, str) else size for size in value.shape]

    def set_tensor_address(self, name, address):
        self.addresses[name] = address

    def _array(self, name, shape):
        size = int(np.prod(shape)) * 4
        return np.frombuffer((ctypes.c_char * size).from_address(self.addresses[name]), np.float32).reshape(shape)

    def execute_async_v3(self, stream):
        from cuda.bindings import runtime

        runtime.submit(self._execute)
        return True

    def _execute(self):
        record("execute")
        feeds = {name: self._array(name, self.shapes[name]) for name in self.engine.ins}
        for name, value in zip(self.engine.outs, self.engine.session.run(self.engine.outs, feeds), strict=True):
            self._array(name, value.shape)[...] = value
