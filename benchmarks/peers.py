"""Latency of our artifacts against peers on the same weights, interleaved, and the share of this machine's peak.

    python -m benchmarks.peers [--part encoder] [--rounds 15] [--threads 2] [--image-size 1024] [--without NAME ...]

Peers in ONNX Runtime: the reference scripts' export as it is, behind onnxsim and behind onnxslim. Other runtimes, where
they are installed: ``benchmarks/peer_runtimes.py``. Ours, in ONNX Runtime and in OpenVINO: fp32, and for the encoder
8 bit. A peer that is faster in fp32 than the fastest of ours by more than 3 % is named. Beside the ratios
stands what each makes of the machine's own matrix product, in fp32 and in 8 bit, both measured in the same process and
runtime just before: multiply-accumulates per second over those of the product. Writes ``peers_PART.md``, ``.json``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

import edgesam_deploy as ed
from benchmarks.interleaved import AGAIN, Call, Candidate, Comparison, Machine, compare_calls, write_json
from benchmarks.peer_runtimes import openvino, runtimes
from benchmarks.reference_export import Part, example_inputs, export_reference
from edgesam_deploy.cost import onnx_macs
from edgesam_deploy.errors import EdgeSamDeployError
from edgesam_deploy.parity import seeded_scene

POINTS = 5
SIDE = 1536  # of the matrices: large enough that memory does not decide
REFERENCE, OURS, OURS_INT8 = "reference export", "edgesam-deploy", "edgesam-deploy int8"
OURS_OPENVINO, OURS_INT8_OPENVINO = f"{OURS}, target openvino", f"{OURS_INT8}, target openvino"
OWN_FP32, OWN_INT8 = (OURS, OURS_OPENVINO), (OURS_INT8, OURS_INT8_OPENVINO)
CALLS: dict[Part, int] = {"encoder": 1, "decoder": 3}  # of about 300 ms and 40 ms
SLOWER = 1.03  # than the fastest peer, at most
GOALS = {
    "encoder": {OURS: 0.91, OURS_OPENVINO: 0.87, OURS_INT8: 0.42, OURS_INT8_OPENVINO: 0.42},
    "decoder": {OURS: 0.70, OURS_OPENVINO: 0.70, OURS_INT8: 0.45},
}


def peak(eight_bit: bool, threads: int, repeats: int = 7) -> float:
    """Multiply-accumulates per second of one large product in ONNX Runtime: the fastest of ``repeats``."""
    rng = np.random.default_rng(0)
    if eight_bit:
        weight, operator, kind = (
            rng.integers(-127, 127, (SIDE, SIDE)).astype(np.int8),
            "MatMulInteger",
            TensorProto.INT32,
        )
        value = rng.integers(0, 255, (SIDE, SIDE)).astype(np.uint8)
    else:
        weight, operator, kind = rng.standard_normal((SIDE, SIDE)).astype(np.float32), "MatMul", TensorProto.FLOAT
        value = rng.standard_normal((SIDE, SIDE)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", "w"], ["y"])], "peak",
        [helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)],
        [helper.make_tensor_value_info("y", kind, (SIDE, SIDE))], [numpy_helper.from_array(weight, "w")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    session.run(None, {"x": value})
    best = min(_seconds(lambda: session.run(None, {"x": value})) for _ in range(repeats))
    return SIDE**3 / best


def _seconds(call: Any) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def peers(
    model: ed.Sam, part: Part, folder: Path, *, check: bool = True
) -> tuple[Candidate, list[Candidate], list[str]]:
    """The baseline (whose operators are counted, if ``check``), the others, and what was left out with the reason."""
    baseline = Candidate(REFERENCE, export_reference(model, part, folder / "reference.onnx", check=check))
    found, left_out = [], []
    for name, simplify in (("onnxsim", _onnxsim), ("onnxslim", _onnxslim)):
        path = folder / f"{name}.onnx"
        try:
            simplify(baseline.path, path)
            found.append(Candidate(f"reference export + {name}", path))
        except ImportError as e:
            left_out.append(f"{name}: {e}")
    for name, precision in ((OURS, "fp32"), (OURS_INT8, "int8")):
        found.append(Candidate(name, _built(model, "onnx", precision, folder, part)))
    return baseline, found, left_out


def _built(model: ed.Sam, target: str, precision: str, folder: Path, part: Part) -> Path:
    """Ours; its proofs and its parity are made elsewhere."""
    out, pictures = folder / f"{target}_{precision}", {"scene": seeded_scene(3)}
    ed.build(model, target, out, points=POINTS, precision=precision, overwrite=True, proof="off", pictures=pictures)
    return out / f"{part}.onnx"


def _onnxsim(source: Path, path: Path) -> None:
    import onnxsim

    simplified, sound = onnxsim.simplify(onnx.load(source))
    assert sound, "onnxsim changed what the graph computes"
    onnx.save(simplified, path)


def _onnxslim(source: Path, path: Path) -> None:
    import onnxslim

    onnx.save(onnxslim.slim(onnx.load(source)), path)


def shares(found: Comparison, macs: int, peaks: dict[str, float], part: Part = "encoder") -> dict[str, float]:
    """By candidate: the reference's multiply-accumulates per second over the peak of the candidate's precision, which
    is fp32 for every decoder, most of whose products stay so.
    """
    eight_bit = OWN_INT8 if part == "encoder" else ()
    return {
        row.name: macs / (row.wall_ms / 1e3) / peaks["int8" if row.name in eight_bit else "fp32"] for row in found.rows
    }


def fastest(found: Comparison) -> str:
    """One line: the fastest of ours in fp32 against the fastest peer."""
    ratios = {row.name: row.wall.median for row in found.rows if row.name not in (AGAIN, *OWN_INT8)}
    own = min((name for name in ratios if name in OWN_FP32), key=ratios.__getitem__)
    peer = min((name for name in ratios if name not in OWN_FP32), key=ratios.__getitem__)
    ratio = ratios[own] / ratios[peer]
    verdict = "reached" if ratio <= SLOWER else "missed"
    if not found.trusted:
        verdict = "no verdict"
    return (
        f"fp32: the fastest peer is {peer} ({ratios[peer]:.3f}), of ours {own} ({ratios[own]:.3f}): {ratio:.3f} of its "
        f"time, at most {SLOWER:.2f} wanted: **{verdict}**"
    )


def all_calls(
    model: ed.Sam,
    part: Part,
    folder: Path,
    inputs: dict[str, Any],
    threads: int,
    without: Sequence[str],
    *,
    check: bool,
) -> tuple[Path, dict[str, Call], list[str]]:
    """The baseline's file, what is to be called, and what was left out with the reason."""
    baseline, candidates, left_out = peers(model, part, folder, check=check)
    named = {REFERENCE: baseline, AGAIN: baseline, **{c.name: c for c in candidates}}
    calls = {name: candidate.call(inputs, threads) for name, candidate in named.items()}
    others, reasons = runtimes(model, part, baseline.path, inputs, threads, folder, without=without)
    if "OpenVINO" in others:
        for name, precision in ((OURS_OPENVINO, "fp32"), (OURS_INT8_OPENVINO, "int8"))[: 1 if part == "decoder" else 2]:
            others[name] = openvino(_built(model, "openvino", precision, folder, part), part, inputs, threads)
    return baseline.path, calls | others, left_out + reasons


def report(
    machine: Machine,
    part: Part,
    found: Comparison,
    share: dict[str, float],
    peaks: dict[str, float],
    left_out: list[str],
) -> str:
    """The Markdown file."""
    verdicts = [
        fastest(found),
        *(
            f"{name}: at most {goal:.2f} wanted, {found[name].wall}: **{found.verdict(name, goal)}**"
            for name, goal in GOALS[part].items()
            if any(row.name == name for row in found.rows)
        ),
    ]
    rows = [f"| {name} | {100 * value:.0f} % |" for name, value in share.items()]
    return "\n".join([
        f"# The {part} against peers on the same weights\n",
        f"{machine}\n",
        found.markdown(),
        *(f"{line}\n" for line in verdicts),
        *(f"Left out: {reason}\n" for reason in left_out),
        f"Largest matrix product here: {peaks['fp32'] / 1e9:.0f} GMAC/s in fp32, {peaks['int8'] / 1e9:.0f} in 8 bit. "
        "Of it, counting the reference's multiply-accumulates whatever a file does with them:\n",
        "| file | share of the peak |",
        "|---|---|",
        *rows,
        "",
    ])  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--part", choices=("encoder", "decoder"), default="encoder")
    parser.add_argument("--rounds", type=int, default=15, help="interleaved rounds (default 15)")
    parser.add_argument("--threads", type=int, default=2, help="intra-op threads of every session (default 2)")
    parser.add_argument("--without", nargs="*", default=[], help="runtimes to leave out, by their names in the table")
    parser.add_argument("--image-size", type=int, default=1024, help="side of the model frame (default 1024)")
    parser.add_argument("--checkpoint", help="weights of all (default: seeded)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for the results")
    args = parser.parse_args(argv)
    try:
        model = ed.load("edge_sam", checkpoint=args.checkpoint, config={"image_size": args.image_size})
        with tempfile.TemporaryDirectory() as name:
            inputs = {key: value.numpy() for key, value in example_inputs(model, args.part, POINTS).items()}
            check = args.image_size == 1024
            baseline, calls, left_out = all_calls(
                model, args.part, Path(name), inputs, args.threads, args.without, check=check
            )
            peaks = {"fp32": peak(False, args.threads), "int8": peak(True, args.threads)}
            subject = f"{args.part}, {args.image_size} pixels"
            found = compare_calls(subject, calls, threads=args.threads, rounds=args.rounds, calls=CALLS[args.part])
            macs = sum(onnx_macs(baseline, inputs=inputs).values())  # of the shapes that it meets: it has dynamic ones
    except EdgeSamDeployError as e:
        print(f"refused: {e}", file=sys.stderr)
        return 1
    share, machine = shares(found, macs, peaks, args.part), Machine.here([p for p in _PACKAGES if _installed(p)])
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f"peers_{args.part}.md").write_text(report(machine, args.part, found, share, peaks, left_out))
    more = {"weights": str(model.weights), "peak_macs_per_second": peaks, "share_of_peak": share, "left_out": left_out}
    write_json(args.out / f"peers_{args.part}.json", machine, [found], **more)
    return 0


def _installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


_PACKAGES = (
    "onnxruntime", "onnx", "onnxsim", "onnxslim", "openvino", "ncnn", "pnnx", "litert-torch", "ai-edge-litert", "torch",
    "numpy",
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
