"""--auto-mixed: find the fp32 islands of both parts on real pictures, and let the programs say so."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from edgesam_deploy.contract import IMAGE_ENCODER, SEGMENTER
from edgesam_deploy.errors import UsageError
from edgesam_deploy.parity import Bounds, bounds_of, few_pictures
from edgesam_deploy.passes.program import Program
from edgesam_deploy.precision.composed import given_to
from edgesam_deploy.precision.emulate import Emulation
from edgesam_deploy.precision.islands import Islands, find_islands
from edgesam_deploy.precision.shown import run_on

if TYPE_CHECKING:
    from edgesam_deploy.contract import Interface, SegmenterInterface
    from edgesam_deploy.parity.cases import Pictures
    from edgesam_deploy.targets.base import Target


def keep_islands(
    programs: Sequence[Program],
    target: Target,
    interface: Interface | SegmenterInterface,
    *,
    pictures: Pictures | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Islands]:
    """Set ``islands`` of each program, a part after the target's aten passes, to the fewest nodes that bring emulated
    fp16 to the target's ``room`` of the bounds. The decoder is searched with the embeddings that the encoder gives.

    Raises UsageError for a target that cannot mix, ParityError where no islands suffice.
    """
    if not target.holds_islands:
        raise UsageError(f"--auto-mixed: {target.name} does not mix precisions in one file; use --precision fp32")
    found: list[Islands] = []
    for program in programs:
        progress(f"{program.name}: fp32 islands")
        samples, bounds = _samples(program.name, programs, target, interface, pictures or few_pictures())
        found.append(
            find_islands(program, samples, target.room * _bound(program.name, bounds), target.islands(program))
        )
        program.islands |= set(found[-1].nodes)
    return found


def _bound(part: str, bounds: Bounds) -> float:
    """What the outputs of a part may be off by; behind the encoder its own error has been made already."""
    whole = part in (IMAGE_ENCODER, SEGMENTER)
    return bounds.relative_l2 if whole or bounds.answers is None else bounds.answers


def _samples(
    part: str,
    programs: Sequence[Program],
    target: Target,
    interface: Interface | SegmenterInterface,
    pictures: Pictures,
) -> tuple[list[Mapping[str, Tensor]], Bounds]:
    """What a part is given when the parts run one after the other in emulated fp16, a prompt per picture."""
    artifact, seen = given_to(
        part, programs, target, interface, lambda program: Emulation(program, target.islands(program)).run
    )
    run_on(artifact, pictures, prompts=part != IMAGE_ENCODER)
    return seen, bounds_of(artifact.bundle)[1]
