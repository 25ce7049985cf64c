"""The fewest layers in higher precision for which a quantised artifact's masks are good enough, by executing it.

    quantize(model, "tensorrt", min_iou=0.98, precision="int8")

Layers are ranked by what they cost (``precision.sensitivity``); then artifacts that keep the first n of them are built
and run on pictures that calibration did not see: n = 0, 1, 2, 4, ..., and between the last two by halving.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgesam_deploy.builder import build
from edgesam_deploy.bundle import Bundle, check_output
from edgesam_deploy.capture import capture, part_macs
from edgesam_deploy.contract import MASK_DECODER
from edgesam_deploy.cost import LARGE
from edgesam_deploy.errors import ParityError, UsageError
from edgesam_deploy.parity import shipped_pictures
from edgesam_deploy.precision.analyse import after_aten_passes
from edgesam_deploy.precision.calibration_rows import calibration_set
from edgesam_deploy.precision.quantisation import REPORT
from edgesam_deploy.precision.sensitivity import sensitivity
from edgesam_deploy.targets import make_target

if TYPE_CHECKING:
    from edgesam_deploy.model.configs import SamConfig
    from edgesam_deploy.model.cwsam.configs import CwsamConfig
    from edgesam_deploy.model.sam import Sam
    from edgesam_deploy.parity.cases import Pictures
    from edgesam_deploy.targets.base import Target

DEFAULT_IOU = 0.98


def quantize(
    model: Sam,
    target: str | Target,
    out: str | Path | None = None,
    *,
    min_iou: float = DEFAULT_IOU,
    pictures: Pictures | None = None,
    overwrite: bool = False,
    progress: Callable[[str], None] = lambda _: None,
    options: Mapping[str, Any] | None = None,
    **how: Any,
) -> Bundle:
    """Build ``model`` in 8 bit with the fewest layers kept that give masks of at least ``min_iou``.

    min_iou: of the worst mask over all prompts and unseen pictures, over the pixels that the reference decides.
    pictures: those, instead of the shipped photographs that calibration leaves out; two seeded scenes are added.
    options: the fields of the target's dataclass; how: what else ``build`` takes, for the last build. Where the
    artifact takes minutes to run, its portable form is executed, and ``check`` on the artifact has the last word.

    Raises UsageError for a target or a model that this cannot be done with, ParityError where even all layers kept do
    not reach the bound, and what ``build`` raises.
    """
    chosen = make_target(target, **(options or {})) if isinstance(target, str) else target
    check_searchable(model.name, model.config, chosen, min_iou)
    folder = Path(out) if out is not None else Path("out") / model.name / chosen.name
    check_output(folder, overwrite=overwrite)
    names = _ranked(model, chosen, progress)
    unseen = pictures or _unseen(chosen)
    tried: dict[int, float] = {}

    def reaches(count: int) -> bool:
        progress(f"{count} of {len(names)} layers kept")
        with tempfile.TemporaryDirectory() as place:
            trial = _keeping(chosen.rehearsal(), names[:count])
            tried[count] = _iou(model, trial, Path(place) / "bundle", unseen, how.get("max_memory"))
        progress(f"{count} layers kept: mask IoU {tried[count]:.4f}")
        return tried[count] >= min_iou

    count = fewest(len(names), reaches)
    if count is None:
        raise ParityError(
            f"mask IoU {tried[len(names)]:.4f} with all {len(names)} layers of {chosen.name} kept, where {min_iou} is "
            "wanted; no bundle was written; use 16-bit activations (w8a16, fp16), or a lower --min-iou"
        )
    search = {"min_iou": min_iou, "tries": [{"kept": n, "mask_iou": iou} for n, iou in tried.items()],
              "executed": "the artifact" if type(chosen.rehearsal()) is type(chosen) else "its portable form; "
              "edgesam-deploy check runs the artifact"}  # fmt: skip
    return build(
        model, _keeping(chosen, names[:count]), folder, overwrite=overwrite, progress=progress, pictures=pictures,
        search=search, **how,
    )  # fmt: skip


def check_searchable(name: str, config: SamConfig | CwsamConfig, target: Target, min_iou: float) -> None:
    """Raise UsageError where there is nothing to search."""
    if not 0 < min_iou < 1:
        raise UsageError(f"--min-iou {min_iou}: must lie between 0 and 1")
    if not target.keeps_layers:
        raise UsageError(f"--quantize auto: {target.name} cannot keep single layers; it is for tensorrt and qnn")
    if not target.quantises:
        raise UsageError(f"--quantize auto: --precision {target.options()['precision']} quantises nothing; use 8 bit")
    if getattr(target, "keep", ""):
        raise UsageError("--quantize auto chooses the layers itself; leave --keep out")
    macs = part_macs(config, target.interface(config))
    if MASK_DECODER not in macs:
        raise UsageError(f"--quantize auto: {name} gives no masks for prompts, whose IoU is the measure")
    if any(count > LARGE for count in macs.values()):
        raise UsageError(f"--quantize auto: {name} is too large to be built that often; name layers with --keep")


def fewest(total: int, reaches: Callable[[int], bool]) -> int | None:
    """The least n in 0..total for which ``reaches`` holds, if it holds from some n on; None where not for ``total``."""
    fails, works = -1, 0
    while not reaches(works):
        if works == total:
            return None
        fails, works = works, min(max(1, 2 * works), total)
    while works - fails > 1:
        middle = (works + fails) // 2
        fails, works = (fails, middle) if reaches(middle) else (middle, works)
    return works


def _keeping(target: Target, names: list[str]) -> Target:
    changes: dict[str, Any] = {"keep": ",".join(names)}
    return replace(target, **changes)


def _ranked(model: Sam, target: Target, progress: Callable[[str], None]) -> list[str]:
    interface = target.interface(model.config)
    programs, interface = after_aten_passes(capture(model, interface), target, model, interface)
    return [cost.name for cost in sensitivity(model, target, interface, programs, progress)]


def _unseen(target: Target) -> Pictures:
    known = calibration_set(getattr(target, "calibration", None)).pictures
    return {name: picture for name, picture in shipped_pictures().items() if name not in known}


def _iou(model: Sam, target: Target, place: Path, pictures: Pictures, max_memory: int | None) -> float:
    """Of the worst mask; 0 for an artifact that is refused."""
    try:
        bundle = build(model, target, place, proof="off", pictures=pictures, max_memory=max_memory)
    except ParityError:
        return 0.0
    found = (bundle.read_json(REPORT) or {})["measured"]
    return float(found["decided_mask_iou"])
