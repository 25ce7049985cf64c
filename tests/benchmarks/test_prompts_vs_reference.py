"""Many prompts against the reference: who is called how often, what is refused, what is written."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks import prompts_vs_reference as benchmark
from benchmarks.interleaved import AGAIN, Comparison, Machine, Ratio, Row
from benchmarks.latency_vs_reference import OURS, REFERENCE, NotComparable
from benchmarks.prompts_vs_reference import (
    Encoded,
    check_masks,
    encoded_as,
    everything,
    grid_prompts,
    mask_agreement,
    per_prompt,
    report,
    verdicts,
)


class Decoder:
    """Of (B, 2) prompts: masks that are the points' x, moved by ``off``; keeps how many came in each call."""

    def __init__(self, off: float = 0.0) -> None:
        self.off, self.calls = off, []

    def predict_slots(self, coords: Any, labels: Any) -> Any:
        self.calls.append(len(coords))
        masks = np.broadcast_to(coords[:, 0, 0][:, None, None, None] + self.off, (len(coords), 4, 16, 16))
        return masks.astype(np.float32), np.ones((len(coords), 4), np.float32)

    def run(self, names: list[str], feeds: dict[str, Any]) -> Any:
        assert names == ["masks", "scores"]
        assert feeds["image_embeddings"] == "embeddings"
        return self.predict_slots(feeds["point_coords"], feeds["point_labels"])


def ours(decoder: Decoder) -> Encoded:
    predictor = SimpleNamespace(
        image_size=64, mask_threshold=0.0, original_size=(48, 64), input_size=(48, 64), features=("embeddings", "keys"),
        predict_slots=decoder.predict_slots,
    )  # fmt: skip
    return Encoded(predictor)


def reference(decoder: Decoder) -> Encoded:
    candidate: Any = SimpleNamespace(session=lambda threads: decoder)
    return Encoded(ours(Decoder()).ours, candidate)


def test_the_reference_is_called_once_for_each_prompt() -> None:
    theirs, here = Decoder(), Decoder()
    assert check_masks(ours(here), reference(theirs)) == 0
    assert (theirs.calls, here.calls) == ([1] * 5, [5])


def test_other_masks_are_refused() -> None:
    with pytest.raises(NotComparable, match="masks lie"):
        check_masks(ours(Decoder()), reference(Decoder(off=3)))


def test_how_far_8_bit_are_off() -> None:
    same = mask_agreement(ours(Decoder()), ours(Decoder()))
    assert same == {"mean": 1.0, "worst": 1.0}
    moved = mask_agreement(ours(Decoder(off=-20)), ours(Decoder(off=-21)))  # the masks are full or empty
    assert moved["worst"] == 0.0
    assert 0.5 < moved["mean"] < 1


def test_an_8_bit_decoder_gets_the_others_embeddings() -> None:
    here = ours(Decoder()).ours
    other = SimpleNamespace(**{**vars(here), "features": None, "set_image": lambda image: None})
    assert encoded_as(here, other, np.zeros((48, 64, 3), np.uint8)).ours.features == here.features


def test_ours_is_measured_together_and_one_at_a_time() -> None:
    together, theirs = Decoder(), Decoder()
    sides = {REFERENCE: reference(theirs), AGAIN: reference(Decoder()), OURS: ours(together)}
    found = per_prompt(sides, 3, rounds=2, threads=1)
    assert [row.name for row in found.rows] == [REFERENCE, AGAIN, OURS, benchmark.ONE_BY_ONE]
    assert sorted(together.calls) == [1] * 9 + [3] * 3, "a warm-up call and two rounds"
    assert theirs.calls == [1] * 9
    assert len(per_prompt(sides, 1, rounds=1, threads=1).rows) == 3


def test_the_rounds_cover_the_grid() -> None:
    here = Decoder()
    sides = {REFERENCE: reference(Decoder()), AGAIN: reference(Decoder()), OURS: ours(here)}
    everything(sides, np.zeros((48, 64, 3), np.uint8), 4, rounds=3, threads=1)
    assert here.calls == [6, 6, 5, 5], "the first part once more to warm up"


def test_prompts_are_points_with_their_padding_point() -> None:
    coords, labels = grid_prompts(7, 64)
    assert (coords.shape, labels.shape) == ((7, 2, 2), (7, 2))
    assert (labels == [1, -1]).all()
    assert not coords[:, 1].any()


def test_the_report_says_what_is_reached() -> None:
    def comparison(ratio: float) -> Comparison:
        rows = [
            Row(name, 10.0, 20.0, Ratio(r, r, r), Ratio(r, r, r))
            for name, r in ((REFERENCE, 1.0), (AGAIN, 1.0), (OURS, ratio))
        ]
        return Comparison("prompts", 2, 15, 1, tuple(rows), 0.1, 0.2)

    facts = {"weights": "seed 0", "options": "--points 2", "masks_relative_l2": 1e-6, "hoisted_macs": 4e8,
             "hoisted_share": 0.02, "int8_mask_iou": {"mean": 0.991, "worst": 0.95}}  # fmt: skip
    machine = Machine("a processor", 2, "2026-01-01", "Linux x86_64")
    lines = verdicts({"16 prompts": (comparison(0.5), {OURS: 0.65}), "everything-mode": (comparison(0.7), {OURS: 0.6})})
    text = report(machine, "Prompts", [comparison(0.5), comparison(0.7)], lines, facts)
    assert "16 prompts, edgesam-deploy: at most 0.65 wanted, 0.500 (0.500-0.500): **reached**" in text
    assert "everything-mode, edgesam-deploy: at most 0.60 wanted, 0.700 (0.700-0.700): **missed**" in text
    assert "IoU 0.9910 on average (at least 0.98 wanted: reached), 0.9500 at worst" in text
    assert "adds 0.40 GMAC per picture, 2.0 % of it" in text
    assert text.count("baseline again") == 2


@pytest.mark.slow
def test_the_whole_benchmark_at_a_small_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--image-size", "128", "--side", "2", "--rounds", "1", "--prompts", "2", "--out", str(tmp_path)]
    assert benchmark.main(options) == 0
    assert "**2 prompt(s)**" in (tmp_path / "prompts_vs_reference.md").read_text()
    assert "**everything-mode, 2 x 2 points" in (tmp_path / "everything_vs_reference.md").read_text()
    assert (tmp_path / "everything_vs_reference.json").exists()
