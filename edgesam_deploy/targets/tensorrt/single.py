"""Which nodes of an aten program the typed ONNX computes in fp32: ``cast_to_half``'s rules, one dialect earlier.

The fp16 lint and the search for islands emulate aten programs, so they have to know.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch.fx import Node

from edgesam_deploy.passes.onnx.cast_to_half import CODES
from edgesam_deploy.passes.program import Program, operator

NORMS = {"layer_norm", "native_layer_norm", "group_norm", "instance_norm", "rms_norm", "batch_norm"}
SUMS = {"mean", "sum", "cumsum", "var", "linalg_vector_norm", "avg_pool2d", "adaptive_avg_pool2d"}
STEEP = {"softmax", "_softmax", "log_softmax", "exp", "log", "pow", "sqrt", "rsqrt", "reciprocal", "sin", "cos"}
COMPARISONS = {"eq", "ne", "gt", "ge", "lt", "le"}
TURNS = {"sin", "cos", *COMPARISONS}
POINTWISE = {"add", "sub", "mul", "div", "neg", "abs", "maximum", "minimum", "clamp", "_to_copy", "to"}
PRODUCTS = {"matmul", "mm", "bmm"}
LAYERS = {"conv2d", "convolution", "linear", *PRODUCTS}


def single_names(program: Program, *, fused_attention: bool) -> frozenset[str]:
    """Names of the nodes that keep fp32: see ``passes.onnx.cast_to_half.single_nodes``."""
    nodes = [n for n in program.aten.graph.nodes if n.op == "call_function"]
    roles = {spec.name: spec.role for spec in program.inputs}
    codes = {n for n in program.aten.graph.nodes if n.op == "placeholder" and roles.get(n.name) in CODES}
    pixels = {n for n in codes if _dtype(n) == torch.uint8}
    chosen = {n for n in nodes if operator(n) in NORMS | SUMS | STEEP | COMPARISONS}
    if fused_attention:
        chosen -= {n for n in chosen if operator(n) == "softmax" and all(operator(r) in PRODUCTS for r in n.users)}
    chosen |= _leading_to_turns(_computed_from(codes, nodes, program))
    chosen |= _computed_from(pixels, nodes, program, also=codes) if pixels else set()
    counts = {n for n in nodes if operator(n) == "sum" and _dtype(n.all_input_nodes[0]) in (torch.bool, torch.int64)}
    for node in nodes:
        if operator(node) in POINTWISE and any(read in counts for read in node.all_input_nodes):
            counts.add(node)
    return frozenset(n.name for n in chosen | counts)


def _dtype(node: Node) -> torch.dtype | None:
    return getattr(node.meta.get("val"), "dtype", None)


def _computed_from(
    sources: Collection[Node], nodes: Collection[Node], program: Program, also: Collection[Node] = ()
) -> set[Node]:
    """The nodes that read ``sources``, what such nodes make, ``also`` and constants; up to the first layer."""
    inputs = {spec.name for spec in program.inputs}
    values, found = set(sources), set[Node]()
    for node in nodes:
        read = [n for n in node.all_input_nodes if n.op != "placeholder" or n.name in inputs]
        known = all(n in values or n in also or n.op == "get_attr" for n in read)
        if known and operator(node) not in LAYERS and any(n in values for n in read):
            values.add(node)
            found.add(node)
    return found


def _leading_to_turns(among: Collection[Node]) -> set[Node]:
    """Those from which some way among them leads to a sine, a cosine or a comparison, and these."""
    found: set[Node] = set()
    waiting = [n for n in among if operator(n) in TURNS]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += [n for n in node.all_input_nodes if n in among]
    return found
