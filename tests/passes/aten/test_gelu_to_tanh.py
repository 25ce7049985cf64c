"""tanh GELU for erf GELU, within its stated bound."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from passes.programs import Calls, counts, randomise, rewritten, traced
from torch import Tensor, nn

from edgesam_deploy.passes.aten import gelu_to_tanh
from edgesam_deploy.passes.execute import relative_l2, run_program
from edgesam_deploy.passes.lower_to_onnx import lower_to_onnx
from edgesam_deploy.passes.program import Program


def kinds(program: Program) -> list[str]:
    return [n.kwargs["approximate"] for n in program.aten.graph.nodes if n.target == torch.ops.aten.gelu.default]


def test_the_stated_bound_on_gelu_itself() -> None:
    after = rewritten(traced(Calls(lambda _, x: F.gelu(x)), ("n",)), gelu_to_tanh, 1)
    x = np.linspace(-12, 12, 400_001, dtype=np.float32)
    exact = F.gelu(torch.from_numpy(x)).numpy()
    worst = float(np.abs(run_program(after, {"x": x})["out0"] - exact).max())
    assert 4.6e-4 < worst < 4.8e-4
    assert worst / 0.1 < gelu_to_tanh.bound, "an output at the engine's floor"
    assert gelu_to_tanh.bound == 5e-3
    assert "4.8e-4" in gelu_to_tanh.note


@pytest.mark.parametrize("spread", [0.01, 0.3, 1.0, 5.0])
def test_relative_error_of_normal_activations(spread: float) -> None:
    x = spread * np.random.default_rng(0).standard_normal(100_000)
    value = torch.from_numpy(x)
    assert relative_l2(F.gelu(value).numpy(), F.gelu(value, approximate="tanh").numpy()) < 3e-4


def test_every_kind_of_call() -> None:
    def function(s: Calls, x: Tensor) -> Tensor:
        x = s.net(F.gelu(x))
        x = 0.5 * x * (1 + torch.erf(x / sqrt(2)))
        x = F.gelu(s.net(x), approximate="none")
        return x * 0.5 * (1 + torch.special.erf(x * 0.7071))

    after = rewritten(traced(randomise(Calls(function, net=nn.Linear(4, 4))), ("batch", 4)), gelu_to_tanh, 4)
    assert counts(after) == {"gelu": 4, "linear": 2}
    assert kinds(after) == ["tanh"] * 4


def test_a_deep_network_stays_within_the_bound() -> None:
    layers = [layer for _ in range(12) for layer in (nn.Linear(32, 32), nn.LayerNorm(32), nn.GELU())]
    rewritten(traced(nn.Sequential(*layers), (8, 32)), gelu_to_tanh, 12)


def test_no_erf_below_opset_20() -> None:
    after = rewritten(traced(nn.GELU(), (3, 4)), gelu_to_tanh, 1).copy()
    lower_to_onnx(18, 8)(after)
    assert "Tanh" in counts(after)
    assert "Erf" not in counts(after)
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    expected = F.gelu(torch.from_numpy(x), approximate="tanh").numpy()
    np.testing.assert_allclose(run_program(after, {"x": x})["out0"], expected, atol=1e-6)


def test_what_is_tanh_already_stays() -> None:
    module = Calls(lambda _, x: F.gelu(x, approximate="tanh") + torch.erf(x) + 0.5 * x * (1 + torch.tanh(x)))
    rewritten(traced(module, (3, 4)), gelu_to_tanh, 0)
