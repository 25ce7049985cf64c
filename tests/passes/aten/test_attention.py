"""What is recognised as cross-attention, and what is not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from passes.aten.test_absorb_token_projections import MANY, C, always, attention, program
from passes.programs import Calls, rewritten, traced
from torch import Tensor

from edgesam_deploy.passes.aten import canonicalize_cross_attention, eliminate_identity
from edgesam_deploy.passes.aten.attention import cross_attentions
from edgesam_deploy.passes.aten.graph import AtenGraph
from edgesam_deploy.passes.engine import Engine


def by_hand(s: Calls, x: Tensor, y: Tensor, change: str = "") -> Any:
    """The attention's own lines, with something in between."""
    net: Any = s.net
    q, k, v = net.split(net.q_proj(x)), net.split(net.k_proj(y)), net.split(net.v_proj(y))
    if change == "unscaled":
        scores = q @ k.transpose(-2, -1)
    elif change == "scaled by a tensor":
        scores = (q * x[:, :1, :1, None]) @ k.transpose(-2, -1)
    else:
        scores = (q * 0.7) @ k.transpose(3, 2)
    if change == "doubled bias":
        scores = torch.add(scores, x[:, None, :, :1], alpha=2)
    if change == "bias of four axes":
        scores = scores + x[:, None, :, :1]
    if change == "flat bias":
        scores = scores + y[0, :, 0]
    if change == "a number as bias":
        scores = scores + 0.5
    p = scores.softmax(2 if change == "over queries" else 3)
    if change == "logarithm":
        p = scores.log_softmax(3)
    if change == "type named":
        p = scores.softmax(3, torch.float32)
    mixed = p @ v
    if change == "kept rows":
        return net.out_proj(mixed.transpose(1, 2).flatten(2)), mixed
    if change == "kept weights":
        return net.out_proj(mixed.transpose(1, 2).flatten(2)), p
    if change == "kept keys":
        return net.out_proj(mixed.transpose(1, 2).flatten(2)), k
    return net.out_proj(mixed.transpose(2, 1).flatten(2, 3))


@pytest.mark.parametrize(
    ("change", "sites"),
    [("", 1), ("unscaled", 1), ("scaled by a tensor", 0), ("doubled bias", 0), ("flat bias", 0), ("over queries", 0),
     ("bias of four axes", 1), ("a number as bias", 0), ("logarithm", 0), ("type named", 0)],
)  # fmt: skip
def test_other_spellings(change: str, sites: int) -> None:
    rewritten(program(lambda s, x, y: by_hand(s, x, y, change)), always, sites)


@pytest.mark.parametrize("change", ["kept rows", "kept weights", "kept keys"])
def test_something_else_reads_a_value_within(change: str) -> None:
    module = Calls(lambda s, x, y: by_hand(s, x, y, change), net=attention())
    before = Engine("off").run(traced(module, (1, 5, C), (1, MANY, C), outputs=2), (eliminate_identity,))
    rewritten(before, always, 0)


def test_computed_weights() -> None:
    def computed(s: Calls, x: Tensor, y: Tensor) -> Tensor:
        net: Any = s.net
        q = net.split(torch.nn.functional.linear(x, net.q_proj.weight * x[0, 0, 0], net.q_proj.bias))
        k, v = net.split(net.k_proj(y)), net.split(net.v_proj(y))
        mixed = (q * 0.7 @ k.transpose(2, 3)).softmax(-1) @ v
        return net.out_proj(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    rewritten(program(computed), always, 0)


def test_a_site() -> None:
    """Names, weights and roles of what was found."""
    net = attention()
    for function, many_keys in ((lambda s, x, y: s.net(x, y, y), True), (lambda s, x, y: s.net(y, x, x), False)):
        with AtenGraph(program(function, net=net)) as graph:
            (site,) = cross_attentions(graph)
        assert (site.heads, site.many_keys, site.bias) == (2, many_keys, None)
        assert site.scale == pytest.approx(2**-0.5)
        assert (site.few, site.many) == ((site.q, site.k) if many_keys else (site.k, site.q))
        assert site.few.source.name == "x"
        assert site.q.name == "net.q_proj"
        assert torch.equal(site.q.weight, net.q_proj.weight)
        assert torch.equal(site.out_per_head()[1, 0], net.out_proj.weight[:, 2])
        assert torch.equal(site.v.per_head(2)[1, 0], net.v_proj.weight[2])


@pytest.mark.parametrize(("few", "many", "sites"), [(10, 80, 1), (10, 79, 0), (1, 8, 1), (1, 7, 0), (8, 8, 0)])
def test_how_lopsided(few: int, many: int, sites: int) -> None:
    for function in (lambda s, x, y: s.net(x, y, y), lambda s, x, y: s.net(y, x, x)):
        rewritten(program(function, (1, few, C), (1, many, C)), canonicalize_cross_attention, sites)


def test_both_counts_dynamic() -> None:
    before = program(lambda s, x, y: s.net(x, y, y), (1, "points", C), (1, "pixels", C))
    rewritten(before, canonicalize_cross_attention, 0)


def test_heads_differ() -> None:
    """Broadcast heads are not attention's."""

    def odd(s: Calls, x: Tensor, y: Tensor) -> Tensor:
        net: Any = s.net
        q = net.q_proj(x).unflatten(-1, (1, -1)).transpose(1, 2)
        k = net.k_proj(y).unflatten(-1, (1, -1)).transpose(1, 2)
        v = net.split(net.v_proj(y))
        return net.out_proj(((q @ k.transpose(2, 3)).softmax(-1) @ v).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    rewritten(program(odd), always, 0)


@pytest.mark.parametrize("missing", ["queries", "keys", "values"])
def test_heads_that_are_not_projected(missing: str) -> None:
    """They are pieces of the source itself: there is no weight to fold anything into."""

    def function(s: Calls, x: Tensor, y: Tensor) -> Tensor:
        net: Any = s.net
        q = net.split(x[..., :4] if missing == "queries" else net.q_proj(x))
        k = net.split(y[..., :4] if missing == "keys" else net.k_proj(y))
        v = net.split(y[..., 4:] if missing == "values" else net.v_proj(y))
        return net.out_proj(((q @ k.transpose(2, 3)).softmax(3) @ v).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    rewritten(program(function), always, 0)


@pytest.mark.parametrize("computed", ["weight", "bias"])
def test_an_output_projection_that_is_computed(computed: str) -> None:
    def function(s: Calls, x: Tensor, y: Tensor) -> Tensor:
        net: Any = s.net
        q, k, v = net.split(net.q_proj(x)), net.split(net.k_proj(y)), net.split(net.v_proj(y))
        mixed = ((q @ k.transpose(2, 3)).softmax(3) @ v).transpose(1, 2).flatten(2)
        values = {
            name: value * x.mean() if name == computed else value for name, value in net.out_proj.named_parameters()
        }
        return torch.nn.functional.linear(mixed, **values)

    rewritten(program(function), always, 0)


def test_heads_joined_with_the_rows() -> None:
    """Of one token the rows may go as well; the result has an axis less then."""

    def function(s: Calls, x: Tensor, y: Tensor) -> Tensor:
        net: Any = s.net
        q, k, v = net.split(net.q_proj(x)), net.split(net.k_proj(y)), net.split(net.v_proj(y))
        mixed = (q @ k.transpose(2, 3)).softmax(3) @ v
        return net.out_proj(mixed.transpose(1, 2).flatten(1))  # type: ignore[no-any-return]

    rewritten(program(function, (1, 1, C)), always, 0)
