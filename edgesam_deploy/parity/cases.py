"""What parity is measured on: pictures, seeded scenes, and one prompt of every kind."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesam_deploy.contract import DYNAMIC, Interface
from edgesam_deploy.model.transforms import read_image

SEEDS = (1, 2)
Pictures = Mapping[str, NDArray[np.uint8]]


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


def few_pictures() -> Pictures:
    """One photograph and one seeded scene: the least that shows a result which ignores its input."""
    name, picture = next(iter(shipped_pictures().items()))
    return {name: picture, f"seed {SEEDS[0]}": seeded_scene(SEEDS[0])}


def least_pictures(known: Container[str]) -> Pictures:
    """One photograph, none of those that the artifact was calibrated with."""
    pictures = shipped_pictures()
    name = next((name for name in pictures if name not in known), next(iter(pictures)))
    return {name: pictures[name]}


def least_cases(interface: Interface) -> tuple[list[Case], list[str]]:
    """Two prompts that an artifact with this interface can take, a point and a box if it can, and what is left out."""
    cases, skipped = usable_cases(interface)
    kept = sorted(cases, key=lambda case: case.name not in ("point", "box"))[:2]
    rest = ", ".join(case.name for case in cases if case not in kept)
    return kept, [*skipped, f"{rest}: a prompt takes minutes, --full runs them"] if rest else skipped


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
