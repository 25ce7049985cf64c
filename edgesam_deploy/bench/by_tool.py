"""Measuring with a vendor's tool on a device: push the parts, run the tool on each, keep its rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgesam_deploy.bench.measure import circumstances, described
from edgesam_deploy.bench.settings import Settings
from edgesam_deploy.bundle import Bundle
from edgesam_deploy.devices import ConnectionLost, Device

Progress = Callable[[str], None]
Stages = Sequence[tuple[str, Callable[[], dict[str, Any]]]]  # a stage's name, and what measures it


def measure_by_tool(
    device: Device,
    named: Mapping[str, Bundle],
    settings: Settings,
    files: Mapping[str, Path],
    stages: Mapping[str, Stages],
    *,
    executed: str,
    prepare: Callable[[], object] = lambda: None,
    progress: Progress = lambda _: None,
) -> dict[str, Any]:
    """As ``measure`` gives it, of the parts alone; within the device's block. ``stages`` by the bundles' names.

    A row's ``load_ms`` goes to the bundle. ``prepare`` runs behind the pushing. Where the connection breaks, what was
    measured until then, and ``complete`` is false.
    """
    result = {**circumstances(settings, device.name), "bundles": [described(b) for b in named.values()], "ratios": []}
    progress("push")
    device.push(files)
    prepare()
    state = result["state_before"] = device.state()
    result |= {"cpu": state.get("model") or state.get("cpu", ""), "machine": state.get("system", ""), "versions": {}}
    try:
        for name, bundle_row in zip(named, result["bundles"], strict=True):
            for stage, run in stages[name]:
                progress(f"{name}: {stage}")
                row = run()
                bundle_row["load_ms"] = bundle_row.get("load_ms", 0.0) + (row.pop("load_ms") or 0.0)
                bundle_row["executed"] = executed
                bundle_row["stages"].append({"stage": stage, "prompts": 1, **row})
        result["state_after"] = device.state()
    except ConnectionLost as e:
        if not any(row["stages"] for row in result["bundles"]):
            raise
        result["complete"], result["incomplete_because"] = False, str(e)
    return result
