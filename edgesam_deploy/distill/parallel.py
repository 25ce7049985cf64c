"""Ranks: torchrun's process group, batch norm across ranks, and agreement between them.

A program that torchrun did not start is one rank and needs no process group.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from edgesam_deploy.errors import TrainingError


@dataclass(frozen=True)
class Ranks:
    """This process among the others, and its device."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def most(self, value: float) -> float:
        """The largest of all ranks' values; every rank must ask."""
        if self.world == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return float(tensor)

    def sums(self, values: Tensor) -> Tensor:
        """The sum of all ranks' values; every rank must ask."""
        if self.world > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def wait(self) -> None:
        """Until every rank is here."""
        if self.world > 1:
            dist.barrier()


@contextmanager
def ranks(device: str = "auto") -> Iterator[Ranks]:
    """The process group of torchrun (nccl on GPUs, else gloo), closed in the end; or this process alone."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    chosen = _device(device, local)
    if world == 1:
        yield Ranks(0, 1, chosen)
        return
    store, rank, world = next(rendezvous("env://"))
    # torchrun's store outlives its workers: what those of the attempt before wrote in it, the address of a killed rank
    # among it, must not meet those of this one (torch 2.13 relies on a new store, which a restart does not get)
    own = dist.PrefixStore(  # type: ignore[attr-defined]
        f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store
    )
    backend = "nccl" if chosen.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=own, rank=rank, world_size=world)
    try:
        yield Ranks(dist.get_rank(), world, chosen)
    finally:
        dist.destroy_process_group()


def _device(asked: str, local: int) -> torch.device:
    if asked == "auto":
        asked = "cuda" if torch.cuda.is_available() else "cpu"
    if asked.startswith("cuda"):
        if not torch.cuda.is_available():
            raise TrainingError(f"--device {asked}: PyTorch sees no GPU here; use --device cpu")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
        return device
    return torch.device(asked)


class _SumOverRanks(torch.autograd.Function):
    """The sum of all ranks' tensors; its gradient on a rank is the sum of all ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


class RankBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the pictures of all ranks, differentiable across them; for CPUs, where SyncBatchNorm refuses."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        local = x.new_tensor(float(x.numel() // x.shape[1]))
        total: Tensor = _SumOverRanks.apply(torch.cat([x.sum((0, 2, 3)), local[None]]))  # type: ignore[no-untyped-call]
        mean, count = total[:-1] / total[-1], total[-1]
        apart = (x - mean[:, None, None]).square().sum((0, 2, 3))  # E[x^2] - mean^2 may come out below 0
        variance: Tensor = _SumOverRanks.apply(apart) / count  # type: ignore[no-untyped-call]
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.momentum is not None
            assert self.num_batches_tracked is not None
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight / (variance + self.eps).sqrt()
        return torch.addcmul((self.bias - mean * scale)[:, None, None], x, scale[:, None, None])


def across_ranks(model: nn.Module, device: torch.device) -> nn.Module:
    """``model`` with its batch norms over all ranks; names and numbers stay."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-any-return,no-untyped-call]
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = RankBatchNorm2d  # the same parameters, buffers and hooks; another forward
    return model
