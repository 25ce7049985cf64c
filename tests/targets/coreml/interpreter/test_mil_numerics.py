"""Rounding to fp16, and functions that are approximated for speed, against NumPy and SciPy."""

from __future__ import annotations

import multiprocessing
import os
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import erf

from edgesam_deploy.targets.coreml.interpreter import numerics
from edgesam_deploy.targets.coreml.interpreter.numerics import BLOCK, binary, elementwise, half

FLOATS = st.floats(width=32, allow_nan=True, allow_infinity=True)


def through_half(x):
    with np.errstate(over="ignore"):
        return x.astype(np.float16).astype(np.float32)


@given(st.lists(FLOATS, max_size=40))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_rounding_is_numpys_conversion(numbers):
    x = np.array(numbers, np.float32)
    np.testing.assert_array_equal(half(x), through_half(x))


def test_rounding_is_right_for_every_exponent_and_tie():
    """Every fp16 value, its neighbours' midpoints (ties) and the fp32 values beside those."""
    every = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    ties = (every[:-1] + every[1:]) / 2
    positive = np.concatenate([every, ties, np.nextafter(ties, 0), np.nextafter(ties, np.float32(1e9))])
    x = np.concatenate([positive, -positive]).astype(np.float32)
    np.testing.assert_array_equal(half(x), through_half(x))


def test_what_leaves_the_range_becomes_infinite_and_nan_stays():
    x = np.array([65504, 65519.9, 65520, -65520, 1e30, np.inf, -np.inf, np.nan, 1], np.float32)
    np.testing.assert_array_equal(half(x), [65504, 65504, np.inf, -np.inf, np.inf, np.inf, -np.inf, np.nan, 1])


def test_rounding_leaves_its_argument_alone_unless_told():
    x = np.full((3, 5), 1.0001, np.float32)
    assert half(x)[0, 0] == 1
    assert x[0, 0] != 1
    assert half(x, in_place=True) is x
    assert x[0, 0] == 1
    fixed = np.broadcast_to(np.float32(1.0001), (3, 5))
    assert (half(fixed, in_place=True) == 1).all()
    assert half(np.float32(1.0001)).shape == ()


def test_erf_and_gelu_are_exact_to_fp32():
    x = np.linspace(-12, 12, 400_001, dtype=np.float32)
    wide = x.astype(np.float64)
    assert np.abs(elementwise(numerics.erf_block, x) - erf(wide)).max() < 6e-7
    gelu = elementwise(numerics.gelu_block, x)
    assert np.abs(gelu - wide * (1 + erf(wide / np.sqrt(2))) / 2).max() < 1e-6
    edges = elementwise(numerics.gelu_block, np.array([np.inf, -1e30, 0, 1e30], np.float32))
    np.testing.assert_array_equal(edges, np.array([np.inf, 0, 0, 1e30], np.float32))


@pytest.mark.parametrize("threads", [1, 3])
def test_blocks_cover_an_array_once(monkeypatch, threads):
    monkeypatch.setattr(numerics, "thread_count", lambda: threads)
    x = np.arange(8 * BLOCK + 17, dtype=np.float32)
    seen, lock = [], threading.Lock()

    def twice(a, out):
        with lock:
            seen.append(a.size)
        np.multiply(a, 2, out=out)

    np.testing.assert_array_equal(elementwise(twice, x), 2 * x)
    assert sorted(seen) == [17, *[BLOCK] * 8]
    y = x[::-1]
    np.testing.assert_array_equal(binary(np.add, x, y), x + y)  # not contiguous
    np.testing.assert_array_equal(binary(np.subtract, x, x.copy()), np.zeros_like(x))


@pytest.mark.parametrize(
    ("left", "right"),
    [((1, 5, 220, 500), (5, 1, 1)), ((900, 600), (600,)), ((1, 1, 200_000), (1, 3, 1)), ((2, 300_000), ())],
)
def test_large_broadcasts_are_numpys(left, right):
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal(shape).astype(np.float32) for shape in (left, right))
    np.testing.assert_array_equal(binary(np.subtract, x, y), x - y)
    turned = np.asarray(x).T
    np.testing.assert_array_equal(binary(np.multiply, turned, turned[:1]), turned * turned[:1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_has_threads_of_its_own(monkeypatch):
    monkeypatch.setattr(numerics, "thread_count", lambda: 2)
    x = np.arange(3 * BLOCK, dtype=np.float32)
    assert half(x)[-1] == np.inf  # the parent's threads are up
    child = multiprocessing.get_context("fork").Process(target=half, args=(x,))
    child.start()
    child.join(timeout=60)
    alive = child.is_alive()
    child.kill()
    assert not alive
    assert child.exitcode == 0


def test_a_failing_block_is_reported(monkeypatch):
    monkeypatch.setattr(numerics, "thread_count", lambda: 2)

    def fail(index):
        raise ValueError(f"block {index}")

    with pytest.raises(ValueError, match="block 0"):
        numerics.spread(fail, 4)
