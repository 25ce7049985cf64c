"""A model of a few of another's blocks, with their weights: what takes minutes to run is proved on it in seconds."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TypeVar

import torch

from edgesam_deploy.model.configs import SamConfig, VitConfig
from edgesam_deploy.model.cwsam.configs import CwsamConfig, CwsamEncoderConfig
from edgesam_deploy.model.cwsam.model import Cwsam
from edgesam_deploy.model.registry import make_constants, network
from edgesam_deploy.model.sam import Sam

Blocks = TypeVar("Blocks", VitConfig, CwsamEncoderConfig)
INDEXED = re.compile(r"(?P<before>^image_encoder\.(?:blocks\.|prompt_generator\.lightweight_mlp_))(?P<index>\d+)")


def shallow_twin(model: Sam | Cwsam) -> Sam | Cwsam | None:
    """The same model with one block of each kind that it has (windowed or global, with experts or without), sharing
    their weights; None for an encoder that is not a stack of such blocks.
    """
    config = model.config
    encoder = config.image_encoder
    if not isinstance(encoder, VitConfig | CwsamEncoderConfig):
        return None
    kept = _kept(encoder)
    shallow: SamConfig | CwsamConfig
    if isinstance(config, SamConfig):
        assert isinstance(encoder, VitConfig)
        shallow = replace(config, image_encoder=_shallow(encoder, kept))
    else:
        assert isinstance(encoder, CwsamEncoderConfig)
        first = sum(index < encoder.experts.first_block for index in kept)
        fewer = replace(encoder, experts=replace(encoder.experts, first_block=first))
        shallow = replace(config, image_encoder=_shallow(fewer, kept))
    with torch.device("meta"):
        twin = network(shallow, model.name)
    places = {index: place for place, index in enumerate(kept)}
    state = {}
    for name, tensor in model.state_dict().items():
        found = INDEXED.match(name)
        if found is None:
            state[name] = tensor
        elif (index := int(found["index"])) in places:
            state[f"{found['before']}{places[index]}{name[found.end() :]}"] = tensor
    twin.load_state_dict(state, assign=True)
    make_constants(twin)
    twin.weights = model.weights
    return twin.eval()


def _kind(encoder: VitConfig | CwsamEncoderConfig, index: int) -> tuple[bool, bool]:
    """(attends globally, has experts)."""
    experts = isinstance(encoder, CwsamEncoderConfig) and encoder.experts.kind != "dense"
    return index in encoder.global_blocks, experts and index >= encoder.experts.first_block  # type: ignore[union-attr]


def _kept(encoder: VitConfig | CwsamEncoderConfig) -> list[int]:
    """The first block of each kind, in order."""
    kinds = [_kind(encoder, index) for index in range(encoder.depth)]
    return sorted(kinds.index(kind) for kind in set(kinds))


def _shallow(encoder: Blocks, kept: list[int]) -> Blocks:
    places = tuple(place for place, index in enumerate(kept) if index in encoder.global_blocks)
    return replace(encoder, depth=len(kept), global_blocks=places)
