"""A model that is not built is judged as its targets would lower it."""

from __future__ import annotations

import pytest

from edgesam_deploy.errors import UnknownName
from edgesam_deploy.ops.of_model import model_reports


def test_each_target_judges_what_its_own_pipeline_lowers(tiny_model) -> None:
    reports = model_reports(tiny_model, ["onnx", "rknn", "coreml"])
    assert [(found.file, found.targets) for found in reports] == [
        ("image_encoder of edge_sam, as the onnx pipeline lowers it", ("onnx", "coreml")),
        ("mask_decoder of edge_sam, as the onnx pipeline lowers it", ("onnx", "coreml")),
        ("image_encoder of edge_sam, as the npu (rknn) pipeline lowers it", ("rknn",)),
        ("mask_decoder of edge_sam, as the npu (rknn) pipeline lowers it", ("rknn",)),
    ]
    assert all(found.failures() == () for found in reports if "rknn" in found.targets)
    assert "Sin" in {row.operator for row in reports[1].rows}


def test_an_unknown_target_is_said_before_anything_is_captured(tiny_model) -> None:
    with pytest.raises(UnknownName, match="unknown target 'tvv'"):
        model_reports(tiny_model, ["onnx", "tvv"])
