"""Is the artifact the checkpoint's predictor? Measured, in segmentation terms, on pictures and on seeded scenes.

Reference: ``SamPredictor`` in fp32 PyTorch. It is compared twice: with the model as it was asked for (its neck, its
GELU), which is what a converter must reproduce, and, where the caller chose an approximation, with the checkpoint's own
form, so that the price of the choice is told apart from converter error. The verdict is pass, fail, or not verified.

Definitions: the IoU of two empty masks is 1; a best-mask flip counts where the reference's margin between the scores
exceeds 1e-3; decibels are 20 log10(|reference| / |error|) in L2. The verdict's mask IoU counts only pixels that the
reference decides, |logit| above the relative bound times the standard deviation: in a small mask a single pixel whose
logit is 0 to six digits would otherwise decide. The plain IoU stands beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgesam_deploy.contract import DYNAMIC, Interface
from edgesam_deploy.model.prompts import FloatArray, Slots
from edgesam_deploy.model.transforms import read_image
from edgesam_deploy.runtime import BundlePredictor

if TYPE_CHECKING:
    from edgesam_deploy.model.base_predictor import PromptPredictor
    from edgesam_deploy.model.sam import Sam

Verdict = Literal["pass", "fail", "not verified"]
Progress = Callable[[str], None]
FLIP_MARGIN = 1e-3
STABILITY_PIXELS = 2
SEEDS = (1, 2)


@dataclass(frozen=True)
class Bounds:
    """What an artifact of one precision may differ by, on every picture and prompt."""

    relative_l2: float
    mask_iou: float
    best_mask_flips: int


BOUNDS = {"fp32": Bounds(relative_l2=1e-4, mask_iou=0.9999, best_mask_flips=0)}


@dataclass(frozen=True)
class Difference:
    """One output of one case: artifact against reference."""

    picture: str
    case: str
    output: str
    max_abs: float
    relative_l2: float
    decibels: float
    reference_std: float
    mask_iou: float | None = None  # the worst over the masks, at the picture's size
    decided_mask_iou: float | None = None  # the same over the pixels that the reference decides
    flipped_pixels: float | None = None  # share of all pixels
    order_kept: bool | None = None  # scores sorted alike, wherever they differ by more than the margin
    best_mask_flip: bool | None = None
    score_pixels: float | None = None  # stability scores: pixels by which a count differs beyond the relative bound


@dataclass
class Parity:
    """All differences, what they were measured on, and the verdict."""

    verdict: Verdict
    reasons: list[str]
    executed: str
    reference: str
    precision: str
    bounds: Bounds
    rows: list[Difference] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    faithful: dict[str, Any] | None = None  # the same against the checkpoint's own form, where that is another

    def summary(self) -> dict[str, Any]:
        """The worst figure of each kind."""
        return summarise(self.rows)

    def to_json(self) -> dict[str, Any]:
        return {"schema": 1, **asdict(self), "summary": self.summary()}


def summarise(rows: Sequence[Difference]) -> dict[str, Any]:
    """Worst figures over rows, by output."""
    worst: dict[str, Any] = {}
    for output in dict.fromkeys(row.output for row in rows):
        mine = [row for row in rows if row.output == output]
        worst[output] = {
            "max_abs": max(r.max_abs for r in mine),
            "relative_l2": max(r.relative_l2 for r in mine),
            "decibels": min(r.decibels for r in mine),
        }
    ious = [r.mask_iou for r in rows if r.mask_iou is not None]
    flips = [r.flipped_pixels for r in rows if r.flipped_pixels is not None]
    return {
        "outputs": worst,
        "mask_iou": min(ious, default=None),
        "decided_mask_iou": min((r.decided_mask_iou for r in rows if r.decided_mask_iou is not None), default=None),
        "flipped_pixels": max(flips, default=None),
        "best_mask_flips": sum(bool(r.best_mask_flip) for r in rows),
        "order_changes": sum(r.order_kept is False for r in rows),
        "cases": len({(r.picture, r.case) for r in rows}),
        "pictures": len({r.picture for r in rows}),
    }


@dataclass(frozen=True)
class Case:
    """A prompt in fractions of the picture: points (x, y, label) and a box; B of each make a batch."""

    name: str
    points: tuple[tuple[tuple[float, float, int], ...], ...] = ()
    boxes: tuple[tuple[float, float, float, float], ...] = ()
    mask: bool = False

    @property
    def slots(self) -> int:
        points = len(self.points[0]) if self.points else 0
        return points + 2 if self.boxes else points + bool(points)

    @property
    def batch(self) -> int:
        return max(len(self.points), len(self.boxes), 1)

    def prompt(self, height: int, width: int) -> dict[str, Any]:
        """Arguments of ``predict_batch`` for a picture of this size."""
        prompt: dict[str, Any] = {}
        if self.points:
            coords = [[(x * width, y * height) for x, y, _ in row] for row in self.points]
            prompt = {"point_coords": coords, "point_labels": [[label for *_, label in row] for row in self.points]}
        if self.boxes:
            prompt["boxes"] = [(a * width, b * height, c * width, d * height) for a, b, c, d in self.boxes]
        return prompt


_A, _B, _C = (0.45, 0.4, 1), (0.2, 0.75, 0), (0.8, 0.3, 1)
_BOX, _SMALL_BOX = (0.25, 0.2, 0.75, 0.8), (0.55, 0.5, 0.95, 0.9)
CASES = (
    Case("point", ((_A,),)),
    Case("points", ((_A, _B, _C),)),
    Case("ignored point", ((_A, (0.5, 0.5, -2)),)),
    Case("box", (), (_BOX,)),
    Case("box and points", ((_A, _B),), (_BOX,)),
    Case("box as two points", (((*_BOX[:2], 2), (*_BOX[2:], 3)),)),
    Case("mask", ((_A,),), (), mask=True),
    Case("box, point and mask", ((_A,),), (_BOX,), mask=True),
    Case("batch", ((_A, _B), (_C, _A), (_B, _C)), (_BOX, _SMALL_BOX, _BOX)),
    Case("batch of points", ((_A,), (_B,), (_C,), (_A,))),
    Case("no prompt"),
)


def shipped_pictures() -> dict[str, NDArray[np.uint8]]:
    """The photographs that come with the package, by file name."""
    folder = Path(str(files("edgesam_deploy") / "photographs"))
    return {path.name: read_image(path) for path in sorted(folder.glob("*.jpg"))}


def seeded_scene(seed: int) -> NDArray[np.uint8]:
    """A noisy scene of odd size from a seed, unlike any photograph: (H, W, 3) uint8."""
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(120, 400, 2))
    coarse = rng.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3))
    scene = np.kron(coarse, np.ones((16, 16, 1)))[:height, :width]
    return np.clip(scene + rng.normal(0, 20, scene.shape), 0, 255).astype(np.uint8)


def usable_cases(interface: Interface) -> tuple[list[Case], list[str]]:
    """The cases that an artifact with this interface can take, and why the others were left out."""
    cases, skipped = [], []
    for case in CASES:
        reason = _unusable(case, interface)
        if reason:
            skipped.append(f"{case.name}: {reason}")
        else:
            cases.append(case)
    return cases, skipped


def _unusable(case: Case, interface: Interface) -> str | None:
    if case.mask and not interface.mask_input:
        return "the artifact takes no mask input"
    if interface.points != DYNAMIC and case.slots > int(interface.points):
        return f"needs {case.slots} slots, the artifact has {interface.points}"
    if case.slots == 0 and not interface.empty_slots:
        return "the artifact has no empty slots"
    if case.batch > 1 and interface.io != "contract":
        return f"--io {interface.io} knows one prompt per call"
    return None


def compare(
    reference: PromptPredictor,
    artifact: BundlePredictor,
    pictures: Mapping[str, NDArray[np.uint8]],
    bounds: Bounds,
    progress: Progress = lambda _: None,
) -> tuple[list[Difference], list[str]]:
    """Every output of every case on every picture, and the detectors' findings (an empty list is good)."""
    rows: list[Difference] = []
    findings: list[str] = []
    embeddings: list[tuple[FloatArray, FloatArray]] = []
    cases, _ = usable_cases(artifact.interface)
    for name, picture in pictures.items():
        progress(f"parity: {name}")
        theirs = _numpy(reference.set_image(picture))
        ours = artifact.set_image(picture)
        rows.append(_difference(name, "encoder", "embeddings", theirs, ours))
        embeddings.append((theirs, ours))
        findings += _dead(f"embeddings of {name}", theirs, ours)
        if artifact.has_decoder:
            with _one_thread():
                found, more = _prompt_rows(reference, artifact, name, cases, bounds)
            rows += found
            findings += more
    findings += _ignores_input("embeddings ignore the picture", embeddings)
    return rows, findings


@contextmanager
def _one_thread() -> Iterator[None]:
    """PyTorch on one thread: a decoder's many small operators gain nothing from a second one, and beside a busy
    neighbour they wait for it at every barrier (parity took 65 s instead of 18).
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _numpy(features: Any) -> FloatArray:
    array: FloatArray = features.cpu().numpy() if hasattr(features, "cpu") else features
    return array


def _prompt_rows(
    reference: PromptPredictor, artifact: BundlePredictor, name: str, cases: Sequence[Case], bounds: Bounds
) -> tuple[list[Difference], list[str]]:
    rows: list[Difference] = []
    findings: list[str] = []
    pairs: list[tuple[FloatArray, FloatArray]] = []
    logits = None
    for case in cases:
        prompt = case.prompt(*reference.original_size)
        if case.mask and logits is not None:
            prompt["mask_input"] = logits
        (theirs, their_scores), (ours, our_scores) = (_answers(p, prompt, artifact) for p in (reference, artifact))
        logits = theirs[:1, :1] if logits is None else logits
        rows += _case_rows(reference, artifact, name, case, (theirs, their_scores), (ours, our_scores), bounds)
        findings += _dead(f"logits of {name}, {case.name}", theirs, ours)
        if theirs.shape[0] == 1:
            pairs.append((theirs, ours))
    findings += _ignores_input(f"logits ignore the prompt on {name}", pairs)
    return rows, findings


def _answers(
    predictor: PromptPredictor, prompt: dict[str, Any], artifact: BundlePredictor
) -> tuple[FloatArray, FloatArray]:
    """Logits (B, M, h, w) and scores (B, M) of all masks, or of the one that the artifact's layout chooses."""
    stability = artifact.interface.scores == "stability"
    prompts, masks = predictor.prepared(**prompt)
    if predictor is artifact:
        return predictor.decode(prompts, masks)
    logits, scores = predictor.decode(prompts, masks)
    if stability:
        from edgesam_deploy.model.transforms import stability_score

        scores = stability_score(logits, predictor.mask_threshold)
    if artifact.interface.return_single_mask:
        best = official_choice(scores, prompts)
        return logits[:, best : best + 1], scores[:, best : best + 1]
    return logits, scores


def official_choice(scores: FloatArray, prompts: Slots) -> int:
    """The mask that segment-anything's exported decoder chooses: 0 above two tokens, else the best of 1 to 3."""
    shift = (prompts.count - 2.5) * np.array([1000.0, 0, 0, 0])
    return int((scores[0] + shift).argmax())


def _case_rows(
    reference: PromptPredictor,
    artifact: BundlePredictor,
    picture: str,
    case: Case,
    theirs: tuple[FloatArray, FloatArray],
    ours: tuple[FloatArray, FloatArray],
    bounds: Bounds,
) -> Iterator[Difference]:
    yield _difference(
        picture,
        case.name,
        "logits",
        theirs[0],
        ours[0],
        **_masks_apart(reference, artifact, theirs[0], ours[0], bounds),
    )
    yield _difference(
        picture, case.name, "scores", theirs[1], ours[1],
        order_kept=_order_kept(theirs[1], ours[1]), best_mask_flip=_best_mask_flip(theirs[1], ours[1]),
        score_pixels=_score_pixels(theirs, ours[1], bounds) if artifact.interface.scores == "stability" else None,
    )  # fmt: skip


def _masks_apart(
    reference: PromptPredictor, artifact: BundlePredictor, theirs: FloatArray, ours: FloatArray, bounds: Bounds
) -> dict[str, float]:
    """How the thresholded masks differ at the picture's size."""
    if theirs.shape != ours.shape:
        return {"mask_iou": 0.0, "decided_mask_iou": 0.0, "flipped_pixels": 1.0}
    full = reference.upscale(theirs)
    a, b = full > reference.mask_threshold, artifact.full_masks(ours) > reference.mask_threshold
    undecided = np.abs(full - reference.mask_threshold) <= bounds.relative_l2 * full.std()
    return {
        "mask_iou": mask_iou(a, b),
        "decided_mask_iou": mask_iou(a | undecided, b | undecided),
        "flipped_pixels": float((a != b).mean()),
    }


def _difference(
    picture: str, case: str, output: str, reference: FloatArray, other: FloatArray, **more: Any
) -> Difference:
    if reference.shape != other.shape:
        infinite = math.inf
        return Difference(picture, case, output, infinite, infinite, -infinite, float(reference.std()), **more)
    a, b = reference.astype(np.float64), other.astype(np.float64)
    error, size = float(np.linalg.norm(b - a)), float(np.linalg.norm(a))
    relative = 0.0 if error == 0 else error / size if size else math.inf
    decibels = 999.0 if relative == 0 else -20 * math.log10(relative) if math.isfinite(relative) else -math.inf
    return Difference(picture, case, output, float(np.abs(b - a).max()), relative, decibels, float(a.std()), **more)


def mask_iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """The worst intersection over union of corresponding masks (..., H, W); 1 where both are empty."""
    if a.shape != b.shape:
        return 0.0
    both = (a & b).sum((-1, -2)).astype(np.float64)
    either = (a | b).sum((-1, -2)).astype(np.float64)
    return float(np.where(either == 0, 1.0, both / np.maximum(either, 1)).min())


def _score_pixels(theirs: tuple[FloatArray, FloatArray], scores: FloatArray, bounds: Bounds) -> float:
    area = (theirs[0] > -1).sum((-1, -2))  # the larger of the two counts of a stability score
    if theirs[1].shape != scores.shape:
        return math.inf
    return float((np.maximum(np.abs(theirs[1] - scores) - bounds.relative_l2, 0) * area).max())


def _best_mask_flip(reference: FloatArray, other: FloatArray) -> bool:
    """Whether another of the multi-mask answers has the best score, in any prompt of the batch."""
    if reference.shape != other.shape or reference.shape[1] < 4:
        return reference.shape != other.shape
    theirs, ours = reference[:, 1:], other[:, 1:]
    best = np.sort(theirs, axis=1)
    clear = best[:, -1] - best[:, -2] > FLIP_MARGIN
    return bool(((theirs.argmax(1) != ours.argmax(1)) & clear).any())


def _order_kept(reference: FloatArray, other: FloatArray) -> bool:
    if reference.shape != other.shape:
        return False
    theirs = reference[:, :, None] - reference[:, None, :]
    ours = other[:, :, None] - other[:, None, :]
    clear = np.abs(theirs) > FLIP_MARGIN
    return bool((np.sign(theirs) == np.sign(ours))[clear].all())


def _dead(what: str, reference: FloatArray, other: FloatArray) -> list[str]:
    """NaN, a constant, or saturation, where the reference has none."""
    if not np.isfinite(other).all():
        return [f"{what}: NaN or infinity"]
    findings = []
    if other.std() < 1e-3 * reference.std():
        findings.append(f"{what}: constant output")
    largest = np.abs(other).max()
    share, usual = (float((np.abs(x) >= 0.999 * np.abs(x).max()).mean()) for x in (other, reference))
    if largest > 0 and share > 0.05 and share > 10 * usual:
        findings.append(f"{what}: saturated, {share:.0%} of the values at {largest:.4g}")
    return findings


def _ignores_input(what: str, pairs: Sequence[tuple[FloatArray, FloatArray]]) -> list[str]:
    """Found when every two artifact outputs are nearly equal although the reference's are not."""
    if len(pairs) < 2:
        return []
    theirs, ours = (max(float(np.abs(pair[i] - pairs[0][i]).max()) for pair in pairs[1:]) for i in (0, 1))
    return [what] if ours < 1e-3 * theirs else []


def judge(rows: Sequence[Difference], findings: Sequence[str], bounds: Bounds) -> tuple[Verdict, list[str]]:
    """The verdict, with every reason for a fail."""
    reasons = list(dict.fromkeys(findings))
    for row in rows:
        where = f"{row.output} of {row.picture}, {row.case}"
        if row.output == "scores":
            reasons += [f"{where}: {found}" for found in _score_faults(row, bounds)]
        elif not row.relative_l2 <= bounds.relative_l2:
            reasons.append(f"{where}: relative L2 {row.relative_l2:.2e}, at most {bounds.relative_l2:.0e} allowed")
        if row.decided_mask_iou is not None and not row.decided_mask_iou >= bounds.mask_iou:
            reasons.append(f"{where}: mask IoU {row.decided_mask_iou:.5f}, at least {bounds.mask_iou} wanted")
    flips = [f"{r.picture}, {r.case}" for r in rows if r.best_mask_flip]
    if len(flips) > bounds.best_mask_flips:
        reasons.append(f"another mask has the best score: {flips[0]}")
    if not rows:
        return "not verified", ["nothing was run"]
    return ("fail" if reasons else "pass"), reasons


def _score_faults(row: Difference, bounds: Bounds) -> list[str]:
    """Predicted IoU is a number near 1; a stability score is a ratio of counts, which moves by whole pixels."""
    if row.score_pixels is None:
        good = row.max_abs <= bounds.relative_l2
        return [] if good else [f"off by {row.max_abs:.2e}, at most {bounds.relative_l2:.0e} allowed"]
    good = row.score_pixels <= STABILITY_PIXELS
    return [] if good else [f"off by {row.score_pixels:.0f} pixels of the counted area"]


def measure(
    model: Sam,
    artifact: BundlePredictor,
    *,
    precision: str = "fp32",
    pictures: Mapping[str, NDArray[np.uint8]] | None = None,
    progress: Progress = lambda _: None,
) -> Parity:
    """Parity of an artifact with ``model``, on the shipped photographs (or ``pictures``) and two seeded scenes."""
    from edgesam_deploy.model.predictor import SamPredictor

    chosen = dict(shipped_pictures() if pictures is None else pictures)
    chosen.update({f"seed {seed}": seeded_scene(seed) for seed in SEEDS})
    bounds = BOUNDS[precision]
    rows, findings = compare(SamPredictor(model), artifact, chosen, bounds, progress)
    verdict, reasons = judge(rows, findings, bounds)
    _, skipped = usable_cases(artifact.interface)
    parity = Parity(verdict, reasons, artifact.executed, _described(model), precision, bounds, rows, skipped)
    own = model.in_own_form()
    if own is not None:
        own_rows, _ = compare(SamPredictor(own), artifact, dict(list(chosen.items())[:2]), bounds, progress)
        parity.faithful = {"reference": _described(own), "summary": summarise(own_rows)}
    return parity


def _described(model: Sam) -> str:
    encoder = model.config.image_encoder
    return f"{model.name}, fp32 PyTorch, {encoder.upsample} neck, {encoder.gelu} GELU; {model.weights}"


def check(
    path: str | Path,
    model: Sam | None = None,
    *,
    checkpoint: str | Path | None = None,
    pictures: Mapping[str, NDArray[np.uint8]] | None = None,
    provider: str = "cpu",
    progress: Progress = lambda _: None,
) -> Parity:
    """Measure a bundle against its model, and write ``parity.json`` into it.

    The model is rebuilt from the manifest: from its seed, or from ``checkpoint`` (whose hash must be the manifest's).
    Raises BundleError for a bundle that does not verify, CheckpointError for another checkpoint.
    """
    from edgesam_deploy.bundle import verify
    from edgesam_deploy.runtime import open_predictor

    bundle = verify(path)
    if model is None:
        model = _model_of(bundle.manifest, checkpoint)
    precision = bundle.manifest["options"].get("precision", "fp32")
    parity = measure(model, open_predictor(path, provider), precision=precision, pictures=pictures, progress=progress)
    bundle.write_json("parity.json", parity.to_json())
    return parity


def _model_of(manifest: Mapping[str, Any], checkpoint: str | Path | None) -> Sam:
    from edgesam_deploy.errors import CheckpointError, UsageError
    from edgesam_deploy.model.registry import load

    weights, made = manifest["weights"], manifest["model"]
    upsample = made["config"]["image_encoder"]["upsample"]
    if weights["source"] == "seeded":
        return load(made["name"], seed=weights["seed"], upsample=upsample, config=made["config"])
    if checkpoint is None:
        raise UsageError(
            f"this bundle was built from {weights['checkpoint']}; pass --checkpoint PATH to compare it with that file"
        )
    model = load(made["name"], checkpoint, upsample=upsample, config=made["config"])
    if model.weights.sha256 != weights["sha256"]:
        raise CheckpointError(f"{checkpoint} is not the file this bundle was built from ({weights['checkpoint']})")
    return model
