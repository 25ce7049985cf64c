"""Other runtimes on the reference's model with the same weights, each as something to call: what peers.py measures.

OpenVINO reads the reference's ONNX file (and ours), ncnn what pnnx makes of the modules, LiteRT the plain conversion,
PyTorch runs the modules, eagerly and compiled. Each in fp32 with the threads asked for. None is needed: one that is not
installed, cannot take the model or computes something else is left out, with the reason.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import edgesam_deploy as ed
from benchmarks.interleaved import Call
from benchmarks.reference_export import OUTPUTS, Part, reference_module
from edgesam_deploy.errors import EdgeSamDeployError
from edgesam_deploy.targets.openvino_runner import OpenvinoRunner
from edgesam_deploy.targets.quiet import quiet

SAME = 1e-3  # relative L2: fp32 runtimes of one function differ by 1e-5
Arrays = Mapping[str, NDArray[Any]]


class LeftOut(EdgeSamDeployError):
    """A runtime that cannot take the model, or computes something else."""


def openvino(path: Path, part: Part, inputs: Arrays, threads: int) -> Call:
    """An ONNX file in OpenVINO's CPU plugin, as ``--provider openvino`` runs it. Raises MissingToolkit."""
    run = OpenvinoRunner(path, threads)

    def call(_: int) -> list[NDArray[Any]]:
        results = run(inputs)
        return [results[name] for name in OUTPUTS[part]]

    return call


def ncnn(model: ed.Sam, part: Part, inputs: Arrays, threads: int, folder: Path) -> Call:
    """The reference's modules as pnnx converts them, in ncnn, fp32. Raises ImportError, LeftOut."""
    import ncnn as runtime
    import pnnx

    module, values = reference_module(model, part), [torch.from_numpy(value) for value in inputs.values()]
    with quiet("pnnx"), _inside(folder):  # it writes beside where it stands
        pnnx.export(module, "ncnn.pt", tuple(values), fp16=False)
    net = runtime.Net()
    net.opt.num_threads = threads
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    with quiet("ncnn"):
        loaded = net.load_param(str(folder / "ncnn.ncnn.param")), net.load_model(str(folder / "ncnn.ncnn.bin"))
    if any(loaded):
        raise LeftOut("what pnnx writes does not load in ncnn")

    def call(_: int) -> list[NDArray[Any]]:
        with net.create_extractor() as run:
            for index, value in enumerate(inputs.values()):
                run.input(f"in{index}", runtime.Mat(value[0]))
            return [np.array(run.extract(f"out{i}")[1])[None] for i in range(len(OUTPUTS[part]))]

    return call


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def litert(model: ed.Sam, part: Part, inputs: Arrays, threads: int, folder: Path) -> Call:
    """The plain conversion of the reference's modules in LiteRT with XNNPACK. Raises MissingToolkit."""
    from benchmarks.tflite_vs_plain import SIGNATURES, TfliteCandidate, convert_plainly

    path = convert_plainly(model, part, folder / f"{part}.tflite")
    session = TfliteCandidate("", path, signature=SIGNATURES[part]).session(threads)

    def call(_: int) -> list[NDArray[Any]]:
        outputs = session.run(None, inputs)
        return [outputs[name] for name in OUTPUTS[part]]

    return call


def eager(model: ed.Sam, part: Part, inputs: Arrays, threads: int) -> Call:
    """The reference's modules in PyTorch."""
    return _torch(reference_module(model, part), inputs, threads)


def compiled(model: ed.Sam, part: Part, inputs: Arrays, threads: int) -> Call:
    """The same through torch.compile, weights frozen. Raises what its compiler raises, where there is none."""
    import torch._inductor.config as inductor

    with inductor.patch(freezing=True):
        call = _torch(torch.compile(reference_module(model, part)), inputs, threads)
        call(0)
    return call


def _torch(module: Any, inputs: Arrays, threads: int) -> Call:
    torch.set_num_threads(threads)
    values = [torch.from_numpy(value) for value in inputs.values()]

    def call(_: int) -> list[NDArray[Any]]:
        with torch.no_grad():  # inductor freezes weights where no gradient is asked for
            results = module(*values)
        return [result.numpy() for result in (results if isinstance(results, tuple) else (results,))]

    return call


def runtimes(
    model: ed.Sam, part: Part, reference: Path, inputs: Arrays, threads: int, folder: Path, without: Sequence[str] = ()
) -> tuple[dict[str, Call], list[str]]:
    """By name, all that run here and compute what the reference's file computes; and the others' reasons."""
    makers: dict[str, Callable[[], Call]] = {
        "OpenVINO": lambda: openvino(reference, part, inputs, threads),
        "ncnn": lambda: ncnn(model, part, inputs, threads, folder),
        "LiteRT, plain conversion": lambda: litert(model, part, inputs, threads, folder),
        "torch eager": lambda: eager(model, part, inputs, threads),
        "torch.compile": lambda: compiled(model, part, inputs, threads),
    }
    expected = eager(model, part, inputs, threads)(0)
    found, left_out = {}, []
    for name, make in makers.items():
        if name in without:
            left_out.append(f"{name}: as asked")
            continue
        try:
            call = make()
            check_same(call(0), expected)
            found[name] = call
        except Exception as e:  # whatever a runtime of others raises is its reason
            left_out.append(f"{name}: {type(e).__name__}: {(str(e).strip() or 'no reason given').splitlines()[0]}")
    return found, left_out


def check_same(values: list[NDArray[Any]], expected: list[NDArray[Any]]) -> None:
    """Raise LeftOut where an output lies apart from the reference's."""
    for value, reference in zip(values, expected, strict=True):
        apart = float(np.linalg.norm(value - reference) / np.linalg.norm(reference))
        if not apart <= SAME:
            raise LeftOut(f"its outputs lie {apart:.1e} apart in relative L2, {SAME:.0e} allowed")
