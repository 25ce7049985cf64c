"""Weights of layers are rounded to fp16 so that the mean of what they give stays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from passes.programs import Calls, traced
from torch import nn

from edgesam_deploy.passes.execute import run_program
from edgesam_deploy.passes.program import Program
from edgesam_deploy.targets.coreml.compensate import compensated, with_compensated_weights
from edgesam_deploy.targets.coreml.rounding import neighbours


@pytest.fixture
def layer(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    weight, bias = rng.standard_normal((30, 64)), rng.standard_normal(30)
    return weight, bias, rng.uniform(0.2, 1, 64), np.full(64, 0.1)


def nearest(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float16).astype(np.float64)


def test_the_mean_stays(layer: tuple[np.ndarray, ...]) -> None:
    weight, bias, mean, _ = layer
    exact = weight @ mean + bias
    new, new_bias = compensated(*layer)
    singly = np.abs(nearest(weight) @ mean + nearest(bias) - exact)
    assert np.abs(new @ mean + new_bias - exact).max() < 0.1 * singly.max()


def test_what_varies_is_hardly_worse(layer: tuple[np.ndarray, ...]) -> None:
    weight, bias, mean, variance = layer
    new, new_bias = compensated(*layer)
    below, above = neighbours(weight)
    assert ((new == below) | (new == above)).all()
    assert np.array_equal(new_bias, nearest(bias))

    def loss(w: np.ndarray, b: np.ndarray) -> np.ndarray:
        return ((w - weight) @ mean + b - bias) ** 2 + ((w - weight) ** 2) @ variance

    assert (loss(new, new_bias) <= loss(nearest(weight), nearest(bias))).all()


def test_nothing_to_gain(layer: tuple[np.ndarray, ...]) -> None:
    weight, bias, mean, variance = layer
    new, _ = compensated(nearest(weight), nearest(bias), mean, variance)
    assert np.array_equal(new, nearest(weight))


def held(program: Program) -> set[str]:
    return {name for name in program.aten.state_dict if "compensated" in name}


def test_layers_of_a_program() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(4, 6, 1), nn.ReLU(), nn.Conv2d(6, 6, 1, groups=2), nn.Conv2d(6, 8, 3))
    head = nn.Linear(8, 5)
    program = traced(Calls(lambda s, x: s.head(s.layers(x).mean((2, 3))), layers=layers, head=head), (1, 4, 16, 16))
    after = with_compensated_weights(program, None)
    assert len(held(after)) == 4  # weight and bias of the first convolution and of the head
    assert len(held(with_compensated_weights(program, 16))) == 2  # the convolution reads the finest map
    assert not held(program)
    inputs = {program.inputs[0].name: np.ones((1, 4, 16, 16), np.float32)}
    (before,), (now,) = run_program(program, inputs).values(), run_program(after, inputs).values()
    assert 0 < np.abs(now - before).max() < 2e-3


def test_the_same_weights_again() -> None:
    torch.manual_seed(0)
    program = traced(Calls(lambda s, x: s.layer(x), layer=nn.Linear(64, 32)), (1, 5, 64))
    first, second = (with_compensated_weights(program, None).aten.state_dict for _ in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
