"""Random numbers as a function of what they are for.

A number depends on (seed, update, picture, purpose), not on what was drawn before it: a run is the same after a resume,
with other workers, and on other numbers of ranks, without any generator's state being kept.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor


def generator(purpose: str, *numbers: int) -> torch.Generator:
    """A CPU generator for one purpose; ``numbers`` at least 0, the seed first."""
    mixed = np.random.SeedSequence([zlib.crc32(purpose.encode()), *numbers]).generate_state(2)
    return torch.Generator().manual_seed(int(mixed[0]) << 31 ^ int(mixed[1]))


def coin(purpose: str, *numbers: int) -> bool:
    """Heads, half the time."""
    return bool(torch.rand(1, generator=generator(purpose, *numbers)) > 0.5)


def uniform_rows(purpose: str, seed: int, update: int, pictures: Tensor, counts: Tensor, *shape: int) -> Tensor:
    """(sum of counts, *shape) uniform in 0..1 on the CPU: each picture's rows from its own generator."""
    rows = [
        torch.rand(int(count), *shape, generator=generator(purpose, seed, update, int(picture)))
        for picture, count in zip(pictures.tolist(), counts.tolist(), strict=True)
    ]
    return torch.cat(rows)
