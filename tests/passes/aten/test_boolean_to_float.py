"""Comparisons of whole numbers by arithmetic, bit by bit the same, and of nothing else."""

from __future__ import annotations

import operator
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from passes.programs import Calls, counts, rewritten, traced
from torch import Tensor

from edgesam_deploy.capture import capture
from edgesam_deploy.contract import LABEL_CODES, Interface
from edgesam_deploy.model.sam import Sam
from edgesam_deploy.passes import onnx
from edgesam_deploy.passes.aten import boolean_to_float, eliminate_identity, fold_constants
from edgesam_deploy.passes.engine import Engine
from edgesam_deploy.passes.execute import run_program
from edgesam_deploy.passes.lower_to_onnx import lower_to_onnx
from edgesam_deploy.passes.program import Program

ROW = torch.tensor([0.5, -2.0, 3.0, 1.0])
COMPARISONS = {f.__name__: f for f in (operator.eq, operator.ne, operator.ge, operator.gt, operator.le, operator.lt)}
LOGIC = {"eq", "ne", "ge", "gt", "le", "lt", "to", "_to_copy"}
Function = Callable[..., Tensor | tuple[Tensor, ...]]


def labelled(function: Function, *shapes: tuple[int | str, ...], outputs: int = 1) -> Program:
    roles = {"x": "labels", "y": "labels"}
    return traced(Calls(function, row=ROW), *(shapes or ((2, 6),)), outputs=outputs, roles=roles)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", COMPARISONS)
@pytest.mark.parametrize("value", [-10, -2, -1, 0, 1, 2.0, 3])
def test_every_code_against_every_code(name: str, value: float) -> None:
    compare = COMPARISONS[name]
    after = rewritten(labelled(lambda s, x: compare(x[..., None], value) * s.row), boolean_to_float, 1)
    assert not LOGIC & set(counts(after))
    codes = np.resize(np.array([*LABEL_CODES.values()], np.float32), (2, 6))
    found = run_program(after, {"x": codes})["out0"]
    np.testing.assert_array_equal(found, compare(codes[..., None], value) * ROW.numpy())


@pytest.mark.parametrize("name", COMPARISONS)
def test_any_whole_numbers(name: str) -> None:
    compare = COMPARISONS[name]
    after = rewritten(labelled(lambda _, x, y: compare(x, y).float(), (40, 40), (40, 40)), boolean_to_float, 1)
    rng = np.random.default_rng(0)
    x, y = (rng.integers(-40, 40, (40, 40)).astype(np.float32) for _ in range(2))
    np.testing.assert_array_equal(run_program(after, {"x": x, "y": y})["out0"], compare(x, y).astype(np.float32))


@given(st.sampled_from(sorted(COMPARISONS)), st.integers(-2000, 2000), st.integers(-2000, 2000))
@settings(max_examples=10, deadline=None, derandomize=True)
def test_far_apart(name: str, label: int, value: int) -> None:
    compare = COMPARISONS[name]
    after = rewritten(labelled(lambda _, x: compare(x, value).float(), (1,)), boolean_to_float, 1)
    (found,) = run_program(after, {"x": np.array([label], np.float32)})["out0"]
    assert found == float(compare(label, value))


def test_the_number_on_the_left() -> None:
    after = rewritten(labelled(lambda s, x: (s.row >= x) * x, (3, 4)), boolean_to_float, 0)
    assert "ge" in counts(after), "the row holds a half"
    before = labelled(lambda _, x: torch.tensor([1.0, 2, 3, 4]).sub(5).le(x) * x, (3, 4))
    after = rewritten(Engine("off").run(before, (fold_constants,)), boolean_to_float, 1)
    assert "le" not in counts(after)


def test_read_many_ways() -> None:
    """Products with rows and numbers, and two kinds of cast, of one comparison."""

    def function(s: Calls, x: Tensor) -> tuple[Tensor, ...]:
        is_empty = x == -10
        return is_empty * -1e4, is_empty.float().sum(), is_empty.to(x.dtype) + 1

    def viewed(s: Calls, x: Tensor) -> tuple[Tensor, ...]:
        is_empty = x == -10
        return is_empty * -1e4, is_empty[..., None] * s.row

    after = rewritten(labelled(function, outputs=3), boolean_to_float, 1)
    assert counts(after) == {"sub": 1, "mul": 2, "rsub": 1, "relu": 1, "sum": 1, "add": 1}
    rewritten(labelled(viewed, outputs=2), boolean_to_float, 0)  # a view of the boolean stays one


WHOLE: dict[str, Function] = {
    "the box as slots": lambda _, x, y: (torch.cat([y * x + (1 - y) * -10, x], 1) == -10) * -1e4,
    "stacked and cut": lambda _, x, y: (torch.stack([x, y], 1)[:, 0] == 2).float(),
    "reshaped": lambda _, x, y: (x.reshape(-1).view(3, 4).flatten(0)[None].expand(2, 12) == 2).float() * y[0, 0],
    "transposed": lambda _, x, y: (x.transpose(0, 1).permute(1, 0).unsqueeze(0).squeeze(0) >= -y).float(),
    "integers cast": lambda _, x, y: (x.int().float() > y.to(torch.float32)).float(),
    "constants": lambda s, x, y: ((torch.ones(6) * x).clone() < torch.arange(6.0).to(torch.int32)) * y,
}


@pytest.mark.parametrize("case", WHOLE)
def test_whole_by_how_they_are_made(case: str) -> None:
    before = Engine("off").run(labelled(WHOLE[case], (2, 6), (2, 6)), (eliminate_identity, fold_constants))
    assert not {"eq", "ge", "gt", "lt"} & set(counts(rewritten(before, boolean_to_float, 1)))


def test_whole_by_type_and_by_role() -> None:
    cast = traced(Calls(lambda _, x: (x.int().float() >= 1) * x), (40,))
    assert "ge" not in counts(rewritten(Engine("off").run(cast, (eliminate_identity,)), boolean_to_float, 1))
    flag = traced(Calls(lambda _, x: (x == 1) * x), (40,), roles={"x": "flag"})
    assert "eq" not in counts(rewritten(flag, boolean_to_float, 1))


REFUSED: dict[str, Function] = {
    "a number between": lambda _, x, y: (x == 0.5) * y,
    "a number between, greater": lambda _, x, y: (x > -0.5) * y,
    "any number": lambda _, x, y: (y == 1) * x,
    "any number on the right": lambda _, x, y: (x == y) * x,
    "half a label": lambda _, x, y: (x * 0.5 == 1) * x,
    "divided": lambda _, x, y: (x / 2 == 1) * x,
    "plus any number": lambda _, x, y: (x + y >= 1) * x,
    "with any number beside it": lambda _, x, y: (torch.cat([x, y], 1) >= 1).float(),
    "sums of halves": lambda _, x, y: (torch.sub(x, x, alpha=0.5) >= 1) * x,
    "chosen by": lambda _, x, y: torch.where(x == 1, x, y),
    "negated": lambda _, x, y: (~(x == 1)) * y,
    "counted as integers": lambda _, x, y: (x == 1).int().float() * y,
    "in double precision": lambda _, x, y: (x == 1).double().float() * y,
    "an output": lambda _, x, y: x == 1,
    "integers": lambda _, x, y: (x.int() == 1) * y,
    "products of another type": lambda _, x, y: ((x == 1) * x.int()) * y,
    "sums": lambda _, x, y: (x == 1) + y,
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case: str) -> None:
    before = traced(Calls(REFUSED[case]), (2, 6), (2, 6), roles={"x": "labels"})
    rewritten(Engine("off").run(before, (eliminate_identity,)), boolean_to_float, 0)


def test_the_decoder_has_no_comparison_left(tiny_model: Sam) -> None:
    _, decoder = capture(tiny_model, Interface(image_size=256, embed_dim=64))
    after = Engine("off").run(rewritten(decoder, boolean_to_float, 7), (eliminate_identity, fold_constants)).copy()
    assert not LOGIC & set(counts(after))
    tidy = (onnx.legalize_cast_like, onnx.canonicalize_reshape, onnx.fold_constants, onnx.eliminate_dead)
    lowered = Engine("off").run(after, (lower_to_onnx(20, 9), *tidy))
    assert not {"Equal", "Greater", "GreaterOrEqual", "Cast", "Not", "Where"} & set(counts(lowered))


def test_the_boxes_of_the_dyt_layout(tiny_model: Sam) -> None:
    _, decoder = capture(tiny_model, Interface(image_size=256, embed_dim=64, io="edgesam-dyt"))
    assert not {"eq", "ge"} & set(counts(rewritten(decoder, boolean_to_float, 7)))
