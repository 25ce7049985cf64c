"""The whole build on one screen: capture, passes, emission, operator report, parity, bundle."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesam_deploy import __version__
from edgesam_deploy.bundle import Bundle, check_output, draft, dump_json, open_bundle, write_manifest
from edgesam_deploy.capture import capture
from edgesam_deploy.contract import Interface, describe_tensors
from edgesam_deploy.errors import ParityError
from edgesam_deploy.model.configs import SamConfig
from edgesam_deploy.model.sam import Sam
from edgesam_deploy.model_card import model_card
from edgesam_deploy.ops import parts_report
from edgesam_deploy.parity import SEEDS, Parity, measure, shipped_pictures
from edgesam_deploy.passes.engine import Engine, ProofMode, Step
from edgesam_deploy.passes.program import Program
from edgesam_deploy.runtime import open_predictor
from edgesam_deploy.targets import make_target
from edgesam_deploy.targets.base import Target
from edgesam_deploy.toolkits import installed_version, require

FILES = {"image_encoder": "encoder", "mask_decoder": "decoder"}


@dataclass
class Timings:
    """Seconds and peak resident memory by stage; written to timings.json."""

    stages: list[dict[str, Any]] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        self.stages.append({"stage": name, "seconds": time.perf_counter() - start, "peak_rss_mb": peak})


def build(
    model: Sam,
    target: str | Target = "onnx",
    out: str | Path | None = None,
    *,
    proof: ProofMode = "fast",
    dump_after: str | None = None,
    strict: bool = False,
    overwrite: bool = False,
    pictures: Mapping[str, NDArray[np.uint8]] | None = None,
    progress: Callable[[str], None] = lambda _: None,
    **options: Any,
) -> Bundle:
    """Build ``model`` for ``target`` into the folder ``out`` (default ``out/<model>/<target>``) and return the bundle.

    options: the fields of the target's dataclass, e.g. ``points=8``. proof: how each pass is checked (``off``, ``fast``
    two inputs, ``full`` four). strict: also fail where parity could not be verified. pictures: what parity is measured
    on instead of the shipped photographs, (H, W, 3) uint8 RGB by name.

    Raises ParityError when the artifact is not the model, PassError when a pass left its bound, UsageError and
    OutputError for what was asked, MissingToolkit for what is not installed. Whatever is raised, ``out`` stays as it
    was.
    """
    chosen = make_target(target, **options) if isinstance(target, str) else target
    folder = Path(out) if out is not None else Path("out") / model.name / chosen.name
    check_output(folder, overwrite=overwrite)
    for toolkit in chosen.toolkits:
        require(toolkit, f"building for {chosen.name}")
    interface = chosen.interface(model.image_size, model.config.embed_dim)
    timings = Timings()

    with timings.stage("capture"):
        progress("capture")
        programs = capture(model, interface)
    engine = Engine(proof, dump_after, folder.resolve().with_name(folder.resolve().name + ".dump"), progress)
    with timings.stage("passes"):
        programs = [engine.run(program, chosen.pipeline(model.config)) for program in programs]

    with draft(folder, overwrite=overwrite) as place:
        with timings.stage("emit"):
            progress("emit")
            for program in programs:
                chosen.emit(program, interface, place / _file(program, chosen), _metadata(model, interface, program))
        with timings.stage("operators"):
            progress("operator report")
            ops = parts_report(chosen.name, {p.name: place / _file(p, chosen) for p in programs})
            (place / "ops.json").write_text(dump_json(ops))
        content = _content(model, chosen, interface, programs, engine.steps)
        (place / "README.md").write_text(model_card(content))
        write_manifest(place, content)
        with timings.stage("parity"):
            precision = chosen.options()["precision"]
            parity = measure(model, open_predictor(place), precision=precision, pictures=pictures, progress=progress)
        _gate(parity, strict=strict)
        unhashed = open_bundle(place)
        unhashed.write_json("parity.json", parity.to_json())
        unhashed.write_json("timings.json", _timings(timings, engine.steps))
    return open_bundle(folder)


def plan(config: SamConfig, target: Target) -> list[str]:
    """The steps of a build, in order, as they are reported to ``progress``."""
    parts = list(FILES) if config.mask_decoder is not None else list(FILES)[:1]
    passes = [f"{part}: {step.name}" for part in parts for step in target.pipeline(config)]
    pictures = [*shipped_pictures(), *(f"seed {seed}" for seed in SEEDS)]
    return ["load", "capture", *passes, "emit", "operator report", *(f"parity: {name}" for name in pictures)]


def _file(program: Program, target: Target) -> str:
    return f"{FILES[program.name]}.{target.extension}"


def _metadata(model: Sam, interface: Interface, program: Program) -> dict[str, str]:
    """What the artifact file itself carries."""
    return {
        "edgesam_deploy_version": __version__,
        "model": model.name,
        "part": program.name,
        "weights": str(model.weights),
        "license": model.config.licence,
        "contract": dump_json(interface.describe()).strip(),
    }


def _content(
    model: Sam, target: Target, interface: Interface, programs: list[Program], steps: list[Step]
) -> dict[str, Any]:
    """The manifest, but for the hashes. Nothing in it varies from run to run."""
    shapes = {
        "image_encoder": (interface.encoder_inputs(), interface.encoder_outputs()),
        "mask_decoder": (interface.decoder_inputs(), interface.decoder_outputs()),
    }
    parts = {
        program.name: {
            "file": _file(program, target),
            "inputs": describe_tensors(shapes[program.name][0]),
            "outputs": describe_tensors(shapes[program.name][1]),
            "operators": dict(sorted(program.operators().items())),
            "passes": [_pass_row(step) for step in steps if step.part == program.name],
        }
        for program in programs
    }
    return {
        "edgesam_deploy": __version__,
        "target": target.name,
        "options": target.options(),
        "model": {"name": model.name, "config": asdict(model.config)},
        "weights": asdict(model.weights),
        "license": model.config.licence,
        "contract": interface.describe(),
        "parts": parts,
        "tools": {
            package: installed_version(package)
            for package in ("torch", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy", "pillow")
        },
    }


def _pass_row(step: Step) -> Mapping[str, Any]:
    """A step without the figures that vary; those are in timings.json."""
    proof = "nothing to prove" if step.sites == 0 else "not proved" if step.error is None else "within bound"
    return {
        "name": step.name,
        "sites": step.sites,
        "operators_before": step.operators_before,
        "operators_after": step.operators_after,
        "bound_relative_l2": step.bound,
        "proof": proof,
    }


def _timings(timings: Timings, steps: list[Step]) -> dict[str, Any]:
    return {
        "schema": 1,
        "seconds": sum(stage["seconds"] for stage in timings.stages),
        "peak_rss_mb": max(stage["peak_rss_mb"] for stage in timings.stages),
        "stages": timings.stages,
        "steps": [asdict(step) for step in steps],
    }


def _gate(parity: Parity, *, strict: bool) -> None:
    if parity.verdict == "pass" or (parity.verdict == "not verified" and not strict):
        return
    listed = "\n  ".join(parity.reasons[:8])
    raise ParityError(f"parity {parity.verdict}; no bundle was written\n  {listed}")
