"""Whose export an .onnx file is, what its answers lack of the checkpoint's own predictor, and what to use instead.

Recognised by what a file shows: the names and shapes of its inputs and outputs, its opset, and how often some operators
occur. Weights are not read and nothing is run, so this says what the script does to every file, not what is wrong with
the numbers in one. NumPy-free and without PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgesam_deploy.explain import decoders
from edgesam_deploy.explain.encoders import encoder
from edgesam_deploy.explain.export import Export, interface, shown
from edgesam_deploy.explain.facts import Facts, read_facts

__all__ = ["Explanation", "Export", "Facts", "explain", "explain_facts"]


@dataclass(frozen=True)
class Explanation:
    """What ``explain`` found: the file's facts, and the export it is, None where no script is known that writes it."""

    file: str
    facts: Facts
    export: Export | None

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        export = None if self.export is None else asdict(self.export)
        return {"schema": 1, "file": self.file, "facts": self.facts.to_json(), "export": export}


def explain(path: str | Path) -> Explanation:
    """Explain an .onnx file. Raises UsageError for a file that is missing, truncated or no ONNX."""
    file = Path(path)
    return explain_facts(file.name, read_facts(file))


def explain_facts(name: str, facts: Facts) -> Explanation:
    """As ``explain`` for a file that was read already."""
    found = (recognise(facts) for recognise in RECOGNISERS)
    return Explanation(name, facts, next((export for export in found if export is not None), None))


def own(facts: Facts) -> Export | None:
    """Files of this project, which say so."""
    if "edgesam_deploy_version" not in facts.metadata:
        return None
    data = facts.metadata
    return Export(
        "edgesam-deploy",
        data.get("part", "?").replace("_", " "),
        f"edgesam-deploy build {data.get('model', '?')} (version {data['edgesam_deploy_version']})",
        ("its metadata", interface(facts), shown(facts)),
        (),
        (f"weights: {data.get('weights', '?')}", "measured against PyTorch when it was built: parity.json beside it"),
        ("nothing to replace; edgesam-deploy check BUNDLE measures again",),
    )


RECOGNISERS: tuple[Callable[[Facts], Export | None], ...] = (
    own, encoder, decoders.edgesam_decoder, decoders.dyt_decoder, decoders.npu_decoder, decoders.npu_parts,
    decoders.official_decoder,
)  # fmt: skip
