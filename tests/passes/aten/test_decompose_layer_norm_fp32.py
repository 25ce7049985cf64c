"""Layer norm as eight operators."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from passes.programs import Calls, counts, randomise, rewritten, traced
from torch import nn

from edgesam_deploy.contract import sample_inputs
from edgesam_deploy.model.layers import LayerNorm2d
from edgesam_deploy.passes.aten import decompose_layer_norm_fp32
from edgesam_deploy.passes.execute import run_program


@pytest.mark.parametrize("eps", [1e-5, 1e-6, 0.1])
@pytest.mark.parametrize("shape", [(7, 16), (2, 7, 16), ("batch", 3, 4, 16)])
def test_weights_and_eps(eps: float, shape: tuple[int | str, ...]) -> None:
    norm = randomise(nn.LayerNorm(16, eps=eps))
    found = counts(rewritten(traced(norm, shape), decompose_layer_norm_fp32, 1))
    assert found == {"mean": 1, "sub": 1, "mul": 3, "linear": 1, "rsqrt": 1, "add": 1}


def test_without_weights() -> None:
    after = rewritten(traced(Calls(lambda _, x: F.layer_norm(x, [8])), (3, 8)), decompose_layer_norm_fp32, 1)
    assert counts(after) == {"mean": 1, "sub": 1, "mul": 2, "linear": 1, "rsqrt": 1}


def test_a_norm_of_maps_keeps_its_transposes() -> None:
    after = rewritten(traced(randomise(LayerNorm2d(8)), (1, 8, 4, 6)), decompose_layer_norm_fp32, 1)
    assert counts(after)["permute"] == 2


def test_several_axes_stay() -> None:
    rewritten(traced(Calls(lambda _, x: F.layer_norm(x, [4, 8])), (3, 4, 8)), decompose_layer_norm_fp32, 0)


def test_a_row_of_equal_values() -> None:
    program = traced(Calls(lambda _, x: F.layer_norm(x * 0 + 3, [8])), (2, 8))
    after = rewritten(program, decompose_layer_norm_fp32, 1)
    values = run_program(after, sample_inputs(after.inputs, 1))["out0"]
    assert torch.from_numpy(values).abs().max() < 1e-3


def test_the_default_eps_counts_where_values_are_small() -> None:
    """Variances of 1e-6 beside an eps of 1e-5."""
    program = traced(Calls(lambda _, x: F.layer_norm(x * 1e-3, [16])), (7, 16))
    rewritten(program, decompose_layer_norm_fp32, 1)


@pytest.mark.parametrize("bias", [True, False])
def test_the_default_eps_with_weights(bias: bool) -> None:
    norm = randomise(nn.LayerNorm(16, bias=bias))
    program = traced(Calls(lambda s, x: s.norm(x * 1e-3), norm=norm), (7, 16))
    rewritten(program, decompose_layer_norm_fp32, 1)
