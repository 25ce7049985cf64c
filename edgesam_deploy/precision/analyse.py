"""Range analysis: the model's programs run over pictures and prompts, and every tensor is looked at."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgesam_deploy.capture import capture, part_macs
from edgesam_deploy.cost import LARGE
from edgesam_deploy.model.semantic import preprocess
from edgesam_deploy.parity.cases import Case, few_pictures, shipped_pictures, usable_cases
from edgesam_deploy.passes.engine import Engine
from edgesam_deploy.passes.joint import run_joint
from edgesam_deploy.precision.composed import ProgramRunner, artifact_of, aten_passes
from edgesam_deploy.precision.observe import Observer
from edgesam_deploy.precision.ranges import Ranges
from edgesam_deploy.runtime import BundlePredictor, BundleSegmenter
from edgesam_deploy.targets import make_target

if TYPE_CHECKING:
    from edgesam_deploy.contract import Interface, SegmenterInterface
    from edgesam_deploy.model.cwsam.model import Cwsam
    from edgesam_deploy.model.sam import Sam
    from edgesam_deploy.passes.program import Program
    from edgesam_deploy.targets.base import Target

Pictures = Mapping[str, NDArray[np.uint8]]


def ranges(
    model: Sam | Cwsam,
    target: str | Target | None = None,
    *,
    pictures: Pictures | None = None,
    progress: Callable[[str], None] = lambda _: None,
    **options: Any,
) -> Ranges:
    """What every tensor of ``model`` reaches on ``pictures`` (default: the shipped photographs), with a prompt of
    every kind on each, the decoder fed with the encoder's own embeddings.

    target: look at the programs after its aten passes, under its ``options``; without one, as they were captured.
    A model too large for all of the shipped photographs is run on one, and on a seeded scene.
    """
    chosen = make_target(target or "onnx", **options) if not hasattr(target, "pipeline") else target
    assert chosen is not None
    assert not isinstance(chosen, str)
    interface = chosen.interface(model.config)
    if pictures is None:
        large = any(macs > LARGE for macs in part_macs(model.config, interface).values())
        pictures = few_pictures() if large else shipped_pictures()
    progress("capture")
    programs = capture(model, interface)
    if target is not None:
        programs, interface = after_aten_passes(programs, chosen, model, interface)
    observers = {program.name: Observer(program) for program in programs}
    runs = {p.name: ProgramRunner(p, observers[p.name].run, "observed") for p in programs}
    artifact = artifact_of(programs, chosen, interface, runs)
    cases = show(artifact, pictures, progress)
    return Ranges(
        model.name,
        model.weights.sha256 or f"seed {model.weights.seed}",
        {name: hashlib.sha256(picture.tobytes()).hexdigest() for name, picture in pictures.items()},
        tuple(case.name for case in cases),
        {name: observer.ranges() for name, observer in observers.items()},
        chosen.name if target is not None else None,
    )


def after_aten_passes(
    programs: Sequence[Program], target: Target, model: Sam | Cwsam, interface: Interface | SegmenterInterface
) -> tuple[list[Program], Interface | SegmenterInterface]:
    """The programs as the target's converter gets them, unproved: ``build`` proves the same passes."""
    from edgesam_deploy.contract import Interface

    engine = Engine("off")
    for rewrite in target.joint_pipeline(model.config) if len(programs) == 2 else ():
        programs = run_joint(engine, programs[0], programs[1], rewrite)
    if isinstance(interface, Interface):
        interface = interface.with_hoisted(programs[-1].inputs)
    passes = aten_passes(target.pipeline(model.config))
    return [engine.run(program, passes) for program in programs], interface


def show(
    artifact: BundlePredictor | BundleSegmenter, pictures: Pictures, progress: Callable[[str], None] = lambda _: None
) -> Sequence[Case]:
    """Run an artifact on pictures, with a prompt of every kind that it takes; returns those."""
    if isinstance(artifact, BundleSegmenter):
        for name, picture in pictures.items():
            progress(name)
            image = preprocess(picture, artifact.image_size)
            artifact.infer(image) if artifact.has_logits else artifact.infer_map(image)
        return ()
    cases = usable_cases(artifact.interface)[0] if artifact.has_decoder else []
    cases = [case for case in cases if case.batch == 1]  # a batch holds what its prompts hold
    for name, picture in pictures.items():
        progress(name)
        artifact.set_image(picture)
        logits = None
        for case in cases:
            prompt = case.prompt(*artifact.original_size)
            if case.mask and logits is not None:
                prompt["mask_input"] = logits
            answer = artifact.decode(*artifact.prepared(**prompt))
            logits = answer.logits[:1, :1] if logits is None else logits
    return cases
