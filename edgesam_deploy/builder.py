"""The whole build on one screen: capture, passes, emission, operator report, parity, bundle."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesam_deploy import __version__
from edgesam_deploy.bundle import Bundle, check_output, draft, dump_json, hashed, open_bundle, write_manifest
from edgesam_deploy.capture import capture, capture_twins, part_macs
from edgesam_deploy.contract import Interface, SegmenterInterface, describe_tensors
from edgesam_deploy.cost import LARGE
from edgesam_deploy.errors import ParityError, UnknownName, UsageError
from edgesam_deploy.memory import check_memory
from edgesam_deploy.model.configs import SamConfig
from edgesam_deploy.model.cwsam.configs import CwsamConfig
from edgesam_deploy.model.cwsam.model import Cwsam
from edgesam_deploy.model.sam import Sam
from edgesam_deploy.model_card import model_card
from edgesam_deploy.notices import NOTICE, SBOM, bundle_sbom, weights_notice
from edgesam_deploy.ops import parts_report
from edgesam_deploy.parity import SEEDS, Parity, few_pictures, measure, measure_on, shipped_pictures, unmeasured
from edgesam_deploy.passes.engine import Engine, Pass, ProofMode, Step
from edgesam_deploy.passes.joint import run_joint_passes
from edgesam_deploy.passes.program import Program
from edgesam_deploy.precision.composed import aten_passes
from edgesam_deploy.precision.lint import gate
from edgesam_deploy.precision.mixed import keep_islands
from edgesam_deploy.precision.quantisation import REPORT, keep_layers, report
from edgesam_deploy.precision.sensitivity import LayerCost, sensitivity
from edgesam_deploy.runtime import is_large, open_artifact
from edgesam_deploy.targets import make_target
from edgesam_deploy.targets.base import Target
from edgesam_deploy.toolkits import installed_version


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
    model: Sam | Cwsam,
    target: str | Target = "onnx",
    out: str | Path | None = None,
    *,
    proof: ProofMode = "fast",
    dump_after: str | None = None,
    strict: bool = False,
    overwrite: bool = False,
    pictures: Mapping[str, NDArray[np.uint8]] | None = None,
    max_memory: int | None = None,
    progress: Callable[[str], None] = lambda _: None,
    search: Mapping[str, Any] | None = None,
    **options: Any,
) -> Bundle:
    """Build ``model`` for ``target`` into the folder ``out`` (default ``out/<model>/<target>``) and return the bundle.

    options: the fields of the target's dataclass, e.g. ``points=8``. proof: how each pass is checked (``off``, ``fast``
    two inputs, ``full`` four). strict: also fail where parity could not be verified. pictures: what parity is measured
    on instead of the shipped photographs, (H, W, 3) uint8 RGB by name. max_memory: refuse what is estimated to take
    more bytes; default: what is available. search: how the layers that are not quantised were found, for the report.

    A part above 200 GMAC has its parity measured on two pictures and, if it is a stack of transformer blocks, its
    passes proved on a twin of a few of them; the manifest says so.

    Raises ParityError when the artifact is not the model, PassError when a pass left its bound, TooLarge for
    what does not fit into memory, UsageError and OutputError for what was asked, MissingToolkit for what is not
    installed. Whatever is raised, ``out`` stays as it was.
    """
    chosen = make_target(target, **options) if isinstance(target, str) else target
    folder = Path(out) if out is not None else Path("out") / model.name / chosen.name
    check_output(folder, overwrite=overwrite)
    chosen.require_toolkits()
    interface = chosen.interface(model.config)
    parts = interface.parts(promptable=model.promptable)
    check_memory(model.config, model.name, limit=max_memory, loaded=True)
    first, rest = _stretches(chosen, model.config)
    if dump_after is not None and dump_after not in (known := {step.name for step in (*first, *rest)}):
        raise UnknownName("pass", dump_after, known)
    timings = Timings()

    with timings.stage("capture"):
        progress("capture")
        programs = capture(model, interface)
        macs = part_macs(model.config, interface)
    dumps = folder.resolve().with_name(folder.resolve().name + ".dump")
    engine = Engine(proof, None, dumps, progress, keep_aten=bool(rest) or chosen.half != "none")
    twins = {} if proof == "off" else capture_twins(model, interface, macs)
    with timings.stage("passes"):
        programs, twins = run_joint_passes(engine, programs, twins, chosen.joint_pipeline(model.config))
        if isinstance(interface, Interface):
            interface = interface.with_hoisted(programs[-1].inputs)
        _run(engine, programs, first, twins, dump_after)
    with timings.stage("fp16 lint"):
        if chosen.mixes:
            _mix(programs, chosen, interface, macs, progress)
        gate(model, chosen, interface, engine.aten, macs, twin=bool(twins), progress=progress)
    costs: list[LayerCost] = []
    if chosen.quantises and not any(count > LARGE for count in macs.values()):
        with timings.stage("sensitivity"):
            costs = sensitivity(model, chosen, interface, programs, progress)
    keep_layers(programs, chosen)
    if rest:
        with timings.stage("passes behind the lint"):
            _run(engine, programs, rest, {name: engine.aten[name] for name in twins}, dump_after)
    del twins
    engine.aten.clear()

    with draft(folder, overwrite=overwrite) as place:
        with timings.stage("emit"):
            progress("emit")
            files = {name: place / chosen.file(part) for name, part in parts.items()}
            chosen.emit_parts(programs, interface, files, {p.name: _metadata(model, interface, p) for p in programs})
            for part in programs:
                for name, array in part.sidecars.items():  # what the host needs to feed the part
                    (place / f"{name}.bin").write_bytes(array.astype("<f4").tobytes())
        with timings.stage("operators"):
            progress("operator report")
            ops = parts_report(
                chosen.name, {name: chosen.judged(file) for name, file in files.items()}, rules=chosen.rule_table
            )
            (place / "ops.json").write_text(dump_json(ops))
        content = _content(model, chosen, interface, programs, engine.steps, macs)
        (place / "README.md").write_text(model_card(content))
        chosen.integrate(place, content)
        programs.clear()  # gigabytes, in large models; parity needs the room
        (place / NOTICE).write_text(weights_notice(content))
        files_so_far = hashed(place)
        (place / SBOM).write_text(dump_json(bundle_sbom({**content, "files": files_so_far})))
        write_manifest(place, content, files_so_far)
        with timings.stage("parity"):
            parity = _measured(model, place, chosen, pictures, progress)
        _gate(parity, chosen, strict=strict)
        unhashed = open_bundle(place)
        unhashed.write_json("parity.json", parity.to_json())
        if chosen.quantises:
            unhashed.write_json(REPORT, report(unhashed, chosen, costs, parity.to_json(), search))
        unhashed.write_json("timings.json", _timings(timings, engine.steps))
    return open_bundle(folder)


def _stretches(target: Target, config: SamConfig | CwsamConfig) -> tuple[tuple[Pass, ...], tuple[Pass, ...]]:
    """A target's passes up to where precision is looked at, before anything is lowered or typed, and the rest."""
    pipeline = tuple(target.pipeline(config))
    looked_at = target.half != "none" or target.quantises
    first = aten_passes(pipeline) if looked_at else pipeline
    return first, pipeline[len(first) :]


def _run(
    engine: Engine,
    programs: list[Program],
    passes: Sequence[Pass],
    twins: Mapping[str, Program],
    dump_after: str | None,
) -> None:
    """Replace the programs one by one: a large one before passes and one after them take gigabytes."""
    engine.dump_after = dump_after if dump_after in {step.name for step in passes} else None
    for index, program in enumerate(programs):
        programs[index] = engine.run(program, passes, twin=twins.get(program.name))


def _mix(
    programs: list[Program],
    target: Target,
    interface: Interface | SegmenterInterface,
    macs: Mapping[str, int],
    progress: Callable[[str], None],
) -> None:
    large = [part for part, count in macs.items() if count > LARGE]
    if large:
        raise UsageError(f"--auto-mixed: {', '.join(large)} is too large to be run that often; use --precision fp32")
    keep_islands(programs, target, interface, progress=progress)


def _measured(
    model: Sam | Cwsam,
    place: Path,
    target: Target,
    pictures: Mapping[str, NDArray[np.uint8]] | None,
    progress: Callable[[str], None],
) -> Parity:
    if target.unmeasured:
        return unmeasured(model, open_bundle(place), target.unmeasured)
    artifact = open_artifact(place, target.measured_on)
    if pictures is None and is_large(artifact.bundle):
        return measure_on(model, artifact, few_pictures(), progress=progress)
    return measure(model, artifact, pictures=pictures, progress=progress)


def plan(config: SamConfig | CwsamConfig, target: Target) -> list[str]:
    """The steps of a build, in order, as they are reported to ``progress``."""
    macs = part_macs(config, target.interface(config))
    passes = [f"{' + '.join(macs)}: {step.name}" for step in target.joint_pipeline(config) if len(macs) == 2]
    first, rest = ([f"{part}: {s.name}" for part in macs for s in stretch] for stretch in _stretches(target, config))
    large = any(count > LARGE for count in macs.values())
    pictures = [*few_pictures()] if large else [*shipped_pictures(), *(f"seed {seed}" for seed in SEEDS)]
    lint = [] if target.half == "none" else ["fp16 lint"]
    lint = [*(f"{part}: fp32 islands" for part in macs if target.mixes), *lint]
    if not large:
        lint += [f"{part}: which layers cost most" for part in macs if target.quantised(part)]
    parity = [] if target.unmeasured else [f"parity: {name}" for name in pictures]
    return ["load", "capture", *passes, *first, *lint, *rest, "emit", "operator report", *parity]


def _metadata(model: Sam | Cwsam, interface: Interface | SegmenterInterface, program: Program) -> dict[str, str]:
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
    model: Sam | Cwsam,
    target: Target,
    interface: Interface | SegmenterInterface,
    programs: list[Program],
    steps: list[Step],
    macs: Mapping[str, int],
) -> dict[str, Any]:
    """The manifest, but for the hashes. Nothing in it varies from run to run."""
    specs = {name: target.stored(part) for name, part in interface.parts(promptable=model.promptable).items()}
    parts = {
        program.name: {
            "file": target.file(specs[program.name]),
            "inputs": describe_tensors(specs[program.name].inputs),
            "outputs": describe_tensors(specs[program.name].outputs),
            "operators": dict(sorted(program.operators().items())),
            **({_islands_key(target): sorted(program.islands)} if program.islands else {}),
            "passes": [_pass_row(step) for step in steps if program.name in step.part.split(" + ")],
        }
        for program in programs
    }
    return {
        "edgesam_deploy": __version__,
        "target": target.name,
        "options": target.options(),
        "model": {"name": model.name, "config": asdict(model.config)},
        "parameters": sum(p.numel() for p in model.parameters()),
        "macs": dict(macs),
        "weights": asdict(model.weights),
        "license": model.config.licence,
        "contract": interface.describe(),
        "parts": parts,
        "tools": {package: installed_version(package) for package in ("torch", "numpy", "pillow", *target.tools)},
    }


def _islands_key(target: Target) -> str:
    return "kept_layers" if target.quantises else "fp32_islands"


def _pass_row(step: Step) -> Mapping[str, Any]:
    """A step without the figures that vary; those are in timings.json."""
    proof = "nothing to prove" if step.sites == 0 else "not proved" if step.error is None else "within bound"
    if step.proved_with:
        proof += f", with {len(step.proved_with)} neighbouring exact passes"
    if step.error is not None and step.on_twin:
        proof += " on a twin of fewer blocks"
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


def _gate(parity: Parity, target: Target, *, strict: bool) -> None:
    if parity.verdict == "pass" or (parity.verdict == "not verified" and not strict):
        return
    listed = "\n  ".join(parity.reasons[:8])
    remedy = ""
    if parity.verdict == "fail" and target.half == "arithmetic" and not target.quantises:
        remedy = f"\n  try {target.instead_of_half}"
    raise ParityError(f"parity {parity.verdict}; no bundle was written\n  {listed}{remedy}")
