"""One HTML file about one bundle or several: what was built, what is proved, how right and how fast it is, and what
nobody looked at. It holds everything it shows, opens no connection, and is whole without JavaScript.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from edgesam_deploy.bench.formats import state_line
from edgesam_deploy.bundle import Bundle
from edgesam_deploy.ops import ALL, READERS, report
from edgesam_deploy.ops.page import SCRIPT, STYLE, overview
from edgesam_deploy.report.gaps import not_verified
from edgesam_deploy.report.pictures import Panels
from edgesam_deploy.report.plots import bars, boxes, legend

MORE_STYLE = """
.verdict { font-weight: 600; } .pass { color: var(--supported); } .fail { color: var(--unsupported); }
.not { color: var(--partial); }
svg { max-width: 60rem; width: 100%; height: auto; color: var(--text); } .legend svg { width: 12px; }
.legend span { margin-right: 1.2rem; } figure { display: inline-block; margin: .4rem .8rem .4rem 0; width: 31%; }
figure img { display: block; width: 100%; } figcaption { color: var(--dim); font-size: .9rem; }
section { border-top: 2px solid var(--line); margin-top: 3rem; } nav a { margin-right: 1rem; }
ul.gaps li { margin: .2rem 0; }
"""
Html = Iterator[str]


def report_page(bundles: Sequence[Bundle], panels: Sequence[Panels | str]) -> str:
    """The page; ``panels`` are each bundle's pictures, or why there are none."""
    title = "Report on " + ", ".join(bundle.path.name for bundle in bundles)
    return "\n".join(
        (
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<link rel="icon" href="data:,">',  # or the browser asks for one
            f"<title>{escape(title)}</title><style>{STYLE}{MORE_STYLE}</style></head><body>",
            f"<h1>{escape(title)}</h1>",
            *_summary(bundles),
            *_together(bundles),
            *(
                line
                for index, (bundle, pictures) in enumerate(zip(bundles, panels, strict=True))
                for line in _bundle(index, bundle, pictures)
            ),
            f"<script>{SCRIPT}</script></body></html>",
            "",
        )
    )


def _summary(bundles: Sequence[Bundle]) -> Html:
    heads = (
        "bundle",
        "model",
        "target",
        "precision",
        "parity",
        "size, MiB",
        "encoder, ms",
        "click to masks, ms",
        "open",
    )
    rows = []
    for index, bundle in enumerate(bundles):
        manifest = bundle.manifest
        size = sum(file["bytes"] for file in manifest["files"].values()) / 2**20
        timed = _medians(bundle)
        verdict, kind = _verdict(bundle)
        rows.append([
            f'<a href="#b{index}">{escape(str(bundle.path))}</a>', escape(manifest["model"]["name"]),
            escape(bundle.target), escape(_precision(bundle)), f'<span class="verdict {kind}">{escape(verdict)}</span>',
            f"{size:.1f}", timed.get("encoder", timed.get("segmenter", "")), timed.get("click to masks", ""),
            str(len(not_verified(bundle))),
        ])  # fmt: skip
    yield from _table(heads, rows, sort=len(rows) > 1)
    yield "<p>&ldquo;open&rdquo; counts what was not verified; it is listed with each bundle.</p>"


def _together(bundles: Sequence[Bundle]) -> Html:
    """All that were timed, in one plot."""
    results = {str(bundle.path): found for bundle in bundles if (found := bundle.read_json("bench.json"))}
    if len(results) < 2:
        return
    rows: dict[str, dict[str, Sequence[float]]] = {}
    for name, found in results.items():
        for row in found["bundles"][0]["stages"]:
            if row["times"]:
                rows.setdefault(row["stage"], {})[name] = row["times"]
    shared = {stage: entry for stage, entry in rows.items() if len(entry) > 1}
    if not shared:
        return
    yield "<h2>Latency of all</h2>"
    yield "<p>Boxes from quartile to quartile, whiskers to the extremes. Only figures of one interleaved run compare:"
    yield " <code>edgesam-deploy bench A B</code> gives ratios.</p>"
    yield legend(list(dict.fromkeys(name for entry in shared.values() for name in entry)))
    yield boxes(shared)


def _bundle(index: int, bundle: Bundle, panels: Panels | str) -> Html:
    yield f'<section id="b{index}"><h2>{escape(str(bundle.path))}</h2>'
    yield from _built(bundle)
    yield from _gaps(bundle)
    yield from _parity(bundle, panels)
    yield from _latency(bundle)
    yield from _passes(bundle)
    yield from _operators(bundle)
    yield from _sizes(bundle)
    yield from _cost(bundle)
    yield "</section>"


def _built(bundle: Bundle) -> Html:
    manifest = bundle.manifest
    weights = manifest["weights"]
    origin = weights.get("checkpoint") or f"random, seed {weights.get('seed')}: its masks mean nothing"
    macs = ", ".join(f"{part} {count / 1e9:.2f} GMAC" for part, count in manifest["macs"].items())
    options = {key: value for key, value in manifest["options"].items() if value not in (None, False)}
    facts = {
        "model": f"{manifest['model']['name']}, {manifest['parameters'] / 1e6:.2f} million parameters",
        "cost": macs, "weights": str(origin), "licence of the weights": str(manifest["license"]),
        "options": ", ".join(f"{key} {value}" for key, value in options.items()),
        "made with": ", ".join(
            f"{name} {number}"
            for name, number in {"edgesam-deploy": manifest["edgesam_deploy"], **manifest["tools"]}.items()
            if number
        ),
        "manifest": str(manifest.get("manifest_sha256")),
    }  # fmt: skip
    yield "<h3>What was built</h3>"
    yield from _table(("", ""), [[escape(key), escape(value)] for key, value in facts.items()])
    for part, entry in manifest["parts"].items():
        tensors = [
            [escape(way), f"<code>{escape(t['name'])}</code>", escape(_shape(t)), escape(t.get("meaning", ""))]
            for way in ("inputs", "outputs")
            for t in entry[way]
        ]
        yield f"<details><summary>Inputs and outputs of {escape(part)} ({escape(entry['file'])})</summary>"
        yield from _table(("", "name", "shape, type", "meaning"), tensors)
        yield "</details>"


def _shape(tensor: Mapping[str, Any]) -> str:
    return f"({', '.join(map(str, tensor['shape']))}) {tensor['dtype']}"


def _gaps(bundle: Bundle) -> Html:
    yield "<h3>What was not verified</h3>"
    gaps = not_verified(bundle)
    yield (
        f'<ul class="gaps">{"".join(f"<li>{escape(gap)}</li>" for gap in gaps)}</ul>'
        if gaps
        else "<p>Nothing known.</p>"
    )


def _verdict(bundle: Bundle) -> tuple[str, str]:
    parity = bundle.read_json("parity.json")
    verdict = "not measured" if parity is None else parity["verdict"]
    return verdict, verdict.split()[0]


def _parity(bundle: Bundle, panels: Panels | str) -> Html:
    yield "<h3>Parity with PyTorch</h3>"
    parity = bundle.read_json("parity.json")
    if parity is None:
        yield f"<p>Not measured: <code>edgesam-deploy check {escape(str(bundle.path))}</code></p>"
        return
    verdict, kind = _verdict(bundle)
    ran = f"{parity['executed']} against {parity['reference']}"
    yield f'<p><span class="verdict {kind}">{escape(verdict)}</span>: {escape(ran)}</p>'
    for reason in parity["reasons"]:
        yield f"<p>{escape(reason)}</p>"
    if parity["rows"]:
        yield from _parity_tables(parity)
    if isinstance(panels, str):
        yield f"<p>No pictures: {escape(panels)}.</p>"
        return
    for caption, file in panels.files.items():
        data = base64.b64encode(file).decode()
        text = escape(caption, quote=True)
        yield f'<figure><img alt="{text}" src="data:image/jpeg;base64,{data}"><figcaption>{text}</figcaption></figure>'
    yield f"<p>{escape(panels.said)}. Red: only the reference; orange: only the artifact.</p>"


def _parity_tables(parity: Mapping[str, Any]) -> Html:
    summary = parity["summary"]
    yield f"<p>Worst of {summary['cases']} cases on {summary['pictures']} pictures:</p>"
    heads = ("output", "max abs", "relative L2", "decibels")
    rows = [
        [escape(name), f"{row['max_abs']:.1e}", f"{row['relative_l2']:.1e}", f"{row['decibels']:.0f}"]
        for name, row in summary["outputs"].items()
    ]
    yield from _table(heads, rows)
    if summary["mask_iou"] is not None:
        yield (
            f"<p>Mask IoU {summary['mask_iou']:.6f}, over pixels that the reference decides "
            f"{summary['decided_mask_iou']:.6f} (at least {parity['bounds']['mask_iou']}); flipped pixels "
            f"{summary['flipped_pixels']:.1e}, best-mask flips {summary['best_mask_flips']}.</p>"
        )
    keys = ("picture", "case", "output", "max_abs", "relative_l2", "mask_iou", "flipped_pixels")
    cells = [[_cell(row[key]) for key in keys] for row in parity["rows"]]
    yield f"<details><summary>All {len(cells)} rows</summary>"
    yield from _table(tuple(key.replace("_", " ") for key in keys), cells, sort=True)
    yield "</details>"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else escape(str(value))


def _medians(bundle: Bundle) -> dict[str, str]:
    found = bundle.read_json("bench.json")
    if not found or "bundles" not in found:
        return {}
    rows = found["bundles"][0]["stages"]
    return {row["stage"]: f"{row['p50']:.2f}" for row in rows if row["p50"] is not None}


def _latency(bundle: Bundle) -> Html:
    yield "<h3>Latency</h3>"
    found = bundle.read_json("bench.json")
    if not found or "bundles" not in found:
        yield f"<p>Not measured: <code>edgesam-deploy bench {escape(str(bundle.path))}</code></p>"
        return
    (row,) = found["bundles"]
    threads = found["settings"]["threads"] or "the runtime's choice of"
    where = f"{found['device']}: {found['cpu']}, {found['machine']}, {found['date']}"
    said = f"{row.get('executed')}, {threads} threads; {where}"
    yield f"<p>{escape(said)}. Before: {escape(state_line(found.get('state_before', {})))}.</p>"
    yield boxes({stage["stage"]: {row["name"]: stage["times"]} for stage in row["stages"]})
    keys = ("stage", "runs", "first", "mean", "min", "p50", "p90", "p99", "std", "cpu")
    cells = [[_cell(s[k]) if k in ("stage", "runs") else _ms(s[k]) for k in keys] for s in row["stages"]]
    yield from _table(("stage, ms", *keys[1:]), cells)
    if cold := row.get("cold"):
        by_time = sorted(cold.items(), key=lambda pair: pair[1] or 0)
        marks = ", ".join(f"{key.removesuffix('_ms')} after {value:.0f} ms" for key, value in by_time if "_ms" in key)
        memory = "" if cold["peak_rss_mb"] is None else f"; largest memory {cold['peak_rss_mb']:.0f} MB"
        yield f"<p>Cold start: {escape(marks + memory)}.</p>"


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _passes(bundle: Bundle) -> Html:
    timings = bundle.read_json("timings.json") or {"steps": []}
    errors = {(step["part"], step["name"]): step["error"] for step in timings["steps"]}
    yield "<h3>Passes and their proofs</h3>"
    rows, idle = [], []
    for part, entry in bundle.manifest["parts"].items():
        for step in entry["passes"]:
            if not step["sites"]:
                idle.append(step["name"])
                continue
            error = next((e for (p, n), e in errors.items() if n == step["name"] and part in p), None)
            rows.append([
                escape(part), f"<code>{escape(step['name'])}</code>", str(step["sites"]),
                f"{step['operators_before']} &rarr; {step['operators_after']}", escape(step["proof"]),
                "" if error is None else f"{error:.1e}", f"{step['bound_relative_l2']:.0e}",
            ])  # fmt: skip
    yield from _table(("part", "pass", "sites", "operators", "proof", "relative L2", "bound"), rows, sort=True)
    if idle:
        yield f"<p>Found nothing to do: {escape(', '.join(sorted(set(idle))))}.</p>"


def _operators(bundle: Bundle) -> Html:
    """Every runtime that speaks the files' vocabulary; and what a vendor's compiler said."""
    yield "<h3>Operators, by runtime</h3>"
    for file in dict.fromkeys(entry["file"] for entry in bundle.manifest["parts"].values()):
        if Path(file).suffix in READERS and (bundle.path / file).exists():
            found = report(bundle.path / file, [ALL])
            yield f"<p>{escape(file)}</p>"
            yield from overview(found, links=False)
    for part, entry in (bundle.read_json("compiler.json") or {"parts": {}})["parts"].items():
        traffic = entry.get("traffic") or {}
        moved = ", ".join(
            f"{traffic[key] / 2**20:.1f} MiB {verb}"
            for key, verb in (("dram_read", "read"), ("dram_write", "written"))
            if key in traffic
        )
        said = f"{part}: {entry['npu_nodes']} nodes on the NPU, {entry['cpu_nodes']} on the CPU"
        yield f"<p>{escape(said + (f'; memory traffic per run, by the compiler: {moved}' if moved else ''))}.</p>"


def _sizes(bundle: Bundle) -> Html:
    yield "<h3>Sizes</h3>"
    files = {name: entry["bytes"] / 2**20 for name, entry in bundle.manifest["files"].items()}
    large = {name: size for name, size in sorted(files.items(), key=lambda pair: -pair[1]) if size >= 0.1}
    yield bars(large, "MiB")
    yield f"<p>{len(files)} files, {sum(files.values()):.1f} MiB together.</p>"


def _cost(bundle: Bundle) -> Html:
    timings = bundle.read_json("timings.json")
    if timings is None:
        return
    yield "<h3>The build</h3>"
    yield bars({stage["stage"]: stage["seconds"] for stage in timings["stages"]}, "s")
    yield f"<p>{timings['seconds']:.1f} s, largest memory {timings['peak_rss_mb']:.0f} MB.</p>"


def _precision(bundle: Bundle) -> str:
    return str(bundle.manifest["options"].get("precision", "fp32"))


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, sort: bool = False) -> Html:
    """Cells are HTML already."""
    if not rows:
        return
    mark = ' data-sort=""' if sort else ""
    yield "<table>"
    if any(heads):
        yield f"<thead><tr>{''.join(f'<th{mark}>{escape(head)}</th>' for head in heads)}</tr></thead>"
    yield "<tbody>" + "".join(f"<tr>{''.join(f'<td>{c}</td>' for c in row)}</tr>" for row in rows) + "</tbody></table>"
