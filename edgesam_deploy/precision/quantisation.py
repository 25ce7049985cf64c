"""What quantising did, in one file of the bundle: ``quantization.json``; and which layers it leaves alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from edgesam_deploy.errors import ParityError, UsageError
from edgesam_deploy.parity.figures import Difference, summarise
from edgesam_deploy.precision.sensitivity import LayerCost, layers_of

if TYPE_CHECKING:
    from edgesam_deploy.bundle import Bundle
    from edgesam_deploy.passes.program import Program
    from edgesam_deploy.targets.base import Target

REPORT = "quantization.json"
SCHEMA = 1


def keep_layers(programs: Sequence[Program], target: Target) -> None:
    """Make the layers that the target's option ``keep`` names islands, in ``programs`` after its aten passes.

    Raises UsageError for a name that is no layer of a part that is quantised.
    """
    for name in filter(None, str(getattr(target, "keep", "")).split(",")):
        part, _, node = name.partition(":")
        program = next((p for p in programs if p.name == part and target.quantised(part)), None)
        if program is None or node not in {layer.name for layer in layers_of(program)}:
            raise UsageError(f"--keep {name}: no layer of a quantised part has this name; quantization.json lists them")
        program.islands |= {node}


def report(
    bundle: Bundle,
    target: Target,
    costs: Sequence[LayerCost],
    parity: Mapping[str, Any],
    search: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of ``quantization.json``: bits and bytes by part, layers by what they cost, what was kept, and what
    was measured on pictures that calibration did not see. ``search``: how ``keep`` was found, if it was.
    """
    parts = {name: content["file"] for name, content in bundle.manifest["parts"].items()}
    bits = {name: target.quantised(name) for name in parts}
    return {
        "schema": SCHEMA,
        "target": bundle.target,
        "precision": bundle.manifest["options"]["precision"],
        "weights": bundle.manifest["weights"],
        "bits": {name: None if b is None else asdict(b) for name, b in bits.items()},
        "bytes": {name: _bytes(bundle, file) for name, file in parts.items()},
        "bytes_of_parameters_in_fp32": 4 * bundle.manifest["parameters"],
        "kept": [name for name in str(getattr(target, "keep", "")).split(",") if name],
        "layers": [asdict(cost) for cost in costs],
        "layers_measured": "emulated, first order: share of the squared error of the part's outputs",
        "search": search,
        "measured": measured(bundle, parity),
    }


def measured(bundle: Bundle, parity: Mapping[str, Any]) -> dict[str, Any] | None:
    """The worst figures over the pictures that the artifact was not calibrated with; None where nothing was run."""
    known = (bundle.read_json("calibration.json") or {}).get("pictures", {})
    rows = [Difference(**row) for row in parity["rows"] if row["picture"] not in known]
    if not rows:
        return None
    pictures = list(dict.fromkeys(row.picture for row in rows))
    return {**summarise(rows), "executed": parity["executed"], "pictures": pictures}


def after_check(bundle: Bundle, parity: Mapping[str, Any]) -> None:
    """Put what ``check`` measured into the bundle's report, where it has one.

    Raises ParityError where that is below the mask IoU that its layers were searched for.
    """
    content = bundle.read_json(REPORT)
    if content is None:
        return
    content["measured"] = found = measured(bundle, parity)
    bundle.write_json(REPORT, content)
    wanted = (content["search"] or {}).get("min_iou")
    if wanted is not None and found is not None and not found["decided_mask_iou"] >= wanted:
        raise ParityError(
            f"mask IoU {found['decided_mask_iou']:.4f} where the layers kept were searched for {wanted}, on "
            f"{found['executed']}; build again with a higher --min-iou"
        )


def _bytes(bundle: Bundle, file: str) -> int:
    files = bundle.manifest["files"]
    return sum(entry["bytes"] for name, entry in files.items() if name == file or name.startswith(f"{file}/"))
