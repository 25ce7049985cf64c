"""Every model of the family, small, through the whole path: parity, operators, ranks, foreign layouts."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import FAMILY
from scenes import picture

from edgesam_deploy.contract import sample_inputs
from edgesam_deploy.errors import PromptError, UsageError
from edgesam_deploy.model.cwsam.predictor import CwsamPredictor
from edgesam_deploy.model.predictor import SamPredictor
from edgesam_deploy.model.prompts import EMPTY
from edgesam_deploy.passes.execute import relative_l2
from edgesam_deploy.runtime import BundleSegmenter, open_artifact, open_predictor

# what holds no static graph together: values as shapes, branches, scattering, and what NPU compilers do not know
FORBIDDEN = {
    "NonZero", "If", "Loop", "Scan", "ScatterND", "ScatterElements", "GatherND", "DFT", "Einsum", "OneHot", "Tile",
    "SequenceAt", "SplitToSequence", "Shape", "Range", "Where", "BatchNormalization", "Expand",
}  # fmt: skip
# what others of the list have in them: edge_sam is built all over the tests, ViT's encoder with sam_hq_vit_b
COVERED = {  # by one of the same kind
    "edge_sam",
    "edge_sam_dyt",
    "edge_sam_dyt_frozen_mask",
    "vit_b",
    "sam_hq_vit_b",
    "cwsam",
    "cwsam_hierarchical_moe_10b",
}
NAMES = [pytest.param(name, marks=pytest.mark.slow) if name in COVERED else name for name in FAMILY]
ROUTED = ("cwsam_moe_3b", "cwsam_hierarchical_moe_10b")


def nodes(bundle):
    for part in bundle.manifest["parts"]:
        model = onnx.shape_inference.infer_shapes(onnx.load(bundle.part(part)), data_prop=True)
        yield part, model


@pytest.mark.parametrize("name", NAMES)
def test_every_model_builds_with_parity(family, name):
    model, bundle = family(name, proof="fast")
    parity = bundle.read_json("parity.json")
    assert parity["verdict"] == "pass"
    assert parity["summary"]["pictures"] == 3
    for row in parity["rows"]:
        assert row["reference_std"] > 1e-3 or row["output"] == "scores", row
    steps = bundle.read_json("timings.json")["steps"]
    assert all(step["error"] <= step["bound"] for step in steps if step["sites"])
    assert bundle.manifest["parameters"] == sum(p.numel() for p in model.parameters())
    assert all(count > 0 for count in bundle.manifest["macs"].values())


@pytest.mark.parametrize("name", NAMES)
def test_artifacts_hold_nothing_that_compilers_refuse(family, name):
    _, bundle = family(name, proof="fast")
    for part, model in nodes(bundle):
        operators = {node.op_type for node in model.graph.node}
        assert not operators & FORBIDDEN, part
        assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
        values = [*model.graph.value_info, *model.graph.input, *model.graph.output]
        ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in values}
        assert max(ranks.values()) <= 4, [name for name, rank in ranks.items() if rank > 4]


@pytest.mark.parametrize("name", ["cwsam", *ROUTED])
def test_a_second_unrelated_picture(family, name):
    """Routing that a tracer baked in is right for one picture: so several, unlike each other."""
    model, bundle = family(name, proof="fast")
    segmenter, reference = open_artifact(bundle.path), CwsamPredictor(model)
    assert isinstance(segmenter, BundleSegmenter)
    size, maps = model.image_size, []
    rng = np.random.default_rng(0)
    for scale in (0.1, 1.0, 3.0):
        image = (scale * rng.standard_normal((1, 3, size, size))).astype(np.float32)
        ours, theirs = segmenter.infer(image), reference.infer(image)
        assert relative_l2(theirs, ours) < 1e-5
        assert (ours.argmax(1) != theirs.argmax(1)).mean() <= 1e-4
        maps.append(theirs)
    assert np.abs(maps[0] - maps[1]).max() > 0.01


@pytest.mark.parametrize(
    "options", [{"argmax": True}, pytest.param({"embed_preprocess": True}, marks=pytest.mark.slow)], ids=str
)
def test_options_of_a_semantic_model(family, options):
    model, bundle = family("cwsam", **options)
    scene = picture(100, 300, 4)  # larger than the model's 128 on one side
    ours = open_artifact(bundle.path).predict(scene)
    theirs = CwsamPredictor(model).predict(scene)
    assert len(ours.tiles) == len(theirs.tiles) > 1
    if options != {"argmax": True}:  # there, the first tile wins where tiles overlap
        assert (ours.class_map != theirs.class_map).mean() <= 1e-4
    outputs = bundle.manifest["parts"]["segmenter"]["outputs"]
    assert [t["name"] for t in outputs] == (["class_map"] if options == {"argmax": True} else ["logits"])


def test_a_semantic_model_takes_no_prompts(family):
    _, bundle = family("cwsam", proof="fast")
    with pytest.raises(PromptError, match="takes no prompts"):
        open_predictor(bundle.path)
    with pytest.raises(UsageError, match="--points"):
        family("cwsam", points=8)


# ------------------------------------------------------------------------------------------------------------ HQ


@pytest.mark.parametrize(
    ("multimask", "hq_token_only"),
    [
        (True, False),
        pytest.param(False, True, marks=pytest.mark.slow),
        pytest.param(True, True, marks=pytest.mark.slow),
    ],
)
def test_the_choices_of_hq_sam(family, multimask, hq_token_only):
    choices = {"multimask": multimask, "hq_token_only": hq_token_only}
    model, bundle = family("sam_hq_vit_b", **choices)
    ours, theirs = open_predictor(bundle.path), SamPredictor(model, **choices)
    scene = picture(150, 225, 10)
    for predictor in (ours, theirs):
        predictor.set_image(scene)
    prompts = ours.prepared([[[60, 40], [100, 90]]], [[1, 0]])
    a, b = ours.decode(*prompts), theirs.decode(*prompts)
    for mine, reference in zip(a, b, strict=True):
        assert mine.shape == reference.shape
        assert np.abs(mine - reference).max() < 1e-4 * max(1, reference.std())
    plain = SamPredictor(model)
    plain.set_image(scene)
    others = plain.decode(*prompts)
    if multimask or hq_token_only:
        assert np.abs(others.logits - b.logits).max() > 0.1


def test_hq_work_that_needs_no_prompt_is_done_once(family):
    """The contract's decoder of an HQ model: a tenth of what the layout with the work inside takes."""
    _, ours = family("edge_sam_dyt_hq", proof="fast")
    _, foreign = family("edge_sam_dyt_hq", io="edgesam-dyt")
    assert ours.manifest["macs"]["mask_decoder"] < 0.15 * foreign.manifest["macs"]["mask_decoder"]
    names = [t["name"] for t in foreign.manifest["parts"]["mask_decoder"]["inputs"]]
    assert names == [
        "image_embeddings", "point_coords", "point_labels", "boxes", "point_valid", "boxes_valid",
        "interm_embeddings_0", "interm_embeddings_1", "interm_embeddings_2",
    ]  # fmt: skip


@torch.no_grad()
def by_boolean_index(model, feeds):
    """The reference's way: rows of what is not valid are dropped, so their number depends on the flags."""
    t = {name: torch.from_numpy(value) for name, value in feeds.items()}
    rows = []
    if t["point_valid"].item():
        rows.append(model.prompt_encoder.embed_slots(t["point_coords"], t["point_labels"]))
    if t["boxes_valid"].item():
        rows.append(model.prompt_encoder.embed_slots(t["boxes"].reshape(1, 2, 2), torch.tensor([[2.0, 3.0]])))
    sparse = torch.cat(rows, 1) if rows else torch.zeros(1, 0, model.config.embed_dim)
    features = [t["image_embeddings"]]
    if model.hq:
        early = [t[f"interm_embeddings_{i}"] for i in range(3)]
        features.append(model.mask_decoder.hq_features(features[0], early))
    dense = model.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
    masks, iou, _ = model.decode(features, model.prompt_encoder.get_dense_pe(), sparse, dense)
    size = (model.image_size, model.image_size)
    return iou, torch.nn.functional.interpolate(masks, size, mode="bilinear", align_corners=False), masks


@pytest.mark.parametrize("name", ["edge_sam_dyt", "edge_sam_dyt_hq"])
@pytest.mark.parametrize("points", [1, 4])
@pytest.mark.parametrize("box", [False, True])
@pytest.mark.parametrize("point", [False, True])
def test_io_edgesam_dyt_with_all_combinations_of_its_flags(family, name, points, point, box):
    model, bundle = family(name, io="edgesam-dyt")
    interface = open_predictor(bundle.path).interface
    feeds = sample_inputs(interface.decoder_inputs(), 5)
    rng = np.random.default_rng(points)
    feeds["point_coords"] = rng.uniform(0, 256, (1, points, 2)).astype(np.float32)
    feeds["point_labels"] = rng.integers(-2, 2, (1, points)).astype(np.float32)
    feeds |= {"point_valid": np.array([[point]]), "boxes_valid": np.array([[box]])}
    session = onnxruntime.InferenceSession(str(bundle.part("mask_decoder")))
    assert [out.name for out in session.get_outputs()] == ["scores", "masks", "low_res_masks"]
    for ours, theirs in zip(session.run(None, feeds), by_boolean_index(model, feeds), strict=True):
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs.numpy()).max() < 1e-4


@pytest.mark.parametrize("count", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_io_sam_of_an_hq_model_takes_its_exporters_features(family, count):
    """sam-hq's apps hand over the features of all four global blocks; the first is all that counts."""
    model, bundle = family("sam_hq_vit_b", io="sam")
    predictor, scene = open_predictor(bundle.path), picture(150, 225, 10)
    embeddings, features = predictor.set_image(scene)
    assert features.shape == (1, 1, 16, 16, 48)
    reference = SamPredictor(model)
    reference.set_image(scene)
    more = np.concatenate([features, np.random.default_rng(0).standard_normal((count - 1, 1, 16, 16, 48))])
    feeds = {
        "image_embeddings": embeddings,
        "interm_embeddings": more.astype(np.float32),
        "point_coords": np.array([[[60, 40], [0, 0]]], np.float32),
        "point_labels": np.array([[1, -1]], np.float32),
        "mask_input": np.zeros((1, 1, 64, 64), np.float32),
        "has_mask_input": np.zeros(1, np.float32),
        "orig_im_size": np.array(scene.shape[:2], np.float32),
    }
    session = onnxruntime.InferenceSession(str(bundle.part("mask_decoder")))
    assert [i.name for i in session.get_inputs()] == list(feeds)
    masks, iou, low = session.run(["masks", "iou_predictions", "low_res_masks"], feeds)
    expected = reference.predict_slots(feeds["point_coords"], feeds["point_labels"])
    assert np.abs(low - expected[0]).max() < 1e-4 * max(1, expected[0].std())
    assert np.abs(iou - expected[1]).max() < 1e-4
    assert masks.shape == (1, 1, 150, 225)
    assert np.abs(masks - reference.upscale(expected[0])).max() < 1e-3


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("edge_sam_dyt_hq", {"io": "sam"}, "edgesam-dyt"),
        ("edge_sam_dyt_hq", {"io": "edgesam"}, "edgesam-dyt"),
        ("sam_hq_vit_b", {"io": "edgesam-dyt"}, "use contract, edgesam-npu, sam"),
        ("edge_sam_dyt_hq", {"multimask": True}, "sam_hq"),
        ("vit_b", {"hq_token_only": True}, "sam_hq"),
        ("vit_b", {"argmax": True}, "cwsam"),
        ("sam_hq_vit_b", {"io": "sam", "return_single_mask": True}, "always returns one mask"),
        ("cwsam", {"io": "sam"}, "takes no prompts"),
    ],
)
def test_options_that_a_model_cannot_have(family, name, options, words):
    with pytest.raises(UsageError, match=words):
        family(name, **options)


def test_a_very_thin_picture_in_the_layout_sam(family):
    """Its short side is less than half a pixel in the model frame."""
    model, bundle = family("sam_hq_vit_b", io="sam")
    line = picture(1, 700, 3)
    ours, theirs = open_predictor(bundle.path), SamPredictor(model)
    for predictor in (ours, theirs):
        predictor.set_image(line)
    masks, _, low_res = ours.predict([[300, 0]], [1], return_logits=True)
    assert masks.shape == (1, 1, 700)
    assert np.abs(low_res - theirs.predict([[300, 0]], [1])[2]).max() < 1e-3
    assert np.abs(ours.full_masks(low_res) - theirs.upscale(low_res)).max() < 1e-3


def test_larger_masks_of_several_prompts(family):
    """Layouts that know one prompt per call are called once per prompt; all of their masks are kept."""
    _, bundle = family("edge_sam_dyt_hq", io="edgesam-dyt")
    predictor = open_predictor(bundle.path)
    predictor.set_image(picture(150, 225, 10))
    answers = predictor.decode(*predictor.prepared([[[60, 40]], [[100, 90]], [[10, 10]]], [[1], [1], [0]]))
    full = predictor.full_masks(answers.logits)
    assert full.shape == (3, 1, 150, 225)
    assert np.abs(full - predictor.upscale(answers.logits)).max() < 1e-3


@pytest.mark.parametrize("name", ["edge_sam_dyt_hq", pytest.param("sam_hq_vit_b", marks=pytest.mark.slow)])
def test_hq_models_answer_with_one_mask(family, name):
    model, bundle = family(name, proof="fast") if name == "edge_sam_dyt_hq" else family(name)
    for predictor in (SamPredictor(model), open_predictor(bundle.path)):
        predictor.set_image(picture(150, 225, 10))
        masks, scores, low_res = predictor.predict([[60, 40]], [1])
        assert (masks.shape, scores.shape, low_res.shape) == ((1, 150, 225), (1,), (1, 64, 64))
        answers = predictor.decode(*predictor.prepared([[[60, 40]]], [[1]]))
        assert answers.sam.shape == (1, 1, 64, 64)
        assert np.abs(answers.sam - answers.logits).max() > 0.01


def test_empty_slots_are_exact_in_hq_models_too(family):
    _, bundle = family("edge_sam_dyt_hq", proof="fast")
    predictor = open_predictor(bundle.path)
    predictor.set_image(picture(150, 225, 10))
    coords = np.array([[[60, 40], [0, 0], [200, 10]]], np.float32)
    few = predictor.predict_slots(coords[:, :2], np.array([[1, -1]], np.float32))
    more = predictor.predict_slots(coords, np.array([[1, -1, EMPTY]], np.float32))
    for a, b in zip(few, more, strict=True):
        assert np.abs(a - b).max() < 1e-4


# ---------------------------------------------------------------------------------------------------- large files


@pytest.mark.slow
def test_weights_beside_the_graph(monkeypatch, tmp_path):
    """Above a gigabyte the weights lie in a file of their own; here, above nothing."""
    from edgesam_deploy.builder import build
    from edgesam_deploy.bundle import verify
    from edgesam_deploy.errors import BundleError
    from edgesam_deploy.model.registry import load
    from edgesam_deploy.targets import onnx as target

    monkeypatch.setattr(target, "EXTERNAL_ABOVE", 0)
    pictures = {"scene": picture(150, 225, 10)}
    for folder in ("one", "two"):
        build(load("vit_b", config=FAMILY["vit_b"]), "onnx", tmp_path / folder, proof="off", pictures=pictures)
    bundle = verify(tmp_path / "one")
    names = set(bundle.manifest["files"])
    assert {"encoder.onnx", "encoder.onnx.data", "decoder.onnx", "decoder.onnx.data"} <= names
    assert (tmp_path / "one" / "encoder.onnx").stat().st_size < 200_000
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    assert bundle.read_json("parity.json")["verdict"] == "pass"
    assert bundle.read_json("ops.json")["parts"]["image_encoder"]["worst"] == "supported"
    (tmp_path / "one" / "encoder.onnx.data").unlink()
    with pytest.raises(BundleError, match=r"encoder\.onnx\.data: missing"):
        verify(tmp_path / "one")
    with pytest.raises(BundleError, match=r"encoder\.onnx"):
        open_predictor(tmp_path / "one")
