"""The table of what stays in fp32, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.interleaved import Machine
from benchmarks.tflite_sensitivity import TRIED, Row, main, report
from edgesam_deploy.targets.tflite.quantize import LEFT
from edgesam_deploy.targets.tflite.toolkits import PROBE

pytest.importorskip("ai_edge_litert.schema_py_generated")


def test_what_is_chosen_is_among_what_is_tried() -> None:
    assert {(precision, LEFT[precision]) for precision in ("fp16", "dynamic-int8", "int8")} <= set(TRIED)


def test_the_table_marks_what_is_chosen() -> None:
    rows = [
        Row("fp32", (), 0.0, 0.0, 22.0, 500.4),
        Row("int8", ("BATCH_MATMUL",), 0.2, 0.25, 6.19, 180),
        Row("int8", LEFT["int8"], 0.1, 0.15, 6.21, 210),
    ]
    lines = report(rows, Machine("a CPU", 2, "2026-01-01", "Linux"), "edge_sam, seed 0").splitlines()
    assert lines[-3:] == [
        "| fp32 | - | 0.00e+00 | 0.00e+00 | 22.00 | 500 |",
        "| int8 | BATCH_MATMUL | 2.00e-01 | 2.50e-01 | 6.19 | 180 |",
        "| int8 (chosen) | BATCH_MATMUL, DEPTHWISE_CONV_2D, ADD, MUL | 1.00e-01 | 1.50e-01 | 6.21 | 210 |",
    ]


def test_another_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "probe.tflite"
    path.write_bytes(PROBE)
    assert main([str(path), "--out", str(tmp_path)]) == 2
    assert "built with --precision fp32" in capsys.readouterr().err
    assert not (tmp_path / "tflite_sensitivity.md").exists()
