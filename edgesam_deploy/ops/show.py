"""The operator report on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgesam_deploy.ops.judge import OpsReport, OpsRow
from edgesam_deploy.targets.rules import Status

if TYPE_CHECKING:
    from rich.console import Console

    from edgesam_deploy.ops.compute_plan import PlanReport

_COLOURS: dict[Status, str] = {"supported": "green", "partial": "yellow", "unknown": "magenta", "unsupported": "red"}
MANY = 3  # targets from which only what does not simply run is listed


def render(report: OpsReport, console: Console) -> None:
    """Print the report: what does not simply run, with its remedy, above what does; then the totals by target.

    Of more than MANY targets, what simply runs is in the totals only.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, title=Text(f"operators of {report.file}"), title_justify="left")
    for column in ("target", "operator", "count", "status", "types", "ranks", "reason", "fixed by", "rule", "nodes"):
        table.add_column(column, justify="right" if column == "count" else "left", overflow="fold")
    for row in _listed(report):
        cells = (
            row.target,
            operator_of(row),
            str(row.count),
            Text(row.status, _COLOURS[row.status]),
            " ".join(row.dtypes),
            " ".join(map(str, row.ranks)),
            row.reason,
            row.fixed_by or "",
            row.source,
            "" if row.status == "supported" else few(row.nodes),
        )
        table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in cells))  # names are no markup
    if table.row_count:
        console.print(table)
    for target, totals in report.totals().items():
        version = next((row.version for row in report.rows if row.target == target), "no operators")
        found = ", ".join(f"{count} {status}" for status, count in totals.items() if count)
        console.print(Text(f"{target}: {found or 'nothing to run'}  ({version})"))
    for placement in report.placements:
        console.print(Text(placement.sentence()), soft_wrap=True)


def render_plan(plan: PlanReport, console: Console) -> None:
    """Print a compute plan's answer for one package: operators by device, shares, and where an estimate differs."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    where = ", ".join(filter(None, (plan.machine, plan.system, f"compute units {plan.compute_units}")))
    table = Table(box=box.SIMPLE_HEAD, title=Text(f"compute plan of {plan.file} ({where})"), title_justify="left")
    for column in ("device", "operator", "count", "share of the cost"):
        table.add_column(column, justify="left" if column in ("device", "operator") else "right")
    for row in plan.rows:
        table.add_row(row.device, row.operator, str(row.count), "" if row.cost is None else f"{row.cost:.1%}")
    console.print(table)
    for name, parts in (("operators", plan.shares), ("cost", plan.costs)):
        if parts:
            console.print(Text(f"{name}: " + ", ".join(f"{device} {share:.1%}" for device, share in parts.items())))
    console.print(Text(f"switches between devices: {plan.switches}"))
    if plan.unmatched:
        console.print(Text(f"not in the package by these names: {few(plan.unmatched)}"))
    for target in dict.fromkeys(found.target for found in plan.disagreements):
        mine = [found for found in plan.disagreements if found.target == target]
        named = tuple(f"{found.operator} {found.operation} on {found.device}" for found in mine)
        console.print(Text(f"{target}: {len(mine)} operators run elsewhere than the estimate says: {few(named)}"))


def _listed(report: OpsReport) -> list[OpsRow]:
    return [row for row in report.rows if len(report.targets) <= MANY or row.status != "supported"]


def operator_of(row: OpsRow) -> str:
    """``Conv``; ``com.microsoft::Gelu`` outside of standard ONNX."""
    return f"{row.domain}::{row.operator}" if row.domain else row.operator


def few(names: tuple[str, ...], most: int = 3) -> str:
    """The first names, and how many more there are."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
