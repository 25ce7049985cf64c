"""fp16 on the CPU, emulated: every tensor rounded to fp16, each operator's arithmetic in fp32, islands left alone.

That is what hardware with wide accumulators does, at its best: subnormal numbers are kept, sums are exact to fp32.
A chip that sums in fp16 or flushes subnormal numbers does worse, so a program that is wrong here is wrong there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from edgesam_deploy.passes.program import Program
from edgesam_deploy.precision.walk import MOVES, Walker, called, each_tensor

LABEL = "emulated: every tensor rounded to fp16, arithmetic in fp32"
Watch = Callable[[Node, Any, Any], None]  # node, its value in the fp32 program, its value in the fp16 one


def rounded(x: Tensor) -> Tensor:
    """The nearest fp16 values, as fp32; infinite from 65,520 on."""
    return x.half().float()


class Value:
    """What a node gives, in the fp32 program beside the fp16 one.

    ``wide`` is None where the fp32 program does not run along. ``fine``: as the fp16 program keeps it, which for an
    island, an input or a constant is unrounded; ``half``: as a node outside the islands reads it.
    """

    __slots__ = ("_half", "fine", "wide")

    def __init__(self, wide: Any, fine: Any, half: Any = None) -> None:
        self.wide, self.fine, self._half = wide, fine, half

    @property
    def half(self) -> Any:
        if self._half is None:
            self._half = each_tensor(self.fine, rounded)
        return self._half


class Emulation:
    """A program in fp16, but for the nodes named in ``islands``, which read and write fp32.

    An edge stays fp32 where both its ends are islands; inputs and constants are fp32 to the islands that read them.
    """

    def __init__(self, program: Program, islands: Collection[str] = ()) -> None:
        self.walker = Walker(program)
        self.islands = frozenset(islands)
        self._constants = {name: Value(value, value) for name, value in self.walker.constants.items()}

    def with_islands(self, islands: Collection[str]) -> Emulation:
        """The same program with others; constants are shared."""
        other = Emulation.__new__(Emulation)
        other.walker, other.islands, other._constants = self.walker, frozenset(islands), self._constants
        return other

    def run(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """The outputs as the program gives them: in fp16, or fp32 from an island."""
        with torch.no_grad():
            found = self.walker.run(inputs, lambda n, a, k: self._value(n, a, k, beside=False))
        return [value.fine for value in found]

    def run_beside(self, inputs: Mapping[str, Tensor], watch: Watch) -> list[Tensor]:
        """As ``run``, the fp32 program along with it, which sees the same inputs; ``watch`` sees every call."""

        def compute(node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
            value = self._value(node, args, kwargs, beside=True)
            if node.op == "call_function":
                watch(node, value.wide, value.fine)
            return value

        with torch.no_grad():
            return [value.fine for value in self.walker.run(inputs, compute)]

    def _value(self, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any], *, beside: bool) -> Value:
        if node.op != "call_function":
            return self._constants.get(node.name) or Value(args[0], args[0])
        island = node.name in self.islands
        fine = called(node, *_read((args, kwargs), "fine" if island else "half"))
        wide = called(node, *_read((args, kwargs), "wide")) if beside else None
        if island:
            return Value(wide, fine)
        half = fine if node.target in MOVES else each_tensor(fine, rounded)
        return Value(wide, half, half)


def _read(arguments: Any, which: str) -> Any:
    from torch.fx.node import map_aggregate

    return map_aggregate(arguments, lambda v: getattr(v, which) if isinstance(v, Value) else v)
