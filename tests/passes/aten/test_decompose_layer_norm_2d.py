"""The channel norm without its two transposes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from passes.programs import Calls, counts, randomise, rewritten, traced
from torch import Tensor

from edgesam_deploy.model.layers import LayerNorm2d
from edgesam_deploy.passes.aten import decompose_layer_norm_2d
from edgesam_deploy.passes.execute import relative_l2, run_program
from edgesam_deploy.passes.lower_to_onnx import lower_to_onnx

FORM = {"mean": 2, "sub": 1, "mul": 4, "add": 2, "rsqrt": 1, "clamp": 1}


@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 4), st.sampled_from([1e-6, 1e-3, 0.5]))
@settings(max_examples=8, deadline=None, derandomize=True)
def test_any_map(channels: int, height: int, width: int, eps: float) -> None:
    program = traced(randomise(LayerNorm2d(channels, eps)), (2, channels, height, width))
    after = rewritten(program, decompose_layer_norm_2d, 1)
    assert counts(after) == FORM
    assert {tuple(v.shape) for v in after.aten.state_dict.values()} == {(channels, 1, 1)}


def test_fp16_at_magnitude_1000() -> None:
    after = rewritten(traced(randomise(LayerNorm2d(32)), (1, 32, 6, 6)), decompose_layer_norm_2d, 1)
    x = 1000 * torch.randn(1, 32, 6, 6, generator=torch.Generator().manual_seed(0))
    expected = run_program(after, {"x": x.numpy()})["out0"]
    with torch.no_grad():
        half = after.aten.module().half()(x=x.half()).float().numpy()
    assert relative_l2(expected, half) < 1e-2


def norm(x: Tensor, to_last: list[int], to_first: list[int], channels: int) -> Tensor:
    return F.layer_norm(x.permute(to_last), (channels,)).permute(to_first)


@pytest.mark.parametrize(
    ("shape", "to_last", "to_first"),
    [
        ((2, 3, 5), [0, 2, 1], [0, 2, 1]),
        ((2, 3, 4, 5), [0, 2, 3, 1], [0, 3, 1, 2]),
        ((2, 3, 2, 4, 5), [0, 2, 3, 4, 1], [0, 4, 1, 2, 3]),
        (("batch", 3, "height", 5), [0, 2, 3, 1], [0, 3, 1, 2]),
    ],
)
def test_any_rank(shape: tuple[int | str, ...], to_last: list[int], to_first: list[int]) -> None:
    module = Calls(lambda _, x: norm(x, to_last, to_first, 3))
    assert "permute" not in counts(rewritten(traced(module, shape), decompose_layer_norm_2d, 1))


def test_computed_weights_are_reshaped_in_the_graph() -> None:
    def function(s: Calls, x: Tensor) -> Tensor:
        y = F.layer_norm(x.permute(0, 2, 3, 1), (3,), s.w.exp(), s.w)
        return y.permute(0, 3, 1, 2)

    program = traced(Calls(function, w=torch.tensor([0.3, -1.0, 2.0])), (2, 3, 4, 4))
    after = rewritten(program, decompose_layer_norm_2d, 1)
    assert counts(after) == FORM | {"exp": 1, "reshape": 1}


def test_the_operators_own_eps() -> None:
    def function(_: Calls, x: Tensor) -> Tensor:
        small = (x * 1e-3).permute(0, 2, 3, 1)  # so small that eps counts
        return torch.ops.aten.layer_norm.default(small, [3]).permute(0, 3, 1, 2)

    rewritten(traced(Calls(function), (2, 3, 4, 4)), decompose_layer_norm_2d, 1)


def test_two_norms_one_of_them_twice() -> None:
    module = randomise(Calls(lambda s, x: s.b(s.a(s.a(x)).relu()), a=LayerNorm2d(3), b=LayerNorm2d(3)))
    assert counts(rewritten(traced(module, (1, 3, 4, 5)), decompose_layer_norm_2d, 3))["rsqrt"] == 3


def test_the_first_permute_may_have_other_readers() -> None:
    def function(_: Calls, x: Tensor) -> tuple[Tensor, Tensor]:
        last = x.permute(0, 2, 3, 1)
        return F.layer_norm(last, (3,)).permute(0, 3, 1, 2), last.relu()

    after = rewritten(traced(Calls(function), (1, 3, 4, 5), outputs=2), decompose_layer_norm_2d, 1)
    assert counts(after)["permute"] == 1


def test_lowers_without_transposes() -> None:
    before = traced(randomise(LayerNorm2d(8)), (1, 8, 5, 6))
    after = rewritten(before, decompose_layer_norm_2d, 1).copy()
    x = {"x": np.random.default_rng(0).standard_normal((1, 8, 5, 6)).astype(np.float32)}
    lower_to_onnx(20, 9)(after)
    assert not {"Transpose", "LayerNormalization"} & set(counts(after))
    assert relative_l2(run_program(before, x)["out0"], run_program(after, x)["out0"]) < 1e-6


def read_in_between(_: Calls, x: Tensor) -> Tensor:
    y = F.layer_norm(x.permute(0, 2, 3, 1), (3,))
    return y.permute(0, 3, 1, 2) + y.sum()


REFUSED = {
    "the norm is read channels-last too": read_in_between,
    "two axes": lambda _, x: F.layer_norm(x.permute(0, 2, 3, 1), (5, 3)).permute(0, 3, 1, 2),
    "another way in": lambda _, x: F.layer_norm(x.permute(0, 3, 2, 1), (3,)).permute(0, 3, 1, 2),
    "another way out": lambda _, x: F.layer_norm(x.permute(0, 2, 3, 1), (3,)).permute(0, 3, 2, 1),
    "no way in": lambda _, x: F.layer_norm(x, (5,)).permute(0, 3, 1, 2),
    "flipped instead": lambda _, x: F.layer_norm(x.flip(0, 2, 3, 1), (5,)).permute(0, 3, 1, 2),
    "no norm": lambda _, x: x.permute(0, 2, 3, 1).relu().permute(0, 3, 1, 2),
    "something in between": lambda _, x: F.layer_norm(x.permute(0, 2, 3, 1).relu(), (3,)).permute(0, 3, 1, 2),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case: str) -> None:
    rewritten(traced(Calls(REFUSED[case]), (2, 3, 4, 5)), decompose_layer_norm_2d, 0)
