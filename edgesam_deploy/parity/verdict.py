"""What an artifact may differ by, and what the figures say of it: pass, fail, or not verified."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from edgesam_deploy.parity.figures import Difference, summarise

Verdict = Literal["pass", "fail", "not verified"]
STABILITY_PIXELS = 2
NUMBERS = ("scores", "class_map")  # which are judged by order and by place
UNRELATED = 1.0  # relative L2 from which on zeros would be nearer to the reference: no precision costs that


@dataclass(frozen=True)
class Bounds:
    """What an artifact of one precision may differ by, on every picture and prompt."""

    relative_l2: float
    mask_iou: float
    best_mask_flips: int
    class_flips: float = 1e-4  # share of pixels, semantic models
    answers: float | None = None  # of the decoder's outputs, where the errors of both parts add up
    claimed: bool = True  # False: what it costs depends on the weights, so figures are reported and not judged


UNCLAIMED = Bounds(relative_l2=0.1, mask_iou=0.9, best_mask_flips=0, claimed=False)
# by precision, or by "target precision" where a runtime earns a row of its own
# tensorrt: 46 dB for a part in fp16 and 28 in bf16, both parts together a factor of 1.4 more
# qnn: 40 dB for the encoder; a decoder of 42 dB behind it adds its own error to that. coreml: two parts of 2.5e-3
BOUNDS = {
    "qnn fp16": Bounds(relative_l2=1e-2, mask_iou=0.99, best_mask_flips=0, class_flips=1e-2, answers=1.3e-2),
    "qnn w8a16": UNCLAIMED,
    "qnn w8a8": UNCLAIMED,
    "onnx int8": UNCLAIMED,
    "openvino int8": UNCLAIMED,
    "fp32": Bounds(relative_l2=1e-4, mask_iou=0.9999, best_mask_flips=0),
    "tflite fp16": Bounds(relative_l2=2.5e-3, mask_iou=0.995, best_mask_flips=0, class_flips=2.5e-3),
    "tflite dynamic-int8": UNCLAIMED,
    "tflite int8": UNCLAIMED,
    "tflite w8a16": UNCLAIMED,
    "tensorrt fp16": Bounds(relative_l2=5e-3, mask_iou=0.99, best_mask_flips=0, class_flips=5e-3, answers=7e-3),
    "tensorrt bf16": Bounds(relative_l2=4e-2, mask_iou=0.95, best_mask_flips=0, class_flips=4e-2, answers=5.6e-2),
    "tensorrt int8": UNCLAIMED,
    "coreml fp32": Bounds(relative_l2=1e-4, mask_iou=0.9999, best_mask_flips=0),
    "coreml fp16": Bounds(relative_l2=2.5e-3, mask_iou=0.995, best_mask_flips=0, class_flips=2.5e-3, answers=3.5e-3),
    "coreml int8": UNCLAIMED,
    "coreml palette8": UNCLAIMED,
    "coreml palette6": UNCLAIMED,
}


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


def judge(rows: Sequence[Difference], findings: Sequence[str], bounds: Bounds) -> tuple[Verdict, list[str]]:
    """The verdict, with every reason for a fail."""
    reasons = list(dict.fromkeys(findings))
    unrelated = [row for row in rows if row.output not in NUMBERS and not row.relative_l2 < UNRELATED]
    for row in unrelated:
        reasons.append(f"{row.output} of {row.picture}, {row.case}: farther from the reference than all zeros")
    for row in rows:
        where = f"{row.output} of {row.picture}, {row.case}"
        if row.output == "scores":
            reasons += [f"{where}: {found}" for found in _score_faults(row, bounds)]
        elif row.output != "class_map" and not row.relative_l2 <= _l2_bound(row, bounds):
            reasons.append(f"{where}: relative L2 {row.relative_l2:.2e}, at most {_l2_bound(row, bounds):.1e} allowed")
        if row.decided_mask_iou is not None and not row.decided_mask_iou >= bounds.mask_iou:
            reasons.append(f"{where}: mask IoU {row.decided_mask_iou:.5f}, at least {bounds.mask_iou} wanted")
        if row.class_flips is not None and not row.class_flips <= bounds.class_flips:
            reasons.append(f"{where}: {row.class_flips:.1e} of the pixels have another class")
    flips = [f"{r.picture}, {r.case}" for r in rows if r.best_mask_flip]
    if len(flips) > bounds.best_mask_flips:
        reasons.append(f"another mask has the best score: {flips[0]}")
    if not rows:
        return "not verified", ["nothing was run"]
    if not bounds.claimed and not findings and not unrelated:
        return "not verified", ["what this precision costs depends on the weights: judge the figures, on your pictures"]
    return ("fail" if reasons else "pass"), reasons


def _l2_bound(row: Difference, bounds: Bounds) -> float:
    own = None if row.case == "encoder" else bounds.answers
    return bounds.relative_l2 if own is None else own


def _score_faults(row: Difference, bounds: Bounds) -> list[str]:
    """Predicted IoU is a number near 1; a stability score is a ratio of counts, which moves by whole pixels."""
    if row.score_pixels is None:
        most = _l2_bound(row, bounds)
        return [] if row.max_abs <= most else [f"off by {row.max_abs:.2e}, at most {most:.0e} allowed"]
    good = row.score_pixels <= STABILITY_PIXELS
    return [] if good else [f"off by {row.score_pixels:.0f} pixels of the counted area"]
