"""A result in the forms that other tools read: pytest-benchmark's and Google Benchmark's JSON, and Markdown."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from edgesam_deploy.bench.measure import trusted

FIGURES = ("first", "mean", "min", "p50", "p90", "p99", "std", "cpu")
PYTEST_VERSION = "5.0.0"  # of pytest-benchmark, whose layout this is


def pytest_benchmark_json(result: Mapping[str, Any]) -> dict[str, Any]:
    """As ``pytest --benchmark-json`` writes it: seconds, one benchmark per bundle and stage, grouped by stage."""
    return {
        "machine_info": {"node": "", "machine": result["machine"], "cpu": {"brand_raw": result["cpu"]}},
        "commit_info": {"id": "unversioned", "time": None, "dirty": False, "branch": "(unknown)"},
        "benchmarks": [_pytest_row(bundle, row) for bundle, row in _rows(result) if row["times"]],
        "datetime": f"{result['date']}T00:00:00+00:00",
        "version": PYTEST_VERSION,
    }


def _pytest_row(bundle: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    seconds = np.array(row["times"]) / 1e3
    q1, median, q3 = (float(q) for q in np.percentile(seconds, [25, 50, 75]))
    std = row["std"] / 1e3
    low, high = q1 - 1.5 * (q3 - q1), q3 + 1.5 * (q3 - q1)
    by_iqr = int(((seconds < low) | (seconds > high)).sum())
    by_std = int((np.abs(seconds - seconds.mean()) > std).sum())
    stats = {
        "min": row["min"] / 1e3, "max": row["max"] / 1e3, "mean": row["mean"] / 1e3, "stddev": std,
        "rounds": row["runs"], "median": median, "iqr": q3 - q1, "q1": q1, "q3": q3, "iqr_outliers": by_iqr,
        "stddev_outliers": by_std, "outliers": f"{by_std};{by_iqr}", "ld15iqr": float(seconds[seconds >= low].min()),
        "hd15iqr": float(seconds[seconds <= high].max()), "ops": 1e3 / row["mean"], "total": float(seconds.sum()),
        "iterations": 1,
    }  # fmt: skip
    return {
        "group": row["stage"],
        "name": f"{bundle['name']}: {row['stage']}",
        "fullname": f"{bundle['name']}::{row['stage']}",
        "params": None,
        "param": None,
        "extra_info": {"model": bundle["model"], "target": bundle["target"], "executed": bundle.get("executed")},
        "options": {"disable_gc": False, "timer": "perf_counter", "warmup": True},
        "stats": stats,
    }


def google_benchmark_json(result: Mapping[str, Any]) -> dict[str, Any]:
    """As Google Benchmark's ``--benchmark_format=json``: milliseconds, mean, median and deviation of each."""
    entries = []
    for index, (bundle, row) in enumerate(_rows(result)):
        name = f"{bundle['name']}/{row['stage']}".replace(" ", "_")
        common = {
            "family_index": index, "per_family_instance_index": 0, "run_name": name, "repetitions": row["runs"],
            "threads": 1, "iterations": row["runs"], "time_unit": "ms",
        }  # fmt: skip
        for aggregate, key in (("mean", "mean"), ("median", "p50"), ("stddev", "std")):
            if row[key] is None:  # a tool that does not tell
                continue
            times = {"real_time": row[key], "cpu_time": row["cpu"] if key == "p50" and row["cpu"] else row[key]}
            kind = {"run_type": "aggregate", "aggregate_name": aggregate, "aggregate_unit": "time"}
            entries.append({"name": f"{name}_{aggregate}", **common, **kind, **times})
    state = result.get("state_before", {})
    context = {
        "date": f"{result['date']}T00:00:00+00:00", "host_name": "", "executable": "edgesam-deploy bench",
        "num_cpus": os.cpu_count(), "mhz_per_cpu": max(state.get("mhz", [0])), "caches": [],
        "cpu_scaling_enabled": bool(set(state.get("governors", {})) - {"performance"}),
        "load_avg": [state["load"]] if "load" in state else [], "library_build_type": "release",
    }  # fmt: skip
    return {"context": context, "benchmarks": entries}


def _rows(result: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    return ((bundle, row) for bundle in result["bundles"] for row in bundle["stages"])


def markdown(result: Mapping[str, Any]) -> str:
    """The figures for people, with machine, date and versions: what lies in a folder of results."""
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    threads = result["settings"]["threads"] or "the runtime's choice of"
    lines = [
        "# Latency",
        "",
        f"{result['cpu']}, {result['machine']}, device {result['device']}, {result['date']}; edgesam-deploy "
        f"{result['edgesam_deploy']}, {versions}; {threads} threads, provider {result['settings']['provider']}.",
        "",
        f"Before: {state_line(result.get('state_before', {}))}. After: {state_line(result.get('state_after', {}))}.",
    ]
    if not result["complete"]:
        lines += ["", f"**Not complete**: {result.get('incomplete_because', 'the device went away')}."]
    for bundle in result["bundles"]:
        lines += ["", *_bundle(bundle)]
    if result["ratios"]:
        lines += ["", *_ratios(result)]
    return "\n".join(lines) + "\n"


def state_line(state: Mapping[str, Any]) -> str:
    """A machine's state in a few words."""
    facts = []
    if "load" in state:
        facts.append(f"load {state['load']:.1f}")
    if "memory_available_mb" in state:
        facts.append(f"{state['memory_available_mb'] / 1024:.1f} GiB free")
    facts += [f"governor {name}" for name in state.get("governors", {})]
    if state.get("celsius"):
        zone, degrees = max(state["celsius"].items(), key=lambda pair: pair[1])
        facts.append(f"{degrees:.0f} degrees ({zone})")
    facts += [
        f"{key.replace('_', ' ')} {state[key]}" for key in ("throttled", "power", "thermal_status") if key in state
    ]
    return ", ".join(facts) or "the machine does not say"


def _bundle(bundle: Mapping[str, Any]) -> Iterator[str]:
    yield f"## {bundle['name']}"
    yield ""
    executed = bundle.get("executed") or "nothing"
    facts = [f"{bundle['model']} for {bundle['target']}, {bundle['precision']}", executed]
    if "load_ms" in bundle:
        facts.append(f"loaded in {bundle['load_ms']:.0f} ms")
    if cold := bundle.get("cold"):
        facts.append(f"first answer of a new process after {cold['answered_ms']:.0f} ms")
        if cold["peak_rss_mb"]:
            facts.append(f"its largest memory {cold['peak_rss_mb']:.0f} MB")
    if "agreement" in bundle:
        facts.append(f"outputs there and here {bundle['agreement']:.1e} apart in relative L2")
    yield "; ".join(facts) + "."
    yield ""
    yield "| stage, ms | runs | first | mean | min | p50 | p90 | p99 | std | CPU p50 |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for row in bundle["stages"]:
        figures = " | ".join("" if row[key] is None else f"{row[key]:.2f}" for key in FIGURES)
        yield f"| {row['stage']} | {row['runs']} | {figures} |"
    for reason in bundle["skipped"]:
        yield ""
        yield f"Left out: {reason}."


def _ratios(result: Mapping[str, Any]) -> Iterator[str]:
    yield f"## Ratios to {result['bundles'][0]['name']}"
    yield ""
    yield "Medians (quartiles) of the ratios of interleaved rounds; no verdict where the baseline's second copy (A/A)"
    yield "leaves 1 +- 0.05."
    yield ""
    yield "| stage | bundle | ratio | |"
    yield "|---|---|---|---|"
    for row in result["ratios"]:
        verdict = "" if trusted(result, row["stage"]) else "no verdict"
        figures = f"{row['median']:.3f} ({row['low']:.3f}-{row['high']:.3f})"
        yield f"| {row['stage']} | {row['bundle']} | {figures} | {verdict} |"
