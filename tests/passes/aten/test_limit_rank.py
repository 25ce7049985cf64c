"""Reshapes and transposes of many axes become ones of at most four, and nothing else is touched."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from passes.programs import Calls, counts, rewritten, traced
from torch import Tensor

from edgesam_deploy.model.configs import VitConfig
from edgesam_deploy.model.vit import Vit, window_merge, window_partition
from edgesam_deploy.passes.aten import eliminate_identity, fold_constants, limit_rank
from edgesam_deploy.passes.aten.limit_rank import _merged, _route
from edgesam_deploy.passes.engine import Engine
from edgesam_deploy.passes.execute import run_program
from edgesam_deploy.passes.lower_to_onnx import lower_to_onnx
from edgesam_deploy.passes.program import Program


def rank(program: Program) -> int:
    values = [node.meta.get("val") for node in program.aten.graph.nodes]
    return max(value.dim() for value in values if isinstance(value, Tensor))


def limited(function: Callable[..., Any], *shapes: tuple[int | str, ...], sites: int = 1) -> dict[str, int]:
    """Operators after the pass, every value of which has at most four axes."""
    after = rewritten(traced(Calls(function), *shapes), limit_rank, sites)
    assert rank(after) <= 4
    return counts(after)


@pytest.mark.parametrize("batch", [1, 2, "batch"])
def test_windows(batch: int | str) -> None:
    after = limited(lambda _, x: window_partition(x, 3), (batch, 8, 7, 5))
    assert after == {"pad": 1, "reshape": 2, "permute": 1}
    after = limited(lambda _, x: window_merge(window_partition(x, 4).sin(), (8, 8)), (batch, 8, 8, 5), sites=2)
    assert (after["reshape"], after["permute"]) == (4, 2)


def qkv(x: Tensor, pieces: Callable[[Tensor], tuple[Tensor, ...]]) -> Tensor:
    """As timm, and with it most ViTs, writes it."""
    q, k, v = pieces(x.reshape(x.shape[0], 6, 3, 4, 5).permute(2, 0, 3, 1, 4))
    return (q @ k.transpose(-2, -1)).softmax(-1) @ v


@pytest.mark.parametrize("batch", [1, 2, "batch"])
@pytest.mark.parametrize(
    "pieces",
    [lambda x: x.unbind(0), lambda x: (x[0], x[1], x[2]), lambda x: (x[-3], x[-2], x[-1])],
    ids=["unbind", "select", "from the end"],
)
def test_qkv_is_cut_before_it_is_transposed(batch: int | str, pieces: Any) -> None:
    after = limited(lambda _, x: qkv(x, pieces), (batch, 6, 60))
    assert (after["slice"], after["permute"]) == (3, 3)
    assert after["reshape"] == (6 if batch == 1 else 3), "an axis of size 1 is dropped, and put back"
    assert not {"unbind", "select"} & set(after)


def test_qkv_of_segment_anything() -> None:
    """There a reshape stands between the transpose and the pieces."""

    def function(_: Calls, x: Tensor) -> Tensor:
        q, k, v = x.reshape(2, 6, 3, 4, 5).permute(2, 0, 3, 1, 4).reshape(3, 8, 6, -1).unbind(0)
        return q * k + v

    after = limited(function, (2, 6, 60))
    assert (after["slice"], after["permute"], after["reshape"]) == (3, 3, 6)


def test_an_axis_that_is_not_outermost_is_not_cut_first() -> None:
    """Entries of the innermost axis lie apart, so the transpose goes before them."""
    function = lambda _, x: x.reshape(2, 3, 4, 5, 3).permute(4, 1, 0, 3, 2).reshape(3, 6, 20)[0]  # noqa: E731
    assert limited(function, (6, 60)) == {"reshape": 3, "permute": 2, "select": 1}


def test_relative_positions_of_segment_anything() -> None:
    def function(_: Calls, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        total = x.view(2, 3, 4, 5, 6) + y[:, :, :, :, None] + z[:, :, :, None, :]
        return total.view(2, 12, 30).softmax(-1)

    after = limited(function, (2, 12, 30), (2, 3, 4, 5), (2, 3, 4, 6), sites=5)  # the sum and the chains around it
    assert after == {"reshape": 4, "add": 2, "softmax": 1}


def test_summands_of_four_axes_are_whatever_they_are() -> None:
    """Only one of more axes has to be a reshape, or its own axes would stay."""
    function = lambda _, x, y: (x.view(2, 3, 4, 5, 6) + y.sin()).view(2, 12, 30).softmax(-1)  # noqa: E731
    limited(function, (2, 12, 30), (4, 1, 6), sites=3)
    sines = lambda _, x, y: (x.view(2, 3, 4, 5, 6).sin() + y).view(2, 12, 30)  # noqa: E731
    rewritten(traced(Calls(sines), (2, 12, 30), (4, 1, 6)), limit_rank, 0)


def test_a_sum_times_a_number() -> None:
    function = lambda _, x, y: (0.5 * (x.view(2, 3, 4, 5, 6) - y[..., None]) * 3).view(2, 12, 30).exp()  # noqa: E731
    after = limited(function, (2, 12, 30), (2, 3, 4, 5), sites=4)
    assert (after["mul"], after["sub"]) == (2, 1)


def test_values_without_elements_stay() -> None:
    function = lambda _, x: x.view(2, 0, 2, 2, 5).transpose(1, 2).reshape(0, 20)  # noqa: E731
    rewritten(traced(Calls(function), (0, 20)), limit_rank, 0)


@pytest.mark.parametrize("entry", [0, -1])
def test_entries_of_a_dynamic_axis_are_read_where_they_are(entry: int) -> None:
    """Where the last one begins is not known."""
    function = lambda _, x: x.view(2, x.shape[1], 3, 4, 5).permute(1, 0, 3, 2, 4).reshape(-1, 8, 15)[entry]  # noqa: E731
    before = traced(Calls(function), (2, "n", 60))
    rewritten(before, limit_rank, 1)


@given(st.data())
@settings(max_examples=25, deadline=None, derandomize=True)
def test_any_chain(data: st.DataObject) -> None:
    """Random reshapes and transposes, those that cut across transposed axes included; NumPy is the oracle."""
    primes = data.draw(st.lists(st.sampled_from([1, 2, 2, 3]), min_size=5, max_size=7))

    def grouped(low: int, high: int) -> tuple[int, ...]:
        factors = data.draw(st.permutations(primes))
        cuts = sorted(data.draw(st.lists(st.integers(0, len(factors)), min_size=low - 1, max_size=high - 1)))
        return tuple(prod(factors[a:b]) for a, b in zip([0, *cuts], [*cuts, len(factors)], strict=True))

    start, end = grouped(1, 4), grouped(1, 4)
    steps = [
        (s := grouped(5, 6), data.draw(st.permutations(range(len(s))))) for _ in range(data.draw(st.integers(1, 2)))
    ]

    def function(x: Any) -> Any:
        for sizes, order in steps:
            x = x.reshape(sizes)
            x = x.permute(order) if isinstance(x, Tensor) else x.transpose(order)
        return x.reshape(end)

    before = traced(Calls(lambda _, x: function(x)), start)
    after = rewritten(before, limit_rank, 1)
    assert rank(after) <= 4
    x = np.arange(prod(start), dtype=np.float32).reshape(start)
    np.testing.assert_array_equal(run_program(after, {"x": x})["out0"], function(x))


@given(st.permutations(range(7)))
@settings(max_examples=8, deadline=None, derandomize=True)
def test_routes(goal: list[int]) -> None:
    """Every step is a transpose of at most four blocks, and there are few."""
    state = list(range(7))
    route = _route(tuple(goal))
    assert len(route) <= 4
    for order in route:
        assert len(_merged(state, [state.index(axis) for axis in order])[0]) <= 4
        state = list(order)
    assert state == list(goal)


@pytest.mark.parametrize(
    ("goal", "steps"),
    [((1, 0), 1), ((3, 1, 2, 0), 1), ((1, 2, 3, 4, 0), 1), ((2, 0, 3, 1, 4), 1), ((5, 3, 1, 4, 2, 0), 2)],
)
def test_as_few_steps_as_possible(goal: tuple[int, ...], steps: int) -> None:
    assert len(_route(_merged([2] * len(goal), goal)[1])) == steps or len(_merged([2] * len(goal), goal)[1]) > 4


OPERATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "movedim": lambda x: x.view(2, 3, 2, 2, 5).movedim(1, 3).flatten(2),
    "movedims": lambda x: x.view(2, 3, 2, 2, 5).movedim((1, 0), (3, 4)).flatten(2),
    "swapaxes": lambda x: x.view(2, 3, 2, 2, 5).swapaxes(1, -1).flatten(2),
    "mT": lambda x: x.view(2, 3, 2, 2, 5).mT.flatten(2),
    "unflatten": lambda x: x.unflatten(0, (2, 3)).unflatten(2, (2, 2, 5)).transpose(1, 2).reshape(6, 20),
    "squeeze": lambda x: x[:, None, :, None, None].transpose(0, 2).squeeze(3).squeeze(3),
    "contiguous": lambda x: x.view(2, 3, 2, 2, 5).transpose(1, 2).contiguous().view(6, 20),
    "inverse": lambda x: x.view(2, 3, 2, 2, 5).transpose(1, 2).transpose(2, 1).reshape(6, 20),
    "no transpose": lambda x: x.view(2, 3, 2, 2, 5).view(20, 6),
}


@pytest.mark.parametrize("case", OPERATORS)
def test_operators(case: str) -> None:
    after = limited(lambda _, x: OPERATORS[case](x.sin()), (6, 20))
    assert set(after) <= {"sin", "reshape", "permute"}
    if case in ("inverse", "no transpose"):
        assert "permute" not in after


def read_inside(_: Calls, x: Tensor) -> Tensor:
    wide = x.view(2, 3, 2, 2, 5)
    return wide.transpose(1, 2).reshape(6, 20) + wide.sum((0, 4)).sum()


REFUSED: dict[str, tuple[Callable[..., Any], tuple[int | str, ...]]] = {
    "four axes": (lambda _, x: x.view(2, 3, 4, 5).transpose(1, 2).reshape(6, 20), (6, 20)),
    "read inside": (read_inside, (6, 20)),
    "elementwise inside": (lambda _, x: x.view(2, 3, 2, 2, 5).transpose(1, 2).sin().reshape(6, 20), (6, 20)),
    "many axes go out": (lambda _, x: x.view(2, 3, 2, 2, 5).transpose(1, 2), (6, 20)),
    "many axes come in": (lambda _, x: x.transpose(1, 2).reshape(6, 20), (2, 3, 2, 2, 5)),
    "a sum that all axes differ in": (
        lambda _, x: (x.view(2, 3, 2, 2, 5) + torch.ones(3, 1, 2, 1)).view(6, 20), (6, 20)
    ),
    "two symbols": (lambda _, x: x.unflatten(2, (2, 2, 3)).transpose(2, 3).flatten(2), ("height", "width", 12)),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case: str) -> None:
    function, shape = REFUSED[case]
    rewritten(traced(Calls(function), shape), limit_rank, 0)


def test_a_whole_encoder() -> None:
    """Two windowed blocks and a global one: two 6-D transposes each in the windowed ones, none is left."""
    cfg = VitConfig(width=32, depth=3, heads=2, global_blocks=(1,), window=3)
    vit = Vit(cfg, 128)
    before = traced(vit, (1, 3, 128, 128))
    assert rank(before) == 6
    before = Engine("off").run(before, (eliminate_identity, fold_constants))
    after = rewritten(before, limit_rank, 4)
    assert rank(after) <= 4
    lowered = Engine("fast").run(after, (lower_to_onnx(20, 9),))
    dims = [len(v.shape) for node in lowered.onnx.graph for v in node.outputs if v.shape is not None]
    assert max(dims) <= 4
    assert not {"Einsum", "GatherND", "ScatterND", "NonZero", "If", "Loop"} & set(counts(lowered))
