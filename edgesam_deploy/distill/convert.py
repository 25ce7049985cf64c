"""Checkpoints between the stages of training: joined, taken apart, adapters merged, halved.

What the reference does with ``convert_weights.py`` and ``extract_weights.py``: an image encoder as phase 1 leaves it
gets SAM's prompt encoder and mask decoder, and a teacher's parts become files of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from edgesam_deploy.distill.state import write_whole
from edgesam_deploy.errors import CheckpointError, UsageError

PARTS = ("image_encoder", "prompt_encoder", "mask_decoder")
HALF_MAX = torch.finfo(torch.float16).max

Tensors = Mapping[str, Tensor]


def joined(encoder: Tensors, rest: Tensors) -> dict[str, Tensor]:
    """A whole model: the image encoder of one checkpoint, bare or prefixed, and all other parts of another.

    Raises CheckpointError where the second has no decoder, or one for embeddings of another width.
    """
    if not any(name.startswith("image_encoder.") for name in encoder):
        encoder = {f"image_encoder.{name}": value for name, value in encoder.items()}
    own = {name: value for name, value in encoder.items() if name.startswith("image_encoder.")}
    others = {name: value for name, value in rest.items() if name.startswith(("prompt_encoder.", "mask_decoder."))}
    lacking = [part for part in PARTS[1:] if not any(name.startswith(f"{part}.") for name in others)]
    if lacking:
        raise CheckpointError(f"the decoder's checkpoint has no {' and no '.join(lacking)}; give a whole SAM's")
    made, wanted = own.get("image_encoder.neck.0.weight"), others.get("prompt_encoder.no_mask_embed.weight")
    if made is not None and wanted is not None and made.shape[0] != wanted.shape[1]:
        raise CheckpointError(
            f"the encoder's embeddings have {made.shape[0]} channels, the decoder reads {wanted.shape[1]}; "
            "give a decoder of the same embed_dim"
        )
    return {**own, **others}


def extracted(tensors: Tensors, part: str, *, bare: bool = False) -> dict[str, Tensor]:
    """One part of a model, under its full names or ``bare`` ones, as the reference's training loads a teacher's.

    Raises UsageError for no part's name, CheckpointError where the checkpoint has none of it.
    """
    if part not in PARTS:
        raise UsageError(f"part {part!r}: must be one of {', '.join(PARTS)}")
    found = {name: value for name, value in tensors.items() if name.startswith(f"{part}.")}
    if not found:
        raise CheckpointError(f"no tensor of {part} in this checkpoint; it has {', '.join(_rooms(tensors))}")
    return {name.removeprefix(f"{part}."): value for name, value in found.items()} if bare else found


def merged_lora(tensors: Tensors) -> dict[str, Tensor]:
    """The same model without low-rank pairs: W + B A / rank in place of each adapted W; others as they are."""
    found = {name: value for name, value in tensors.items() if not name.endswith((".lora_A", ".lora_B"))}
    for name, low in tensors.items():
        if name.endswith(".lora_A"):
            layer = name.removesuffix(".lora_A")
            pair = tensors.get(f"{layer}.lora_B")
            if pair is None or f"{layer}.weight" not in found:
                raise CheckpointError(f"{name}: without its lora_B or its weight; the checkpoint is incomplete")
            weight = found[f"{layer}.weight"]
            found[f"{layer}.weight"] = weight + pair.to(weight) @ low.to(weight) / low.shape[0]
    return found


def deployable(tensors: Tensors) -> dict[str, Tensor]:
    """What a trained student's weights are to everything else: pairs merged, fake quantisation's ranges left out."""
    return merged_lora({name: value for name, value in tensors.items() if not name.endswith(".input_range")})


def without_lora(config: Mapping[str, Any]) -> dict[str, Any]:
    """A model's configuration for its merged weights."""
    decoder = {key: value for key, value in config.get("mask_decoder", {}).items() if key != "lora"}
    return {key: decoder if key == "mask_decoder" else value for key, value in config.items()}


def halved(tensors: Tensors) -> dict[str, Tensor]:
    """Floating tensors in half precision. Raises CheckpointError for a value beyond it."""
    for name, value in tensors.items():
        if value.is_floating_point() and value.numel() and float(value.abs().max()) > HALF_MAX:
            raise CheckpointError(f"{name}: exceeds half precision ({float(value.abs().max()):.3g}); keep float32")
    return {name: value.half() if value.is_floating_point() else value for name, value in tensors.items()}


def write_weights(path: Path, tensors: Tensors, about: str) -> None:
    """safetensors, or by the suffix .pth a flat dict of ``torch.save``; whole or not at all."""
    flat = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    if path.suffix in (".pth", ".pt"):
        write_whole(path, lambda partial: torch.save(flat, partial))
    elif path.suffix == ".safetensors":
        write_whole(path, lambda partial: safetensors.torch.save_file(flat, partial, metadata={"about": about}))
    else:
        raise UsageError(f"{path}: its suffix must be .safetensors, .pth or .pt")


def _rooms(tensors: Tensors) -> list[str]:
    return sorted({name.split(".")[0] for name in tensors})[:6]
