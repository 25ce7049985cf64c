"""Runs the compiler in a process of its own, within limits of time and memory, and says how it ended."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgesam_deploy.errors import MissingToolkit
from edgesam_deploy.targets.qnn.compile import MODULE, RESULT
from edgesam_deploy.targets.qnn.schematic import Traffic, read_traffic
from edgesam_deploy.targets.qnn.soc import Soc
from edgesam_deploy.toolkits import how_to_get

End = Literal["compiled", "refused", "crashed", "killed", "out of time", "out of memory"]
POLL = 0.05  # seconds between two looks at the process
OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)  # sent by somebody else: the system short of memory, a user
# memory that was never written reads as zero; without the per-thread cache, which hands out blocks as they were
CLEAN_HEAP = "glibc.malloc.tcache_count=0:glibc.malloc.perturb=255"
# makes Gemm and Reshape of MatMul and Add, and then a Quantize behind a Reshape that the compiler cannot place
DISABLED = ("MatMulAddFusion",)


@dataclass(frozen=True)
class Settings:
    """What a binary is made for. vtcm_mb: of the HTP's own memory, 0 for all of it. embed: inside the ONNX file."""

    soc: Soc
    optimization: int = 3
    vtcm_mb: int = 0
    embed: bool = True
    quantised: bool = False

    def provider(self) -> dict[str, str]:
        """Options of the execution provider."""
        options = {
            "backend_type": "htp",
            "soc_model": self.soc.name,
            "htp_graph_finalization_optimization_mode": str(self.optimization),
            "offload_graph_io_quantization": "0",  # Quantize and Dequantize at the graph's ends run on the NPU too
            "profiling_level": "optrace",  # writes the schematic; the binary is the same with it
            "profiling_file_path": "profile.csv",
            "enable_htp_fp16_precision": "1",
        }
        if self.vtcm_mb:
            options["vtcm_mb"] = str(self.vtcm_mb)
        return options


@dataclass(frozen=True)
class Limits:
    """What one run of the compiler may take: seconds, and MB of resident memory (where /proc tells)."""

    seconds: float = 1800
    memory_mb: int = 8192


@dataclass(frozen=True)
class Partition:
    """Nodes that run as one graph on one processor: their names and operators after ONNX Runtime's rewrites."""

    on_npu: bool
    nodes: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Compilation:
    """How a run of the compiler ended, in its own words where it had any; partitions and traffic if it compiled."""

    end: End
    error: str = ""
    log: str = ""
    partitions: tuple[Partition, ...] = ()
    traffic: Traffic | None = None
    seconds: float = 0.0


def compile_onnx(model: Path, context: Path, settings: Settings, limits: Limits | None = None) -> Compilation:
    """Compile ``model`` into the EPContext model ``context``, which is written only if that ends well.

    Raises MissingToolkit where the compiler cannot even be started.
    """
    with tempfile.TemporaryDirectory(prefix="qnn_") as name:
        folder = Path(name)
        _place(model, folder)
        request = {
            "model": model.name, "context": context.name, "embed": settings.embed, "provider": settings.provider(),
            "disabled": list(DISABLED) if settings.quantised else [],
        }  # fmt: skip
        (folder / "request.json").write_text(json.dumps(request))
        start = time.perf_counter()
        end, error = _run(folder, limits or Limits())
        seconds = time.perf_counter() - start
        log = (folder / "stderr").read_text(errors="replace")
        result = _result(folder) if not end else {}
        if "unusable" in result:
            raise MissingToolkit(
                f"onnxruntime-qnn is installed but cannot be used here ({_first_line(result['unusable'])}); install it "
                f"again: {how_to_get('qnn')}"
            )
        if end or "error" in result:
            return Compilation(end or "refused", error or _first_line(result["error"]), log, seconds=seconds)
        partitions = tuple(Partition("QNN" in ep, tuple(map(tuple, nodes))) for ep, nodes in result["partitions"])
        traffic = read_traffic(sorted(folder.glob("*_schematic.bin")))
        for made in sorted(folder.glob(f"{context.stem}*")):
            if made.name != model.name:
                shutil.move(made, context.parent / made.name)
        return Compilation("compiled", "", log, partitions, traffic, seconds)


def _place(model: Path, folder: Path) -> None:
    """The model beside the request, under its own name: a path is hashed into the binary."""
    for path in (model, model.with_name(f"{model.name}.data")):
        if path.exists():
            try:
                os.link(path, folder / path.name)
            except OSError:
                shutil.copyfile(path, folder / path.name)


def _run(folder: Path, limits: Limits) -> tuple[End | Literal[""], str]:
    """Run the compiler's process to its end; how it ended if not by itself."""
    command = [sys.executable, "-P", "-m", MODULE, "request.json"]
    with (folder / "stderr").open("wb") as errors:
        process = subprocess.Popen(
            command, cwd=folder, env=_environment(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors
        )
        try:
            return _watched(process, limits)
        finally:
            process.kill()
            process.wait()


def _environment() -> dict[str, str]:
    """As small as it can be: what it holds lies in the memory that the compiler may copy from."""
    kept = ("PATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "SYSTEMROOT", "TMPDIR")
    package = str(Path(__file__).parents[3])
    path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    fixed = {"PYTHONPATH": path, "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", "GLIBC_TUNABLES": CLEAN_HEAP}
    return {**{name: os.environ[name] for name in kept if name in os.environ}, **fixed}


def _watched(process: subprocess.Popen[bytes], limits: Limits) -> tuple[End | Literal[""], str]:
    deadline = time.monotonic() + limits.seconds
    while True:
        try:
            code = process.wait(POLL)
        except subprocess.TimeoutExpired:
            if time.monotonic() > deadline:
                return "out of time", f"not done after {limits.seconds:g} s"
            if _resident_mb(process.pid) > limits.memory_mb:
                return "out of memory", f"more than {limits.memory_mb} MB"
            continue
        if code == 0:
            return "", ""
        if code < 0 and -code in OUTSIDE:
            return "killed", signal.Signals(-code).name
        return ("crashed", signal.Signals(-code).name) if code < 0 else ("refused", f"exit code {code}")


def _resident_mb(pid: int) -> float:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _result(folder: Path) -> dict[str, Any]:
    path = folder / RESULT
    return dict(json.loads(path.read_text())) if path.exists() else {"error": "the compiler left no result"}


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "no reason given")
