"""The values of an onnx program, computed in portions that fit into memory."""

from __future__ import annotations

import numpy as np
import pytest
from passes.programs import parsed

from edgesam_deploy.passes import onnx_view
from edgesam_deploy.passes.onnx_view import OnnxView

TEXT = """part (float[4,4] x, float[n,2] z) => (float[4,4] y, float[n,2] u) {
    a = Sin(x) b = Cos(a) c = Neg(b) y = Exp(c) u = Abs(z) }"""
X = {"x": np.eye(4, dtype=np.float32), "z": np.ones((3, 2), np.float32)}


@pytest.mark.parametrize(
    ("limit", "portions"),
    [
        (1 << 28, [["a", "b", "c", "y", "u"]]),
        (32, [["a", "b"], ["c", "y"], ["u"]]),
        (31, [["a"], ["b"], ["c"], ["y"], ["u"]]),
        (1, [["a"], ["b"], ["c"], ["y"], ["u"]]),
        (16 * 4 + 128, [["a", "b", "c", "y", "u"]]),  # a size that is not known counts as 64
        (16 * 4 + 127, [["a", "b", "c", "y"], ["u"]]),
    ],
)
def test_portions(limit: int, portions: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    view = OnnxView(parsed(TEXT))
    at_once = view.sketches(X)
    monkeypatch.setattr(onnx_view, "AT_ONCE", limit)
    assert list(view._batches(list(view.nodes))) == portions
    found = view.sketches(X)
    assert list(found) == list(at_once)
    for name, sketch in found.items():
        np.testing.assert_array_equal(sketch.numbers, at_once[name].numbers)


def test_a_value_of_unknown_rank_counts_as_a_large_one(monkeypatch: pytest.MonkeyPatch) -> None:
    view = OnnxView(parsed(TEXT))
    view.nodes["b"].outputs[0].shape = None
    monkeypatch.setattr(onnx_view, "AT_ONCE", (1 << 20) + 16)
    assert list(view._batches(["a", "b", "c", "y"])) == [["a", "b"], ["c", "y"]]
    monkeypatch.setattr(onnx_view, "AT_ONCE", (1 << 20) + 15)
    assert list(view._batches(["a", "b", "c", "y"])) == [["a"], ["b"], ["c", "y"]]
