"""The benchmark against peers: what it compares, and what it says of the machine's peak."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks import peer_runtimes, peers
from benchmarks.interleaved import AGAIN, Comparison, Machine, Ratio, Row
from benchmarks.peers import OURS, OURS_INT8, REFERENCE
from benchmarks.reference_export import example_inputs
from edgesam_deploy.errors import MissingToolkit


def row(name, ms, ratio):
    ratios = Ratio(ratio, ratio, ratio)
    return Row(name, ms, 2 * ms, ratios, ratios)


FOUND = Comparison(
    "encoder", 2, 15, 1,
    (row(REFERENCE, 200.0, 1.0), row(AGAIN, 200.0, 1.0), row(OURS, 170.0, 0.85), row(OURS_INT8, 90.0, 0.45)),
    0.1, 0.2,
)  # fmt: skip


def test_shares_are_of_the_peak_of_the_own_precision():
    found = peers.shares(FOUND, 20_000_000_000, {"fp32": 2e11, "int8": 8e11})
    assert found == pytest.approx({REFERENCE: 0.5, AGAIN: 0.5, OURS: 20 / 34, OURS_INT8: 20 / 72})


def test_the_report_says_what_is_reached_and_what_was_left_out():
    share = peers.shares(FOUND, 20_000_000_000, {"fp32": 2e11, "int8": 8e11})
    machine = Machine("a processor", 2, "2026-01-01", "Linux x86_64")
    text = peers.report(machine, "encoder", FOUND, share, {"fp32": 2e11, "int8": 8e11}, ["onnxslim: not installed"])
    assert f"{OURS}: at most 0.91 wanted, 0.850 (0.850-0.850): **reached**" in text
    assert f"{OURS_INT8}: at most 0.42 wanted, 0.450 (0.450-0.450): **missed**" in text
    assert "Left out: onnxslim: not installed" in text
    assert f"| {REFERENCE} | 50 % |" in text
    assert "200 GMAC/s in fp32, 800 in 8 bit" in text


@pytest.mark.parametrize(
    ("peer", "line"),
    [
        (0.84, "0.850): 1.012 of its time, at most 1.03 wanted: **reached**"),
        (
            0.80,
            "peer is LiteRT (0.800), of ours edgesam-deploy (0.850): 1.062 of its time, at most 1.03 wanted: **missed",
        ),
    ],
)
def test_a_faster_peer_is_named(peer, line):
    found = replace(FOUND, rows=(*FOUND.rows, row("LiteRT", 200 * peer, peer)))
    assert line in peers.fastest(found)
    busy = replace(found, rows=(FOUND.rows[0], row(AGAIN, 220.0, 1.1), *found.rows[2:]))
    assert "**no verdict**" in peers.fastest(busy)


def test_a_runtime_is_left_out_with_its_reason(monkeypatch, tmp_path):
    def missing(*_):
        raise MissingToolkit("--provider openvino needs openvino")

    x = np.ones((1, 3), np.float32)
    monkeypatch.setattr(peer_runtimes, "openvino", missing)
    for name, factor in (("eager", 1.0), ("litert", 1.0), ("ncnn", 1.1)):
        monkeypatch.setattr(peer_runtimes, name, lambda *_, f=factor: lambda _: [f * x])
    found, left_out = peer_runtimes.runtimes(None, "encoder", tmp_path, {}, 1, tmp_path, without=["torch.compile"])
    assert list(found) == ["LiteRT, plain conversion", "torch eager"]
    assert left_out == [
        "OpenVINO: MissingToolkit: --provider openvino needs openvino",
        "ncnn: LeftOut: its outputs lie 1.0e-01 apart in relative L2, 1e-03 allowed",
        "torch.compile: as asked",
    ]


def test_a_peak_is_a_rate(monkeypatch):
    monkeypatch.setattr(peers, "SIDE", 64)
    monkeypatch.setattr(peers, "_seconds", lambda call: (call(), 0.5)[1])
    assert peers.peak(False, 1, repeats=2) == peers.peak(True, 1, repeats=2) == 64**3 / 0.5


@pytest.mark.slow
def test_every_candidate_takes_the_same_inputs(tiny_model, tmp_path):
    baseline, candidates, left_out = peers.peers(tiny_model, "encoder", tmp_path, check=False)
    assert left_out == []
    assert [c.name for c in candidates] == [
        "reference export + onnxsim", "reference export + onnxslim", OURS, OURS_INT8
    ]  # fmt: skip
    inputs = {key: value.numpy() for key, value in example_inputs(tiny_model, "encoder").items()}
    results = {c.name: c.session(1).run(["image_embeddings"], inputs)[0] for c in (baseline, *candidates)}
    for name in ("reference export + onnxsim", "reference export + onnxslim"):
        np.testing.assert_allclose(results[name], results[REFERENCE], atol=1e-3)
    assert results[OURS].shape == results[OURS_INT8].shape == results[REFERENCE].shape
