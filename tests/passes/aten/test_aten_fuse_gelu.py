"""GELU is recognised by what it computes, however it is written, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable
from math import pi, sqrt

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from passes.programs import Calls, counts, rewritten, traced
from torch import Tensor, nn

from edgesam_deploy.passes.aten import fuse_gelu
from edgesam_deploy.passes.aten.fuse_gelu import polynomial
from edgesam_deploy.passes.aten.graph import AtenGraph
from edgesam_deploy.passes.execute import relative_l2, run_program
from edgesam_deploy.passes.lower_to_onnx import lower_to_onnx
from edgesam_deploy.passes.program import Program

R = sqrt(2 / pi)
Function = Callable[[Tensor], Tensor]
ERF: dict[str, Function] = {
    "textbook": lambda x: 0.5 * x * (1 + torch.erf(x / sqrt(2))),
    "x first": lambda x: x * 0.5 * (1.0 + torch.erf(x * sqrt(0.5))),
    "exporter": lambda x: x * (torch.erf(x / 1.4142135381698608) + 1) * 0.5,
    "four digits": lambda x: x * 0.5 * (1 + torch.erf(x * 0.7071)),
    "halves": lambda x: 0.5 * x + 0.5 * x * torch.erf(x * 0.70710678),
    "probability": lambda x: x * (0.5 + torch.erf(x / sqrt(2)) / 2),
    "divided": lambda x: x * (1 + torch.erf(x / sqrt(2))) / 2,
    "special": lambda x: 0.5 * x * (1 + torch.special.erf(x / sqrt(2))),
    "two divisions": lambda x: (x / 2) * (1 + torch.erf(x * (1 / 2) * sqrt(2))),
    "minus minus": lambda x: -0.5 * x * (-1 - torch.erf(x / sqrt(2))),
    "negated": lambda x: -(0.5 * x * (-(torch.erf(x / sqrt(2)) + 1))),
}
TANH: dict[str, Function] = {
    "textbook": lambda x: 0.5 * x * (1 + torch.tanh(R * (x + 0.044715 * torch.pow(x, 3)))),
    "product": lambda x: 0.5 * x * (1 + torch.tanh(R * (x + 0.044715 * x * x * x))),
    "factored": lambda x: 0.5 * x * (1 + torch.tanh(0.7978845608 * x * (1 + 0.044715 * x * x))),
    "square": lambda x: x * 0.5 * (torch.tanh(x * (0.044715 * torch.square(x) + 1) * R) + 1),
    "pow 2": lambda x: (1 + torch.tanh((x + x * x.pow(2) * 0.044715) * R)) * x * 0.5,
    "split": lambda x: 0.5 * x * (1 + torch.tanh(R * x + R * 0.044715 * x**3)),
}


@pytest.mark.parametrize("case", ERF)
def test_erf_spellings(case: str) -> None:
    after = rewritten(traced(Calls(lambda _, x: ERF[case](x)), (4, 30)), fuse_gelu, 1)
    assert counts(after) == {"gelu": 1}
    assert kinds(after) == ["none"]


@pytest.mark.parametrize("case", TANH)
def test_tanh_spellings(case: str) -> None:
    after = rewritten(traced(Calls(lambda _, x: TANH[case](x)), (4, 30)), fuse_gelu, 1)
    assert counts(after) == {"gelu": 1}
    assert kinds(after) == ["tanh"]


def kinds(program: Program) -> list[str]:
    return [n.kwargs["approximate"] for n in program.aten.graph.nodes if n.target == torch.ops.aten.gelu.default]


@given(st.sampled_from([*ERF.values(), *TANH.values()]), st.sampled_from([(3,), ("batch", 5), (2, 3, "height", 1)]))
@settings(max_examples=8, deadline=None, derandomize=True)
def test_any_shape_between_other_sums(gelu: Function, shape: tuple[int | str, ...]) -> None:
    """x is itself a sum, and so is what reads the result: neither is taken for a part of it."""
    module = Calls(lambda _, x: gelu(2 * x + x.sin()) * 0.5 + x)
    found = counts(rewritten(traced(module, shape), fuse_gelu, 1))
    assert found == {"mul": 2, "sin": 1, "add": 2, "gelu": 1}


def test_constants_may_be_tensors() -> None:
    def function(s: Calls, x: Tensor) -> Tensor:
        return s.factor * x * (1 + torch.erf(x / s.root))

    module = Calls(function, factor=torch.tensor(0.5), root=torch.tensor([sqrt(2)]))
    assert counts(rewritten(traced(module, (3, 4)), fuse_gelu, 1)) == {"gelu": 1}


def test_several_with_values_used_elsewhere() -> None:
    def function(s: Calls, x: Tensor) -> tuple[Tensor, Tensor]:
        y = ERF["textbook"](s.net(x))
        return TANH["factored"](s.net(y)) + y, x * y

    after = rewritten(traced(Calls(function, net=nn.Linear(4, 4)), (3, 4), outputs=2), fuse_gelu, 2)
    assert counts(after) == {"linear": 2, "gelu": 2, "add": 1, "mul": 1}


def test_runs_as_one_onnx_operator() -> None:
    before = traced(Calls(lambda _, x: torch.cat([ERF["halves"](x), TANH["square"](x)])), (3, 50))
    after = rewritten(before, fuse_gelu, 2).copy()
    lower_to_onnx(20, 9)(after)
    assert counts(after) == {"Gelu": 2, "Concat": 1}
    x = {"x": 3 * torch.randn(3, 50).numpy()}
    assert relative_l2(run_program(before, x)["out0"], run_program(after, x)["out0"]) < 1e-6


def inner_read(x: Tensor) -> Tensor:
    bend = torch.erf(x / sqrt(2))
    return 0.5 * x * (1 + bend) + bend


def sum_read(x: Tensor) -> Tensor:
    phi = 1 + torch.erf(x / sqrt(2))
    return 0.5 * x * phi + phi


REFUSED: dict[str, Function] = {
    "the erf is read elsewhere": inner_read,
    "the probability is read elsewhere": sum_read,
    "too few digits": lambda x: 0.5 * x * (1 + torch.erf(x * 0.7070)),
    "too many": lambda x: 0.5 * x * (1 + torch.erf(x * 0.7072)),
    "no division": lambda x: 0.5 * x * (1 + torch.erf(x)),
    "no half": lambda x: x * (1 + torch.erf(x / sqrt(2))),
    "two halves": lambda x: 0.25 * x * (1 + torch.erf(x / sqrt(2))),
    "minus": lambda x: 0.5 * x * (1 - torch.erf(x / sqrt(2))),
    "not one": lambda x: 0.5 * x * (1.001 + torch.erf(x / sqrt(2))),
    "weighted": lambda x: 0.5 * x * torch.add(torch.erf(x / sqrt(2)), 1, alpha=2),
    "another factor": lambda x: 0.5 * x.relu() * (1 + torch.erf(x / sqrt(2))),
    "no factor": lambda x: 0.5 * (1 + torch.erf(x / sqrt(2))),
    "squared": lambda x: 0.5 * x * x * (1 + torch.erf(x / sqrt(2))),
    "shifted": lambda x: 0.5 * x * (1 + torch.erf((x + 0.1) / sqrt(2))),
    "tanh of erf's argument": lambda x: 0.5 * x * (1 + torch.tanh(x / sqrt(2))),
    "erf of tanh's": lambda x: 0.5 * x * (1 + torch.erf(R * (x + 0.044715 * x**3))),
    "no cube": lambda x: 0.5 * x * (1 + torch.tanh(R * x)),
    "another cube": lambda x: 0.5 * x * (1 + torch.tanh(R * (x + 0.0447 * x**3))),
    "fourth power": lambda x: 0.5 * x * (1 + torch.tanh(R * (x + 0.044715 * x**4))),
    "of another value": lambda x: 0.5 * x * (1 + torch.tanh(R * (x + 0.044715 * x.sin() ** 3))),
    "divided by x": lambda x: 0.5 / (x + 9) * (1 + torch.erf(x / sqrt(2))),
    "swish": lambda x: x * torch.sigmoid(1.702 * x),
    "bare": lambda x: torch.erf(x / sqrt(2)) + torch.tanh(x),
    "not shaped as x": lambda x: 0.5 * x[:1] * (1 + torch.erf(x / sqrt(2))),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case: str) -> None:
    rewritten(traced(Calls(lambda _, x: REFUSED[case](x)), (3, 4)), fuse_gelu, 0)


@pytest.mark.parametrize(("count", "sites"), [(8, 1), (9, 0)])
def test_a_spelling_has_its_depth(count: int, sites: int) -> None:
    def function(_: Calls, x: Tensor) -> Tensor:
        scaled = x * sqrt(0.5)
        for _i in range(count - 1):
            scaled = scaled * 1
        return 0.5 * x * (1 + torch.erf(scaled))

    rewritten(traced(Calls(function), (3, 4)), fuse_gelu, sites)


@pytest.mark.parametrize(("count", "sites"), [(6, 1), (7, 0)])
def test_so_has_what_is_done_with_the_erf(count: int, sites: int) -> None:
    def function(_: Calls, x: Tensor) -> Tensor:
        bent = 1 + torch.erf(x * sqrt(0.5))
        for _i in range(count):
            bent = bent * 1
        return (0.5 * x) * bent

    rewritten(traced(Calls(function), (3, 4)), fuse_gelu, sites)


@pytest.mark.parametrize("half", [torch.full((4,), 0.5), torch.tensor([0.5], dtype=torch.float64)])
def test_factors_that_are_no_plain_number(half: Tensor) -> None:
    """One per channel, and one that makes the result double."""
    module = Calls(lambda s, x: s.factor * x * (1 + torch.erf(x / sqrt(2))), factor=half)
    rewritten(traced(module, (3, 4)), fuse_gelu, 0)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: (2 * x - 3) * (x + 1), {(2,): 2, (1,): -1, (0,): -3}),
        (lambda x: (1 - x) ** 3, {(0,): 1, (1,): -3, (2,): 3, (3,): -1}),
        (lambda x: -(x * 6) / 4 + 7, {(1,): -1.5, (0,): 7}),
        (lambda x: torch.square(x) - x.pow(2) + x, {(1,): 1}),
        (lambda x: torch.sub(x, 4), {(1,): 1, (0,): -4}),
        (lambda x: x.pow(0.5), None),
        (lambda x: x / (x + 3), None),
        (lambda x: x.exp(), None),
        (lambda x: (x + 1) / x, None),
        (lambda x: x / 0, None),
        (lambda x: x**4, None),
        (lambda x: torch.sub(x, x, alpha=3), None),
        (lambda x: torch.ops.aten.add.Scalar(x, 3, 2), None),  # that is x + 6
    ],
)
def test_polynomials(function: Function, expected: dict[tuple[int], float] | None) -> None:
    program = traced(Calls(lambda _, x: function(x)), (3,))
    graph = AtenGraph(program)
    (x,) = (n for n in graph.graph.nodes if n.name == "x")
    found = polynomial(graph, next(reversed(graph.graph.nodes)).args[0][0], (x,))
    assert found == (None if expected is None else pytest.approx(expected))
