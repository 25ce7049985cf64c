"""Activation checkpointing: memory for a second computation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn


def checkpoint_activations(encoder: nn.Module) -> None:
    """Compute the blocks of an image encoder again in the backward pass instead of keeping what is inside them."""
    for blocks in (getattr(encoder, name, None) for name in ("features", "blocks", "layers")):
        for block in blocks if isinstance(blocks, nn.ModuleList) else ():
            block.forward = _Checkpointed(block)


class _Checkpointed:
    """A block's forward that is computed twice; its batch norms count the batch once."""

    def __init__(self, block: nn.Module) -> None:
        self.block, self.inner = block, block.forward

    def __call__(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return self.inner(x)  # type: ignore[no-any-return]
        from torch.utils.checkpoint import checkpoint

        found: Tensor = checkpoint(
            self.inner, x, use_reentrant=False, context_fn=lambda: (nullcontext(), self._statistics_kept())
        )
        return found

    @contextmanager
    def _statistics_kept(self) -> Iterator[None]:
        kept = [(buffer, buffer.clone()) for buffer in self.block.buffers()]
        try:
            yield
        finally:
            for buffer, value in kept:
                buffer.data.copy_(value)  # autograd keeps a reference to it, and reads nothing of it
