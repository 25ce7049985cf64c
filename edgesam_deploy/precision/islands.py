"""The smallest set of nodes that has to stay fp32 so that the rest may be fp16, found by emulation.

Which tensors are to blame is told by one backward pass: to first order the error of the outputs is the sum of what each
tensor's rounding does to them, and the product of a rounding with the gradient of <error, output> is that tensor's
share of the squared error. The shares add up to about 1.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from edgesam_deploy.errors import ParityError
from edgesam_deploy.passes.engine import FEW
from edgesam_deploy.passes.program import Program
from edgesam_deploy.precision.emulate import Emulation, rounded
from edgesam_deploy.precision.walk import MOVES, Walker, called, each_tensor, is_real

Inputs = Mapping[str, Tensor]
Off = Callable[[Node, tuple[Any, ...], dict[str, Any], Tensor], Tensor | None]  # of a value, detached; None: exact


@dataclass(frozen=True)
class Islands:
    """What a search found for one part: ``nodes`` in the order of the graph, the worst relative L2 of an output
    without them and with them, and how many emulations it took.
    """

    part: str
    nodes: tuple[str, ...]
    before: float
    after: float
    tries: int


def shares(program: Program, inputs: Inputs, islands: Collection[str] = ()) -> dict[str, float]:
    """Each tensor's share of the squared error that fp16 makes in the outputs: of nodes, inputs and weights, by name.

    Negative where it cancels others' error. The outputs count alike, each relative to its own ``spread``. Takes the
    memory of a training step. Empty where fp16 overflows: then there is no first order.
    """
    islands = frozenset(islands)

    def off(node: Node, args: tuple[Any, ...], kwargs: dict[str, Any], value: Tensor) -> Tensor | None:
        exact = node.target in MOVES or _stays(node, islands)
        return None if exact else rounded(value) - value

    return shares_of(program, inputs, off)


def shares_of(program: Program, inputs: Inputs, off: Off) -> dict[str, float]:
    """The same for any error: what ``off`` says a node's value is off by."""
    walker = Walker(program)
    tracked: dict[str, tuple[Tensor, Tensor]] = {}

    def compute(node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = called(node, args, kwargs)
        error = off(node, *_detached(args, kwargs), value.detach()) if is_real(value) else None
        if error is None:
            return value
        noise = torch.zeros_like(value, requires_grad=True)
        tracked[node.name] = noise, error
        return value + error + noise

    wide = walker.run(inputs, lambda n, a, k: each_tensor(called(n, a, k), Tensor.detach))
    with torch.enable_grad():
        half = walker.run(inputs, compute)
        real = [index for index, value in enumerate(wide) if is_real(value)]  # a map of classes has no gradient
        if not real:
            return {}
        wide, half = [wide[index] for index in real], [half[index] for index in real]
        weights = [spread(w).square().clamp_min(1e-30) for w in wide]
        errors = [(h - w).detach() for h, w in zip(half, wide, strict=True)]
        size = sum(float(e.square().sum() / w) for e, w in zip(errors, weights, strict=True))
        total = torch.stack([(e * h).sum() / w for e, h, w in zip(errors, half, weights, strict=True)]).sum()
        if not 0 < size < float("inf"):
            return {}
        noises = [noise for noise, _ in tracked.values()]
        found = torch.autograd.grad(total, noises, allow_unused=True)
    return {
        name: 0.0 if g is None else float((g * error).sum()) / size
        for (name, (_, error)), g in zip(tracked.items(), found, strict=True)
    }


def _detached(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    found: tuple[tuple[Any, ...], dict[str, Any]] = each_tensor((args, kwargs), Tensor.detach)
    return found


def _stays(node: Node, islands: frozenset[str]) -> bool:
    """Whether a value is read in fp32 by everybody: its own node and all its readers are islands."""
    own = node.op != "call_function" or node.name in islands
    return own and bool(node.users) and all(n.name in islands for n in node.users)


def find_islands(
    program: Program,
    samples: Sequence[Inputs],
    bound: float,
    kept: Collection[str] = (),
    progress: Callable[[str], None] = lambda _: None,
) -> Islands:
    """The fewest nodes to keep in fp32, beside ``kept``, for outputs within ``bound`` in relative L2 on ``samples``,
    about their means.

    Greedy: first what overflows, then the tensors with the largest shares of the error, as few of them as reach the
    bound (halving), and of those last ones each that is not needed is let go. A tensor is kept whole: the node that
    writes it and all that read it. Raises ParityError where even all of them do not reach it.
    """
    search = _Search(program, samples, frozenset(kept))
    before = search.error(frozenset())
    chosen = firm = search.without_overflow(frozenset())
    if search.error(chosen) > bound:
        progress(f"{program.name}: which tensors lose digits")
        chosen = search.fewest(search.reaching(chosen, bound), firm, bound)
    order = [n.name for n in program.aten.graph.nodes]
    return Islands(program.name, tuple(sorted(chosen, key=order.index)), before, search.error(chosen), search.tries)


class _Search:
    """Emulations of one program under many choices of islands; the fp32 outputs are computed once."""

    def __init__(self, program: Program, samples: Sequence[Inputs], kept: frozenset[str]) -> None:
        self.program, self.samples, self.kept = program, samples, kept
        self.emulation = Emulation(program)
        self.nodes = {n.name: n for n in program.aten.graph.nodes}
        with torch.no_grad():
            self.wide = [self.emulation.walker.run(sample, called) for sample in samples]
        self._errors: dict[frozenset[str], float] = {}

    @property
    def tries(self) -> int:
        return len(self._errors)

    def error(self, chosen: frozenset[str]) -> float:
        """The worst relative L2 of any output; infinite where one is not finite, or says nothing of its sample."""
        if chosen not in self._errors:
            emulation = self.emulation.with_islands(self.kept | chosen)
            halves = [emulation.run(sample) for sample in self.samples]
            pairs = zip(self.wide, halves, strict=True)
            errors = [_relative(h, w) for wide, half in pairs for h, w in zip(half, wide, strict=True)]
            ends = zip(self.wide[0], self.wide[-1], halves[0], halves[-1], strict=True)
            lost = any(e != e for e in errors) or any(_alike(*outputs) for outputs in ends)
            self._errors[chosen] = float("inf") if lost else max(errors)
        return self._errors[chosen]

    def around(self, name: str) -> frozenset[str]:
        """The nodes that keep a tensor in fp32: its own, and those that read it, through what only moves it."""
        own = self.nodes[name]
        found = {own} if own.op == "call_function" else set()
        waiting = list(own.users)
        while waiting:
            node = waiting.pop()
            if node.op == "call_function" and node not in found:
                found.add(node)
                waiting += list(node.users) if node.target in MOVES else []
        return frozenset(n.name for n in found)

    def without_overflow(self, chosen: frozenset[str]) -> frozenset[str]:
        """``chosen`` and around every tensor that overflows, again and again until none does."""
        from edgesam_deploy.precision.watch import Watch

        while True:
            watch = Watch(self.program, self.kept | chosen)
            for sample in self.samples:
                watch.run(dict(sample))
            more = frozenset().union(*(self.around(seen.node.name) for seen in watch.overflows()))
            if more <= chosen:
                return chosen
            chosen |= more

    def reaching(self, chosen: frozenset[str], bound: float) -> frozenset[str]:
        """``chosen`` and around the fewest of the tensors with the largest shares for which the bound is reached."""
        total: dict[str, float] = {}
        for sample in self.samples:
            for name, share in shares(self.program, sample, self.kept | chosen).items():
                total[name] = total.get(name, 0.0) + share
        ranked = sorted(total, key=lambda name: -total[name])

        def first(count: int) -> frozenset[str]:
            return chosen.union(*(self.around(name) for name in ranked[:count]))

        works, fails = len(ranked), 0
        if self.error(first(works)) > bound:
            raise ParityError(
                f"{self.program.name}: relative L2 {self.error(first(works)):.1e} even with every node in fp32, where "
                f"{bound:.1e} is wanted; use --precision fp32"
            )
        while works - fails > 1:
            middle = (works + fails) // 2
            works, fails = (middle, fails) if self.error(first(middle)) <= bound else (works, middle)
        return first(works)

    def fewest(self, chosen: frozenset[str], firm: frozenset[str], bound: float) -> frozenset[str]:
        """``chosen`` without the nodes, ``firm`` ones aside, that the bound does not need."""
        for name in [n for n in self.nodes if n in chosen - firm]:
            if self.error(chosen - {name}) <= bound:
                chosen -= {name}
        return chosen


def _relative(half: Tensor, wide: Tensor) -> float:
    size, error = float(spread(wide)), float(torch.linalg.vector_norm(half - wide))
    return error / size if size else (0.0 if error == 0 else float("inf"))


def _alike(wide: Tensor, other_wide: Tensor, half: Tensor, other_half: Tensor) -> bool:
    """Whether nothing is left of what tells two samples' outputs apart, be it ever so small beside what they share."""
    apart = wide - other_wide
    size = float(torch.linalg.vector_norm(apart))
    return wide.numel() > FEW and 0 < size <= float(torch.linalg.vector_norm(half - other_half - apart))


def spread(x: Tensor) -> Tensor:
    """The size of what an output says: about its mean, since a large constant would hide that the rest is lost; of a
    handful of scores the whole.
    """
    size: Tensor = torch.linalg.vector_norm(x - x.mean() if x.numel() > FEW else x)
    return size
