"""ONNX's own node tests give the same results after every onnx-level pass and after the whole pipeline."""

from __future__ import annotations

import pytest

onnx_backend = pytest.importorskip("benchmarks.onnx_backend")


def run(every: int, offset: int) -> onnx_backend.Tally:
    tally = onnx_backend.Tally()
    for name in onnx_backend.names(every, offset):
        onnx_backend.try_case(name, tally)
    return tally


def test_a_sample() -> None:
    tally = run(60, 7)
    assert tally.wrong == []
    assert tally.cases >= 15


@pytest.mark.slow
def test_all() -> None:
    tally = run(1, 0)
    assert tally.wrong == []
    assert tally.cases >= 1300
