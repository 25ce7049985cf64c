"""Every model: size, cost, and what its last build measured. Writes docs/models.md and results/models.json.

    python -m benchmarks.model_table out        # looks for out/NAME/onnx and out/NAME
    python -m benchmarks.model_table out --build vit_b sam_hq_vit_tiny

Parameters and multiply-accumulates are counted on the meta device, so they are there for models that this machine could
not build; sizes and parity come from the manifests and parity.json of bundles, and are left out where there is none.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from edgesam_deploy.bundle import Bundle, open_bundle
from edgesam_deploy.capture import part_macs
from edgesam_deploy.memory import GIB, build_bytes
from edgesam_deploy.model.configs import MODELS
from edgesam_deploy.model.registry import network
from edgesam_deploy.targets import make_target

ROOT = Path(__file__).parents[1]
DOC, RESULT = ROOT / "docs" / "models.md", ROOT / "benchmarks" / "results" / "models.json"
HEAD = """# Models

Written by `python -m benchmarks.model_table FOLDER` from the bundles in FOLDER. GMAC are multiply-accumulates of one
call of the PyTorch model (experts as they are routed; an artifact runs every expert): of the image encoder (of the
whole model, for cwsam), and of the mask decoder with 6 slots and one prompt. Parity
is that of the ONNX artifact with fp32 PyTorch, the worst over all pictures and prompts, with random (seeded) weights. A
dash means that no bundle was there to read: the model was not built on that machine. "Build takes about" is the
estimate by which a build is refused, "peak" what the build measured.

"""
COLUMNS = (
    "model", "parameters, M", "encoder, GMAC", "decoder, GMAC", "build takes about, GiB", "peak, GiB", "artifact, MiB",
    "embeddings, relative L2", "logits, relative L2", "mask IoU or class agreement", "cases on pictures",
)  # fmt: skip


def row(name: str, bundle: Bundle | None) -> dict[str, Any]:
    """What is known of one model."""
    config = MODELS[name]
    with torch.device("meta"):
        blank = network(config, name)
    macs = part_macs(config, make_target("onnx").interface(config))
    first, *rest = macs.values()
    found: dict[str, Any] = {
        "model": name,
        "parameters": sum(p.numel() for p in blank.parameters()),
        "encoder_macs": first,
        "decoder_macs": rest[0] if rest else None,
        "estimated_bytes": build_bytes(config)[1],
    }
    if bundle is None:
        return found
    parity, timings = bundle.read_json("parity.json"), bundle.read_json("timings.json")
    summary = parity["summary"]
    files = bundle.manifest["files"]
    return {
        **found,
        "artifact_bytes": sum(e["bytes"] for f, e in files.items() if f.endswith((".onnx", ".data"))),
        "peak_bytes": timings["peak_rss_mb"] * 2**20,
        "seconds": timings["seconds"],
        "verdict": parity["verdict"],
        "outputs": {output: figures["relative_l2"] for output, figures in summary["outputs"].items()},
        "mask_iou": summary["mask_iou"],
        "class_agreement": None if summary["class_flips"] is None else 1 - summary["class_flips"],
        "cases": summary["cases"],
        "pictures": summary["pictures"],
        "weights": parity["reference"].split("; ", 1)[1],
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table, a line per model."""
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    for r in rows:
        outputs = r.get("outputs", {})
        agreement = r.get("mask_iou") if r.get("class_agreement") is None else r["class_agreement"]
        cells = [
            f"`{r['model']}`", f"{r['parameters'] / 1e6:,.1f}", f"{r['encoder_macs'] / 1e9:,.1f}",
            _number(r["decoder_macs"], 1e-9, "{:.2f}"), f"{r['estimated_bytes'] / GIB:.1f}",
            _number(r.get("peak_bytes"), 1 / GIB, "{:.1f}"), _number(r.get("artifact_bytes"), 2**-20, "{:.0f}"),
            _number(outputs.get("embeddings"), 1, "{:.1e}"), _number(outputs.get("logits"), 1, "{:.1e}"),
            _number(agreement, 1, "{:.6f}"),
            f"{r['verdict']}: {r['cases']} on {r['pictures']}" if "cases" in r else "-",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return HEAD + "\n".join(lines) + "\n"


def _number(value: float | None, scale: float, form: str) -> str:
    return "-" if value is None else form.format(value * scale)


def bundle_of(name: str, folder: Path) -> Bundle | None:
    """The bundle of a model under ``folder``, if it is of that model at its own size."""
    for place in (folder / name / "onnx", folder / name):
        if (place / "manifest.json").is_file():
            bundle = open_bundle(place)
            return bundle if bundle.manifest["model"]["name"] == name and bundle.read_json("parity.json") else None
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where bundles lie, in folders named after their models")
    parser.add_argument("--build", nargs="*", default=[], choices=MODELS, help="build these first")
    options = parser.parse_args()
    for name in options.build:
        from edgesam_deploy import build, load

        build(load(name), "onnx", options.folder / name / "onnx", overwrite=True, progress=print)
    rows = [row(name, bundle_of(name, options.folder)) for name in MODELS]
    DOC.write_text(markdown(rows))
    RESULT.write_text(json.dumps(rows, indent=2) + "\n")
    print(f"{DOC.relative_to(ROOT)}: {len(rows)} models, {sum('verdict' in r for r in rows)} built")


if __name__ == "__main__":
    main()
