"""Runs of the reference go on here: ``ckpt_epoch_N.pth`` with its optimiser state becomes a checkpoint of a run.

The reference's optimiser numbers its parameters group by group: first everything with two dimensions or more that is no
bias, then the rest, each in the model's order, frozen ones included (it builds the optimiser before it freezes). Those
numbers are translated by name. Its schedule and its samplers are functions of the epoch, here as there, so nothing of
``lr_scheduler`` is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgesam_deploy.distill.engine import Trainer
from edgesam_deploy.errors import CheckpointError
from edgesam_deploy.model.checkpoint import read_checkpoint, read_tree


@dataclass(frozen=True)
class ReferenceRun:
    """``tensors`` under this project's names, in the order of the file; ``epochs`` done; ``optimizer`` and ``scaler``
    as the file has them.
    """

    source: Path
    tensors: dict[str, Tensor]
    epochs: int
    optimizer: Mapping[str, Any]
    scaler: Mapping[str, Any]


def read_run(path: Path) -> ReferenceRun:
    """Raises CheckpointError for a file that holds weights alone, or is damaged or hostile."""
    tree = read_tree(path)
    if not isinstance(tree, dict) or "optimizer" not in tree or not isinstance(tree.get("epoch"), int):
        raise CheckpointError(
            f"{path}: holds no optimiser state and epoch, as ckpt_epoch_N.pth does; weights alone go into a recipe as "
            "model.checkpoint"
        )
    optimizer = tree["optimizer"]
    if not isinstance(optimizer, dict) or not {"state", "param_groups"} <= optimizer.keys():
        raise CheckpointError(f"{path}: its optimiser state is none of torch's (state, param_groups)")
    tensors = dict(read_checkpoint(path).tensors)
    if not any(name.startswith("image_encoder.") for name in tensors):
        tensors = {f"image_encoder.{name}": value for name, value in tensors.items()}
    return ReferenceRun(path, tensors, tree["epoch"] + 1, optimizer, tree.get("scaler") or {})


def adopt(trainer: Trainer, run: ReferenceRun) -> None:
    """Leave a checkpoint in the trainer's folder from which it goes on where the reference stopped.

    Raises CheckpointError for a run of another model or optimiser, or one that has as many epochs as the recipe.
    """
    student = trainer.student
    own = student.state_dict()
    strange = [k for k, v in run.tensors.items() if k not in own or own[k].shape != v.shape]
    strange += [k for k in own if k not in run.tensors]
    if strange:
        raise CheckpointError(f"{run.source}: {strange[0]} does not fit {student.name}; {len(strange)} tensors differ")
    if run.epochs >= trainer.recipe.train.epochs:
        raise CheckpointError(
            f"{run.source}: has {run.epochs} epochs behind it, the recipe asks for {trainer.recipe.train.epochs}: "
            "nothing is left to do"
        )
    student.load_state_dict(run.tensors)
    trainer.optimizer.load_state_dict(translated(run, student, trainer.optimizer))
    if trainer.scaler.is_enabled() and run.scaler:
        trainer.scaler.load_state_dict(dict(run.scaler))
    trainer.progress.update = run.epochs * trainer.updates_per_epoch
    trainer.save()
    trainer.say(f"from {run.source.name}: weights and optimiser; epochs done: {run.epochs}")


def translated(run: ReferenceRun, student: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state_dict of ``optimizer`` with the file's moments under its own numbers; what was frozen there starts anew.

    Raises CheckpointError where the groups are not the reference's, or a moment is of another shape.
    """
    parameters = dict(student.named_parameters())
    named = [name for name in run.tensors if name in parameters]
    decayed = [name for name in named if parameters[name].ndim > 1 and not name.endswith(".bias")]
    plain = [name for name in named if name not in set(decayed)]
    groups = [list(group["params"]) for group in run.optimizer["param_groups"]]
    if [len(group) for group in groups] != [len(decayed), len(plain)]:
        raise CheckpointError(
            f"{run.source}: its optimiser has groups of {[len(g) for g in groups]} parameters, "
            f"this model's are {[len(decayed), len(plain)]}"
        )
    numbers = dict(zip([*decayed, *plain], [*groups[0], *groups[1]], strict=True))
    names = {id(parameter): name for name, parameter in parameters.items()}
    state: dict[str, Any] = optimizer.state_dict()
    state["state"] = {}
    ours = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
    for index, name in enumerate(ours):
        moments = run.optimizer["state"].get(numbers[name])
        if moments is None:
            continue
        for key, value in moments.items():
            if isinstance(value, Tensor) and value.ndim and value.shape != parameters[name].shape:
                raise CheckpointError(f"{run.source}: {key} of {name} is {tuple(value.shape)}, not its parameter's")
        state["state"][index] = {k: _moment(k, v) for k, v in moments.items()}
    return state


def _moment(key: str, value: Any) -> Any:
    """``step`` was a number in older torch."""
    return torch.tensor(float(value)) if key == "step" and not isinstance(value, Tensor) else value
