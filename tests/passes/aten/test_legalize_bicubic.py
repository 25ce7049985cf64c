"""Bicubic resizing as two matrix products."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from passes.programs import Calls, counts, rewritten, traced

from edgesam_deploy.passes.aten import legalize_bicubic

sides = st.integers(1, 12)


@given(sides, sides, sides, sides, st.booleans())
@settings(max_examples=8, deadline=None, derandomize=True)
def test_any_size(height: int, width: int, new_height: int, new_width: int, align: bool) -> None:
    def function(_: Calls, x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(x, (new_height, new_width), mode="bicubic", align_corners=align)

    assert counts(rewritten(traced(Calls(function), (2, 3, height, width)), legalize_bicubic, 1)) == {"matmul": 2}


@pytest.mark.parametrize("factor", [2, 1.3, 0.7, (1.5, 2.7)])
@pytest.mark.parametrize("recompute", [True, False])
def test_scale_factors(factor: float | tuple[float, float], recompute: bool) -> None:
    """11 x 1.3 is 14 rows, but sampled in steps of 1 / 1.3, not of 11 / 14."""

    def function(_: Calls, x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(x, scale_factor=factor, mode="bicubic", recompute_scale_factor=recompute)

    assert counts(rewritten(traced(Calls(function), (1, 2, 11, 7)), legalize_bicubic, 1)) == {"matmul": 2}


def test_the_overload_of_the_c_interface() -> None:
    def function(_: Calls, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.aten.upsample_bicubic2d.default(x, [14, 9], False, 1.3, None)

    assert counts(rewritten(traced(Calls(function), (1, 2, 11, 7)), legalize_bicubic, 1)) == {"matmul": 2}


def test_edgesams_neck() -> None:
    """32 -> 64, channels and a dynamic batch untouched; the matrices are banded, four taps a row."""
    module = Calls(lambda _, x: F.interpolate(x, scale_factor=2, mode="bicubic", align_corners=False))
    after = rewritten(traced(module, ("batch", 8, 32, 32)), legalize_bicubic, 1)
    rows = after.aten.state_dict["bicubic_32_64"]
    assert rows.shape == (64, 32)
    assert int((rows != 0).sum(1).max()) == 4
    torch.testing.assert_close(rows.sum(1), torch.ones(64))


def test_double_precision_stays() -> None:
    before = traced(Calls(lambda _, x: F.interpolate(x.double(), scale_factor=2, mode="bicubic").float()), (1, 2, 5, 6))
    after = rewritten(before, legalize_bicubic, 1)
    assert {value.dtype for value in after.aten.state_dict.values()} == {torch.float64}


def test_two_resizes_of_one_size() -> None:
    def function(_: Calls, x: torch.Tensor) -> torch.Tensor:
        up = F.interpolate(x, (8, 8), mode="bicubic")
        return up + F.interpolate(x.relu(), (8, 8), mode="bicubic")

    assert counts(rewritten(traced(Calls(function), (1, 2, 4, 4)), legalize_bicubic, 2))["matmul"] == 4


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((1, 2, "height", 7), {"scale_factor": 2, "mode": "bicubic"}),  # no constant matrix
        ((1, 2, 5, 7), {"scale_factor": 2, "mode": "bilinear"}),
        ((1, 2, 5, 7), {"scale_factor": 2, "mode": "nearest"}),
        ((1, 2, 8, 8), {"size": (4, 4), "mode": "bicubic", "antialias": True}),  # another kernel
    ],
    ids=["dynamic", "bilinear", "nearest", "antialias"],
)
def test_leaves_alone(shape: tuple[int | str, ...], options: dict[str, object]) -> None:
    rewritten(traced(Calls(lambda _, x: F.interpolate(x, **options)), shape), legalize_bicubic, 0)
