"""The report on a model that is not built yet: captured and lowered by the targets' pipelines, nothing kept."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgesam_deploy.ops.judge import ALL, OpsReport, report
from edgesam_deploy.targets import make_target, target_names
from edgesam_deploy.targets.rules import ALIASES, report_names, report_table

if TYPE_CHECKING:
    from edgesam_deploy.model.cwsam.model import Cwsam
    from edgesam_deploy.model.sam import Sam
    from edgesam_deploy.targets.base import Target

PROFILES = ("tv", "mediatek", "rknn", "generic")  # rule tables that are profiles of the npu target
PIPELINE = "onnx"  # whose ONNX is judged where a target has no pipeline that ends in ONNX


def model_reports(
    model: Sam | Cwsam, targets: Sequence[str], progress: Callable[[str], None] = lambda _: None
) -> list[OpsReport]:
    """One report per part and pipeline. A target that emits other than ONNX is judged on the onnx target's graph.

    Raises UnknownName for a target, UsageError for a model that a pipeline cannot take.
    """
    names = tuple(report_names()) if ALL in targets else tuple(dict.fromkeys(targets))
    for name in names:
        report_table(name)  # an unknown one is said before anything is captured
    groups: dict[str, tuple[Target, list[str]]] = {}
    for name in names:
        label, target = _pipeline_for(name)
        groups.setdefault(label, (target, []))[1].append(name)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for label, (target, judged) in groups.items():
            for part, file in lower(model, target, Path(folder), progress).items():
                title = f"{part} of {model.name}, as the {label} pipeline lowers it"
                found.append(report(file, judged, title=title))
    return found


def _pipeline_for(name: str) -> tuple[str, Target]:
    """The pipeline whose ONNX is judged, by its label."""
    asked = ALIASES.get(name, name)
    if asked in PROFILES:
        return f"npu ({asked})", make_target("npu", **({} if asked == "tv" else {"profile": asked}))
    if asked in target_names():
        target = make_target(asked)
        if target.extension.endswith("onnx"):
            return asked, target
    return PIPELINE, make_target(PIPELINE)


def lower(
    model: Sam | Cwsam, target: Target, folder: Path, progress: Callable[[str], None] = lambda _: None
) -> Mapping[str, Path]:
    """The model's parts as ``target``'s passes leave them, as ONNX files in ``folder``, by part. Nothing is proved."""
    import onnx_ir as ir

    from edgesam_deploy.capture import capture
    from edgesam_deploy.passes.engine import Engine
    from edgesam_deploy.passes.joint import run_joint

    progress(f"{target.name}: capture")
    programs = capture(model, target.interface(model.config))
    engine = Engine("off")
    for rewrite in target.joint_pipeline(model.config) if len(programs) == 2 else ():
        programs = [*run_joint(engine, programs[0], programs[1], rewrite)]
    files = {}
    for program in programs:
        files[program.name] = folder / f"{target.name}.{program.name}.onnx"
        lowered = engine.run(program, target.pipeline(model.config))
        ir.save(lowered.onnx, files[program.name], external_data=f"{program.name}.data")  # some have gigabytes
    return files
