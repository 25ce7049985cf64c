"""Products of three axes become products of four, between views that are there anyway."""

from __future__ import annotations

import torch
from passes.programs import Calls, counts, rewritten, traced

from edgesam_deploy.passes.aten import legalize_matmul_rank
from edgesam_deploy.passes.engine import Engine


def test_filters_times_a_map() -> None:
    def function(_: Calls, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x.reshape(-1, 4, 8) @ y.flatten(2)).unflatten(2, (6, 5))

    before = traced(Calls(function), (2, 32, 1, 1), (2, 8, 6, 5))
    after = rewritten(before, legalize_matmul_rank, 1)
    assert counts(after) == {"reshape": 3, "matmul": 1}
    assert all(n.meta["val"].ndim == 4 for n in after.aten.graph.nodes if n.op == "call_function")


def test_where_no_view_is_there() -> None:
    before = traced(Calls(lambda _, x, y: (x.relu() @ y) * 2), (2, 4, 8), (1, 8, 5))
    after = rewritten(before, legalize_matmul_rank, 1)
    assert (counts(after)["unsqueeze"], counts(after)["squeeze"]) == (2, 1)


def test_what_it_leaves_alone() -> None:
    for function, shape in ((lambda s, x: x @ s.w, (2, 4, 8)), (lambda _, x: x @ x.transpose(-1, -2), (1, 2, 4, 8))):
        before = traced(Calls(function, w=torch.randn(8, 3)), shape)
        assert Engine("fast").run(before, (legalize_matmul_rank,)) is before
