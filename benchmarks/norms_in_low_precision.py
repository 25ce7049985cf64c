"""Layer norm or dynamic tanh in low precision: python -m benchmarks.norms_in_low_precision

    python -m benchmarks.norms_in_low_precision                                     # random weights of one seed
    python -m benchmarks.norms_in_low_precision --weights layer.pth dyt.pth         # a pair of one's own
    python -m benchmarks.norms_in_low_precision --run out/demo                      # a pair trained by one recipe

Error: the traced programs of edge_sam and edge_sam_dyt, emulated on a CPU, against fp32 PyTorch, on the first shipped
photographs with two prompts each. ``--run``: the folder of ``edgesam-deploy train demo``, and ``demo_dyt`` after it,
whose students had one teacher, one recipe and one seed; asked on synthetic scenes that neither saw. fp16: every tensor
rounded, each norm or tanh one operator. fp16, spelled out: the norms are means, squares and roots of their own, as in
runtimes that lack the operator. int8: weights by output channel and inputs of every layer, on 256 steps between the
picture's own extremes, but for what leads to the positions' sines.
Latency: CPU milliseconds of one thread, the least of some calls, of the TFLite artifacts of either model. Writes
``norms_in_low_precision.md`` and ``.json``, for a run ``norms_in_low_precision_trained``.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import Node

from benchmarks.interleaved import Machine, ended
from benchmarks.precision_table import ungated
from edgesam_deploy import Sam, build, load
from edgesam_deploy.capture import capture
from edgesam_deploy.contract import IMAGE_ENCODER, MASK_DECODER, Interface
from edgesam_deploy.distill.synthetic import scene
from edgesam_deploy.errors import UsageError
from edgesam_deploy.parity import BOUNDS, compared, shipped_pictures
from edgesam_deploy.parity.cases import Pictures
from edgesam_deploy.parity.figures import summarise
from edgesam_deploy.passes import aten
from edgesam_deploy.passes.execute import Arrays
from edgesam_deploy.passes.program import Program, operator
from edgesam_deploy.precision.analyse import after_aten_passes
from edgesam_deploy.precision.calibration import encoder_inputs
from edgesam_deploy.precision.calibration_rows import decoder_rows
from edgesam_deploy.precision.composed import ProgramRunner, artifact_of
from edgesam_deploy.precision.sensitivity import layer_in_bits, layers_of
from edgesam_deploy.precision.walk import Walker, called
from edgesam_deploy.precision.watch import Watch
from edgesam_deploy.targets import make_target
from edgesam_deploy.targets.base import Bits

MODELS = ("edge_sam", "edge_sam_dyt")
NORMS = {"edge_sam": "layer norm", "edge_sam_demo": "layer norm", "edge_sam_dyt": "dynamic tanh"}
# of a run: the model that a stage's configuration completes, and the stage
STUDENTS = {"edge_sam": ("edge_sam_demo", "demo_student"), "edge_sam_dyt": ("edge_sam_dyt", "demo_student_dyt")}
SCENES = 1234  # the seed of scenes that no training draws
ARITHMETIC = ("fp16", "fp16, norms spelled out", "int8")
LATENCIES = ("fp32", "fp16", "int8")
TURNS = ("sin", "cos")


@dataclass(frozen=True)
class Row:
    """The worst figures over pictures and prompts. overflows: tensors that are finite in fp32 and not in fp16."""

    model: str
    norm: str
    arithmetic: str
    overflows: int
    embeddings: float
    logits: float
    scores: float
    decided_mask_iou: float
    best_mask_flips: int
    weights: str


@dataclass(frozen=True)
class Latency:
    """CPU milliseconds of a call of either part."""

    model: str
    precision: str
    encoder_ms: float
    decoder_ms: float


def errors(model: Sam, chosen: Pictures) -> Iterator[Row]:
    """A row for each arithmetic."""
    target = make_target("coreml", precision="fp32")  # whose passes leave every norm one operator
    interface = target.interface(model.config)
    programs, interface = after_aten_passes(capture(model, interface), target, model, interface)
    for arithmetic in ARITHMETIC:
        mine = [program.copy() for program in programs]
        if "spelled out" in arithmetic:
            for program in mine:
                aten.decompose_layer_norm_fp32(program)
        runs: dict[str, Callable[[dict[str, Tensor]], list[Tensor]]] = {}
        watches = [] if arithmetic == "int8" else [Watch(program, _positions(program)) for program in mine]
        if watches:
            runs = {watch.program.name: watch.run for watch in watches}
        else:
            runs = {program.name: _in_int8(program) for program in mine}
        runners = {p.name: ProgramRunner(p, runs[p.name], f"emulated {arithmetic}") for p in mine}
        artifact = artifact_of(mine, target, interface, runners)
        rows, _ = compared(model, artifact, chosen, BOUNDS["fp32"], _told, few=True)
        found = summarise(rows)
        by_output = found["outputs"]
        yield Row(
            model.name, NORMS[model.name], arithmetic, sum(len(watch.overflows()) for watch in watches),
            by_output["embeddings"]["relative_l2"], by_output["logits"]["relative_l2"],
            by_output["scores"]["max_abs"], found["decided_mask_iou"], found["best_mask_flips"], str(model.weights),
        )  # fmt: skip


def _positions(program: Program) -> frozenset[str]:
    """The nodes from which some way leads to a sine or a cosine: no format of few bits holds their turns."""
    found: set[str] = set()
    for node in reversed(program.aten.graph.nodes):
        if node.op == "call_function" and (operator(node) in TURNS or any(n.name in found for n in node.users)):
            found.add(node.name)
    return frozenset(found)


def _in_int8(program: Program) -> Callable[[dict[str, Tensor]], list[Tensor]]:
    walker = Walker(program)
    layers = {node.name for node in layers_of(program)} - _positions(program)

    def compute(node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return layer_in_bits(node, args, kwargs, Bits(8, 8)) if node.name in layers else called(node, args, kwargs)

    def run(inputs: dict[str, Tensor]) -> list[Tensor]:
        with torch.no_grad():
            return walker.run(inputs, compute)

    return run


def latencies(model: Sam, picture: NDArray[np.uint8], precisions: Sequence[str], calls: int) -> Iterator[Latency]:
    """CPU milliseconds of the TFLite artifacts."""
    for precision in precisions:
        target = make_target("tflite", precision=precision)
        with tempfile.TemporaryDirectory() as place:
            bundle = build(model, ungated(target), Path(place) / "bundle", proof="off", progress=_told)
            interface = target.interface(model.config)
            assert isinstance(interface, Interface)
            spent, features = {}, encoder_inputs(interface, picture)
            for part in (IMAGE_ENCODER, MASK_DECODER):
                path = bundle.part(part)
                assert path is not None
                runner = target.load(path, part=part, provider="cpu", threads=1)
                given = features if part == IMAGE_ENCODER else dict(decoder_rows(interface, picture, features)[0])
                features = runner(given)
                spent[part] = _cpu_ms(runner, given, calls)
        yield Latency(model.name, precision, spent[IMAGE_ENCODER], spent[MASK_DECODER])


def _cpu_ms(runner: Callable[[Arrays], Any], given: Arrays, calls: int) -> float:
    found = []
    for _ in range(calls):
        start = time.process_time()
        runner(given)
        found.append((time.process_time() - start) * 1e3)
    return min(found)


def asked(args: argparse.Namespace) -> Pictures:
    """The pictures of the run: photographs, or scenes for a pair that was trained on scenes."""
    if args.run is None:
        return dict(list(shipped_pictures().items())[: args.pictures])
    return {f"scene {index}": scene(SCENES, "unseen", index, 256).image for index in range(args.pictures)}


def weighed(name: str, args: argparse.Namespace) -> Sam:
    """One of the two models."""
    config = {} if args.image_size is None else {"image_size": args.image_size}
    checkpoint = args.weights[MODELS.index(name)] if args.weights else None
    if args.run is not None:
        name, stage = STUDENTS[name]
        checkpoint = args.run / stage / "model.safetensors"
        if not checkpoint.is_file():
            raise UsageError(f"{checkpoint}: not there; run `edgesam-deploy train demo` and `demo_dyt` into {args.run}")
        config = json.loads(checkpoint.with_name("config.json").read_text())
    model = load(name, checkpoint, seed=None if checkpoint else args.seed, config=config)
    assert isinstance(model, Sam)
    return model


def _told(step: str) -> None:
    print(f"  {step}", file=sys.stderr, flush=True)


def report(rows: Sequence[Row], spent: Sequence[Latency], machine: Machine) -> str:
    """The Markdown file."""
    weights = dict.fromkeys(f"- {row.model}: {row.weights}" for row in rows)
    lines = [
        "# Layer norm and dynamic tanh in low precision\n",
        "Written by `python -m benchmarks.norms_in_low_precision`, which says how each is emulated.\n",
        f"{machine}\n", "Weights:\n", *weights, "",
        "| model | norm | arithmetic (emulated) | tensors that overflow | embeddings, relative L2 "
        "| logits, relative L2 | scores, max abs | mask IoU, decided pixels | other best mask |",
        f"|{'---|' * 9}",
        *(
            f"| `{r.model}` | {r.norm} | {r.arithmetic} | {r.overflows} | {r.embeddings:.2e} | {r.logits:.2e} "
            f"| {r.scores:.2e} | {r.decided_mask_iou:.5f} | {r.best_mask_flips} |"
            for r in rows
        ),
    ]  # fmt: skip
    if spent:
        lines += [
            "", "CPU milliseconds of one thread, TFLite; to be read against each other only:\n",
            "| model | precision | encoder | decoder |", f"|{'---|' * 4}",
            *(f"| `{s.model}` | {s.precision} | {s.encoder_ms:.1f} | {s.decoder_ms:.1f} |" for s in spent),
        ]  # fmt: skip
    return "\n".join(lines) + "\n"


def run(args: argparse.Namespace) -> None:
    precisions = [name for name in args.latency.split(",") if name]
    if set(precisions) - set(LATENCIES):
        raise UsageError(f"--latency {args.latency}: of {', '.join(LATENCIES)}, with commas between")
    rows: list[Row] = []
    spent: list[Latency] = []
    machine = Machine.here(("torch", "ai-edge-litert", "numpy"))
    pictures = asked(args)
    for name in MODELS:
        model = weighed(name, args)
        rows += errors(model, pictures)
        spent += latencies(model, next(iter(pictures.values())), precisions, args.calls)
    args.out.mkdir(parents=True, exist_ok=True)
    text = report(rows, spent, machine)
    stem = "norms_in_low_precision" if args.run is None else "norms_in_low_precision_trained"
    (args.out / f"{stem}.md").write_text(text)
    data = {"machine": asdict(machine), "rows": [asdict(r) for r in rows], "latency": [asdict(s) for s in spent]}
    (args.out / f"{stem}.json").write_text(json.dumps(data, indent=2) + "\n")
    print(text)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    pair = parser.add_mutually_exclusive_group()
    pair.add_argument("--weights", type=Path, nargs=2, metavar=("LAYER", "DYT"), help="checkpoints of the two models")
    pair.add_argument("--run", type=Path, metavar="FOLDER", help="of `train demo` and `train demo_dyt`")
    parser.add_argument("--seed", type=int, default=0, help="of random weights (default 0)")
    parser.add_argument("--image-size", type=int, help="side of the model's frame (default its own)")
    parser.add_argument("--pictures", type=int, default=2, help="how many photographs, or scenes")
    parser.add_argument("--latency", default=",".join(LATENCIES), help="TFLite precisions to time; empty: none")
    parser.add_argument("--calls", type=int, default=5, help="calls of which the least counts")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for the results")
    return ended(lambda: run(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
