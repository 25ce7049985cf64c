"""What nobody reads goes; the program's signature stays."""

from __future__ import annotations

import torch
from passes.programs import Calls, counts, randomise, rewritten, traced
from torch import Tensor, nn

from edgesam_deploy.passes.aten import eliminate_dead


def test_dead_operators_and_their_weights() -> None:
    def function(s: Calls, x: Tensor) -> Tensor:
        s.head(x.relu()).sum()
        return s.net(x)

    before = traced(randomise(Calls(function, net=nn.Linear(3, 2), head=nn.Linear(3, 5))), (2, 3))
    after = rewritten(before, eliminate_dead, 5)  # relu, linear, sum, weight, bias
    assert counts(after) == {"linear": 1}
    assert set(after.aten.state_dict) == {"net.weight", "net.bias"}


def test_a_weight_that_was_never_read() -> None:
    before = traced(randomise(Calls(lambda s, x: x @ s.net.weight, net=nn.Linear(2, 3))), (2, 3))
    after = rewritten(before, eliminate_dead, 1)
    assert set(after.aten.state_dict) == {"net.weight"}


def test_an_input_that_is_not_read_stays() -> None:
    after = rewritten(traced(Calls(lambda _, x, y: (x + 1, y * 2)[0]), (2, 3), (4,)), eliminate_dead, 1)
    assert after.aten.graph_signature.user_inputs == ("x", "y")


def test_nothing_is_dead() -> None:
    before = traced(randomise(Calls(lambda s, x: (s.net(x), s.net.bias), net=nn.Linear(3, 2))), (2, 3), outputs=2)
    rewritten(before, eliminate_dead, 0)


def test_buffers_saved_and_not() -> None:
    def function(s: Calls, x: Tensor) -> Tensor:
        (x * s.table + s.hidden).exp()
        return x.sin()

    module = Calls(function, table=torch.arange(3.0))
    module.register_buffer("hidden", torch.ones(3), persistent=False)
    after = rewritten(traced(module, (2, 3)), eliminate_dead, 5)  # mul, add, exp and both buffers
    assert counts(after) == {"sin": 1}
    assert not after.aten.state_dict
    assert not after.aten.constants
