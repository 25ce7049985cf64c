"""The operator report as one HTML file: no other file, no network; readable without JavaScript, sortable with it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape

from edgesam_deploy.ops.judge import OpsReport, OpsRow
from edgesam_deploy.ops.show import few, operator_of
from edgesam_deploy.targets.rules import SEVERITY, report_table

COLUMNS = (
    "operator", "count", "status", "types", "ranks", "reason", "fixed by", "rule", "nodes",
)  # fmt: skip
FEW = 6  # names of nodes before the rest folds away
STYLE = """
:root { color-scheme: light dark; --line: #d7dbe0; --soft: #f4f6f8; --text: #1c2126; --dim: #5b6670; --page: #fff;
  --supported: #1a7f4b; --partial: #a86400; --unknown: #7a3fb0; --unsupported: #c02b2b; }
@media (prefers-color-scheme: dark) { :root { --line: #363d45; --soft: #1d2227; --text: #e4e8eb; --dim: #9aa5ae;
  --page: #14181b; --supported: #54c68a; --partial: #e0a447; --unknown: #bb8de6; --unsupported: #f07373; } }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--text); background: var(--page); margin: 2rem auto;
  max-width: 96rem; padding: 0 1.5rem; }
h1 { font-size: 1.5rem; margin: 0 0 .3rem; } h2 { font-size: 1.15rem; margin: 2.6rem 0 .2rem; }
h3 { font-size: 1rem; margin: 1.8rem 0 .2rem; }
p { margin: .2rem 0; color: var(--dim); } code { font: .92em ui-monospace, monospace; }
table { border-collapse: collapse; width: 100%; margin: .8rem 0; font-size: .9rem; }
th, td { text-align: left; vertical-align: top; padding: .35rem .6rem; border-bottom: 1px solid var(--line);
  overflow-wrap: anywhere; }
thead th { background: var(--soft); border-bottom: 2px solid var(--line); white-space: nowrap; }
th[data-sort] { cursor: pointer; } td.number { text-align: right; font-variant-numeric: tabular-nums; }
.bar { display: flex; height: .6rem; width: 14rem; border-radius: .3rem; overflow: hidden; background: var(--soft); }
.bar i { display: block; height: 100%; }
.status { font-weight: 600; white-space: nowrap; }
.supported { color: var(--supported); } .partial { color: var(--partial); }
.unknown { color: var(--unknown); } .unsupported { color: var(--unsupported); }
i.supported { background: var(--supported); } i.partial { background: var(--partial); }
i.unknown { background: var(--unknown); } i.unsupported { background: var(--unsupported); }
details summary { cursor: pointer; color: var(--dim); }
"""
SCRIPT = """
for (const head of document.querySelectorAll("th[data-sort]")) head.addEventListener("click", () => {
  const body = head.closest("table").tBodies[0], place = head.cellIndex, up = head.dataset.sort !== "up";
  const key = row => row.cells[place].dataset.key ?? row.cells[place].textContent;
  const order = (a, b) => key(a).localeCompare(key(b), undefined, {numeric: true});
  const rows = [...body.rows].sort((a, b) => up ? order(a, b) : order(b, a));
  head.dataset.sort = up ? "up" : "down";
  body.append(...rows);
});
"""


def html_page(reports: Sequence[OpsReport], *, remark: str = "") -> str:
    """The page on one file or several. ``remark`` stands under the heading."""
    title = ", ".join(report.file for report in reports)
    return "\n".join(
        (
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>Operators of {escape(title)}</title><style>{STYLE}</style></head><body>",
            f"<h1>Operators of {escape(title)}</h1>",
            "<p>What each runtime runs, by its rule table. What no rule knows is unknown, never supported.</p>",
            *([f"<p>{escape(remark)}</p>"] if remark else []),
            *(line for report in reports for line in _file(report)),
            f"<script>{SCRIPT}</script></body></html>",
            "",
        )
    )


def _file(report: OpsReport) -> Iterator[str]:
    opsets = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in sorted(report.opsets.items()))
    yield f"<h2>{escape(report.file)}</h2>"
    yield f"<p>opset {escape(opsets)}</p>" if opsets else ""
    yield from overview(report)
    for target in report.targets:
        rows = [row for row in report.rows if row.target == target]
        table = report_table(target)
        heading = escape(f"{target}: {table.runtime} {table.version}")
        yield f'<h3 id="{_anchor(report, target)}">{heading}</h3>'
        yield f"<p>Rules from {escape(table.source)}. {escape(_sentence(table.generated_by))}</p>"
        yield from _table(rows)


def _sentence(text: str) -> str:
    return f"Made by: {text}." if text else ""


def _anchor(report: OpsReport, target: str) -> str:
    return escape(f"{report.file}-{target}", quote=True).replace(" ", "-")


def overview(report: OpsReport, *, links: bool = True) -> Iterator[str]:
    """A row per target: how many nodes are supported, partly, unknown, not; ``links`` to the target's own table."""
    heads = "".join(f"<th>{status}</th>" for status in SEVERITY)
    yield f"<table><thead><tr><th>target</th><th></th>{heads}</tr></thead><tbody>"
    for target, totals in report.totals().items():
        every = sum(totals.values()) or 1
        bar = "".join(
            f'<i class="{status}" style="width:{100 * totals[status] / every:.2f}%"></i>' for status in SEVERITY
        )
        cells = "".join(f'<td class="number">{totals[status]}</td>' for status in SEVERITY)
        name = f'<a href="#{_anchor(report, target)}">{escape(target)}</a>' if links else escape(target)
        yield f'<tr><td>{name}</td><td><span class="bar">{bar}</span></td>{cells}</tr>'
    yield "</tbody></table>"


def _table(rows: Iterable[OpsRow]) -> Iterator[str]:
    heads = "".join(f'<th data-sort="">{column}</th>' for column in COLUMNS)
    yield f"<table><thead><tr>{heads}</tr></thead><tbody>"
    for row in rows:
        yield "<tr>" + "".join(_cells(row)) + "</tr>"
    yield "</tbody></table>"


def _cells(row: OpsRow) -> Iterator[str]:
    lowered = f" &rarr; {escape(row.lowers_to)}" if row.lowers_to else ""
    yield f"<td><code>{escape(operator_of(row))}</code>{lowered}</td>"
    yield f'<td class="number">{row.count}</td>'
    yield f'<td class="status {row.status}" data-key="{SEVERITY.index(row.status)}">{row.status}</td>'
    yield f"<td>{escape(' '.join(row.dtypes))}</td>"
    yield f"<td>{' '.join(map(str, row.ranks))}</td>"
    yield f"<td>{escape(row.reason)}</td>"
    yield f"<td>{f'<code>{escape(row.fixed_by)}</code>' if row.fixed_by else ''}</td>"
    yield f"<td>{escape(row.source)}</td>"
    yield f"<td>{_nodes(row.nodes)}</td>"


def _nodes(names: tuple[str, ...]) -> str:
    every = escape(", ".join(names))
    if len(names) <= FEW:
        return every
    return f"<details><summary>{escape(few(names, 2))}</summary>{every}</details>"
