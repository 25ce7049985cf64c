"""DyT's factors go into the affine maps around it, where nobody else can tell."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY
from hypothesis import given, settings
from hypothesis import strategies as st
from passes.programs import Calls, counts, randomise, rewritten, traced
from torch import Tensor, nn

from edgesam_deploy.capture import capture
from edgesam_deploy.contract import Interface
from edgesam_deploy.model.layers import DynamicTanh
from edgesam_deploy.model.registry import load
from edgesam_deploy.passes.aten import (
    eliminate_identity,
    fold_batch_norm,
    fold_constants,
    fold_dyt_affine,
    merge_parallel_convs,
)
from edgesam_deploy.passes.engine import Engine
from edgesam_deploy.passes.execute import relative_l2, run_program
from edgesam_deploy.passes.lower_to_onnx import lower_to_onnx
from edgesam_deploy.passes.program import Program

Function = Callable[..., Tensor | tuple[Tensor, ...]]


def on_maps(before: nn.Module, after: nn.Module, channels: int = 4) -> nn.Module:
    return randomise(nn.Sequential(before, DynamicTanh(channels, channels_last=False), after))


def on_tokens(function: Function, outputs: int = 1, shape: tuple[int | str, ...] = (2, 5, 4)) -> Program:
    module = Calls(function, first=nn.Linear(4, 6), dyt=DynamicTanh(6, channels_last=True), second=nn.Linear(6, 3),
                   third=nn.Linear(6, 3), conv=nn.Conv2d(6, 3, 1), table=torch.randn(4, 6))  # fmt: skip
    return traced(randomise(module), shape, outputs=outputs)


def test_linear_layers_on_both_sides() -> None:
    after = rewritten(on_tokens(lambda s, x: s.second(s.dyt(s.first(x)))), fold_dyt_affine, 2)
    assert counts(after) == {"linear": 2, "tanh": 1}
    shapes = {name: tuple(value.shape) for name, value in after.aten.state_dict.items()}
    assert shapes == {"first.weight_1": (6, 4), "first.bias_1": (6,), "second.weight_1": (3, 6), "second.bias_1": (3,)}


@given(
    kernel=st.integers(1, 3), stride=st.integers(1, 2), groups=st.sampled_from([1, 2, 4]), bias=st.booleans(),
    before=st.sampled_from([1, 2, 4]),
)  # fmt: skip
@settings(max_examples=8, deadline=None, derandomize=True)
def test_convolutions_without_padding(kernel: int, stride: int, groups: int, bias: bool, before: int) -> None:
    first = nn.Conv2d(4, 4, 3, padding=1, groups=before, bias=bias)
    second = nn.Conv2d(4, 8, kernel, stride, groups=groups, bias=bias)
    after = rewritten(traced(on_maps(first, second), (2, 4, 6, 7)), fold_dyt_affine, 2)
    assert counts(after) == {"conv2d": 2, "tanh": 1}


@pytest.mark.parametrize("padding", [1, (1, 0), (0, 2)])
@pytest.mark.parametrize("groups", [1, 2])
def test_beta_stays_where_zeros_are_padded(padding: int | tuple[int, int], groups: int) -> None:
    module = on_maps(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 3, padding=padding, groups=groups))
    after = rewritten(traced(module, (2, 3, 5, 6)), fold_dyt_affine, 2)
    assert counts(after) == {"conv2d": 2, "tanh": 1, "add": 1}


@pytest.mark.parametrize("options", [{"stride": 2}, {"stride": 2, "padding": 1}, {"groups": 2, "bias": False}])
def test_beta_stays_before_a_transposed_convolution(options: dict[str, int]) -> None:
    first, second = nn.ConvTranspose2d(3, 4, 2, 2), nn.ConvTranspose2d(4, 6, 2, **options)  # type: ignore[arg-type]
    after = rewritten(traced(on_maps(first, second), (2, 3, 5, 6)), fold_dyt_affine, 2)
    assert counts(after) == {"conv_transpose2d": 2, "tanh": 1, "add": 1}


@pytest.mark.parametrize(
    ("gamma", "beta", "sites"), [(2**-10, 1000 / 1024, 1), (2**-10, 1000.5 / 1024, 0), (0.0, 1.0, 0), (0.0, 0.0, 0)]
)
def test_beta_over_gamma_stays_small(gamma: float, beta: float, sites: int) -> None:
    module = on_maps(nn.ReLU(), nn.Conv2d(4, 6, 3, padding=1))
    with torch.no_grad():
        module[1].weight[2], module[1].bias[2] = gamma, beta  # type: ignore[index]
        for i in (0, 1, 3):
            module[1].weight[i], module[1].bias[i] = -2.0, 0.5  # type: ignore[index]
    rewritten(traced(module, (1, 4, 5, 5)), fold_dyt_affine, sites)


def test_a_gamma_of_zero_may_go_into_what_takes_beta_too() -> None:
    module = on_maps(nn.ReLU(), nn.Conv2d(4, 6, 1))
    with torch.no_grad():
        module[1].weight[2] = 0  # type: ignore[index]
    rewritten(traced(module, (1, 4, 5, 5)), fold_dyt_affine, 1)


ROUTES: dict[str, Function] = {
    "tokens": lambda s, x: s.second(s.dyt(x)),
    "transposed there and back": lambda s, x: s.second(s.dyt(x).transpose(1, 2).transpose(2, 1)),
    "transposed from the end": lambda s, x: s.second(s.dyt(x).transpose(0, 1)),
    "tokens to a map": lambda s, x: s.conv(s.dyt(x).transpose(1, 2).unflatten(2, (2, 3))),
    "tokens to a map by a permutation": lambda s, x: s.conv(s.dyt(x).unflatten(1, (2, 3)).permute(0, 3, 1, 2)),
    "from the end": lambda s, x: s.conv(s.dyt(x).unflatten(-2, (3, 2)).permute(0, -1, 1, 2)),
    "flattened before": lambda s, x: s.second(s.dyt(x).flatten(0, 1)),
    "flattened behind": lambda s, x: s.second(s.dyt(x).transpose(1, 2).unflatten(2, (2, 3)).flatten(2).transpose(1, 2)),
    "flattened behind the batch": lambda s, x: s.second(s.dyt(x).unflatten(1, (2, 3)).flatten(1, 2)),
    "gamma and beta of all axes": lambda s, x: s.second(
        torch.tanh(x * s.dyt.alpha) * s.dyt.weight.view(1, 1, 6) + s.dyt.bias.view(1, 1, 6)
    ),
    "split behind": lambda s, x: s.second(s.dyt(x).transpose(1, 2).unflatten(2, (2, 3)).permute(0, 2, 3, 1)),
}


def routed(function: Function) -> Program:
    module = Calls(function, dyt=DynamicTanh(6, channels_last=True), second=nn.Linear(6, 3), conv=nn.Conv2d(6, 3, 1),
                   wide=nn.Linear(36, 3))  # fmt: skip
    return traced(randomise(module), (2, 6, 6))


@pytest.mark.parametrize("route", ROUTES)
def test_read_through_layouts(route: str) -> None:
    found = counts(rewritten(routed(ROUTES[route]), fold_dyt_affine, 1))
    assert not {"add"} & set(found)
    assert found["mul"] == 1, "alpha has nowhere to go"


MIXED: dict[str, Function] = {
    "joined with the channels": lambda s, x: s.second(s.dyt(x).flatten(1).unflatten(1, (6, 6))),
    "joined behind the channels": lambda s, x: s.wide(s.dyt(x).transpose(1, 2).flatten(1, 2)),
    "the channels split": lambda s, x: s.second(s.dyt(x).unflatten(2, (2, 3)).flatten(2)),
    "another axis": lambda s, x: s.second(s.dyt(x).transpose(1, 2)),
    "another axis of a map": lambda s, x: s.conv(s.dyt(x).unflatten(2, (2, 3))),
    "a reshape": lambda s, x: s.second(s.dyt(x).reshape(2, 6, 6)),
    "a relu": lambda s, x: s.second(s.dyt(x).relu()),
    "as the weight": lambda s, x: F.linear(x, s.dyt(x)[0]),
    "as weight alone": lambda s, x: F.linear(x, s.dyt(x.mean((0, 1)) + x[0])),
}


@pytest.mark.parametrize("route", MIXED)
def test_other_readers(route: str) -> None:
    rewritten(routed(MIXED[route]), fold_dyt_affine, 0)


def test_shared_weights_are_folded_for_this_reader_only() -> None:
    after = rewritten(on_tokens(lambda s, x: s.second(s.dyt(s.first(x))) + s.second(s.first(x))), fold_dyt_affine, 2)
    assert counts(after)["linear"] == 4
    assert len(after.aten.state_dict) == 8


def test_one_dyt_used_twice_and_a_dynamic_batch() -> None:
    def function(s: Calls, x: Tensor) -> Tensor:
        return s.second(s.dyt(s.first(x))) + s.third(s.dyt(s.first(x)))

    assert counts(rewritten(on_tokens(function, shape=("batch", 5, 4)), fold_dyt_affine, 4))["linear"] == 4


def test_a_scaled_value_may_have_several_readers() -> None:
    def function(s: Calls, x: Tensor) -> Tensor:
        y = s.dyt.alpha * s.first(x)
        return torch.tanh(y) + y

    assert counts(rewritten(on_tokens(function), fold_dyt_affine, 1)) == {"linear": 1, "tanh": 1, "add": 1}


def test_alpha_may_be_a_number_and_the_layer_without_bias() -> None:
    module = Calls(lambda s, x: torch.tanh(F.linear(x, s.table.T) * -1.7), table=torch.randn(4, 6))
    before = Engine("off").run(traced(module, (3, 4)), (fold_constants,))
    assert counts(rewritten(before, fold_dyt_affine, 1)) == {"linear": 1, "tanh": 1}


def affine(s: Calls, x: Tensor) -> Tensor:
    return x * s.dyt.weight + s.dyt.bias


ONE_SIDE: dict[str, tuple[Function, int]] = {
    "the layer before is read elsewhere": (lambda s, x: (s.dyt(y := s.first(x)), y.exp())[0] + y, 0),
    "a residual": (lambda s, x: s.second(s.dyt(s.first(x) + s.table[0])), 1),
    "two readers": (lambda s, x: s.second(y := s.dyt(s.first(x))) + s.third(y), 1),
    "an output": (lambda s, x: s.dyt(s.first(x)), 1),
    "the tanh is read elsewhere": (lambda s, x: s.second(affine(s, t := s.first(x).tanh())) + s.third(t), 0),
    "computed gamma": (lambda s, x: s.second(torch.tanh(s.first(x)) * s.dyt.weight.exp() + s.dyt.bias), 0),
    "computed beta": (lambda s, x: s.second(torch.tanh(s.first(x)) * s.dyt.weight + s.dyt.bias.exp()), 0),
    "no beta": (lambda s, x: s.second(torch.tanh(s.first(x)) * s.dyt.weight), 0),
    "no gamma": (lambda s, x: s.second(torch.tanh(s.first(x)) + s.dyt.bias), 0),
    "gamma of one value": (lambda s, x: s.second(torch.tanh(s.first(x)) * s.dyt.alpha + s.dyt.bias), 0),
    "beta of one value": (lambda s, x: s.second(torch.tanh(s.first(x)) * s.dyt.weight + s.dyt.alpha), 0),
    "gamma of many": (lambda s, x: s.second(torch.tanh(s.table) * s.table + s.dyt.bias + x.sum()), 0),
    "beta counted twice": (lambda s, x: s.second(torch.add(s.first(x).tanh() * s.dyt.weight, s.dyt.bias, alpha=2)), 0),
    "alpha per channel": (lambda s, x: torch.tanh(s.first(x) * s.dyt.weight), 0),
    "computed alpha": (lambda s, x: torch.tanh(s.first(x) * s.dyt.alpha.exp()), 0),
    "computed weights": (
        lambda s, x: F.linear(affine(s, torch.tanh(F.linear(x, s.first.weight.exp()) * 2)), s.table.exp()), 0,
    ),
    "computed bias": (lambda s, x: torch.tanh(F.linear(x, s.first.weight, s.first.bias.exp()) * 2), 0),
    "alpha adds an axis": (lambda s, x: torch.tanh(s.first(x) * s.dyt.alpha[None, None, None]), 0),
}  # fmt: skip


@pytest.mark.parametrize("case", ONE_SIDE)
def test_what_may_not_be_folded(case: str) -> None:
    function, sites = ONE_SIDE[case]
    rewritten(on_tokens(function), fold_dyt_affine, sites)


def test_gamma_along_one_axis_and_beta_along_another() -> None:
    def function(s: Calls, x: Tensor) -> Tensor:
        return s.net(torch.tanh(x) * s.gamma[:, None] + s.beta)

    module = Calls(function, net=nn.Linear(4, 3), gamma=torch.randn(4), beta=torch.randn(4))
    rewritten(traced(randomise(module), (2, 4, 4)), fold_dyt_affine, 0)


def test_what_is_left_alone_says_why(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="edgesam_deploy.passes.aten.fold_dyt_affine"):
        rewritten(on_tokens(lambda s, x: s.dyt(x @ s.table)), fold_dyt_affine, 0)
    assert "alpha of tanh: matmul is no affine map, or something else reads it" in caplog.text
    assert "gamma of tanh: its only reader is no affine map over the channels" in caplog.text


def test_same_results_in_onnx_with_fewer_operators() -> None:
    before = traced(on_maps(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 3, padding=1)), (2, 3, 5, 6))
    after = rewritten(before, fold_dyt_affine, 2).copy()
    lower_to_onnx(20, 9)(after)
    assert counts(after) == {"Conv": 2, "Tanh": 1, "Add": 1}
    x = {"x": np.random.default_rng(0).standard_normal((2, 3, 5, 6)).astype(np.float32)}
    assert relative_l2(run_program(before, x)["out0"], run_program(after, x)["out0"]) < 1e-5


def test_sites_of_the_dyt_model() -> None:
    """Encoder: both alphas of the neck, and the first gamma, whose beta a padded convolution keeps out. Decoder: the
    alphas behind the first attention (no residual there) and the first upscaling; the rest has several readers.
    """
    prepare = (eliminate_identity, fold_constants, fold_batch_norm, merge_parallel_convs, fold_batch_norm)
    encoder, decoder = (
        Engine("off").run(program, prepare)
        for program in capture(load("edge_sam_dyt", seed=0, config=TINY), Interface(image_size=256, embed_dim=64))
    )
    after = rewritten(encoder, fold_dyt_affine, 3)
    assert encoder.operators() - after.operators() == {"mul": 3}
    rewritten(decoder, fold_dyt_affine, 2)
