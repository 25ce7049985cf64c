"""What each pass does on EdgeSAM: builds it for every target and writes edgesam_deploy/passes/on_edge_sam.json.

    python -m benchmarks.passes_on_edge_sam

`edgesam-deploy passes NAME` shows the rows. Weights are random: sites and operator counts do not depend on them.
"""

from __future__ import annotations

import json
from pathlib import Path

from edgesam_deploy import load
from edgesam_deploy.capture import capture
from edgesam_deploy.passes.engine import Engine
from edgesam_deploy.targets import TARGETS, make_target

RESULT = Path(__file__).parents[1] / "edgesam_deploy" / "passes" / "on_edge_sam.json"
MODELS = ("edge_sam", "edge_sam_dyt")


def main() -> None:
    rows = []
    for name in MODELS:
        model = load(name)
        for target in map(make_target, TARGETS):
            engine = Engine("full", progress=print)  # each pass by itself
            for program in capture(model, target.interface(model.config)):
                engine.run(program, target.pipeline(model.config))
            rows += [
                {
                    "pass": step.name, "model": name, "target": target.name, "part": step.part, "sites": step.sites,
                    "operators_before": step.operators_before, "operators_after": step.operators_after,
                    "relative_l2": None if step.error is None else float(f"{step.error:.1e}"),
                }
                for step in engine.steps
            ]  # fmt: skip
    RESULT.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    print(f"{RESULT.name}: {len(rows)} rows")


if __name__ == "__main__":
    main()
