"""What depends on constants only is computed once, unless that costs more than it saves."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from passes.programs import Calls, counts, randomise, rewritten, traced
from torch import Tensor, nn

from edgesam_deploy.errors import PassError
from edgesam_deploy.passes.aten import eliminate_identity, fold_constants
from edgesam_deploy.passes.engine import Engine

module = import_module("edgesam_deploy.passes.aten.fold_constants")


def positional_encoding(s: Calls, x: Tensor) -> Tensor:
    grid = (torch.arange(4) + 0.5) / 4
    points = torch.stack([grid, grid.flip(0)], -1) @ s.gaussian
    return x + torch.cat([points.sin(), points.cos()], -1)


def test_the_dense_positional_encoding() -> None:
    before = traced(Calls(positional_encoding, gaussian=torch.randn(2, 3)), (1, 4, 6))
    after = rewritten(before, fold_constants, 1)
    assert counts(after) == {"add": 1}
    assert [tuple(v.shape) for v in after.aten.state_dict.values()] == [(4, 6)], "what it was made of is gone"


def test_every_value_that_is_read_is_a_site() -> None:
    def function(s: Calls, x: Tensor) -> Tensor:
        table = s.table * 2
        return x * table + table.exp() + x * table.sum()

    before = traced(Calls(function, table=torch.randn(3)), (2, 3))
    assert counts(rewritten(before, fold_constants, 3)) == {"mul": 2, "add": 2}


def test_weights_of_the_model_stay() -> None:
    net = randomise(nn.Linear(3, 3))
    weight = net.weight.clone()
    before = traced(Calls(lambda s, x: x @ (s.net.weight.T * 2) @ s.net.weight, net=net), (2, 3))
    after = rewritten(before, fold_constants, 1)
    assert torch.equal(net.weight, weight)
    assert len(after.aten.state_dict) == 2
    assert not any(value.requires_grad for name, value in after.aten.state_dict.items() if "folded" in name)


def test_an_output_that_is_constant() -> None:
    before = traced(Calls(lambda s, x: (x + 1, s.table * 2), table=torch.arange(3)), (2, 3), outputs=2)
    after = rewritten(before, fold_constants, 1)
    assert counts(after) == {"add": 1}
    assert after.aten.graph_signature.user_outputs == ("add", "c_mul_folded")


def test_integers_and_masks() -> None:
    def function(s: Calls, x: Tensor) -> Tensor:
        index = torch.arange(3) * 2 % 5
        return torch.where(s.table > 0, x, 0.0)[:, index]

    before = traced(Calls(function, table=torch.randn(6)), (2, 6))
    after = rewritten(before, fold_constants, 2)
    assert sorted(str(v.dtype) for v in after.aten.state_dict.values()) == ["torch.bool", "torch.int64"]


def test_an_expanded_constant_must_not_blow_up_the_artifact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LIMIT", 100)

    def function(s: Calls, x: Tensor) -> Tensor:
        return x + (s.table * 2).reshape(1, 5).expand(50, 5)

    after = rewritten(traced(Calls(function, table=torch.randn(5)), (50, 5)), fold_constants, 1)
    assert counts(after) == {"expand": 1, "add": 1}, "the small part is folded, the large one left for run time"


def test_the_largest_constant_that_is_folded() -> None:
    """64 Mi elements; of bytes here, to keep the test small."""

    def function(s: Calls, x: Tensor) -> Tensor:
        largest = s.flags.expand(8192, 8192)
        return torch.where(largest, x, 0.0).sum() + torch.where(s.flags.expand(8193, 8192), x, 0.0).sum()

    program = traced(Calls(function, flags=torch.ones(1, 8192, dtype=torch.bool)), (1,))
    folded = Engine("off").run(program, (fold_constants,))
    assert [tuple(n.args[1]) for n in folded.aten.graph.nodes if n.target == torch.ops.aten.expand.default] == [
        (8193, 8192)
    ]


def test_a_size_that_depends_on_values_is_left_to_run_time() -> None:
    """How many rows ``nonzero`` finds is unknown to the graph, although it reads constants only."""

    def function(s: Calls, x: Tensor) -> Tensor:
        return x[:, torch.nonzero(s.table > 0)[:, 0]].sum(1)

    before = traced(Calls(function, table=torch.tensor([1.0, -1.0, 2.0])), (2, 3))
    assert "nonzero" in counts(rewritten(before, fold_constants, 1))


@pytest.mark.parametrize(
    "function",
    [
        lambda _, x: x + torch.arange(x.shape[0])[:, None],
        lambda _, x: x + torch.rand(3),
        lambda _, x: x + torch.randn_like(x),
        lambda _, x: (x * 0).exp(),
    ],
    ids=["dynamic", "random", "random-like", "input"],
)
def test_leaves_alone(function: object) -> None:
    rewritten(traced(Calls(function), ("batch", 3)), fold_constants, 0)  # type: ignore[arg-type]


def in_place(_: Calls, x: Tensor) -> Tensor:
    table = torch.zeros(3)
    table[1] += 2
    return x + table


def write_to_a_copy(_: Calls, x: Tensor) -> Tensor:
    return x.clone().add_(1) + x


@pytest.mark.parametrize(
    ("function", "rewrite"),
    [(in_place, fold_constants), (write_to_a_copy, eliminate_identity)],
    ids=["fold", "identity"],
)
def test_values_written_in_place_are_outside_the_contract_but_never_pass_silently(function, rewrite) -> None:  # type: ignore[no-untyped-def]
    """The networks write nothing in place. One that did would be stopped by the proof, not shipped."""
    with pytest.raises(PassError, match=rewrite.name):
        Engine("fast").run(traced(Calls(function), (2, 3)), (rewrite,))
