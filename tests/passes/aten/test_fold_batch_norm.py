"""Batch norms go into the convolution before them, and only where nobody can tell."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from passes.programs import Calls, counts, randomise, rewritten, traced
from torch import nn

from edgesam_deploy.passes.aten import fold_batch_norm


def conv_norm(inputs: int = 4, outputs: int = 6, kernel: int = 3, **options: object) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, **options), nn.BatchNorm2d(outputs))  # type: ignore[arg-type]


def test_folds_and_leaves_one_convolution() -> None:
    after = rewritten(traced(randomise(conv_norm()), (2, 4, 7, 5)), fold_batch_norm, 1)
    assert counts(after) == {"conv2d": 1}
    assert {k: tuple(v.shape) for k, v in after.aten.state_dict.items()} == {
        "net.0.weight_1": (6, 4, 3, 3),
        "net.0.bias_1": (6,),
    }


@given(
    kernel=st.sampled_from([1, 2, 3, 5]),
    stride=st.integers(1, 2),
    groups=st.sampled_from([1, 2, 4]),
    bias=st.booleans(),
    affine=st.booleans(),
    eps=st.sampled_from([1e-5, 1e-3, 0.5]),
    spread=st.sampled_from([0.1, 1.0, 50.0]),
)
@settings(max_examples=8, deadline=None, derandomize=True)
def test_any_convolution(
    kernel: int, stride: int, groups: int, bias: bool, affine: bool, eps: float, spread: float
) -> None:
    module = nn.Sequential(
        nn.Conv2d(4, 8, kernel, stride, groups=groups, bias=bias), nn.BatchNorm2d(8, eps=eps, affine=affine)
    )
    after = rewritten(traced(randomise(module, kernel, spread), (1, 4, 7, 6)), fold_batch_norm, 1)
    assert counts(after) == {"conv2d": 1}


def test_statistics_that_are_tiny_or_huge() -> None:
    module = randomise(conv_norm(bias=False))
    module[1].running_var.copy_(torch.tensor([0.0, 1e-12, 1e-6, 1.0, 1e4, 1e8]))
    module[1].running_mean.copy_(torch.tensor([-300.0, 1e-6, 0.0, 40.0, 1e3, -1e4]))
    rewritten(traced(module, (2, 4, 7, 5)), fold_batch_norm, 1)


def test_dynamic_batch_and_size() -> None:
    after = rewritten(traced(randomise(conv_norm(padding=1)), ("batch", 4, "height", 5)), fold_batch_norm, 1)
    assert counts(after) == {"conv2d": 1}


def test_a_chain_of_pairs() -> None:
    module = randomise(nn.Sequential(conv_norm(), nn.ReLU(), conv_norm(6, 6), nn.GELU(), conv_norm(6, 2)))
    after = rewritten(traced(module, (1, 4, 9, 9)), fold_batch_norm, 3)
    assert counts(after) == {"conv2d": 3, "relu": 1, "gelu": 1}


def test_the_models_own_weights_stay() -> None:
    module = randomise(conv_norm())
    before = {name: value.clone() for name, value in module.state_dict().items()}
    rewritten(traced(module, (1, 4, 5, 5)), fold_batch_norm, 1)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_one_convolution_shared_by_two_norms() -> None:
    module = Calls(lambda s, x: s.a(s.conv(x)) + s.b(s.conv(x + 1)), conv=nn.Conv2d(4, 4, 1), a=nn.BatchNorm2d(4),
                   b=nn.BatchNorm2d(4))  # fmt: skip
    after = rewritten(traced(randomise(module), (1, 4, 5, 5)), fold_batch_norm, 2)
    assert counts(after) == {"conv2d": 2, "add": 2}
    assert len(after.aten.state_dict) == 4, "each convolution has weights of its own now, the shared ones are gone"


def test_one_pair_used_twice() -> None:
    module = Calls(lambda s, x: s.pair(s.pair(x)), pair=conv_norm(4, 4, padding=1))
    assert counts(rewritten(traced(randomise(module), (1, 4, 5, 5)), fold_batch_norm, 2)) == {"conv2d": 2}


def test_the_output_may_be_read_by_many() -> None:
    def function(s: Calls, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = s.pair(x)
        return y, y + 1, y * y

    after = rewritten(traced(randomise(Calls(function, pair=conv_norm())), (1, 4, 5, 5), outputs=3), fold_batch_norm, 1)
    assert counts(after) == {"conv2d": 1, "add": 1, "mul": 1}


def two_readers(s: Calls, x: torch.Tensor) -> torch.Tensor:
    y = s.conv(x)
    return s.norm(y) + y  # type: ignore[no-any-return]


def conv_is_output(s: Calls, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    y = s.conv(x)
    return s.norm(y), y


def computed_gain(s: Calls, x: torch.Tensor) -> torch.Tensor:
    n = s.norm
    return F.batch_norm(s.conv(x), n.running_mean, n.running_var, n.weight.exp(), n.bias)


def computed_shift(s: Calls, x: torch.Tensor) -> torch.Tensor:
    n = s.norm
    return F.batch_norm(s.conv(x), n.running_mean, n.running_var, n.weight, x.mean((0, 2, 3)))


def computed_mean(s: Calls, x: torch.Tensor) -> torch.Tensor:
    n = s.norm
    return F.batch_norm(s.conv(x), x.mean((0, 2, 3)), n.running_var, n.weight, n.bias)


def training(s: Calls, x: torch.Tensor) -> torch.Tensor:
    n = s.norm
    return F.batch_norm(s.conv(x), n.running_mean, n.running_var, n.weight, n.bias, training=True)


REFUSED = {
    "two readers": two_readers,
    "the convolution is an output": conv_is_output,
    "training mode": training,
    "no statistics": lambda s, x: F.batch_norm(s.conv(x), None, None, s.norm.weight, s.norm.bias, training=True),
    "computed gain": computed_gain,
    "computed shift": computed_shift,
    "computed mean": computed_mean,
    "computed weight": lambda s, x: s.norm(F.conv2d(x, s.conv.weight.tanh())),
    "computed bias": lambda s, x: s.norm(F.conv2d(x, s.conv.weight, x.mean((0, 2, 3)))),
    "norm before the convolution": lambda s, x: s.conv(s.norm(x)),
    "something in between": lambda s, x: s.norm(s.conv(x).relu()),
    "norm of the input": lambda s, x: s.norm(x),
    "transposed convolution": lambda s, x: s.norm(F.conv_transpose2d(x, s.conv.weight)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case: str) -> None:
    module = randomise(Calls(REFUSED[case], conv=nn.Conv2d(4, 4, 1), norm=nn.BatchNorm2d(4)))
    outputs = 2 if case == "the convolution is an output" else 1
    program = traced(module, (2, 4, 5, 4), outputs=outputs)
    assert "batch_norm" in counts(program)
    rewritten(program, fold_batch_norm, 0)
