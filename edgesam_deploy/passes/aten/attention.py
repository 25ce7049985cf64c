"""Recognising multi-head attention between few tokens and many: what the passes that rewrite it share.

q ── linear ── split ── (x scale) ──┐
k ── linear ── split ───────────────@── (+ bias) ── softmax ──@── join ── linear ── out
v ── linear ── split ─────────────────────────────────────────┘
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from edgesam_deploy.passes.aten.graph import AtenGraph, argument, only_reader, shape

aten = torch.ops.aten
MANY = 8  # keys per query, or queries per key, from which one side is "the few tokens" and the other "the many"


@dataclass(frozen=True)
class Projection:
    """A linear layer whose rows (B, T, I) are split to ``heads`` (B, h, T, d)."""

    source: Node  # (B, T, C)
    weight: Tensor  # (I, C)
    bias: Tensor | None  # (I,)
    heads: Node
    name: str

    def per_head(self, count: int) -> Tensor:
        """The weight as (h, d, C)."""
        return self.weight.unflatten(0, (count, -1))  # type: ignore[no-any-return, no-untyped-call]


@dataclass(frozen=True)
class Attention:
    """One site. ``few``: the projection of the few tokens that meets ``many``'s in the scores."""

    q: Projection
    k: Projection
    v: Projection
    heads: int
    scale: float
    bias: Node | None  # added to the scores (B, h, Q, K), of four axes
    out: Node  # the last linear layer
    out_weight: Tensor  # (C', I)
    out_bias: Tensor | None

    @property
    def many_keys(self) -> bool:
        """Whether the many are the keys (tokens to image), not the queries (image to tokens)."""
        return _tokens(self.k) > _tokens(self.q)

    @property
    def few(self) -> Projection:
        return self.q if self.many_keys else self.k

    @property
    def many(self) -> Projection:
        return self.k if self.many_keys else self.q

    def out_per_head(self) -> Tensor:
        """The output projection as (h, d, C')."""
        return self.out_weight.t().unflatten(0, (self.heads, -1))  # type: ignore[no-any-return, no-untyped-call]


def cross_attentions(graph: AtenGraph) -> Iterator[Attention]:
    """Every attention whose one side has ``MANY`` times the tokens of the other, in order."""
    for out in graph.calls(aten.linear.default):
        site = _match(graph, out)
        if site is not None and lopsided(*(shape(p.source)[1] for p in (site.q, site.k))):
            yield site


def _tokens(projection: Projection) -> float:
    """How many; a symbolic count is that of prompt tokens, which are the few."""
    count = shape(projection.source)[1]
    return count if isinstance(count, int) else 0


def lopsided(queries: Any, keys: Any) -> bool:
    known = [n for n in (queries, keys) if isinstance(n, int)]
    return len(known) == 1 or (len(known) == 2 and max(known) >= MANY * min(known))


def _match(graph: AtenGraph, out: Node) -> Attention | None:
    found = operands(out)
    if found is None:
        return None
    q, scale = found.q, 1.0
    if q.target == aten.mul.Tensor and only_reader(q) and isinstance(q.args[1], float):
        q, scale = q.args[0], q.args[1]  # type: ignore[assignment]
    queries, keys, values = (_projection(graph, node) for node in (q, swapped(found.k, {2, 3}), found.v))
    layer = weights(graph, out)
    if layer is None or queries is None or keys is None or values is None:
        return None
    heads = {shape(p.heads)[1] for p in (queries, keys, values)}
    return Attention(queries, keys, values, heads.pop(), scale, found.bias, out, *layer) if len(heads) == 1 else None


@dataclass(frozen=True)
class Operands:
    """What an attention multiplies, before anything is known of where it comes from: q @ k (+ bias), softmax, @ v."""

    q: Node
    k: Node  # transposed already
    v: Node
    bias: Node | None  # of four axes


def operands(out: Node) -> Operands | None:
    """Of the attention whose joined heads the linear layer ``out`` reads; None where it reads none."""
    mixed = swapped(_flattened(out.args[0]), {1, 2})
    softmax, v = _arguments(mixed, aten.matmul.default)
    scores = _source_of_softmax(softmax)
    bias = None
    if scores is not None and scores.target == aten.add.Tensor and scores.kwargs.get("alpha", 1) == 1:
        scores, bias = _arguments(scores, aten.add.Tensor)
        if bias is None or len(shape(bias)) != 4:
            return None
    q, k = _arguments(scores, aten.matmul.default)
    return None if q is None or k is None or v is None else Operands(q, k, v, bias)


def _read(node: Any, operator: Any) -> Node | None:
    """What ``node`` reads, where it is an ``operator`` that has one reader."""
    if not isinstance(node, Node) or node.target != operator or not only_reader(node):
        return None
    source = node.args[0]
    return source if isinstance(source, Node) else None


def swapped(node: Any, axes: set[int]) -> Node | None:
    """What ``node``, of four axes, is the transpose of."""
    source = _read(node, aten.transpose.int)
    if source is None or len(shape(source)) != 4 or {int(a) % 4 for a in node.args[1:]} != axes:
        return None
    return source


def _flattened(node: Any) -> Node | None:
    """What ``node`` (B, T, h d) joins the last two of four axes of."""
    source = _read(node, aten.flatten.using_ints)
    if source is None or argument(node, 1, "start_dim", 0) != 2 or argument(node, 2, "end_dim", -1) not in (-1, 3):
        return None
    return source


def _arguments(node: Node | None, operator: Any) -> tuple[Node | None, Node | None]:
    """Both arguments of ``operator`` where ``node`` is one and nothing else reads it."""
    if node is None or node.target != operator or not only_reader(node):
        return None, None
    first, second = node.args[:2]
    nodes = isinstance(first, Node) and isinstance(second, Node)
    return (first, second) if nodes else (None, None)  # type: ignore[return-value]


def _source_of_softmax(node: Node | None) -> Node | None:
    if node is None or node.target != aten.softmax.int or not only_reader(node):
        return None
    plain = node.args[1] in (-1, 3) and argument(node, 2, "dtype") is None
    return node.args[0] if plain else None  # type: ignore[return-value]


def _projection(graph: AtenGraph, heads: Node | None) -> Projection | None:
    """``heads`` = transpose(unflatten(linear, -1, [h, d]), 1, 2)."""
    layer = _source_of_split(heads)
    if layer is None or layer.target != aten.linear.default or not only_reader(layer):
        return None
    found, source = weights(graph, layer), layer.args[0]
    if found is None or len(shape(source)) != 3:
        return None
    assert isinstance(source, Node)
    assert heads is not None
    return Projection(source, *found, heads, graph.target(layer.args[1]).removesuffix(".weight"))


def _source_of_split(heads: Node | None) -> Node | None:
    split = swapped(heads, {1, 2})
    if split is None or argument(split, 1, "dim") not in (-1, 2):
        return None
    return _read(split, aten.unflatten.int)


def weights(graph: AtenGraph, layer: Node) -> tuple[Tensor, Tensor | None] | None:
    """Weight and bias of a linear layer, None where either is computed."""
    node = argument(layer, 2, "bias")
    weight, bias = graph.constant(layer.args[1]), graph.constant(node)
    return None if weight is None or (node is not None and bias is None) else (weight, bias)


class AttentionWriter:
    """What the two rewrites of a site have in common: the sums and constants around its products."""

    def __init__(self, graph: AtenGraph, site: Attention) -> None:
        self.graph, self.site = graph, site

    def constant(self, projection: Projection, what: str, value: Tensor) -> Node:
        return self.graph.add_constant(f"{projection.name}_{what}", value)

    def call(self, operator: Any, *args: Any) -> Node:
        return self.graph.call(operator, *args)

    def attended(self, scores: Node) -> Node:
        """Softmax over the keys of ``scores`` (B, h, few, many), bias included."""
        site = self.site
        if site.many_keys:  # the projection's bias adds one number to all scores of a query: softmax does not see it
            scores = scores if site.bias is None else self.call(aten.add.Tensor, scores, site.bias)
            return self.call(aten.softmax.int, scores, 3)
        column = None if site.bias is None else self.call(aten.transpose.int, site.bias, 2, 3)
        if site.q.bias is not None:  # of the many queries: one number per key, the key's product with it
            queried = (site.q.bias.double() * site.scale).unflatten(0, (site.heads, -1)).unsqueeze(2)  # type: ignore[no-untyped-call]
            bias = self.constant(site.q, "bias_per_head", queried.to(site.q.bias.dtype))
            own = self.call(aten.matmul.default, site.k.heads, bias)  # (B, h, few, 1)
            column = own if column is None else self.call(aten.add.Tensor, own, column)
        scores = scores if column is None else self.call(aten.add.Tensor, scores, column)
        return self.call(aten.softmax.int, scores, 2)

    def joined(self, mixed: Node) -> Node:
        """Heads (B, h, few, d) through the output projection; the values' bias comes out as it is, rows sum to 1."""
        site = self.site
        bias = site.out_bias
        if site.v.bias is not None:
            moved = site.out_weight.double() @ site.v.bias.double()
            bias = (moved if bias is None else moved + bias.double()).to(site.out_weight.dtype)
        offset = None if bias is None else self.constant(site.v, "moved_bias", bias)
        rows = self.call(aten.flatten.using_ints, self.call(aten.transpose.int, mixed, 1, 2), 2)
        return self.call(aten.linear.default, rows, site.out.args[1], offset)
