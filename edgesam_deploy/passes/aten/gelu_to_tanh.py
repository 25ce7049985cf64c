from __future__ import annotations

import torch

from edgesam_deploy.passes.aten.fuse_gelu import spelled_gelu
from edgesam_deploy.passes.aten.graph import AtenGraph, argument
from edgesam_deploy.passes.engine import approximate
from edgesam_deploy.passes.program import Program

aten = torch.ops.aten


@approximate(
    5e-3,
    "tanh GELU is at most 4.8e-4 away from erf GELU, everywhere: 4.8e-3 of an output whose root mean square is the "
    "engine's floor of 0.1. Unit normal activations are off by 2.5e-4 in relative L2; layers add theirs in quadrature.",
)
def gelu_to_tanh(program: Program) -> int:
    """Compute GELU by tanh where the model has erf.

        x ── gelu: 0.5 x (1 + erf(x / sqrt 2)) ── y
        x ── gelu: 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) ── y

    Why: ONNX knows no GELU below opset 20, and NPUs that have a tanh unit run Erf on the CPU or not at all. Not exact:
    at most 4.8e-4 from erf GELU, and only around |x| = 2.3. GELUs spelled out with erf are recognised as well.
    """
    sites = 0
    with AtenGraph(program) as graph:
        for gelu in graph.calls(aten.gelu.default):
            if argument(gelu, 1, "approximate", "none") == "none":
                gelu.args, gelu.kwargs = gelu.args[:1], {"approximate": "tanh"}
                sites += 1
        for bend in graph.calls(aten.erf.default, aten.special_erf.default):
            found = spelled_gelu(graph, bend)
            if found is not None:
                x, last = found
                with graph.graph.inserting_before(last):
                    gelu = graph.call(aten.gelu.default, x, approximate="tanh")
                graph.replace(last, gelu)
                sites += 1
    return sites
