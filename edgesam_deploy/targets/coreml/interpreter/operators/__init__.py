"""The operators of MIL by name: plain functions whose parameters are those of the specification.

A function takes arrays (and strings) and gives an array, or a tuple of them; floats come and go as fp32. Parameters
without a default are required. Rounding to a declared fp16 is the runner's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from inspect import signature
from typing import Any

from edgesam_deploy.targets.coreml.interpreter.operators import (
    activation,
    compression,
    convolution,
    elementwise,
    indexing,
    layout,
    linear,
    reduction,
    resizing,
)

OPERATORS: Mapping[str, Callable[..., Any]] = {
    **activation.OPERATORS,
    **compression.OPERATORS,
    **convolution.OPERATORS,
    **elementwise.OPERATORS,
    **indexing.OPERATORS,
    **layout.OPERATORS,
    **linear.OPERATORS,
    **reduction.OPERATORS,
    **resizing.OPERATORS,
}
MOVES = frozenset(layout.OPERATORS) | {"gather", "gather_along_axis", "gather_nd", "select", "relu", "band_part"}


@cache
def parameters(kind: str) -> tuple[frozenset[str], frozenset[str]]:
    """The names that an operator knows, and those of them that it needs."""
    known = signature(OPERATORS[kind]).parameters
    return frozenset(known), frozenset(n for n, p in known.items() if p.default is p.empty)
