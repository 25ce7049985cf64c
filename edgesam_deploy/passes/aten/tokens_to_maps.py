from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from edgesam_deploy.passes.aten.decompose_layer_norm_2d import to_first, to_last
from edgesam_deploy.passes.aten.graph import AtenGraph, argument, shape
from edgesam_deploy.passes.engine import exact
from edgesam_deploy.passes.program import Program

aten = torch.ops.aten
log = logging.getLogger(__name__)
ELEMENTWISE = {
    aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.rsub.Scalar, aten.relu.default,
    aten.gelu.default, aten.tanh.default, aten.sigmoid.default,
}  # fmt: skip
TOKENS, ROW = 3, 2  # axes of (B, T, C), and of (B, C), which is one token


@exact
def tokens_to_maps(program: Program) -> int:
    """Keep tokens as maps one row high, the channels first, from end to end: linear layers are 1x1 convolutions.

        tokens (B, T, C) ── linear ── split, transpose (B, h, T, d) ── @ ── softmax ── @ ── transpose, join ── linear
        map (B, C, 1, T) ── conv 1x1 ── view (B, h, d, T) ── @ ── softmax ── @ ── view ── conv 1x1

    Why: Apple's Neural Engine computes on maps with the channels first (Apple, "Deploying Transformers on the Apple
    Neural Engine", 2022). Heads are then a view of the channels: of 31 transposes around the attentions of EdgeSAM's
    mask decoder none is left that no product takes in. The heads stay one axis of a product of four: the paper's list
    of heads would be eight times the operators. Follows sums, norms, joins and cuts of tokens from linear layer to
    linear layer. Exact: the same products. Site = an operator.
    """
    with AtenGraph(program) as graph:
        wanted = _wanted(graph)
        write = _Maps(graph)
        return sum(write.visit(node, node in wanted) for node in list(graph.graph.nodes))


def _wanted(graph: AtenGraph) -> set[Node]:
    """Linear layers on tokens, and what lies between them and can be computed on maps."""
    found: set[Node] = set()
    waiting = [node for node in graph.graph.nodes if _is_layer(graph, node)]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += [n for n in node.all_input_nodes if _carries(graph, n)]
            waiting += [n for n in node.users if _carries(graph, n) and n.target not in ENTRIES]
    return found


ENTRIES = {aten.transpose.int, aten.unsqueeze.default}  # they make tokens of what is none


def _is_layer(graph: AtenGraph, node: Node) -> bool:
    """Whether ``node`` multiplies tokens, or a row, by a constant matrix."""
    if node.target not in (aten.linear.default, aten.matmul.default) or len(shape(node)) not in (TOKENS, ROW):
        return False
    bias = argument(node, 2, "bias") if node.target == aten.linear.default else None
    matrix = graph.constant(node.args[1])
    known = matrix is not None and matrix.ndim == 2 and (bias is None or graph.constant(bias) is not None)
    return known and graph.constant(node.args[0]) is None and len(shape(node.args[0])) == len(shape(node))


def _carries(graph: AtenGraph, node: Node) -> bool:
    """Whether the result of ``node`` is tokens, or a row, that can be computed as a map."""
    if node.op != "call_function" or not isinstance(node.meta.get("val"), Tensor):
        return False
    rank, target = len(shape(node)), node.target
    if target in ELEMENTWISE:
        others = [n for n in node.all_input_nodes if graph.constant(n) is None]
        return rank in (TOKENS, ROW) and all(len(shape(n)) == rank for n in others)
    if target == aten.layer_norm.default:
        return rank in (TOKENS, ROW) and len(argument(node, 1, "normalized_shape")) == 1
    if target == aten.select.int:
        return rank == ROW and argument(node, 1, "dim") in (1, -2) and isinstance(node.args[2], int)
    if rank != TOKENS:
        return False
    if target == aten.cat.default:
        return argument(node, 1, "dim", 0) in (1, -2)
    if target == aten.slice.Tensor:
        return argument(node, 1, "dim", 0) in (1, -2) and argument(node, 4, "step", 1) == 1
    if target == aten.unsqueeze.default:
        return node.args[1] in (2, -1)
    return _is_swap(node, 1, 2) or _joined_heads(node) is not None


def _is_swap(node: Any, *axes: int) -> bool:
    """Whether ``node`` exchanges these two axes."""
    if not isinstance(node, Node) or node.target != aten.transpose.int:
        return False
    rank = len(shape(node))
    return {int(a) % rank for a in node.args[1:]} == set(axes)  # type: ignore[arg-type]


def _joined_heads(node: Node) -> Node | None:
    """The product (B, h, T, d) whose heads ``node`` joins to (B, T, h d)."""
    turned = node.args[0] if node.target == aten.flatten.using_ints and argument(node, 1, "start_dim", 0) == 2 else None
    if not _is_swap(turned, 1, 2) or len(shape(turned)) != 4:
        return None
    product = turned.args[0]  # type: ignore[union-attr]
    return product if isinstance(product, Node) and product.target == aten.matmul.default else None


class _Maps:
    """Rewrites operators in order. ``maps``: tokens -> (B, C, 1, T); ``heads``: (B, h, T, d) -> (B, h, d, T);
    ``planes``: (B, C, T) -> the map that it is a view of.
    """

    def __init__(self, graph: AtenGraph) -> None:
        self.graph, self.call = graph, graph.call
        self.maps: dict[Node, Node] = {}
        self.heads: dict[Node, Node] = {}
        self.planes: dict[Node, Node] = {}

    def visit(self, node: Node, wanted: bool) -> bool:
        """Whether ``node`` was rewritten: computed as a map, or as a view of one."""
        if node.op != "call_function" or node._erased:
            return False
        with self.graph.graph.inserting_before(node):
            leaves = None if wanted and not _is_swap(node, 1, 2) else self._left(node)
            if leaves is not None:
                self.graph.replace(node, leaves)
                return True
            as_map = self._computed(node) if wanted else None
            if as_map is None:
                return False
            tokens = self.call(aten.permute.default, as_map, [0, 2, 3, 1])
            back = self.call(aten.squeeze.dim, tokens, 1) if len(shape(node)) == TOKENS else self._row(as_map)
        self.maps[back] = as_map
        self.graph.replace(node, back)
        return True

    def _row(self, as_map: Node) -> Node:
        return self.call(aten.flatten.using_ints, as_map, 1)

    def _view(self, source: Node, *sizes: int) -> Node:
        return self.call(aten.reshape.default, source, [-1, *sizes])

    def _left(self, node: Node) -> Node | None:
        """What takes the place of an operator that leaves the layout of tokens, where a view of a map does."""
        source = node.args[0] if node.args else None
        if not isinstance(source, Node):
            return None
        if _is_swap(node, 1, 2) and source in self.maps:  # (B, C, T)
            plane = self.call(aten.squeeze.dim, self.maps[source], 2)
            self.planes[plane] = self.maps[source]
            return plane
        if node.target == aten.unflatten.int and source in self.planes and node.args[1] in (2, -1):
            return self._view(self.planes[source], *shape(node)[1:])
        if _is_swap(node, 2, 3) and source in self.heads:
            return self.heads[source]
        if _is_swap(node, 1, 2) and len(shape(node)) == 4 and source.target == aten.unflatten.int:
            tokens, (_, heads, count, size) = source.args[0], shape(node)
            if tokens in self.maps and source.args[1] in (2, -1):
                view = self._view(self.maps[tokens], heads, size, count)  # type: ignore[index]
                split = self.call(aten.transpose.int, view, 2, 3)
                self.heads[split] = view
                return split
        return None

    def _computed(self, node: Node) -> Node | None:
        """``node`` as a map."""
        source, rank = node.args[0], len(shape(node))
        if node.target in (aten.linear.default, aten.matmul.default):
            return self._convolved(node)
        if node.target in ELEMENTWISE:
            operands = [self._map(a, rank) if isinstance(a, Node) else a for a in node.args]
            return self.call(node.target, *operands, **node.kwargs)
        if node.target == aten.cat.default:
            return self.call(aten.cat.default, [self._map(n, rank) for n in source], 3)  # type: ignore[union-attr]
        assert isinstance(source, Node)
        if node.target == aten.layer_norm.default:
            last = self.call(aten.permute.default, self._map(source, rank), to_last(4))
            return self.call(
                aten.permute.default,
                self.call(aten.layer_norm.default, last, *node.args[1:], **node.kwargs),
                to_first(4),
            )
        if node.target == aten.slice.Tensor:
            return self.call(aten.slice.Tensor, self._map(source, rank), 3, *node.args[2:4])
        if node.target == aten.select.int:
            index = node.args[2]
            assert isinstance(index, int)
            place = index % shape(source)[1]
            return self.call(aten.slice.Tensor, self._map(source, TOKENS), 3, place, place + 1)
        count, channels = shape(node)[1:]
        if node.target == aten.unsqueeze.default:
            return self._view(source, 1, 1, count)
        if _is_swap(node, 1, 2):
            flat = source.target == aten.flatten.using_ints and argument(source, 1, "start_dim", 0) == 2
            return self._view(source.args[0] if flat else source, channels, 1, count)  # type: ignore[arg-type]
        return self._attended(node, channels, count)

    def _attended(self, node: Node, channels: int, count: int) -> Node | None:
        """The joined heads of probabilities (B, h, T, K) @ values (B, h, K, d), each turned and in the other order."""
        product = _joined_heads(node)
        assert product is not None
        probabilities, values = product.args
        if values not in self.heads:
            log.debug("tokens_to_maps: %s joins heads that are no view of a map", node.name)
            return None
        turned = self.call(aten.transpose.int, probabilities, 2, 3)
        return self._view(self.call(aten.matmul.default, self.heads[values], turned), channels, 1, count)  # type: ignore[index]

    def _convolved(self, node: Node) -> Node:
        matrix = self.graph.constant(node.args[1])
        assert matrix is not None
        is_linear = node.target == aten.linear.default
        kernel = (matrix if is_linear else matrix.t())[:, :, None, None]
        weight = self.graph.add_constant(f"{self.graph.target(node.args[1])}_1x1", kernel)
        bias = argument(node, 2, "bias") if is_linear else None
        return self.call(aten.conv2d.default, self._map(node.args[0], len(shape(node))), weight, bias)

    def _map(self, node: Any, rank: int) -> Node:
        """Tokens, a row or a constant that meets them, as a map."""
        value = self.graph.constant(node)
        if value is not None:
            return self.graph.add_constant(f"{self.graph.target(node)}_map", _as_map(value, rank))
        if node not in self.maps:
            self.maps[node] = self._entered(node, rank)
        return self.maps[node]

    def _entered(self, node: Node, rank: int) -> Node:
        if rank == ROW:
            return self._view(node, shape(node)[1], 1, 1)
        rows = self.call(aten.unsqueeze.default, node, 1)
        return self.call(aten.permute.default, rows, to_first(4))


def _as_map(value: Tensor, rank: int) -> Tensor:
    """A constant that broadcasts against ``rank`` axes, against a map's."""
    full = value.reshape((1,) * (rank - value.ndim) + tuple(value.shape))
    return full[:, :, None, None] if rank == ROW else full.transpose(1, 2)[:, :, None, :]
