"""The fp16 lint: before an artifact that computes in fp16 is emitted, its programs run in emulated fp16.

The judge is parity's own: the programs stand in for the artifact, on two pictures and two prompts. Beyond parity it
sees inside: what overflowed, and what stopped depending on the picture. A build is refused where

* a tensor or a weight that fp32 holds is infinite in fp16, even if the outputs look well: it may have been absorbed;
* an output is constant or the same for every picture, in fp16 or in the checkpoint itself;
* parity's detectors or bounds say so. Where the build will execute the artifact, whose verdict counts, the emulation is
  given twice the bounds: it is no closer to a device than that.

A part above 200 GMAC is looked at on a twin of a few of its blocks, where it has one; else it is left to parity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from edgesam_deploy.cost import LARGE
from edgesam_deploy.errors import ParityError
from edgesam_deploy.model.twin import shallow_twin
from edgesam_deploy.parity import Bounds, bounds_of, compared, few_pictures, judge
from edgesam_deploy.passes.program import Program
from edgesam_deploy.precision.composed import ProgramRunner, artifact_of
from edgesam_deploy.precision.emulate import LABEL
from edgesam_deploy.precision.ranges import LARGEST, Role
from edgesam_deploy.precision.watch import Watch, largest_errors, overflow_sentence

if TYPE_CHECKING:
    from edgesam_deploy.contract import Interface, SegmenterInterface
    from edgesam_deploy.model.cwsam.model import Cwsam
    from edgesam_deploy.model.sam import Sam
    from edgesam_deploy.parity.cases import Pictures
    from edgesam_deploy.targets.base import Target

SLACK = 2.0  # of the emulation's bounds, where the artifact itself will be judged
SHOWN = 4
PASSES: Mapping[Role, str] = {
    "variance": "the passes fuse_channel_norm (one operator keeps the squares inside) or decompose_layer_norm (divides "
    "by 32 before it squares)",
    "attention logits": "the pass fold_scale (scales the queries before the product)",
    "exponential": "the pass decompose_softmax (subtracts the maximum)",
}


@dataclass(frozen=True)
class Finding:
    """One reason to refuse: the part, what is wrong with which tensor, what mends it."""

    part: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.part}: {self.what}; remedy: {self.remedy}"


def gate(
    model: Sam | Cwsam,
    target: Target,
    interface: Interface | SegmenterInterface,
    programs: Mapping[str, Program],
    macs: Mapping[str, int],
    *,
    twin: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> None:
    """Raise ParityError where ``programs``, the parts after the target's aten passes, are wrong in the target's fp16.

    twin: a part is that of the model's twin of fewer blocks. Does nothing for a target that computes in fp32.
    """
    if target.half == "none":
        return
    progress("fp16 lint")
    reference = shallow_twin(model) if twin else model
    if reference is None or (not twin and any(count > LARGE for count in macs.values())):
        return
    found = lint(reference, target, interface, list(programs.values()))
    if found:
        listed = "\n  ".join(str(finding) for finding in found[: 2 * SHOWN])
        raise ParityError(f"{target.name} in fp16 would be wrong ({LABEL}); no bundle was written\n  {listed}")


def lint(
    model: Sam | Cwsam,
    target: Target,
    interface: Interface | SegmenterInterface,
    programs: Sequence[Program],
    pictures: Pictures | None = None,
) -> list[Finding]:
    """Every reason to refuse; none is good. ``pictures``: default one photograph and one seeded scene."""
    found = [f for program in programs for f in _weights(program, target)]
    if target.half == "weights":  # arithmetic is fp32: there is nothing to emulate
        return found
    watches = {p.name: Watch(p, target.islands(p)) for p in programs}

    def named(text: str) -> None:
        for watch in watches.values():
            watch.where = text.removeprefix("parity: ")

    runs = {p.name: ProgramRunner(p, watches[p.name].run, LABEL) for p in programs}
    artifact = artifact_of(programs, target, interface, runs)
    _, bounds = bounds_of(artifact.bundle)
    bounds = bounds if target.unmeasured else _widened(bounds)
    rows, findings = compared(model, artifact, pictures or few_pictures(), bounds, named, few=True)
    verdict, reasons = judge(rows, findings, bounds)
    found += [f for part, watch in watches.items() for f in _inside(part, watch, target)]
    if verdict == "fail":
        found += _outputs(watches, reasons, target)
    return found


def _widened(bounds: Bounds) -> Bounds:
    answers = None if bounds.answers is None else SLACK * bounds.answers
    return replace(
        bounds, relative_l2=SLACK * bounds.relative_l2, mask_iou=1 - SLACK * (1 - bounds.mask_iou),
        class_flips=SLACK * bounds.class_flips, answers=answers,
    )  # fmt: skip


def _weights(program: Program, target: Target) -> Iterator[Finding]:
    """Weights that fp16 cannot hold. Those read by islands alone stay fp32."""
    ep = program.aten
    state = {**ep.constants, **ep.state_dict}
    islands = target.islands(program)
    readers = {n.name: {r.name for r in n.users} for n in ep.graph.nodes if n.op == "placeholder"}
    for spec in ep.graph_signature.input_specs:
        value = state.get(spec.target) if spec.target is not None else None
        if not isinstance(value, torch.Tensor) or not value.dtype.is_floating_point or not value.numel():
            continue
        largest = float(value.detach().abs().max())
        if LARGEST < largest < float("inf") and not readers[spec.arg.name] <= islands:
            what = f"the weight {spec.target} reaches {largest:.3g} where fp16 ends at {LARGEST:,.0f}"
            yield Finding(program.name, what, _island(target))


def _inside(part: str, watch: Watch, target: Target) -> Iterator[Finding]:
    for seen in watch.overflows()[:SHOWN]:
        known = PASSES.get(seen.role)
        remedy = f"{known}, or {_island(target)}" if known else _island(target)
        yield Finding(part, overflow_sentence(seen), remedy)
    for seen in watch.killers(half=False):
        what = f"{seen.title}: from here on every picture gives the same, in fp32 too"
        yield Finding(part, what, "another checkpoint: this one has a dead branch or a constant output")


def _outputs(watches: Mapping[str, Watch], reasons: Sequence[str], target: Target) -> Iterator[Finding]:
    """Why the outputs are wrong, where a tensor is to blame; and what parity says of them."""
    blamed = [f"{part}, {s.title}" for part, watch in watches.items() for s in watch.killers(half=True)]
    dying = [f"{part}, {s.title}" for part, watch in watches.items() for s in watch.dying()]
    if blamed or dying:
        first = "; ".join((blamed or dying)[:SHOWN])
        where = f"alive in fp32, one value or the same for every picture in fp16: {first}"
    else:
        worst = [(part, s) for part, w in watches.items() for s in largest_errors(w.seen.values(), 2)]
        where = "most digits are lost at " + "; ".join(f"{p}, {s.title} ({s.error:.1e})" for p, s in worst[:SHOWN])
    for reason in reasons[:SHOWN]:
        yield Finding("outputs", f"{reason}; {where}", _island(target))


def _island(target: Target) -> str:
    return "an fp32 island there (--auto-mixed finds it)" if target.holds_islands else target.instead_of_half
