from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from edgesam_deploy.passes.aten.absorb_token_projections import ELEMENT
from edgesam_deploy.passes.aten.attention import Operands, lopsided, operands, swapped, weights
from edgesam_deploy.passes.aten.graph import AtenGraph, shape
from edgesam_deploy.passes.engine import exact
from edgesam_deploy.passes.program import Program

aten = torch.ops.aten


@exact
def canonicalize_given_queries(program: Program) -> int:
    """Let many image tokens whose queries are given, not projected here, ask the few with the pixels on the last axis.

        Q (h, P, d) ── @ K^T ── softmax ── @ V ── join ── Wo ── out
        K (h, T, d) ── @ Q^T ── softmax over T ── (h T, P), transposed ── @ (V Wo_h) (h T, C) ── out

    Why: ``hoist_image_side`` leaves this form behind, which the passes on projections do not know: 4,096 softmaxes over
    7 tokens per head one by one, two transposes of the image and its output projection, 17 % of that decoder's time
    with 2 slots; 0.89 of its latency in ONNX Runtime. Where the tokens are so many (or dynamic) that projecting the
    image's rows is less work than h T C, they are projected. Exact up to the order of fp32 sums.
    """
    sites = 0
    with AtenGraph(program) as graph:
        for out in graph.calls(aten.linear.default):
            site, layer = operands(out), weights(graph, out)
            if site is not None and layer is not None and _queries_are_given(site):
                _rewrite(graph, out, site, layer)
                sites += 1
    return sites


def _queries_are_given(site: Operands) -> bool:
    pixels, tokens = shape(site.q)[2], shape(site.k)[3]
    many = isinstance(pixels, int) and not (isinstance(tokens, int) and tokens > pixels)
    return site.q.op == "placeholder" and many and lopsided(pixels, tokens)


def _rewrite(graph: AtenGraph, out: Node, site: Operands, layer: tuple[Tensor, Tensor | None]) -> None:
    call, (weight, bias) = graph.call, layer
    with graph.graph.inserting_before(out):
        keys = swapped(site.k, {2, 3}) or call(aten.transpose.int, site.k, 2, 3)
        scores = call(aten.matmul.default, keys, call(aten.transpose.int, site.q, 2, 3))  # (B, h, few, many)
        if site.bias is not None:
            scores = call(aten.add.Tensor, scores, call(aten.transpose.int, site.bias, 2, 3))
        attended = call(aten.softmax.int, scores, 2)
        if _pays(shape(site.v), weight.shape[0]):
            per_head = weight.t().unflatten(0, (shape(site.v)[1], -1))  # type: ignore[no-untyped-call]
            name = graph.target(out.args[1]).removesuffix(".weight")
            rows = call(aten.matmul.default, site.v, graph.add_constant(f"{name}_per_head", per_head))
            if bias is not None:  # each pixel sums h rows of weight 1
                share = graph.add_constant(f"{name}_bias_per_head", bias / shape(site.v)[1])
                rows = call(aten.add.Tensor, rows, share)
            flat = call(aten.transpose.int, call(aten.flatten.using_ints, attended, 1, 2), 1, 2)
            result = call(aten.matmul.default, flat, call(aten.flatten.using_ints, rows, 1, 2))
        else:
            mixed = call(aten.matmul.default, call(aten.transpose.int, site.v, 2, 3), attended)
            joined = call(aten.transpose.int, call(aten.flatten.using_ints, mixed, 1, 2), 1, 2)
            result = call(aten.linear.default, joined, *out.args[1:])
    graph.replace(out, result)


def _pays(values: tuple[Any, ...], channels: int) -> bool:
    """Whether h T rows of C for each image token are less than mixing h d numbers, moving and projecting them."""
    _, heads, tokens, width = values
    if not isinstance(tokens, int):
        return False
    inner = heads * width
    return bool(heads * tokens * channels < inner * (tokens + channels + ELEMENT))
