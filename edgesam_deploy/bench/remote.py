"""Latency of bundles on a device: what is pushed, what the runner there is told to do, and what it says.

The runner needs NumPy and the runtime; so the device runs the parts, and the host's work around them is not measured.
The inputs are those that the predictor would feed, caught on this side, but for what the parts compute themselves. The
masks come back and are compared with this machine's, where it can run the artifact.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesam_deploy.bench.measure import AGAIN, circumstances, described, named_bundles, ratio
from edgesam_deploy.bench.settings import DEFAULT, Settings
from edgesam_deploy.bench.stages import grid, points_text
from edgesam_deploy.bundle import Bundle
from edgesam_deploy.contract import DYNAMIC, SEGMENTER
from edgesam_deploy.devices import ConnectionLost, Device, runner
from edgesam_deploy.errors import EdgeSamDeployError, MissingToolkit, UsageError
from edgesam_deploy.model.semantic import preprocess
from edgesam_deploy.parity.cases import seeded_scene
from edgesam_deploy.runtime import PARTS, BundlePredictor, BundleSegmenter, open_artifact
from edgesam_deploy.targets import make_target
from edgesam_deploy.targets.base import Arrays
from edgesam_deploy.targets.openvino_runner import OPENVINO

PUSHED = (".onnx", ".tflite", ".data", ".bin")  # of a bundle's files; the rest is for people and apps
RUNNER, JOB = "runner.py", "job.json"
Progress = Callable[[str], None]


class _Catcher:
    """In a runner's place: keeps what it is given, gives zeros in the contract's shapes."""

    description = ""

    def __init__(self, part: str, outputs: Sequence[Mapping[str, Any]], caught: list[tuple[str, Arrays]]) -> None:
        self.part, self.outputs, self.caught = part, outputs, caught

    def __call__(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        self.caught.append((self.part, inputs))
        batch = inputs["point_labels"].shape[0] if "point_labels" in inputs else 1
        size = iter(inputs.get("orig_im_size", np.zeros(0)))
        bound = {"batch": batch, "height": int(next(size, 1)), "width": int(next(size, 1))}
        return {
            t["name"]: np.zeros([d if isinstance(d, int) else bound.get(d, 1) for d in t["shape"]], t["dtype"])
            for t in self.outputs
        }


def job_of(bundle: Bundle, settings: Settings, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The bundle's part of the job, its inputs as .npz files in ``folder``, and what was left out, with the reason.

    Raises UsageError for an artifact that the runner cannot run.
    """
    parts = {part: bundle.manifest["parts"][part] for part in PARTS if part in bundle.manifest["parts"]}
    for part in parts.values():
        if Path(part["file"]).suffix not in runner.PARTS:
            raise UsageError(
                f"{part['file']} cannot be run on a device by this command, which has {', '.join(runner.PARTS)}; "
                "install edgesam-deploy there and run: edgesam-deploy bench"
            )
    caught: list[tuple[str, Arrays]] = []
    made = {tensor["name"] for part in parts.values() for tensor in part["outputs"]}
    catchers = {name: _Catcher(name, part["outputs"], caught) for name, part in parts.items()}
    skipped: list[str] = []
    calls: list[dict[str, Any]] = []
    for stage, prompts in _stages(bundle, catchers, settings, skipped):
        steps = []
        for index, (part, inputs) in enumerate(caught):
            file = f"{len(calls)}.{index}.npz"
            own: dict[str, Any] = {name: value for name, value in inputs.items() if name not in made}
            np.savez(folder / file, **own)
            steps.append({"part": part, "file": parts[part]["file"], "inputs": file})
        calls.append({"stage": stage, "prompts": prompts, "steps": steps, "outputs": f"{len(calls)}.out.npz"})
        caught.clear()
    return {"name": str(bundle.path), "calls": calls}, skipped


def _stages(
    bundle: Bundle, catchers: dict[str, Any], settings: Settings, skipped: list[str]
) -> Iterator[tuple[str, int]]:
    """Let the predictor feed the catchers, stage by stage; the stage's name and how many prompts it answers."""
    scene = seeded_scene(1)
    if SEGMENTER in catchers:
        segmenter = BundleSegmenter(bundle, catchers)
        segmenter.infer_map(preprocess(scene, segmenter.image_size))
        yield "segmenter", 1
        return
    predictor = BundlePredictor(bundle, catchers)
    predictor.set_image(scene)
    yield "encoder", 1
    if not predictor.has_decoder:
        return
    slots, io = predictor.interface.points, predictor.interface.io
    for count in settings.points:
        if slots != DYNAMIC and count + 1 > int(slots):
            skipped.append(f"{points_text(count)}: the artifact has {slots} slots")
            continue
        predictor.decode(*predictor.prepared(grid(count, scene)[None], np.ones((1, count))))
        yield f"decoder, {points_text(count)}", 1
    for count in settings.prompts:
        if io != "contract" and count > 1:
            skipped.append(f"{count} prompts: --io {io} knows one prompt per call")
            continue
        predictor.decode(*predictor.prepared(grid(count, scene)[:, None], np.ones((count, 1))))
        yield f"decoder, {count} prompts", count


def measure_on(
    device: Device,
    paths: Sequence[str | Path],
    settings: Settings = DEFAULT,
    *,
    python: str = "python3",
    progress: Progress = lambda _: None,
) -> dict[str, Any]:
    """As ``measure`` gives it, of the parts on ``device``, within whose block this must be called.

    Bundles take turns there as they do here, the first one twice. python: the interpreter there that has NumPy and the
    runtime. Where the connection breaks, what was measured until then, and ``complete`` is false.

    Raises MissingToolkit where the interpreter or the runtime is missing there, UsageError for what cannot run there.
    """
    named = named_bundles(paths)
    result = {**circumstances(settings, device.name), "bundles": [], "ratios": []}
    with tempfile.TemporaryDirectory() as name:
        files, job, rows = _packed(named, settings, Path(name))
        result["bundles"] = [row for key, row in rows.items() if not key.endswith(AGAIN)]
        progress("push")
        device.push(files)
        result["state_before"] = device.state()
        try:
            _listen(device, python, result, rows, progress)
            result["state_after"] = device.state()
            _compare(device, job, named, rows, settings, Path(name))
        except ConnectionLost as e:
            if not any(row["stages"] for row in rows.values()):
                raise
            result["complete"], result["incomplete_because"] = False, str(e)
    first = next(iter(rows))
    for key, row in rows.items() if len(rows) > 1 else ():
        times = {stage["stage"]: stage["times"] for stage in row["stages"]}
        base = {stage["stage"]: stage["times"] for stage in rows[first]["stages"]}
        result["ratios"] += [ratio(s, key, times[s], base[s]) for s in base if s in times and key != first]
    result["ratios"].sort(key=lambda entry: [stage["stage"] for stage in rows[first]["stages"]].index(entry["stage"]))
    return result


def _packed(
    named: Mapping[str, Bundle], settings: Settings, folder: Path
) -> tuple[dict[str, Path], dict[str, Any], dict[str, dict[str, Any]]]:
    """What to push, by its name there; the job; and an empty row per bundle."""
    files, bundles, rows = {RUNNER: Path(runner.__file__)}, [], {}
    for index, (name, bundle) in enumerate(named.items()):
        place = f"b{index}"
        (folder / place).mkdir()
        part, skipped = job_of(bundle, settings, folder / place)
        for file in bundle.manifest["files"]:
            if Path(file).suffix in PUSHED and "/" not in file:
                files[f"{place}/{file}"] = bundle.path / file
        files |= {f"{place}/{path.name}": path for path in sorted((folder / place).iterdir())}
        bundles.append({**_moved(part, place), "provider": _provider(bundle, settings.provider)})
        rows[name] = {**described(bundle), "skipped": skipped}
    if len(named) > 1:
        first = bundles[0]
        again = [{**call, "outputs": None} for call in first["calls"]]
        bundles.append({**first, "name": first["name"] + AGAIN, "calls": again})
        rows[first["name"] + AGAIN] = {**rows[first["name"]], "stages": []}
    timing = {key: getattr(settings, key) for key in ("runs", "warmup", "seconds", "threads", "provider")}
    job = {**timing, "bundles": bundles}
    (folder / JOB).write_text(json.dumps(job))
    return {**files, JOB: folder / JOB}, job, rows


def _provider(bundle: Bundle, asked: str) -> str:
    """What runs a bundle there: as asked, or what its target is for. Raises UsageError where that cannot run it."""
    own = make_target(bundle.target).measured_on
    if own != "cpu" and asked not in ("cpu", own):
        raise UsageError(f"{bundle.path}: --provider {asked}: {bundle.target} bundles run in {own}; leave it out")
    files = [entry["file"] for entry in bundle.manifest["parts"].values()]
    if asked == OPENVINO and not all(file.endswith(".onnx") for file in files):
        raise UsageError(f"{bundle.path}: --provider {asked} runs .onnx files, not {files[0]}")
    return own if asked == "cpu" else asked


def _moved(part: dict[str, Any], place: str) -> dict[str, Any]:
    """The bundle's part of the job with its files in the folder ``place``."""
    for call in part["calls"]:
        call["outputs"] = f"{place}/{call['outputs']}"
        for step in call["steps"]:
            step["file"], step["inputs"] = f"{place}/{step['file']}", f"{place}/{step['inputs']}"
    return part


def _listen(
    device: Device, python: str, result: dict[str, Any], rows: dict[str, dict[str, Any]], progress: Progress
) -> None:
    """Run the runner there and take its lines in."""
    errors: list[str] = []
    done = False

    def line(text: str) -> None:
        nonlocal done
        try:
            fact = json.loads(text)
            event = fact["event"]
        except (ValueError, TypeError, KeyError):
            return  # what a runtime prints
        if event == "start":
            result["versions"] = {"python": fact["python"], "numpy": fact["numpy"]}
            result["machine"] = f"{fact['system']}, {fact['cores']} cores"
            result["cpu"] = fact["cpu"]
        elif event == "loaded":
            rows[fact["bundle"]] |= {"load_ms": fact["load_ms"], "executed": fact["executed"]}
        elif event == "begin":
            progress(fact["stage"])
        elif event == "row":
            rows[fact["bundle"]]["stages"].append(fact["row"])
        elif event == "done":
            done = True
            result["peak_rss_mb"] = fact["peak_rss_mb"]
        elif event == "error":
            errors.append(fact["error"])

    code, said = device.run([python, RUNNER, JOB], line)
    if done:
        return
    why = errors[0] if errors else (said.strip().splitlines() or [f"exit code {code}"])[-1]
    if "Import" in why or "ModuleNotFound" in why or code == 127:
        raise MissingToolkit(
            f"--device {device.name}: {python} there cannot run this ({why}); it needs NumPy and the artifact's "
            "runtime (pip install numpy with onnxruntime, openvino or ai-edge-litert); --device-python names another"
        )
    raise EdgeSamDeployError(f"measuring on {device.name} failed: {why}")


def _compare(
    device: Device,
    job: Mapping[str, Any],
    named: Mapping[str, Bundle],
    rows: dict[str, dict[str, Any]],
    settings: Settings,
    folder: Path,
) -> None:
    """How far the last call's outputs there and here lie apart, where this machine can run the artifact."""
    for bundle in job["bundles"][: len(named)]:
        try:
            here = open_artifact(named[bundle["name"]].path)
        except MissingToolkit:
            continue
        made: dict[str, Any] = {}
        there = folder / "there.npz"
        for call in bundle["calls"][:2]:  # the encoder and one prompt, or the segmenter
            for step in call["steps"]:
                with np.load(folder / step["inputs"]) as inputs:
                    made |= here.runners[step["part"]](_wanted(named[bundle["name"]], step["part"], {**made, **inputs}))
        device.pull(bundle["calls"][:2][-1]["outputs"], there)
        with np.load(there) as given:
            rows[bundle["name"]]["agreement"] = _farthest(given, made)


def _wanted(bundle: Bundle, part: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {t["name"]: values[t["name"]] for t in bundle.manifest["parts"][part]["inputs"]}


def _farthest(given: Mapping[str, Any], made: Mapping[str, Any]) -> float:
    """Of the outputs that both sides name (OpenVINO has further names for them); NaN where one is."""
    return float(np.max([_apart(given[key], made[key]) for key in given if key in made]))


def _apart(given: NDArray[Any], expected: NDArray[Any]) -> float:
    size = float(np.linalg.norm(expected)) or 1.0
    return float(np.linalg.norm(given.astype(np.float64) - expected)) / size
