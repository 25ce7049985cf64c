"""What range analysis found, as data: per tensor what was seen, its margins in fp16, and what is a candidate for what.

NumPy and PyTorch are not needed to read it, so casting and quantisation can.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from edgesam_deploy.errors import UsageError

SCHEMA = 1
LARGEST = 65504.0  # of fp16
NORMAL = 2.0**-14  # from here down fp16 loses digits: 6.1e-5
SMALLEST = 2.0**-24  # its last number, 6.0e-8; what is below half of it becomes 0
ROOM = 4.0  # a tensor that comes nearer to the largest number than this factor may overflow on another picture
LOST = 0.1  # share of the non-zero values that may become 0 before it counts
SMALL = 4 * NORMAL  # a tensor whose root mean square is below this loses digits everywhere
TAILED = frozenset({"softmax", "exponential", "weight"})  # small values beside large ones are what they are for
CANCELLED = 32.0  # how much smaller a difference may be than what it is taken of: fp16 keeps 6 of its 11 bits then

Role = Literal["", "variance", "attention logits", "exponential", "softmax", "norm", "difference", "weight"]
Kind = Literal["overflow", "narrow", "inside", "underflow", "absorbed"]


@dataclass(frozen=True)
class TensorRange:
    """One tensor over all pictures and prompts. ``name``: its node's, in the aten program; ``module``: the path in the
    model of what computes it; ``role``: what it is for, where that says how it fails.

    ``smallest``: the least magnitude that is not 0; ``subnormal`` and ``vanishing``: shares of the non-zero values that
    fp16 keeps with fewer digits, and as 0. ``inside``: the largest magnitude within an operator that a runtime without
    it would write as a tensor: a norm's squares, a softmax's exponentials without its maximum. ``cancelled``: how many
    times larger, root mean square, the operands are than their sum or difference, or a norm's input than its spread.
    """

    name: str
    operator: str
    module: str
    role: Role
    shape: tuple[int, ...]
    minimum: float
    maximum: float
    mean_square: float
    smallest: float
    subnormal: float
    vanishing: float
    inside: float | None = None
    cancelled: float | None = None

    @property
    def largest(self) -> float:
        """The largest magnitude."""
        return max(abs(self.minimum), abs(self.maximum))

    @property
    def margin(self) -> float:
        """How many times larger it could become before fp16 overflows; below 1 it does."""
        return LARGEST / self.largest if self.largest else float("inf")

    @property
    def title(self) -> str:
        """Where it is, for people: the module's path and the node."""
        return f"{self.module} ({self.name})" if self.module else self.name


@dataclass(frozen=True)
class Candidate:
    """A tensor that fp16 may not hold, and why."""

    part: str
    tensor: TensorRange
    kind: Kind
    why: str


@dataclass(frozen=True)
class Ranges:
    """All tensors by part, and what they were observed on."""

    model: str
    weights: str  # SHA-256 of the checkpoint, or the seed
    pictures: Mapping[str, str]  # name -> SHA-256 of the pixels
    cases: tuple[str, ...]
    parts: Mapping[str, tuple[TensorRange, ...]]
    target: str | None = None  # whose aten passes the programs went through; None: as captured
    twin: bool = False  # observed on a model of fewer blocks
    schema: int = field(default=SCHEMA)

    def candidates(self) -> list[Candidate]:
        """What fp16 may break, the worst of each kind first."""
        found = [c for part, tensors in self.parts.items() for tensor in tensors for c in _candidates(part, tensor)]
        return sorted(found, key=lambda c: (_ORDER.index(c.kind), -_severity(c)))

    def to_json(self) -> dict[str, Any]:
        """As the file has it."""
        return asdict(self)

    def write(self, path: Path) -> None:
        """Write the file. Raises UsageError where that is refused."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f".{path.name}.partial")
            partial.write_text(json.dumps(self.to_json(), indent=1, sort_keys=True) + "\n")
            partial.replace(path)
        except OSError as e:
            raise UsageError(f"{path}: {e.strerror}; choose another file") from e


def read_ranges(path: str | Path) -> Ranges:
    """A file that ``ranges`` wrote. Raises UsageError for one that is missing, something else, or of another schema."""
    try:
        content = json.loads(Path(path).read_text())
    except OSError as e:
        raise UsageError(f"{path}: {e.strerror}; write it with: edgesam-deploy ranges MODEL -o {path}") from e
    except ValueError as e:
        raise UsageError(f"{path}: no JSON ({e}); write it with: edgesam-deploy ranges MODEL -o {path}") from e
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise UsageError(f"{path}: not a file of ranges of schema {SCHEMA}; write it anew with: edgesam-deploy ranges")
    try:
        parts = {part: tuple(_tensor(row) for row in rows) for part, rows in content["parts"].items()}
        rest = {f.name: content[f.name] for f in fields(Ranges) if f.name not in ("parts", "cases")}
        return Ranges(**rest, parts=parts, cases=tuple(content["cases"]))
    except (KeyError, TypeError, AttributeError) as e:
        raise UsageError(f"{path}: damaged ({e}); write it anew with: edgesam-deploy ranges") from e


def _tensor(row: Mapping[str, Any]) -> TensorRange:
    return TensorRange(**{**row, "shape": tuple(row["shape"])})


_ORDER: tuple[Kind, ...] = ("overflow", "narrow", "inside", "underflow", "absorbed")


def _candidates(part: str, tensor: TensorRange) -> Iterable[Candidate]:
    what = tensor.role or "values"
    if tensor.margin < 1:
        yield Candidate(part, tensor, "overflow", f"{what} reach {tensor.largest:.3g}, fp16 ends at {LARGEST:,.0f}")
    elif tensor.margin < ROOM:
        yield Candidate(part, tensor, "narrow", f"{what} reach {tensor.largest:.3g}: {tensor.margin:.1f} times is room")
    if tensor.inside is not None and tensor.inside > LARGEST / ROOM:
        yield Candidate(part, tensor, "inside", f"{_INSIDE.get(tensor.role, what)} reach {tensor.inside:.3g}")
    if tensor.role not in TAILED and (tensor.vanishing > LOST or 0 < tensor.mean_square < SMALL**2):
        lost = f"{tensor.vanishing:.1%} become 0, {tensor.subnormal:.1%} keep fewer digits"
        yield Candidate(part, tensor, "underflow", f"of the values that are not 0, {lost}")
    if tensor.cancelled is not None and tensor.cancelled > CANCELLED:
        yield Candidate(part, tensor, "absorbed", f"what it is taken of is {tensor.cancelled:.0f} times larger")


_INSIDE: Mapping[str, str] = {
    "norm": "squares, where no operator keeps them inside,",
    "softmax": "exponentials, where the maximum is not subtracted,",
}


def _severity(candidate: Candidate) -> float:
    tensor = candidate.tensor
    if candidate.kind == "inside":
        return tensor.inside or 0.0
    if candidate.kind == "underflow":
        return tensor.vanishing + tensor.subnormal
    return (tensor.cancelled or 0.0) if candidate.kind == "absorbed" else tensor.largest
