"""The batch axis of one prompt leaves attention, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from passes.programs import Calls, counts, randomise, rewritten, traced
from torch import Tensor, nn

from edgesam_deploy.contract import sample_inputs
from edgesam_deploy.model.transformer import Attention
from edgesam_deploy.passes.aten import eliminate_unit_batch
from edgesam_deploy.passes.engine import Engine
from edgesam_deploy.passes.execute import relative_l2, run_program
from edgesam_deploy.passes.program import Program


def attention(batch: int | str) -> Program:
    def function(module: Calls, x: Tensor, y: Tensor) -> Tensor:
        return F.layer_norm(x + module.attention(x, y, y), [16])  # type: ignore[operator]

    module = Calls(function, attention=randomise(Attention(16, 4, 2), spread=0.3))
    return traced(module, (batch, 5, 16), (batch, 7, 16))


def ranks(program: Program, name: str) -> set[int]:
    return {len(n.meta["val"].shape) for n in program.aten.graph.nodes if name in str(n.target)}


def test_attention_and_what_follows_it() -> None:
    """4 projections, 2 products, 3 splits, 4 swaps of axes, scale, softmax, join, sum and norm."""
    before = attention(1)
    engine = Engine("fast")
    after = engine.run(before, (eliminate_unit_batch,))
    assert engine.steps[0].sites >= 15
    assert engine.steps[0].error is not None
    assert ranks(after, "matmul") == {3}
    assert ranks(after, "linear") == {2}
    assert ranks(after, "layer_norm") == {2}
    assert counts(after)["squeeze"] == 2
    assert counts(after)["unsqueeze"] == 1
    assert engine.run(after, (eliminate_unit_batch,)) is after


def test_several_prompts_stay() -> None:
    for batch in (2, "batch"):
        rewritten(attention(batch), eliminate_unit_batch, 0)


def test_products_of_one_with_many_stay() -> None:
    rewritten(traced(Calls(lambda _, x, y: x @ y), (1, 4, 5), (3, 5, 6)), eliminate_unit_batch, 0)


def test_maps_of_convolutions_keep_four_axes() -> None:
    net = randomise(nn.Sequential(nn.Conv2d(3, 8, 3), nn.GELU(), nn.Conv2d(8, 8, 1)))
    rewritten(traced(net, (1, 3, 9, 9)), eliminate_unit_batch, 0)


def test_what_works_along_the_first_axis_stays() -> None:
    def function(_: Calls, x: Tensor) -> Tensor:
        return (x @ x.transpose(1, 2)).softmax(0).transpose(0, 1)

    after = rewritten(traced(Calls(function), (1, 4, 5)), eliminate_unit_batch, 2)
    assert ranks(after, "softmax") == {3}


def test_a_constant_is_not_kept_twice() -> None:
    """What a projection reads is flattened where it is made, so that a sum before it is flattened as well."""

    def function(module: Calls, x: Tensor) -> Tensor:
        placed = x.transpose(1, 2) + module.places
        return module.one(placed) + module.two(x.transpose(1, 2))  # type: ignore[operator]

    places = randomise(nn.Linear(8, 6, bias=False)).weight.detach()[None]
    module = Calls(function, places=places, one=randomise(nn.Linear(8, 4)), two=randomise(nn.Linear(8, 4)))
    before = traced(module, (1, 8, 6))
    after = Engine("fast").run(before, (eliminate_unit_batch,))
    inputs = sample_inputs(before.inputs, 5)
    assert relative_l2(run_program(before, inputs)["out0"], run_program(after, inputs)["out0"]) < 1e-6
    assert ranks(after, "linear") == {2}


LAYOUTS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "permute": ("permute", lambda x: x.permute(0, 2, 1)),
    "permute from the end": ("permute", lambda x: x.permute(-3, -1, -2)),
    "permute of four": ("permute", lambda x: x.unflatten(1, (2, 2)).permute(0, 3, 1, 2)),
    "swap from the end": ("transpose", lambda x: x.transpose(-1, -2)),
    "join to an axis": ("flatten", lambda x: x.unflatten(1, (2, 2)).flatten(1, 2)),
    "join from the end": ("flatten", lambda x: x.unflatten(1, (2, 2)).flatten(-3, -2)),
    "join to the end": ("flatten", lambda x: x.unflatten(2, (3, 2)).flatten(2)),
    "split": ("unflatten", lambda x: x.unflatten(2, (3, 2))),
    "split from the end": ("unflatten", lambda x: x.unflatten(-2, (2, 2))),
    "rows": ("slice", lambda x: x[:, 1:3]),
    "columns": ("slice", lambda x: x[..., 2:]),
    "join two": ("cat", lambda x: torch.cat([x, x], 1)),
    "join two from the end": ("cat", lambda x: torch.cat([x, x], -1)),
    "norm": ("layer_norm", lambda x: F.layer_norm(x, [4, 6])),
    "softmax over rows": ("softmax", lambda x: x.softmax(-2)),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_axes_are_one_less(case: str) -> None:
    """All sites between the projection and the output: what comes out has its batch axis again."""
    name, function = LAYOUTS[case]
    before = traced(Calls(lambda s, x: function(s.net(x)), net=randomise(nn.Linear(5, 6))), (1, 4, 5))
    sites = 3 if "unflatten" in counts(before) and name != "unflatten" else 2
    after = rewritten(before, eliminate_unit_batch, sites)
    (rank,) = ranks(before, f".{name}.")
    assert ranks(after, f".{name}.") == {rank - 1}


STAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "permute": lambda x: x.permute(1, 0, 2),
    "permute two of size 1": lambda x: x.unflatten(1, (1, 4)).permute(1, 0, 2, 3),
    "swap": lambda x: x.transpose(0, 2),
    "swap two of size 1": lambda x: x.unflatten(1, (1, 4)).transpose(0, 1),
    "swap two of size 1, the other way": lambda x: x.unflatten(1, (1, 4)).transpose(-3, -4),
    "join": lambda x: x.flatten(0, 1),
    "join two of size 1": lambda x: x.unflatten(1, (1, 4)).flatten(0, 1),
    "join all": lambda x: x.flatten(),
    "join the rest": lambda x: x.flatten(1),  # two axes are left
    "rows": lambda x: torch.ops.aten.slice.Tensor(x, 0, 0, 1),
    "join two": lambda x: torch.cat([x, x]),
    "norm": lambda x: F.layer_norm(x, [1, 4, 6]),
    "split": lambda x: x.unflatten(0, (1, 1)),
}


@pytest.mark.parametrize("case", STAYS)
def test_what_needs_the_first_axis_stays(case: str) -> None:
    """The projection is a site, and the split where there is one first, but what follows is none."""
    net = randomise(nn.Linear(5, 6))
    before = traced(Calls(lambda s, x: STAYS[case](s.net(x)), net=net), (1, 4, 5))
    rewritten(before, eliminate_unit_batch, 2 if "two of size 1" in case else 1)


def test_two_axes_have_no_batch() -> None:
    rewritten(traced(randomise(nn.Linear(5, 6)), (1, 5)), eliminate_unit_batch, 0)


def test_a_matrix_that_all_rows_meet_stays_as_it_is() -> None:
    after = rewritten(traced(Calls(lambda _, x, y: x @ y), (1, 4, 5), (5, 6)), eliminate_unit_batch, 1)
    assert ranks(after, "matmul") == {2}
    rewritten(traced(Calls(lambda _, x, y: x @ y), (1, 4, 5), (1, 5, 6)), eliminate_unit_batch, 1)


def test_sums_of_one_with_many_stay() -> None:
    net = randomise(nn.Linear(5, 6))
    rewritten(traced(Calls(lambda s, x, y: s.net(x) + y, net=net), (1, 4, 5), (3, 4, 6)), eliminate_unit_batch, 1)


def test_pointwise_operators_alone_stay() -> None:
    """Nothing to gain where no product is near: the axis would go and come back."""
    rewritten(traced(Calls(lambda _, x: x.relu() + 1), (1, 4, 5)), eliminate_unit_batch, 0)
