"""Weights from a seed, the same on every machine: for tests, for trying the toolkit, for benchmarks.

NumPy's legacy generator is frozen by policy (NEP 19), so each tensor, seeded by the CRC of its name, is the same for
ever. Nothing is left at its neutral value: batch-norm statistics, biases and norm gains are all drawn, since converters
delete dead branches and an artifact that skips one would still "pass". Residual branches are drawn small: activations
that double with every block make squeeze-and-excite gates flip at the last bit, and then nothing can be compared.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def _generator(name: str, seed: int) -> np.random.RandomState:
    return np.random.RandomState(zlib.crc32(f"{seed}:{name}".encode()))


def _normal(name: str, seed: int, shape: tuple[int, ...], scale: float = 1.0) -> NDArray[np.float32]:
    return _generator(name, seed).standard_normal(shape).astype(np.float32) * np.float32(scale)


def _uniform(name: str, seed: int, shape: tuple[int, ...], low: float, high: float) -> NDArray[np.float32]:
    return _generator(name, seed).uniform(low, high, shape).astype(np.float32)


def _gain(name: str) -> float:
    if "hypernetworks_mlps" in name and name.endswith("layers.2.weight"):
        return 8.0  # spreads the mask logits
    if ".gate." in name or "router" in name:
        return 2.0
    return 0.8 if ".blocks." in name else 1.3


# norms that end a branch beside an identity, of which EdgeSAM's encoder chains forty
RESIDUAL = (
    "token_mixer.0.conv.bn.weight",
    "token_mixer.0.conv1.bn.weight",
    "token_mixer.0.conv1.weight",
    "channel_mixer.m.2.bn.weight",
)
RESIDUAL_GAIN = 0.52  # smaller and the embeddings hardly depend on the picture, larger and they are chaotic


def seeded_tensor(name: str, shape: tuple[int, ...], seed: int) -> NDArray[np.float32] | NDArray[np.int64]:
    """The tensor of a state_dict entry, by the role that its name tells."""
    if name.endswith(RESIDUAL):
        return _uniform(name, seed, shape, 0.5 * RESIDUAL_GAIN, 1.1 * RESIDUAL_GAIN)
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "num_batches_tracked":
        return np.array(1000, dtype=np.int64)
    if leaf == "running_var":
        return _uniform(name, seed, shape, 0.6, 1.6)
    if leaf == "running_mean":
        return _normal(name, seed, shape, 0.1)
    if leaf == "alpha":
        return _uniform(name, seed, shape, 0.3, 0.9)
    if "gaussian_matrix" in leaf:
        return _normal(name, seed, shape)
    if "rel_pos" in leaf or "attention_biases" in leaf:
        return _normal(name, seed, shape, 0.08)
    if leaf == "pos_embed":
        return _normal(name, seed, shape, 0.2)
    if "criterion" in name and len(shape) <= 1:
        return np.ones(shape, np.float32)
    if len(shape) <= 1:
        return _uniform(name, seed, shape, 0.5, 1.1) if leaf == "weight" else _normal(name, seed, shape, 0.1)
    if ("embed" in name and shape[0] == 1) or name.endswith(
        ("iou_token.weight", "mask_tokens.weight", "hf_token.weight")
    ):
        return _normal(name, seed, shape, 0.7)
    scale = _gain(name) / np.sqrt(float(np.prod(shape[1:])))
    scaled: NDArray[np.float32] = (_normal(name, seed, shape).astype(np.float64) * scale).astype(np.float32)
    return scaled


def seeded_state(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    """A state_dict for ``shapes`` (name -> shape)."""
    return {name: torch.from_numpy(np.array(seeded_tensor(name, tuple(s), seed))) for name, s in shapes.items()}
