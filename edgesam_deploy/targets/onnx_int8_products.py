"""8 bit for a decoder's large products, with the range of what they read taken at run time.

    x ── MatMul(W) ── Add(bias)
    x ── DynamicQuantizeLinear ── MatMulInteger(W int8) ── Cast ── Mul ── Add(bias)

ONNX Runtime makes one operator of the second row. It pays where rows are many: in the products that upscale the image's
side (4,096 and 16,384 rows at 1024 pixels), behind the last attention. What attention reads again stays fp32, though it
has as many rows: tokens and scores are made of it. So do transposed convolutions, which the decoders of the DyT fork
and of HQ-SAM upscale with. No calibration: a range belongs to the call, so the prompts of one call share it, and an
answer depends a little on its neighbours.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgesam_deploy.passes.onnx.eliminate_dead import eliminate_dead
from edgesam_deploy.passes.onnx.graph import add_initializer, add_node, constant, is_standard
from edgesam_deploy.passes.program import Program
from edgesam_deploy.targets.onnx_int8 import LEAST

ROWS = 1024  # of one prompt, at least: below, converting takes what the product saves
ATTENTION = ("Softmax", "Exp")  # the second where a pass wrote it out
FLOAT = ir.DataType.FLOAT


def quantise_products(program: Program) -> list[str]:
    """Quantise the linear layers over many rows behind the last attention, in place: int8 weights by output, uint8 for
    what they read. Returns the names of the products that came in their place.
    """
    graph = program.onnx.graph
    read_again = _before_attention(graph)
    names = [_quantise(node) for node in list(graph) if node not in read_again and _is_large(node)]
    eliminate_dead(program)  # the products in fp32 and their weights
    return names


def _before_attention(graph: ir.Graph) -> set[ir.Node]:
    """The nodes whose results some attention depends on."""
    found: set[ir.Node] = set()
    ahead = [node for node in graph if is_standard(node, *ATTENTION)]
    while ahead:
        node = ahead.pop()
        makers = {value.producer() for value in node.inputs if value is not None}
        ahead += [maker for maker in makers if maker is not None and maker not in found]
        found |= {maker for maker in makers if maker is not None}
    return found


def _is_large(node: ir.Node) -> bool:
    """A product of many rows with constant weights, a bias behind it: a resize written as a product has none."""
    weight = constant(node.inputs[1]) if is_standard(node, "MatMul") else None
    if weight is None or weight.ndim != 2:
        return False
    readers = [usage.node for usage in node.outputs[0].uses()]
    biased = len(readers) == 1 and is_standard(readers[0], "Add")
    return biased and any(constant(value) is not None for value in readers[0].inputs) and _rows(node) >= ROWS


def _rows(node: ir.Node) -> int:
    """Of one prompt: what the dimensions between the batch and the last multiply to."""
    shape = None if node.inputs[0] is None else node.inputs[0].shape
    return 0 if shape is None else int(np.prod([n for n in shape[1:-1] if isinstance(n, int)]))


def _quantise(node: ir.Node) -> str:
    source, weight, name = node.inputs[0], constant(node.inputs[1]), str(node.outputs[0].name)
    assert source is not None
    assert weight is not None
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    steps = np.maximum(np.abs(weight).max(0) / np.float32(127), LEAST).astype(np.float32)
    small = np.clip(np.round(weight / steps), -127, 127).astype(np.int8)
    dynamic = ir.node("DynamicQuantizeLinear", [source], num_outputs=3, name=f"{name}_quantised")
    kinds = (ir.DataType.UINT8, FLOAT, ir.DataType.UINT8)
    for value, suffix, kind in zip(dynamic.outputs, ("q", "step", "zero"), kinds, strict=True):
        value.name, value.type = f"{name}_{suffix}", ir.TensorType(kind)
        value.shape = source.shape if suffix == "q" else ir.Shape(())
    graph.insert_before(node, dynamic)
    values, step, zero = dynamic.outputs
    held = add_initializer(graph, f"{name}_weight_q", small)
    middle = add_initializer(graph, f"{name}_weight_zero", np.zeros(steps.shape, np.int8))
    by_output = add_initializer(graph, f"{name}_weight_step", steps)
    shape = node.outputs[0].shape
    summed = add_node(
        node, "MatMulInteger", [values, held, zero, middle], name=f"{name}_sum", dtype=ir.DataType.INT32, shape=shape
    )
    wide = add_node(node, "Cast", [summed], {"to": FLOAT}, name=f"{name}_wide", dtype=FLOAT, shape=shape)
    scale = add_node(node, "Mul", [step, by_output], name=f"{name}_scale", dtype=FLOAT, shape=steps.shape)
    product = add_node(node, "Mul", [wide, scale], name=f"{name}_product", dtype=FLOAT, shape=shape)
    node.outputs[0].replace_all_uses_with(product)
    producer = summed.producer()
    assert producer is not None
    return str(producer.name)
