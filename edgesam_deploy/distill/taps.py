"""What happens inside a mask decoder, read by hooks: attention probabilities, upscaled features, the masks' filters.

The decoder itself stays as it is for deployment; what a loss does not ask for is not computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from edgesam_deploy.model.mask_decoder import MaskDecoder
from edgesam_deploy.model.transformer import Attention

# the reference's names: tokens to tokens, tokens to image, image to tokens
ATTENTIONS = {"self_attn": "t2t", "cross_attn_token_to_image": "t2i", "cross_attn_image_to_token": "i2t"}


class Taps:
    """``attention``: name -> (N, heads, queries, keys); ``features`` (N, C/8, S/4, S/4); ``filters`` (N, 4, C/8)."""

    def __init__(self) -> None:
        self.attention: dict[str, Tensor] = {}
        self.features: Tensor | None = None
        self._filters: dict[int, Tensor] = {}

    @property
    def filters(self) -> Tensor:
        return torch.stack([self._filters[i] for i in sorted(self._filters)], dim=1)


@contextmanager
def tapped(decoder: MaskDecoder, *, attention: bool = False, features: bool = False) -> Iterator[Taps]:
    """Everything that ``decoder`` computes inside the block, of its last call; attention costs a second softmax."""
    taps = Taps()
    handles = []
    if attention:
        for name, module in _attentions(decoder).items():
            handles.append(module.register_forward_hook(_keep_attention(taps, name)))
    if features:
        handles.append(decoder.output_upscaling.register_forward_hook(_keep_features(taps)))
        for index, mlp in enumerate(decoder.output_hypernetworks_mlps):
            handles.append(mlp.register_forward_hook(_keep_filter(taps, index)))
    try:
        yield taps
    finally:
        for handle in handles:
            handle.remove()


def _attentions(decoder: MaskDecoder) -> dict[str, Attention]:
    found: dict[str, Attention] = {}
    for index, layer in enumerate(decoder.transformer.layers):
        for attribute, name in ATTENTIONS.items():
            found[f"{name}_{index}"] = getattr(layer, attribute)
    found["t2i_final"] = decoder.transformer.final_attn_token_to_image
    return found


def _keep_attention(taps: Taps, name: str) -> Any:
    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        assert isinstance(module, Attention)
        queries, keys = module.split(module.q_proj(inputs[0])), module.split(module.k_proj(inputs[1]))
        taps.attention[name] = ((queries * module.scale) @ keys.transpose(-2, -1)).softmax(-1)

    return hook


def _keep_features(taps: Taps) -> Any:
    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        taps.features = output

    return hook


def _keep_filter(taps: Taps, index: int) -> Any:
    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        taps._filters[index] = output

    return hook
