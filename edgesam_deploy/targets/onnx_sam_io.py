"""segment-anything's own decoder outputs, appended to ours: masks at the original size, scores, low-resolution masks.

    masks (1, 4, h, w) ── Resize (S, S) ── Slice to the resized picture ── Resize (H, W) ── masks
                      └── low_res_masks            orig_im_size (2,) = H, W

With ``return_single_mask`` one mask is chosen first, as the official decoder does: scores are shifted by
(points - 2.5) x [1000, 0, 0, 0], so that a prompt of up to two tokens takes the best of masks 1 to 3 and a longer one
takes mask 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesam_deploy.contract import DYNAMIC, Interface, TensorSpec
from edgesam_deploy.passes.onnx.graph import add_initializer


def attach_sam_outputs(model: ir.Model, interface: Interface) -> None:
    """Add the input ``orig_im_size`` and replace the outputs by the official decoder's. In place."""
    _Tail(model.graph, interface).attach()


class _Tail:
    def __init__(self, graph: ir.Graph, interface: Interface) -> None:
        self.graph = graph
        self.interface = interface

    def attach(self) -> None:
        masks, scores = (next(v for v in self.graph.outputs if v.name == n) for n in ("masks", "scores"))
        masks.name = "low_res_logits"
        labels = next(v for v in self.graph.inputs if v.name == "point_labels")
        size = ir.Value(name="orig_im_size", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([2]))
        self.graph.inputs.append(size)
        if self.interface.return_single_mask:
            masks, scores = self._select(masks, scores, labels)
        low_res = self._node("Identity", [masks])
        iou = self._node("Identity", [scores])
        full = self._upscale(masks, size)
        self.graph.outputs.clear()
        for value, spec in zip((full, iou, low_res), self.interface.decoder_outputs(), strict=True):
            self._declare(value, spec)

    def _declare(self, value: ir.Value, spec: TensorSpec) -> None:
        value.name, value.shape, value.dtype = spec.name, ir.Shape(spec.shape), ir.DataType.FLOAT
        self.graph.outputs.append(value)

    def _node(self, op: str, inputs: list[ir.Value | None], **attributes: Any) -> ir.Value:
        node = ir.node(op, inputs, attributes, name=f"sam_{op}_{len(self.graph)}")
        node.outputs[0].name = f"sam_{op.lower()}_{len(self.graph)}"
        self.graph.append(node)
        return node.outputs[0]

    def _const(self, value: Any, dtype: Any) -> ir.Value:
        array: NDArray[Any] = np.array(value, dtype=dtype)
        return add_initializer(self.graph, "sam_constant", array)

    def _upscale(self, masks: ir.Value, original: ir.Value) -> ir.Value:
        """Bilinear to the model frame, crop, bilinear to the original: sizes are data, so this part is dynamic."""
        side = self.interface.image_size
        count = self.interface.mask_count
        frame = self._resize(masks, self._const([1, count, side, side], np.int64))
        longest = self._node("ReduceMax", [original], keepdims=1)
        scaled = self._node("Mul", [original, self._node("Div", [self._const(side, np.float32), longest])])
        rounded = self._node("Floor", [self._node("Add", [scaled, self._const(0.5, np.float32)])])
        rounded = self._node("Max", [rounded, self._const(1, np.float32)])  # a side of a very thin picture
        inside = self._node("Cast", [rounded], to=ir.DataType.INT64)
        start, axes = self._const([0, 0], np.int64), self._const([2, 3], np.int64)
        cropped = self._node("Slice", [frame, start, inside, axes])
        wanted = self._node("Cast", [original], to=ir.DataType.INT64)
        sizes = self._node("Concat", [self._const([1, count], np.int64), wanted], axis=0)
        return self._resize(cropped, sizes)

    def _resize(self, masks: ir.Value, sizes: ir.Value) -> ir.Value:
        attributes = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
        return self._node("Resize", [masks, None, None, sizes], **attributes)

    def _select(self, masks: ir.Value, scores: ir.Value, labels: ir.Value) -> tuple[ir.Value, ir.Value]:
        if self.interface.points == DYNAMIC:
            count = self._node("Cast", [self._node("Shape", [labels], start=1, end=2)], to=ir.DataType.FLOAT)
        else:  # slots left empty do not count as points
            filled = self._node("Cast", [self._node("Greater", [labels, self._const(-9.5, np.float32)])], to=1)
            count = self._node("ReduceSum", [filled], keepdims=0)
        shift = self._node("Sub", [count, self._const(2.5, np.float32)])
        weights = self._node("Mul", [shift, self._const([[1000, 0, 0, 0]], np.float32)])
        best = self._node("ArgMax", [self._node("Add", [scores, weights])], axis=1, keepdims=0)
        return self._node("Gather", [masks, best], axis=1), self._node("Gather", [scores, best], axis=1)
