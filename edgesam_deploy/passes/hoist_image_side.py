"""What a decoder computes from the image alone, once per image instead of once per prompt."""

from __future__ import annotations

import logging
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch.export.graph_signature import InputKind, InputSpec, OutputKind, OutputSpec, TensorArgument
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from edgesam_deploy.contract import HOISTED, TensorSpec
from edgesam_deploy.passes.aten.absorb_token_projections import ELEMENT
from edgesam_deploy.passes.aten.graph import AtenGraph, shape
from edgesam_deploy.passes.engine import Pass
from edgesam_deploy.passes.joint import JointPass
from edgesam_deploy.passes.program import Program

aten = torch.ops.aten
TOKENS = 10  # what a dynamic dimension counts as: five output tokens, four points, the padding point
log = logging.getLogger(__name__)
PRODUCTS = {aten.linear.default, aten.matmul.default, aten.conv2d.default, aten.conv_transpose2d.input}


def _hoist(encoder: Program, decoder: Program) -> int:
    """Move what depends on the image only from the decoder to the encoder.

        encoder ── embeddings ── Wk ──@── softmax ...        encoder ── embeddings ── Wk ── image_keys_0 (output)
                   prompt ────────────┘                      image_keys_0 (input) ──@── softmax ...

    Why: the decoder runs once per prompt, the encoder once per image: in the plain decoder the first layer's three
    projections of 4,096 tokens, in HQ decoders of foreign layouts most of the work. Exact: the same operators run,
    elsewhere. The values become outputs of the one and inputs of the other, so both artifacts change their interface.

    Only where at least one product (linear, matmul, convolution) moves; a transpose that feeds nothing but products
    stays, since runtimes read either way. Absorbing the same projections is the other choice: ``hoisting`` weighs the
    two. Site = a moved value.
    """
    names = {spec.name for spec in encoder.outputs} & {spec.name for spec in decoder.inputs}
    with AtenGraph(encoder) as source, AtenGraph(decoder) as target:
        known = _image_only(target, names)
        border = _border(target, known)
        if not any(node.target in PRODUCTS for node in _ancestors(border)):
            log.debug("hoist_image_side: %s multiplies nothing that depends on the image alone", decoder.name)
            return 0
        moved = _copied(source, target, encoder, border)
        for index, (node, result) in enumerate(moved):
            sizes = tuple(int(size) for size in shape(node))
            spec = TensorSpec(f"{HOISTED}_{index}", sizes, meaning="computed by the encoder for the decoder")
            _add_output(source, result)
            _replace_by_input(target, node, spec.name)
            encoder.outputs += (spec,)
            decoder.inputs += (spec,)
    return len(moved)


_hoist.__name__ = "hoist_image_side"
hoist_image_side = JointPass(_hoist)


def hoisting(prompts: int, *otherwise: Pass) -> JointPass:
    """The pass where it pays for ``prompts`` prompts per image, against what ``otherwise`` makes of the decoder alone.

    Weighed by ``work``: a prompt costs one decoder, an image one encoder more. Raises ValueError below one prompt.
    """
    if prompts < 1:
        raise ValueError(f"{prompts} prompts per image: at least 1")

    def hoist(encoder: Program, decoder: Program) -> int:
        alone, first, second = decoder.copy(), encoder.copy(), decoder.copy()
        if not _hoist(first, second):
            return 0
        for rewrite in otherwise:
            rewrite(alone)
            rewrite(second)  # the later layers' projections depend on the prompt
        here, there = prompts * work(alone), work(first) - work(encoder) + prompts * work(second)
        if there >= here:
            log.debug(
                "hoist_image_side: %d prompts cost %d in the decoder, %d with the encoder's help", prompts, here, there
            )
            return 0
        return _hoist(encoder, decoder)

    hoist.__name__, hoist.__doc__ = "hoist_image_side", _hoist.__doc__
    return JointPass(hoist)


def work(program: Program) -> int:
    """An estimate of a call's time, in multiply-accumulates: those of its products, and ``ELEMENT`` for each number
    that a product writes.
    """
    return sum(_product_work(node) for node in program.aten.graph.nodes if node.target in PRODUCTS)


def _product_work(node: Node) -> int:
    out, kernel = _sizes(node), _sizes(node.args[1])
    if node.target == aten.conv_transpose2d.input:  # each input pixel meets every weight once
        return prod(_sizes(node.args[0])[2:]) * prod(kernel) + ELEMENT * prod(out)
    per_number = kernel[-2] if node.target == aten.matmul.default else prod(kernel[1:])
    return prod(out) * (per_number + ELEMENT)


def _sizes(node: Any) -> list[int]:
    return [size if isinstance(size, int) else TOKENS for size in shape(node)]


def _image_only(graph: AtenGraph, names: set[str]) -> set[Node]:
    """Values that depend on the inputs ``names`` and on constants, and on one of the inputs at least."""
    found: set[Node] = set()
    fixed: set[Node] = set()  # constants, and what is computed from them alone
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            (found if node.name in names else fixed if graph.constant(node) is not None else set()).add(node)
        elif node.op == "call_function" and all(n in found or n in fixed for n in node.all_input_nodes):
            static = all(isinstance(size, int) for size in shape(node)) if _is_tensor(node) else False
            if static:
                (found if any(n in found for n in node.all_input_nodes) else fixed).add(node)
    return found


def _is_tensor(node: Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)


def _border(graph: AtenGraph, known: set[Node]) -> list[Node]:
    """Computed values that something beyond ``known`` reads, in order."""
    border: dict[Node, None] = {}
    for node in graph.graph.nodes:
        if node not in known or node.op == "placeholder" or all(reader in known for reader in node.users):
            continue
        while node.target == aten.transpose.int and all(r.target == aten.matmul.default for r in node.users):
            node = node.args[0]
        if node.op != "placeholder" and all(reader.op != "output" for reader in node.users):
            border[node] = None
    return list(border)


def _ancestors(nodes: list[Node]) -> list[Node]:
    found: dict[Node, None] = {}
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found[node] = None
            waiting += node.all_input_nodes
    return list(found)


def _copied(source: AtenGraph, target: AtenGraph, encoder: Program, border: list[Node]) -> list[tuple[Node, Node]]:
    """The border's values computed in ``source``: (node of the decoder, node of the encoder)."""
    output = next(n for n in source.graph.nodes if n.op == "output")
    copies: dict[Node, Node] = {}
    wanted = set(_ancestors(border))
    results = dict(zip((spec.name for spec in encoder.outputs), output.args[0], strict=True))
    for node in [n for n in target.graph.nodes if n in wanted]:
        constant = target.constant(node)
        if constant is not None:
            copies[node] = source.add_constant(f"hoisted_{target.target(node).replace('.', '_')}", constant)
        elif node.op == "placeholder":
            copies[node] = results[node.name]
        else:
            args, kwargs = map_arg((node.args, node.kwargs), lambda n: copies[n])
            with source.graph.inserting_before(output):
                copies[node] = source.call(node.target, *args, **kwargs)
    return [(node, copies[node]) for node in border]


def _add_output(graph: AtenGraph, result: Node) -> None:
    output = next(n for n in graph.graph.nodes if n.op == "output")
    output.args = ((*output.args[0], result),)
    graph.ep.graph_signature.output_specs.append(OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(result.name), None))
    entry = graph.ep.module_call_graph[0]
    assert entry.signature is not None
    count = len(output.args[0])
    _, out_spec = pytree.tree_flatten((0,) * count)
    _set_signature(graph, outputs=[TensorArgument(n.name) for n in output.args[0]], out_spec=out_spec)


def _replace_by_input(graph: AtenGraph, node: Node, name: str) -> None:
    last = [n for n in graph.graph.nodes if n.op == "placeholder"][-1]
    with graph.graph.inserting_after(last):
        value = graph.graph.placeholder(name)
    value.meta["val"] = node.meta["val"]
    graph.replace(node, value)
    argument = TensorArgument(value.name)
    graph.ep.graph_signature.input_specs.append(InputSpec(InputKind.USER_INPUT, argument, None))
    entry = graph.ep.module_call_graph[0]
    assert entry.signature is not None
    names = [*entry.signature.in_spec.child(1).context, name]
    _, in_spec = pytree.tree_flatten(((), dict.fromkeys(names, 0)))
    _set_signature(graph, inputs=[*entry.signature.inputs, argument], in_spec=in_spec, forward_arg_names=names)
    graph.ep._example_inputs = None


def _set_signature(graph: AtenGraph, **changes: Any) -> None:
    """Let the exported program be called with the new inputs and give the new outputs."""
    entry = graph.ep.module_call_graph[0]
    assert entry.signature is not None
    changed = replace(entry, signature=replace(entry.signature, **changes))
    graph.ep._module_call_graph = [changed, *graph.ep.module_call_graph[1:]]
