"""From a model and an interface to programs: torch.export, once per part."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from edgesam_deploy.capture.parts import ImageEncoderPart, MaskDecoderPart
from edgesam_deploy.contract import Interface, TensorSpec, sample_inputs
from edgesam_deploy.model.sam import Sam
from edgesam_deploy.passes.program import Program

IMAGE_ENCODER, MASK_DECODER = "image_encoder", "mask_decoder"


def capture(model: Sam, interface: Interface) -> list[Program]:
    """The model's parts as programs in the aten dialect: ``image_encoder`` and, if promptable, ``mask_decoder``."""
    programs = [
        trace(
            IMAGE_ENCODER,
            ImageEncoderPart(model, interface),
            interface.encoder_inputs(),
            interface.encoder_outputs(),
        )
    ]
    if model.promptable:
        inputs = tuple(s for s in interface.decoder_inputs() if s.role != "original_size")  # that one is the tail's
        part = MaskDecoderPart(model, interface)
        programs.append(trace(MASK_DECODER, part, inputs, _part_outputs(interface)))
    return programs


def _part_outputs(interface: Interface) -> tuple[TensorSpec, ...]:
    """What the part itself returns; the layout ``sam`` gets its outputs from a tail that is appended in ONNX."""
    if interface.io != "sam":
        return interface.decoder_outputs()
    inner = Interface(interface.image_size, interface.points, mask_input=True, scores=interface.scores)
    return inner.decoder_outputs()


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
