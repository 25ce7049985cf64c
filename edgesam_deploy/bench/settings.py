"""What to measure, and how often."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

RUNS, WARMUP = 20, 3


@dataclass(frozen=True)
class Settings:
    """points: numbers of points per prompt. prompts: numbers of one-point prompts answered together. everything: sides
    of everything-mode's grid. seconds: a time budget per stage and bundle instead of ``runs``. threads: 0 leaves the
    choice to the runtime. cold: also start each bundle in a process of its own.
    """

    runs: int = RUNS
    warmup: int = WARMUP
    seconds: float | None = None
    points: tuple[int, ...] = (1, 2, 5)
    prompts: tuple[int, ...] = (16,)
    everything: tuple[int, ...] = ()
    threads: int = 0
    provider: str = "cpu"
    cold: bool = True

    def json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


DEFAULT = Settings()
