"""Checkpoints of a run: written whole or not at all, the last few kept, the newest readable one resumed.

A run's folder holds checkpoint_00001200.pt (everything that an exact resume needs), log.jsonl (what was measured, by
update), and once the stage has ended model.safetensors with config.json, its sizes that have no name.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from edgesam_deploy.errors import TrainingError

MODEL, CONFIG, LOG = "model.safetensors", "config.json", "log.jsonl"
# what may differ between an interrupted run and its resume: it changes no number that is trained
FREE = {
    "train.keep", "train.save_every", "train.save_every_updates", "train.log_every", "train.check_ranges_every",
    "train.wandb", "data.workers", "description",
}  # fmt: skip
UNTOUCHED = "earlier checkpoints are untouched: resume from there"


def write_whole(path: Path, write: Callable[[Path], Any], then: str = "what was there before is untouched") -> None:
    """``write`` into a hidden neighbour that then takes the name. Raises TrainingError, which ends with ``then``, where
    the disk refuses; what was there before stays.
    """
    partial = path.parent / f".{path.name}.{secrets.token_hex(4)}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, RuntimeError) as e:  # torch's writer reports a full disk as a RuntimeError
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        full = getattr(e, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "file write failed" in str(e)
        why = "no space left on the disk" if full else str(getattr(e, "strerror", None) or e)
        raise TrainingError(f"cannot write {path}: {why}; {then}") from e


def save_checkpoint(out: Path, update: int, state: Mapping[str, Any], keep: int) -> Path:
    """Write a checkpoint and remove all but the newest ``keep``."""
    path = out / f"checkpoint_{update:08d}.pt"
    write_whole(path, lambda partial: torch.save(dict(state), partial), UNTOUCHED)
    for old in checkpoints(out)[:-keep]:
        old.unlink(missing_ok=True)
    return path


def checkpoints(out: Path) -> list[Path]:
    """The checkpoints of a run, the newest last."""
    return sorted(out.glob("checkpoint_*.pt"))


def newest_checkpoint(out: Path, say: Callable[[str], None]) -> dict[str, Any] | None:
    """The newest checkpoint that can be read, None for a run without any. A damaged one is named and passed over."""
    found = checkpoints(out)
    for path in reversed(found):
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            if isinstance(state, dict) and "update" in state:
                return state
            say(f"{path.name} is no checkpoint of this program; looking for an earlier one")
        except Exception as e:  # damaged bytes can meet the reader with an exception of any type
            say(f"{path.name} is damaged ({type(e).__name__}); looking for an earlier one")
    if found:
        raise TrainingError(f"{out}: none of its {len(found)} checkpoints can be read; remove them to begin anew")
    return None


def check_same_recipe(saved: Mapping[str, Any], now: Mapping[str, Any], out: Path) -> None:
    """Raises TrainingError naming what differs, unless it cannot change what is trained."""
    old, new = _flat(saved), _flat(now)
    changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key) and key not in FREE)
    if changed:
        shown = "; ".join(f"{key} was {old.get(key)!r}, is {new.get(key)!r}" for key in changed[:4])
        raise TrainingError(
            f"{out} holds a run of another recipe ({shown}); resume it as it was, or choose another --out"
        )


def _flat(tree: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{before}{key}"
        found |= _flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return found


def save_model(out: Path, tensors: Mapping[str, Tensor], about: str, config: Mapping[str, Any]) -> Path:
    """The trained weights as safetensors, and beside them the configuration that they fit."""
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    write_whole(out / CONFIG, lambda partial: partial.write_text(text), UNTOUCHED)
    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # one entry: safetensors writes several in an order of its own, and the same weights should be the same bytes
    metadata = {"about": about}
    write_whole(out / MODEL, lambda partial: safetensors.torch.save_file(flat, partial, metadata=metadata), UNTOUCHED)
    return out / MODEL


class Log:
    """JSON lines by update. On a resume the lines after the checkpoint go: they are written again."""

    def __init__(self, out: Path, update: int) -> None:
        self.path = out / LOG
        out.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            kept = [line for line in self.path.read_text().splitlines() if _update_of(line) <= update]
            write_whole(self.path, lambda partial: partial.write_text("".join(f"{line}\n" for line in kept)))

    def write(self, record: Mapping[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(record, sort_keys=True) + "\n")


def _update_of(line: str) -> float:
    try:
        return float(json.loads(line)["update"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a line that a kill cut short
