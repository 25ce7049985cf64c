from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from itertools import product
from math import pi, sqrt
from typing import Any

import torch
from torch.fx import Node

from edgesam_deploy.passes.aten.graph import AtenGraph, argument, only_reader, same_shape
from edgesam_deploy.passes.engine import exact
from edgesam_deploy.passes.program import Program

aten = torch.ops.aten
Polynomial = dict[tuple[int, ...], float]  # the variables' exponents -> coefficient
DEPTH = 8  # operators that a spelling of GELU may stack
DIGITS = 1e-5  # relative: 0.7071 is sqrt(1/2) to all that matters, it moves GELU by 3e-6 at most
BEND: Polynomial = {(1,): sqrt(0.5)}
TANH_BEND: Polynomial = {(1,): sqrt(2 / pi), (3,): 0.044715 * sqrt(2 / pi)}
KINDS: dict[Any, tuple[str, Polynomial]] = {
    aten.erf.default: ("none", BEND),
    aten.special_erf.default: ("none", BEND),
    aten.tanh.default: ("tanh", TANH_BEND),
}
GELU: Polynomial = {(1, 0): 0.5, (1, 1): 0.5}  # of x and the bend


@exact
def fuse_gelu(program: Program) -> int:
    """Put back the one GELU that was spelled out with erf or tanh.

        0.5 * x * (1 + erf(x / sqrt 2)) ── y        x ── gelu ── y
        0.5 * x * (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) ── y        x ── gelu(tanh) ── y

    Why: five to nine operators over the widest maps of the network where runtimes have one kernel. The spelling does
    not matter: both sides are compared as polynomials of x and of the bent value. Exact; constants may be written
    with four digits (0.7071).
    """
    sites = 0
    with AtenGraph(program) as graph:
        for bend in graph.calls(*KINDS):
            found = spelled_gelu(graph, bend)
            if found is not None:
                x, last = found
                with graph.graph.inserting_before(last):
                    gelu = graph.call(aten.gelu.default, x, approximate=KINDS[bend.target][0])
                graph.replace(last, gelu)
                sites += 1
    return sites


def spelled_gelu(graph: AtenGraph, bend: Node) -> tuple[Node, Node] | None:
    """x and the node that is its GELU, spelled out around ``bend``, an erf or tanh."""
    inner = bend.args[0]
    assert isinstance(inner, Node)
    for x in behind(inner):
        if not _close(polynomial(graph, inner, (x,)), KINDS[bend.target][1]):
            continue
        node = bend
        while only_reader(node):
            node = next(iter(node.users))
            form = polynomial(graph, node, (x, bend))
            if form is None:
                break
            if _close(form, GELU) and same_shape(node, x) and node.meta["val"].dtype == x.meta["val"].dtype:
                return x, node
    return None


def behind(node: Node) -> list[Node]:
    """The nodes that ``node`` is computed from by arithmetic of at most DEPTH operators, itself included."""
    found = {node: None}
    level = [node]
    for _ in range(DEPTH):
        level = [a for n in level if n.target in _ARITHMETIC for a in n.all_input_nodes if a not in found]
        found |= dict.fromkeys(level)
    return list(found)


def polynomial(graph: AtenGraph, node: Any, variables: tuple[Node, ...], depth: int = DEPTH) -> Polynomial | None:
    """``node`` as a polynomial of ``variables``, or None where it is not one."""
    if isinstance(node, (int, float)):
        return {(0,) * len(variables): float(node)}
    if node in variables:
        return {tuple(int(node is v) for v in variables): 1.0}
    value = graph.constant(node)
    if value is not None and value.numel() == 1:
        return polynomial(graph, value.item(), variables)
    if not isinstance(node, Node) or node.target not in _ARITHMETIC or depth == 0 or argument(node, 2, "alpha", 1) != 1:
        return None
    operands = [polynomial(graph, a, variables, depth - 1) for a in node.args[:2]]
    known = [o for o in operands if o is not None]
    return _ARITHMETIC[node.target](*known) if len(known) == len(operands) else None


def _sum(a: Polynomial, b: Polynomial, sign: float = 1.0) -> Polynomial:
    total = defaultdict(float, a)
    for exponents, coefficient in b.items():
        total[exponents] += sign * coefficient
    return {e: c for e, c in total.items() if c != 0}


def _product(a: Polynomial, b: Polynomial) -> Polynomial:
    total: Polynomial = defaultdict(float)
    for (e, c), (f, d) in product(a.items(), b.items()):
        total[tuple(i + j for i, j in zip(e, f, strict=True))] += c * d
    return dict(total)


def _number(a: Polynomial) -> float | None:
    return next(iter(a.values())) if len(a) == 1 and not any(next(iter(a))) else None


def _quotient(a: Polynomial, b: Polynomial) -> Polynomial | None:
    divisor = _number(b)
    return {e: c / divisor for e, c in a.items()} if divisor else None


def _power(a: Polynomial, b: Polynomial) -> Polynomial | None:
    if _number(b) not in (2, 3):
        return None
    square = _product(a, a)
    return square if _number(b) == 2 else _product(square, a)


_ARITHMETIC: dict[Any, Callable[..., Polynomial | None]] = {
    aten.add.Tensor: _sum,
    aten.add.Scalar: _sum,
    aten.sub.Tensor: lambda a, b: _sum(a, b, -1.0),
    aten.rsub.Scalar: lambda a, b: _sum(b, a, -1.0),
    aten.mul.Tensor: _product,
    aten.mul.Scalar: _product,
    aten.div.Tensor: _quotient,
    aten.div.Scalar: _quotient,
    aten.pow.Tensor_Scalar: _power,
    aten.square.default: lambda a: _product(a, a),
    aten.neg.default: lambda a: {e: -c for e, c in a.items()},
}


def _close(found: Polynomial | None, wanted: Polynomial) -> bool:
    return (
        found is not None
        and found.keys() == wanted.keys()
        and all(abs(found[e] - c) <= DIGITS * abs(c) for e, c in wanted.items())
    )
