"""The one engine that runs passes: records what each did, proves it, dumps, and stops at the first that is wrong.

A pass is a plain function from a Program to the number of sites it rewrote, made a ``Pass`` by ``@exact`` or
``@approximate(bound)``. The proof of a step: the program before and the program after run on unrelated seeded inputs
(two by default: the second catches a branch that was baked in for the first), and the outputs are compared by
relative L2. Steps that rewrote nothing have nothing to prove.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from edgesam_deploy.contract import sample_inputs
from edgesam_deploy.errors import EdgeSamDeployError, PassError, UnknownName
from edgesam_deploy.passes.execute import Arrays, relative_l2, run_on_each
from edgesam_deploy.passes.program import Dialect, Program

EXACT = 1e-5  # relative L2 at O(1) activations: room for reassociated fp32 sums, far below any real fault
FLOOR = 0.1  # root mean square below which an output is not O(1), so that its own size is no measure
FEW = 64  # values: of a handful of scores one may be the small difference of large sums, so they are measured against 1
MASK_IOU = 0.9999
MASKS = {"masks", "masks_sam", "low_res_masks"}  # outputs that are thresholded at 0
SEEDS = {"off": (), "fast": (11, 22), "full": (11, 22, 33, 44)}
ProofMode = Literal["off", "fast", "full"]
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Rewrite:
    """What passes have in common: a function, the relative L2 it may change the outputs by, the dialect it works in."""

    run: Callable[..., int]
    bound: float = EXACT
    dialect: Dialect = "aten"
    note: str = ""  # for an approximation: what the bound means

    @property
    def name(self) -> str:
        return self.run.__name__

    @property
    def why(self) -> str:
        """The first line of the pass's docstring."""
        return (self.run.__doc__ or "").strip().partition("\n")[0]

    @property
    def is_exact(self) -> bool:
        return self.bound == EXACT


@dataclass(frozen=True)
class Pass(Rewrite):
    """A rewrite of one program.

    ``adapt``: for a pass that changes the program's inputs: (before, after, inputs of before) -> inputs of after.
    """

    adapt: Callable[[Program, Program, Arrays], Arrays] | None = None

    def __call__(self, program: Program) -> int:
        return self.run(program)


def _dialect(function: Callable[[Program], int]) -> Dialect:
    return "onnx" if ".passes.onnx." in function.__module__ else "aten"


def exact(function: Callable[[Program], int]) -> Pass:
    """Declare a pass that changes nothing but the order of fp32 sums."""
    return Pass(function, EXACT, _dialect(function))


def approximate(bound: float, note: str) -> Callable[[Callable[[Program], int]], Pass]:
    """Declare a pass that changes the outputs by at most ``bound`` in relative L2; ``note`` says why."""
    return lambda function: Pass(function, bound, _dialect(function), note)


def adapting(inputs: Callable[[Program, Program, Arrays], Arrays]) -> Callable[[Pass], Pass]:
    """Declare that a pass changes the program's inputs, and how to get the new ones: see ``Pass.adapt``."""
    return lambda rewrite: replace(rewrite, adapt=inputs)


@dataclass(frozen=True)
class Step:
    """What one pass did to one program.

    ``error``: worst relative L2 over inputs and outputs, None if unproved; ``mask_iou``: the worst of the masks, None
    where the program gives none. Both are of this pass and those of ``proved_with`` together.
    """

    name: str
    part: str
    sites: int
    operators_before: int
    operators_after: int
    seconds: float
    bound: float
    error: float | None
    proof_seconds: float = 0.0
    on_twin: bool = False  # proved on a smaller program of the same kind
    mask_iou: float | None = None
    proved_with: tuple[str, ...] = ()


@dataclass
class Engine:
    """Runs pipelines. ``dump_after`` names a pass after which the program is written to ``dump_dir``.

    ``keep_aten``: keep each part, or its twin, as it was last in the aten dialect, in ``aten``.
    """

    proof: ProofMode = "fast"
    dump_after: str | None = None
    dump_dir: Path | None = None
    progress: Progress = lambda _: None
    steps: list[Step] = field(default_factory=list)
    keep_aten: bool = False
    aten: dict[str, Program] = field(default_factory=dict)

    def run(self, program: Program, pipeline: Sequence[Pass], *, twin: Program | None = None) -> Program:
        """The program after every pass. Raises PassError for one that leaves its bound or breaks the program.

        ``twin``: a smaller program of the same kind, for programs too large to run after every pass. It goes through
        the same passes and each is proved on it instead.
        """
        if self.dump_after is not None and self.dump_after not in {p.name for p in pipeline}:
            raise UnknownName("pass", self.dump_after, {p.name for p in pipeline})
        subject = program if twin is None else twin  # what proofs run on
        known = self._outputs(subject)
        changes: list[_Change] = []
        copies: dict[str, Program] = {}
        for rewrite in pipeline:
            if self.keep_aten and subject.dialect == "aten":
                self.aten[program.name] = subject
            self.progress(f"{program.name}: {rewrite.name}")
            try:
                step, after = _applied(program, rewrite, copies, "program")
                twin_step, new = (step, after) if twin is None else _applied(subject, rewrite, copies, "twin")
            except EdgeSamDeployError:
                self._prove(changes, known)  # an earlier pass may be to blame
                raise
            if rewrite.name == self.dump_after and self.dump_dir is not None:
                write_dump(after, self.dump_dir)  # before the proof: a wrong program is the one to look at
            self.steps.append(replace(step, on_twin=twin is not None))
            if step.sites and not twin_step.sites:
                raise PassError(f"pass {rewrite.name} found work in {program.name} that its twin has no case of")
            if twin_step.sites:
                change = _Change(len(self.steps) - 1, rewrite, subject, new)
                if changes and not self._together(changes[-1], change):
                    known, changes = self._prove(changes, known), []
                changes.append(change)
            program, subject = after, new
        self._prove(changes, known)
        if self.keep_aten and subject.dialect == "aten":
            self.aten[program.name] = subject
        return program

    def _together(self, last: _Change, new: _Change) -> bool:
        """Whether two changes may share a proof."""
        return self.proof == "fast" and all(
            c.rewrite.is_exact and c.rewrite.adapt is None and c.before.dialect == c.after.dialect for c in (last, new)
        )

    def _prove(self, changes: Sequence[_Change], known: list[Arrays]) -> list[Arrays]:
        """The outputs after the last change; several that are not right together are looked at one by one."""
        if self.proof == "off":
            return known
        if len(changes) > 1:
            with contextlib.suppress(PassError):
                outputs, fault = self._proof(changes, known)
                if not fault:
                    return outputs
        for change in changes:
            known, fault = self._proof([change], known)
            if fault:
                self._fail(change, fault)
        return known

    def _proof(self, changes: Sequence[_Change], known: list[Arrays]) -> tuple[list[Arrays], str]:
        """The outputs after the last change, and what is wrong with them if ``known`` is right: those before the first.

        Its figures go into the steps. Raises PassError where the program no longer runs.
        """
        last, rewrite = changes[-1], changes[-1].rewrite
        start = time.perf_counter()
        with _blaming(rewrite, last.before):
            outputs = proof = self._outputs(last.after)
            if rewrite.adapt is not None:
                adapted = [rewrite.adapt(last.before, last.after, inputs) for inputs in self._samples(last.before)]
                proof = run_on_each(last.after, adapted)
        error, iou = _worst(known, proof), _mask_iou(known, proof, rewrite.bound)
        seconds = (time.perf_counter() - start) / len(changes)
        for change in changes:
            others = tuple(c.rewrite.name for c in changes if c is not change)
            self.steps[change.step] = replace(
                self.steps[change.step], error=error, mask_iou=iou, proof_seconds=seconds, proved_with=others
            )
        if error is not None and not error <= rewrite.bound:  # NaN fails too
            return outputs, f"relative L2 {error:.2e} where at most {rewrite.bound:.0e} is declared"
        if iou is not None and not iou >= MASK_IOU:
            return outputs, f"mask IoU {iou:.5f} where at least {MASK_IOU} is wanted"
        return outputs, ""

    def _fail(self, change: _Change, fault: str) -> NoReturn:
        del self.steps[change.step + 1 :]
        name, sites = change.rewrite.name, self.steps[change.step].sites
        raise PassError(
            f"pass {name} left its bound on {change.before.name}: {fault}, after {sites} sites; see --dump-after "
            f"{name}, and edgesam-deploy bisect for the node"
        )

    def _outputs(self, program: Program) -> list[Arrays]:
        return run_on_each(program, self._samples(program))

    def _samples(self, program: Program) -> list[Arrays]:
        return [sample_inputs(program.inputs, seed) for seed in SEEDS[self.proof]]


@dataclass(frozen=True)
class _Change:
    """A pass that rewrote something, by its place among the steps, and the program that its proof runs on."""

    step: int
    rewrite: Pass
    before: Program
    after: Program


def _applied(program: Program, rewrite: Pass, copies: dict[str, Program], key: str) -> tuple[Step, Program]:
    """One pass on a copy: what it did, unproved, and the program after it (the same one where it found nothing).

    A copy that a pass found nothing in is the next one's, by ``key`` in ``copies``: most passes find nothing, and
    copies took a fifth of the time of all of them.
    """
    after = copies.pop(key, None) or program.copy()
    start = time.perf_counter()
    with _blaming(rewrite, program):
        sites = rewrite(after)
    seconds = time.perf_counter() - start
    before = program.operators()
    if not sites:
        if after.operators() == before:  # else it changed what it said it had not
            copies[key] = after
        after = program
    counts = sum(before.values()), sum(after.operators().values())
    return Step(rewrite.name, program.name, sites, *counts, seconds, rewrite.bound, None), after


@contextlib.contextmanager
def _blaming(rewrite: Rewrite, program: Program) -> Iterator[None]:
    """Whatever the pass raises, and whatever running the program it left behind raises, is reported as its fault."""
    try:
        yield
    except EdgeSamDeployError:
        raise
    except Exception as e:  # runtimes have error types of their own
        raise PassError(f"pass {rewrite.name} failed on {program.name}: {type(e).__name__}: {e}") from e


def _worst(before: list[Arrays], after: list[Arrays]) -> float | None:
    errors = [_error(a[name], b[name]) for a, b in zip(before, after, strict=True) for name in a]
    if any(e != e for e in errors):
        return float("nan")
    return max(errors, default=None)


def _mask_iou(before: list[Arrays], after: list[Arrays], bound: float) -> float | None:
    """The worst IoU of the thresholded masks over the pixels that the program decides: whose logit is above ``bound``
    times the root mean square. None for a program that gives no masks.
    """
    pairs = [(a[name], b[name]) for a, b in zip(before, after, strict=True) for name in a if name in MASKS]
    return min((_decided_iou(a, b, bound) for a, b in pairs), default=None)


def _decided_iou(before: NDArray[Any], after: NDArray[Any], bound: float) -> float:
    if before.shape != after.shape:
        return 0.0
    decided = np.abs(before) > bound * np.sqrt(np.mean(np.square(before, dtype=np.float64)))
    mine, other = (before > 0) & decided, (after > 0) & decided
    planes = tuple(range(2, before.ndim))
    union = (mine | other).sum(planes)
    return float(np.min(np.where(union == 0, 1.0, (mine & other).sum(planes) / np.maximum(union, 1))))


def _error(before: NDArray[Any], after: NDArray[Any]) -> float:
    if before.dtype != after.dtype:
        return float("inf")
    return relative_l2(before, after, FLOOR if before.size > FEW else 1.0)


def write_dump(program: Program, folder: Path) -> Path:
    """Write a program for reading: the graph's text (aten) or an .onnx file."""
    folder.mkdir(parents=True, exist_ok=True)
    if program.dialect == "aten":
        path = folder / f"{program.name}.aten.txt"
        path.write_text(program.aten.graph_module.print_readable(print_output=False))
        return path
    import onnx_ir as ir

    path = folder / f"{program.name}.onnx"
    ir.save(program.onnx, path)
    return path
