"""Bilinear and nearest resizing as two matrix products."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from passes.programs import Calls, counts, rewritten, traced
from torch import Tensor

from edgesam_deploy.capture import capture
from edgesam_deploy.contract import Interface
from edgesam_deploy.model.sam import Sam
from edgesam_deploy.passes.aten import legalize_bicubic, legalize_resize
from edgesam_deploy.passes.execute import relative_l2, run_program
from edgesam_deploy.passes.lower_to_onnx import lower_to_onnx

sides = st.integers(1, 9)
MODES: dict[str, dict[str, Any]] = {
    "bilinear": {"mode": "bilinear"},
    "aligned": {"mode": "bilinear", "align_corners": True},
    "nearest": {"mode": "nearest"},
    "exact": {"mode": "nearest-exact"},
}


def resize(shape: tuple[int | str, ...], **options: Any):  # type: ignore[no-untyped-def]
    return traced(Calls(lambda _, x: F.interpolate(x, **options)), shape)


@given(sides, sides, sides, sides, st.sampled_from(sorted(MODES)))
@settings(max_examples=12, deadline=None, derandomize=True)
def test_any_size(height: int, width: int, new_height: int, new_width: int, mode: str) -> None:
    program = resize((2, 3, height, width), size=(new_height, new_width), **MODES[mode])
    assert counts(rewritten(program, legalize_resize, 1)) == {"matmul": 2}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("factor", [2, 1.3, 0.7, (1.5, 2.7)])
@pytest.mark.parametrize("recompute", [True, False])
def test_scale_factors(mode: str, factor: float | tuple[float, float], recompute: bool) -> None:
    """11 x 1.3 is 14 rows, but sampled in steps of 1 / 1.3, not of 11 / 14."""
    program = resize((1, 2, 11, 7), scale_factor=factor, recompute_scale_factor=recompute, **MODES[mode])
    assert counts(rewritten(program, legalize_resize, 1)) == {"matmul": 2}


ops = torch.ops.aten


@pytest.mark.parametrize(
    "function",
    [
        lambda x: ops.upsample_bilinear2d.default(x, [14, 9], False, 1.3, None),
        lambda x: ops.upsample_bilinear2d.default(x, [14, 9], True, None, 1.3),
        lambda x: ops.upsample_nearest2d.default(x, [14, 9], 1.3, None),
        lambda x: ops._upsample_nearest_exact2d.default(x, [14, 9], None, 1.3),
    ],
)
def test_the_overloads_of_the_c_interface(function: Any) -> None:
    program = traced(Calls(lambda _, x: function(x)), (1, 2, 11, 7))
    assert counts(rewritten(program, legalize_resize, 1)) == {"matmul": 2}


@pytest.mark.parametrize(("mode", "taps"), [("bilinear", 2), ("nearest", 1), ("exact", 1)])
def test_the_matrices(mode: str, taps: int) -> None:
    """Rows sum to one, with two entries for bilinear and one for nearest; channels and a dynamic batch untouched."""
    after = rewritten(resize(("batch", 3, 8, 6), scale_factor=2, **MODES[mode]), legalize_resize, 1)
    stem = "bilinear" if mode == "bilinear" else "nearest"
    rows, columns = (after.aten.state_dict[f"{stem}_{name}"] for name in ("8_16", "6_12_t"))
    assert (rows.shape, columns.shape) == ((16, 8), (6, 12))
    assert int((rows != 0).sum(1).max()) == taps
    torch.testing.assert_close(rows.sum(1), torch.ones(16))


def test_double_precision_stays() -> None:
    module = Calls(lambda _, x: F.interpolate(x.double(), scale_factor=2, mode="bilinear").float())
    after = rewritten(traced(module, (1, 2, 5, 6)), legalize_resize, 1)
    assert {value.dtype for value in after.aten.state_dict.values()} == {torch.float64}


def test_several_of_one_size() -> None:
    def function(_: Calls, x: Tensor) -> Tensor:
        near, exact = (F.interpolate(x, (7, 7), mode=m) for m in ("nearest", "nearest-exact"))
        return near + exact * F.interpolate(x.relu(), (7, 7), mode="bilinear")

    assert counts(rewritten(traced(Calls(function), (1, 2, 4, 4)), legalize_resize, 3))["matmul"] == 6


def test_bicubic_is_the_other_passs() -> None:
    before = resize((1, 2, 5, 6), scale_factor=2, mode="bicubic")
    rewritten(before, legalize_resize, 0)
    rewritten(before, legalize_bicubic, 1)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((1, 2, "height", 7), {"scale_factor": 2, "mode": "bilinear"}),
        ((1, 2, 5, "width"), {"scale_factor": 2, "mode": "nearest"}),
        ((1, 2, 8, 8), {"size": (4, 4), "mode": "bilinear", "antialias": True}),
        ((1, 2, 8), {"size": 4, "mode": "linear"}),
        ((1, 2, 8, 8), {"size": (4, 4), "mode": "area"}),
    ],
    ids=["dynamic height", "dynamic width", "antialias", "one axis", "area"],
)
def test_leaves_alone(shape: tuple[int | str, ...], options: dict[str, Any]) -> None:
    rewritten(resize(shape, **options), legalize_resize, 0)


@pytest.mark.parametrize("mode", MODES)
def test_same_results_in_onnx(mode: str) -> None:
    before = resize((1, 2, 5, 6), size=(9, 4), **MODES[mode])
    after = rewritten(before, legalize_resize, 1).copy()
    lower_to_onnx(20, 9)(after)
    assert counts(after) == {"MatMul": 2}
    x = {"x": np.random.default_rng(0).standard_normal((1, 2, 5, 6)).astype(np.float32)}
    assert relative_l2(run_program(before, x)["out0"], run_program(after, x)["out0"]) < 1e-6


def test_the_masks_of_the_dyt_layout(tiny_model: Sam) -> None:
    _, decoder = capture(tiny_model, Interface(image_size=256, embed_dim=64, io="edgesam-dyt"))
    assert "upsample_bilinear2d" not in counts(rewritten(decoder, legalize_resize, 1))
