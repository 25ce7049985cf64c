"""From a model and an interface to programs: torch.export, once per part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from edgesam_deploy.capture.parts import (
    ImageEncoderPart,
    MaskDecoderPart,
    MaskHeadPart,
    PromptTransformerPart,
    SegmenterPart,
)
from edgesam_deploy.contract import (
    DEFAULT_POINTS,
    IMAGE_ENCODER,
    MASK_DECODER,
    MASK_HEAD,
    PROMPT_TRANSFORMER,
    Interface,
    PartSpec,
    SegmenterInterface,
    TensorSpec,
    sample_inputs,
)
from edgesam_deploy.cost import LARGE, model_macs
from edgesam_deploy.model.registry import network
from edgesam_deploy.model.sam import Sam
from edgesam_deploy.model.twin import shallow_twin
from edgesam_deploy.passes.program import Program

if TYPE_CHECKING:
    from edgesam_deploy.model.configs import SamConfig
    from edgesam_deploy.model.cwsam.configs import CwsamConfig
    from edgesam_deploy.model.cwsam.model import Cwsam

DEFAULT_SIZES = {"num_points": DEFAULT_POINTS, "batch": 1, "num_features": 1}


def capture(model: Sam | Cwsam, interface: Interface | SegmenterInterface) -> list[Program]:
    """The model's parts as programs in the aten dialect: ``image_encoder`` and, if promptable, ``mask_decoder``; or
    ``segmenter`` alone.
    """
    programs = []
    for name, part in interface.parts(promptable=model.promptable).items():
        inputs = _traced_inputs(interface, part)
        programs.append(trace(name, _module(name, model, interface), inputs, _traced_outputs(interface, part)))
    return programs


def capture_twins(
    model: Sam | Cwsam, interface: Interface | SegmenterInterface, macs: Mapping[str, int]
) -> dict[str, Program]:
    """For each part that is too large to run after every pass, by its ``macs``, the same part of a few of its blocks;
    none for encoders that have no such twin.
    """
    large = [part for part, count in macs.items() if count > LARGE]
    twin = shallow_twin(model) if large else None
    return {} if twin is None else {p.name: p for p in capture(twin, interface) if p.name in large}


def _module(part: str, model: Sam | Cwsam, interface: Interface | SegmenterInterface) -> nn.Module:
    if isinstance(interface, SegmenterInterface):
        return SegmenterPart(model, interface)
    assert isinstance(model, Sam)
    kinds: dict[str, Callable[[Sam, Interface], nn.Module]] = {
        IMAGE_ENCODER: ImageEncoderPart,
        MASK_DECODER: MaskDecoderPart,
        PROMPT_TRANSFORMER: PromptTransformerPart,
        MASK_HEAD: MaskHeadPart,
    }
    return kinds[part.rstrip("_0123456789")](model, interface)  # mask_decoder_<N> where there is one per N


def part_macs(config: SamConfig | CwsamConfig, interface: Interface | SegmenterInterface) -> dict[str, int]:
    """Multiply-accumulates of one call of each part, dynamic sizes at the contract's defaults. Nothing is computed."""
    counts = {}
    with torch.device("meta"):
        blank = network(config, "")
        for name, part in interface.parts(promptable=blank.promptable).items():
            module = _module(name, blank, interface)
            inputs = {
                spec.name: torch.zeros(spec.bound(DEFAULT_SIZES), dtype=getattr(torch, spec.dtype))
                for spec in _traced_inputs(interface, part)
            }
            counts[name] = model_macs(module, **inputs)
    return counts


def _traced_inputs(interface: Interface | SegmenterInterface, part: PartSpec) -> tuple[TensorSpec, ...]:
    """What the part itself takes: ``orig_im_size`` is the tail's, and positions are encoded inside until a pass hoists
    that.
    """
    inputs = tuple(spec for spec in part.inputs if spec.role != "original_size")
    if isinstance(interface, Interface) and interface.io == "edgesam-npu":
        coords = {s.name: s for s in replace(interface, io="contract").decoder_inputs()}["point_coords"]
        return tuple(coords if spec.name == "point_embedding_pe" else spec for spec in inputs)
    return inputs


def _traced_outputs(interface: Interface | SegmenterInterface, part: PartSpec) -> tuple[TensorSpec, ...]:
    """What the part itself returns; the layout ``sam`` gets its outputs from a tail that is appended in ONNX."""
    if isinstance(interface, SegmenterInterface) or interface.io != "sam" or part.file != "decoder":
        return part.outputs
    _, scores, masks = part.outputs
    return replace(masks, name="masks"), replace(scores, name="scores")


def trace(name: str, module: nn.Module, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> Program:
    """``module`` captured with example inputs of the given specs; strings in shapes become dynamic dimensions."""
    example = {key: torch.from_numpy(value) for key, value in sample_inputs(inputs, seed=3).items()}
    dims = {s: torch.export.Dim(s, min=1, max=1024) for spec in inputs for s in spec.dynamic.values()}
    dynamic: dict[str, Any] = {spec.name: {axis: dims[s] for axis, s in spec.dynamic.items()} for spec in inputs}
    with torch.no_grad():
        body = torch.export.export(
            module.eval(), (), kwargs=example, dynamic_shapes=dynamic if dims else None, strict=False
        )
    return Program(name, inputs, outputs, body)
