"""A compute plan that Core ML made on a Mac, read from JSON, and where it and the static estimate disagree.

docs/operators.md has the lines that write the file. Schema 1:

    {"schema": 1, "machine": "Mac14,2", "system": "macOS 15.3", "compute_units": "ALL",
     "packages": {"decoder.mlpackage": [
       {"function": "main", "operator": "conv", "output": "x_1", "device": "ANE", "cost": 0.012}, ..]}}

``device``: ANE, GPU, CPU, or null where the plan names none, as for constants. ``cost``: the plan's relative weight, or
null. ``output``: the name of the operation's first output, by which it is found in the package.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, ValidationError

from edgesam_deploy.errors import UsageError
from edgesam_deploy.ops.placement import Place, Placement

Device = Literal["ANE", "GPU", "CPU"]
DEVICES: tuple[Device, ...] = ("ANE", "GPU", "CPU")
NEURAL_ENGINE: Device = "ANE"


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PlannedOperation(_Data):
    """One operation of a plan."""

    function: str = Field("main", min_length=1)
    operator: str = Field(min_length=1)
    output: str = Field(min_length=1)
    device: Device | None = None
    cost: NonNegativeFloat | None = None


class ComputePlan(_Data):
    """What Core ML said of a bundle's packages. ``machine`` and ``system``: where it was made."""

    schema_: Literal[1] = Field(alias="schema")
    machine: str = Field(min_length=1)
    system: str = ""
    compute_units: str = ""
    packages: dict[str, tuple[PlannedOperation, ...]] = Field(min_length=1)


def read_plan(path: Path) -> ComputePlan:
    """The plan in a JSON file. Raises UsageError naming the field that is wrong."""
    try:
        return ComputePlan.model_validate_json(path.read_bytes())
    except OSError as e:
        raise UsageError(f"--compute-plan {path}: {e.strerror or e}") from e
    except ValidationError as e:
        first = e.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise UsageError(f"--compute-plan {path}: {place}: {first['msg']}; see docs/operators.md for its form") from e


@dataclass(frozen=True)
class DeviceRow:
    """Operations of one operator that run on one device. ``cost``: their share of the plan's weights, or None."""

    device: Device
    operator: str
    count: int
    cost: float | None


@dataclass(frozen=True)
class Disagreement:
    """An operation that the plan and the estimate of ``target`` place differently."""

    target: str
    operation: str
    operator: str
    device: Device
    estimate: Place


@dataclass(frozen=True)
class PlanReport:
    """A plan's answer for one package.

    shares: part of the placed operations by device; costs: part of the plan's weights, empty where it has none.
    switches: how often neighbours run on different devices. unmatched: placed operations that the package has none of.
    """

    file: str
    machine: str
    system: str
    compute_units: str
    rows: tuple[DeviceRow, ...]
    shares: Mapping[Device, float]
    costs: Mapping[Device, float]
    switches: int
    unmatched: tuple[str, ...]
    disagreements: tuple[Disagreement, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def plan_report(plan: ComputePlan, file: str, placements: Sequence[Placement]) -> PlanReport:
    """The plan's answer for the package called ``file``, against estimates of it.

    Raises UsageError where the plan has no such package or places nothing in it.
    """
    if file not in plan.packages:
        raise UsageError(f"--compute-plan: it speaks of {', '.join(plan.packages)}, not of {file}")
    operations = [op for op in plan.packages[file] if op.device is not None]
    if not operations:
        raise UsageError(f"--compute-plan: it names no device for any operation of {file}")
    total = sum(op.cost or 0.0 for op in operations)
    devices = [op.device for op in operations]
    changes = sum(a.device != b.device for a, b in pairwise(operations) if a.function == b.function)
    return PlanReport(
        file,
        plan.machine,
        plan.system,
        plan.compute_units,
        tuple(_rows(operations, total)),
        {device: devices.count(device) / len(devices) for device in DEVICES},
        {d: sum(op.cost or 0.0 for op in operations if op.device == d) / total for d in DEVICES} if total else {},
        changes,
        _unmatched(operations, placements),
        tuple(found for placement in placements for found in _disagreements(operations, placement)),
    )


def _rows(operations: Sequence[PlannedOperation], total: float) -> list[DeviceRow]:
    groups: dict[tuple[Device, str], list[PlannedOperation]] = {}
    for op in operations:
        if op.device is not None:
            groups.setdefault((op.device, op.operator), []).append(op)
    rows = [
        DeviceRow(device, operator, len(same), sum(op.cost or 0.0 for op in same) / total if total else None)
        for (device, operator), same in groups.items()
    ]
    return sorted(rows, key=lambda row: (DEVICES.index(row.device), -row.count, row.operator))


def _places(placement: Placement) -> dict[str, Place]:
    return dict(zip(placement.nodes, placement.places, strict=True))


def _found(op: PlannedOperation, places: Mapping[str, Place]) -> Place | None:
    """The estimate for an operation; a package of several functions has their names before those of operations."""
    return places.get(f"{op.function}/{op.output}", places.get(op.output))


def _unmatched(operations: Sequence[PlannedOperation], placements: Sequence[Placement]) -> tuple[str, ...]:
    if not placements:
        return ()
    places = _places(placements[0])
    return tuple(op.output for op in operations if _found(op, places) is None)


def _disagreements(operations: Sequence[PlannedOperation], placement: Placement) -> list[Disagreement]:
    places = _places(placement)
    found = []
    for op in operations:
        estimate = _found(op, places)
        if op.device is None or estimate in (None, "unknown"):
            continue
        if (op.device == NEURAL_ENGINE) != (estimate == "unit"):
            found.append(Disagreement(placement.target, op.output, op.operator, op.device, estimate))
    return found
