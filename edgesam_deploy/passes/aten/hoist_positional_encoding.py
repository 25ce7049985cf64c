from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from math import isclose, pi
from typing import Any

import torch
from numpy.typing import NDArray
from torch.export.graph_signature import InputKind, TensorArgument
from torch.fx import Node
from torch.utils import _pytree as pytree

from edgesam_deploy.contract import PE_MATRIX, encode_positions
from edgesam_deploy.passes.aten.fuse_gelu import Polynomial, behind, polynomial
from edgesam_deploy.passes.aten.graph import AtenGraph, argument, only_reader, shape
from edgesam_deploy.passes.engine import adapting, exact
from edgesam_deploy.passes.program import Program

aten = torch.ops.aten
log = logging.getLogger(__name__)


def encoding_input(coords: str) -> str:
    """The name of the input that takes the place of ``coords``: point_coords -> point_embedding_pe."""
    return f"{coords.removesuffix('_coords')}_embedding_pe"


def _encode_on_host(before: Program, after: Program, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The inputs of the program before, as the program after takes them."""
    kept = {spec.name for spec in after.inputs}
    gone = [spec for spec in before.inputs if spec.name not in kept]
    return inputs | {
        encoding_input(s.name): encode_positions(inputs[s.name], after.sidecars[PE_MATRIX], s.extent) for s in gone
    }


@adapting(_encode_on_host)
@exact
def hoist_positional_encoding(program: Program) -> int:
    """Let the host compute the positional encoding of the points: the graph takes it as an input.

        point_coords ── ((c + 0.5) / S * 2 - 1) @ G * 2 pi ── cat(sin, cos) ── y        point_embedding_pe ── y

    Why: NPUs have no Sin and Cos, and fp16 knows an angle of 20 radians to 0.016 only. For a handful of points the host
    needs microseconds. G (2, F) leaves as the sidecar ``pe_gaussian_matrix``. Exact: the host computes
    the same formula, in float64. Only where the coordinates are read for nothing else.
    """
    sites = 0
    with AtenGraph(program) as graph:
        for node in graph.calls(aten.cat.default):
            found = _match(graph, program, node)
            if found is not None:
                _replace_input(graph, program, found)
                sites += 1
    return sites


@dataclass(frozen=True)
class _Encoding:
    """``result`` is the encoding (B, N, 2F) of the input ``coords``, by ``matrix``."""

    coords: Node
    spec: Any  # of the input, a TensorSpec
    matrix: torch.Tensor
    result: Node


def _match(graph: AtenGraph, program: Program, node: Node) -> _Encoding | None:
    halves = node.args[0]
    assert isinstance(halves, (list, tuple))
    if [getattr(h, "target", None) for h in halves] != [aten.sin.default, aten.cos.default]:
        return None
    angles = halves[0].args[0]  # type: ignore[union-attr]
    if angles is not halves[1].args[0] or argument(node, 1, "dim", 0) not in (-1, len(shape(node)) - 1):  # type: ignore[union-attr]
        return None
    for spec in program.inputs:
        coords = next(n for n in graph.graph.nodes if n.name == spec.name)
        if spec.role == "coords" and only_reader(coords):
            matrix = _matrix(graph, angles, coords, spec.extent)
            if matrix is not None:
                return _Encoding(coords, spec, matrix, node)
    log.debug("hoist_positional_encoding: %s does not encode an input that is read for it alone", node.name)
    return None


def _matrix(graph: AtenGraph, angles: Any, coords: Node, extent: int) -> torch.Tensor | None:
    """G, where ``angles`` is 2 pi ((coords + 0.5) / extent * 2 - 1) @ G."""
    product = next((n for n in behind(angles) if n.target == aten.matmul.default), None)
    if product is None:
        return None
    outer, inner = polynomial(graph, angles, (product,)), polynomial(graph, product.args[0], (coords,))
    expected: Polynomial = {(1,): 2 / extent, (0,): 1 / extent - 1}
    same = inner is not None and inner.keys() == expected.keys() and all(isclose(inner[e], expected[e]) for e in inner)
    turns = outer is not None and outer.keys() == {(1,)} and isclose(outer[(1,)], 2 * pi)
    return graph.constant(product.args[1]) if same and turns else None


def _replace_input(graph: AtenGraph, program: Program, found: _Encoding) -> None:
    old, name = found.spec.name, encoding_input(found.spec.name)
    with graph.graph.inserting_before(found.coords):
        encoding = graph.graph.placeholder(name)
    encoding.meta["val"] = found.result.meta["val"]
    graph.replace(found.result, encoding)
    graph.graph.eliminate_dead_code()
    graph.graph.erase_node(found.coords)
    for spec in graph.ep.graph_signature.input_specs:
        if spec.kind == InputKind.USER_INPUT and spec.arg.name == old:
            spec.arg = TensorArgument(encoding.name)
    shapes = (*found.spec.shape[:-1], 2 * found.matrix.shape[1])
    meaning = f"sin and cos of 2 pi (2 (c + 0.5) / {found.spec.extent} - 1) @ {PE_MATRIX}, c the points' (x, y)"
    new = replace(found.spec, name=name, shape=shapes, role="normal", meaning=meaning)
    program.inputs = tuple(new if s.name == old else s for s in program.inputs)
    program.sidecars[PE_MATRIX] = found.matrix.numpy()
    _rename_argument(graph, old, name)


def _rename_argument(graph: AtenGraph, old: str, new: str) -> None:
    """Let the exported program be called with the new name; its example inputs go, they have the old one's."""
    entry = graph.ep.module_call_graph[0]
    assert entry.signature is not None
    names = [new if n == old else n for n in entry.signature.in_spec.child(1).context]
    _, in_spec = pytree.tree_flatten(((), dict.fromkeys(names, 0)))
    signature = replace(entry.signature, in_spec=in_spec, forward_arg_names=names)
    graph.ep._module_call_graph = [replace(entry, signature=signature), *graph.ep.module_call_graph[1:]]
    graph.ep._example_inputs = None
