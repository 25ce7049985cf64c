"""What is said of an export, and what several of them have in common. Sources: the published scripts of each project;
figures were measured with this project's own random weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgesam_deploy.explain.facts import Facts, Shape

Topic = Literal["upsampling", "padding point", "scores", "coordinates", "prompts", "masks", "size", "operators"]


@dataclass(frozen=True)
class Difference:
    """One thing that the file does, what the checkpoint's predictor does there, and what follows from it."""

    topic: Topic
    here: str
    predictor: str
    effect: str


@dataclass(frozen=True)
class Export:
    """Whose export it is. evidence: by what it was recognised; replace: commands; same: that nothing differs there."""

    family: str
    part: str
    script: str
    evidence: tuple[str, ...]
    differences: tuple[Difference, ...]
    same: tuple[str, ...]
    replace: tuple[str, ...]


# --- what several of them have in common -----------------------------------------------------------------------------

OWN = "without --io you get this project's contract: any number of points up to --points in one static graph"
COORDINATES = (
    "coordinates: (x, y) in pixels of the picture resized so that its long side is the model's; some of the scripts' "
    "documentation says (height, width), their code does not"
)
PADDING = Difference(
    "padding point",
    "takes the points as they come; the script's own predictor for ONNX adds none",
    "appends the point (0, 0) with label -1 to every prompt that has no box, none to one that has",
    "up to 30 logits in the masks of a click; until you replace the file, append that point yourself",
)
IOU = "scores: the predicted IoU of each mask, as the predictor returns"


def stability(facts: Facts) -> Difference | None:
    """The score computed in the graph, which exact masks' pixels are counted for."""
    if facts.count("Greater") < 2 or facts.count("ReduceSum") < 2:
        return None
    return Difference(
        "scores",
        "stability of each mask (offset 1.0), counted in the graph (--use-stability-score)",
        "predicts IoU unless use_stability_score is asked for",
        "another ranking of the masks; here: build --scores stability, or choose at run time from one artifact",
    )


def tanh_gelu(facts: Facts, expected: int = 0) -> Difference | None:
    if facts.count("Erf", "Gelu") or facts.count("Tanh") <= expected:
        return None
    return Difference(
        "operators",
        "GELU by its tanh formula (--gelu-approximate)",
        "exact GELU",
        "small, systematic changes of every mask; here an exact GELU is kept unless a target has none",
    )


def contrib(facts: Facts) -> Difference | None:
    if not facts.foreign:
        return None
    return Difference(
        "operators",
        f"operators of one runtime alone: {', '.join(facts.foreign)}",
        "does not matter there",
        "ONNX Runtime runs them; TensorRT, TFLite and QNN refuse the file. A simplifier put them in",
    )


def some(*found: Difference | None) -> tuple[Difference, ...]:
    return tuple(difference for difference in found if difference is not None)


def side(shape: Shape, times: int) -> int | None:
    side = shape[-1] if shape else None
    return side * times if isinstance(side, int) else None


def static_points(facts: Facts, name: str = "point_labels") -> int | None:
    shape = facts.inputs[name]
    return shape[1] if len(shape) == 2 and isinstance(shape[1], int) else None


def size_option(side: int | None) -> str:
    return "" if side in (None, 1024) else f" --image-size {side}"


def shown(facts: Facts, *operators: str) -> str:
    counts = ", ".join(f"{name} {facts.count(name)}" for name in operators if facts.count(name))
    return f"operators: {facts.nodes} nodes, opset {facts.opset}" + (f", {counts}" if counts else "")


def interface(facts: Facts) -> str:
    def listed(values: object) -> str:
        return ", ".join(f"{name} {list(shape)}" for name, shape in dict(values).items())  # type: ignore[call-overload]

    return f"interface: {listed(facts.inputs)} -> {listed(facts.outputs)}"
