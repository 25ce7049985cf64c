"""Where curves go besides log.jsonl: TensorBoard where it is installed, Weights & Biases where asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgesam_deploy.toolkits import require


class Boards:
    """Scalars by update. After a resume each goes on at its update.

    wandb: the project's name, or nothing; where it goes (online, offline) is that program's own setting.
    """

    def __init__(self, out: Path, update: int, *, name: str, recipe: Mapping[str, Any], wandb: str = "") -> None:
        self.tensorboard: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter

            self.tensorboard = SummaryWriter(str(out / "tensorboard"), purge_step=update + 1)
        except ImportError:
            pass
        self.wandb: Any = None
        if wandb:
            tool = require("wandb", "logging to Weights & Biases (train.wandb)")
            identity = hashlib.sha256(str(out.resolve()).encode()).hexdigest()[:12]  # the same folder, the same run
            self.wandb = tool.init(
                project=wandb, name=name, id=identity, resume="allow", dir=str(out), config=dict(recipe)
            )

    def add(self, scalars: Mapping[str, float], update: int) -> None:
        """One point of each curve."""
        if self.tensorboard is not None:
            for name, value in scalars.items():
                self.tensorboard.add_scalar(name, value, update)
        if self.wandb is not None:
            self.wandb.log(dict(scalars), step=update)

    def close(self) -> None:
        if self.tensorboard is not None:
            self.tensorboard.close()
        if self.wandb is not None:
            self.wandb.finish()
