"""Rows that nobody reads are not computed; what others need whole stays whole."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from passes.programs import Calls, Shape, counts, rewritten, traced
from torch import Tensor, nn

from edgesam_deploy.model.transformer import Attention
from edgesam_deploy.passes.aten import eliminate_dead_rows
from edgesam_deploy.passes.program import Program

aten = torch.ops.aten
Function = Callable[..., Tensor]
NARROWED: dict[str, tuple[Function, tuple[Shape, ...], tuple[int, ...]]] = {
    # the function, the shapes of its inputs, the shape that its last layer of work has afterwards
    "norm": (lambda s, x: F.layer_norm(x, (4,))[:, 2:5], ((2, 7, 4),), (2, 3, 4)),
    "negative ends": (lambda s, x: x.relu()[:, -5:-1], ((2, 7, 4),), (2, 4, 4)),
    "to the last": (lambda s, x: x.tanh()[:, 3:], ((2, 7, 4),), (2, 4, 4)),
    "one row": (lambda s, x: x.sigmoid()[:, -2], ((2, 7, 4),), (2, 1, 4)),
    "hull of several": (lambda s, x: (y := x.relu())[:, 1] + y[:, 3:5].sum(1), ((2, 7, 4),), (2, 4, 4)),
    "another axis": (lambda s, x: x.relu()[:, :, 1:3], ((2, 7, 4),), (2, 7, 2)),
    "first axis": (lambda s, x: F.gelu(x)[1:], ((3, 7, 4),), (2, 7, 4)),
    "a sum of rows and one row": (lambda s, x, y: (x + y)[:, :3], ((2, 7, 4), (1, 4)), (2, 3, 4)),
    "a difference of two": (lambda s, x, y: (x - y)[:, 1:3], ((2, 7, 4), (7, 4)), (2, 2, 4)),
    "softmax of each": (lambda s, x: torch.softmax(x, -1)[:, :3], ((2, 7, 4),), (2, 3, 4)),
    "linear": (lambda s, x: s.layer(x)[:, :3], ((2, 7, 4),), (2, 3, 6)),
    "rows of a product": (lambda s, x, y: (x @ y)[:, 1:3], ((2, 7, 4), (2, 4, 5)), (2, 2, 5)),
    "columns of a product": (lambda s, x, y: (x @ y)[:, :, 1:3], ((2, 7, 4), (2, 4, 5)), (2, 7, 2)),
    "behind a transpose": (lambda s, x: x.relu().transpose(1, 2)[:, :, :3], ((2, 7, 4),), (2, 4, 3)),
    "beside a flatten": (lambda s, x: x.relu().flatten(2)[:, 1:3], ((2, 7, 4, 2),), (2, 2, 8)),
    "behind a flatten": (lambda s, x: x.relu().flatten(0, 1)[:, 1:3], ((2, 7, 4),), (14, 2)),
    "before an unflatten": (lambda s, x: x.relu().unflatten(-1, (2, 2))[:, 1:3], ((2, 7, 4),), (2, 2, 2, 2)),
    "behind an unflatten": (lambda s, x: x.relu().unflatten(0, (1, 2))[:, :, 1:3], ((2, 7, 4),), (1, 2, 2, 4)),
}  # fmt: skip
LEFT: dict[str, tuple[Function, tuple[Shape, ...]]] = {
    "all rows are read": (lambda s, x: (y := x.relu())[:, :3].sum(1) + y[:, 3:].sum(1), ((2, 7, 4),)),
    "somebody needs them": (lambda s, x: (y := x.relu())[:, :4] + y.sum(1, keepdim=True), ((2, 7, 4),)),
    "every other row": (lambda s, x: x.relu()[:, ::2], ((2, 7, 4),)),
    "rows and columns": (lambda s, x: (y := x.relu())[:, :3].sum((1, 2)) + y[:, :, :2].sum((1, 2)), ((2, 7, 4),)),
    "an input": (lambda s, x: x[:, :3] * 2, ((2, 7, 4),)),
    "softmax over the rows": (lambda s, x: torch.softmax(x, 1)[:, :3], ((2, 7, 4),)),
    "norm over the rows": (lambda s, x: F.layer_norm(x, (7, 4))[:, :3], ((2, 7, 4),)),
    "features of a layer": (lambda s, x: s.layer(x)[:, :, :3], ((2, 7, 4),)),
    "an axis that is joined": (lambda s, x: x.relu().flatten(1)[:, :3], ((2, 7, 4),)),
    "an axis that was split": (lambda s, x: x.relu().unflatten(1, (7, 1))[:, :3], ((2, 7, 4),)),
    "a batch of products": (lambda s, x, y: (x @ y)[:1], ((2, 7, 4), (2, 4, 5))),
    "the result": (lambda s, x: (x.relu(), x.relu()[:, :3])[0], ((2, 7, 4),)),
}  # fmt: skip


def shapes(program: Program, operator: object) -> list[tuple[int, ...]]:
    return [tuple(n.meta["val"].shape) for n in program.aten.graph.nodes if n.target == operator]


@pytest.mark.parametrize("kind", NARROWED)
def test_rows_alone(kind: str) -> None:
    function, inputs, expected = NARROWED[kind]
    program = traced(Calls(function, layer=nn.Linear(4, 6)), *inputs)
    after = rewritten(program, eliminate_dead_rows, 1)
    work = [n for n in after.aten.graph.nodes if n.op == "call_function" and n.target not in CUTS]
    assert expected in [tuple(n.meta["val"].shape) for n in work]


CUTS = {aten.slice.Tensor, aten.select.int, aten.squeeze.dim}


@pytest.mark.parametrize("kind", LEFT)
def test_what_stays(kind: str) -> None:
    function, inputs = LEFT[kind]
    rewritten(traced(Calls(function, layer=nn.Linear(4, 6)), *inputs), eliminate_dead_rows, 0)


def test_a_chain_is_narrowed_as_far_as_nobody_else_reads_it() -> None:
    def function(s: Calls, x: Tensor) -> Tensor:
        shared = s.layer(x).relu()
        return F.layer_norm(s.other(shared) + shared, (6,))[:, :2] * shared.mean(1, keepdim=True)

    program = traced(Calls(function, layer=nn.Linear(4, 6), other=nn.Linear(6, 6)), (2, 7, 4))
    after = rewritten(program, eliminate_dead_rows, 1)
    assert shapes(after, aten.linear.default) == [(2, 7, 6), (2, 2, 6)]
    assert shapes(after, aten.slice.Tensor) == [(2, 2, 6)]  # one cut serves both terms of the sum


def test_a_piece_of_a_concatenation_is_taken_as_it_is() -> None:
    program = traced(Calls(lambda s, x, y: torch.cat([x, y], 1).relu()[:, 3:]), (2, 3, 4), (2, 5, 4))
    after = rewritten(program, eliminate_dead_rows, 1)
    assert "slice" not in counts(after)
    program = traced(Calls(lambda s, x, y: torch.cat([x, y], 1).relu()[:, 2:]), (2, 3, 4), (2, 5, 4))
    assert counts(rewritten(program, eliminate_dead_rows, 1))["slice"] == 1


def test_a_dynamic_number_of_rows() -> None:
    program = traced(Calls(lambda s, x: F.layer_norm(x, (4,))[:, :1]), (2, "n", 4))
    assert shapes(rewritten(program, eliminate_dead_rows, 1), aten.layer_norm.default) == [(2, 1, 4)]
    program = traced(Calls(lambda s, x: F.layer_norm(x, (4,))[:, 0:]), (2, "n", 4))
    rewritten(program, eliminate_dead_rows, 0)


def test_the_last_attention_of_sam() -> None:
    """The queries of the rows that are read meet all keys."""

    def function(s: Calls, x: Tensor, y: Tensor) -> Tensor:
        return s.norm(x + s.attention(x + 1.0, y, y))[:, :2]

    program = traced(Calls(function, attention=Attention(8, 2, 2), norm=nn.LayerNorm(8)), (1, 6, 8), (1, 50, 8))
    after = rewritten(program, eliminate_dead_rows, 1)
    assert shapes(after, aten.softmax.int) == [(1, 2, 2, 50)]
    assert [s[1] for s in shapes(after, aten.linear.default)] == [2, 50, 50, 2]
