"""Heads on neighbouring tokens become one grouped convolution."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from conftest import TINY
from passes.programs import Calls, counts, rewritten, traced
from torch import Tensor, nn

from edgesam_deploy.passes.aten import merge_parallel_heads


def head(*widths: int, bias: bool = True, act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after, bias=bias), act()]
    return nn.Sequential(*layers[:-1])


def heads(made: Sequence[nn.Module], places: Sequence[int], dim: int = 1) -> Calls:
    def function(module: Calls, x: Tensor) -> Tensor:
        return torch.stack([module.heads[i](x[:, place]) for i, place in enumerate(places)], dim)  # type: ignore[index,operator]

    return Calls(function, heads=nn.ModuleList(made))


@pytest.mark.parametrize("batch", [1, 3, "batch"])
@pytest.mark.parametrize("places", [(0, 1, 2, 3), (1, 2, 3, 4), (-3, -2, -1)], ids=str)
def test_one_convolution_per_layer(batch: int | str, places: tuple[int, ...]) -> None:
    made = [head(8, 6, 6, 5) for _ in places]
    program = traced(heads(made, places), (batch, 6, 8))
    found = counts(rewritten(program, merge_parallel_heads, 1))
    assert (found["conv2d"], found["relu"]) == (3, 2)
    assert not {"linear", "select", "stack"} & set(found)


def test_no_slice_where_all_tokens_are_read() -> None:
    program = traced(heads([head(4, 3, bias=False), head(4, 3, bias=False)], (0, 1)), (2, 2, 4))
    found = counts(rewritten(program, merge_parallel_heads, 1))
    assert "slice" not in found


@pytest.mark.parametrize(
    ("made", "places", "dim"),
    [
        ([head(4, 3), head(4, 3)], (0, 2), 1),
        ([head(4, 3), head(4, 3)], (1, 0), 1),
        ([head(4, 3), head(4, 3)], (0, 1), 0),
        ([head(4, 3), head(4, 3, bias=False)], (0, 1), 1),
        ([head(4, 5, 3), head(4, 3)], (0, 1), 1),
        ([head(4, 5, 3), head(4, 5, 3, act=nn.Tanh)], (0, 1), 1),
        ([nn.Sequential(nn.Linear(4, 3), nn.Softmax(-1)) for _ in range(2)], (0, 1), 1),
    ],
    ids=["a gap", "another order", "stacked in front", "a bias missing", "a layer more", "another operator", "softmax"],
)
def test_what_stays(made: list[nn.Module], places: tuple[int, ...], dim: int) -> None:
    rewritten(traced(heads(made, places, dim), (2, 3, 4)), merge_parallel_heads, 0)


def test_heads_that_something_else_reads() -> None:
    module = heads([head(4, 3), head(4, 3)], (0, 1))
    both = Calls(lambda s, x: s.net.function(s.net, x) + s.net.heads[0](x[:, 0])[:, None], net=module)
    rewritten(traced(both, (2, 3, 4)), merge_parallel_heads, 1)  # its own trace of the layer: weights are shared
    kept = Calls(
        lambda s, x: torch.stack([y := s.one(x[:, 0]), s.two(x[:, 1])], 1) + y[:, None],
        one=head(4, 3), two=head(4, 3),
    )  # fmt: skip
    rewritten(traced(kept, (2, 3, 4)), merge_parallel_heads, 0)


def test_the_hypernetworks_of_sam() -> None:
    from edgesam_deploy.capture import capture
    from edgesam_deploy.contract import Interface
    from edgesam_deploy.model.registry import load

    decoder = capture(load("edge_sam", config=TINY), Interface(image_size=256, embed_dim=64))[1]
    before, after = counts(decoder), counts(rewritten(decoder, merge_parallel_heads, 1))
    assert before["linear"] - after["linear"] == 12
    assert after["conv2d"] - before.get("conv2d", 0) == 3
