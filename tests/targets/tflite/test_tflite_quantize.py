"""Ranges over all samples, and what stays in fp32."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np

from edgesam_deploy.targets.tflite.quantize import LEFT, Precision, _ranges


class OneAtATime:
    """Stands in for the toolkit: ranges of an input and of a result twice as large, and one that has none."""

    def calibrate(self, samples: dict[str, Any], num_threads: int) -> dict[str, Any]:
        (((row,)),) = samples.values()
        row["x"] += 0  # the toolkit wants arrays that it may write to
        return {"x": ends(row["x"]), "y": {**ends(2 * row["x"]), "shape": 1}, "z": {}}


def ends(values: Any) -> dict[str, Any]:
    return {"min": values.min(), "max": values.max()}


def test_the_median_of_all_samples_of_all_signatures() -> None:
    """Neither the first nor the widest decides."""
    fixed = np.array([1, 2], np.float32)
    fixed.flags.writeable = False
    rows = [{"x": fixed}, {"x": np.array([-300, 3], np.float32)}]
    ranges = _ranges(OneAtATime(), {"encode": rows, "decode_6": [{"x": np.array([-1, 8], np.float32)}]})
    assert ranges == {"x": {"min": -1, "max": 3}, "y": {"min": -2, "max": 6, "shape": 1}, "z": {}}


def test_every_lower_precision_says_what_stays() -> None:
    assert set(LEFT) == set(get_args(Precision)) - {"fp32"}
