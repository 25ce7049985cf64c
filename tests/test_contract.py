"""The I/O contract on emitted artifacts: slots, batches, order, boxes, masks, every layout and option."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnxruntime.quantization import quantize_dynamic

from edgesam_deploy.contract import Interface
from edgesam_deploy.errors import PromptError, UsageError
from edgesam_deploy.model.predictor import SamPredictor
from edgesam_deploy.runtime import open_predictor

SLOTS = 5
EMPTY = -10.0
TOLERANCE = 1e-4  # of logits with a standard deviation near 8: the contract's own figure


@pytest.fixture(scope="module")
def decoder(bundles):
    """Run the tiny decoder with 6 slots on fixed embeddings: coords (B, n, 2), labels (B, n)."""
    session = onnxruntime.InferenceSession(str(bundles(points=SLOTS).part("mask_decoder")))
    embeddings = np.random.default_rng(7).standard_normal((1, 64, 16, 16)).astype(np.float32)

    def run(coords, labels):
        feeds = {"image_embeddings": embeddings, "point_coords": coords[None], "point_labels": labels[None]}
        return session.run(["masks", "scores"], feeds)

    return run


def random_prompt(rng, count):
    return rng.uniform(0, 256, (count, 2)).astype(np.float32), rng.integers(-2, 4, count).astype(np.float32)


@pytest.mark.parametrize(
    "count", [pytest.param(n, marks=pytest.mark.slow if n in (2, 3, 4, 5) else ()) for n in range(1, SLOTS + 1)]
)
def test_n_points_in_more_slots_equal_n_slots(bundles, decoder, rng, count):
    coords, labels = random_prompt(rng, count)
    padded = np.full((SLOTS, 2), 77.0, np.float32), np.full(SLOTS, EMPTY, np.float32)
    padded[0][:count], padded[1][:count] = coords, labels
    padded[0][count:] = rng.uniform(0, 256, (SLOTS - count, 2))  # whatever an empty slot holds must not matter
    session = onnxruntime.InferenceSession(str(bundles(points=count).part("mask_decoder")))
    embeddings = np.random.default_rng(7).standard_normal((1, 64, 16, 16)).astype(np.float32)
    feeds = {"image_embeddings": embeddings, "point_coords": coords[None], "point_labels": labels[None]}
    alone = session.run(["masks", "scores"], feeds)
    for ours, theirs in zip(decoder(*padded), alone, strict=True):
        assert theirs.std() > 0.05
        assert np.abs(ours - theirs).max() < TOLERANCE


def test_the_order_of_points_does_not_matter(decoder, rng):
    coords, labels = random_prompt(rng, SLOTS)
    shuffled = rng.permutation(SLOTS)
    for ours, theirs in zip(decoder(coords[shuffled], labels[shuffled]), decoder(coords, labels), strict=True):
        assert np.abs(ours - theirs).max() < TOLERANCE


def test_empty_slots_may_stand_anywhere(decoder, rng):
    coords, labels = random_prompt(rng, SLOTS)
    labels[[0, 3]] = EMPTY
    packed = np.argsort(labels == EMPTY, kind="stable")
    for ours, theirs in zip(decoder(coords[packed], labels[packed]), decoder(coords, labels), strict=True):
        assert np.abs(ours - theirs).max() < TOLERANCE


@pytest.mark.parametrize("code", [-2, -1, 0, 1, 2, 3])
def test_every_label_means_something_of_its_own(decoder, rng, code):
    coords, _ = random_prompt(rng, SLOTS)
    labels = np.full(SLOTS, EMPTY, np.float32)
    nothing, _ = decoder(coords, labels)
    labels[0] = code
    something, _ = decoder(coords, labels)
    assert np.abs(something - nothing).max() > 1e-2
    for other in {-2, -1, 0, 1, 2, 3} - {code}:
        labels[0] = other
        assert np.abs(decoder(coords, labels)[0] - something).max() > 1e-3, (code, other)


@pytest.mark.parametrize("batch", [3, pytest.param("dynamic", marks=pytest.mark.slow)])
def test_a_batch_equals_its_prompts_one_by_one(bundles, scene, rng, batch, monkeypatch):
    monkeypatch.setattr("edgesam_deploy.runtime.AT_ONCE", 2)
    predictor = open_predictor(bundles(batch=batch, mask_input=True).path)
    predictor.set_image(scene)
    points = rng.uniform(0, 180, (5, 2, 2))  # five prompts in chunks, the last filled up or smaller
    labels = rng.integers(0, 2, (5, 2))
    boxes = np.array([[10, 10, 100, 120 + i] for i in range(5)])
    masks = 5 * rng.standard_normal((5, 1, 64, 64)).astype(np.float32)
    together = predictor.predict_batch(points, labels, boxes, masks, 4, return_logits=True)
    for index in range(5):
        alone = predictor.predict(points[index], labels[index], boxes[index], masks[index], 4, return_logits=True)
        for ours, theirs in zip((t[index] for t in together), alone, strict=True):
            assert np.abs(ours - theirs).max() < TOLERANCE


def test_rows_of_a_batch_with_and_without_a_box(bundles, tiny_model, scene):
    points = [[[20, 30], [100, 90]], [[60, 60], [90, 20]]]
    labels = [[2, 3], [1, 0]]  # the first row is a box given as points: it gets no padding point, the second does
    for predictor in (open_predictor(bundles(batch=3, mask_input=True).path), SamPredictor(tiny_model)):
        predictor.set_image(scene)
        together = predictor.predict_batch(points, labels, return_logits=True)[0]
        box = predictor.predict(box=[20, 30, 100, 90], return_logits=True)[0]
        clicks = predictor.predict(points[1], labels[1], return_logits=True)[0]
        assert np.abs(together[0] - box).max() < TOLERANCE
        assert np.abs(together[1] - clicks).max() < TOLERANCE


def test_a_box_equals_its_corners_as_points(bundles, tiny_model, scene):
    for predictor in (open_predictor(bundles(points=SLOTS).path), SamPredictor(tiny_model)):
        predictor.set_image(scene)
        box = predictor.predict(box=[20, 30, 150, 120], return_logits=True)[0]
        corners = predictor.predict([[20, 30], [150, 120]], [2, 3], return_logits=True)[0]
        assert np.array_equal(box, corners)


def test_the_mask_flag_switches_each_row(bundles, rng):
    session = onnxruntime.InferenceSession(str(bundles(batch=3, mask_input=True).part("mask_decoder")))
    feeds = {
        "image_embeddings": rng.standard_normal((1, 64, 16, 16)).astype(np.float32),
        "point_coords": np.tile(rng.uniform(0, 256, (1, 6, 2)), (3, 1, 1)).astype(np.float32),
        "point_labels": np.ones((3, 6), np.float32),
        "mask_input": np.tile(5 * rng.standard_normal((1, 1, 64, 64)), (3, 1, 1, 1)).astype(np.float32),
        "has_mask_input": np.array([1, 0, 1], np.float32),
    }
    masks = session.run(["masks"], feeds)[0]
    assert np.abs(masks[0] - masks[2]).max() < TOLERANCE
    assert np.abs(masks[0] - masks[1]).max() > 0.1
    feeds["mask_input"] = np.zeros_like(feeds["mask_input"])
    assert np.abs(session.run(["masks"], feeds)[0][1] - masks[1]).max() < TOLERANCE  # ignored where the flag is 0


OPTIONS = {
    "dynamic points": {"points": "dynamic"},
    "dynamic both": {"points": "dynamic", "batch": "dynamic", "mask_input": True},
    "stability": {"scores": "stability"},
    "preprocessing inside": {"embed_preprocess": True},
    "edgesam": {"io": "edgesam"},
    "edgesam, fixed": {"io": "edgesam", "points": 5, "scores": "stability"},
    "sam": {"io": "sam"},
    "sam, fixed": {"io": "sam", "points": 5},
    "sam, single": {"io": "sam", "return_single_mask": True},
    "sam, single, fixed": {"io": "sam", "return_single_mask": True, "points": 4},
    "one slot": {"points": 1},
    "many slots": {"points": 17},
    "default": {},
}

# each of whose options another case has
JOINED = {
    "dynamic points",
    "sam, single",
    "stability",
    "edgesam, fixed",
    "sam, fixed",
    "sam, single, fixed",
    "many slots",
}
CASES = [
    pytest.param(options, id=name, marks=pytest.mark.slow if name in JOINED else ())
    for name, options in OPTIONS.items()
]


@pytest.mark.parametrize("options", CASES)
def test_every_option_passes_parity(bundles, options):
    bundle = bundles(**options)  # build itself measures, and raises where the artifact is not the model
    parity = bundle.read_json("parity.json")
    assert parity["verdict"] == "pass"
    assert parity["summary"]["cases"] >= 6


@pytest.mark.parametrize("opset", [18, *(pytest.param(n, marks=pytest.mark.slow) for n in (19, 21, 22, 23))])
def test_every_opset(bundles, opset):
    bundle = bundles(opset=opset)
    model = onnx.load(bundle.part("mask_decoder"))
    assert [(i.domain, i.version) for i in model.opset_import] == [("", opset)]
    assert bundle.read_json("parity.json")["verdict"] == "pass"


def test_onnx_runtimes_own_quantiser_takes_the_files(bundles, tmp_path):
    """It replaces weights, and the shapes that stand beside them would be untrue then."""
    for part in ("image_encoder", "mask_decoder"):
        file = bundles().part(part)
        model = onnx.load(file)
        assert not {v.name for v in model.graph.value_info} & {weight.name for weight in model.graph.initializer}
        quantize_dynamic(file, tmp_path / file.name)
        assert (tmp_path / file.name).stat().st_size < 0.7 * file.stat().st_size


def test_io_edgesam_is_what_its_apps_feed(bundles, rng):
    session = onnxruntime.InferenceSession(str(bundles(io="edgesam").part("mask_decoder")))
    assert [i.name for i in session.get_inputs()] == ["image_embeddings", "point_coords", "point_labels"]
    assert [o.name for o in session.get_outputs()] == ["scores", "masks"]
    for count in (1, 2, 9):
        feeds = {
            "image_embeddings": rng.standard_normal((1, 64, 16, 16)).astype(np.float32),
            "point_coords": rng.uniform(0, 256, (1, count, 2)).astype(np.float32),
            "point_labels": np.ones((1, count), np.float32),
        }
        scores, masks = session.run(None, feeds)
        assert scores.shape == (1, 4)
        assert masks.shape == (1, 4, 64, 64)


@pytest.mark.parametrize("size", [(180, 240), (500, 123), (40, 40)])
def test_io_sam_is_what_its_apps_feed(bundles, tiny_model, rng, size):
    session = onnxruntime.InferenceSession(str(bundles(io="sam").part("mask_decoder")))
    names = ["image_embeddings", "point_coords", "point_labels", "mask_input", "has_mask_input", "orig_im_size"]
    assert [i.name for i in session.get_inputs()] == names
    assert [o.name for o in session.get_outputs()] == ["masks", "iou_predictions", "low_res_masks"]
    feeds = {
        "image_embeddings": rng.standard_normal((1, 64, 16, 16)).astype(np.float32),
        "point_coords": rng.uniform(0, 256, (1, 2, 2)).astype(np.float32),
        "point_labels": np.array([[1, -1]], np.float32),
        "mask_input": np.zeros((1, 1, 64, 64), np.float32),
        "has_mask_input": np.zeros(1, np.float32),
        "orig_im_size": np.array(size, np.float32),
    }
    masks, _, low_res = session.run(None, feeds)
    assert masks.shape == (1, 4, *size)
    predictor = SamPredictor(tiny_model)
    predictor.set_image(np.zeros((*size, 3), np.uint8))
    assert np.abs(predictor.upscale(low_res) - masks).max() < TOLERANCE


def test_preprocessing_inside_zeroes_what_lies_outside(bundles, rng):
    session = onnxruntime.InferenceSession(str(bundles(embed_preprocess=True).part("image_encoder")))
    image = rng.integers(0, 256, (1, 256, 256, 3)).astype(np.uint8)
    inside = np.array([192, 256], np.float32)
    once = session.run(None, {"image": image, "image_size": inside})[0]
    image[:, 192:] = 124  # the caller's padding, whatever it is
    assert np.array_equal(session.run(None, {"image": image, "image_size": inside})[0], once)
    image[:, :192] //= 2
    assert not np.allclose(session.run(None, {"image": image, "image_size": inside})[0], once)


def test_the_default_decoder_is_clean(bundles):
    model = onnx.load(bundles().part("mask_decoder"))
    debris = {"Shape", "Gather", "OneHot", "Tile", "If", "Loop", "NonZero", "ConstantOfShape", "Range", "Expand"}
    assert not debris & {node.op_type for node in model.graph.node}
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    assert not {"Sin", "Cos"} & {n.op_type for n in model.graph.node if any(i.endswith("_folded") for i in n.input)}


def test_artifacts_carry_the_contract_and_nothing_of_the_machine(bundles):
    for part in ("image_encoder", "mask_decoder"):
        path = bundles().part(part)
        metadata = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
        assert {"contract", "license", "model", "weights", "part"} <= metadata.keys()
        assert "random" in metadata["weights"]
        assert b"/edgesam_deploy/" not in path.read_bytes()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"points": 0}, "--points"),
        ({"points": 2000}, "--points"),
        ({"batch": -1}, "--batch"),
        ({"io": "edgesam", "batch": 2}, "one prompt"),
        ({"io": "edgesam", "mask_input": True}, "no mask input"),
        ({"io": "other"}, "--io"),
        ({"scores": "best"}, "--scores"),
        ({"return_single_mask": True}, "--io sam"),
    ],
)
def test_options_that_do_not_go_together(options, words):
    with pytest.raises(UsageError, match=words):
        Interface(**options)


BAD_PROMPTS = {
    "nan": ({"point_coords": [[np.nan, 3]], "point_labels": [1]}, "NaN"),
    "labels missing": ({"point_coords": [[3, 3]]}, "belong together"),
    "labels of another length": ({"point_coords": [[3, 3]], "point_labels": [1, 0]}, "do not match"),
    "flat coordinates": ({"point_coords": [3, 3], "point_labels": [1]}, "shape"),
    "three coordinates": ({"point_coords": [[3, 3, 3]], "point_labels": [1]}, "shape"),
    "words": ({"point_coords": [["a", "b"]], "point_labels": [1]}, "numbers"),
    "no such label": ({"point_coords": [[3, 3]], "point_labels": [7]}, "label code"),
    "short box": ({"box": [1, 2, 3]}, "shape"),
    "too many points": ({"point_coords": [[3, 3]] * 6, "point_labels": [1] * 6}, "--points 7"),
    "mask input": ({"mask_input": np.zeros((1, 64, 64))}, "--mask-input"),
    "two masks": ({"num_multimask_outputs": 2}, "1, 3 or 4"),
}


@pytest.mark.parametrize(("prompt", "words"), BAD_PROMPTS.values(), ids=BAD_PROMPTS.keys())
def test_bad_prompts_are_refused(bundles, scene, prompt, words):
    predictor = open_predictor(bundles(points=SLOTS).path)
    predictor.set_image(scene)
    with pytest.raises(PromptError, match=words):
        predictor.predict(**prompt)


def test_prompting_without_a_picture(bundles, tiny_model):
    for predictor in (open_predictor(bundles().path), SamPredictor(tiny_model)):
        with pytest.raises(PromptError, match="set_image"):
            predictor.predict([[1, 1]], [1])
