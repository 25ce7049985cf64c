"""Watching fp16 beside fp32: where values overflow, where they stop depending on the input, how the error grows."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from edgesam_deploy.passes.program import Program
from edgesam_deploy.precision.emulate import Emulation
from edgesam_deploy.precision.observe import role_of
from edgesam_deploy.precision.ranges import LARGEST, Role
from edgesam_deploy.precision.walk import is_real, module_path

PICTURES = frozenset({"normal", "scene", "image"})  # roles of inputs that differ from picture to picture
FEW = 16  # values: so few may well agree by chance


@dataclass
class Seen:
    """One tensor over all runs, ``wide`` in the fp32 program and ``half`` in the fp16 one.

    ``overflow``: the largest magnitude in fp32 where fp16 gave infinity for finite operands; 0 where it did not.
    """

    node: Node
    varies: bool  # it depends on the picture, and has values enough to tell
    prints: tuple[set[tuple[float, ...]], set[tuple[float, ...]]] = field(default_factory=lambda: (set(), set()))
    flat: list[bool] = field(default_factory=lambda: [True, True])  # all values equal, in every run
    overflow: float = 0.0
    where: str = ""
    error: float = 0.0  # of the fp16 program's tensor, relative L2, the worst run

    @property
    def role(self) -> Role:
        return role_of(self.node)

    @property
    def title(self) -> str:
        """Where it is, for people: the module's path and the node."""
        path = module_path(self.node)
        return f"{path} ({self.node.name})" if path else self.node.name

    def dead(self, half: bool) -> bool:
        """Whether it is one value, or the same in every run."""
        return self.varies and (self.flat[half] or len(self.prints[half]) == 1)


class Watch:
    """A program in emulated fp16 beside fp32; ``run`` gives the fp16 outputs and takes note of every tensor."""

    def __init__(self, program: Program, islands: Collection[str] = ()) -> None:
        self.program = program
        self.emulation = Emulation(program, islands)
        self.seen: dict[str, Seen] = {}
        self.runs = 0
        self.where = ""  # what is run, for messages; set by the caller
        self._infinite: set[str] = set()
        self._varying = _readers_of(program, PICTURES)

    def run(self, inputs: dict[str, Tensor]) -> list[Tensor]:
        """The outputs in fp16."""
        self.runs += 1
        self._infinite.clear()
        return self.emulation.run_beside(inputs, self._see)

    def _see(self, node: Node, wide: Any, half: Any) -> None:
        if not is_real(wide) or not is_real(half):
            return
        if node.name not in self.seen:
            self.seen[node.name] = Seen(node, node.name in self._varying and wide.numel() >= FEW)
        seen = self.seen[node.name]
        low, high = (float(v) for v in half.aminmax())
        wide_low, wide_high = (float(v) for v in wide.aminmax())
        for which, (x, a, b) in enumerate(((wide, wide_low, wide_high), (half, low, high))):
            seen.flat[which] &= a == b
            seen.prints[which].add((a, b, float(x.mean())))
        if not math.isfinite(low + high):
            if math.isfinite(wide_low + wide_high):
                self._overflowed(seen, max(-wide_low, wide_high))
            self._infinite.add(node.name)
            seen.error = math.inf
            return
        size = float(torch.linalg.vector_norm(wide))
        seen.error = max(seen.error, float(torch.linalg.vector_norm(half - wide)) / size if size else 0.0)

    def _overflowed(self, seen: Seen, largest: float) -> None:
        """Only where it begins: what reads an infinite value is not to blame."""
        if not any(n.name in self._infinite for n in seen.node.all_input_nodes) and largest > seen.overflow:
            seen.overflow, seen.where = largest, self.where

    def overflows(self) -> list[Seen]:
        """The tensors that overflow, in the order of the graph."""
        return [seen for seen in self.seen.values() if seen.overflow]

    def killers(self, *, half: bool) -> list[Seen]:
        """For each output that no longer depends on the picture, the tensor that stops depending on it first; of the
        fp16 program, or of the fp32 one, whose fault is the checkpoint's.
        """
        if self.runs < 2:
            return []
        (output,) = (n for n in self.program.aten.graph.nodes if n.op == "output")
        ends = [self.seen[n.name] for n in output.all_input_nodes if n.name in self.seen]
        found = [self._killer(end, half) for end in ends if end.dead(half)]
        return list({seen.node.name: seen for seen in found}.values())

    def _killer(self, seen: Seen, half: bool) -> Seen:
        while True:
            read = (self.seen.get(n.name) for n in seen.node.all_input_nodes)
            earlier = next((s for s in read if s is not None and s.dead(half)), None)
            if earlier is None:
                return seen
            seen = earlier

    def dying(self) -> list[Seen]:
        """Tensors that are alive in fp32 and dead in fp16, for operands that are alive in both; in order."""
        if self.runs < 2:
            return []
        dead = {name for name, s in self.seen.items() if s.dead(True) and not s.dead(False)}
        found = (self.seen[name] for name in self.seen if name in dead)
        return [s for s in found if not any(n.name in dead for n in s.node.all_input_nodes)]


def _readers_of(program: Program, roles: Collection[str]) -> set[str]:
    """The nodes that depend on inputs of these roles."""
    found = {spec.name for spec in program.inputs if spec.role in roles}
    for node in program.aten.graph.nodes:
        if any(n.name in found for n in node.all_input_nodes):
            found.add(node.name)
    return found


def largest_errors(seen: Iterable[Seen], count: int) -> list[Seen]:
    """The tensors whose error is most above that of what they read: where digits are lost."""
    table = {s.node.name: s for s in seen}

    def growth(s: Seen) -> float:
        before = max((table[n.name].error for n in s.node.all_input_nodes if n.name in table), default=0.0)
        return s.error - before if math.isfinite(s.error) else 0.0

    return sorted(table.values(), key=growth, reverse=True)[:count]


def overflow_sentence(seen: Seen) -> str:
    """What overflowed, by how much, where."""
    what = {"variance": "the squares of a norm reach", "attention logits": "attention logits reach",
            "exponential": "exponentials reach"}.get(seen.role, "values reach")  # fmt: skip
    return f"{seen.title}: {what} {seen.overflow:.3g} where fp16 ends at {LARGEST:,.0f}, on {seen.where}"
