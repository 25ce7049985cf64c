"""Bicubic resizing as two products on a channel-last map."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from passes.programs import Calls, counts, rewritten, traced

from edgesam_deploy.passes.aten import legalize_bicubic_channel_last


@pytest.mark.parametrize("size", [(14, 9), (5, 7), (22, 14), (1, 1)])
@pytest.mark.parametrize("align", [False, True])
def test_any_size(size: tuple[int, int], align: bool) -> None:
    def function(_: Calls, x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(x, size, mode="bicubic", align_corners=align)

    found = counts(rewritten(traced(Calls(function), (1, 3, 11, 7)), legalize_bicubic_channel_last, 1))
    assert found == {"permute": 2, "reshape": 3, "matmul": 2}


@pytest.mark.parametrize("factor", [2, 1.3, (1.5, 2.7)])
def test_scale_factors(factor: float | tuple[float, float]) -> None:
    def function(_: Calls, x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(x, scale_factor=factor, mode="bicubic")

    rewritten(traced(Calls(function), (1, 2, 11, 7)), legalize_bicubic_channel_last, 1)


@pytest.mark.parametrize("batch", [2, "batch"])
def test_several_maps_stay(batch: int | str) -> None:
    module = Calls(lambda _, x: F.interpolate(x, scale_factor=2, mode="bicubic"))
    rewritten(traced(module, (batch, 3, 8, 8)), legalize_bicubic_channel_last, 0)


def test_the_matrices_are_banded() -> None:
    module = Calls(lambda _, x: F.interpolate(x, scale_factor=2, mode="bicubic"))
    after = rewritten(traced(module, (1, 8, 32, 16)), legalize_bicubic_channel_last, 1)
    rows, columns = (after.aten.state_dict[name] for name in ("bicubic_32_64", "bicubic_16_32"))
    assert rows.shape == (64, 32)
    assert columns.shape == (32, 16)
    assert int((rows != 0).sum(1).max()) == 4
