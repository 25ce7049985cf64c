"""Operators that return their input go, those that only look like it stay."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from passes.programs import Calls, counts, rewritten, traced
from torch import Tensor

from edgesam_deploy.passes.aten import eliminate_identity

aten = torch.ops.aten
IDENTITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "alias": aten.alias.default,
    "clone": torch.clone,
    "contiguous": lambda x: aten.contiguous.default(x),
    "detach": torch.detach,
    "dropout": lambda x: F.dropout(x, 0.5, training=False),
    "expand": lambda x: x.expand(2, -1, 4),
    "repeat": lambda x: x.repeat(1, 1, 1),
    "tile": lambda x: x.tile(1),
    "repeat_interleave": lambda x: x.repeat_interleave(1, dim=0),
    "reshape": lambda x: x.reshape(2, 3, 4),
    "view": lambda x: x.view(2, -1, 4),
    "flatten one axis": lambda x: x.flatten(1, 1),
    "unflatten one axis": lambda x: x.unflatten(2, (4,)),
    "permute": lambda x: x.permute(0, 1, 2),
    "to": lambda x: x.to(torch.float32),
    "to, with layout": lambda x: aten.to.dtype_layout(x, dtype=torch.float32, layout=torch.strided),
    "type_as": lambda x: x.type_as(x + 1),
    "cast": lambda x: aten._to_copy.default(x, dtype=torch.float32),
}


@pytest.mark.parametrize("case", IDENTITIES)
def test_removes(case: str) -> None:
    identity = IDENTITIES[case]
    before = traced(Calls(lambda _, x: identity(x.relu()).sigmoid()), (2, 3, 4))
    checks = sum(n for name, n in counts(before).items() if "assert" in name)
    found = counts(rewritten(before, eliminate_identity, 1 + checks))
    assert {name for name in found if name != "add"} == {"relu", "sigmoid"}


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "expand": lambda x: x[:1].expand(2, -1, 4),
    "repeat": lambda x: x.repeat(1, 2, 1),
    "repeat_interleave": lambda x: x.repeat_interleave(2, dim=0),
    "reshape": lambda x: x.reshape(2, 4, 3),
    "view": lambda x: x.view(3, 2, 4),
    "flatten": lambda x: x.flatten(1),
    "permute": lambda x: x.permute(0, 2, 1),
    "permute of equal axes": lambda x: (x @ x.transpose(1, 2)).permute(0, 2, 1) @ x,
    "double": lambda x: x.double().sin().float(),
    "half and back": lambda x: x.half().float(),
    "bool": lambda x: x.bool().float(),
}


@pytest.mark.parametrize("case", CHANGES)
def test_leaves_alone(case: str) -> None:
    change = CHANGES[case]
    before = traced(Calls(lambda _, x: change(x.relu()).sigmoid()), (2, 3, 4))
    checks = sum(n for name, n in counts(before).items() if "assert" in name)
    after = rewritten(before, eliminate_identity, checks)
    assert sum(counts(after).values()) == sum(counts(before).values()) - checks


def test_a_chain_of_them() -> None:
    """The reference decoder's."""

    def function(_: Calls, x: Tensor) -> Tensor:
        return x.relu().repeat_interleave(1, 0).expand(2, 3, 4).to(torch.float32).view(2, 3, 4) + 1

    before = traced(Calls(function), (2, 3, 4))
    checks = sum(n for name, n in counts(before).items() if "assert" in name)
    assert counts(rewritten(before, eliminate_identity, 4 + checks)) == {"relu": 1, "add": 1}


def test_the_tracers_assertions_go() -> None:
    before = traced(Calls(lambda _, x: x.to(torch.float32) + 1), (2, 3))
    assert "_assert_tensor_metadata" in counts(before)
    assert counts(rewritten(before, eliminate_identity, 2)) == {"add": 1}


def test_dynamic_shapes_are_compared_by_symbol() -> None:
    def function(_: Calls, x: Tensor, y: Tensor) -> Tensor:
        same = (x + 1).reshape(x.shape[0], -1, 4).expand(x.shape[0], 3, 4)
        return same.repeat(1, 1, 1) + y.expand(3, 4)

    before = traced(Calls(function), ("batch", 3, 4), (1, 4))
    found = counts(rewritten(before, eliminate_identity, 3))
    assert "reshape" not in found
    assert "repeat" not in found
    assert found["expand"] == 1


def test_two_symbols_are_not_one() -> None:
    def function(_: Calls, x: Tensor) -> Tensor:
        return x.reshape(x.shape[1], x.shape[0], 4)

    rewritten(traced(Calls(function), ("height", "width", 4)), eliminate_identity, 0)


def test_an_output_that_is_the_input() -> None:
    before = traced(Calls(lambda _, x: (x.clone(), x.relu().clone())), (2, 3), outputs=2)
    after = rewritten(before, eliminate_identity, 2)
    assert counts(after) == {"relu": 1}
    assert after.aten.graph_signature.user_outputs == ("x", "relu")


def test_two_outputs_that_are_one_value() -> None:
    def function(_: Calls, x: Tensor) -> tuple[Tensor, ...]:
        y = x.relu()
        return y, y.clone(), y.expand(2, 3)

    after = rewritten(traced(Calls(function), (2, 3), outputs=3), eliminate_identity, 2)
    assert after.aten.graph_signature.user_outputs == ("relu",) * 3


def test_an_output_that_is_a_constant() -> None:
    after = rewritten(
        traced(Calls(lambda s, x: (x + 1, s.table.expand(3)), table=torch.arange(3.0)), (2, 3), outputs=2),
        eliminate_identity,
        1,
    )
    assert counts(after) == {"add": 1}
