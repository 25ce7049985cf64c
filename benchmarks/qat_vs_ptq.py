"""int8 after quantisation-aware training against int8 by calibration alone: python -m benchmarks.qat_vs_ptq.

The demonstration model is built twice for TFLite with an int8 encoder, calibrated on the same synthetic pictures: as it
is, and after the recipe ``demo_int8``. Both artifacts, and the float model, answer the same box and point prompts on
scenes that no training saw. Writes ``results/qat_vs_ptq.{md,json}``; 6 where training did not help.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch

import edgesam_deploy as ed
from benchmarks.demo_weights import unseen
from benchmarks.interleaved import Machine
from edgesam_deploy.distill.data import open_source
from edgesam_deploy.distill.evaluate import Protocol, evaluate
from edgesam_deploy.distill.parallel import Ranks
from edgesam_deploy.distill.recipe import read_stages
from edgesam_deploy.distill.train import train_stages

ALONE = Ranks(0, 1, torch.device("cpu"))
CALIBRATION = 16  # pictures
PROTOCOLS = {"box": Protocol(), "point": Protocol(prompts="point")}


def calibration_folder(scenes: Path, folder: Path) -> Path:
    """The first pictures of the training split, as a folder of their own."""
    folder.mkdir(parents=True, exist_ok=True)
    for picture in sorted((scenes / "images/train").glob("*.jpg"))[:CALIBRATION]:
        (folder / picture.name).write_bytes(picture.read_bytes())
    return folder


def main(argv: list[str] | None = None) -> int:
    """Train, build both, measure, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("out/qat"), help="folder of the run and the bundles")
    parser.add_argument("--pictures", type=int, default=100, help="unseen scenes")
    parser.add_argument("--set", action="append", default=[], dest="changes", help="section.key=value of the recipe")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    stages = read_stages("demo_int8", options.changes, out=options.work)
    train_stages(stages, options.work / "run", ALONE, say=print)
    scenes = Path(stages[0].data.root)
    style = stages[0].data.synthetic
    assert style is not None
    unseen(scenes, style, options.pictures)
    calibration = calibration_folder(scenes, options.work / "calibration")
    models = {
        "int8, calibrated": ed.load("edge_sam_demo"),
        "int8, quantisation-aware": ed.load("edge_sam_demo", options.work / "run/model.safetensors"),
    }
    predictors = {"float": ed.SamPredictor(ed.load("edge_sam_demo"))}
    for number, (name, model) in enumerate(models.items()):
        folder = options.work / f"bundle_{number}"
        ed.build(model, target="tflite", out=folder, overwrite=True, precision="int8", calibration=str(calibration))
        predictors[name] = ed.open(folder)
    source = open_source("sa1b", scenes, "val")
    found = {
        name: {kind: evaluate(p, source, protocol).miou[-1] for kind, protocol in PROTOCOLS.items()}
        for name, p in predictors.items()
    }
    machine = Machine.here(("torch", "numpy", "ai-edge-litert", "ai-edge-quantizer"))
    options.out.mkdir(parents=True, exist_ok=True)
    rows = [f"| {name} | {row['box']:.4f} | {row['point']:.4f} |" for name, row in found.items()]
    text = "\n".join([
        "# int8 after quantisation-aware training against calibration alone",
        "",
        str(machine),
        "",
        f"edge_sam_demo, TFLite with an int8 encoder and dynamic int8 decoder, calibrated on {CALIBRATION} scenes; "
        f"mean IoU on {options.pictures} unseen ones. `python -m benchmarks.qat_vs_ptq` writes this file.",
        "",
        "| artifact | box mIoU | point mIoU |",
        "|---|---|---|",
        *rows,
        "",
    ])  # fmt: skip
    (options.out / "qat_vs_ptq.md").write_text(text)
    content = {"machine": asdict(machine), "pictures": options.pictures, "changes": options.changes, "miou": found}
    (options.out / "qat_vs_ptq.json").write_text(json.dumps(content, indent=2) + "\n")
    print(text)
    calibrated, trained = (found[name]["box"] for name in models)
    return 0 if trained > calibrated else 6


if __name__ == "__main__":
    sys.exit(main())
