"""Two programs side by side: their values by name, which of them correspond, and pieces cut out of either.

Values are compared by sketches of at most 4,096 numbers (sums of blocks with random signs, whose distance is that of
the values within a few per cent), so that all activations of an encoder fit into memory at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesam_deploy.passes.execute import Arrays
from edgesam_deploy.passes.program import Program

BUCKETS = 4096
LEAST = 1e-2  # root mean square that a value counts as having: below, rounding of larger terms is all there is
ENOUGH = 16  # elements that cannot be equal by accident, as flags and sizes are


@dataclass(frozen=True)
class Sketch:
    """What is kept of a value."""

    shape: tuple[int, ...]
    norm: float
    numbers: NDArray[np.float64]

    @classmethod
    def of(cls, array: NDArray[Any]) -> Sketch:
        flat = np.asarray(array).astype(np.float64).ravel()
        norm = float(np.linalg.norm(flat))
        if flat.size > BUCKETS:
            flat = flat * _signs(flat.size)
            flat = np.pad(flat, (0, -flat.size % BUCKETS)).reshape(-1, BUCKETS).sum(0)
        return cls(tuple(np.shape(array)), norm, flat)

    def distance(self, other: Sketch) -> float:
        """|other - self| / |self| in L2, as ``relative_l2``; NaN where either holds NaN."""
        size = max(self.norm, LEAST * float(np.sqrt(np.prod(self.shape))))
        error = float(np.linalg.norm(other.numbers - self.numbers))
        return 0.0 if error == 0 else error / size if size else float("inf")


@lru_cache(maxsize=8)
def _signs(size: int) -> NDArray[np.int8]:
    return np.random.default_rng(size).integers(0, 2, size, np.int8) * 2 - 1


@dataclass
class Region:
    """Nodes that compute ``end`` from ``inputs``; ``deeper``: wrong values that were met on the way back."""

    end: str
    nodes: list[str] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    deeper: list[str] = field(default_factory=list)


class View(ABC):
    """A program as values by name: ``nodes`` what computes them in order, ``sources`` the inputs, ``outputs``."""

    nodes: dict[str, Any]
    sources: set[str]
    outputs: list[str]

    def __init__(self, program: Program) -> None:
        self.program = program
        self.plural: set[str] = set()  # lists of tensors: never the input of a piece

    @abstractmethod
    def reads(self, name: str) -> list[str]:
        """Names of what the node that computes ``name`` reads, in order, constants included."""

    @abstractmethod
    def operator(self, name: str) -> str:
        """What computes ``name``."""

    @abstractmethod
    def sketches(self, inputs: Arrays) -> dict[str, Sketch]:
        """Of every tensor that is computed."""

    @abstractmethod
    def values(self, inputs: Arrays, names: Sequence[str]) -> Arrays:
        """The named values, inputs and constants included."""

    @abstractmethod
    def is_baked(self, name: str) -> bool:
        """Whether a piece holds this value itself, not as an input: constants, and numbers that are no tensors."""

    @abstractmethod
    def write(self, region: Region, inputs: Arrays, stem: Path, *, runs: bool = True) -> Path:
        """The region as a program that runs, beside a text to read. Not ``runs``: one that is expected to fail."""

    @abstractmethod
    def run_piece(self, path: Path, feeds: Arrays) -> NDArray[Any]:
        """The result of what ``write`` wrote."""

    @abstractmethod
    def recipe(self, path: Path) -> str:
        """The lines that run what ``write`` wrote and compare."""

    @abstractmethod
    def recipe_of_pass(self, path: Path, run: Callable[[Program], int]) -> str:
        """The lines that run a pass on what ``write`` wrote."""

    @abstractmethod
    def ending_in(self, names: Sequence[str]) -> Program:
        """The program with the named values as its outputs, and without what they do not need."""

    def prefix(self, names: Sequence[str]) -> Program:
        """The program of the named values, of which those that none of them reads are the outputs."""
        read = {r for name in names for r in self.reads(name)}
        return self.ending_in([name for name in names if name not in read])

    @abstractmethod
    def piece(self, region: Region, inputs: Arrays) -> Program:
        """The region as a program."""

    @abstractmethod
    def first_failing(self, inputs: Arrays) -> str | None:
        """The first value that cannot be computed."""

    def position(self, name: str) -> int:
        return self._positions.get(name, -1)

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.nodes)}

    def tensors(self, inputs: Arrays) -> list[str]:
        """Names of computed tensors, in order."""
        return list(self.sketches(inputs))

    def region(self, end: str, stops: set[str], wrong: set[str]) -> Region:
        """Back from ``end``, which belongs to it in any case, to ``stops`` and inputs; ``wrong`` values end it too."""
        found, seen, left = Region(end), {end}, [end]
        inside = set()
        while left:
            name = left.pop()
            if name not in self.nodes:
                if not self.is_baked(name):
                    found.inputs.append(name)
                continue
            inside.add(name)
            for read in self.reads(name):
                if read in seen or self.is_baked(read):
                    continue
                seen.add(read)
                if read in stops or read in self.sources:
                    found.inputs.append(read)
                elif read in wrong:
                    found.deeper.append(read)
                else:
                    left.append(read)
        found.nodes = [name for name in self.nodes if name in inside]
        return found

    def near(self, end: str, depth: int) -> Region:
        """The nodes at most ``depth`` steps back from ``end``, which counts as one."""
        inside, edge = {end}, [end]
        for _ in range(depth - 1):
            edge = [r for name in edge for r in self.reads(name) if r in self.nodes and r not in inside]
            inside.update(edge)
        return self.region(end, set(self.nodes) - inside - self.plural, set())


def first_true(count: int, holds: Callable[[int], bool]) -> int | None:
    """The first index from which ``holds`` is true to the end, None where it is not true at the last."""
    if count == 0 or not holds(count - 1):
        return None
    low, high = 0, count - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


# --- which values correspond -----------------------------------------------------------------------------------------


def partners(before: View, after: View) -> dict[str, list[str]]:
    """For each value after, the ones before that it may stand for, the likelier first.

    Those in the same place of the outputs, and of nodes that correspond and have the same operator; and its namesake.
    """
    found: dict[str, list[str]] = {}

    def record(was: str, now: str) -> None:
        if was in before.nodes and now in after.nodes:
            found.setdefault(now, []).append(was)

    outputs = list(zip(before.outputs, after.outputs, strict=True))
    namesakes = [(name, name) for name in after.nodes if name in before.nodes]
    for pair in outputs:
        record(*pair)
    queue = deque([*outputs, *namesakes])
    seen = set(queue)
    while queue:
        was, now = queue.popleft()
        if was not in before.nodes or now not in after.nodes or before.operator(was) != after.operator(now):
            continue
        reads, reads_now = before.reads(was), after.reads(now)
        for pair in zip(reads, reads_now, strict=True) if len(reads) == len(reads_now) else ():
            record(*pair)
            if pair not in seen:
                seen.add(pair)
                queue.append(pair)
    for pair in namesakes:
        record(*pair)
    return {name: list(dict.fromkeys(candidates)) for name, candidates in found.items()}


@dataclass(frozen=True)
class Agreement:
    """``stops``: values after that equal one before; ``shared``: those before; ``wrong``: those that ought to and do
    not. Sizes of the same shape only are compared.
    """

    stops: set[str]
    shared: set[str]
    wrong: set[str]
    is_same: Callable[[str, str], bool]
    partner: Callable[[str], str]


def agreement(
    old: dict[str, Sketch], new: dict[str, Sketch], candidates: dict[str, list[str]], limit: float
) -> Agreement:
    by_shape: dict[tuple[int, ...], list[str]] = {}
    for name, sketch in old.items():
        by_shape.setdefault(sketch.shape, []).append(name)

    def is_same(was: str, now: str) -> bool:
        if was not in old or now not in new:
            return was == now
        return old[was].shape == new[now].shape and old[was].distance(new[now]) <= limit

    def comparable(now: str) -> list[str]:
        return [was for was in candidates.get(now, []) if was in old and old[was].shape == new[now].shape]

    stops, shared, wrong = set(), set(), set()
    for now, sketch in new.items():
        equal = [was for was in comparable(now) if is_same(was, now)]
        if not equal and int(np.prod(sketch.shape)) >= ENOUGH:  # renamed, or computed elsewhere
            equal = [was for was in by_shape.get(sketch.shape, []) if is_same(was, now)]
        if equal:
            stops.add(now)
            shared.update(equal)
        elif comparable(now):
            wrong.add(now)
    return Agreement(stops, shared, wrong, is_same, lambda now: comparable(now)[0])


def recipe_lines(path: Path, *lines: str, compare: bool = False) -> str:
    """A script that starts beside ``path``, with ``lines``; ``compare`` prints how far the result is off."""
    start = ["from pathlib import Path", "import numpy as np"]
    here = f"here = Path({str(path.parent.resolve())!r})"
    imports = [line for line in lines if line.startswith(("import ", "from "))]
    rest = [line for line in lines if line not in imports]
    end = [
        'expected = np.load(here / "expected.npz")["expected"]',
        "print(np.linalg.norm(actual - expected) / np.linalg.norm(expected))",
    ]
    return "\n".join([*start, *imports, here, *rest, *(end if compare else [])]) + "\n"
