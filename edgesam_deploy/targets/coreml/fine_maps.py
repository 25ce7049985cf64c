"""Which operations work on the finest maps of a program: where rounding to fp16 costs most."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgesam_deploy.passes.program import Program


def on_fine_maps(operations: Sequence[Any], side: int) -> list[Any]:
    """The MIL operations that read maps (B, C, H, W) of ``side`` pixels and more before any map is coarser, and what
    they alone depend on (gates of one value per channel). Maps that become fine again later do not count.

        image ── conv ── gelu ── conv ──┬── mul ── ... ── add ── conv, stride 2 ── gelu ...
                                        └ mean ... sigmoid ┘                     └ coarser from here on
    """
    steps = []
    for op in operations:
        if op.op_type != "const":
            read = list(_read(op))
            before = [value.op for value in read if value.op is not None]
            steps.append(_Step(op, before, [_side(v) for v in read], [_side(v) for v in op.outputs]))
    return _fine(steps, side)


def nodes_on_fine_maps(program: Program, side: int) -> frozenset[str]:
    """The same of an aten program, by the names of its nodes."""
    steps = []
    for node in program.aten.graph.nodes:
        if node.op == "call_function":
            read, before = [n.meta.get("val") for n in node.all_input_nodes], node.all_input_nodes
            steps.append(_Step(node, before, [_side(v) for v in read], [_side(node.meta.get("val"))]))
    return frozenset(node.name for node in _fine(steps, side))


@dataclass(frozen=True)
class _Step:
    """An operation, those it reads of, and the sides of the maps that it reads and gives (0: no map)."""

    op: Any
    before: Sequence[Any]
    read: Sequence[int]
    given: Sequence[int]


def _fine(steps: Sequence[_Step], side: int) -> list[Any]:
    """Last ones first."""
    behind: set[int] = set()  # operations whose result comes from a coarser map, or is one
    first: list[_Step] = []  # those that read no such result
    needed: set[int] = set()  # what a fine one reads of
    for step in steps:
        late = any(id(op) in behind for op in step.before)
        if late or any(1 < given < side for given in step.given):
            behind.add(id(step.op))
        if not late:
            first.append(step)
    found: list[Any] = []
    for step in reversed(first):
        if any(read >= side for read in step.read) or id(step.op) in needed:
            needed.update(id(op) for op in step.before)
            found.append(step.op)
    return found


def _read(op: Any) -> Iterator[Any]:
    """What an operation reads but for constants."""
    for given in op.inputs.values():
        for value in given if isinstance(given, (list, tuple)) else (given,):
            if value is not None and (value.op is None or value.op.op_type != "const"):
                yield value


def _side(value: Any) -> int:
    """The shorter side of a map; 0 for what is none, or varies in size."""
    shape = getattr(value, "shape", ())
    sides = [size for size in shape[2:] if isinstance(size, int)]
    return min(sides) if len(shape) == 4 and len(sides) == 2 else 0
