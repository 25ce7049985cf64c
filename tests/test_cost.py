"""Costs: sums done by hand, both counters against each other, and the published figures of the encoders."""

from __future__ import annotations

import warnings

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from edgesam_deploy.cost import model_macs, onnx_macs, parameters
from edgesam_deploy.errors import UnknownName, UsageError
from edgesam_deploy.model.configs import M1, M2, M3, VIT_B, VIT_H, VIT_L, RepVitConfig, TinyVitConfig
from edgesam_deploy.model.repvit import RepVit
from edgesam_deploy.model.tiny_vit import TinyVit
from edgesam_deploy.model.vit import Vit


def saved(folder, nodes, inputs, weights=(), outputs=("y",)):
    """An .onnx file; ``inputs`` and ``weights`` map names to shapes."""
    graph = helper.make_graph(
        list(nodes),
        "cost",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [onnx.numpy_helper.from_array(np.zeros(shape, np.float32), name) for name, shape in dict(weights).items()],
    )
    path = folder / "model.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    ("op", "attributes", "x", "weight", "macs"),
    [
        # 3x3, 6 -> 8 channels, 5x5 cells out: the edge is padded
        ("Conv", {"pads": [1, 1, 1, 1]}, (2, 6, 5, 5), (8, 6, 3, 3), 2 * 8 * 5 * 5 * 6 * 9),
        ("Conv", {"strides": [2, 2], "pads": [1, 1, 1, 1]}, (1, 6, 5, 5), (8, 6, 3, 3), 8 * 3 * 3 * 6 * 9),
        ("Conv", {"group": 2}, (1, 6, 4, 4), (8, 3, 1, 1), 8 * 16 * 3),  # each output reads half of the channels
        ("Conv", {"group": 6, "pads": [1, 1, 1, 1]}, (1, 6, 4, 4), (6, 1, 3, 3), 6 * 16 * 9),  # depthwise
        ("Conv", {"dilations": [2, 2]}, (1, 2, 7, 7), (3, 2, 3, 3), 3 * 3 * 3 * 2 * 9),
        # every cell of the input meets the whole kernel once
        ("ConvTranspose", {"strides": [2, 2]}, (1, 4, 5, 5), (4, 3, 2, 2), 4 * 25 * 3 * 4),
        ("ConvTranspose", {"strides": [2, 2], "group": 2}, (1, 4, 5, 5), (4, 3, 2, 2), 4 * 25 * 3 * 4),
        ("MatMul", {}, (7, 3), (3, 5), 7 * 3 * 5),
        ("MatMul", {}, (2, 4, 7, 3), (2, 4, 3, 5), 8 * 7 * 3 * 5),
        ("MatMul", {}, (4, 1, 7, 3), (6, 3, 5), 4 * 6 * 7 * 3 * 5),  # both batches broadcast
        ("MatMul", {}, (1, 7, 3), (6, 3, 5), 6 * 7 * 3 * 5),
        ("MatMul", {}, (3,), (2, 3, 5), 2 * 3 * 5),  # a vector loses its axis
        ("MatMul", {}, (2, 7, 3), (3,), 2 * 7 * 3),
        ("Gemm", {}, (7, 3), (3, 5), 7 * 3 * 5),
        ("Gemm", {"transA": 1, "transB": 1}, (3, 7), (5, 3), 7 * 3 * 5),
    ],
)
def test_by_hand(tmp_path, op, attributes, x, weight, macs):
    node = helper.make_node(op, ["x", "w"], ["y"], **attributes)
    path = saved(tmp_path, [node], {"x": x}, {"w": weight})
    assert onnx_macs(path) == {op: macs}
    assert onnx_macs(path, inputs={"x": np.zeros(x, np.float32)}) == {op: macs}


def test_operators_add_up_and_the_rest_is_free(tmp_path):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w"], ["c"]),
        helper.make_node("MatMul", ["c", "c"], ["y"]),
    ]
    path = saved(tmp_path, nodes, {"x": (1, 2, 3, 3)}, {"w": (2, 2, 1, 1)})
    assert onnx_macs(path) == {"Conv": 2 * 2 * 9 * 2, "MatMul": 2 * 27}
    assert onnx_macs(saved(tmp_path, nodes[1:2], {"a": (3,)}, outputs=("b",))) == {}


def test_dynamic_dimensions(tmp_path):
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    path = saved(tmp_path, [node], {"x": ("batch", "points", 3)}, {"w": (3, 4)})
    assert onnx_macs(path) == {"MatMul": 12}
    assert onnx_macs(path, sizes={"points": 5, "batch": 2}) == {"MatMul": 120}
    with pytest.raises(UnknownName, match="did you mean points"):
        onnx_macs(path, sizes={"point": 5})
    unnamed = saved(tmp_path, [node], {"x": (None, 3)}, {"w": (3, 4)})
    assert onnx_macs(unnamed) == {"MatMul": 12}


def data_dependent(folder):
    """As many rows as x has elements that are not zero."""
    nodes = [
        helper.make_node("NonZero", ["x"], ["where"]),
        helper.make_node("Cast", ["where"], ["rows"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["rows"], ["columns"], perm=[1, 0]),
        helper.make_node("MatMul", ["columns", "w"], ["y"], name="the_product"),
    ]
    return saved(folder, nodes, {"x": (6,)}, {"w": (1, 4)})


def test_a_shape_that_is_not_known_is_named(tmp_path):
    path = data_dependent(tmp_path)
    with pytest.raises(UsageError, match="MatMul 'the_product' cannot be inferred"):
        onnx_macs(path)
    x = np.array([1, 0, 0, 2, 3, 0], np.float32)
    assert onnx_macs(path, inputs={"x": x}) == {"MatMul": 3 * 4}


def test_what_cannot_be_counted_is_refused(tmp_path):
    einsum = helper.make_node("Einsum", ["x", "w"], ["y"], name="e", equation="ij,jk->ik")
    with pytest.raises(UsageError, match="Einsum 'e' is not among"):
        onnx_macs(saved(tmp_path, [einsum], {"x": (2, 3)}, {"w": (3, 4)}))
    branch = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["z"])], "b", [], [helper.make_empty_tensor_value_info("z")]
    )
    choice = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    with pytest.raises(UsageError, match="inside of If"):
        onnx_macs(saved(tmp_path, [choice], {"x": (2, 3), "c": ()}, {"w": (3, 4)}))


@pytest.mark.parametrize("content", [b"", b"\x00\x01 no model", None])
def test_no_onnx_file(tmp_path, content):
    path = tmp_path / "x.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=r"x\.onnx"):
        onnx_macs(path)


class Mixed(nn.Module):
    """One of each: strided, grouped and transposed convolutions, a linear layer, attention."""

    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, 2, 1)
        self.grouped = nn.Conv2d(8, 8, 3, 1, 1, groups=4)
        self.linear = nn.Linear(8, 8)
        self.up = nn.ConvTranspose2d(8, 4, 2, 2)

    def forward(self, x):
        x = self.grouped(self.down(x))
        tokens = self.linear(x.flatten(2).transpose(1, 2))
        tokens = (tokens @ tokens.transpose(1, 2)).softmax(-1) @ tokens
        return self.up(tokens.transpose(1, 2).reshape(x.shape))


def test_both_counters_agree(tmp_path):
    module, x = Mixed().eval(), torch.zeros(2, 3, 9, 9)
    path = tmp_path / "mixed.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's deprecation
        torch.onnx.export(module, (x,), str(path), dynamo=False, opset_version=17)
    by_operator = onnx_macs(path)
    assert sum(by_operator.values()) == model_macs(module, x)
    cells = 2 * 25
    assert by_operator["Conv"] == cells * 8 * (3 * 9 + 2 * 9)
    assert by_operator["ConvTranspose"] == cells * 8 * 4 * 4
    assert by_operator["MatMul"] == cells * (8 * 8 + 2 * 25 * 8)


@pytest.mark.parametrize(
    ("make", "giga"),
    [
        (lambda: RepVit(M1), 20.05),
        (lambda: RepVit(M2), 31.05),
        (lambda: RepVit(M3), 41.97),
        (lambda: RepVit(RepVitConfig(fuse=False)), 25.57),
        (lambda: Vit(VIT_B, 1024), 486),
        (lambda: Vit(VIT_L, 1024), 1493),
        (lambda: Vit(VIT_H, 1024), 2981),
        (lambda: TinyVit(TinyVitConfig(), 1024), 38.8),
    ],
    ids=["m1", "m2", "m3", "m1 no-fuse", "vit_b", "vit_l", "vit_h", "tiny"],
)
def test_published_figures(make, giga):
    with torch.device("meta"):
        module = make()
    macs = model_macs(module, torch.empty(1, 3, 1024, 1024)) / 1e9  # the input need not be on meta
    assert abs(macs - giga) <= 0.5 * 10 ** -len(f"{giga}".partition(".")[2])  # to the digits given


def test_parameters_by_child():
    with torch.device("meta"):
        encoder = Vit(VIT_B, 1024)
    counted = parameters(encoder)
    assert counted.total == 89_670_912
    assert counted.children["pos_embed"] == 64 * 64 * 768  # the module's own
    assert counted.children["patch_embed"] == 768 * (3 * 16 * 16 + 1)
    assert set(counted.children) == {"pos_embed", "patch_embed", "blocks", "neck"}
    tied = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.BatchNorm2d(3, affine=False))
    tied[1].weight = tied[0].weight
    assert parameters(tied).children == {"0": 6, "1": 2}  # shared once, no buffers
