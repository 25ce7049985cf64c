"""Whose export a file is: on the references' own exports of a small model, and on interfaces written down."""

from __future__ import annotations

import json
import subprocess
import sys

import onnx
import pytest
from conftest import TINY
from onnx import TensorProto, helper

from benchmarks.reference_export import export_reference
from edgesam_deploy.errors import UsageError
from edgesam_deploy.explain import explain
from edgesam_deploy.model.registry import load

EMBEDDINGS = ("image_embeddings", [1, 256, 64, 64])
POINTS = [("point_coords", [1, "num_points", 2]), ("point_labels", [1, "num_points"])]
BOXES = [("boxes", [1, 1, 4]), ("point_valid", [1, 1]), ("boxes_valid", [1, 1])]
SAM = [("mask_input", [1, 1, 256, 256]), ("has_mask_input", [1]), ("orig_im_size", [2])]
ANSWERS = [("masks", ["b", 4, "h", "w"]), ("iou_predictions", ["b", 4]), ("low_res_masks", ["b", 4, 256, 256])]
PE = ("point_embedding_pe", [1, 5, 256])


def write(path, inputs, outputs, operators=(), opset=17, domain=""):
    """A file with that interface; its nodes are named, which is all that is read of them."""

    def infos(entries):
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in entries]

    nodes = [helper.make_node(op, [inputs[0][0]], [f"n{i}"], domain=domain) for i, op in enumerate(operators)]
    graph = helper.make_graph(nodes, "g", infos(inputs), infos(outputs))
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)]), path)
    return path


def topics(export):
    return [difference.topic for difference in export.differences]


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    """The references' exports of small models, by part."""
    folder = tmp_path_factory.mktemp("exports")
    small = {"edge_sam": ("encoder", "decoder"), "edge_sam_dyt_hq": ("hq_decoder",)}
    models = {name: load(name, seed=0, config=TINY) for name in small}
    return {
        part: export_reference(models[name], part, folder / f"{part}.onnx", check=False)
        for name, parts in small.items()
        for part in parts
    }


def test_edgesam_encoder(references):
    export = explain(references["encoder"]).export
    assert (export.part, topics(export)) == ("image encoder", ["upsampling"])
    assert export.family.startswith("EdgeSAM")
    assert "bicubic" in export.differences[0].predictor
    assert export.replace[0] == "edgesam-deploy build edge_sam --checkpoint YOUR.pth --image-size 256 --io edgesam"


def test_edgesam_decoder(references):
    export = explain(references["decoder"]).export
    assert export.part == "mask decoder"
    assert "padding point" in topics(export)
    assert any("predicted IoU" in text for text in export.same)
    assert "operators" in topics(export)  # shapes that are computed


def test_dyt_hq_decoder(references):
    export = explain(references["hq_decoder"]).export
    assert (export.family, export.part) == ("EdgeSAM-DyT", "HQ mask decoder")
    assert [d.here for d in export.differences if d.topic == "scores"] == [
        "the predicted IoU of mask 3 beside the HQ mask, which belongs to mask 0"
    ]
    assert export.replace[0].startswith("edgesam-deploy build edge_sam_dyt_hq")


INTERFACES = {
    "edgesam, stability": (
        [EMBEDDINGS, *POINTS], [("scores", [1, 4]), ("masks", [1, 4, 256, 256])], ["Greater"] * 2 + ["ReduceSum"] * 4,
        ("EdgeSAM", "mask decoder"), ["padding point", "scores"],
    ),
    "edgesam, fixed points": (
        [EMBEDDINGS, ("point_coords", [1, 3, 2]), ("point_labels", [1, 3])],
        [("scores", [1, 4]), ("masks", [1, 4, 256, 256])], [],
        ("EdgeSAM", "mask decoder"), ["padding point", "prompts"],
    ),
    "the fork at 512": (
        [("image_embeddings", [1, 256, 32, 32]), *POINTS], [("scores", [1, 4]), ("masks", [1, 4, 128, 128])], [],
        ("EdgeSAM, the fork for NPUs", "mask decoder"), ["padding point"],
    ),
    "dyt, upsampled": (
        [EMBEDDINGS, *POINTS, *BOXES], [("scores", [1, 4]), ("masks", [1, 4, 1024, 1024])], ["NonZero", "If"],
        ("EdgeSAM-DyT", "mask decoder"), ["padding point", "masks", "prompts", "operators"],
    ),
    "dyt encoder": (
        [("image", [1, 3, 1024, 1024])], [("image_embeddings", [1, 256, 64, 64])],
        ["BatchNormalization"] * 23 + ["Tanh"] * 29, ("EdgeSAM-DyT", "image encoder"), ["operators"],
    ),
    "vit encoder": (
        [("image", [1, 3, 1024, 1024])], [("image_embeddings", [1, 256, 64, 64])], ["Softmax"] * 12 + ["Erf"] * 12,
        ("SAM or HQ-SAM with a ViT", "image encoder"), [],
    ),
    "npu": (
        [EMBEDDINGS, PE, ("point_labels", [1, 5])], [("scores", [1, 4]), ("masks", [1, 4, 256, 256])], [],
        ("EdgeSAM, the fork for NPUs", "mask decoder"), ["prompts"],
    ),
    "npu, parts 1 and 2": (
        [EMBEDDINGS, PE, ("point_labels", [1, 5])], [("hs", [1, 10, 256]), ("src", [1, 4096, 256])], [],
        ("EdgeSAM, the fork for NPUs", "prompt embedding and transformer (part 1 and 2)"), ["prompts"],
    ),
    "npu, no score": (
        [("hyper_in", [1, 4, 32]), ("upscaled", [1, 32, 256, 256])],
        [("scores", [1, 4]), ("masks", [1, 4, 256, 256])], ["MatMul"],
        ("EdgeSAM, the fork for NPUs", "masks (part 3c, without the IoU head)"), ["scores", "prompts"],
    ),
    "sam": (
        [EMBEDDINGS, *POINTS, *SAM], ANSWERS, [], ("SAM", "mask decoder"), ["padding point", "size"],
    ),
    "sam, one mask": (
        [EMBEDDINGS, *POINTS, *SAM], [(n, [s[0], 1, *s[2:]]) for n, s in ANSWERS], [],
        ("SAM", "mask decoder"), ["padding point", "masks", "size"],
    ),
    "hq-sam": (
        [EMBEDDINGS, ("interm_embeddings", [4, 1, 64, 64, 768]), *POINTS, *SAM], ANSWERS, [],
        ("HQ-SAM", "mask decoder"), ["padding point", "masks", "size"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", INTERFACES)
def test_interfaces(name, tmp_path):
    inputs, outputs, operators, expected, differing = INTERFACES[name]
    export = explain(write(tmp_path / "m.onnx", inputs, outputs, operators)).export
    assert (export.family, export.part) == expected
    assert topics(export) == differing


def test_an_operator_of_one_runtime_is_named(tmp_path):
    path = write(
        tmp_path / "m.onnx", [EMBEDDINGS, *POINTS], [("scores", [1, 4]), ("masks", [1, 4, 256, 256])],
        ["Attention"], domain="com.microsoft",
    )  # fmt: skip
    assert "com.microsoft::Attention" in explain(path).export.differences[-1].here


def test_own_artifacts_say_so_and_without_their_metadata_are_taken_for_what_they_stand_in_for(bundles, tmp_path):
    bundle = bundles(io="edgesam")
    export = explain(bundle.part("mask_decoder")).export
    assert (export.family, export.differences) == ("edgesam-deploy", ())
    model = onnx.load(bundle.part("mask_decoder"))
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "stripped.onnx")
    assert explain(tmp_path / "stripped.onnx").export.family.startswith("EdgeSAM")


def test_what_is_not_known_is_not_guessed(tmp_path):
    assert explain(write(tmp_path / "m.onnx", [("x", [1])], [("y", [1])])).export is None
    (tmp_path / "cut.onnx").write_bytes((tmp_path / "m.onnx").read_bytes()[:9])
    with pytest.raises(UsageError, match="not an ONNX file"):
        explain(tmp_path / "cut.onnx")


def test_the_command_needs_no_pytorch(references):
    code = "import sys; sys.modules['torch'] = None; from edgesam_deploy.cli import main; main()"
    command = [sys.executable, "-c", code, "explain-file", str(references["decoder"])]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "mask decoder of EdgeSAM" in text
    assert "(0, 0)" in text
    found = json.loads(subprocess.run([*command, "--json"], capture_output=True, text=True, check=True).stdout)
    assert found["facts"]["inputs"]["point_labels"][0] == 1
    assert found["export"]["differences"][0]["topic"] == "padding point"
