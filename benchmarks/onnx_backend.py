"""The ONNX backend's node tests through every onnx-level pass: python -m benchmarks.onnx_backend [--every N].

A case counts where ONNX Runtime gives the results that ONNX expects. It is run again after each pass that rewrote
something in it, and after the whole pipeline, on the case's own inputs; whatever differs is listed, and ends with exit
code 1. A pass may refuse a case (an opset without the operator): those are counted, not failed. The whole set writes
``benchmarks/results/onnx_backend.md``.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx.backend.test.case.node import collect_testcases

from edgesam_deploy import optimizer
from edgesam_deploy.contract import TensorSpec
from edgesam_deploy.errors import EdgeSamDeployError
from edgesam_deploy.passes import onnx as passes
from edgesam_deploy.passes.engine import Engine, Pass
from edgesam_deploy.passes.onnx.graph import opset
from edgesam_deploy.passes.program import Program

RESULTS = Path(__file__).parent / "results" / "onnx_backend.md"
DOWN, UP = (11, 13, 17), (20, 23)
FACTORIES: dict[str, list[tuple[str, Pass]]] = {
    "freeze_dims": [("freeze_dims", passes.freeze_dims({}))],
    "split_large_ops": [("split_large_ops", passes.split_large_ops(64))],
    "set_opset": [(f"set_opset({v})", passes.set_opset(v)) for v in (*DOWN, *UP)],
}
# ONNX's own expansion hands Range a tensor of one axis where it wants a scalar; ONNX Runtime notices once it can
INVALID = {f"test_affine_grid_{d}{kind}_expanded" for d in ("2d", "3d") for kind in ("", "_align_corners")}
TYPING = {"cast_to_half"}  # makes another program of it on purpose: half the digits
EVERY: list[tuple[str, Pass]] = [
    pair
    for name in passes.__all__
    if name not in TYPING
    for pair in FACTORIES.get(name, [(name, getattr(passes, name))])
]
PIPELINE = (*optimizer.CLEAN, passes.narrow_int64_data, passes.eliminate_common, passes.eliminate_dead)


@dataclass
class Tally:
    """``cases`` that ONNX Runtime passes; per pass: where it rewrote, refused, and what came out different."""

    cases: int = 0
    not_by_runtime: int = 0
    rewritten: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


@cache
def cases() -> dict[str, Any]:
    """All cases by name, as onnx generates them: a model, and data sets of inputs and expected results."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # the generators divide by zero on purpose
        return {case.name: case for case in collect_testcases(None)}


def names(every: int = 1, offset: int = 0) -> list[str]:
    """The cases' names, or each ``every``-th of them."""
    return sorted(cases().keys() - INVALID)[offset::every]


def try_case(name: str, tally: Tally) -> None:
    """Run one case through every pass and through the pipeline."""
    case = cases()[name]
    proto = case.model
    given = [dict(zip((v.name for v in proto.graph.input), inputs, strict=False)) for inputs, _ in case.data_sets]
    try:
        before = [_run(proto, inputs) for inputs in given]
        steady = [_run(proto, inputs) for inputs in given]
    except Exception:  # the runtime's error types derive from Exception alone; also types that NumPy lacks
        tally.not_by_runtime += 1
        return
    expected = [list(outputs) for _, outputs in case.data_sets]
    if not (_close(expected, before, 1e-3) and _close(before, steady, 0)):
        tally.not_by_runtime += 1
        return
    tally.cases += 1
    for step, rewrite in (*EVERY, ("pipeline", None)):
        specs = tuple(TensorSpec(value.name, ()) for value in proto.graph.input)
        program = Program(name, specs, (), ir.from_proto(proto))
        try:
            sites = _apply(program, rewrite)
        except EdgeSamDeployError:
            tally.refused[step] += 1
            continue
        except Exception as e:
            tally.wrong.append(f"{name}: {step} raised {type(e).__name__}: {str(e)[:200]}")
            continue
        if sites:
            tally.rewritten[step] += 1
            if reason := _difference(program, given, before):
                tally.wrong.append(f"{name}: {step}: {reason}")


def _apply(program: Program, rewrite: Pass | None) -> int:
    if rewrite is not None:
        return rewrite(program)
    engine = Engine("off")
    program.body = engine.run(program, PIPELINE).body
    return sum(step.sites for step in engine.steps)


def _difference(program: Program, inputs: Sequence[dict[str, Any]], before: list[list[Any]]) -> str | None:
    try:
        proto = ir.to_proto(program.onnx)
        onnx.checker.check_model(proto)
        after = [_run(proto, given) for given in inputs]
    except Exception as e:
        return f"{type(e).__name__}: {str(e)[:200]}"
    return None if _close(before, after, 1e-4) else f"other results (opset {opset(program)})"


def _run(proto: onnx.ModelProto, inputs: dict[str, Any]) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, inputs))


def _close(a: Any, b: Any, tolerance: float) -> bool:
    if isinstance(a, (list, tuple)):
        pairs = list(zip(a, b, strict=False))
        return isinstance(b, (list, tuple)) and len(a) == len(b) and all(_close(p, q, tolerance) for p, q in pairs)
    if a is None or b is None:
        return a is b
    p, q = np.asarray(a), np.asarray(b)
    if p.shape != q.shape or p.dtype != q.dtype:
        return False
    if p.dtype.kind != "f":
        return bool((p == q).all())
    return bool(np.allclose(p.astype(np.float64), q.astype(np.float64), rtol=tolerance, atol=tolerance, equal_nan=True))


def report(tally: Tally, count: int) -> str:
    """The Markdown file."""
    names = [name for name, _ in EVERY] + ["pipeline"]
    return "\n".join([
        "# The ONNX backend's node tests through every onnx-level pass\n",
        f"onnx {onnx.__version__}, ONNX Runtime {onnxruntime.__version__}; written by "
        "`python -m benchmarks.onnx_backend`.\n",
        f"{count} cases ({len(INVALID)} left out as invalid), of which {tally.cases} pass in ONNX Runtime. "
        f"After each pass and after the whole pipeline, **{len(tally.wrong)} of them differ**.\n",
        "| pass | cases it rewrote | cases it refused |",
        "|---|---|---|",
        *(f"| {name} | {tally.rewritten[name]} | {tally.refused[name]} |" for name in names),
        *(f"\n- {line}" for line in tally.wrong),
        "",
    ])  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="take each N-th case only")
    every = parser.parse_args().every
    tally = Tally()
    chosen = names(every)
    for name in chosen:
        try_case(name, tally)
    text = report(tally, len(chosen))
    print(text)
    if every == 1:
        RESULTS.write_text(text)
    return 1 if tally.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
