from __future__ import annotations

import logging
from typing import Any

import torch
from torch.fx import Node

from edgesam_deploy.passes.aten.attention import Attention, AttentionWriter, cross_attentions
from edgesam_deploy.passes.aten.graph import AtenGraph, shape
from edgesam_deploy.passes.engine import Pass, exact
from edgesam_deploy.passes.program import Program

aten = torch.ops.aten
log = logging.getLogger(__name__)
ELEMENT = 16  # multiply-accumulates in the time one element is written and read, ONNX Runtime on x86 with AVX2


def absorbing(element: float = ELEMENT, max_tokens: int | None = None) -> Pass:
    """The pass for a machine that does ``element`` multiply-accumulates while it moves one number to memory and back.

    max_tokens: the most tokens for which it is done, whatever the estimate says; 0 for never.
    """

    def absorb_token_projections(program: Program) -> int:
        """Fold the projections of the 4,096 image tokens onto the few prompt tokens that they meet.

            Q Wq ──┐                                     Q Wq ── Wk_h^T ──┐
            K Wk ──@── softmax ──@── Wo ── out           K ───────────────@── softmax ──@── Wv_h ── Wo ── out
            K Wv ────────────────┘                       K ─────────────────────────────┘

            K Wq ──┐             T Wv ──┐                T Wk ── Wq_h^T ──┐             T Wv ── Wo_h ──┐
            T Wk ──@── softmax ─────────@── Wo ── out    K ───────────────@── softmax ─────────────────@── out

        Why: with 5 points (10 tokens) the five cross-attentions take 0.6 and 0.53 of their time in ONNX Runtime: fewer
        products, and neither transposes nor biases on 4,096 rows. The keys' bias adds a number per query, which softmax
        does not see; the values' bias leaves as Wo b, since rows of attention sum to 1. All heads are one product.
        Exact up to the order of fp32 sums.

        Decided per site: absorbed, the scores of h heads and T tokens cost h T C per image token and side, instead of
        C I for projecting it, I T, and I elements through memory; the tokens pay C I more. An image that many prompts
        share is projected once, but absorbed for each. Even at 18 tokens where C = 256, I = 128, h = 8. A count that is
        not known (dynamic points; dynamic batch over one image) is left alone.
        """
        sites = 0
        with AtenGraph(program) as graph:
            for site in cross_attentions(graph):
                if _pays(site, element, max_tokens):
                    _rewrite(graph, site)
                    sites += 1
        return sites

    return exact(absorb_token_projections)


absorb_token_projections = absorbing()


def _pays(site: Attention, element: float, max_tokens: int | None) -> bool:
    tokens = shape(site.few.source)[1]
    batches = _batches(shape(site.few.source)[0], shape(site.many.source)[0])
    if not isinstance(tokens, int) or batches is None:
        log.debug("absorb_token_projections: %s has a dynamic number of tokens or of prompts per image", site.out.name)
        return False
    if max_tokens is not None and tokens > max_tokens:
        return False
    prompts, images = batches
    inner, channels = site.many.weight.shape
    pixels = shape(site.many.source)[1]
    absorbed = prompts * (site.heads * tokens * channels * pixels + tokens * inner * channels)
    projected = prompts * inner * tokens * pixels + images * inner * pixels * (channels + element)
    if absorbed >= projected:
        log.debug("absorb_token_projections: %s costs %d, absorbed %d", site.out.name, projected, absorbed)
    return bool(absorbed < projected)


def _batches(few: Any, many: Any) -> tuple[int, int] | None:
    """Prompts and images, of which only the ratio matters; None where it is not known."""
    if isinstance(few, int) and isinstance(many, int):
        return few, many
    return (1, 1) if str(few) == str(many) else None


def _rewrite(graph: AtenGraph, site: Attention) -> None:
    write = AttentionWriter(graph, site)
    weight = (site.many.per_head(site.heads).double() * site.scale).to(site.many.weight.dtype)
    with graph.graph.inserting_before(site.out):
        rows = _rows(write, site.few.heads, write.constant(site.many, "per_head", weight))
        image = write.call(aten.transpose.int, site.many.source, 1, 2)
        scores = write.call(aten.matmul.default, rows, image)  # (B, h few, many)
        attended = write.attended(write.call(aten.unflatten.int, scores, 1, [site.heads, -1]))
        flat = write.call(aten.flatten.using_ints, attended, 1, 2)
        result = (_tokens_to_image if site.many_keys else _image_to_tokens)(write, flat)
    graph.replace(site.out, result)


def _rows(write: AttentionWriter, heads: Node, matrices: Node) -> Node:
    """(B, h, T, d) @ (h, d, C) as (B, h T, C)."""
    return write.call(aten.flatten.using_ints, write.call(aten.matmul.default, heads, matrices), 1, 2)


def _tokens_to_image(write: AttentionWriter, attended: Node) -> Node:
    site = write.site
    mixed = write.call(aten.matmul.default, attended, site.v.source)  # (B, h few, C)
    split = write.call(aten.unflatten.int, mixed, 1, [site.heads, -1])
    values = write.constant(site.v, "per_head", site.v.per_head(site.heads).transpose(1, 2))
    return write.joined(write.call(aten.matmul.default, split, values))


def _image_to_tokens(write: AttentionWriter, attended: Node) -> Node:
    site = write.site
    rows = _rows(write, site.v.heads, write.constant(site.v, "out_per_head", site.out_per_head()))
    if site.out_bias is not None:  # each pixel sums h rows of weight 1
        share = (site.out_bias.double() / site.heads).to(site.out_bias.dtype)
        rows = write.call(aten.add.Tensor, rows, write.constant(site.v, "out_bias_per_head", share))
    return write.call(aten.matmul.default, write.call(aten.transpose.int, attended, 1, 2), rows)
