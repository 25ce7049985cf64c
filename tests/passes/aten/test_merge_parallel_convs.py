"""Parallel convolutions and the identity become one kernel, and only where the sum is one convolution."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from passes.programs import Calls, counts, randomise, rewritten, traced
from torch import Tensor, nn

from edgesam_deploy.passes.aten import fold_batch_norm, merge_parallel_convs

Kernel = int | tuple[int, int]


def same(kernel: Kernel, groups: int = 4, bias: bool = True, channels: int = 4) -> nn.Conv2d:
    """A convolution that keeps channels and size."""
    height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
    return nn.Conv2d(channels, channels, (height, width), padding=(height // 2, width // 2), groups=groups, bias=bias)


def program(function: Callable[..., Tensor | tuple[Tensor, ...]], outputs: int = 1, **children: nn.Module):  # type: ignore[no-untyped-def]
    return traced(randomise(Calls(function, **children)), (2, 4, 6, 5), outputs=outputs)


def test_repvits_block() -> None:
    before = program(lambda s, x: s.a(x) + s.b(x) + x, a=same(3), b=same(1))
    after = rewritten(before, merge_parallel_convs, 1)
    assert counts(after) == {"conv2d": 1}
    shapes = {name: tuple(value.shape) for name, value in after.aten.state_dict.items()}
    assert shapes == {"a.merged.weight": (4, 1, 3, 3), "a.merged.bias": (4,)}


@given(
    kernels=st.lists(st.sampled_from([1, 3, 5, (1, 3), (3, 1), (1, 5), (5, 3)]), min_size=1, max_size=3),
    identities=st.integers(0, 2),
    groups=st.sampled_from([1, 2, 4]),
    biases=st.lists(st.booleans(), min_size=3, max_size=3),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=12, deadline=None, derandomize=True)
def test_any_sum_over_one_input(kernels, identities, groups, biases, order) -> None:  # type: ignore[no-untyped-def]
    """Any association and order of the summands, an identity twice included."""
    if len(kernels) + identities < 2:
        identities = 1
    convs = nn.ModuleList(same(k, groups, bias) for k, bias in zip(kernels, biases, strict=False))
    plan = [(order.randrange(9), order.randrange(9)) for _ in range(9)]

    def function(s: Calls, x: Tensor) -> Tensor:
        terms = [*(conv(x) for conv in s.convs), *([x] * identities)]
        for i, j in plan:
            if len(terms) > 1:
                terms.append(terms.pop(i % len(terms)) + terms.pop(j % len(terms)))
        return terms[0]

    assert counts(rewritten(program(function, convs=convs), merge_parallel_convs, 1)) == {"conv2d": 1}


def test_kernels_of_all_shapes_are_centred() -> None:
    """1x5 and 3x1 have no common kernel: the merged one is 3x5."""
    before = program(lambda s, x: s.a(x) + s.b(x), a=same((1, 5)), b=same((3, 1)))
    after = rewritten(before, merge_parallel_convs, 1)
    assert sorted(tuple(v.shape) for v in after.aten.state_dict.values()) == [(4,), (4, 1, 3, 5)]


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_one_convolution_and_the_identity(groups: int) -> None:
    after = rewritten(program(lambda s, x: x + s.a(x), a=same(3, groups, bias=False)), merge_parallel_convs, 1)
    assert counts(after) == {"conv2d": 1}


def test_a_deep_tree_is_one_site() -> None:
    """The dead inner sums must not be merged a second time."""
    before = program(
        lambda s, x: s.a(x) + (s.b(x) + (s.c(x) + (s.d(x) + x))), a=same(3), b=same(1), c=same(5), d=same(3)
    )
    assert counts(rewritten(before, merge_parallel_convs, 1)) == {"conv2d": 1}


def test_a_sum_that_contains_one() -> None:
    before = program(lambda s, x: x.relu() + (s.a(x) + s.b(x)), a=same(3), b=same(1))
    assert counts(rewritten(before, merge_parallel_convs, 1)) == {"relu": 1, "conv2d": 1, "add": 1}


def test_blocks_one_after_another() -> None:
    def function(s: Calls, x: Tensor) -> Tensor:
        x = (s.a(x) + s.b(x) + x).relu()
        return s.b(x) + s.c(x)

    before = program(function, a=same(3), b=same(1), c=same(5))
    assert counts(rewritten(before, merge_parallel_convs, 2)) == {"conv2d": 2, "relu": 1}


def test_values_may_have_other_readers_where_they_stay() -> None:
    def function(s: Calls, x: Tensor) -> tuple[Tensor, Tensor]:
        y = s.a(x) + s.b(x)
        return y, x * y

    before = program(function, outputs=2, a=same(3), b=same(1))
    assert counts(rewritten(before, merge_parallel_convs, 1)) == {"conv2d": 1, "mul": 1}


def test_weights_that_others_share_stay() -> None:
    """The shared module's weights are left for its other reader."""
    before = program(lambda s, x: s.b((s.a(x) + s.b(x)).relu()), a=same(3), b=same(1))
    after = rewritten(before, merge_parallel_convs, 1)
    assert counts(after) == {"conv2d": 2, "relu": 1}
    assert set(after.aten.state_dict) == {"a.merged.weight", "a.merged.bias", "b.weight", "b.bias"}


def test_dynamic_sizes() -> None:
    module = randomise(Calls(lambda s, x: s.a(x) + s.b(x) + x, a=same(3), b=same(1)))
    after = rewritten(traced(module, ("batch", 4, "height", "width")), merge_parallel_convs, 1)
    assert counts(after) == {"conv2d": 1}


def test_the_dyt_forks_order() -> None:
    """There the norms of the branches are followed by one of the sum: fold, merge, fold again."""

    def function(s: Calls, x: Tensor) -> Tensor:
        return s.outer(s.norm(s.a(x)) + s.b(x) + x)

    before = program(function, a=same(3, bias=False), norm=nn.BatchNorm2d(4), b=same(1), outer=nn.BatchNorm2d(4))
    after = rewritten(before, fold_batch_norm, 1)
    after = rewritten(after, merge_parallel_convs, 1)
    assert counts(after) == {"conv2d": 1, "batch_norm": 1}
    assert counts(rewritten(after, fold_batch_norm, 1)) == {"conv2d": 1}


def read_twice(s: Calls, x: Tensor) -> Tensor:
    y = s.a(x)
    return y + s.b(x) + y.relu()


def branch_is_output(s: Calls, x: Tensor) -> tuple[Tensor, Tensor]:
    y = s.a(x)
    return y, y + x


REFUSED: dict[str, tuple[Callable[..., object], nn.Module]] = {
    "stride": (lambda s, x: s.a(x[..., :5]) + s.b(x[..., :5]), nn.Conv2d(4, 4, 3, 2, 1, groups=4)),
    "groups": (lambda s, x: s.a(x) + s.c(x), same(3, 2)),
    "groups and identity": (lambda s, x: s.a(x) + (s.c(x) + x.relu()), same(3, 2)),
    "even kernel": (lambda s, x: s.a(x)[..., :6, :5] + s.c(x), nn.Conv2d(4, 4, 2, padding=1, groups=4)),
    "dilation": (lambda s, x: s.a(x) + s.c(x), nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4)),
    "no padding": (lambda s, x: s.a(x) + s.b(x)[..., 1:-1, 1:-1], nn.Conv2d(4, 4, 3, groups=4)),
    "too much padding": (lambda s, x: s.a(x) + x.mean(), nn.Conv2d(4, 4, 3, padding=2, groups=4)),
    "reflected padding": (lambda s, x: s.a(x) + s.c(x), nn.Conv2d(4, 4, 3, 1, 1, 1, 4, padding_mode="reflect")),
    "broadcast": (lambda s, x: s.a(x) + x[:1], same(3)),
    "channels": (lambda s, x: s.a(x) + x.repeat(1, 2, 1, 1), nn.Conv2d(4, 8, 1)),
    "two inputs": (lambda s, x: s.a(x) + s.c(x.relu()), same(3)),
    "identity of another value": (lambda s, x: s.a(x) + x.relu(), same(3)),
    "identity alone": (lambda s, x: s.a(x + x), same(3)),
    "a constant": (lambda s, x: s.a(x) + 1.0, same(3)),
    "weighted sum": (lambda s, x: torch.add(s.a(x), x, alpha=2), same(3)),
    "weighted inner sum": (lambda s, x: torch.add(s.a(x), s.c(x), alpha=0.5) + x, same(3)),
    "difference": (lambda s, x: s.a(x) - s.c(x), same(3)),
    "read twice": (read_twice, same(3)),
    "computed weight": (lambda s, x: nn.functional.conv2d(x, s.a.weight.tanh(), None, 1, 1, 1, 4) + x, same(3)),
    "computed bias": (lambda s, x: nn.functional.conv2d(x, s.a.weight, x.mean((0, 2, 3)), 1, 1, 1, 4) + x, same(3)),
    "input as weight": (lambda s, x: torch.conv2d(s.a.weight, x[:1, :1, :3, :3], None, 1, 1) + x.mean(), same(3)),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case: str) -> None:
    function, conv = REFUSED[case]
    children = {"b": nn.Conv2d(4, 4, 1, 2 if case == "stride" else 1, groups=4), "c": same(1)}
    rewritten(program(function, a=conv, **children), merge_parallel_convs, 0)  # type: ignore[arg-type]


def test_refuses_a_stride_that_keeps_a_small_map() -> None:
    """Padded by two, a stride of two makes two rows of two."""
    module = randomise(Calls(lambda s, x: s.a(x) + x, a=nn.Conv2d(4, 4, 3, stride=2, padding=2)))
    rewritten(traced(module, (1, 4, 2, 2)), merge_parallel_convs, 0)


def test_refuses_a_branch_that_is_an_output() -> None:
    rewritten(program(branch_is_output, outputs=2, a=same(3)), merge_parallel_convs, 0)


def test_the_inner_pair_of_a_weighted_sum() -> None:
    """A weighted outer sum is no reason to leave the plain inner one."""
    before = program(lambda s, x: torch.add(s.a(x) + s.b(x), x, alpha=2), a=same(3), b=same(1))
    assert counts(rewritten(before, merge_parallel_convs, 1)) == {"conv2d": 1, "add": 1}


def test_an_inner_sum_with_another_reader_is_merged_alone() -> None:
    def function(s: Calls, x: Tensor) -> Tensor:
        y = s.a(x) + x
        return (y + s.b(x)) * y

    before = program(function, a=same(3), b=same(1))
    assert counts(rewritten(before, merge_parallel_convs, 1)) == {"conv2d": 2, "add": 1, "mul": 1}


def test_refuses_an_identity_that_is_broadcast() -> None:
    module = randomise(Calls(lambda s, x: s.a(x) + x, a=nn.Conv2d(1, 4, 3, padding=1)))
    rewritten(traced(module, (2, 1, 6, 5)), merge_parallel_convs, 0)


def test_double_precision_stays() -> None:
    module = randomise(
        Calls(lambda s, x: s.net(x.double()).float(), net=Calls(lambda s, x: s.a(x) + x, a=same(3)))
    ).double()
    after = rewritten(traced(module, (1, 4, 5, 5)), merge_parallel_convs, 1)
    assert {v.dtype for v in after.aten.state_dict.values()} == {torch.float64}
