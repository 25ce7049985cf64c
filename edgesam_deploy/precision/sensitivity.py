"""Which layers cost most in few bits: a scan of a target's quantised parts on calibration pictures, kept in a cache.

The scan is emulation, one forward and one backward pass per picture: a layer's error is what rounding its weights (by
output channel) and its input (by one range) to the target's bits does to its result, and its share of the outputs'
squared error is that times the gradient of <error, output>, to first order (``islands.shares_of``). It ranks layers;
what a choice of them is worth, the artifact tells.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import Node

from edgesam_deploy.model.fetch import cache_folder
from edgesam_deploy.passes.program import Program, operator
from edgesam_deploy.precision.calibration_rows import calibration_set
from edgesam_deploy.precision.composed import given_to
from edgesam_deploy.precision.islands import shares_of
from edgesam_deploy.precision.shown import run_on
from edgesam_deploy.precision.walk import Walker, called, module_path
from edgesam_deploy.targets.base import Bits

if TYPE_CHECKING:
    from edgesam_deploy.contract import Interface, SegmenterInterface
    from edgesam_deploy.model.cwsam.model import Cwsam
    from edgesam_deploy.model.sam import Sam
    from edgesam_deploy.parity.cases import Pictures
    from edgesam_deploy.targets.base import Target

SCHEMA = 1
SCANNED = 2  # pictures: a backward pass takes the memory of a training step
CHANNELS = {"conv2d": 0, "linear": 0, "conv_transpose2d": 1, "matmul": -1}  # axis of a weight's output channels


@dataclass(frozen=True)
class LayerCost:
    """``name``: part and aten node, as ``--keep`` takes it; ``where``: its module; ``share``: of its part's error."""

    name: str
    where: str
    operator: str
    share: float


def sensitivity(
    model: Sam | Cwsam,
    target: Target,
    interface: Interface | SegmenterInterface,
    programs: Sequence[Program],
    progress: Callable[[str], None] = lambda _: None,
) -> list[LayerCost]:
    """The layers of ``programs``, after the target's aten passes, that the target quantises; the costliest first.

    From the cache where the same weights were scanned for the same target and pictures.
    """
    chosen = calibration_set(getattr(target, "calibration", None))
    pictures = dict(list(chosen.pictures.items())[:SCANNED])
    key = _key(model, target, programs, [chosen.sha256[name] for name in pictures])
    path = cache_folder() / "sensitivity" / f"{key}.json"
    known = _read(path)
    found: list[LayerCost] = [] if known is None else known
    for program in programs:
        bits = target.quantised(program.name)
        if bits is not None:
            progress(f"{program.name}: which layers cost most")
            if known is None:
                found += _scanned(program, bits, _samples(program.name, programs, target, interface, pictures))
    found.sort(key=lambda cost: -cost.share)
    if known is None:
        _write(path, found)
    return found


def _key(model: Sam | Cwsam, target: Target, programs: Sequence[Program], pictures: Sequence[str]) -> str:
    """Of all that the answer depends on: the weights themselves, since a model may be trained after it was loaded, and
    the layers' names, which are PyTorch's and the passes'.
    """
    options = {name: value for name, value in target.options().items() if name != "keep"}
    layers = [[node.name for node in layers_of(program)] for program in programs]
    about = [SCHEMA, asdict(model.config), target.name, options, list(pictures), layers]
    found = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode())
    for name, value in sorted(model.state_dict().items()):
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return found.hexdigest()[:32]


def _write(path: Path, costs: Sequence[LayerCost]) -> None:
    draft = path.with_suffix(f".{os.getpid()}")
    with contextlib.suppress(OSError):  # a cache that cannot be written is none
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps({"schema": SCHEMA, "layers": [asdict(cost) for cost in costs]}, indent=2) + "\n")
        draft.replace(path)


def _read(path: Path) -> list[LayerCost] | None:
    try:
        content = json.loads(path.read_text())
        return [LayerCost(**row) for row in content["layers"]] if content["schema"] == SCHEMA else None
    except (OSError, ValueError, KeyError, TypeError):  # not there, or not whole: it is made again
        return None


def _samples(
    part: str,
    programs: Sequence[Program],
    target: Target,
    interface: Interface | SegmenterInterface,
    pictures: Pictures,
) -> list[Mapping[str, Tensor]]:
    """What a part is given when the parts run one after the other in fp32, two prompts per picture."""
    artifact, seen = given_to(
        part, programs, target, interface, lambda program: partial(Walker(program).run, compute=called)
    )
    run_on(artifact, pictures, prompts=part == programs[-1].name)
    return seen


def _scanned(program: Program, bits: Bits, samples: Sequence[Mapping[str, Tensor]]) -> list[LayerCost]:
    layers = {node.name: node for node in layers_of(program)}

    def off(node: Node, args: tuple[Any, ...], kwargs: dict[str, Any], value: Tensor) -> Tensor | None:
        if node.name not in layers:
            return None
        return layer_in_bits(node, args, kwargs, bits) - value

    total = dict.fromkeys(layers, 0.0)
    for sample in samples:
        for name, share in shares_of(program, sample, off).items():
            total[name] += share / len(samples)
    return [
        LayerCost(f"{program.name}:{name}", module_path(node), operator(node), total[name])
        for name, node in layers.items()
    ]


def layers_of(program: Program) -> list[Node]:
    """The nodes that multiply what depends on the input by a weight, in order."""
    weights = {n.name for n in program.aten.graph.nodes if n.op == "placeholder"} - {s.name for s in program.inputs}
    return [
        node
        for node in program.aten.graph.nodes
        if operator(node) in CHANNELS
        and isinstance(node.args[0], Node)
        and isinstance(node.args[1], Node)
        and node.args[0].name not in weights
        and node.args[1].name in weights
    ]


def layer_in_bits(node: Node, args: tuple[Any, ...], kwargs: dict[str, Any], bits: Bits) -> Tensor:
    """What a layer gives when its weights, by output channel, and its input have so many bits; sums are fp32."""
    x, weight, *rest = args
    x = x if bits.activations is None else in_bits(x, bits.activations)
    found: Tensor = called(node, (x, in_bits(weight, bits.weights, CHANNELS[operator(node)]), *rest), kwargs)
    return found


def in_bits(x: Tensor, bits: int, axis: int | None = None) -> Tensor:
    """``x`` on 2^bits steps: from its least to its largest value, or, with an ``axis``, symmetric for each index."""
    if axis is None:
        low, high = torch.clamp(x.amin(), max=0), torch.clamp(x.amax(), min=0)
        step = ((high - low) / (2**bits - 1)).clamp_min(1e-12)
        zero = torch.round(-low / step)
        steps = torch.clamp(torch.round(x / step) + zero, 0, 2**bits - 1) - zero
    else:
        others = [d for d in range(x.dim()) if d != axis % x.dim()]
        most = 2 ** (bits - 1) - 1
        step = (x.abs().amax(others, keepdim=True) / most).clamp_min(1e-12)
        steps = torch.clamp(torch.round(x / step), -most, most)
    return torch.mul(steps, step)
