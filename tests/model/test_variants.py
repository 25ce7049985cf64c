"""Checkpoints of each variant: taken where they belong, refused elsewhere with the name that would fit."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch
from conftest import FAMILY

from edgesam_deploy.errors import CheckpointError, UsageError
from edgesam_deploy.model.checkpoint import Checkpoint
from edgesam_deploy.model.configs import MODELS, model_config
from edgesam_deploy.model.cwsam.configs import CwsamConfig
from edgesam_deploy.model.registry import _fitted, load

DATA = Path(__file__).parents[1] / "data"
LAYOUTS = json.loads(gzip.decompress((DATA / "layouts.json.gz").read_bytes()))


def published(layout, *, encoder_only=False):
    """A checkpoint of this layout, its tensors without values: what it is shows in names and shapes."""
    tensors = {name: torch.empty(shape, device="meta") for name, shape in LAYOUTS[layout].items()}
    if encoder_only:
        start = "image_encoder."
        tensors = {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}
    return Checkpoint(tensors, Path(f"{layout}.pth"), "0" * 64, "flat")


OWN = {
    "edge_sam": "edge_sam", "edge_sam__dyt_fork": "edge_sam", "edge_sam_dyt": "edge_sam_dyt",
    "edge_sam_dyt_frozen_mask": "edge_sam_dyt_frozen_mask", "edge_sam_dyt_hq": "edge_sam_dyt_hq", "vit_b": "vit_b",
    "vit_l": "vit_l", "vit_h": "vit_h", "sam_hq_vit_b": "sam_hq_vit_b", "sam_hq_vit_l": "sam_hq_vit_l",
    "sam_hq_vit_h": "sam_hq_vit_h", "sam_hq_vit_tiny": "sam_hq_vit_tiny", "repvit_m1_fuse": "repvit_m1",
    "repvit_m1_dyt_fuse": "repvit_m1_dyt", "repvit_m2_fuse": "repvit_m2", "repvit_m3_fuse": "repvit_m3",
}  # fmt: skip


@pytest.mark.parametrize("layout", OWN)
def test_each_is_taken_by_its_own_name(layout):
    tensors, config = _fitted(published(layout), OWN[layout], model_config(OWN[layout]))
    assert len(tensors) == len(LAYOUTS[layout])
    if layout == "edge_sam__dyt_fork":
        assert config.image_encoder.rep_layout == "dyt_fork"


@pytest.mark.parametrize("layout", OWN)
@pytest.mark.parametrize("asked", [name for name, config in MODELS.items() if not isinstance(config, CwsamConfig)])
def test_and_refused_by_every_other_which_names_it(layout, asked):
    own = OWN[layout]
    if asked == own:
        return
    with pytest.raises(CheckpointError, match=f"build {own} --checkpoint"):
        _fitted(published(layout), asked, model_config(asked))


@pytest.mark.parametrize(
    ("layout", "words"), [("vit_h", "SAM's ViT, width 1280"), ("sam_hq_vit_tiny", "TinyViT"), ("edge_sam", "RepViT m1")]
)
def test_an_encoder_alone_is_no_model(layout, words):
    with pytest.raises(CheckpointError, match=f"image encoder alone .{words}.*needs a full checkpoint"):
        _fitted(published(layout, encoder_only=True), OWN[layout], model_config(OWN[layout]))


def test_an_encoder_alone_of_any_size(tmp_path):
    model = load("vit_b", seed=3, config=FAMILY["vit_b"])
    torch.save(model.image_encoder.state_dict(), tmp_path / "encoder.pth")
    with pytest.raises(CheckpointError, match="an image encoder alone"):
        load("vit_b", tmp_path / "encoder.pth", config=FAMILY["vit_b"])


@pytest.mark.parametrize("changes", [{"image_size": 256}, {"classes": 99}])
def test_a_size_that_is_not_the_checkpoints(tmp_path, changes):
    torch.save(load("cwsam", config=FAMILY["cwsam"]).state_dict(), tmp_path / "model.pth")
    assert load("cwsam", tmp_path / "model.pth").config == load("cwsam", config=FAMILY["cwsam"]).config
    with pytest.raises(CheckpointError, match=f"not {next(iter(changes.values()))}"):
        load("cwsam", tmp_path / "model.pth", config=changes)


def test_a_size_beside_the_authors_file():
    assert load("cwsam", config={**FAMILY["cwsam"], "image_size": 256}).image_size == 256


@pytest.mark.parametrize("asked", ["vit_b", "edge_sam", "cwsam"])
def test_cwsam_is_recognised(asked):
    with pytest.raises(CheckpointError, match="build cwsam_moe_3b --checkpoint"):
        _fitted(published("cwsam_moe3b_tiny"), asked, model_config(asked))


@pytest.mark.parametrize("name", FAMILY)
def test_a_checkpoint_goes_round(name, tmp_path):
    """Saved, loaded again, the same model; for cwsam the file tells its sizes but not how many experts are chosen."""
    model = load(name, seed=3, config=FAMILY[name])
    torch.save(model.state_dict(), tmp_path / "model.pth")
    again = load(name, tmp_path / "model.pth", config=FAMILY[name])
    assert again.weights.source == "checkpoint"
    assert again.config == model.config
    for (ours, a), (theirs, b) in zip(again.state_dict().items(), model.state_dict().items(), strict=True):
        assert ours == theirs
        assert torch.equal(a, b)


def test_expert_counts_come_from_the_checkpoint(tmp_path):
    model = load("cwsam_moe_3b", seed=3, config=FAMILY["cwsam_moe_3b"])
    torch.save(model.state_dict(), tmp_path / "model.pth")
    fewer = json.loads(json.dumps(FAMILY["cwsam_moe_3b"]))
    fewer["overrides_of_hardcoded"]["enc"]["moe_num_experts"] = 16
    again = load("cwsam_moe_3b", tmp_path / "model.pth", config=fewer)
    assert again.config.image_encoder.experts.count == model.config.image_encoder.experts.count == 6


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("vit_b", {"upsample": "bilinear"}, "no coarse features"),
        ("cwsam", {"upsample": "bicubic"}, "belongs to promptable models"),
        ("cwsam", {"gelu": "tanh"}, "belongs to promptable models"),
        ("vit_b", {"config": {"image_encoder": {"heads": 7}}}, "does not divide into 7 heads"),
        ("vit_b", {"config": {"image_encoder": {"global_blocks": ()}}}, "at least one"),
        ("vit_b", {"config": {"image_encoder": {"global_blocks": (12,)}}}, "from 0 to 11"),
        ("vit_b", {"config": {"image_encoder": {"patch": 8}}}, "patches of 16"),
        ("vit_b", {"config": {"image_encoder": {"window": 0}}}, "at least 1"),
        ("vit_b", {"config": {"mask_decoder": {"hq": "early"}}}, "late only"),
        ("vit_b", {"config": {"mask_decoder": {"mask_tokens": 3}}}, "mask_tokens 3"),
        ("vit_b", {"config": {"mask_decoder": {"gelu": "foo"}}}, "must be erf or tanh"),
        ("vit_b", {"config": {"mask_decoder": {"heads": 0}}}, "at least 1"),
        ("vit_b", {"config": {"image_encoder": {"global_blocks": ["a"]}}}, "expected int"),
        ("vit_b", {"config": [1]}, "expected a mapping"),
        ("edge_sam", {"config": {"image_encoder": {"channels": ["a", 8, 8, 8]}}}, "expected int"),
        ("sam_hq_vit_tiny", {"config": {"image_encoder": {"windows": [7, 7, 14.5, 7]}}}, "expected int"),
        ("sam_hq_vit_tiny", {"config": {"image_encoder": {"conv_expand": 0}}}, "at least 1"),
        ("edge_sam", {"config": {"mask_decoder": {"hq": "late"}}}, "early only"),
        ("sam_hq_vit_tiny", {"config": {"image_encoder": {"heads": (2, 3, 5, 10)}}}, "3 heads"),
        ("sam_hq_vit_tiny", {"config": {"image_encoder": {"depths": (2, 2)}}}, "four entries"),
    ],
)
def test_what_cannot_be_configured(name, options, words):
    with pytest.raises(UsageError, match=words):
        load(name, **options)
