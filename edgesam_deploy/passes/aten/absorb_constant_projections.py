from __future__ import annotations

import logging

import torch
from torch import Tensor
from torch.fx import Node

from edgesam_deploy.passes.aten.graph import AtenGraph, argument, only_reader, same_shape, shape
from edgesam_deploy.passes.engine import exact
from edgesam_deploy.passes.program import Program

aten = torch.ops.aten
log = logging.getLogger(__name__)


@exact
def absorb_constant_projections(program: Program) -> int:
    """Add a constant behind the projections of a sum, not before them.

        x ──(+ pe)──┬── Wk ── + bk        x ──┬── Wk ── + (Wk pe + bk)
                    └── Wq ── + bq            └── Wq ── + (Wq pe + bq)

    Why: the transformer adds the dense positional encoding to 4,096 rows of 256 before it projects them to 128; behind
    the projection it is half of that, and where there was a bias, nothing: the bias becomes the projected constant.
    Each costs the file 2 MB, and in ONNX Runtime nothing is gained that could be measured: for other targets.
    Exact up to the order of fp32 sums; the constants are computed in float64. Skipped where something else needs the
    sum, and where its readers are wider together than it is. Site = a sum.
    """
    sites = 0
    with AtenGraph(program) as graph:
        for total in graph.calls(aten.add.Tensor):
            sites += _absorb(graph, total)
    return sites


def _absorb(graph: AtenGraph, total: Node) -> bool:
    terms = _terms(graph, total)
    if terms is None:
        return False
    x, constant = terms
    products = [_product(graph, reader) for reader in total.users]
    widths = [graph.constant(product.args[_weight(product)]).shape[0] for product in products if product is not None]  # type: ignore[union-attr]
    if None in products or not 0 < sum(widths) <= constant.shape[-1]:
        log.debug("absorb_constant_projections: %s has readers that are no narrower projections", total.name)
        return False
    for product in products:
        assert product is not None
        (_linear if product.target == aten.linear.default else _transposed)(graph, product, x, constant)
    return True


def _terms(graph: AtenGraph, total: Node) -> tuple[Node, Tensor] | None:
    """The computed and the constant term of a sum of the computed one's shape, whose last axis the constant has."""
    for x, other in (total.args[:2], total.args[1::-1]):
        constant = graph.constant(other)
        if constant is None or not isinstance(x, Node) or total.kwargs.get("alpha", 1) != 1:
            continue
        wide = constant.ndim > 0 and constant.is_floating_point() and constant.shape[-1] == shape(x)[-1]
        if wide and graph.constant(x) is None and same_shape(x, total):
            return x, constant
    return None


def _weight(product: Node) -> int:
    """Which argument is the weight."""
    return 1 if product.target == aten.linear.default else 0


def _product(graph: AtenGraph, reader: Node) -> Node | None:
    """The product that ``reader`` of the sum is or leads to: linear(sum, W, b), or W @ transpose(sum)."""
    if reader.target == aten.linear.default:
        bias = argument(reader, 2, "bias")
        return reader if graph.constant(reader.args[1]) is not None and _known(graph, bias) else None
    if reader.target != aten.transpose.int or not only_reader(reader) or len(shape(reader)) != 3:
        return None
    product = next(iter(reader.users))
    if {int(a) % 3 for a in reader.args[1:]} != {1, 2} or product.target != aten.matmul.default:  # type: ignore[arg-type]
        return None
    weight = graph.constant(product.args[0])
    return product if weight is not None and weight.ndim == 2 else None


def _known(graph: AtenGraph, bias: Node | None) -> bool:
    return bias is None or graph.constant(bias) is not None


def _linear(graph: AtenGraph, layer: Node, x: Node, constant: Tensor) -> None:
    weight, bias = graph.constant(layer.args[1]), graph.constant(argument(layer, 2, "bias"))
    assert weight is not None
    moved = constant.double() @ weight.double().t() + (0 if bias is None else bias.double())
    with graph.graph.inserting_before(layer):
        product = graph.call(aten.linear.default, x, layer.args[1])
        _add(graph, layer, product, moved.to(weight.dtype))


def _transposed(graph: AtenGraph, product: Node, x: Node, constant: Tensor) -> None:
    weight = graph.constant(product.args[0])
    assert weight is not None
    rows = constant if constant.ndim > 1 else constant[None]
    moved = (weight.double() @ rows.double().transpose(-2, -1)).to(weight.dtype)
    with graph.graph.inserting_before(product):
        wide = graph.call(aten.matmul.default, product.args[0], graph.call(aten.transpose.int, x, 1, 2))
        _add(graph, product, wide, moved)


def _add(graph: AtenGraph, old: Node, product: Node, moved: Tensor) -> None:
    name = graph.target(old.args[_weight(old)]).removesuffix(".weight")
    graph.replace(old, graph.call(aten.add.Tensor, product, graph.add_constant(f"{name}_moved", moved)))
