"""The benchmark of typed decoders measures a small model as it would a real one."""

from __future__ import annotations

import sys

from benchmarks.typed_decoders import ROUNDED, Row, measure, table


def test_a_small_decoder(tiny_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "modelopt", None)
    rows = list(measure(tiny_model, 1))
    assert [row.typing for row in rows] == ["fp16", "fp16", "fp16, attention fused", "fp16, attention fused"]
    for row in rows:
        assert row.prompts == 4
        assert row.masks_db > 45
        assert row.scores_db > 35
    assert rows[0].executed == ROUNDED
    assert rows[0].masks_db != rows[1].masks_db  # on its own ONNX Runtime rounds less
    assert f"| {rows[0].masks_db} |" in table(rows)


def test_what_counts_as_reached():
    good = Row("edge_sam", "fp16", ROUNDED, 50.0, 45.0, 0, 4)
    assert good.reached
    assert not Row("edge_sam", "fp16", ROUNDED, 49.9, 45.0, 0, 4).reached
    assert not Row("edge_sam", "fp16", ROUNDED, 50.0, 45.0, 1, 4).reached
