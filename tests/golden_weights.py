"""Deterministic checkpoints and images for golden tests, from NumPy's frozen legacy generator.

A checkpoint is built from a manifest ({state_dict name: shape}) alone, so no weight file has to be
stored: the same manifest and seed give the same bytes on every machine and NumPy version.
"""

import zlib

import numpy as np


def _normal(name, seed, shape):
    rng = np.random.RandomState(zlib.crc32(f"{seed}:{name}".encode()))
    return rng.standard_normal(tuple(shape)).astype(np.float32)


def _uniform(name, seed, shape, low, high):
    rng = np.random.RandomState(zlib.crc32(f"{seed}:{name}".encode()))
    return rng.uniform(low, high, tuple(shape)).astype(np.float32)


def tensor(name, shape, seed):
    """One state_dict entry. Scales keep activations O(1) and make every norm, bias and running
    statistic matter, so that a skipped or misplaced one changes the output."""
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "num_batches_tracked":
        return np.array(1000, dtype=np.int64)
    if leaf == "running_var":
        return _uniform(name, seed, shape, 0.6, 1.6)
    if leaf == "running_mean":
        return 0.1 * _normal(name, seed, shape)
    if leaf == "alpha":
        return _uniform(name, seed, shape, 0.3, 0.9)
    if "gaussian_matrix" in leaf:
        return _normal(name, seed, shape)
    if "rel_pos" in leaf or "attention_biases" in leaf:
        return 0.08 * _normal(name, seed, shape)
    if leaf == "pos_embed":
        return 0.2 * _normal(name, seed, shape)
    if len(shape) <= 1:
        if leaf == "weight" and "criterion" not in name:
            return _uniform(name, seed, shape, 0.5, 1.1)
        if "criterion" in name:
            return np.ones(tuple(shape), np.float32)
        return 0.1 * _normal(name, seed, shape)
    if "embed" in name and shape[0] == 1:
        return 0.7 * _normal(name, seed, shape)
    if name.endswith(("iou_token.weight", "mask_tokens.weight", "hf_token.weight")):
        return 0.7 * _normal(name, seed, shape)
    gain = 1.3
    if ".blocks." in name:
        gain = 0.8
    if "hypernetworks_mlps" in name and name.endswith("layers.2.weight"):
        gain = 8.0
    if ".gate." in name or "router" in name:
        gain = 2.0
    fan_in = int(np.prod(shape[1:]))
    return (gain / np.sqrt(fan_in)) * _normal(name, seed, shape)


def state_dict(manifest, seed):
    return {
        name: tensor(name, shape, seed).astype(np.int64 if name.endswith("num_batches_tracked") else np.float32)
        for name, shape in manifest.items()
    }


def image(height, width, seed):
    """(height, width, 3) uint8 RGB: smooth waves with a few solid rectangles."""
    rng = np.random.RandomState(seed)
    yy, xx = np.mgrid[0:height, 0:width].astype(np.float64) / max(height, width)
    waves = [127 + 90 * np.sin(6 * (a * xx + b * yy) + 3 * c) for a, b, c in rng.uniform(-1, 1, (3, 3))]
    out = np.stack(waves, -1)
    for _ in range(6):
        x, y = rng.uniform(0, 0.8, 2) * [width, height]
        w, h = rng.uniform(0.08, 0.3, 2) * min(height, width)
        out[int(y) : int(y + h), int(x) : int(x + w)] = rng.uniform(0, 255, 3)
    return np.clip(np.round(out), 0, 255).astype(np.uint8)
