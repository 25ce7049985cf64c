from __future__ import annotations

import logging

import torch
from torch.fx import Node

from edgesam_deploy.passes.aten.boolean_to_float import CASTS, drop_checks, is_whole, readers
from edgesam_deploy.passes.aten.graph import AtenGraph
from edgesam_deploy.passes.engine import approximate
from edgesam_deploy.passes.program import Program

aten = torch.ops.aten
log = logging.getLogger(__name__)
STEEPNESS = 100.0  # twice the NPU fork's, whose score is off by 5e-4 on EdgeSAM; in fp16 logits up to 650 stay finite
ABOVE, BELOW = {aten.gt.Scalar, aten.ge.Scalar}, {aten.lt.Scalar, aten.le.Scalar}
SUMS = {aten.sum.dim_IntList, aten.sum.default}


@approximate(
    5e-3,
    "of n pixels with logit density p at the threshold the count is off by about sqrt(0.0039 n p): 2e-4 relative for "
    "SAM's 256 x 256 logits of spread 8, 7e-4 to 2e-3 for the 64 x 64 of a small model or a spread near 1.",
)
def legalize_comparison_sums(program: Program) -> int:
    """Count values above a threshold as a sum of steep sigmoids.

        masks ── (> t) ── cast ── sum ── n        masks ── sigmoid(100 (masks - t)) ── sum ── n

    Why: the stability score counts pixels above two thresholds; Greater, and the cast from bool, are what NPU compilers
    refuse, and the sum of a cast becomes integers in some exporters. Not exact: a pixel at the threshold counts as one
    half, one 0.05 away as 0.7 % less or more, and both sides nearly cancel. Only where the booleans are summed and
    nothing else: a mask that is looked at keeps its comparison.
    """
    roles = {spec.name: spec.role for spec in program.inputs}
    sites = 0
    with AtenGraph(program) as graph:
        for node in graph.calls(*ABOVE, *BELOW):
            source, threshold = node.args
            assert isinstance(source, Node)
            if not _is_counted(node) or is_whole(graph, roles, source):
                log.debug("legalize_comparison_sums: %s is not only counted, or compares whole numbers", node.name)
                continue
            slope = STEEPNESS if node.target in ABOVE else -STEEPNESS
            with graph.graph.inserting_before(node):
                distance = graph.call(aten.sub.Tensor, source, threshold)
                soft = graph.call(aten.sigmoid.default, graph.call(aten.mul.Tensor, distance, slope))
            for cast in readers(node):
                graph.replace(cast, soft)
            drop_checks(graph, node)
            sites += 1
    return sites


def _is_counted(node: Node) -> bool:
    """Whether every reader casts to the compared value's type, for sums alone."""
    dtype = node.args[0].meta["val"].dtype  # type: ignore[union-attr]
    casts = readers(node)
    return bool(casts) and all(
        cast.target in CASTS and cast.meta["val"].dtype == dtype and all(r.target in SUMS for r in readers(cast))
        for cast in casts
    )
