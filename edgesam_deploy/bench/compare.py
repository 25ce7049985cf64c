"""Is it slower than it was: a result against an older one, stage by stage."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgesam_deploy.bench.measure import SCHEMA
from edgesam_deploy.errors import UsageError

NOISE_MS = 0.1  # less than that is the clock's and the scheduler's, not the artifact's
SAME = ("device", "machine", "cpu")  # figures of another machine say nothing about the artifact


@dataclass(frozen=True)
class Change:
    """One stage's median, in milliseconds, before and now (the mean, where a tool gives no median)."""

    bundle: str
    stage: str
    before: float
    now: float

    @property
    def ratio(self) -> float:
        return self.now / self.before

    def slower_than(self, limit: float) -> bool:
        """By more than ``limit`` (0.1 is 10 %) and by more than noise."""
        return self.ratio > 1 + limit and self.now - self.before > NOISE_MS

    def __str__(self) -> str:
        return f"{self.bundle}: {self.stage} {self.before:.2f} -> {self.now:.2f} ms ({self.ratio:.2f})"


def read_result(path: Path) -> dict[str, Any]:
    """A bench.json, or that of the bundle in ``path``. Raises UsageError for what is none."""
    file = path / "bench.json" if path.is_dir() else path
    try:
        found = json.loads(file.read_text("utf-8"))
        if isinstance(found, dict) and found.get("schema") == SCHEMA and isinstance(found.get("bundles"), list):
            return found
    except OSError as e:
        raise UsageError(f"--compare {file}: {e.strerror}") from e
    except ValueError as e:
        raise UsageError(f"--compare {file}: not a JSON file ({e})") from e
    raise UsageError(f"--compare {file}: not a result of this version's bench (schema {SCHEMA}); measure it again")


def parse_limit(text: str) -> float:
    """``10%`` or ``0.1`` as 0.1. Raises UsageError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(%?)", text.strip())
    if found is None:
        raise UsageError(f"--fail-on {text}: must be a share such as 10% or 0.1")
    return float(found[1]) / (100 if found[2] else 1)


def changes(new: Mapping[str, Any], old: Mapping[str, Any]) -> list[Change]:
    """The stages that both have: bundles by name, or the only one of either. Raises UsageError where there is none."""
    found = list(_changes(new, old))
    if not found:
        raise UsageError("--compare: the older result has none of these bundles and stages")
    return found


def _changes(new: Mapping[str, Any], old: Mapping[str, Any]) -> Iterator[Change]:
    known = {bundle["name"]: bundle for bundle in old["bundles"]}
    only = old["bundles"][0] if len(old["bundles"]) == len(new["bundles"]) == 1 else None
    for bundle in new["bundles"]:
        before = known.get(bundle["name"], only)
        rows = {row["stage"]: row for row in before["stages"]} if before else {}
        for row in bundle["stages"]:
            if row["stage"] in rows:
                pair = rows[row["stage"]], row
                key = "mean" if None in (r["p50"] for r in pair) else "p50"  # a tool that tells no median
                yield Change(bundle["name"], row["stage"], pair[0][key], pair[1][key])


def unmeasured(new: Mapping[str, Any], old: Mapping[str, Any]) -> list[str]:
    """Stages and bundles of the older result that the new one lacks; and why it is not whole."""
    found = [] if new["complete"] else [f"the run is not complete: {new['incomplete_because']}"]
    compared = {(change.bundle, change.stage) for change in _changes(new, old)}
    known = {bundle["name"]: bundle for bundle in old["bundles"]}
    only = old["bundles"][0] if len(old["bundles"]) == len(new["bundles"]) == 1 else None
    for bundle in new["bundles"]:
        before = known.pop(bundle["name"], only)
        if before is None:  # a new one, which there is nothing to compare with
            continue
        lacking = [row["stage"] for row in before["stages"] if (bundle["name"], row["stage"]) not in compared]
        found += [f"{bundle['name']}: {stage} was not measured now" for stage in lacking]
    return found + [f"{name} was not measured now" for name in known if only is None]


def differences(new: Mapping[str, Any], old: Mapping[str, Any]) -> list[str]:
    """Circumstances that differ, which make the comparison worth less."""
    found = [f"{key}: {old.get(key)} before, {new.get(key)} now" for key in SAME if old.get(key) != new.get(key)]
    for key in ("threads", "provider"):
        before, now = old["settings"].get(key), new["settings"].get(key)
        if before != now:
            found.append(f"--{key}: {before} before, {now} now")
    return found
