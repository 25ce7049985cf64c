"""Times the parts of artifacts where they lie. Stands alone (Python 3.9, NumPy, the runtime): it is pushed as it is.

    python3 runner.py job.json

The job lists the calls, of one bundle or of several that take turns. Each fact is printed as one line of JSON as soon
as it is known, so a lost connection costs only what was not measured yet; the last line says ``done``. Files are named
relative to the job's folder.

    {"runs": 20, "warmup": 3, "seconds": null, "threads": 0, "provider": "cpu", "bundles": [
      {"name": "a", "calls": [{"stage": "encoder", "prompts": 1, "outputs": "encoder.out.npz", "steps": [
        {"part": "image_encoder", "file": "encoder.onnx", "inputs": "encoder.npz"}]}, ...]}]}

A call is a row of steps. What the ``inputs`` of one lack comes from the outputs of those before it, in the calls before
as well. ``outputs`` (optional) is written for the host to compare: the last step's. A bundle may have a ``provider``
of its own.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import platform
import random
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

LEAST_RUNS, MOST_RUNS = 3, 1000  # where seconds decide
SETTLE_SECONDS = 0.005  # idle threads of the session before spin for about 1 ms: let them go to sleep first
PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
    "nnapi": "NnapiExecutionProvider",
}
TFLITE_RUNTIMES = ("ai_edge_litert.interpreter", "tflite_runtime.interpreter", "tensorflow.lite.python.interpreter")
EMPTY_SLOT = -10  # the label of a slot that no prompt uses
Call = Callable[[], object]


def milliseconds(call: Call) -> tuple[float, float]:
    """Wall clock and CPU time of the process, of one call."""
    cpu, wall = time.process_time(), time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu)


def interleave(
    calls: Mapping[str, Call],
    *,
    warmup: int,
    runs: int,
    seconds: float | None = None,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Time calls that take turns, in an order drawn anew each round; name -> ``first``, and ``wall``, ``cpu`` by round.

    seconds: end after that long instead, per call, with 3 rounds at least and 1000 at most.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, call in calls.items():
        found[name] = {"first": milliseconds(call)[0], "wall": [], "cpu": []}
        for _ in range(warmup):
            call()
    order, start = random.Random(seed), time.perf_counter()
    for index in range(runs if seconds is None else MOST_RUNS):
        if seconds is not None and index >= LEAST_RUNS and time.perf_counter() - start > seconds * len(calls):
            break
        for name in order.sample(list(calls), len(calls)):
            if len(calls) > 1:
                time.sleep(SETTLE_SECONDS)
            wall, cpu = milliseconds(calls[name])
            found[name]["wall"].append(wall)
            found[name]["cpu"].append(cpu)
    return found


def merged(orders: Iterable[list[str]]) -> list[str]:
    """Every name of several lists once, each where its own list has it."""
    found: list[str] = []
    for names in orders:
        place = 0
        for name in names:
            if name in found:
                place = found.index(name) + 1
            else:
                found.insert(place, name)
                place += 1
    return found


def summary(stage: str, first: float, wall: list[float], cpu: list[float] | None = None) -> dict[str, Any]:
    """One row: milliseconds of the first call after loading and of the warm ones, and CPU time (median) beside."""
    quantiles = (("p50", 50), ("p90", 90), ("p99", 99))
    return {
        "stage": stage,
        "runs": len(wall),
        "first": first,
        "mean": float(np.mean(wall)),
        "min": min(wall),
        "max": max(wall),
        **{name: float(np.percentile(wall, q)) for name, q in quantiles},
        "std": float(np.std(wall, ddof=1)) if len(wall) > 1 else 0.0,
        "cpu": float(np.median(cpu)) if cpu else None,
        "times": wall,
    }


def peak_rss_mb() -> float | None:
    """Largest resident memory of this process so far. Linux alone keeps it per program (getrusage's outlives exec)."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    peak = [line.split()[1] for line in lines if line.startswith("VmHWM")]
    return int(peak[0]) / 1024 if peak else None


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """What the processor calls itself."""
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


class OnnxPart:
    """An .onnx file in ONNX Runtime."""

    def __init__(self, file: Path, part: str, provider: str, threads: int) -> None:
        ort = importlib.import_module("onnxruntime")
        wanted = PROVIDERS[provider]
        if wanted not in ort.get_available_providers():
            raise RuntimeError(f"onnxruntime {ort.__version__} there has no {wanted}: {ort.get_available_providers()}")
        options = ort.SessionOptions()
        options.log_severity_level = 3
        if threads:
            options.intra_op_num_threads = threads
        self.session = ort.InferenceSession(str(file), options, providers=[wanted], enable_fallback=0)
        if self.session.get_providers()[0] != wanted:  # its libraries are missing, and the CPU would be timed
            raise RuntimeError(f"onnxruntime {ort.__version__} there has {wanted}, but could not start it")
        self.inputs = [tensor.name for tensor in self.session.get_inputs()]
        self.outputs = [tensor.name for tensor in self.session.get_outputs()]
        self.description = f"onnxruntime {ort.__version__}, {wanted}"

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        values = self.session.run(self.outputs, {name: inputs[name] for name in self.inputs})
        return dict(zip(self.outputs, values))  # noqa: B905 - Python 3.9 has no strict


class OpenvinoPart:
    """An .onnx file in OpenVINO, in fp32: of itself it computes in bf16 where the CPU can."""

    def __init__(self, file: Path, part: str, provider: str, threads: int) -> None:
        ov = importlib.import_module("openvino")
        config = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        if threads:
            config["INFERENCE_NUM_THREADS"] = str(threads)
        model = _openvino_core().compile_model(str(file), "CPU", config)
        self._request = model.create_infer_request()
        self._ports = model.inputs
        self.inputs = [name for port in model.inputs for name in port.names]  # a port may have several
        self._outputs = [(name, port) for port in model.outputs for name in port.names]
        self.description = f"openvino {ov.__version__.split('-')[0]}, CPU"

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        feeds = {port: next(inputs[n] for n in port.names if n in inputs) for port in self._ports}
        values = self._request.infer(feeds)
        return {name: values[port] for name, port in self._outputs}


@functools.cache
def _openvino_core() -> Any:
    """One for all: of two, the one that goes last leaves signals a stack that is gone, and the next one is the end."""
    return importlib.import_module("openvino").Core()


class TflitePart:
    """The signature of a .tflite file that holds the prompts: of several decoders the smallest. Channels last where
    the file has them so; empty slots at the end are dropped, which is exact.
    """

    def __init__(self, file: Path, part: str, provider: str, threads: int) -> None:
        module = _first_importable(TFLITE_RUNTIMES)
        self._interpreter = module.Interpreter(model_path=str(file), num_threads=threads or os.cpu_count())
        stem = {"image_encoder": "encode", "mask_decoder": "decode_", "segmenter": "segment"}[part]
        names = [name for name in self._interpreter.get_signature_list() if name.startswith(stem)]
        self._runners = [self._interpreter.get_signature_runner(name) for name in names]
        self.inputs = sorted({name for runner in self._runners for name in runner.get_input_details()})
        self.description = f"{module.__name__.split('.')[0]}, {threads or os.cpu_count()} thread(s)"

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        runner, shapes = self._fitting(inputs)
        feeds = {name: self._fitted(inputs[name], shape) for name, shape in shapes.items()}
        return dict(runner(**feeds))

    def _fitting(self, inputs: Mapping[str, Any]) -> tuple[Any, dict[str, list[int]]]:
        shaped = [
            (runner, {name: [int(n) for n in entry["shape"]] for name, entry in runner.get_input_details().items()})
            for runner in self._runners
        ]
        if "point_labels" not in inputs:
            return shaped[0]
        filled = np.flatnonzero((inputs["point_labels"] != EMPTY_SLOT).any(axis=0))
        used = int(filled[-1]) + 1 if filled.size else 0
        holding = [pair for pair in shaped if pair[1]["point_labels"][1] >= used]
        return min(holding, key=lambda pair: pair[1]["point_labels"][1])

    @staticmethod
    def _fitted(value: Any, shape: list[int]) -> Any:
        if value.ndim == 4 and list(value.shape) != shape:
            value = value.transpose(0, 2, 3, 1)
        return np.ascontiguousarray(value[tuple(slice(n) for n in shape)])


def _first_importable(names: tuple[str, ...]) -> Any:
    for name in names:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise ImportError(f"none of {', '.join(names)} can be imported")


PARTS = {".onnx": OnnxPart, ".tflite": TflitePart}


def run(job: dict[str, Any], folder: Path, say: Callable[[dict[str, Any]], None]) -> None:
    """Do the job; ``say`` gets one dict per fact."""
    facts = {"python": platform.python_version(), "numpy": np.__version__, "cores": os.cpu_count()}
    system = f"{platform.system()} {platform.machine()}"
    say({"event": "start", **facts, "system": system, "cpu": cpu_model()})
    parts: dict[str, Any] = {}
    for bundle in job["bundles"]:
        start = time.perf_counter()
        description = ""
        for step in (step for call in bundle["calls"] for step in call["steps"]):
            key = _key(bundle, step)
            if key not in parts:
                file = folder / step["file"]
                provider = bundle.get("provider", job["provider"])
                kind = OpenvinoPart if provider == "openvino" else PARTS[file.suffix]
                parts[key] = kind(file, step["part"], provider, job["threads"])
                description = parts[key].description
        load = 1e3 * (time.perf_counter() - start)
        say({"event": "loaded", "bundle": bundle["name"], "load_ms": load, "executed": description})
    made: dict[str, dict[str, Any]] = {bundle["name"]: {} for bundle in job["bundles"]}
    for stage in merged([call["stage"] for call in bundle["calls"]] for bundle in job["bundles"]):
        say({"event": "begin", "stage": stage})
        calls: dict[str, Call] = {}
        answers: dict[str, int] = {}
        for bundle in job["bundles"]:
            call = next((call for call in bundle["calls"] if call["stage"] == stage), None)
            if call is not None:
                runners = [parts[_key(bundle, step)] for step in call["steps"]]
                calls[bundle["name"]] = _prepared(runners, call, folder, made[bundle["name"]])
                answers[bundle["name"]] = call["prompts"]
        timing = {name: job[name] for name in ("warmup", "runs", "seconds")}
        for name, found in interleave(calls, **timing).items():
            row = summary(stage, found["first"], found["wall"], found["cpu"])
            say({"event": "row", "bundle": name, "row": {**row, "prompts": answers[name]}})
    say({"event": "done", "peak_rss_mb": peak_rss_mb()})


def _key(bundle: dict[str, Any], step: dict[str, Any]) -> str:
    return f"{bundle['name']}:{step['file']}:{step['part']}"


def _prepared(parts: list[Any], call: dict[str, Any], folder: Path, made: dict[str, Any]) -> Call:
    """The call with its inputs in place, made once so that its outputs are there for those after it."""
    fed: list[tuple[Any, dict[str, Any]]] = []
    outputs: dict[str, Any] = {}
    for part, step in zip(parts, call["steps"]):  # noqa: B905 - Python 3.9 has no strict
        values = {**made, **np.load(folder / step["inputs"])}
        inputs = {name: values[name] for name in part.inputs if name in values}
        outputs = part(inputs)
        made.update(outputs)
        fed.append((part, inputs))
    if call.get("outputs"):
        np.savez(folder / call["outputs"], **outputs)

    def again() -> None:
        for part, inputs in fed:
            part(inputs)

    return again


def main(argv: list[str] | None = None) -> int:
    """Read the job, print the lines; 1 with an ``error`` line where the runtime or a file is not as it should be."""
    path = Path((argv or sys.argv[1:])[0])

    def say(fact: dict[str, Any]) -> None:
        print(json.dumps(fact), flush=True)

    try:
        run(json.loads(path.read_text()), path.parent, say)
    except Exception as e:  # whatever it is, the host has to hear of it
        say({"event": "error", "error": f"{type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}"})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
