"""From aten programs to the bytes of one .tflite file, by litert-torch, with the contract's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgesam_deploy.contract import TensorSpec, sample_inputs
from edgesam_deploy.targets.quiet import quiet
from edgesam_deploy.targets.tflite.toolkits import resolve_converter

if TYPE_CHECKING:
    from torch import Tensor

    from edgesam_deploy.passes.program import Program


def convert(programs: Mapping[str, Program], *, channel_last: bool) -> bytes:
    """One file with a signature per entry of ``programs``, weights shared, fp32.

    ``channel_last``: the image comes in as (1, S, S, 3). Raises EdgeSamDeployError where the converter fails, naming
    the file with what it had to say.
    """
    import torch

    with quiet("converting to TFLite"):
        found = resolve_converter()
        waiting: Any = found
        for name, program in programs.items():
            specs = tuple(stored(spec) if channel_last else spec for spec in program.inputs)
            example = {key: torch.from_numpy(value) for key, value in sample_inputs(specs, seed=3).items()}
            waiting = waiting.signature(name, _module(program, channel_last=channel_last), sample_kwargs=example)
        # without wide integers: no INT64 in the file
        content: bytes = waiting.convert().model_content()
    return content


def stored(spec: TensorSpec) -> TensorSpec:
    """A tensor as a channel-last file has it: a float image (1, 3, S, S) as (1, S, S, 3)."""
    if spec.role != "scene":
        return spec
    batch, channels, height, width = spec.shape
    return TensorSpec(
        spec.name, (batch, height, width, channels), spec.dtype, spec.role, f"{spec.meaning}; channels last"
    )


def _module(program: Program, *, channel_last: bool) -> Any:
    """The program as a module whose results have names."""
    from torch import nn

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = program.aten.module()
            self.training = False  # the traced body refuses ``eval``

        def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
            if channel_last:
                turned = {spec.name for spec in program.inputs if spec.role == "scene"}
                inputs = {key: x.permute(0, 3, 1, 2) if key in turned else x for key, x in inputs.items()}
            results = self.body(**inputs)
            results = results if isinstance(results, tuple) else (results,)
            return dict(zip((spec.name for spec in program.outputs), results, strict=True))

    # names of values in the file start with the class's
    Named.__module__, Named.__qualname__ = "edgesam_deploy", program.name
    return Named()
