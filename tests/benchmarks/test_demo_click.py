"""The demo's benchmark: every click is held against its own decoder; with a browser it measures what it says."""

from __future__ import annotations

import importlib.util
import json

import pytest

from benchmarks import demo_click
from benchmarks.chromium import find_chromium
from benchmarks.interleaved import Machine


def test_a_click_has_the_limit_of_its_own_decoder():
    clicks = [demo_click.Click(159, 40), demo_click.Click(161, 40), demo_click.Click(300, 140)]
    text = demo_click.report(Machine.here(("numpy",)), "a bundle", clicks, [0.5, 1.0])
    assert "**2 of 3 clicks within the limit.**" in text
    assert "| all else | 121 | 119 | 160 |" in text
    assert "load was 0.5 before and 1.0 after" in text


@pytest.mark.slow
@pytest.mark.skipif(
    find_chromium() is None or importlib.util.find_spec("gradio") is None, reason="needs chromium and the extra demo"
)
def test_it_measures_and_writes(bundles, tmp_path):
    assert demo_click.main([str(bundles().path), "--clicks", "2", "--threads", "1", "--out", str(tmp_path)]) == 0
    clicks = json.loads((tmp_path / "demo_click.json").read_text())["clicks"]
    assert len(clicks) == 2
    assert all(click["total"] > click["decoder"] > 0 for click in clicks)
    assert "2 clicks" in (tmp_path / "demo_click.md").read_text()
