"""Which MIL operations work on the picture's finest maps: the beginning of an encoder, down to where it is coarser."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any


def on_fine_maps(operations: Sequence[Any], side: int) -> list[Any]:
    """The operations that read maps (B, C, H, W) of ``side`` pixels and more before any map is coarser, and what they
    alone depend on (gates of one value per channel). Maps that become fine again later do not count.

        image ── conv ── gelu ── conv ──┬── mul ── ... ── add ── conv, stride 2 ── gelu ...
                                        └ mean ... sigmoid ┘                     └ coarser from here on
    """
    behind: set[int] = set()  # operations whose result comes from a coarser map, or is one
    first: list[Any] = []  # those that read no such result
    fine: set[int] = set()
    for op in operations:
        if op.op_type == "const":
            continue
        read = list(_read(op))
        late = any(value.op is not None and id(value.op) in behind for value in read)
        if late or any(1 < _side(value) < side for value in op.outputs):
            behind.add(id(op))
        if not late:
            first.append(op)
            if any(_side(value) >= side for value in read):
                fine.add(id(op))
    found: list[Any] = []
    for op in reversed(first):
        if id(op) in fine or any(id(reader) in fine for value in op.outputs for reader in value.child_ops):
            fine.add(id(op))
            found.append(op)
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
