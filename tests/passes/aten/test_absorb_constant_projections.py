"""Constants added behind projections, not before them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from passes.programs import Calls, counts, randomise, rewritten, traced
from torch import Tensor, nn

from edgesam_deploy.passes.aten import absorb_constant_projections

C, ROWS = 6, 5


class Net(nn.Module):
    def __init__(self, *widths: int, bias: bool = True, rows: tuple[int, ...] = (1, ROWS, C)) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(C, w, bias=bias) for w in widths)
        self.register_buffer("pe", torch.zeros(rows))
        self.register_buffer("matrix", torch.zeros(2, C))

    def forward(self, x: Tensor) -> Any:
        return [layer(x + self.pe) for layer in self.layers]  # type: ignore[operator]


def program(function: Any, net: Net | None = None, shape: Any = (2, ROWS, C), outputs: int = 1) -> Any:
    def run(s: Calls, x: Tensor) -> Any:
        return function(s.net, x)

    return traced(Calls(run, net=randomise(net or Net(2, 4))), shape, outputs=outputs)


def both(net: Any, x: Tensor) -> Any:
    placed = x + net.pe
    return tuple(layer(placed) for layer in net.layers)


@pytest.mark.parametrize("bias", [True, False])
def test_keys_and_queries(bias: bool) -> None:
    after = rewritten(program(both, Net(2, 4, bias=bias), outputs=2), absorb_constant_projections, 1)
    assert counts(after) == {"linear": 2, "add": 2}
    assert all(len(n.args) == 2 for n in after.aten.graph.nodes if n.target == torch.ops.aten.linear.default)
    assert {"net.layers.0_moved", "net.layers.1_moved"} <= set(after.aten.state_dict)
    assert not any(name.endswith("pe") for name in after.aten.state_dict)


@pytest.mark.parametrize("rows", [(1, ROWS, C), (ROWS, C), (C,), (1, 1, C), (2, ROWS, C)])
def test_shapes_of_the_constant(rows: tuple[int, ...]) -> None:
    net = Net(3, rows=rows)
    rewritten(program(lambda s, x: s.layers[0](s.pe + x), net), absorb_constant_projections, 1)
    rewritten(program(lambda s, x: s.matrix @ (x + s.pe).transpose(1, 2), net), absorb_constant_projections, 1)


@pytest.mark.parametrize("axes", [(1, 2), (-1, 1), (2, -2)])
def test_pixels_last(axes: tuple[int, int]) -> None:
    after = rewritten(program(lambda s, x: s.matrix @ (x + s.pe).transpose(*axes)), absorb_constant_projections, 1)
    assert counts(after) == {"transpose": 1, "matmul": 1, "add": 1}


def test_dynamic_batch() -> None:
    rewritten(program(both, shape=("batch", ROWS, C), outputs=2), absorb_constant_projections, 1)


def test_wider_together_than_the_sum() -> None:
    rewritten(program(both, Net(3, 4), outputs=2), absorb_constant_projections, 0)
    rewritten(program(both, Net(3, 3), outputs=2), absorb_constant_projections, 1)


@pytest.mark.parametrize(
    "function",
    [
        lambda s, x: s.layers[0](torch.add(x, s.pe, alpha=2)),
        lambda s, x: s.layers[0](x + x.flip(1)),
        lambda s, x: s.layers[0](x + 1.5),
        lambda s, x: s.layers[0](x + torch.tensor(1.5)),
        lambda s, x: s.layers[0](x + torch.arange(C)),  # integers
        lambda s, x: torch.ones(2, 3, C) @ (x + s.pe).transpose(1, 2),  # a matrix for each picture
        lambda s, x: s.layers[0](x[:, :1] + s.pe),  # the computed term is the smaller one
        lambda s, x: F.linear(x + s.pe, x[0, :3]),
        lambda s, x: F.linear(x + s.pe, s.layers[0].weight, x[0, 0, :2]),
        lambda s, x: s.layers[0]((x + s.pe).relu()),
        lambda s, x: x[:, :, :ROWS] @ (x + s.pe).transpose(1, 2).transpose(1, 2),
        lambda s, x: x[:, :2] @ (x + s.pe).transpose(1, 2),
        lambda s, x: (x + s.pe).transpose(0, 2).sum(0),
        lambda s, x: (x + s.pe).transpose(1, 2) @ x,
    ],
)
def test_left_alone(function: Any) -> None:
    rewritten(program(function), absorb_constant_projections, 0)


def test_a_constant_that_is_broadcast_along_the_contracted_axis() -> None:
    rewritten(program(lambda s, x: s.layers[0](x + s.pe), Net(1, rows=(1, ROWS, 1))), absorb_constant_projections, 0)


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (lambda s, x: s.matrix @ (x + s.pe).transpose(1, 2), (2, C, ROWS, C)),  # contracts the heads
        (lambda s, x: s.matrix @ (x + s.pe).transpose(-2, -1), (ROWS, C)),
        (lambda s, x: s.matrix @ (x + s.pe).flatten(1, 2), (C, ROWS, C)),
        (lambda s, x: s.matrix @ (x + s.pe)[:, 2:], (2, C + 2, C)),  # its arguments read like axes: 1, 2
    ],
    ids=["four axes", "two axes", "flattened", "sliced"],
)
def test_other_layouts_are_left_alone(function: Any, shape: tuple[int, ...]) -> None:
    rewritten(program(function, Net(2, rows=(C,)), shape), absorb_constant_projections, 0)


@pytest.mark.parametrize("function", [lambda s, x: (s.layers[0](x + s.pe), x + s.pe)])
def test_each_sum_for_itself(function: Any) -> None:
    """The sum that is an output stays, the other goes."""
    rewritten(program(function, outputs=2), absorb_constant_projections, 1)


def test_the_sum_is_needed_elsewhere() -> None:
    def function(s: Any, x: Tensor) -> Any:
        placed = x + s.pe
        return s.layers[0](placed), placed

    rewritten(program(function, outputs=2), absorb_constant_projections, 0)


def test_the_transpose_is_needed_elsewhere() -> None:
    def function(s: Any, x: Tensor) -> Any:
        swapped = (x + s.pe).transpose(1, 2)
        return s.matrix @ swapped, swapped

    rewritten(program(function, outputs=2), absorb_constant_projections, 0)
