"""Learned rows by label code: one comparison and one product."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from passes.programs import Calls, counts, rewritten, traced
from torch import Tensor

from edgesam_deploy.model.prompt_encoder import PromptEncoder
from edgesam_deploy.passes.aten import merge_label_rows
from edgesam_deploy.passes.execute import run_program

ROWS = torch.randn(5, 1, 8, generator=torch.Generator().manual_seed(0))
CODES = (-1, 0, 1, 2, 3)


def looked_up(codes: tuple[int, ...]) -> Callable[[Calls, Tensor, Tensor], Tensor]:
    def function(module: Calls, x: Tensor, labels: Tensor) -> Tensor:
        for index, code in enumerate(codes):
            row = getattr(module, f"row{index}")
            x = x + ((labels == code) * row if index % 2 else row * (labels == code))
        return x

    return function


def labelled(codes: tuple[int, ...], batch: int | str = 2) -> Calls:
    return Calls(looked_up(codes), **{f"row{i}": ROWS[i] for i in range(len(codes))})


@pytest.mark.parametrize("count", [2, 3, 5])
def test_each_code_is_found(count: int) -> None:
    program = traced(labelled(CODES[:count]), (2, 6, 8), (2, 6, 1), roles={"y": "labels"})
    after = rewritten(program, merge_label_rows, count)
    assert counts(after)["eq"] == 1
    assert counts(after)["matmul"] == 1
    for code in (-10, -2, *CODES):  # exactly: all but one product are zero
        inputs = {"x": np.zeros((2, 6, 8), np.float32), "y": np.full((2, 6, 1), code, np.float32)}
        expected = ROWS[CODES.index(code), 0].numpy() if code in CODES[:count] else np.zeros(8)
        np.testing.assert_array_equal(run_program(after, inputs)["out0"][1, 3], expected)


def test_one_code_is_not_worth_it() -> None:
    rewritten(traced(labelled(CODES[:1]), (2, 6, 8), (2, 6, 1), roles={"y": "labels"}), merge_label_rows, 0)


def test_codes_of_different_labels_stay() -> None:
    def function(module: Calls, x: Tensor, y: Tensor) -> Tensor:
        return x + (y == 0) * module.row0 + ((y * 2) == 1) * module.row1

    program = traced(Calls(function, row0=ROWS[0], row1=ROWS[1]), (2, 6, 8), (2, 6, 1), roles={"y": "labels"})
    rewritten(program, merge_label_rows, 0)


def test_the_prompt_encoder_with_dynamic_points() -> None:
    encoder = PromptEncoder(16, 64)
    module = Calls(lambda s, x, y: s.encoder.embed_slots(x, y), encoder=encoder)
    program = traced(module, (1, "n", 2), (1, "n"), roles={"x": "coords", "y": "labels"})
    before = counts(program)["eq"]
    after = rewritten(program, merge_label_rows, 5)
    assert (before, counts(after)["eq"]) == (5, 1)


LEFT: dict[str, tuple[Callable[[Calls, Tensor, Tensor], Tensor], tuple[int, ...]]] = {
    "a label per channel": (lambda s, x, y: x + (y == 0) * s.row0 + (y == 1) * s.row1, (2, 6, 8)),
    "a row per position": (lambda s, x, y: x + (y == 0) * s.rows + (y == 1) * s.rows, (2, 6, 1)),
    "nothing else to add": (lambda s, x, y: (y == 0) * s.row0 + (y == 1) * s.row1, (2, 6, 1)),
    "rows of different widths": (lambda s, x, y: x + (y == 0) * s.row0 + (y == 1) * s.one, (2, 6, 1)),
    "counted twice": (lambda s, x, y: torch.add(x + (y == 0) * s.row0, (y == 1) * s.row1, alpha=2), (2, 6, 1)),
    "another comparison": (lambda s, x, y: x + (y > 0) * s.row0 + (y >= 1) * s.row1, (2, 6, 1)),
    "computed rows": (lambda s, x, y: x + (y == 0) * x.exp() + (y == 1) * x.sin(), (2, 6, 1)),
}  # fmt: skip


@pytest.mark.parametrize("case", LEFT)
def test_what_is_no_look_up_stays(case: str) -> None:
    function, labels = LEFT[case]
    module = Calls(function, row0=ROWS[0], row1=ROWS[1], one=ROWS[2, :, :1], rows=torch.randn(6, 8))
    rewritten(traced(module, (2, 6, 8), labels, roles={"y": "labels"}), merge_label_rows, 0)


def test_a_summand_that_is_read_elsewhere_stays() -> None:
    def function(module: Calls, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        first = (y == 0) * module.row0
        return x + first + (y == 1) * module.row1 + (y == 2) * module.row2, first

    module = Calls(function, **{f"row{i}": ROWS[i] for i in range(3)})
    program = traced(module, (2, 6, 8), (2, 6, 1), outputs=2, roles={"y": "labels"})
    assert counts(rewritten(program, merge_label_rows, 2))["eq"] == 2


def test_a_sum_that_is_read_elsewhere_is_merged_for_itself() -> None:
    def function(module: Calls, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        inner = x + (y == 0) * module.row0 + (y == 1) * module.row1
        return inner + (y == 2) * module.row2, inner

    module = Calls(function, **{f"row{i}": ROWS[i] for i in range(3)})
    program = traced(module, (2, 6, 8), (2, 6, 1), outputs=2, roles={"y": "labels"})
    assert counts(rewritten(program, merge_label_rows, 2))["eq"] == 2


def test_several_values_beside_the_rows() -> None:
    def function(module: Calls, x: Tensor, y: Tensor) -> Tensor:
        return x + (y == 0) * module.row0 + x.sin() + (y == 1) * module.row1 + x.exp()

    program = traced(Calls(function, row0=ROWS[0], row1=ROWS[1]), (2, 6, 8), (2, 6, 1), roles={"y": "labels"})
    assert counts(rewritten(program, merge_label_rows, 2))["add"] == 3
