"""Means over large maps are taken in two short sums."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from passes.programs import Calls, counts, rewritten, traced
from torch import Tensor

from edgesam_deploy.passes.aten import decompose_spatial_mean

MEANS: dict[str, Callable[[Tensor], Tensor]] = {
    "keepdim": lambda x: x.mean((2, 3), keepdim=True),
    "dropped": lambda x: x.mean((2, 3)),
    "negative axes": lambda x: x.mean((-1, -2)),
    "another order": lambda x: x.mean((3, 2), keepdim=True),
    "axes apart": lambda x: x.mean((1, 3)),
    "three axes": lambda x: x.mean((1, 2, 3)),
    "all axes": lambda x: x.mean((0, 1, 2, 3)),
    "no axes given": lambda x: torch.ops.aten.mean.dim(x, None, True),
    "in double": lambda x: x.mean((2, 3), dtype=torch.float64).float(),
}


@pytest.mark.parametrize("case", MEANS)
def test_one_axis_at_a_time(case: str) -> None:
    mean = MEANS[case]
    axes = {"three axes": 3, "all axes": 4, "no axes given": 4}.get(case, 2)
    after = rewritten(traced(Calls(lambda _, x: mean(x) + 1), (2, 32, 32, 48)), decompose_spatial_mean, 1)
    assert counts(after)["mean"] == axes
    assert all(len(n.args[1]) == 1 for n in after.aten.graph.nodes if "mean" in str(n.target))


def test_a_dynamic_batch() -> None:
    before = traced(Calls(lambda _, x: x.mean((2, 3), keepdim=True) * x), ("batch", 4, 32, 32))
    assert counts(rewritten(before, decompose_spatial_mean, 1))["mean"] == 2


def test_it_is_nearer_to_the_truth() -> None:
    """What it is for: many values of one sign, as in a photograph."""
    x = torch.rand(1, 1, 256, 256, generator=torch.Generator().manual_seed(0)) + 50
    before = traced(Calls(lambda _, x: x.mean((2, 3))), (1, 1, 256, 256))
    after = rewritten(before, decompose_spatial_mean, 1)
    truth = x.double().mean()
    assert abs(after.aten.module()(x=x).double() - truth) / truth < 1e-6


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (lambda _, x: x.mean((2, 3)), (1, 4, 31, 33)),  # 1023 values
        (lambda _, x: x.mean(3), (1, 4, 2, 4096)),  # one axis is short or long, but one
        (lambda _, x: x.mean((2, 3)), (1, 4, "height", 64)),
        (lambda _, x: x.sum((2, 3)), (1, 4, 64, 64)),
        (lambda _, x: x.amax((2, 3)), (1, 4, 64, 64)),
    ],
    ids=["small", "one axis", "dynamic", "sum", "max"],
)
def test_leaves_alone(function: Callable[..., Tensor], shape: tuple[int | str, ...]) -> None:
    rewritten(traced(Calls(function), shape), decompose_spatial_mean, 0)
