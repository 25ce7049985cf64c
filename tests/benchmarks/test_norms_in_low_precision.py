"""Layer norm beside dynamic tanh: both run, the norm that is spelled out loses most, and what cannot be is refused."""

from __future__ import annotations

import pytest
from conftest import FAMILY

import edgesam_deploy as ed
from benchmarks import norms_in_low_precision as benchmark
from benchmarks.interleaved import Machine
from edgesam_deploy.parity import seeded_scene


@pytest.mark.slow
def test_every_arithmetic_of_either_model():
    models = [ed.load(name, seed=0, config=FAMILY[name]) for name in benchmark.MODELS]
    rows = [row for model in models for row in benchmark.errors(model, {"scene": seeded_scene(1)})]
    found = {(row.model, row.arithmetic): row for row in rows}
    assert found.keys() == {(model, how) for model in benchmark.MODELS for how in benchmark.ARITHMETIC}
    for (_, arithmetic), row in found.items():
        low, high = (5e-3, 0.9) if arithmetic == "int8" else (1e-5, 2e-2)
        assert low < row.embeddings < high, row
        assert 0 < row.decided_mask_iou <= 1
    fused, apart = (found["edge_sam", how].embeddings for how in benchmark.ARITHMETIC[:2])
    assert apart != fused  # there are norms to spell out
    fused, apart = (found["edge_sam_dyt", how].embeddings for how in benchmark.ARITHMETIC[:2])
    assert apart == fused  # and here there are none


def test_the_report_says_whose_weights():
    rows = [
        benchmark.Row(name, norm, how, 0, 1e-3, 2e-3, 3e-3, 0.99, 0, f"random weights, seed {seed}")
        for seed, (name, norm) in enumerate((name, benchmark.NORMS[name]) for name in benchmark.MODELS)
        for how in benchmark.ARITHMETIC
    ]
    spent = [benchmark.Latency("edge_sam", "fp32", 12.0, 3.0)]
    text = benchmark.report(rows, spent, Machine.here(("numpy",)))
    assert "edge_sam_dyt: random weights, seed 1" in text
    assert "| `edge_sam` | fp32 | 12.0 | 3.0 |" in text
    assert text.count("| dynamic tanh |") == len(benchmark.ARITHMETIC)


@pytest.mark.parametrize(
    ("arguments", "words"), [(["--latency", "fp8"], "--latency fp8"), (["--image-size", "9"], "64")]
)
def test_what_is_refused(arguments, words, tmp_path, capsys):
    assert benchmark.main([*arguments, "--out", str(tmp_path / "out")]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_latency_of_the_artifacts(tmp_path):
    pytest.importorskip("ai_edge_quantizer")
    model = ed.load("edge_sam_dyt", seed=0, config=FAMILY["edge_sam_dyt"])
    (spent,) = benchmark.latencies(model, seeded_scene(1), ["int8"], 2)
    assert spent.encoder_ms > 0 < spent.decoder_ms
