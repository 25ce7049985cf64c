"""erf GELU by tanh of a polynomial, within its stated bound."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from passes.programs import Calls, counts, randomise, rewritten, traced
from torch import Tensor, nn

from edgesam_deploy.passes.aten import decompose_gelu
from edgesam_deploy.passes.execute import relative_l2, run_program


def test_the_stated_bound_on_gelu_itself() -> None:
    after = rewritten(traced(Calls(lambda _, x: F.gelu(x)), ("n",)), decompose_gelu, 1)
    x = np.linspace(-12, 12, 400_001, dtype=np.float32)
    exact = F.gelu(torch.from_numpy(x).double()).numpy()
    worst = float(np.abs(run_program(after, {"x": x})["out0"] - exact).max())
    assert 3e-6 < worst < 3.5e-6
    assert worst / 0.1 < decompose_gelu.bound, "an output at the engine's floor"


@pytest.mark.parametrize("far", [20.0, 1e3, 1e8, 3e15])
def test_far_out_it_is_0_or_x(far: float) -> None:
    """The square overflows to infinity; the tanh is 1 all the same."""
    after = rewritten(traced(Calls(lambda _, x: F.gelu(x)), ("n",)), decompose_gelu, 1)
    found = run_program(after, {"x": np.array([far, -far], np.float32)})["out0"]
    np.testing.assert_array_equal(found, np.array([far, 0], np.float32))


@pytest.mark.parametrize("spread", [0.01, 0.3, 1.0, 5.0])
def test_relative_error_of_normal_activations(spread: float) -> None:
    after = rewritten(traced(Calls(lambda _, x: F.gelu(x)), ("n",)), decompose_gelu, 1)
    x = (spread * np.random.default_rng(0).standard_normal(100_000)).astype(np.float32)
    exact = F.gelu(torch.from_numpy(x).double()).numpy()
    assert relative_l2(exact, run_program(after, {"x": x})["out0"]) < 1e-5


def test_every_kind_of_call() -> None:
    def function(s: Calls, x: Tensor) -> Tensor:
        x = s.net(F.gelu(x))
        x = 0.5 * x * (1 + torch.erf(x / sqrt(2)))
        return s.net(x) * 0.5 * (1 + torch.special.erf(s.net(x) * 0.7071))

    after = rewritten(traced(randomise(Calls(function, net=nn.Linear(4, 4))), ("batch", 4)), decompose_gelu, 2)
    assert counts(after)["tanh"] == 2
    assert counts(after)["special_erf"] == 1, "of two different values: no GELU"


def test_a_deep_network_stays_within_the_bound() -> None:
    layers = [layer for _ in range(12) for layer in (nn.Linear(32, 32), nn.LayerNorm(32), nn.GELU())]
    rewritten(traced(nn.Sequential(*layers), (8, 32)), decompose_gelu, 12)


def test_what_is_tanh_already_stays() -> None:
    module = Calls(lambda _, x: F.gelu(x, approximate="tanh") + torch.erf(x) + 0.5 * x * (1 + torch.tanh(x)))
    rewritten(traced(module, (3, 4)), decompose_gelu, 0)
