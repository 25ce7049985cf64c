"""Which parameters of a student learn, and how its optimiser groups them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from edgesam_deploy.distill.recipe import Optimizer
from edgesam_deploy.errors import TrainingError


def make_optimizer(model: nn.Module, options: Optimizer) -> torch.optim.Optimizer:
    """AdamW or SGD over what is trained: vectors and biases without weight decay, everything else with it."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (plain if parameter.ndim <= 1 or name.endswith(".bias") else decayed).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": options.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    if options.name == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=options.momentum, nesterov=options.momentum > 0)
    return torch.optim.AdamW(groups, lr=0.0, eps=options.eps, betas=options.betas)


def freeze(model: nn.Module, prefixes: Sequence[str], but: Sequence[str] = ()) -> None:
    """Leave the parameters whose names begin with one of ``prefixes`` as they are, unless they contain one of ``but``.
    Raises TrainingError for a prefix that is none's, and where nothing is left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    for prefix in prefixes:
        parts = ("image_encoder", "prompt_encoder", "mask_decoder")
        if prefix not in parts and not any(name.startswith(prefix) for name in names):
            raise TrainingError(f"train.freeze {prefix!r}: no parameter's name begins with it, e.g. {names[0]}")
    for name, parameter in model.named_parameters():
        frozen = name.startswith(tuple(prefixes)) and not any(text in name for text in but)
        parameter.requires_grad_(not frozen)
    if not any(p.requires_grad for p in model.parameters()):
        raise TrainingError(f"train.freeze {list(prefixes)}: nothing is left to train")


def adapters_only(decoder: nn.Module) -> None:
    """Of a mask decoder, train the low-rank pairs and nothing else."""
    for name, parameter in decoder.named_parameters():
        parameter.requires_grad_(name.endswith((".lora_A", ".lora_B")))


def freeze_statistics(model: nn.Module) -> None:
    """Batch norms use their running statistics and leave them as they are (EVAL_BN_WHEN_TRAINING)."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
