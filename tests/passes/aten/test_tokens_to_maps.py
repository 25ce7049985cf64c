"""Tokens as maps one row high: layers become convolutions, heads views of channels; nothing is transposed between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from passes.programs import Calls, counts, randomise, rewritten, traced
from torch import Tensor, nn

from edgesam_deploy.model.configs import MaskDecoderConfig
from edgesam_deploy.model.transformer import Attention, TwoWayTransformer
from edgesam_deploy.passes.aten import eliminate_identity, fold_constants, fold_scale, tokens_to_maps
from edgesam_deploy.passes.engine import Engine

Function = Callable[..., Any]


def layers(**children: nn.Module) -> dict[str, nn.Module]:
    return {"a": nn.Linear(6, 10), "b": nn.Linear(10, 6, bias=False), **children}


def test_layers_that_follow_each_other() -> None:
    net = randomise(Calls(lambda s, x: x + s.b(F.gelu(s.a(x))), **layers()))
    after = rewritten(traced(net, (2, 5, 6)), tokens_to_maps, 4)
    found = counts(after)
    assert (found["conv2d"], "linear" in found) == (2, False)
    assert (found["permute"], found["unsqueeze"], found["squeeze"]) == (2, 1, 1)  # at the borders only


def test_sums_norms_joins_and_cuts() -> None:
    def function(s: Calls, x: Tensor) -> tuple[Tensor, Tensor]:
        tokens = torch.cat([s.own.expand(2, -1, -1), x], 1)
        tokens = s.norm(s.b(s.a(tokens)) + tokens) * s.row
        return s.a(tokens[:, 1:4]), s.a(tokens[:, -1])

    net = Calls(function, **layers(norm=nn.LayerNorm(6)), own=torch.randn(1, 3, 6), row=torch.randn(6))
    after = rewritten(traced(randomise(net), (2, 5, 6), outputs=2), tokens_to_maps, 10)
    assert "linear" not in counts(after)
    shapes = {tuple(n.meta["val"].shape) for n in after.aten.graph.nodes if n.target == torch.ops.aten.conv2d.default}
    assert shapes == {(2, 10, 1, 8), (2, 6, 1, 8), (2, 10, 1, 3), (2, 10, 1, 1)}


@pytest.mark.parametrize("shapes", [[(1, 5, 16), (1, 12, 16)], [(3, 5, 16), (1, 12, 16)]], ids=["one", "batch"])
def test_attention_without_transposes(shapes: list[tuple[int, ...]]) -> None:
    """What is left are the turns that a product takes in: of the queries, and of the probabilities."""
    net = randomise(Calls(lambda s, x, y: s.net(x, y, y), net=Attention(16, 4, 2)))
    before = Engine("off").run(traced(net, *shapes), (eliminate_identity, fold_constants, fold_scale))
    after = rewritten(before, tokens_to_maps, 9)
    found = counts(after)
    assert (found["conv2d"], found["matmul"], found["transpose"]) == (4, 2, 2)
    readers = [n for t in after.aten.graph.nodes if t.target == torch.ops.aten.transpose.int for n in t.users]
    assert {n.target for n in readers} == {torch.ops.aten.matmul.default}


def test_the_two_way_transformer() -> None:
    """From the image's map to the tokens and back to a map: no value has three axes in between."""
    cfg = MaskDecoderConfig(mlp_dim=24, depth=2, heads=4)

    def function(s: Calls, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        place = s.place.flatten(2).transpose(1, 2)
        tokens, image = s.net(x, y.flatten(2).transpose(1, 2), place)
        return tokens, image.transpose(1, 2).unflatten(2, (6, 6))

    net = Calls(function, net=TwoWayTransformer(32, cfg), place=torch.randn(1, 32, 6, 6))
    before = traced(randomise(net), (2, 5, 32), (1, 32, 6, 6), outputs=2)
    before = Engine("off").run(before, (eliminate_identity, fold_constants, fold_scale))
    engine = Engine("full")
    after = engine.run(before, (tokens_to_maps,))
    assert engine.steps[0].error is not None
    assert engine.steps[0].error < 2e-6
    found = counts(after)
    assert not {"linear", "unflatten", "flatten"} & set(found)
    ranks = {n.name: n.meta["val"].ndim for n in after.aten.graph.nodes if n.op == "call_function"}
    assert sorted(rank for rank in ranks.values() if rank != 4) == [3]  # the tokens that are given back


UNCHANGED: list[tuple[Function, tuple[int, ...]]] = [
    (lambda s, x: x @ x.transpose(1, 2), (2, 5, 6)),  # no layer
    (lambda s, x: F.linear(x, x[0]), (2, 6, 6)),  # weights that are computed
    (lambda s, x: s.a(x), (2, 3, 5, 6)),  # tokens in rows and columns
    (lambda s, x: s.a(x), (6,)),
]


@pytest.mark.parametrize(("function", "shape"), UNCHANGED)
def test_what_it_leaves_alone(function: Function, shape: tuple[int, ...]) -> None:
    before = traced(randomise(Calls(function, **layers())), shape)
    assert Engine("fast").run(before, (tokens_to_maps,)) is before


def test_heads_that_are_no_view_stay() -> None:
    """Values that come from elsewhere: the product is left as it is, and the layer behind it is converted."""
    net = randomise(Calls(lambda s, x: s.a(x.softmax(-1).matmul(x).transpose(1, 2).flatten(2)), a=nn.Linear(8, 3)))
    after = rewritten(traced(net, (1, 2, 4, 4)), tokens_to_maps, 1)
    assert (counts(after)["conv2d"], counts(after)["flatten"]) == (1, 1)
