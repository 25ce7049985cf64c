"""Layer norm as means and products: the same in fp32, and still finite in fp16."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from passes.programs import Calls, counts, randomise, rewritten, traced
from torch import Tensor, nn

from edgesam_deploy.passes.aten import decompose_layer_norm
from edgesam_deploy.passes.execute import relative_l2, run_program
from edgesam_deploy.passes.lower_to_onnx import lower_to_onnx
from edgesam_deploy.passes.program import Program

STEPS = {"mean": 2, "sub": 1, "mul": 3, "add": 1, "rsqrt": 1, "clamp": 1}
AFFINE = STEPS | {"mul": 4, "add": 2}


def norm(sizes: int | list[int], shape: tuple[int | str, ...], eps: float = 1e-5, *, affine: bool = True) -> Program:
    return traced(randomise(nn.LayerNorm(sizes, eps, elementwise_affine=affine)), shape)


def in_half(program: Program, x: Tensor) -> Tensor:
    """The program's graph run in fp16."""
    module = copy.deepcopy(program.aten).module().half()
    with torch.no_grad():
        return module(x=x.half()).float()  # type: ignore[no-any-return]


def plain(x: Tensor, eps: float) -> Tensor:
    """As decompositions usually spell it."""
    centred = x - x.mean(-1, keepdim=True)
    return centred * torch.rsqrt((centred * centred).mean(-1, keepdim=True) + eps)


def test_on_tokens() -> None:
    assert counts(rewritten(norm(6, (2, 5, 6)), decompose_layer_norm, 1)) == AFFINE


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.integers(1, 4),
    st.sampled_from([1e-12, 1e-6, 1e-5, 1e-3, 0.3, 2.0]),
    st.booleans(),
)
@settings(max_examples=10, deadline=None, derandomize=True)
def test_any_axes_and_eps(shape: list[int], trailing: int, eps: float, affine: bool) -> None:
    sizes = shape[-trailing:]
    after = rewritten(norm(sizes, (2, *shape), eps, affine=affine), decompose_layer_norm, 1)
    assert counts(after) == (AFFINE if affine else STEPS)


@given(st.floats(-100, 100), st.sampled_from([1e-3, 0.02, 1.0, 300.0]), st.sampled_from([1e-6, 1e-5]))
@settings(max_examples=10, deadline=None, derandomize=True)
def test_large_means_and_tiny_or_huge_spreads(mean: float, spread: float, eps: float) -> None:
    """Against float64; the mean of fp32 values is known to a few units of its last digit, however it is summed."""
    after = rewritten(norm(64, (3, 64), eps, affine=False), decompose_layer_norm, 1)
    x = np.random.default_rng(3).normal(mean, spread, (3, 64)).astype(np.float32)
    exact = F.layer_norm(torch.from_numpy(x).double(), (64,), eps=eps).numpy()
    digits = 1e-6 + 3e-7 * abs(mean) / (spread**2 + eps) ** 0.5
    assert relative_l2(exact, run_program(after, {"x": x})["out0"]) < digits


def test_weight_or_bias_may_be_missing() -> None:
    weight = Calls(lambda s, x: F.layer_norm(x, (4,), s.w), w=torch.randn(4))
    assert counts(rewritten(traced(weight, (3, 4)), decompose_layer_norm, 1)) == STEPS | {"mul": 4}
    bias = Calls(lambda s, x: F.layer_norm(x, (4,), None, s.w), w=torch.randn(4))
    assert counts(rewritten(traced(bias, (3, 4)), decompose_layer_norm, 1)) == STEPS | {"add": 2}


def test_the_operators_own_eps() -> None:
    module = Calls(lambda _, x: torch.ops.aten.layer_norm.default(x * 1e-3, [4]))  # so small that eps counts
    assert counts(rewritten(traced(module, (3, 4)), decompose_layer_norm, 1)) == STEPS | {"mul": 4}


def test_without_eps_there_is_no_cap() -> None:
    module = Calls(lambda _, x: F.layer_norm(x, (4,), eps=0.0))
    assert "clamp" not in counts(rewritten(traced(module, (3, 4)), decompose_layer_norm, 1))


@pytest.mark.parametrize("eps", [1e-6, 1e-5, 1e-3])
def test_the_cap_is_the_next_power_of_two(eps: float) -> None:
    """Never below what fp32 can reach, and within fp16."""
    after = rewritten(norm(4, (3, 4), eps), decompose_layer_norm, 1)
    (clamp,) = (n for n in after.aten.graph.nodes if n.target == torch.ops.aten.clamp.default)
    low, cap = clamp.args[1:]
    assert low is None
    assert 1 <= cap / (32 / eps**0.5) < 2
    assert np.log2(cap) % 1 == 0
    assert np.isfinite(np.float16(cap))


def test_one_norm_used_twice_and_dynamic_batch() -> None:
    module = randomise(Calls(lambda s, x: s.net(s.net(x).relu()) + x, net=nn.LayerNorm(4)))
    after = rewritten(traced(module, ("batch", 3, 4)), decompose_layer_norm, 2)
    assert counts(after)["rsqrt"] == 2
    assert set(after.aten.state_dict) == {"net.weight", "net.bias"}


@pytest.mark.parametrize("eps", [1e-6, 1e-5])
@pytest.mark.parametrize("magnitude", [0.05, 1.0, 1000.0, 1800.0])
def test_fp16_of_any_magnitude(magnitude: float, eps: float) -> None:
    after = rewritten(norm(256, (40, 256), eps), decompose_layer_norm, 1)
    x = magnitude * torch.randn(40, 256, generator=torch.Generator().manual_seed(1))
    x = x.half().float()
    expected = run_program(after, {"x": x.numpy()})["out0"]
    assert relative_l2(expected, in_half(after, x).numpy()) < 1e-2


def test_the_plain_form_overflows_where_this_does_not() -> None:
    x = 1000 * torch.randn(40, 256, generator=torch.Generator().manual_seed(1))
    reference = plain(x, 1e-5)
    assert float((plain(x.half(), 1e-5).float() - reference).norm() / reference.norm()) > 0.9
    after = rewritten(norm(256, (40, 256), affine=False), decompose_layer_norm, 1)
    assert float((in_half(after, x) - reference).norm() / reference.norm()) < 1e-2


def test_8160_from_the_mean_still_fits() -> None:
    after = rewritten(norm(4, (1, 4), affine=False), decompose_layer_norm, 1)
    assert bool(in_half(after, torch.tensor([[8160.0, -8160, 8160, -8160]])).isfinite().all())


@pytest.mark.parametrize("eps", [1e-6, 1e-5])
def test_equal_values_are_zero_in_fp16(eps: float) -> None:
    """eps / 32^2 is zero there, and so is the variance."""
    after = rewritten(norm(8, (2, 8), eps, affine=False), decompose_layer_norm, 1)
    assert float(in_half(after, torch.full((2, 8), 3.0)).abs().max()) == 0


def test_lowers_without_the_operator() -> None:
    before = norm([3, 4], (2, 3, 4))
    after = rewritten(before, decompose_layer_norm, 1)
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    expected = run_program(before, {"x": x})["out0"]
    copied = after.copy()
    lower_to_onnx(20, 9)(copied)
    assert "LayerNormalization" not in counts(copied)
    assert relative_l2(expected, run_program(copied, {"x": x})["out0"]) < 1e-6


def test_other_norms_stay() -> None:
    module = randomise(nn.Sequential(nn.BatchNorm2d(4), nn.GroupNorm(2, 4)))
    rewritten(traced(module, (2, 4, 3, 3)), decompose_layer_norm, 0)
