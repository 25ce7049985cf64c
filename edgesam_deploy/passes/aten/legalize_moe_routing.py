from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from edgesam_deploy.passes.aten.graph import AtenGraph, shape
from edgesam_deploy.passes.engine import exact
from edgesam_deploy.passes.program import Program

aten = torch.ops.aten
ELSEWHERE = 1e4  # router logits of another group's tokens are lowered to minus this; no logit is as low, fp16 holds it
Layers = tuple[Node, Node, Node, Node]  # w1, b1, w2, b2
ACTIVATIONS = {"relu": aten.relu.default, "gelu": aten.gelu.default}


@exact
def legalize_moe_routing(program: Program) -> int:
    """Write mixtures of experts without picking tokens: every shape is known, whatever the router says.

        token_choice    x ── gate ── rank ── softmax of the chosen ── sum over e of weight_e expert_e(x) ── y
        expert_choice   x ── router ── TopK of Cmax ── one-hot (E Cmax, T) @ x ── experts ── one-hot^T @ . ── y

    Why: which tokens an expert sees depends on the data. Traced through, the sample's choice is baked in, and exporters
    drop the other experts without a word: 1.1e-1 off on a second picture. Here a token's rank among the experts is
    counted by comparisons and sums, equal logits by the lower index as in the operator; there is no NonZero, Gather or
    Scatter, and TopK only where experts choose. The price: each expert sees all tokens, 4 times the work for 4 of 16,
    or as many as the fullest group could bring it. Exact up to the order of fp32 sums. Site = an operator.
    """
    rules: dict[str, Callable[..., Node]] = {"token_choice": _token_choice, "expert_choice": _expert_choice}
    sites = 0
    with AtenGraph(program) as graph:
        shared: dict[str, Node] = {}
        for node in list(graph.graph.nodes):
            name = _routing_name(node)
            if name not in rules or not isinstance(shape(node)[0], int):
                continue  # an unknown number of tokens has no constant to dispatch by
            with graph.graph.inserting_before(node):
                result = rules[name](_Writer(graph, shared, node), **_arguments(node))
            graph.replace(node, result)
            sites += 1
    return sites


def _routing_name(node: Node) -> str:
    """The operator's name if it is one of this package; it belongs to the model, which a pass does not import."""
    package, _, name = str(node.target).partition(".")
    return name.partition(".")[0] if node.op == "call_function" and package == "edgesam_deploy" else ""


def _arguments(node: Node) -> dict[str, Any]:
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    return dict(zip(names, node.args, strict=False)) | dict(node.kwargs)


class _Writer:
    """Short names for the operators below, and constants that all mixtures of a program share."""

    def __init__(self, graph: AtenGraph, shared: dict[str, Node], node: Node) -> None:
        self.call = graph.call
        self.graph, self.shared = graph, shared
        self.dtype = node.meta["val"].dtype

    def constant(self, name: str, value: Tensor) -> Node:
        if name not in self.shared:
            self.shared[name] = self.graph.add_constant(name, value)
        return self.shared[name]

    def number(self, truth: Node) -> Node:
        """1 and 0 for true and false."""
        return self.call(aten.to.dtype, truth, self.dtype)

    def piece(self, x: Node, dim: int, index: int, size: int = 1) -> Node:
        return self.call(aten.slice.Tensor, x, dim, index * size, (index + 1) * size)

    def total(self, terms: Sequence[Node]) -> Node:
        result = terms[0]
        for term in terms[1:]:
            result = self.call(aten.add.Tensor, result, term)
        return result

    def best(self, logits: Node, chosen: int) -> Node:
        """(T, E) -> (T, E): 1 for the ``chosen`` largest of a row, the lower index first among equals, else 0."""
        count = shape(logits)[1]
        below = torch.ones(count, count).tril(-1).to(self.dtype)  # [own, other]: other < own
        own, others = self.call(aten.unsqueeze.default, logits, 2), self.call(aten.unsqueeze.default, logits, 1)
        larger = self.number(self.call(aten.gt.Tensor, others, own))
        equal = self.number(self.call(aten.eq.Tensor, others, own))
        first = self.call(aten.mul.Tensor, equal, self.constant(f"index_below_{count}", below))
        rank = self.call(aten.sum.dim_IntList, self.call(aten.add.Tensor, larger, first), [2])
        return self.number(self.call(aten.lt.Scalar, rank, chosen))

    def softmax_where(self, logits: Node, largest: Node, mask: Node) -> Node:
        """(N, M) -> (N, M): softmax of the masked entries of each row, 0 elsewhere and in a row with none.

        ``largest`` is the row's largest masked logit if it has any: its term is 1, so the sum is at least 1 there.
        """
        powers = self.call(aten.exp.default, self.call(aten.sub.Tensor, logits, largest))
        powers = self.call(aten.mul.Tensor, powers, mask)
        total = self.call(aten.clamp_min.default, self.call(aten.sum.dim_IntList, powers, [1], True), 1.0)
        return self.call(aten.div.Tensor, powers, total)

    def expert(self, x: Node, w1: Node, b1: Node, w2: Node, b2: Node, activation: str) -> Node:
        hidden = self.call(ACTIVATIONS[activation], self.call(aten.linear.default, x, w1, b1))
        return self.call(aten.linear.default, hidden, w2, b2)


def _token_choice(
    write: _Writer, x: Node, gate_weight: Node, gate_bias: Node | None, w1: list[Node], b1: list[Node], w2: list[Node],
    b2: list[Node], chosen: int, activation: str,
) -> Node:  # fmt: skip
    """x (T, D) -> (T, D')."""
    logits = write.call(aten.linear.default, x, gate_weight, gate_bias)
    largest = write.call(aten.amax.default, logits, [1], True)
    weights = write.softmax_where(logits, largest, write.best(logits, chosen))
    terms = []
    for expert, layers in enumerate(zip(w1, b1, w2, b2, strict=True)):
        value = write.expert(x, *layers, activation)
        terms.append(write.call(aten.mul.Tensor, value, write.piece(weights, 1, expert)))
    return write.total(terms)


def _expert_choice(
    write: _Writer, x: Node, group_router: Node, routers: list[Node], w1: list[Node], b1: list[Node], w2: list[Node],
    b2: list[Node], shards: int, capacity: float, groups_chosen: int, activation: str,
) -> Node:  # fmt: skip
    """x (T, D) -> (T, D), group by group."""
    member = write.best(write.call(aten.linear.default, x, group_router), groups_chosen)
    layers: list[Layers] = list(zip(w1, b1, w2, b2, strict=True))
    terms = []
    for group, router in enumerate(routers):
        count = shape(router)[0]
        own, layers = layers[: count * shards], layers[count * shards :]
        needed = _members_needed(shape(x)[0], capacity, count)
        if not needed:
            continue
        thresholds = torch.tensor([needed]).to(write.dtype)
        filled_from = write.constant(f"members_needed_{shape(x)[0]}_{count}_{capacity}", thresholds)
        terms.append(_one_group(write, x, write.piece(member, 1, group), router, own, filled_from, activation))
    return write.total(terms) if terms else write.call(aten.zeros_like.default, x)


def _members_needed(tokens: int, capacity: float, count: int) -> list[int]:
    """Per slot of an expert, the size from which on its group fills it; as many slots as ``tokens`` members would fill.

    A group of n gives an expert min(n, int(capacity n / count)) tokens, in Python's arithmetic. That grows with n, so
    [slot < taken] is [n >= needed[slot]]: no rounding at run time that could fall on the other side.
    """
    needed: list[int] = []
    for members in range(tokens + 1):
        taken = min(members, int(capacity * members / count))
        needed += [members] * (taken - len(needed))
    return needed


def _one_group(
    write: _Writer, x: Node, member: Node, router: Node, layers: list[Layers], filled_from: Node,
    activation: str,
) -> Node:  # fmt: skip
    """What the experts of one group add to all tokens, (T, D); ``member`` (T, 1) is 1 for the tokens of the group."""
    tokens, count, slots = shape(x)[0], shape(router)[0], shape(filled_from)[1]
    logits = write.call(aten.linear.default, x, router)
    outside = write.call(aten.mul.Tensor, write.call(aten.sub.Tensor, member, 1.0), ELSEWHERE)
    logits = write.call(aten.add.Tensor, write.call(aten.mul.Tensor, logits, member), outside)
    # members first; ONNX orders equal logits by index as the operator does, torch.topk in a way it does not specify
    best = write.call(aten.topk.default, write.call(aten.transpose.int, logits, 0, 1), slots)
    values, order = (write.call(operator.getitem, best, i) for i in range(2))  # (E, slots)
    size = write.call(aten.sum.dim_IntList, member, [0], True)
    taken = write.number(write.call(aten.ge.Tensor, size, filled_from))
    weights = write.softmax_where(values, write.piece(values, 1, 0), taken)
    rows = count * slots
    index = write.constant(f"index_of_{tokens}", torch.arange(tokens)[None])
    picks = write.call(aten.eq.Tensor, write.call(aten.reshape.default, order, [rows, 1]), index)
    picks = write.number(picks)  # (E slots, T)
    inputs = write.call(aten.matmul.default, picks, x)
    results = []
    shards = len(layers) // count
    for expert in range(count):
        seen = write.piece(inputs, 0, expert, slots)
        parts = [write.expert(seen, *own, activation) for own in layers[expert * shards : (expert + 1) * shards]]
        results.append(write.call(aten.cat.default, parts, 1) if shards > 1 else parts[0])
    outputs = write.call(aten.cat.default, results) if count > 1 else results[0]
    outputs = write.call(aten.mul.Tensor, outputs, write.call(aten.reshape.default, weights, [rows, 1]))
    return write.call(aten.matmul.default, write.call(aten.transpose.int, picks, 0, 1), outputs)
