#!/usr/bin/env python3
"""Build the TensorRT engines of a bundle on the machine that will run them. Needs Python 3.8 and tensorrt, no more.

    python build_engine.py [--parts image_encoder ...] [--out engines] [--workspace-mb N] [--verbose]

Reads build_engine.json beside it and writes, for each part, <part>.<TensorRT version>.<GPU>.engine with what it is in
a .json of the same name, and the timing cache, which makes the next build faster. An engine belongs to the GPU model
and the TensorRT version that it was built with. Exit codes: 0 all built, 1 not all, 2 usage, 3 no TensorRT or no GPU.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

RECIPE, FOLDER, SCHEMA = "build_engine.json", "engines", 1
CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76  # CUdevice_attribute


class EngineError(Exception):
    """What could not be built and why; ``exit_code`` is the script's."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def build_engines(
    folder: Path, out: Path, parts: list[str] | None = None, *, workspace_mb: int = 0, verbose: bool = False
) -> list[Path]:
    """Engines of the bundle in ``folder``, written into ``out``; the paths of their .json files.

    parts: by name, default all. workspace_mb: most memory that a layer may take while it runs; 0: TensorRT's own limit.
    Raises EngineError. A part that fails leaves nothing; the ones before it stay.
    """
    recipe = json.loads((folder / RECIPE).read_text(encoding="utf-8"))
    chosen = list(recipe["parts"]) if parts is None else parts
    unknown = [name for name in chosen if name not in recipe["parts"]]
    if unknown:
        raise EngineError(f"no part {unknown[0]}; this bundle has {', '.join(recipe['parts'])}", 2)
    trt, gpu, capability = import_tensorrt(), *device()
    if trt.__version__.split(".")[0] != str(recipe["tensorrt"]):
        _say(f"note: this bundle was made for TensorRT {recipe['tensorrt']}; this is {trt.__version__}")
    out.mkdir(parents=True, exist_ok=True)
    logger = trt.Logger(trt.Logger.VERBOSE if verbose else trt.Logger.WARNING)
    written = []
    for name in chosen:
        part = {"part": name, **recipe["parts"][name]}
        _say(f"building {part['file']} for TensorRT {trt.__version__} on {gpu}")
        start = time.time()
        stem = f"{Path(part['file']).stem}.{engine_suffix(trt.__version__, gpu)}"
        plan = _plan(
            trt, logger, folder, part, out / f"timing.{engine_suffix(trt.__version__, gpu)}.cache", workspace_mb
        )
        about = {
            "schema": SCHEMA, "part": name, "engine": f"{stem}.engine", "sha256": hashlib.sha256(plan).hexdigest(),
            "bytes": len(plan), "onnx": part["file"], "onnx_sha256": sha256_of(folder / part["file"]),
            "tensorrt": trt.__version__, "gpu": gpu, "compute_capability": capability,
            "precision": part["precision"], "profiles": part["profiles"], "seconds": round(time.time() - start, 1),
        }  # fmt: skip
        _write(out / f"{stem}.engine", plan)
        _write(out / f"{stem}.json", (json.dumps(about, indent=2, sort_keys=True) + "\n").encode())
        written.append(out / f"{stem}.json")
    return written


def import_tensorrt() -> Any:
    """The module. Raises EngineError that says how to install it."""
    try:
        import tensorrt
    except ImportError as e:
        raise EngineError(f"needs TensorRT: pip install tensorrt, or NVIDIA's package for this system ({e})", 3) from e
    return tensorrt


def device() -> tuple[str, str]:
    """Name and compute capability of the first GPU, from the driver. Raises EngineError where there is none."""
    name = "nvcuda.dll" if os.name == "nt" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
    except OSError as e:
        raise EngineError(f"no NVIDIA driver here ({e}); run this on the machine with the GPU", 3) from e
    handle, text, numbers = ctypes.c_int(), ctypes.create_string_buffer(256), (ctypes.c_int(), ctypes.c_int())
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(handle), 0):
        raise EngineError("the NVIDIA driver finds no GPU; see nvidia-smi, and CUDA_VISIBLE_DEVICES", 3)
    driver.cuDeviceGetName(text, len(text), handle)
    for number, attribute in zip(numbers, (CAPABILITY_MAJOR, CAPABILITY_MINOR)):  # noqa: B905 (Python 3.8)
        driver.cuDeviceGetAttribute(ctypes.byref(number), attribute, handle)
    return text.value.decode(), f"{numbers[0].value}.{numbers[1].value}"


def engine_suffix(version: str, gpu: str) -> str:
    """What an engine's name says of where it runs: ``10.15.1.29.NVIDIA-H100-80GB-HBM3``."""
    return f"{version}.{re.sub(r'[^A-Za-z0-9]+', '-', gpu).strip('-')}"


def _plan(trt: Any, logger: Any, folder: Path, part: dict[str, Any], cache_file: Path, workspace_mb: int) -> bytes:
    """The serialised engine of one part; saves the timing cache."""
    builder = trt.Builder(logger)
    strong = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # TensorRT 11 knows no other networks
    network = builder.create_network(0 if strong is None else 1 << int(strong))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(folder / part["file"])):
        errors = [str(parser.get_error(i)) for i in range(parser.num_errors)]
        raise EngineError(f"TensorRT {trt.__version__} cannot parse {part['file']}:\n  " + "\n  ".join(errors))
    _check_inputs(network, part)
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default: fp32 would keep 11 bits, and positions take many turns
    if workspace_mb:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_mb << 20)
    cache = config.create_timing_cache(cache_file.read_bytes() if cache_file.is_file() else b"")
    config.set_timing_cache(cache, False)
    if part["profiles"]:
        profile = builder.create_optimization_profile()
        for name, shapes in part["profiles"].items():
            profile.set_shape(name, *(tuple(shapes[end]) for end in ("min", "opt", "max")))
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(f"TensorRT {trt.__version__} cannot build {part['file']}; its log above says why")
    _write(cache_file, bytes(config.get_timing_cache().serialize()))
    return bytes(plan)


def _check_inputs(network: Any, part: dict[str, Any]) -> None:
    found = {network.get_input(i).name: network.get_input(i) for i in range(network.num_inputs)}
    if set(found) != set(part["inputs"]):
        raise EngineError(f"{part['file']} has inputs {sorted(found)}, the bundle says {sorted(part['inputs'])}")
    tensors = [name for name, tensor in found.items() if getattr(tensor, "is_shape_tensor", False)]
    if tensors:
        raise EngineError(f"{part['file']}: input {tensors[0]} is a shape tensor, which no profile here has values for")


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        if partial.exists():
            partial.unlink()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    here = Path(__file__).resolve().parent
    command = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    command.add_argument("--parts", nargs="+", metavar="PART", help="default: all")
    command.add_argument("--out", type=Path, default=here / FOLDER, help="folder of the engines, default: %(default)s")
    command.add_argument("--workspace-mb", type=int, default=0, help="most memory for one layer; default: no limit")
    command.add_argument("--verbose", action="store_true", help="TensorRT's whole log")
    given = command.parse_args(arguments)
    try:
        written = build_engines(here, given.out, given.parts, workspace_mb=given.workspace_mb, verbose=given.verbose)
    except EngineError as e:
        _say(f"error: {e}")
        return e.exit_code
    except OSError as e:
        _say(f"error: {e}")
        return 1
    for path in written:
        print(path.with_suffix(".engine"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
