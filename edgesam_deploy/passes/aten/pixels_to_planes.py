from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.fx import Node

from edgesam_deploy.passes.aten.boolean_to_float import CASTS, drop_checks, readers
from edgesam_deploy.passes.aten.graph import AtenGraph, argument, shape
from edgesam_deploy.passes.engine import adapting, exact
from edgesam_deploy.passes.program import Program

aten = torch.ops.aten
log = logging.getLogger(__name__)
TO_FIRST = [0, 3, 1, 2]


def _as_planes(before: Program, after: Program, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The inputs of the program before, as the program after takes them."""
    changed = {new.name for old, new in zip(before.inputs, after.inputs, strict=True) if old != new}
    planes = {name: inputs[name].transpose(TO_FIRST).astype(np.float32) for name in changed}
    return inputs | planes


@adapting(_as_planes)
@exact
def pixels_to_planes(program: Program) -> int:
    """Let the runtime hand over a picture as planes of floats, as Core ML does with an image input.

        image uint8 (1, H, W, 3) ── cast ── permute ── y        image float32 (1, 3, H, W), values 0 to 255 ── y

    Why: Core ML converts a pixel buffer to planes itself, and takes no arrays of uint8. Exact: the same numbers, in
    either order of the two. Only where a picture is read by nothing else.
    """
    sites = 0
    with AtenGraph(program) as graph:
        for spec in program.inputs:
            image = next(n for n in graph.graph.nodes if n.name == spec.name)
            planes = _planes(image) if spec.role == "image" else None
            if planes is None:
                log.debug("pixels_to_planes: %s is no picture that is read as planes of floats alone", spec.name)
                continue
            for changed in (image, planes.args[0]):
                drop_checks(graph, changed)  # type: ignore[arg-type]
            image.meta["val"] = planes.meta["val"].contiguous()
            graph.replace(planes, image)
            graph.ep._example_inputs = None  # they have the old layout
            new = replace(spec, shape=tuple(int(d) for d in shape(image)), dtype="float32")
            program.inputs = tuple(new if s is spec else s for s in program.inputs)
            sites += 1
    return sites


def _planes(image: Node) -> Node | None:
    """The second of a cast to float32 and a transpose of ``image``, in either order, if nothing else reads the two."""
    first = _only_reader(image)
    second = None if first is None else _only_reader(first)
    if first is None or second is None:
        return None
    turned, cast = (second, first) if first.target in CASTS else (first, second)
    if turned.target != aten.permute.default or cast.target not in CASTS:
        return None
    plain = argument(turned, 1, "dims") == TO_FIRST and cast.meta["val"].dtype == torch.float32
    return second if plain else None


def _only_reader(node: Node) -> Node | None:
    found = readers(node)
    return found[0] if len(found) == 1 else None
