"""Deterministic pictures for tests."""

import numpy as np


def picture(height, width, seed):
    """(height, width, 3) uint8: smooth waves with a few solid rectangles, what the golden files were made with."""
    rng = np.random.RandomState(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64) / max(height, width)
    waves = [127 + 90 * np.sin(6 * (a * x + b * y) + 3 * c) for a, b, c in rng.uniform(-1, 1, (3, 3))]
    out = np.stack(waves, -1)
    for _ in range(6):
        left, top = rng.uniform(0, 0.8, 2) * [width, height]
        w, h = rng.uniform(0.08, 0.3, 2) * min(height, width)
        out[int(top) : int(top + h), int(left) : int(left + w)] = rng.uniform(0, 255, 3)
    return np.clip(np.round(out), 0, 255).astype(np.uint8)
