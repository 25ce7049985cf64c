"""SAM's spelled-out channel norm becomes one operator, in every spelling and nowhere else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from passes.programs import Calls, counts, rewritten, traced
from torch import Tensor

from edgesam_deploy.passes.aten import fuse_channel_norm
from edgesam_deploy.passes.program import Program

W, B = torch.tensor([0.3, -1.2, 2.0, 0.7]), torch.tensor([5.0, 0.1, -2.0, 1.0])
ONE = {"permute": 2, "layer_norm": 1}
Function = Callable[..., Tensor | tuple[Tensor, ...]]


def program(function: Function, shape: tuple[int | str, ...] = (2, 4, 3, 5), outputs: int = 1) -> Program:
    return traced(Calls(function, w=W, b=B), shape, outputs=outputs)


def column(value: Tensor) -> Tensor:
    return value[:, None, None]


def sam(s: Calls, x: Tensor) -> Tensor:
    """segment_anything/modeling/common.py, LayerNorm2d."""
    u = x.mean(1, keepdim=True)
    v = (x - u).pow(2).mean(1, keepdim=True)
    x = (x - u) / torch.sqrt(v + 1e-6)
    return s.w[:, None, None] * x + s.b[:, None, None]


def test_sams_own() -> None:
    after = rewritten(program(sam), fuse_channel_norm, 1)
    assert counts(after) == ONE
    (norm,) = (n for n in after.aten.graph.nodes if n.target == torch.ops.aten.layer_norm.default)
    assert norm.args[4] == 1e-6
    constants = after.aten.state_dict
    assert {tuple(v.shape) for v in constants.values()} == {(4,)}


SQUARES: dict[str, Callable[[Tensor], Tensor]] = {
    "pow": lambda d: d.pow(2),
    "float pow": lambda d: d.pow(2.0),
    "product": lambda d: d * d,
    "square": torch.square,
}
VARIANCES: dict[str, Callable[[Tensor], Tensor]] = {
    "correction": lambda x: x.var(1, correction=0, keepdim=True),
    "unbiased": lambda x: x.var(1, unbiased=False, keepdim=True),
    "negative axis": lambda x: x.var(-3, correction=0, keepdim=True),
    **{name: lambda x, f=f: f(x - x.mean(1, keepdim=True)).mean([1], keepdim=True) for name, f in SQUARES.items()},  # type: ignore[misc]
}
ROOTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "div sqrt": lambda d, v: d / v.sqrt(),
    "mul rsqrt": lambda d, v: d * v.rsqrt(),
    "rsqrt mul": lambda d, v: v.rsqrt() * d,
    "reciprocal": lambda d, v: d * v.sqrt().reciprocal(),
    "div pow": lambda d, v: d / v.pow(0.5),
    "mul pow": lambda d, v: d * v.pow(-0.5),
}
AFFINES: dict[str, Callable[[Calls, Tensor], Tensor]] = {
    "weight left": lambda s, n: column(s.w) * n + column(s.b),
    "weight right": lambda s, n: n * column(s.w) + column(s.b),
    "bias left": lambda s, n: column(s.b) + n * column(s.w),
    "four axes": lambda s, n: n * s.w.view(1, 4, 1, 1) + s.b.reshape(1, -1, 1, 1),
    "weight": lambda s, n: n * column(s.w),
    "bias": lambda s, n: n + column(s.b),
    "neither": lambda s, n: n,
}


@pytest.mark.parametrize("variance", VARIANCES)
def test_spellings_of_the_variance(variance: str) -> None:
    check(variance, "div sqrt", "weight left", 1e-5, (2, 4, 3, 5))


@pytest.mark.parametrize("root", ROOTS)
def test_spellings_of_the_root(root: str) -> None:
    check("pow", root, "weight left", 1e-5, (2, 4, 3, 5))


@pytest.mark.parametrize("affine", AFFINES)
def test_spellings_of_weight_and_bias(affine: str) -> None:
    check("pow", "mul rsqrt", affine, 1e-5, (2, 4, 3, 5))


@given(
    st.sampled_from(sorted(VARIANCES)),
    st.sampled_from(sorted(ROOTS)),
    st.sampled_from(sorted(AFFINES)),
    st.sampled_from([1e-6, 1e-3, 0.7]),
    st.sampled_from([(1, 4, 1, 1), (3, 4, 2, 6), ("batch", 4, "height", "width")]),
)
@settings(max_examples=10, deadline=None, derandomize=True)
def test_any_combination(variance: str, root: str, affine: str, eps: float, shape: tuple[int | str, ...]) -> None:
    check(variance, root, affine, eps, shape)


def check(variance: str, root: str, affine: str, eps: float, shape: tuple[int | str, ...]) -> None:
    def function(s: Calls, x: Tensor) -> Tensor:
        d = x - x.mean(1, keepdim=True)
        return AFFINES[affine](s, ROOTS[root](d, eps + VARIANCES[variance](x)))

    assert counts(rewritten(program(function, shape), fuse_channel_norm, 1)) == ONE


def test_over_the_last_axis_nothing_is_transposed() -> None:
    def function(s: Calls, x: Tensor) -> Tensor:
        d = x - x.mean(-1, keepdim=True)
        return d / torch.sqrt(d.pow(2).mean(-1, keepdim=True) + 1e-5) * s.w + s.b

    assert counts(rewritten(program(function, (2, 3, 4)), fuse_channel_norm, 1)) == {"layer_norm": 1}


def test_two_norms_with_shared_weights() -> None:
    def function(s: Calls, x: Tensor) -> Tensor:
        return sam(s, sam(s, x).relu())

    assert counts(rewritten(program(function), fuse_channel_norm, 2)) == {"permute": 4, "layer_norm": 2, "relu": 1}


def test_values_with_other_readers_stay() -> None:
    """The normalised map is read twice: weight and bias are not the norm's alone."""

    def function(s: Calls, x: Tensor) -> tuple[Tensor, Tensor]:
        u = x.mean(1, keepdim=True)
        n = (x - u) / torch.sqrt((x - u).pow(2).mean(1, keepdim=True) + 1e-6)
        return n * column(s.w), u

    def twice(s: Calls, x: Tensor) -> tuple[Tensor, Tensor]:
        n = ROOTS["div sqrt"](x - x.mean(1, keepdim=True), VARIANCES["pow"](x) + 1e-6)
        return n * column(s.w), n

    assert counts(rewritten(program(function, outputs=2), fuse_channel_norm, 1)) == ONE | {"mean": 1}
    found = counts(rewritten(program(twice, outputs=2), fuse_channel_norm, 1))
    assert (found["layer_norm"], found["mul"]) == (1, 1)


def spelled(  # type: ignore[no-untyped-def]
    centred=lambda x: x - x.mean(1, keepdim=True),
    squared=lambda d: d.pow(2),
    mean=lambda q: q.mean(1, keepdim=True),
    inside=lambda v: v + 1e-3,
    root=lambda d, v: d / v.sqrt(),
) -> Function:
    return lambda _, x: root(centred(x), inside(mean(squared(x - x.mean(1, keepdim=True)))))


REFUSED: dict[str, Function] = {
    "cubed": spelled(squared=lambda d: d.abs().pow(3)),
    "doubled, not squared": spelled(squared=lambda d: d * 2),
    "another product": spelled(squared=lambda d: d.abs() * d.abs()),
    "a product with itself shifted": lambda _, x: (
        (x - x.mean(1, keepdim=True)) / ((x - x.mean(1, keepdim=True)) * x).mean(1, keepdim=True).abs().add(1e-3).sqrt()
    ),
    "unbiased": lambda _, x: (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True) + 1e-3).sqrt(),
    "variance of all": lambda _, x: (x - x.mean(1, keepdim=True)) / (x.var(correction=0, keepdim=True) + 1e-3).sqrt(),
    "std": lambda _, x: (x - x.mean(1, keepdim=True)) / (x.std(1, correction=0, keepdim=True) + 1e-3),
    "mean over another axis": spelled(mean=lambda q: q.mean(2, keepdim=True)),
    "mean over all": spelled(mean=lambda q: q.mean((1, 2, 3), keepdim=True)),
    "centred elsewhere": spelled(centred=lambda x: x - x.mean(2, keepdim=True)),
    "not centred": spelled(centred=lambda x: x),
    "half centred": spelled(centred=lambda x: torch.sub(x, x.mean(1, keepdim=True), alpha=0.5)),
    "other way round": spelled(centred=lambda x: x.mean(1, keepdim=True) - x),
    "no eps": spelled(inside=lambda v: v),
    "eps by a tensor": spelled(inside=lambda v: v + v.exp()),
    "scaled eps": spelled(inside=lambda v: v * 1e-3),
    "weighted sum": spelled(inside=lambda v: torch.add(v, 1e-3, alpha=2)),
    "no root": spelled(root=lambda d, v: d / v),
    "cube root": spelled(root=lambda d, v: d / v.pow(1 / 3)),
    "times the root": spelled(root=lambda d, v: d * v.sqrt()),
    "divided by rsqrt": spelled(root=lambda d, v: d / v.rsqrt()),
    "root divided by it": spelled(root=lambda d, v: v.sqrt() / (d + 10)),
    "variance of another value": lambda _, x: (
        (x - x.mean(1, keepdim=True)) / (x.exp().var(1, correction=0, keepdim=True) + 1e-3).sqrt()
    ),
    "rms norm": lambda _, x: x * (x.pow(2).mean(1, keepdim=True) + 1e-3).rsqrt(),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case: str) -> None:
    rewritten(program(REFUSED[case]), fuse_channel_norm, 0)


DROPPED: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "of the mean": lambda x: (x.mean(1), x.var(1, correction=0, keepdim=True)),
    "of the variance": lambda x: (x.mean(1, keepdim=True), x.var(1, correction=0)),
    "of the unbiased variance": lambda x: (x.mean(1, keepdim=True), x.var(1, unbiased=False)),
    "of the mean square": lambda x: (u := x.mean(1, keepdim=True), (x - u).pow(2).mean(1)),
}


@pytest.mark.parametrize("case", DROPPED)
def test_refuses_axes_that_are_dropped(case: str) -> None:
    """(4, 4, 4) broadcasts against (4, 4, 4, 4) all the same, along other axes."""

    def function(_: Calls, x: Tensor) -> Tensor:
        mean, variance = DROPPED[case](x)
        return (x - mean) / torch.sqrt(variance + 1e-3)

    rewritten(program(function, (4, 4, 4, 4)), fuse_channel_norm, 0)


def test_refuses_axes_that_are_no_channels() -> None:
    def function(_: Calls, x: Tensor) -> Tensor:
        return (x - x.mean(2, keepdim=True)) / torch.sqrt(x.var(2, correction=0, keepdim=True) + 1e-5)

    rewritten(program(function), fuse_channel_norm, 0)
    rewritten(program(lambda _, x: function(_, x), (2, 4, "height", 5)), fuse_channel_norm, 0)


def test_refuses_a_dynamic_channel_count() -> None:
    def function(_: Calls, x: Tensor) -> Tensor:
        return (x - x.mean(1, keepdim=True)) / torch.sqrt(x.var(1, correction=0, keepdim=True) + 1e-5)

    rewritten(program(function, (2, "channels", 3, 5)), fuse_channel_norm, 0)


@pytest.mark.parametrize(
    "affine",
    [
        lambda s, n: n * s.w,  # along the last axis
        lambda s, n: n * s.w[:, None, None].exp(),  # computed
        lambda s, n: n * n,
        lambda s, n: torch.add(n, column(s.b), alpha=2),
        lambda s, n: n - column(s.b),
        lambda s, n: n + torch.ones(5, 1, 1, 1, 1),  # grows
        lambda s, n: n * s.w.view(1, 1, 4, 1, 1),  # one axis more
        lambda s, n: n * s.w.view(4, 1),  # along the third axis
    ],
)
def test_another_product_behind_it_stays(affine: Callable[[Calls, Tensor], Tensor]) -> None:
    def function(s: Calls, x: Tensor) -> Tensor:
        return affine(s, (x - x.mean(1, keepdim=True)) / torch.sqrt(x.var(1, correction=0, keepdim=True) + 1e-5))

    before = program(function, (2, 4, 4, 4))
    found = counts(rewritten(before, fuse_channel_norm, 1))
    assert found["layer_norm"] == 1
    assert set(found) & {"mul", "add", "sub"}
