"""Learning rate by update number: warm-up, then cosine, linear or steps.

The reference warms up linearly and then evaluates the cosine at the absolute update number, so that its rate jumps down
when the warm-up ends: with five of ten epochs of warm-up, from the base rate to half of it. ``warmup="reference"`` is
that curve (timm 0.4.12's, warmup_prefix off); ``"continuous"`` starts the cosine where the warm-up ended. The reference
also applies each value one update late, which is not reproduced.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

LINEAR_FLOOR = 0.01  # of the base rate, at the end of a linear schedule


@dataclass(frozen=True)
class Schedule:
    """``schedule(update)`` is the rate of that update, counted from 0, of ``total``.

    base, minimum, warmup_rate: rates already scaled to the batch. warmup: updates. decay_every: updates (``step``).
    """

    kind: Literal["cosine", "linear", "step"]
    base: float
    minimum: float
    warmup_rate: float
    warmup: int
    total: int
    warmup_end: Literal["reference", "continuous"] = "continuous"
    decay_every: int = 1
    decay_rate: float = 0.1

    def __call__(self, update: int) -> float:
        if update < self.warmup:
            return self.warmup_rate + (self.base - self.warmup_rate) * update / self.warmup
        if self.kind == "linear":
            done = (update - self.warmup) / max(1, self.total - self.warmup)
            return self.base * (1 - (1 - LINEAR_FLOOR) * done)
        if self.kind == "step":
            return self.base * self.decay_rate ** (update // self.decay_every)
        start = 0 if self.warmup_end == "reference" else self.warmup
        done = min(1.0, (update - start) / max(1, self.total - start))
        return self.minimum + 0.5 * (self.base - self.minimum) * (1 + math.cos(math.pi * done))


def batch_factor(batch: int, world: int, accumulation: int, reference_batch: int) -> float:
    """What the rates of a recipe are multiplied with: pictures per update over those they are stated for (512; the HQ
    stage 4).
    """
    return batch * world * accumulation / reference_batch
