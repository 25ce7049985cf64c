"""Will a build fit into memory? Estimated before gigabytes are loaded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from edgesam_deploy.errors import TooLarge

if TYPE_CHECKING:
    from edgesam_deploy.model.configs import SamConfig
    from edgesam_deploy.model.cwsam.configs import CwsamConfig

GIB = 1 << 30
COPIES = 3  # of the weights: PyTorch's, the graph's, where matrices are stored transposed, and the runtime's
BASE = 0.6 * GIB  # PyTorch, ONNX and ONNX Runtime themselves
MAPS = 5  # of the largest kind that are alive at once: an operator's inputs and result, the runtime's, a proof's


def build_bytes(config: SamConfig | CwsamConfig) -> tuple[int, int]:
    """Parameters of a model, and the most memory that building it takes, in bytes (an estimate)."""
    import torch

    from edgesam_deploy.model.registry import network

    with torch.device("meta"):
        parameters = sum(p.numel() for p in network(config, "").parameters())
    return parameters, int(BASE + COPIES * 4 * parameters + MAPS * _largest_map_bytes(config))


def _largest_map_bytes(config: SamConfig | CwsamConfig) -> int:
    """The largest value on the way, float32: an attention map of a block that attends to the whole grid, or a map of
    features at a quarter of the resolution, as wide as the HQ branch or the class head makes it.
    """
    encoder, size = config.image_encoder, config.image_size
    heads, patch = getattr(encoder, "heads", 0), getattr(encoder, "patch", 0)
    attention = heads * (size // patch) ** 4 if patch else 0
    wide = 4 * config.embed_dim if getattr(config.mask_decoder, "hq", "none") != "none" else config.embed_dim
    return 4 * max(attention, wide * (size // 4) ** 2)


def available_bytes() -> int:
    """Memory that this process may still take, in bytes; the container's limit where it is lower."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        return min(free, limit - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    except (OSError, ValueError):  # no control group, or one without a limit
        return free


def check_memory(config: SamConfig | CwsamConfig, name: str, *, limit: int | None = None, loaded: bool = False) -> None:
    """Raise TooLarge for a model whose build is estimated above ``limit`` bytes (default: what is available).

    loaded: the weights are in memory already and are not counted against what is available.
    """
    parameters, needed = build_bytes(config)
    takes = f"{name} has {parameters / 1e9:.2f} billion parameters: building it takes about {needed / GIB:.1f} GiB"
    if limit is not None:
        if needed > limit:
            raise TooLarge(f"{takes} of memory, and {limit / GIB:.1f} GiB are allowed (--max-memory)")
        return
    room = available_bytes()
    if needed - (4 * parameters if loaded else 0) > room:
        raise TooLarge(
            f"{takes} of memory, of which {room / GIB:.1f} GiB are there; build on a larger machine, choose a smaller "
            f"configuration, or set --max-memory if you know better"
        )
