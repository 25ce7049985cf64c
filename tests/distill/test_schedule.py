"""Learning-rate curves of all phases, by the formulas of timm 0.4.12 written again, and mended."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from edgesam_deploy.distill.schedule import Schedule, batch_factor

# base, min, warm-up rate, warm-up epochs, epochs: phase 1, phase 2, and the five steps of the DyT curriculum
PHASES = {
    "phase 1": (0.1, 5e-6, 5e-7, 5, 10),
    "phase 2": (3.2e-3, 3.2e-4, 3.2e-5, 0, 5),
    "dyt 1": (0.1, 5e-6, 5e-7, 5, 20),
    "dyt 2": (3.2e-3, 3.2e-4, 3.2e-5, 2, 20),
    "dyt 3": (3.2e-2, 3.2e-3, 3.2e-4, 2, 40),
    "dyt 4": (3.2e-3, 3.2e-4, 3.2e-5, 1, 20),
    "hq": (3.2e-4, 3.2e-5, 3.2e-6, 2, 40),
}
ITERATIONS = 100


def timm_cosine(update, base, low, warm, warmup, total):
    if update < warmup:
        return warm + update * (base - warm) / warmup
    return low + 0.5 * (base - low) * (1 + math.cos(math.pi * update / total))


@pytest.mark.parametrize("phase", PHASES)
def test_the_reference_curve(phase):
    base, low, warm, warmup, epochs = PHASES[phase]
    schedule = Schedule("cosine", base, low, warm, warmup * ITERATIONS, epochs * ITERATIONS, "reference")
    for update in range(epochs * ITERATIONS):
        wanted = timm_cosine(update, base, low, warm, warmup * ITERATIONS, epochs * ITERATIONS)
        assert schedule(update) == pytest.approx(wanted)


def test_the_drop_after_the_warm_up():
    """Measured on the reference's phase 1 with 50 updates an epoch: 0.0990 to 0.0500."""
    schedule = Schedule("cosine", 0.1, 5e-6, 5e-7, 100, 200, "reference")
    assert schedule(99) == pytest.approx(0.0990, abs=1e-4)
    assert schedule(100) == pytest.approx(0.0500, abs=1e-4)


@pytest.mark.parametrize("phase", PHASES)
def test_the_mended_curve_is_continuous_and_ends_at_the_minimum(phase):
    base, low, warm, warmup, epochs = PHASES[phase]
    total = epochs * ITERATIONS
    schedule = Schedule("cosine", base, low, warm, warmup * ITERATIONS, total)
    rates = [schedule(t) for t in range(total + 1)]
    steps = [abs(a - b) for a, b in pairwise(rates)]
    assert max(steps) < 0.02 * base
    assert max(rates) == pytest.approx(base)
    assert rates[-1] == pytest.approx(low)
    assert rates[0] == (warm if warmup else base)


def test_linear_and_steps():
    linear = Schedule("linear", 1.0, 0.3, 0.0, 10, 110)
    assert [linear(t) for t in (5, 10, 60, 110)] == pytest.approx([0.5, 1.0, 0.505, 0.01])
    step = Schedule("step", 1.0, 0.0, 0.0, 0, 90, decay_every=30, decay_rate=0.1)
    assert [step(t) for t in (0, 29, 30, 60)] == pytest.approx([1, 1, 0.1, 0.01])


def test_batch_factor():
    """Phase 1 at 8 pictures on 8 devices: 0.0125; phase 2 at 2 on 8: 1e-4."""
    assert 0.1 * batch_factor(8, 8, 1, 512) == pytest.approx(0.0125)
    assert 3.2e-3 * batch_factor(2, 8, 1, 512) == pytest.approx(1e-4)
