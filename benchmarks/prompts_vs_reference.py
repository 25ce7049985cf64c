"""Many prompts on one picture, against the reference's export called once for each: per prompt, and everything-mode.

    python -m benchmarks.prompts_vs_reference [--prompts 1 4 16] [--side 32] [--rounds 15] [--threads 2] [--out DIR]

Builds ``edge_sam`` as docs/passes.md advises for many prompts (two slots, a dynamic batch, what depends on the picture
alone in the encoder), sets a shipped photograph, and gives both decoders the same embeddings and the same points, each
with SAM's padding point: the same number of tokens. Ours answers them as the predictor does, in one call or in several,
and once more one at a time.

A third side is the decoder of ``--precision int8``, on the same embeddings; how far its masks lie from the fp32 ones is
stated as IoU, of 64 prompts.

Everything-mode runs the decoders under one mask generator, so post-processing is the same; every round takes another
part of the grid, and all rounds together the whole of it. The encoder is in no figure; what hoisting adds to it is
stated in multiply-accumulates. Writes ``prompts_vs_reference`` and ``everything_vs_reference``, each as Markdown and
JSON. Exit code 1 when refused: a baseline that is not the reference's, or masks that lie apart.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import edgesam_deploy as ed
from benchmarks.interleaved import AGAIN, Candidate, Comparison, Machine, compare_calls, ended, write_json
from benchmarks.latency_vs_reference import OURS, REFERENCE, SAME_MASKS, NotComparable
from benchmarks.reference_export import export_reference
from edgesam_deploy.cost import onnx_macs
from edgesam_deploy.model.masks import point_grids
from edgesam_deploy.parity import mask_iou, shipped_pictures

ONE_BY_ONE, INT8 = "edgesam-deploy, one at a time", "edgesam-deploy, int8"
GOALS = {16: 0.65}  # of the reference's time, at most; by number of prompts
EVERYTHING_GOALS = {OURS: 0.60, INT8: 0.45}
LEAST_IOU = 0.98  # of the 8-bit decoder's masks with the fp32 one's, on average
OPTIONS = {"points": 2, "batch": "dynamic", "prompts_per_image": 1024}
Floats = NDArray[np.float32]


class Encoded:
    """A predictor whose picture is set already, so that the mask generator times decoder and post-processing alone."""

    def __init__(self, ours: Any, reference: Candidate | None = None, threads: int = 2) -> None:
        self.ours = ours
        self.image_size, self.mask_threshold = ours.image_size, ours.mask_threshold
        self.original_size, self.input_size = ours.original_size, ours.input_size
        self._session = None if reference is None else reference.session(threads)

    def set_image(self, image: NDArray[np.uint8], /) -> None:
        """The picture that was set stays."""

    def predict_slots(self, point_coords: Floats, point_labels: Floats, /) -> tuple[Floats, Floats]:
        """Ours in as few calls as the predictor makes, the reference's one prompt a call, as its export takes them."""
        if self._session is None:
            answer: tuple[Floats, Floats] = self.ours.predict_slots(point_coords, point_labels)
            return answer
        embeddings = self.ours.features[0]
        rows = [
            self._session.run(
                ["masks", "scores"],
                {"image_embeddings": embeddings, "point_coords": c[None], "point_labels": p[None]},
            )
            for c, p in zip(point_coords, point_labels, strict=True)
        ]
        masks, scores = zip(*rows, strict=True)
        return np.concatenate(masks), np.concatenate(scores)


def grid_prompts(count: int, image_size: int, seed: int = 0) -> tuple[Floats, Floats]:
    """``count`` single points with their padding points, as slots: (B, 2, 2) and (B, 2)."""
    coords = np.zeros((count, 2, 2), np.float32)
    coords[:, 0] = np.random.default_rng(seed).uniform(0, image_size * 0.6, (count, 2))
    return coords, np.tile(np.array([1, -1], np.float32), (count, 1))


def check_masks(ours: Encoded, reference: Encoded) -> float:
    """Relative L2 of the masks of five prompts. Raises NotComparable where they lie apart."""
    prompts = grid_prompts(5, ours.image_size)
    a, b = reference.predict_slots(*prompts)[0], ours.predict_slots(*prompts)[0]
    found = float(np.linalg.norm(b - a) / np.linalg.norm(a))
    if not found <= SAME_MASKS:
        raise NotComparable(f"masks lie {found:.1e} apart in relative L2, {SAME_MASKS:.0e} allowed")
    return found


def mask_agreement(ours: Encoded, other: Encoded) -> dict[str, float]:
    """Mean and worst IoU of the masks of 64 prompts, ``other`` against ``ours``."""
    prompts = grid_prompts(64, ours.image_size, seed=1)
    a, b = (side.predict_slots(*prompts)[0] > ours.mask_threshold for side in (ours, other))
    found = [mask_iou(x, y) for one, two in zip(a, b, strict=True) for x, y in zip(one, two, strict=True)]
    return {"mean": float(np.mean(found)), "worst": min(found)}


def per_prompt(sides: dict[str, Encoded], count: int, *, rounds: int, threads: int) -> Comparison:
    """``count`` prompts on one picture: ours together and one at a time against the reference's one at a time."""
    ours = sides[OURS]
    coords, labels = grid_prompts(count, ours.image_size)

    def one_by_one(_: int) -> None:
        for i in range(count):
            ours.predict_slots(coords[i : i + 1], labels[i : i + 1])

    calls = {name: _answering(side, coords, labels) for name, side in sides.items()}
    if count > 1:
        calls[ONE_BY_ONE] = one_by_one
    return compare_calls(f"{count} prompt(s)", calls, threads=threads, rounds=rounds, warmup=1)


def _answering(side: Encoded, coords: Floats, labels: Floats) -> Any:
    return lambda _: side.predict_slots(coords, labels)


def everything(
    sides: dict[str, Encoded], image: NDArray[np.uint8], side: int, *, rounds: int, threads: int
) -> Comparison:
    """Everything-mode with a grid of ``side`` points a side; each round another part of it."""
    parts = np.array_split(np.asarray(point_grids(side, 0, 1)[0]), rounds)

    def generating(predictor: Encoded) -> Any:
        makers = [ed.SamAutomaticMaskGenerator(predictor, None, point_grids=[part]) for part in parts]
        return lambda number: makers[number].generate(image)

    calls = {name: generating(predictor) for name, predictor in sides.items()}
    subject = f"everything-mode, {side} x {side} points, {len(parts[0])} a round"
    return compare_calls(subject, calls, threads=threads, rounds=rounds, warmup=1)


def verdicts(found: Mapping[str, tuple[Comparison, Mapping[str, float]]]) -> list[str]:
    """A line for each side of a comparison that has a goal."""
    return [
        f"{name}, {side}: at most {goal:.2f} wanted, {c[side].wall}: **{c.verdict(side, goal)}**"
        for name, (c, goals) in found.items()
        for side, goal in goals.items()
    ]


def report(machine: Machine, title: str, found: Sequence[Comparison], lines: list[str], facts: dict[str, Any]) -> str:
    """The Markdown file."""
    return "\n".join([
        f"# {title}, against the reference's export\n",
        f"{machine}\n",
        f"Weights: {facts['weights']}. Built with {facts['options']}. One point and the padding point per prompt on "
        f"both sides; masks {facts['masks_relative_l2']:.1e} apart in relative L2. The encoder is in no figure: what "
        f"it does for the decoder adds {facts['hoisted_macs'] / 1e9:.2f} GMAC per picture, "
        f"{100 * facts['hoisted_share']:.1f} % of it. {agreement(facts)}"
        "Ratios are medians (quartiles) over interleaved rounds; "
        "`python -m benchmarks.prompts_vs_reference` writes this file.\n",
        *(f"{line}\n" for line in lines),
        *(c.markdown() for c in found),
    ])  # fmt: skip


def agreement(facts: Mapping[str, Any]) -> str:
    """What the 8-bit decoder's masks are worth, as a sentence."""
    found = facts["int8_mask_iou"]
    word = "reached" if found["mean"] >= LEAST_IOU else "missed"
    return (
        "Masks of the 8-bit decoder against the fp32 one on the same embeddings, 64 prompts: "
        f"IoU {found['mean']:.4f} on average (at least {LEAST_IOU} wanted: {word}), {found['worst']:.4f} at worst. "
    )


def run(args: argparse.Namespace) -> None:
    """Build, export, measure, write."""
    model = ed.load("edge_sam", checkpoint=args.checkpoint, config={"image_size": args.image_size})
    assert isinstance(model, ed.Sam)
    name, image = next(iter(shipped_pictures().items()))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        bundle = args.bundle
        if bundle is None:
            print("building the bundle", file=sys.stderr)
            bundle = folder / "ours"
            ed.build(model, "onnx", bundle, pictures={name: image}, **OPTIONS)
        baseline = export_reference(model, "decoder", folder / "reference.onnx", check=args.image_size == 1024)
        ours = ed.open(bundle, threads=args.threads)
        sides = both(ours, Candidate(REFERENCE, baseline), image, args.threads)
        print("building the 8-bit decoder", file=sys.stderr)
        chosen = {"precision": "int8", "proof": "off", "pictures": {name: image}, **OPTIONS}
        small = ed.build(model, "onnx", folder / "int8", **chosen)
        sides[INT8] = encoded_as(ours, ed.open(small.path, threads=args.threads), image)
        facts = describe(model, bundle, check_masks(sides[OURS], sides[REFERENCE]))
        facts["int8_mask_iou"] = mask_agreement(sides[OURS], sides[INT8])
        settings = {"rounds": args.rounds, "threads": args.threads}
        print("measuring", file=sys.stderr)
        if args.prompts:
            found = {count: per_prompt(sides, count, **settings) for count in args.prompts}
            goals = {f"{n} prompts": (c, {OURS: GOALS[n]}) for n, c in found.items() if n in GOALS}
            write(args.out / "prompts_vs_reference", "Prompts on one picture", list(found.values()), goals, facts)
        if args.side:
            whole = everything(sides, image, args.side, **settings)
            goals = {"everything-mode": (whole, EVERYTHING_GOALS)}
            write(args.out / "everything_vs_reference", "Everything-mode", [whole], goals, facts)


def both(ours: Any, reference: Candidate, image: NDArray[np.uint8], threads: int) -> dict[str, Encoded]:
    """The sides by name, all about one picture."""
    ours.set_image(image)
    names = {REFERENCE: reference, AGAIN: reference, OURS: None}
    return {name: Encoded(ours, candidate, threads) for name, candidate in names.items()}


def encoded_as(ours: Any, other: Any, image: NDArray[np.uint8]) -> Encoded:
    """``other`` about the same picture, from what the encoder of ``ours`` made of it: decoders alone are compared."""
    other.set_image(image)
    other.features = ours.features
    return Encoded(other)


def describe(model: ed.Sam, bundle: Path, difference: float) -> dict[str, Any]:
    """What belongs to the figures: weights, options, how far the masks lie apart, what the encoder does in addition."""
    channels = model.config.embed_dim
    hoisted = 3 * (model.image_size // 16) ** 2 * channels * channels // 2  # the first layer's keys, values, queries
    return {
        "weights": str(model.weights),
        "options": " ".join(f"--{key.replace('_', '-')} {value}" for key, value in OPTIONS.items()),
        "masks_relative_l2": difference,
        "hoisted_macs": hoisted,
        "hoisted_share": hoisted / sum(onnx_macs(bundle / "encoder.onnx").values()),
    }


def write(
    path: Path,
    title: str,
    found: list[Comparison],
    goals: Mapping[str, tuple[Comparison, Mapping[str, float]]],
    facts: dict[str, Any],
) -> None:
    """Both files of one kind of figures."""
    machine = Machine.here()
    text = report(machine, title, found, verdicts(goals), facts)
    print(text)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".md").write_text(text)
    write_json(path.with_suffix(".json"), machine, found, **facts)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prompts", type=int, nargs="*", default=[1, 4, 16], help="how many (default 1 4 16)")
    parser.add_argument("--side", type=int, default=32, help="points a side in everything-mode (default 32; 0: not)")
    parser.add_argument("--rounds", type=int, default=16, help="interleaved rounds (default 16)")
    parser.add_argument("--threads", type=int, default=2, help="intra-op threads of every session (default 2)")
    parser.add_argument("--image-size", type=int, default=1024, help="side of the model frame (default 1024)")
    parser.add_argument("--bundle", type=Path, help="a bundle built with these options, instead of building")
    parser.add_argument("--checkpoint", help="weights of both sides (default: seeded)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for the results")
    return ended(lambda: run(parser.parse_args(argv)), refused=1)


if __name__ == "__main__":
    sys.exit(main())
