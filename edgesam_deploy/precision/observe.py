"""Watching a program's tensors while it runs: figures are added up as values pass, none is kept."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from edgesam_deploy.passes.program import Program, operator
from edgesam_deploy.precision.ranges import NORMAL, SMALLEST, Role, TensorRange
from edgesam_deploy.precision.walk import MOVES, Walker, is_real, module_path

aten = torch.ops.aten
SQUARES = {aten.square.default, aten.pow.Tensor_Scalar, aten.mul.Tensor}
DIFFERENCES = {aten.sub.Tensor, aten.add.Tensor}
PRODUCTS = {aten.matmul.default, aten.bmm.default, aten.baddbmm.default}
EXPONENTIALS = {aten.exp.default, aten.exp2.default}
SOFTMAX = aten.softmax.int
NORM = aten.layer_norm.default


class Observer:
    """Figures of every real tensor of a program, over as many runs as it is shown."""

    def __init__(self, program: Program) -> None:
        self.walker = Walker(program)
        self.roles = {node.name: role_of(node) for node in self.walker.nodes if node.op == "call_function"}
        self._found: dict[str, _Figures] = {}

    def run(self, inputs: dict[str, Tensor]) -> list[Tensor]:
        """The program's outputs, after its tensors have been seen."""

        def compute(node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if node.op != "call_function":
                if is_real(args[0]) and (node.name not in self._found or node.name not in self.walker.constants):
                    self._figures(node).add(args[0])
                return args[0]
            value = node.target(*args, **kwargs)  # type: ignore[operator]
            if is_real(value) and node.target not in MOVES:
                figures = self._figures(node)
                figures.add(value)
                figures.look_inside(node, args, value)
            return value

        with torch.no_grad():
            return self.walker.run(inputs, compute)

    def ranges(self) -> tuple[TensorRange, ...]:
        """What was seen, in the order of the graph; weights and inputs first."""
        return tuple(
            self._range(node, self._found[node.name]) for node in self.walker.nodes if node.name in self._found
        )

    def _figures(self, node: Node) -> _Figures:
        return self._found.setdefault(node.name, _Figures())

    def _range(self, node: Node, f: _Figures) -> TensorRange:
        constant = self.walker.names.get(node.name)
        real = max(f.count - f.zeros, 1)
        return TensorRange(
            node.name,
            "input" if node.op == "placeholder" and constant is None else "" if constant else operator(node),
            constant or module_path(node),
            "weight" if constant else self.roles.get(node.name, ""),
            f.shape,
            f.minimum,
            f.maximum,
            f.squares / f.count,
            0.0 if math.isinf(f.smallest) else f.smallest,
            f.subnormal / real,
            f.vanishing / real,
            f.inside,
            f.cancelled,
        )


class _Figures:
    """Sums over the values of one tensor."""

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = ()
        self.minimum, self.maximum, self.smallest = math.inf, -math.inf, math.inf
        self.squares = 0.0
        self.count = self.zeros = self.subnormal = self.vanishing = 0
        self.inside: float | None = None
        self.cancelled: float | None = None

    def add(self, x: Tensor) -> None:
        self.shape = tuple(x.shape)
        for values in in_pieces(x):
            low, high = values.aminmax()
            size = values.abs()
            self.minimum, self.maximum = min(self.minimum, float(low)), max(self.maximum, float(high))
            self.squares += float(torch.linalg.vector_norm(values)) ** 2
            self.count += values.numel()
            below = int((size < NORMAL).sum())
            if below:  # rare, and each of these is another way through the values
                zeros, gone = int((size == 0).sum()), int((size <= SMALLEST / 2).sum())
                self.zeros += zeros
                self.vanishing += gone - zeros
                self.subnormal += below - gone
                size = size.masked_fill_(size == 0, math.inf)
            self.smallest = min(self.smallest, float(size.amin()))

    def look_inside(self, node: Node, args: tuple[Any, ...], value: Tensor) -> None:
        """What the operator itself does to its operands: see ``TensorRange``."""
        if node.target in DIFFERENCES:
            operands = [a for a in args[:2] if is_real(a)]
            if len(operands) == 2:  # a number, or the constant of a residual, cancels nothing by itself
                self._cancelled(max(_rms(a) for a in operands), _rms(value))
        elif node.target == NORM:
            x, axes = args[0], [-1 - axis for axis in range(len(args[1]))]
            centred = x - x.mean(axes, keepdim=True)
            self.inside = max(self.inside or 0.0, float(centred.abs().amax()) ** 2)
            spread = centred.square().mean(axes).sqrt()
            size = x.square().mean(axes).sqrt()
            self._cancelled(float((size / spread.clamp_min(1e-30)).quantile(0.5) if size.numel() < 1 << 24 else 0), 1.0)
        elif node.target == SOFTMAX:
            self.inside = max(self.inside or 0.0, math.exp(min(float(args[0].amax()), 700.0)))

    def _cancelled(self, before: float, after: float) -> None:
        if after:
            self.cancelled = max(self.cancelled or 0.0, before / after)


PIECE = 1 << 20  # values looked at in one go: they stay in the cache, and an attention map of gigabytes is not copied


def in_pieces(x: Tensor) -> tuple[Tensor, ...]:
    """The values in any order, some at a time; without a copy where they lie close together."""
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        x = x.permute(0, 2, 3, 1)
    pieces: tuple[Tensor, ...] = torch.split(x.reshape(-1), PIECE)
    return pieces


def _rms(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x)) / math.sqrt(x.numel())


def role_of(node: Node) -> Role:
    """What a tensor is for, by the operators around it."""
    if node.target == NORM:
        return "norm"
    if node.target == SOFTMAX:
        return "softmax"
    if node.target in EXPONENTIALS:
        return "exponential"
    if _is_square(node) and _leads_to(node, {aten.rsqrt.default, aten.sqrt.default}):
        return "variance"
    if node.target in PRODUCTS and _leads_to(node, {SOFTMAX, *EXPONENTIALS}):
        return "attention logits"
    return "difference" if node.target == aten.sub.Tensor else ""


def _is_square(node: Node) -> bool:
    if node.target not in SQUARES:
        return False
    if node.target == aten.mul.Tensor:
        return node.args[0] is node.args[1]
    return node.target == aten.square.default or bool(node.args[1] == 2)


NEAR = 4  # operators between a square and its root, or a product and its softmax: scale, bias, mean, view
THROUGH = {
    aten.add.Tensor, aten.add.Scalar, aten.amax.default, aten.clamp.default, aten.div.Tensor, aten.linear.default,
    aten.mean.dim, aten.mul.Scalar, aten.mul.Tensor, aten.sub.Tensor, *MOVES,
}  # fmt: skip


def _leads_to(node: Node, ends: set[Any]) -> bool:
    front = {node}
    for _ in range(NEAR):
        front = {reader for n in front for reader in n.users}
        if any(n.target in ends for n in front):
            return True
        front = {n for n in front if n.target in THROUGH}
    return False
