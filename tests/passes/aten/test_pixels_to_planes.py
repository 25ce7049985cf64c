"""A picture as rows of pixels becomes planes of floats: another input, the same results, proved across the change."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from passes.programs import Calls, counts, rewritten
from torch import Tensor

from edgesam_deploy.capture import trace
from edgesam_deploy.contract import TensorSpec, sample_inputs
from edgesam_deploy.errors import PassError
from edgesam_deploy.passes.aten import pixels_to_planes
from edgesam_deploy.passes.engine import Engine, Pass, exact
from edgesam_deploy.passes.execute import run_program
from edgesam_deploy.passes.program import Program

Function = Callable[[Calls, Tensor], Tensor]


def program(function: Function) -> Program:
    inputs = (TensorSpec("x", (1, 4, 6, 3), "uint8", "image"),)
    return trace("part", Calls(function), inputs, (TensorSpec("out0", ()),))


def normalised(_: Calls, x: Tensor) -> Tensor:
    return (x.permute(0, 3, 1, 2).float() - 123.675) / 58.395


def cast_first(_: Calls, x: Tensor) -> Tensor:
    return (x.float().permute(0, 3, 1, 2) - 123.675) / 58.395


@pytest.mark.parametrize("function", [normalised, cast_first])
def test_the_input_becomes_planes(function: Function) -> None:
    before = program(function)
    after = rewritten(before, pixels_to_planes, 1)
    assert [(s.name, s.shape, s.dtype, s.role) for s in after.inputs] == [("x", (1, 3, 4, 6), "float32", "image")]
    assert not {"permute", "to", "_to_copy"} & set(counts(after))
    inputs = sample_inputs(before.inputs, 5)
    planes = {"x": inputs["x"].transpose(0, 3, 1, 2).astype(np.float32)}
    assert np.array_equal(run_program(before, inputs)["out0"], run_program(after, planes)["out0"])


@pytest.mark.parametrize(
    "function",
    [
        lambda s, x: normalised(s, x) + x.float().mean(),  # also read as it is
        lambda _, x: x.permute(0, 3, 1, 2).half(),
        lambda _, x: x.permute(0, 3, 2, 1).float(),
        lambda _, x: x.half().permute(0, 3, 1, 2),
        lambda _, x: x.float().permute(0, 3, 2, 1),
        lambda _, x: x.float() * 2,
        lambda s, x: cast_first(s, x) + x.float().mean(),
    ],
)
def test_what_it_leaves_alone(function: Function) -> None:
    before = program(function)
    assert Engine("fast").run(before, (pixels_to_planes,)) is before


def test_the_proof_sees_a_wrong_order_of_axes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planes that the host is said to make are those that the program reads."""
    wrong = Pass(pixels_to_planes.run, pixels_to_planes.bound, "aten", adapt=lambda before, after, inputs: {
        "x": inputs["x"].transpose(0, 3, 1, 2)[:, ::-1].astype(np.float32)
    })  # fmt: skip
    assert exact(pixels_to_planes.run).bound == wrong.bound
    with pytest.raises(PassError, match="left its bound"):
        Engine("fast").run(program(lambda s, x: normalised(s, x) * torch.arange(3).reshape(1, 3, 1, 1)), (wrong,))
