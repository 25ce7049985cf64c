"""Linear layers on tokens as 1x1 convolutions, transposed at the borders only."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from passes.programs import Calls, counts, randomise, rewritten, traced
from torch import Tensor, nn

from edgesam_deploy.capture import capture
from edgesam_deploy.contract import Interface
from edgesam_deploy.model.sam import Sam
from edgesam_deploy.passes.aten import eliminate_identity, fold_constants, linear_to_conv
from edgesam_deploy.passes.engine import Engine
from edgesam_deploy.passes.execute import relative_l2, run_program
from edgesam_deploy.passes.lower_to_onnx import lower_to_onnx

ALONE = {"unsqueeze": 1, "permute": 2, "conv2d": 1, "squeeze": 1}


@given(st.integers(1, 3), st.integers(1, 6), st.integers(1, 5), st.integers(1, 5), st.booleans())
@settings(max_examples=8, deadline=None, derandomize=True)
def test_any_tokens(batch: int, tokens: int, inputs: int, outputs: int, bias: bool) -> None:
    module = randomise(nn.Linear(inputs, outputs, bias=bias))
    after = rewritten(traced(module, (batch, tokens, inputs)), linear_to_conv, 1)
    assert counts(after) == ALONE
    assert tuple(after.aten.state_dict["net.weight_1x1"].shape) == (outputs, inputs, 1, 1)
    assert ("net.bias" in after.aten.state_dict) == bias


def test_the_map_is_one_row_of_channels_first() -> None:
    after = rewritten(traced(nn.Linear(4, 3), ("batch", "tokens", 4)), linear_to_conv, 1)
    (conv,) = (n for n in after.aten.graph.nodes if n.target == torch.ops.aten.conv2d.default)
    assert [str(d) for d in conv.args[0].meta["val"].shape[1:3]] == ["4", "1"]


def test_tokens_in_a_grid_need_no_new_axis() -> None:
    after = rewritten(traced(nn.Linear(4, 3), (2, 5, 6, 4)), linear_to_conv, 1)
    assert counts(after) == {"permute": 2, "conv2d": 1}


@pytest.mark.parametrize(
    "between", [nn.ReLU(), nn.GELU(approximate="tanh"), nn.GELU(), nn.Tanh(), nn.Sigmoid(), nn.Identity()]
)
def test_none_between_layers_that_follow_each_other(between: nn.Module) -> None:
    module = randomise(nn.Sequential(nn.Linear(4, 6), between, nn.Linear(6, 6), between, nn.Linear(6, 3)))
    found = counts(rewritten(traced(module, (2, 5, 4)), linear_to_conv, 3))
    assert {name: found[name] for name in ALONE} == ALONE | {"conv2d": 3}


def test_what_is_read_as_tokens_is_given_as_tokens() -> None:
    def function(s: Calls, x: Tensor) -> tuple[Tensor, Tensor]:
        y = s.a(x).relu()
        return s.b(y), y.softmax(1)

    module = randomise(Calls(function, a=nn.Linear(4, 6), b=nn.Linear(6, 3)))
    after = rewritten(traced(module, (2, 5, 4), outputs=2), linear_to_conv, 2)
    assert counts(after) == {"unsqueeze": 1, "permute": 3, "conv2d": 2, "squeeze": 2, "relu": 1, "softmax": 1}


def test_readers_of_one_value_share_its_map_and_shared_weights_stay_shared() -> None:
    module = randomise(Calls(lambda s, x: s.a(x) + s.b(x) * s.a(x.sin()), a=nn.Linear(4, 4), b=nn.Linear(4, 4)))
    after = rewritten(traced(module, (2, 5, 4)), linear_to_conv, 3)
    found = counts(after)
    assert (found["unsqueeze"], found["permute"], found["conv2d"]) == (2, 5, 3)
    assert len(after.aten.state_dict) == 4


def test_pointwise_operators_elsewhere_stay_where_they_are() -> None:
    module = randomise(nn.Sequential(nn.ReLU(), nn.Linear(4, 4), nn.Softmax(-1), nn.Tanh(), nn.Linear(4, 4)))
    found = counts(rewritten(traced(module, (2, 5, 4)), linear_to_conv, 2))
    assert (found["permute"], found["softmax"]) == (4, 1)


def test_same_results_in_onnx() -> None:
    module = randomise(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)))
    before = traced(module, (2, 5, 4))
    after = rewritten(before, linear_to_conv, 2).copy()
    lower_to_onnx(20, 9)(after)
    found = counts(after)
    assert (found["Conv"], found["Transpose"]) == (2, 2)
    assert not {"Gemm", "MatMul"} & set(found)
    x = {"x": np.random.default_rng(0).standard_normal((2, 5, 4)).astype(np.float32)}
    assert relative_l2(run_program(before, x)["out0"], run_program(after, x)["out0"]) < 1e-6


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (lambda s, x: s.net(x), (5, 4)),
        (lambda s, x: s.net(x), (4,)),
        (lambda s, x: s.net(x), (1, 2, 3, 5, 4)),
        (lambda s, x: F.linear(x, s.net.weight.exp()), (2, 5, 4)),
        (lambda s, x: F.linear(x, s.net.weight, x.mean((0, 1))[:3]), (2, 5, 4)),
        (lambda s, x: (x @ s.net.weight.T).relu(), (2, 5, 4)),
    ],
    ids=["vectors", "one vector", "five axes", "computed weight", "computed bias", "matmul"],
)
def test_leaves_alone(function, shape: tuple[int, ...]) -> None:  # type: ignore[no-untyped-def]
    rewritten(traced(randomise(Calls(function, net=nn.Linear(4, 3))), shape), linear_to_conv, 0)


def test_sites_of_the_decoder(tiny_model: Sam) -> None:
    """The 32 layers of its attentions and MLPs; the 15 of hypernetworks and IoU head are on vectors."""
    _, decoder = capture(tiny_model, Interface(image_size=256, embed_dim=64))
    decoder = Engine("off").run(decoder, (eliminate_identity, fold_constants))
    found = counts(rewritten(decoder, linear_to_conv, 32))
    assert (found["conv2d"], found["linear"]) == (32, 15)
