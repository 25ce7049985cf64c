from __future__ import annotations

from typing import Any

import torch

from edgesam_deploy.passes.aten.graph import AtenGraph
from edgesam_deploy.passes.aten.legalize_bicubic import as_products
from edgesam_deploy.passes.engine import exact
from edgesam_deploy.passes.program import Program

aten = torch.ops.aten
BILINEAR = {aten.upsample_bilinear2d.vec, aten.upsample_bilinear2d.default}
NEAREST: dict[Any, Any] = {
    aten.upsample_nearest2d.vec: aten.upsample_nearest2d.default,
    aten.upsample_nearest2d.default: aten.upsample_nearest2d.default,
    aten._upsample_nearest_exact2d.vec: aten._upsample_nearest_exact2d.default,
    aten._upsample_nearest_exact2d.default: aten._upsample_nearest_exact2d.default,
}


@exact
def legalize_resize(program: Program) -> int:
    """Write a bilinear or nearest resize of fixed size as two constant matrix products.

        x (B, C, h, w) ── bilinear ── y        x ── (x Aw^T) ── Ah (x Aw^T) ── y,   A (2h, h) with two entries a row

    Why: runtimes know different subsets of Resize's coordinate modes, and one that takes another mode for a missing
    one shifts the map by up to half a pixel without a word. Interpolation is linear and
    separable; A is the interpolation of the identity along one axis. Exact; any rational scale. 256 -> 1,024 costs
    1.3 GMAC for 4 masks, so it is for targets that need it.
    """
    sites = 0
    with AtenGraph(program) as graph:
        for node in graph.calls(*BILINEAR, *NEAREST):
            if node.target in BILINEAR:
                align = bool(node.args[2])
                sites += as_products(graph, node, "bilinear", aten.upsample_bilinear2d.default, align)
            else:
                sites += as_products(graph, node, "nearest", NEAREST[node.target])
    return sites
