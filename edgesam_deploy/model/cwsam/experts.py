"""What stands for an MLP: one MLP, experts that tokens choose, or experts that choose tokens.

The mixtures hold their weights under the checkpoint's names; the routing operators evaluate them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain

from torch import Tensor, nn

from edgesam_deploy.model.cwsam.configs import ExpertsConfig
from edgesam_deploy.model.cwsam.routing import (
    ACTIVATIONS,
    Activation,
    expert_choice,
    experts_choose,
    learns,
    token_choice,
    tokens_choose,
)


class DenseMlp(nn.Module):
    """Linear, activation, linear: (..., D) -> (..., D)."""

    def __init__(self, width: int, hidden: int, activation: Activation) -> None:
        super().__init__()
        self.lin1 = nn.Linear(width, hidden)
        self.lin2 = nn.Linear(hidden, width)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.lin2(ACTIVATIONS[self.activation](self.lin1(x)))  # type: ignore[no-any-return]


class TokenChoice(nn.Module):
    """Every token takes its ``chosen`` best of ``count`` experts (arXiv 1701.06538): (..., D) -> the same."""

    def __init__(self, width: int, hidden: int, cfg: ExpertsConfig, activation: Activation) -> None:
        super().__init__()
        self.experts = nn.ModuleList(_pair(width, hidden, width, "02") for _ in range(cfg.count))
        self.gate = nn.Linear(width, cfg.count)
        self.chosen = cfg.chosen
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        tokens, gate = x.flatten(0, -2), self.gate
        weights = _weights(self.experts, "02")
        route: Callable[..., Tensor] = (
            tokens_choose if learns(tokens, *gate.parameters(), *chain(*weights)) else token_choice
        )
        mixed = route(tokens, gate.weight, gate.bias, *weights, self.chosen, self.activation)
        return mixed.reshape(x.shape)


class ExpertGroup(nn.Module):
    """The weights of one group: a router, and ``count`` experts cut into shards."""

    def __init__(self, width: int, hidden: int, cfg: ExpertsConfig) -> None:
        super().__init__()
        self.router = nn.Linear(width, cfg.count, bias=False)
        sizes = width, hidden // cfg.shards, width // cfg.shards
        self.expert_shards = nn.ModuleList(
            nn.ModuleList(_pair(*sizes, "03") for _ in range(cfg.shards)) for _ in range(cfg.count)
        )

    def shards(self) -> Iterable[nn.Module]:
        """In the order expert, shard."""
        for expert in self.expert_shards:
            assert isinstance(expert, nn.ModuleList)
            yield from expert


class ExpertChoice(nn.Module):
    """Groups of experts that choose tokens (arXiv 2202.09368): (1, ..., D) -> the same.

    What a token gets depends on every other token, so a batch of pictures would mix them.
    """

    def __init__(self, width: int, hidden: int, cfg: ExpertsConfig, activation: Activation) -> None:
        super().__init__()
        self.group_router = nn.Linear(width, cfg.groups, bias=False)
        self.expert_groups = nn.ModuleList(ExpertGroup(width, hidden, cfg) for _ in range(cfg.groups))
        self.cfg = cfg
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        groups = [group for group in self.expert_groups if isinstance(group, ExpertGroup)]
        tokens, routers = x.flatten(0, -2), [group.router.weight for group in groups]
        weights = _weights((shard for group in groups for shard in group.shards()), "03")
        route: Callable[..., Tensor] = (
            experts_choose if learns(tokens, self.group_router.weight, *routers, *chain(*weights)) else expert_choice
        )
        mixed = route(
            tokens,
            self.group_router.weight,
            routers,
            *weights,
            self.cfg.shards,
            self.cfg.capacity,
            self.cfg.groups_chosen,
            self.activation,
        )
        return mixed.reshape(x.shape)


def expert_mlp(width: int, hidden: int, cfg: ExpertsConfig, activation: Activation) -> nn.Module:
    """The module that ``cfg.kind`` names."""
    if cfg.kind == "dense":
        return DenseMlp(width, hidden, activation)
    return (TokenChoice if cfg.kind == "token" else ExpertChoice)(width, hidden, cfg, activation)


def _pair(inputs: int, hidden: int, outputs: int, places: str) -> nn.ModuleDict:
    """Two linear layers under their places in the checkpoint's nn.Sequential."""
    return nn.ModuleDict({places[0]: nn.Linear(inputs, hidden), places[1]: nn.Linear(hidden, outputs)})


def _weights(pairs: Iterable[nn.Module], places: str) -> tuple[list[Tensor], ...]:
    """w1, b1, w2, b2 of every pair."""
    table: tuple[list[Tensor], ...] = ([], [], [], [])
    for pair in pairs:
        assert isinstance(pair, nn.ModuleDict)
        for column, place in enumerate(places):
            layer = pair[place]
            assert isinstance(layer, nn.Linear)
            table[2 * column].append(layer.weight)
            table[2 * column + 1].append(layer.bias)
    return table
