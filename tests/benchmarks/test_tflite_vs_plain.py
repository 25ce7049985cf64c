"""The plain conversion that TFLite files are measured against, and what is said of the figures."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import TINY

from benchmarks.interleaved import AGAIN, Comparison, Machine, Ratio, Row
from benchmarks.reference_export import example_inputs, reference_module
from benchmarks.tflite_vs_plain import GOALS, ORT, OURS, PLAIN, SMALL, Result, merged_by_hand, report
from edgesam_deploy.model.registry import load
from edgesam_deploy.model.repvit import RepVggDw
from edgesam_deploy.passes.execute import relative_l2


def result(part: str = "encoder", again: float = 1.0, **wall: float) -> Result:
    ratios = {PLAIN: 1.0, AGAIN: again, OURS: 0.8, SMALL: 0.5, ORT: 1.0, **wall}
    rows = tuple(
        Row(name, 100 * r, 200 * r, Ratio(r, r, r), Ratio(1.1 * r, r, r)) if name != PLAIN
        else Row(name, 100, 200, Ratio(1, 1, 1), Ratio(1, 1, 1))
        for name, r in ratios.items()
    )  # fmt: skip
    comparison = Comparison(part, 2, 15, 1, rows, 0.5, 0.5)
    files = (PLAIN, OURS, SMALL)
    return Result(part, comparison, dict.fromkeys(files, 220), dict.fromkeys(files, 20.0), 0.1)  # type: ignore[arg-type]


def test_branches_merged_by_hand_are_the_same_network() -> None:
    model = load("edge_sam", seed=0, config=TINY)
    plain = reference_module(model, "encoder")
    image = example_inputs(model, "encoder")["image"]
    merged = merged_by_hand(copy.deepcopy(plain)).eval()
    assert not any(isinstance(module, RepVggDw) for module in merged.modules())
    with torch.no_grad():
        assert relative_l2(plain(image).numpy(), merged(image).numpy()) < 1e-5


def test_a_goal_is_judged_by_wall_clock() -> None:
    found = result()
    assert found.ratios(ORT, OURS) == pytest.approx((0.8, 0.8))
    assert found.ratios(PLAIN, OURS) == pytest.approx((0.8, 0.88))
    lines = found.sentences()
    assert "0.800 of plain conversion by wall clock, 0.880 by CPU time; goal 1.0: **reached**" in lines[0]
    assert found.verdict(PLAIN, OURS, 0.79) == "missed"
    decoder = result("decoder", **{SMALL: 0.61})
    assert [decoder.verdict(*goal) for goal in GOALS["decoder"]] == ["reached", "missed"]


def test_a_busy_machine_has_no_verdict() -> None:
    busy = result(again=1.06)
    assert {busy.verdict(*goal) for goal in GOALS["encoder"]} == {"no verdict"}
    text = report(Machine("a CPU", 2, "2026-01-01", "Linux"), [busy], "random weights")
    assert "**no verdict**: A/A leaves 1 +- 0.05" in text
    for name in (PLAIN, AGAIN, OURS, SMALL, ORT):
        assert f"| {name} |" in text


def test_too_many_operators_are_said() -> None:
    many = result()
    many.operators[OURS] = 226
    assert "226 operators, plain 220; goal 225: **missed**" in many.sentences()[-1]
