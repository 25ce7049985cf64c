"""How constants of an operation are read: MIL has arrays where Python has numbers and tuples."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgesam_deploy.targets.coreml.interpreter.numerics import Array


def integers(x: Any) -> tuple[int, ...]:
    """A vector, or a scalar as a vector of one."""
    return tuple(int(v) for v in np.asarray(x).reshape(-1))


def integer(x: Any) -> int:
    return integers(x)[0]


def flag(x: Any) -> bool:
    return bool(np.asarray(x).reshape(-1)[0])


def per_channel(x: Array, rank: int) -> Array:
    """(C,) shaped to broadcast against (N, C, ...) of ``rank`` dimensions; a scalar stays one."""
    return x if x.ndim == 0 else x.reshape(-1, *(1,) * (rank - 2))


def positive(axis: Any, rank: int) -> int:
    """An axis counted from the front."""
    return integer(axis) % rank if rank else 0
