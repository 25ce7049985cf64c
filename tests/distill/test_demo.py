"""The demonstration model that comes along: its masks are right on scenes that its training did not see."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from edgesam_deploy.distill.recipe import read_stages
from edgesam_deploy.distill.synthetic import Style, scene
from edgesam_deploy.errors import CheckpointError, UsageError
from edgesam_deploy.model.fetch import resolve, shipped_weights
from edgesam_deploy.model.predictor import SamPredictor
from edgesam_deploy.model.registry import load
from edgesam_deploy.model.sam import Sam
from edgesam_deploy.parity import model_of

SCENES = 6
PLAIN = Style(most=5, smallest=0.1, rings=0, covered=0.5)  # as its last stages saw


@pytest.fixture(scope="module")
def demo() -> Sam:
    model = load("edge_sam_demo")
    assert isinstance(model, Sam)
    return model


def test_masks_of_unseen_scenes_by_box(demo: Sam) -> None:
    """Mean IoU above 0.75 on a few pictures of a seed of their own; its card has the figure over many."""
    predictor, found = SamPredictor(demo), []
    for index in range(SCENES):
        drawn = scene(1234, "unseen", index, 256, PLAIN)
        predictor.set_image(drawn.image)
        for mask in drawn.masks:
            ys, xs = np.nonzero(mask)
            box = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
            answer = predictor.predict(box=box, num_multimask_outputs=1)[0][0]
            found.append((answer & mask).sum() / (answer | mask).sum())
    assert len(found) > 2 * SCENES
    assert np.mean(found) > 0.75


def test_it_is_small_and_says_where_it_comes_from(demo: Sam) -> None:
    path = shipped_weights("edge_sam_demo")
    assert path is not None
    assert path.stat().st_size < 8e6
    assert demo.weights.source == "checkpoint"
    assert demo.weights.checkpoint == "edge_sam_demo.safetensors"
    assert resolve("edge_sam_demo") == path
    figures = json.loads(path.with_suffix(".json").read_text())
    assert figures["student"]["box"]["miou"] > 0.8
    card = path.with_suffix(".md").read_text()
    assert f"| box | {figures['student']['box']['miou']:.4f} |" in card


def test_its_recipe_is_the_one_that_comes_along() -> None:
    """Who trains it again trains what was trained: the stages in the record are the recipe's."""
    path = shipped_weights("edge_sam_demo")
    assert path is not None
    recorded = json.loads(path.with_suffix(".json").read_text())["stages"]
    assert recorded == [stage.model_dump(mode="json") for stage in read_stages("demo")]


def test_a_bundle_of_it_is_checked_without_a_path(demo: Sam) -> None:
    """Its weights are here; those of an earlier release are not, and no other file is taken for them."""
    weights = {"source": "checkpoint", "checkpoint": "edge_sam_demo.safetensors", "sha256": demo.weights.sha256}
    made = {"name": "edge_sam_demo", "config": {}}
    again = model_of({"weights": weights, "model": made}, None)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in demo.state_dict().items())
    with pytest.raises(CheckpointError, match="build anew"):
        model_of({"weights": weights | {"sha256": "0" * 64}, "model": made}, None)
    with pytest.raises(UsageError, match="pass --checkpoint"):
        model_of({"weights": weights | {"checkpoint": "own.pth"}, "model": made}, None)


def test_a_seed_or_a_checkpoint_wins(demo: Sam, tmp_path: Path) -> None:
    random = load("edge_sam_demo", seed=0)
    assert random.weights.source == "seeded"
    torch.save(random.state_dict(), tmp_path / "own.pth")
    assert load("edge_sam_demo", tmp_path / "own.pth").weights.checkpoint == "own.pth"
    assert load("edge_sam").weights.source == "seeded"
    with pytest.raises(CheckpointError, match="does not fit"):
        load("edge_sam_demo", config={"mask_decoder": {"mlp_dim": 64}})
