"""The two ways of routing tokens to experts, each one operator, so that a trace holds one node per mixture.

Which tokens an expert sees depends on the data: traced through, the sample input's choice would be baked in (an
exporter then drops the experts that it did not use). Both are evaluated sparsely here; ties are decided by the lower
index everywhere, since half-precision logits do tie. Training takes the functions, which have derivatives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

Activation = Literal["relu", "gelu"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}
Shape = Sequence[int]


def tokens_choose(
    x: Tensor,
    gate_weight: Tensor,
    gate_bias: Tensor | None,
    w1: Sequence[Tensor],
    b1: Sequence[Tensor],
    w2: Sequence[Tensor],
    b2: Sequence[Tensor],
    chosen: int,
    activation: str,
) -> Tensor:
    """x (T, D) -> (T, D'): each token takes its ``chosen`` best experts, weighed by softmax over those logits.

    Expert e is chosen iff #{logit > own} + #{equal logit of a lower index} < chosen. One entry per expert in w1 (H, D),
    b1 (H), w2 (D', H), b2 (D'); gate_weight (experts, D), gate_bias (experts). There is no capacity limit.
    """
    logits = F.linear(x, gate_weight, gate_bias)
    best, experts = logits.sort(dim=1, descending=True, stable=True)
    weights, experts = best[:, :chosen].softmax(1), experts[:, :chosen]
    out = x.new_zeros(x.shape[0], w2[0].shape[0])
    for expert in range(len(w1)):
        tokens, place = (experts == expert).nonzero(as_tuple=True)
        if tokens.numel():
            value = _expert(x[tokens], w1[expert], b1[expert], w2[expert], b2[expert], activation)
            out.index_add_(0, tokens, weights[tokens, place, None] * value)
    return out


def experts_choose(
    x: Tensor,
    group_router: Tensor,
    routers: Sequence[Tensor],
    w1: Sequence[Tensor],
    b1: Sequence[Tensor],
    w2: Sequence[Tensor],
    b2: Sequence[Tensor],
    shards: int,
    capacity: float,
    groups_chosen: int,
    activation: str,
) -> Tensor:
    """x (T, D) -> (T, D): each token goes to its best group, where every expert takes the tokens it likes best.

    In a group of n tokens and E experts an expert takes min(n, int(capacity n / E)), weighed by softmax over the taken
    tokens; a token may be taken by several experts or by none, whose output is 0. So an output depends on all tokens.
    group_router (G, D), routers G times (E, D); w1 (H/S, D), b1 (H/S), w2 (D/S, H/S), b2 (D/S) in the order group,
    expert, shard: the shards of an expert see the same tokens and each gives its slice of the output.
    ``groups_chosen`` is 1.
    """
    assert groups_chosen == 1, "check_cwsam refuses other configurations"
    out = torch.zeros_like(x)
    groups = F.linear(x, group_router).argmax(1)  # the first of equals
    for group, router in enumerate(routers):
        tokens = (groups == group).nonzero()[:, 0]
        count = router.shape[0]
        taken = min(len(tokens), int(capacity * len(tokens) / count))
        logits = F.linear(x[tokens], router)
        best, order = logits.sort(dim=0, descending=True, stable=True)
        weights, order = best[:taken].softmax(0), order[:taken]
        for expert in range(count if taken else 0):
            own = tokens[order[:, expert]]
            first = (group * count + expert) * shards
            parts = [_expert(x[own], w1[i], b1[i], w2[i], b2[i], activation) for i in range(first, first + shards)]
            out.index_add_(0, own, weights[:, expert, None] * torch.cat(parts, 1))
    return out


def _expert(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, activation: str) -> Tensor:
    return F.linear(ACTIVATIONS[activation](F.linear(x, w1, b1)), w2, b2)


token_choice = torch.library.custom_op(
    "edgesam_deploy::token_choice",
    tokens_choose,
    mutates_args=(),
    schema="(Tensor x, Tensor gate_weight, Tensor? gate_bias, Tensor[] w1, Tensor[] b1, Tensor[] w2, Tensor[] b2, "
    "int chosen, str activation) -> Tensor",
)
expert_choice = torch.library.custom_op(
    "edgesam_deploy::expert_choice",
    experts_choose,
    mutates_args=(),
    schema="(Tensor x, Tensor group_router, Tensor[] routers, Tensor[] w1, Tensor[] b1, Tensor[] w2, Tensor[] b2, "
    "int shards, float capacity, int groups_chosen, str activation) -> Tensor",
)


def learns(*tensors: Tensor) -> bool:
    """Whether derivatives are wanted: the operators have none, the functions under them do."""
    traced = torch.compiler.is_exporting() or tensors[0].is_meta
    return torch.is_grad_enabled() and not traced and any(tensor.requires_grad for tensor in tensors)


@token_choice.register_fake
def _(x: Tensor, gate_weight: Tensor, gate_bias: Tensor | None, w1: Any, b1: Any, w2: Any, *rest: Any) -> Tensor:
    return x.new_empty(x.shape[0], w2[0].shape[0])


@expert_choice.register_fake
def _(x: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(x)


@register_flop_formula(torch.ops.edgesam_deploy.token_choice)
def token_choice_flops(
    x: Shape, gate_weight: Shape, gate_bias: Any, w1: Any, b1: Any, w2: Any, b2: Any, chosen: int, *_: Any, **__: Any
) -> int:
    """Two per multiply-accumulate: the gate, then ``chosen`` experts per token, which are all of one size."""
    return 2 * x[0] * (gate_weight[0] * gate_weight[1] + chosen * (_area(w1[0]) + _area(w2[0])))


@register_flop_formula(torch.ops.edgesam_deploy.expert_choice)
def expert_choice_flops(
    x: Shape, group_router: Shape, routers: Any, w1: Any, b1: Any, w2: Any, b2: Any, shards: int, capacity: float,
    *_: Any, **__: Any,
) -> int:  # fmt: skip
    """Two per multiply-accumulate: both routers, and ``capacity`` experts per token (each group rounds it down)."""
    count = routers[0][0]
    taken = int(min(capacity, count) * x[0])
    return 2 * x[0] * (_area(group_router) + _area(routers[0])) + 2 * taken * shards * (_area(w1[0]) + _area(w2[0]))


def _area(shape: Shape) -> int:
    return shape[0] * shape[1]
