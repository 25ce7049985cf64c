"""What a build did, for people: tables on a terminal. The same facts lie as JSON in the bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgesam_deploy.bundle import Bundle
from edgesam_deploy.targets.base import Target


def print_plan(console: Console, model: str, target: Target, out: Path, steps: Sequence[str], memory: int) -> None:
    """What a build would do, and the memory in bytes that it is estimated to take."""
    options = ", ".join(f"{k}={v}" for k, v in target.options().items())
    _line(console, f"{model} for {target.name} ({options}) into {out}:")
    for index, step in enumerate(steps, 1):
        _line(console, f"{index:3} {step}")
    _line(console, f"memory: about {memory / 2**30:.1f} GiB")


def print_build(console: Console, bundle: Bundle) -> None:
    """Passes with their proofs, operators, parity and time of a finished bundle."""
    timings = bundle.read_json("timings.json")
    _print_steps(console, timings["steps"])
    _print_operators(console, bundle)
    _print_compiled(console, bundle)
    print_parity(console, bundle.read_json("parity.json"))
    stages = ", ".join(f"{s['stage']} {s['seconds']:.1f} s" for s in timings["stages"])
    _line(console, f"{timings['seconds']:.1f} s ({stages}), peak memory {timings['peak_rss_mb']:.0f} MB")
    files = [f"{name} {entry['bytes'] / 2**20:.1f} MiB" for name, entry in bundle.manifest["files"].items()]
    _line(console, f"{bundle.path}: {', '.join(files)}")
    weights = bundle.manifest["weights"]
    if weights["source"] == "seeded":
        _line(console, f"random weights (seed {weights['seed']}): the masks mean nothing; give --checkpoint", "yellow")
    for note in weights["notes"]:
        _line(console, f"note: {note}")


def _line(console: Console, text: str, style: str = "") -> None:
    """As it is: no markup in it, never wrapped, so that a path stays whole."""
    console.print(Text(text, style), soft_wrap=True)


def _print_steps(console: Console, steps: Sequence[Mapping[str, Any]]) -> None:
    table = Table(
        "part", "pass", "sites", "operators", "seconds", "relative L2", "bound", title="passes that found work"
    )
    for step in steps:
        if not step["sites"]:
            continue
        error = "not proved" if step["error"] is None else f"{step['error']:.1e}"
        counts = f"{step['operators_before']} -> {step['operators_after']}"
        seconds = f"{step['seconds'] + step['proof_seconds']:.2f}"
        table.add_row(step["part"], step["name"], str(step["sites"]), counts, seconds, error, f"{step['bound']:.0e}")
    console.print(table)


def _print_operators(console: Console, bundle: Bundle) -> None:
    ops = bundle.read_json("ops.json")["parts"]
    for part, found in ops.items():
        worst = found["worst"]
        count = sum(row["count"] for row in found["rows"])
        _line(console, f"{part}: {count} operators for {bundle.target}, worst status: {worst}")


def _print_compiled(console: Console, bundle: Bundle) -> None:
    """A vendor compiler's verdict, where the target has one."""
    for part, found in (bundle.read_json("compiler.json") or {"parts": {}})["parts"].items():
        traffic = found["traffic"] or {}
        moved = [f"{traffic[key] / 2**20:.1f} MiB {verb}" for key, verb in _MOVED.items() if key in traffic]
        note = f"; DRAM per run, estimated by the compiler: {', '.join(moved)}" if moved else ""
        counts = f"{found['npu_nodes']} nodes on the NPU, {found['cpu_nodes']} on the CPU"
        places = f"{counts}, partitions on the NPU: {found['partitions']}"
        _line(console, f"{part}: {places}{note}", "yellow" if found["cpu_nodes"] else "")


_MOVED = {"dram_read": "read", "dram_write": "written"}


def print_parity(console: Console, parity: Mapping[str, Any]) -> None:
    """Verdict, worst figures, and why."""
    colour = {"pass": "green", "fail": "red"}.get(parity["verdict"], "yellow")
    summary = parity["summary"]
    head = Text.assemble("parity: ", (parity["verdict"], colour))
    if not parity["rows"]:
        console.print(head.append(f": {'; '.join(parity['reasons'])}"), soft_wrap=True)
        return
    head.append(f" over {summary['cases']} cases on {summary['pictures']} pictures; ")
    console.print(head.append(f"{parity['executed']} against {parity['reference']}"), soft_wrap=True)
    _print_summary(console, summary, parity["bounds"])
    for reason in parity["reasons"][:8]:
        _line(console, f"  {reason}")
    if len(parity["reasons"]) > 8:
        _line(console, f"  and {len(parity['reasons']) - 8} more in parity.json")
    if parity["skipped"]:
        _line(console, f"  left out: {'; '.join(parity['skipped'])}")
    if parity["faithful"]:
        _line(console, f"against the checkpoint's own form ({parity['faithful']['reference']}):")
        _print_summary(console, parity["faithful"]["summary"], None)


def _print_summary(console: Console, summary: Mapping[str, Any], bounds: Mapping[str, Any] | None) -> None:
    table = Table("worst", "max abs", "relative L2", "decibels")
    for output, row in summary["outputs"].items():
        table.add_row(output, f"{row['max_abs']:.1e}", f"{row['relative_l2']:.1e}", f"{row['decibels']:.0f}")
    console.print(table)
    if summary["mask_iou"] is None:
        return
    judged = (
        f" ({summary['decided_mask_iou']:.6f} over decided pixels, at least {bounds['mask_iou']})" if bounds else ""
    )
    _line(
        console,
        f"  mask IoU {summary['mask_iou']:.6f}{judged}, flipped pixels {summary['flipped_pixels']:.1e}, "
        f"best-mask flips {summary['best_mask_flips']}, changed orders {summary['order_changes']}",
    )
