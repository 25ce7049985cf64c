"""The networks beside the golden files: every published layout's names and order, variants, sizes, exact rewrites."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY

from edgesam_deploy.errors import PromptError, UnknownName, UsageError
from edgesam_deploy.model.configs import model_config, override
from edgesam_deploy.model.predictor import SamPredictor
from edgesam_deploy.model.registry import load, sam_model_registry
from edgesam_deploy.model.sam import Sam
from edgesam_deploy.model.seeded import seeded_state

LAYOUTS = json.loads(gzip.decompress((Path(__file__).parents[1] / "data" / "layouts.json.gz").read_bytes()))
FORK = {"image_encoder": {"rep_layout": "dyt_fork"}}
NO_FUSE = {"image_encoder": {"fuse": False}}
CASES = {
    "edge_sam": ("edge_sam", {}),
    "edge_sam__dyt_fork": ("edge_sam", FORK),
    "repvit_m1_fuse": ("repvit_m1", {}),
    "repvit_m2_fuse": ("repvit_m2", {}),
    "repvit_m3_fuse": ("repvit_m3", {}),
    "repvit_m1_nofuse": ("repvit_m1", NO_FUSE),
    "repvit_m2_nofuse": ("repvit_m2", NO_FUSE),
    "repvit_m3_nofuse": ("repvit_m3", NO_FUSE),
}


@pytest.mark.parametrize("layout", CASES)
def test_names_shapes_and_order_are_the_published_ones(layout):
    name, changes = CASES[layout]
    with torch.device("meta"):
        state = Sam(override(model_config(name), changes), name).state_dict()
    prefix = "" if "mask_decoder.iou_token.weight" in state else "image_encoder."
    ours = [(key.removeprefix(prefix), list(value.shape)) for key, value in state.items()]
    assert ours == list(LAYOUTS[layout].items())


def to_fork(state):
    """The original layout written in the fork's: its 1x1 takes its norm's scale, the outer norm is the identity."""
    result = {}
    for key, value in state.items():
        if ".conv1.bn." in key:
            continue
        if ".conv1.c.weight" not in key:
            result[key] = value
            continue
        pair = key.removesuffix(".conv1.c.weight")
        gain, bias, mean, var = (
            state[f"{pair}.conv1.bn.{leaf}"] for leaf in ("weight", "bias", "running_mean", "running_var")
        )
        scale = gain / torch.sqrt(var + 1e-5)
        result[f"{pair}.conv1.weight"] = value * scale[:, None, None, None]
        result[f"{pair}.conv1.bias"] = bias - mean * scale
        result[f"{pair}.bn.weight"], result[f"{pair}.bn.bias"] = torch.ones_like(gain), torch.zeros_like(gain)
        result[f"{pair}.bn.running_mean"] = torch.zeros_like(gain)
        result[f"{pair}.bn.running_var"] = torch.full_like(gain, 1 - 1e-5)
        result[f"{pair}.bn.num_batches_tracked"] = torch.tensor(0)
    return result


@pytest.mark.parametrize("wrapper", ["flat", "model"])
def test_both_layouts_of_the_depthwise_pair_load_and_agree(tiny_model, tmp_path, scene, wrapper):
    fork = to_fork(tiny_model.state_dict())
    path = tmp_path / "fork.pth"
    torch.save(fork if wrapper == "flat" else {"model": fork}, path)
    loaded = load("edge_sam", path, config=TINY)
    assert loaded.config.image_encoder.rep_layout == "dyt_fork"
    ours, theirs = (SamPredictor(m).set_image(scene) for m in (loaded, tiny_model))
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_an_encoder_alone_loads_with_and_without_prefix(tiny_model, tmp_path, scene):
    config = {key: value for key, value in TINY.items() if key != "mask_decoder"}
    encoder = tiny_model.image_encoder.state_dict()
    expected = SamPredictor(tiny_model).set_image(scene)
    for index, prefix in enumerate(("", "image_encoder.")):
        path = tmp_path / f"{index}.pth"
        torch.save({"model": {prefix + key: value for key, value in encoder.items()}}, path)
        model = load("repvit_m1", path, config=config)
        assert not model.promptable
        assert torch.equal(SamPredictor(model).set_image(scene), expected)


@pytest.mark.parametrize("size", [512, 576])
def test_other_image_sizes(size):
    model = load("edge_sam", config={"image_size": size})
    predictor = SamPredictor(model)
    features = predictor.set_image(np.zeros((30, 70, 3), np.uint8))
    assert features.shape == (1, 256, size // 16, size // 16)
    masks, scores, low_res = predictor.predict([[3, 4]], [1], num_multimask_outputs=4)
    assert (masks.shape, scores.shape, low_res.shape) == ((4, 30, 70), (4,), (4, size // 4, size // 4))


@pytest.mark.parametrize("count", [1, 3, 4])
def test_mask_counts_are_slices_of_the_four(tiny_model, scene, count):
    predictor = SamPredictor(tiny_model)
    predictor.set_image(scene)
    every = predictor.predict([[30, 40]], [1], num_multimask_outputs=4, return_logits=True)
    some = predictor.predict([[30, 40]], [1], num_multimask_outputs=count, return_logits=True)
    chosen = {4: slice(None), 3: slice(1, None), 1: slice(0, 1)}[count]
    for all_of_it, part in zip(every, some, strict=True):
        assert np.array_equal(all_of_it[chosen], part)


def test_a_mask_count_that_does_not_exist(tiny_model):
    blank = torch.zeros(1, 64, 16, 16)
    with pytest.raises(PromptError, match="1, 3 or 4"):
        tiny_model.mask_decoder(blank, blank, torch.zeros(1, 1, 64), blank, num_multimask_outputs=2)


def test_stability_scores_replace_predicted_iou(tiny_model, scene):
    predictor = SamPredictor(tiny_model)
    predictor.set_image(scene)
    _, scores, low_res = predictor.predict([[30, 40]], [1], use_stability_score=True)
    for score, logits in zip(scores, low_res, strict=True):
        assert score == pytest.approx((logits > 1).sum() / max((logits > -1).sum(), 1))


def test_sam_forward_equals_the_predictor(tiny_model, scene):
    predictor = SamPredictor(tiny_model)
    predictor.set_image(scene)
    masks, scores, _ = predictor.predict([[30, 40]], [1], num_multimask_outputs=3)
    resized = torch.from_numpy(predictor.preprocess(scene))
    height, width = predictor.input_size
    pixels = resized[0, :, :height, :width] * tiny_model.pixel_std + tiny_model.pixel_mean
    record = {
        "image": pixels,
        "original_size": scene.shape[:2],
        "point_coords": torch.tensor([[[30.0, 40.0]]]) * 256 / 240,
        "point_labels": torch.ones(1, 1),
    }
    result = tiny_model([record], num_multimask_outputs=3)[0]
    assert (result["masks"][0].numpy() != masks).mean() < 1e-3
    assert np.allclose(result["iou_predictions"][0].numpy(), scores, atol=1e-4)


def test_bgr_pictures_are_flipped(tiny_model, scene):
    predictor = SamPredictor(tiny_model)
    assert torch.equal(predictor.set_image(scene), predictor.set_image(scene[..., ::-1], image_format="BGR"))


def test_seeded_weights_are_the_same_for_ever_and_nothing_is_neutral(tiny_model):
    state = tiny_model.state_dict()
    again = seeded_state({key: tuple(value.shape) for key, value in state.items()}, seed=0)
    assert all(torch.equal(state[key], again[key]) for key in state)
    assert float(state["image_encoder.neck.2.weight"].sum()) == pytest.approx(-6.4107, abs=1e-3)
    for key, value in state.items():
        assert value.abs().sum() > 0, key
    other = load("edge_sam", seed=1, config=TINY).state_dict()
    assert not torch.equal(state["image_encoder.neck.2.weight"], other["image_encoder.neck.2.weight"])


def test_the_registry_people_know(tmp_path, tiny_model):
    assert "default" in sam_model_registry
    assert len(sam_model_registry) == len(list(sam_model_registry))
    path = tmp_path / "w.pth"
    torch.save(tiny_model.state_dict(), path)
    model = sam_model_registry["edge_sam"](checkpoint=path, config=TINY)
    assert torch.equal(model.mask_decoder.iou_token.weight, tiny_model.mask_decoder.iou_token.weight)
    with pytest.raises(UnknownName):
        sam_model_registry["edge_sma"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"upsample": "nearest"}, "upsample"),
        ({"gelu": "quick"}, "gelu"),
        ({"config": {"image_size": 1000}}, "multiple of 64"),
        ({"config": {"image_sise": 1024}}, "no field"),
        ({"config": {"image_encoder": {"channels": (1, 2, 3, 4)}}}, "multiple of 8"),
        ({"config": {"image_encoder": 3}}, "mapping"),
        ({"config": {"embed_dim": 128}}, "embed_dim"),
        ({"checkpoint": "x.pth", "seed": 1}, "not both"),
    ],
)
def test_options_of_load_that_cannot_be(options, words):
    with pytest.raises(UsageError, match=words):
        load("edge_sam", **options)


def test_gelu_and_upsample_change_what_they_name_and_nothing_else():
    plain, tanh = (load("edge_sam", config=TINY, gelu=g) for g in ("erf", "tanh"))
    kinds = {m.approximate for m in tanh.modules() if isinstance(m, torch.nn.GELU)}
    assert kinds == {"tanh", "none"}  # the prompt encoder keeps the exact one
    assert tanh.prompt_encoder.mask_downscaling[2].approximate == "none"
    assert plain.in_own_form() is None
    assert tanh.in_own_form().config == plain.config
