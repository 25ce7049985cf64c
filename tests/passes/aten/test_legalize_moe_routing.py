"""Mixtures of experts without picking tokens: the same outputs, whatever the router says, ties included."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from passes.programs import Calls, counts, randomise, rewritten, traced
from torch import Tensor, nn

from edgesam_deploy.model.cwsam.configs import ExpertsConfig
from edgesam_deploy.model.cwsam.experts import ExpertChoice, TokenChoice
from edgesam_deploy.passes.aten import legalize_moe_routing
from edgesam_deploy.passes.aten.legalize_moe_routing import _members_needed
from edgesam_deploy.passes.engine import Engine
from edgesam_deploy.passes.execute import relative_l2, run_program
from edgesam_deploy.passes.lower_to_onnx import lower_to_onnx
from edgesam_deploy.passes.program import Program

WIDTH, HIDDEN = 8, 12
FORBIDDEN = {"NonZero", "If", "Loop", "ScatterND", "ScatterElements", "GatherND", "Gather", "GatherElements", "Einsum"}


def token_choice(count: int = 6, chosen: int = 3, activation: Any = "gelu") -> nn.Module:
    cfg = ExpertsConfig("token", count=count, chosen=chosen)
    return randomise(TokenChoice(WIDTH, HIDDEN, cfg, activation), spread=0.5)


def expert_choice(
    count: int = 4, groups: int = 3, shards: int = 2, capacity: float = 1.5, activation: Any = "gelu"
) -> nn.Module:
    cfg = ExpertsConfig("groups", count=count, groups=groups, shards=shards, capacity=capacity)
    return randomise(ExpertChoice(WIDTH, HIDDEN, cfg, activation), spread=0.5)


def lowered(program: Program) -> Program:
    found = Engine("fast").run(program, (lower_to_onnx(20, 9),))
    assert not FORBIDDEN & set(counts(found))
    return found


def agrees(before: Program, after: Program, x: np.ndarray[Any, Any]) -> None:
    expected, found = (run_program(program, {"x": x.astype(np.float32)})["out0"] for program in (before, after))
    assert relative_l2(expected, found) < 1e-5


def random(*shape: int, seed: int = 3) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize(("count", "chosen"), [(6, 3), (6, 1), (4, 4), (1, 1)])
def test_token_choice(count: int, chosen: int, activation: str) -> None:
    before = traced(token_choice(count, chosen, activation), (1, 4, 5, WIDTH))
    after = rewritten(before, legalize_moe_routing, 1)
    found = counts(after)
    assert "edgesam_deploy" not in found
    assert found["linear"] == 1 + 2 * count
    assert not {"topk", "sort", "nonzero", "index", "scatter"} & set(found)
    if (count, chosen) == (6, 3):
        agrees(before, lowered(after), random(1, 4, 5, WIDTH))


def test_a_decoder_of_128_experts() -> None:
    """Five tokens, far fewer than experts."""
    before = traced(token_choice(126, 2, "relu"), (1, 5, WIDTH))
    after = rewritten(before, legalize_moe_routing, 1)
    agrees(before, after, random(1, 5, WIDTH))


def test_without_gate_bias() -> None:
    module = token_choice()
    module.gate.register_parameter("bias", None)  # type: ignore[union-attr, operator]
    rewritten(traced(module, (7, WIDTH)), legalize_moe_routing, 1)


def coarse(module: nn.Module, *names: str) -> nn.Module:
    """Router weights of -1, 0 or 1, so that integer tokens give integer logits, which are often equal."""
    with torch.no_grad():
        for name, value in module.named_parameters():
            if name.startswith(names) or any(n in name for n in names):
                value.copy_(value.round().clamp(-1, 1))
    return module


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=6, deadline=None, derandomize=True)
def test_equal_logits_of_tokens(seed: int) -> None:
    before = traced(coarse(token_choice(8, 3), "gate"), (40, WIDTH))
    after = rewritten(before, legalize_moe_routing, 1)
    x = np.random.default_rng(seed).integers(-1, 2, (40, WIDTH)).astype(np.float32)
    logits = torch.nn.functional.linear(
        torch.from_numpy(x), *(before.aten.state_dict[f"net.gate.{n}"] for n in ("weight", "bias"))
    )
    best = logits.sort(1, descending=True).values
    assert (best[:, 2] == best[:, 3]).any(), "some token's last chosen expert is tied with the first one left out"
    agrees(before, after, x)
    agrees(before, after, np.zeros((40, WIDTH)))


def test_all_tokens_to_the_same_experts() -> None:
    before = traced(token_choice(6, 2), (30, WIDTH))
    after = rewritten(before, legalize_moe_routing, 1)
    agrees(before, after, np.repeat(random(1, WIDTH), 30, 0))


CASES = {
    "plain": {},
    "relu": {"activation": "relu"},
    "one shard": {"shards": 1},
    "one group": {"groups": 1},
    "one expert": {"count": 1},
    "one expert, one shard": {"count": 1, "shards": 1},
    "all take all": {"capacity": 4.0},
    "more than all": {"capacity": 9.0},
    "small": {"capacity": 0.3},
}


@pytest.mark.parametrize("case", CASES)
def test_expert_choice(case: str) -> None:
    options: dict[str, Any] = CASES[case]
    before = traced(expert_choice(**options), (1, 5, 6, WIDTH))
    after = rewritten(before, legalize_moe_routing, 1)
    found = counts(after)
    groups = options.get("groups", 3)
    assert (found["topk"], found["matmul"]) == (groups, 2 * groups)
    assert not {"sort", "nonzero", "index", "scatter", "gather", "index_add"} & set(found)
    joins = (options.get("count", 4) > 1) + (options.get("shards", 2) > 1) * options.get("count", 4)
    assert found.get("cat", 0) == groups * joins, "nothing is joined where there is one"
    if case == "plain":
        agrees(before, lowered(after), random(1, 5, 6, WIDTH))


def test_no_expert_takes_anything() -> None:
    """int(0.05 * 30 / 4) = 0 even if one group has all tokens."""
    before = traced(expert_choice(capacity=0.05), (1, 5, 6, WIDTH))
    assert counts(rewritten(before, legalize_moe_routing, 1))["zeros_like"] == 1


def steered(share: list[float]) -> np.ndarray[Any, Any]:
    """(40, WIDTH): tokens whose first three entries say the group; ``share`` of the tokens each."""
    x = 0.5 * random(40, WIDTH)
    x[:, :3] = 0
    x[np.arange(40), np.repeat(np.arange(3), [round(40 * s) for s in share])] = 4
    return x


@pytest.mark.parametrize("share", [[1, 0, 0], [0, 0, 1], [0.5, 0.5, 0], [0.9, 0.05, 0.05], [0.95, 0.025, 0.025]])
def test_loads_of_groups(share: list[float]) -> None:
    """All tokens in one group, none in others, and so few that their experts take none: 1.5 * 2 / 4 < 1."""
    module = expert_choice()
    with torch.no_grad():
        module.group_router.weight.copy_(torch.eye(3, WIDTH))  # type: ignore[union-attr, operator]
    before = traced(module, (40, WIDTH))
    after = rewritten(before, legalize_moe_routing, 1)
    agrees(before, after, steered(share))


def test_equal_logits_of_experts() -> None:
    """Groups and tokens tie. In ONNX, where TopK orders equals by index; torch.topk promises no order."""
    before = traced(coarse(expert_choice(2, shards=1), "router"), (60, WIDTH))
    after = lowered(rewritten(before, legalize_moe_routing, 1))
    agrees(before, after, np.zeros((60, WIDTH)))
    for seed in range(5):
        rng = np.random.default_rng(seed)
        agrees(before, after, rng.integers(-1, 2, (60, WIDTH)))
        agrees(before, after, np.repeat(rng.standard_normal((6, WIDTH)), 10, 0))


@pytest.mark.parametrize("capacity", [0.1, 1.0, 1.1, 1.5, 2.0, 3.3, 1 / 3, 200.0])
@pytest.mark.parametrize("count", [1, 3, 10, 16, 126])
def test_slots_filled_for_every_size_of_group(capacity: float, count: int) -> None:
    """[slot < taken] = [n >= needed[slot]], with the operator's arithmetic, where a float32 floor would be off."""
    tokens = 4096
    needed = np.array(_members_needed(tokens, capacity, count))
    sizes = np.arange(tokens + 1)
    filled = np.searchsorted(needed, sizes, side="right")
    assert (np.diff(needed) >= 0).all()
    assert filled.tolist() == [min(n, int(capacity * n / count)) for n in range(tokens + 1)]


def test_two_mixtures_share_constants() -> None:
    module = Calls(lambda s, x: s.b(s.a(x)), a=token_choice(), b=token_choice())
    after = rewritten(traced(module, (7, WIDTH)), legalize_moe_routing, 2)
    assert [name for name in after.aten.state_dict if name.startswith("index")] == ["index_below_6"]


def test_mixtures_of_two_capacities() -> None:
    module = Calls(lambda s, x: s.b(x + s.a(x)), a=expert_choice(capacity=1.5), b=expert_choice(capacity=1.4))
    after = rewritten(traced(module, (20, WIDTH)), legalize_moe_routing, 2)
    assert sum(name.startswith("members_needed") for name in after.aten.state_dict) == 2


def test_refuses_an_unknown_number_of_tokens() -> None:
    rewritten(traced(token_choice(), ("tokens", WIDTH)), legalize_moe_routing, 0)


def test_other_operators_are_left_alone() -> None:
    def function(_: Calls, x: Tensor) -> Tensor:
        return x.topk(2).values.softmax(-1)

    rewritten(traced(Calls(function), (4, 5)), legalize_moe_routing, 0)
