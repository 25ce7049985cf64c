"""Strict loading: every tensor has its place, or nothing is loaded and the difference is shown."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from edgesam_deploy.errors import CheckpointError
from edgesam_deploy.model.checkpoint import FEW, shown
from edgesam_deploy.model.layouts import recognise

log = logging.getLogger(__name__)


def load_strict(module: nn.Module, tensors: Mapping[str, Tensor], *, where: str) -> None:
    """Copy ``tensors`` into ``module``: every name, every shape, or nothing.

    Only batch-norm's ``num_batches_tracked`` may be absent, and then everywhere: some exporters drop them, and with a
    fixed momentum nothing depends on them. Raises CheckpointError that begins with ``where`` and lists what is
    missing, unexpected or of another shape by room; the module is then as it was.
    """
    expected = module.state_dict()
    assert not any(tensor.is_meta for tensor in expected.values()), "copying into meta tensors would do nothing"
    state = dict(tensors)
    counters = [name for name in expected if name.endswith("num_batches_tracked")]
    if counters and not any(name.endswith("num_batches_tracked") for name in tensors):
        state.update({name: torch.zeros_like(expected[name]) for name in counters})
        log.info("%s: has no num_batches_tracked; %d counters start at 0", where, len(counters))
    difference = _difference(expected, state)
    if difference:
        found = recognise(tensors)
        looks = f"the file looks like {found.model}: {found.note}" if found.model else found.note
        raise CheckpointError(f"{where}: does not fit this model: {difference}\n  {looks}")
    module.load_state_dict(state)


def _difference(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """Counts of what differs, then per room the first few names; empty when everything fits."""
    rows = [("missing", name, f" {tuple(expected[name].shape)}") for name in expected if name not in found]
    rows += [("unexpected", name, f" {tuple(found[name].shape)}") for name in found if name not in expected]
    for name in expected.keys() & found.keys():
        want, have = expected[name], found[name]
        if want.shape != have.shape:
            rows.append(("wrong shape", name, f": expected {tuple(want.shape)}, found {tuple(have.shape)}"))
        elif want.is_floating_point() != have.is_floating_point():
            rows.append(("wrong type", name, f": expected {want.dtype}, found {have.dtype}"))
    if not rows:
        return ""
    lines = [_counts(rows)]
    for room in sorted({name.split(".")[0] for _, name, _ in rows}):
        inside = [row for row in sorted(rows) if row[1].split(".")[0] == room]
        lines.append(f"  {shown(room)}: {_counts(inside)}")
        for kind in sorted({row[0] for row in inside}):
            same = [shown(name) + detail for k, name, detail in inside if k == kind]
            lines += [f"    {kind:<11} {text}" for text in same[:FEW]]
            lines += [f"    {kind:<11} … and {len(same) - FEW} more"] if len(same) > FEW else []
    return "\n".join(lines)


def _counts(rows: list[tuple[str, str, str]]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(Counter(row[0] for row in rows).items()))
