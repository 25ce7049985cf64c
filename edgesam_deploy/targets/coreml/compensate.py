"""Rounding weights and biases to fp16 so that the mean of what a layer gives stays where it was."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from edgesam_deploy.contract import sample_inputs
from edgesam_deploy.targets.coreml.rounding import neighbours

if TYPE_CHECKING:
    from torch.fx import Node

    from edgesam_deploy.passes.program import Program

SEEDS = (11, 22)
MOST_FLIPS = 12  # weights of a row that go to their other neighbour; the first few do nearly all
Moments = tuple[NDArray[np.float64], NDArray[np.float64]]


def with_compensated_weights(program: Program, finest: int | None) -> Program:
    """A copy whose linear layers and 1x1 convolutions have weights and biases of fp16, chosen by ``compensated`` for
    the means and variances of their inputs on two seeded samples; those on maps of side ``finest`` and more are left.

    A decoder's tokens hardly vary from prompt to prompt, so what rounding costs its scores is for the most part a
    shift, half of it of rounded biases: 1.3e-3 to 1.8e-3 for edge_sam become 0.7e-3 to 1.2e-3.
    """
    import torch

    from edgesam_deploy.passes.aten.graph import AtenGraph, argument, shape

    moments = _moments(program)
    program = program.copy()
    with AtenGraph(program) as graph:
        for node in graph.calls(torch.ops.aten.conv2d.default, torch.ops.aten.linear.default):
            weight, bias = graph.constant(node.args[1]), graph.constant(argument(node, 2, "bias"))
            if node.name not in moments or weight is None or bias is None:
                continue
            if finest is not None and len(shape(node)) == 4 and min(shape(node.args[0])[-2:]) >= finest:
                continue
            matrix = weight.detach().double().reshape(len(weight), -1).numpy()
            new, new_bias = compensated(matrix, bias.detach().double().numpy(), *moments[node.name])
            name = graph.target(node.args[1])
            values = torch.from_numpy(new.astype(np.float32)).reshape(weight.shape)
            constants = (
                graph.add_constant(f"{name}.compensated", values),
                graph.add_constant(f"{name}.compensated_bias", torch.from_numpy(new_bias.astype(np.float32))),
            )
            node.args = (node.args[0], *constants, *node.args[3:])
            node.kwargs = {key: value for key, value in node.kwargs.items() if key not in ("weight", "bias")}
    return program


def compensated(
    weight: NDArray[np.float64], bias: NDArray[np.float64], mean: NDArray[np.float64], variance: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(O, I) and (O,) in values of fp16: to nearest, then some weights to their other neighbour while that lessens
    E[(dW x + db)^2], taken as (dW mean + db)^2 + dW^2 variance for x of independent entries.
    """
    below, above = neighbours(weight)
    chosen, new_bias = weight.astype(np.float16).astype(np.float64), bias.astype(np.float16).astype(np.float64)
    other = np.where(chosen == below, above, below)
    shift = (chosen - weight) @ mean + new_bias - bias
    moved = (other - chosen) * mean
    price = ((other - weight) ** 2 - (chosen - weight) ** 2) * variance
    rows = np.arange(len(weight))
    for _ in range(MOST_FLIPS):
        gain = shift[:, None] ** 2 - (shift[:, None] + moved) ** 2 - price
        best = gain.argmax(1)
        use = rows[gain[rows, best] > 0]
        if not use.size:
            break
        place = (use, best[use])
        chosen[place], other[place] = other[place], chosen[place]
        shift[use] += moved[place]
        moved[place], price[place] = -moved[place], -price[place]
    return chosen, new_bias


def _moments(program: Program) -> dict[str, Moments]:
    """Mean and variance by input channel of each layer, by its name; as fp16 has them, so that the order in which some
    machine adds does not matter.
    """
    import torch
    from torch.fx import Interpreter

    sums: dict[str, list[torch.Tensor]] = {}

    class Watch(Interpreter):
        def run_node(self, n: Node) -> Any:
            if n.target in (torch.ops.aten.conv2d.default, torch.ops.aten.linear.default):
                x, weight = self.env[cast("Node", n.args[0])], self.env[cast("Node", n.args[1])]
                axis = 1 if weight.dim() == 4 else -1
                if weight[0].numel() == x.shape[axis]:  # a 1x1 kernel, and one group
                    rows = x.movedim(axis, -1).reshape(-1, x.shape[axis]).double()
                    sums.setdefault(n.name, []).append(torch.stack([rows.mean(0), rows.square().mean(0)]))
            return super().run_node(n)

    ep = program.aten
    known = {**ep.constants, **ep.state_dict}
    for seed in SEEDS:
        inputs = sample_inputs(program.inputs, seed)
        specs = ep.graph_signature.input_specs
        args = [torch.from_numpy(inputs[s.arg.name]) if s.target is None else known[s.target] for s in specs]
        with torch.no_grad():
            Watch(ep.graph_module).run(*args)
    found = {}
    for name, each in sums.items():
        mean, square = (torch.stack(each).mean(0)).numpy()
        variance = np.maximum(square - mean**2, 0)
        found[name] = (mean.astype(np.float16).astype(np.float64), variance.astype(np.float16).astype(np.float64))
    return found
