"""Telling which model and which layout a checkpoint is of, from names and shapes alone."""

from __future__ import annotations

import functools
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from edgesam_deploy.model.layouts import Recognised, recognise, wrong_model_message


@functools.cache
def layouts() -> dict[str, dict[str, list[int]]]:
    file = Path(__file__).parents[1] / "data" / "layouts.json.gz"
    return json.loads(gzip.decompress(file.read_bytes()))  # type: ignore[no-any-return]


@functools.cache
def layout(name: str) -> dict[str, Tensor]:
    return {key: torch.empty(shape, device="meta") for key, shape in layouts()[name].items()}


def encoder_of(name: str, prefix: str = "") -> dict[str, Tensor]:
    start = "image_encoder."
    return {prefix + k.removeprefix(start): t for k, t in layout(name).items() if k.startswith(start)}


@pytest.mark.parametrize(
    ("name", "model", "rep_layout"),
    [
        ("edge_sam", "edge_sam", "original"),
        ("edge_sam__dyt_fork", "edge_sam", "dyt_fork"),
        ("edge_sam_dyt", "edge_sam_dyt", "dyt_fork"),
        ("edge_sam_dyt_frozen_mask", "edge_sam_dyt_frozen_mask", "dyt_fork"),
        ("edge_sam_dyt_hq", "edge_sam_dyt_hq", "dyt_fork"),
        ("train_phase2_edge_sam_lora", "edge_sam", "original"),
        ("vit_b", "vit_b", None),
        ("vit_l", "vit_l", None),
        ("vit_h", "vit_h", None),
        ("sam_hq_vit_b", "sam_hq_vit_b", None),
        ("sam_hq_vit_l", "sam_hq_vit_l", None),
        ("sam_hq_vit_h", "sam_hq_vit_h", None),
        ("sam_hq_vit_tiny", "sam_hq_vit_tiny", None),
        ("cwsam_tiny", "cwsam", None),
        ("cwsam_vitb_10cls_1024", "cwsam", None),
        ("cwsam_moe3b_tiny", "cwsam_moe_3b", None),
        ("cwsam_moe3b_real_1024", "cwsam_moe_3b", None),
        ("cwsam_h10b_tiny", "cwsam_hierarchical_moe_10b", None),
    ],
)
def test_full_models(name: str, model: str, rep_layout: str | None) -> None:
    found = recognise(layout(name))
    assert (found.model, found.rep_layout, found.encoder_only, found.prefixed) == (model, rep_layout, False, True)


@pytest.mark.parametrize("prefix", ["", "image_encoder."])
@pytest.mark.parametrize(
    ("name", "model", "rep_layout", "neck"),
    [
        ("repvit_m1_fuse", "repvit_m1", "original", "fused neck"),
        ("repvit_m1_nofuse", "repvit_m1", "original", "last stage alone"),
        ("repvit_m2_fuse", "repvit_m2", "original", "fused neck"),
        ("repvit_m2_nofuse", "repvit_m2", "original", "last stage alone"),
        ("repvit_m3_fuse", "repvit_m3", "original", "fused neck"),
        ("repvit_m3_nofuse", "repvit_m3", "original", "last stage alone"),
        ("repvit_m1_dyt_fuse", "repvit_m1_dyt", "dyt_fork", "DyT"),
    ],
)
def test_image_encoders_alone(name: str, model: str, rep_layout: str, neck: str, prefix: str) -> None:
    found = recognise({prefix + key: tensor for key, tensor in layout(name).items()})
    assert (found.model, found.rep_layout, found.encoder_only) == (model, rep_layout, True)
    assert found.prefixed == bool(prefix)
    assert neck in found.note


@pytest.mark.parametrize("name", ["vit_b", "vit_h", "sam_hq_vit_tiny"])
def test_sams_encoders_alone(name: str) -> None:
    for prefix in ("", "image_encoder."):
        found = recognise(encoder_of(name, prefix))
        assert (found.model, found.encoder_only, found.prefixed) == (name, True, bool(prefix))


@pytest.mark.parametrize("size", ["m2", "m3"])
def test_larger_encoders_with_the_decoder(size: str) -> None:
    rest = {key: t for key, t in layout("edge_sam").items() if not key.startswith("image_encoder.")}
    encoder = {f"image_encoder.{key}": t for key, t in layout(f"repvit_{size}_fuse").items()}
    assert recognise(encoder | rest).model == f"edge_sam_{size}"


def without(name: str, *parts: str) -> dict[str, Tensor]:
    return {key: t for key, t in layout(name).items() if not any(part in key for part in parts)}


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (dict, "no model of this family"),
        (lambda: {"conv1.weight": torch.empty(1)}, "the names begin with conv1"),
        (lambda: without("edge_sam", "mask_decoder."), "without a mask decoder"),  # a fork's extract_weights.py
        (lambda: without("vit_b", "mask_decoder."), "without a mask decoder"),
        (lambda: without("edge_sam", "image_encoder."), "without an image encoder"),
        (lambda: without("edge_sam", "image_encoder.", "prompt_encoder."), "without an image encoder"),
        (lambda: {"iou_token.weight": torch.empty(1, 256)}, "without an image encoder"),
        (lambda: without("sam_hq_vit_tiny", "hf_", "compress", "embedding_"), "MobileSAM"),
        (lambda: {"vision_encoder.pos_embed": torch.empty(1)}, "Hugging Face transformers"),
        (lambda: without("repvit_m1_fuse", "neck", "fuse_") | {"classifier.l.weight": torch.empty(1)}, "ImageNet"),
        (lambda: without("edge_sam", "features.20"), "mask decoder"),
        (lambda: without("vit_b", "blocks.11."), "11 blocks"),
    ],
)
def test_what_has_no_name(make: Callable[[], dict[str, Tensor]], says: str) -> None:
    found = recognise(make())
    assert says in found.note
    if says != "mask decoder":  # a hole in the middle is strict loading's to find
        assert found.model is None


def test_notes_that_change_what_to_do() -> None:
    assert "14 LoRA pairs not merged" in recognise(layout("train_phase2_edge_sam_lora")).note
    with_head = layout("edge_sam") | {"rpn_head.conv.weight": torch.empty(1)}
    assert "region-proposal head" in recognise(with_head).note
    folded = without("edge_sam", "token_mixer.0.conv1.")
    assert recognise(folded).rep_layout is None
    assert "already folded" in recognise(folded).note
    smaller = layout("vit_b") | {"image_encoder.pos_embed": torch.empty(1, 32, 32, 768)}
    assert "for 512 pixels" in recognise(smaller).note
    assert recognise(layout("cwsam_vitb_10cls_1024")).note.endswith("dense MLPs, 10 classes")
    assert recognise(layout("cwsam_moe3b_real_1024")).note.endswith("16 experts, 33 classes")


@given(
    data=st.data(),
    name=st.sampled_from(["edge_sam_dyt_hq", "vit_b", "sam_hq_vit_tiny", "cwsam_moe3b_tiny"]),
)
def test_no_set_of_names_and_shapes_is_an_error(data: st.DataObject, name: str) -> None:
    names = st.sampled_from([*layout(name), "image_encoder.features.x.y", "image_encoder.blocks." + "9" * 5000, ""])
    shapes = st.lists(st.integers(0, 3), max_size=3)
    found = data.draw(st.dictionaries(names, shapes, max_size=20))
    assert recognise({key: torch.empty(shape, device="meta") for key, shape in found.items()}).note


def test_wrong_model_message() -> None:
    dyt, bare = recognise(layout("edge_sam_dyt")), recognise(layout("repvit_m1_fuse"))
    message = wrong_model_message(dyt, "edge_sam")
    assert message.startswith("this file looks like edge_sam_dyt (RepViT m1")
    assert message.endswith("build it with: edgesam-deploy build edge_sam_dyt --checkpoint ...")
    assert "--checkpoint w.pth" in wrong_model_message(dyt, "edge_sam", source="w.pth")
    assert "an image encoder alone" in wrong_model_message(bare, "edge_sam")
    assert "build repvit_m1 --checkpoint" in wrong_model_message(bare, "edge_sam")
    assert "build" not in wrong_model_message(recognise(encoder_of("vit_b")), "vit_b")
    assert "as asked, but does not fit" in wrong_model_message(dyt, "edge_sam_dyt")
    unknown = Recognised(None, None, False, False, "no model of this family")
    assert wrong_model_message(unknown, "edge_sam").startswith("this file is not edge_sam, nor another model")
