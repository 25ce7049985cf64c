"""Passes over two programs of which one feeds the other, and their proof: the two run as one.

inputs ── encoder ── outputs ──┐
prompts ───────────────────────┴── decoder ── outputs        compared before and after
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from edgesam_deploy.contract import IMAGE_ENCODER, sample_inputs
from edgesam_deploy.errors import PassError
from edgesam_deploy.passes.engine import SEEDS, Engine, Rewrite, Step, _blaming, _worst
from edgesam_deploy.passes.execute import Arrays, run_program
from edgesam_deploy.passes.program import Program


class JointPass(Rewrite):
    """A rewrite that moves work between an encoder and the decoder that reads its outputs."""

    def __call__(self, encoder: Program, decoder: Program) -> int:
        return self.run(encoder, decoder)


def run_joint(engine: Engine, encoder: Program, decoder: Program, rewrite: JointPass) -> tuple[Program, Program]:
    """Both programs after ``rewrite``, the given ones where it found nothing; its step goes to ``engine.steps``.

    Raises PassError where the decoder's outputs, or those that the encoder had before, left the pass's bound.
    """
    engine.progress(f"{encoder.name} + {decoder.name}: {rewrite.name}")
    after = encoder.copy(), decoder.copy()
    start = time.perf_counter()
    with _blaming(rewrite, decoder):
        sites = rewrite(*after)
    seconds = time.perf_counter() - start
    after = after if sites else (encoder, decoder)
    start = time.perf_counter()
    error = None
    if sites:
        prompts = [sample_inputs(decoder.inputs, seed) for seed in SEEDS[engine.proof]]
        images = [sample_inputs(encoder.inputs, seed) for seed in SEEDS[engine.proof]]
        pairs = list(zip(images, prompts, strict=True))
        with _blaming(rewrite, decoder):
            before_and_after = [[composed(*programs, *p) for p in pairs] for programs in ((encoder, decoder), after)]
        error = _worst(*before_and_after)
    operators = [sum(p.operators().total() for p in pair) for pair in ((encoder, decoder), after)]
    part = f"{encoder.name} + {decoder.name}"
    proof_seconds = time.perf_counter() - start if sites else 0.0
    engine.steps.append(
        Step(rewrite.name, part, sites, operators[0], operators[1], seconds, rewrite.bound, error, proof_seconds)
    )
    if error is not None and not error <= rewrite.bound:  # NaN fails too
        raise PassError(
            f"pass {rewrite.name} left its bound on {part}: relative L2 {error:.2e} where at most "
            f"{rewrite.bound:.0e} is declared, after {sites} sites"
        )
    return after


def run_joint_on_twin(
    engine: Engine, encoder: Program, twin: Program, decoder: Program, rewrite: JointPass
) -> tuple[Program, Program, Program]:
    """Encoder, twin and decoder after ``rewrite``, proved on the twin: a smaller encoder for the same decoder."""
    twin, after = run_joint(engine, twin, decoder, rewrite)
    if after is not decoder:
        encoder = encoder.copy()
        rewrite(encoder, decoder.copy())
        engine.steps[-1] = replace(engine.steps[-1], on_twin=True)
    return encoder, twin, after


def run_joint_passes(
    engine: Engine, programs: list[Program], twins: dict[str, Program], passes: Sequence[JointPass]
) -> tuple[list[Program], dict[str, Program]]:
    """The parts, and what stands in for the encoder in proofs, after the passes that move work between the two."""
    for rewrite in passes if len(programs) == 2 else ():
        encoder, decoder = programs
        if IMAGE_ENCODER in twins:
            encoder, twin, decoder = run_joint_on_twin(engine, encoder, twins[IMAGE_ENCODER], decoder, rewrite)
            twins = {**twins, IMAGE_ENCODER: twin}
        else:
            encoder, decoder = run_joint(engine, encoder, decoder, rewrite)
        programs = [encoder, decoder]
    return programs, twins


def composed(encoder: Program, decoder: Program, image: Arrays, prompts: Arrays) -> Arrays:
    """Outputs of both by name, the decoder's inputs taken from the encoder's outputs where it has them."""
    encoded = run_program(encoder, image)
    return encoded | run_program(decoder, prompts | encoded)
