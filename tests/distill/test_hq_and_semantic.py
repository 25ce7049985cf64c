"""The HQ stage on HQ-Seg-44K's layout, CWSAM's training on label pictures: formulas, what learns, what is refused."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny import CONFIG, recipe

from edgesam_deploy.distill.data.items import collate
from edgesam_deploy.distill.objectives_hq import fine_masks
from edgesam_deploy.distill.parallel import Ranks
from edgesam_deploy.distill.prompts import hq_prompts
from edgesam_deploy.distill.recipe import Model, read_stages
from edgesam_deploy.distill.synthetic import scene
from edgesam_deploy.distill.train import HQ_BRANCH, make_items, make_trainer
from edgesam_deploy.errors import CheckpointError, UsageError
from edgesam_deploy.model.cwsam.predictor import CwsamPredictor
from edgesam_deploy.model.registry import load
from edgesam_deploy.model.semantic_metrics import SemanticMetrics

ALONE = Ranks(0, 1, torch.device("cpu"))
HQ = {"model": {"name": "edge_sam_dyt_hq"}, "objective": {"bce": 1.0, "dice": 1.0, "iou": 0.0, "multimask": 1}}
CWSAM = json.loads((Path(__file__).parents[1] / "data" / "cwsam_configs.json").read_text())["cwsam_tiny"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Six pictures with the mask of one object each, as DIS5K has them."""
    root = tmp_path_factory.mktemp("pairs")
    for folder in ("im", "gt"):
        (root / "DIS5K" / folder).mkdir(parents=True)
    for index in range(6):
        drawn = scene(0, "hq", index, 96)
        largest = drawn.masks[drawn.masks.sum((1, 2)).argmax()]
        Image.fromarray(drawn.image).save(root / f"DIS5K/im/{index}.jpg", quality=95)
        Image.fromarray((largest * 255).astype(np.uint8)).save(root / f"DIS5K/gt/{index}.png")
    return root


def hq_recipe(pairs, **changes):
    data = {"layout": "pairs", "augment": "flip_scale"}
    frozen = read_stages("edge_sam_dyt_hq")[0].train
    train = {"freeze": list(frozen.freeze), "unfreeze": list(frozen.unfreeze), "frozen_statistics": True}
    tables = {**HQ, "data": data, "train": {"epochs": 6, **train}, "rates": {"base": 2e-2}}
    return recipe(pairs, kind="masks", **{**tables, "objective": {**HQ["objective"], "kind": "hq"}, **changes})


def test_only_the_branch_learns_and_it_does(pairs, tmp_path):
    trainer = make_trainer(hq_recipe(pairs), tmp_path, ALONE)
    before = {k: v.clone() for k, v in trainer.student.state_dict().items()}
    losses = []
    trainer.fit(lambda now: losses.append(now.loss))
    changed = {k for k, v in trainer.student.state_dict().items() if not torch.equal(v, before[k])}
    assert changed
    assert all(name.startswith(HQ_BRANCH) and "hf_token" not in name for name in changed)
    assert {name.split(".")[1] for name in changed} == {part.split(".")[1] for part in HQ_BRANCH} - {"hf_token"}
    assert np.mean(losses[-3:]) < np.mean(losses[:3])


def test_losses_are_the_exact_masks_and_the_teachers(pairs, tmp_path):
    teacher = load("edge_sam_dyt_hq", seed=3, config=CONFIG)
    torch.save(teacher.state_dict(), tmp_path / "teacher.pth")
    changes = {"teacher": {"name": "edge_sam_dyt_hq", "config": CONFIG, "checkpoint": str(tmp_path / "teacher.pth")}}
    objective = {**HQ["objective"], "kind": "hq", "temperature": 4.0}
    trainer = make_trainer(hq_recipe(pairs, **changes, objective=objective), tmp_path / "run", ALONE)
    batch = collate([trainer.items[i] for i in range(3)])
    terms, count = trainer.objective(batch, 5)
    prompts = hq_prompts(batch, 0, 5)
    with torch.no_grad():
        ours, theirs = (fine_masks(m, batch, prompts)[:, 0] for m in (trainer.student, teacher))
    rows = []
    for number, (logits, taught) in enumerate(zip(ours, theirs, strict=True)):
        picture = int(batch.owner[number])
        cells = torch.zeros(16, 16, dtype=torch.bool)
        height, width = (int(-(-side // 4)) for side in batch.sizes[picture])
        cells[:height, :width] = True
        cells &= F.interpolate(
            (torch.arange(64)[:, None] < batch.sizes[picture, 0]).float().mul(
                (torch.arange(64)[None] < batch.sizes[picture, 1]).float())[None, None],
            (16, 16), mode="bilinear",
        )[0, 0] > 0.5  # fmt: skip
        exact = F.avg_pool2d(batch.masks[number][None].float(), 4)[0] > 0.5
        for heat, target in ((1.0, exact), (4.0, taught > 0)):
            p, t = (logits / heat).sigmoid()[cells], target[cells].float()
            bce = -(t * p.log() + (1 - t) * (1 - p).log()).mean()
            rows.append((bce * heat**2, (1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)) * heat**2))
    wanted = torch.tensor(rows).view(-1, 2, 2).mean(0)
    assert count == len(batch.boxes)
    for place, name in (((0, 0), "bce"), ((0, 1), "dice"), ((1, 0), "taught bce"), ((1, 1), "taught dice")):
        assert float(terms[name]) == pytest.approx(float(wanted[place]), rel=1e-4), name


def test_prompts_of_the_hq_stage(scenes):
    """1 to 5 points inside, up to 5 beside, boxes for half of the updates; the largest numbers occur."""
    made = recipe(scenes, data={"max_prompts": 3})
    items = make_items(made, load("edge_sam", seed=0, config=CONFIG))
    batch = collate([items[0], items[1]])
    seen = Counter()
    for update in range(400):
        prompts = hq_prompts(batch, 7, update)
        seen["box"] += prompts.boxes is not None
        seen["alone"] += prompts.points is None
        if prompts.points is None:
            continue
        inside = prompts.labels == 1
        seen[f"{int(inside[0].sum())} in"] += 1
        seen[f"{int((prompts.labels[0] == 0).sum())} out"] += 1
        x, y = prompts.points.long().unbind(-1)
        hit = torch.stack([m[b, a] for m, a, b in zip(batch.masks, x, y, strict=True)])
        assert hit[inside].all()
        assert not hit[prompts.labels == 0].any()
        assert (prompts.points[0][inside[0]].unique(dim=0).shape[0]) == int(inside[0].sum())
    assert 150 < seen["box"] < 250
    assert 25 < seen["alone"] < 75  # an eighth
    assert {f"{n} in" for n in range(1, 6)} | {f"{n} out" for n in range(6)} <= seen.keys()
    fewer = [hq_prompts(batch, 7, update, fewer=True) for update in range(200)]
    assert max(int((p.labels[0] == 1).sum()) for p in fewer if p.labels is not None) == 4


def test_a_base_checkpoint_begins_the_hq_stage(pairs, tmp_path):
    """EdgeSAM-DyT's weights have no branch, which keeps its start; a branch of which a piece is missing is refused."""
    base = load("edge_sam_dyt", seed=1, config=CONFIG).state_dict()
    torch.save(base, tmp_path / "base.pth")
    said = []
    made = hq_recipe(pairs, model={**HQ["model"], "checkpoint": str(tmp_path / "base.pth")})
    student = make_trainer(made, tmp_path / "run", ALONE, said.append).student.state_dict()
    assert all(torch.equal(student[name], value) for name, value in base.items())
    assert any("tensors of the HQ branch keep theirs" in text for text in said)
    whole = load("edge_sam_dyt_hq", seed=1, config=CONFIG).state_dict()
    torch.save({k: v for k, v in whole.items() if "hf_mlp" not in k}, tmp_path / "base.pth")
    with pytest.raises(CheckpointError, match="hf_mlp"):
        make_trainer(made, tmp_path / "run", ALONE)
    with pytest.raises(UsageError, match="no high-quality branch"):
        make_trainer(hq_recipe(pairs, model={"name": "edge_sam"}), tmp_path / "run", ALONE)


# --- semantic --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def landcover(tmp_path_factory):
    """Four pictures, bright above a slanted line and dark below, with a strip that does not count; one bad label."""
    root = tmp_path_factory.mktemp("landcover")
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("bad", 2)):
        for folder in ("images", "labels"):
            (root / folder / split).mkdir(parents=True)
        for index in range(count):
            y, x = np.mgrid[:72, :90]
            labels = ((y + 0.5 * x) > rng.uniform(40, 80)).astype(np.uint8)
            image = np.where(labels[..., None] == 1, 60, 190) + rng.integers(-30, 30, (72, 90, 3))
            labels[:, :5] = 255
            labels[10, 10] = 7 if split == "bad" and index == 1 else labels[10, 10]
            Image.fromarray(image.astype(np.uint8)).save(root / f"images/{split}/{index}.png")
            Image.fromarray(labels).save(root / f"labels/{split}/{index}.png")
    return root


@pytest.mark.parametrize("kind", ["moe3b", "h10b"])
def test_experts_learn(landcover, tmp_path, kind):
    """What routes and what is routed to: both get gradients and move."""
    name = {"moe3b": "cwsam_moe_3b", "h10b": "cwsam_hierarchical_moe_10b"}[kind]
    config = json.loads((Path(__file__).parents[1] / "data" / "cwsam_configs.json").read_text())[f"cwsam_{kind}_tiny"]
    made = semantic_recipe(landcover, train={"epochs": 1, "freeze": []}, model={"name": name, "config": config})
    trainer = make_trainer(made, tmp_path, ALONE)
    before = {key: value.clone() for key, value in trainer.student.state_dict().items()}
    trainer.fit()
    moved = {key for key, value in trainer.student.state_dict().items() if not torch.equal(value, before[key])}
    assert any(("gate" in key or "router" in key) for key in moved)
    assert any(".experts." in key or "expert_shards" in key for key in moved)


def semantic_recipe(root, **changes):
    objective = {"kind": "semantic", "cross_entropy": 1.0, "bce": 0.0, "dice": 0.0, "iou": 0.0, "multimask": 1}
    tables = {
        "data": {"layout": "semantic"},
        "objective": objective,
        "train": {"epochs": 1},
        "rates": {"base": 2e-2},
    }
    model = Model(**{"name": "cwsam", "config": CWSAM, **changes.pop("model", {})})
    return recipe(root, **{**tables, **changes}).model_copy(update={"model": model})


def test_a_semantic_model_learns_its_classes(landcover, tmp_path):
    """With everything free, which is quicker from random weights than adapters alone."""
    trainer = make_trainer(semantic_recipe(landcover, train={"epochs": 24}), tmp_path, ALONE)
    trained = load("cwsam", trainer.fit().model, config=CWSAM)
    metrics = SemanticMetrics(trained.classes)
    source = trainer.items.source
    for index in range(len(source)):
        read = source.read(index, masks=False)
        metrics.add(labels=read.labels, predictions=CwsamPredictor(trained).predict(read.image).class_map)
    assert metrics.pixel_accuracy > 0.9


def test_in_the_encoder_only_what_the_recipe_names_learns(landcover, tmp_path):
    shipped = read_stages("cwsam")[0].train
    train = {"epochs": 1, "freeze": list(shipped.freeze), "unfreeze": list(shipped.unfreeze)}
    trainer = make_trainer(semantic_recipe(landcover, train=train), tmp_path, ALONE)
    before = {k: v.clone() for k, v in trainer.student.state_dict().items()}
    trainer.fit()
    changed = {k for k, v in trainer.student.state_dict().items() if not torch.equal(v, before[k])}
    inside = {name for name in changed if name.startswith("image_encoder.")}
    pieces = ("prompt_generator", "Adapter")
    assert {piece for piece in pieces for name in inside if piece in name} == set(pieces)
    assert all(any(piece in name for piece in pieces) for name in inside)
    assert any(name.startswith("mask_decoder.") for name in changed)


def test_cross_entropy_counts_labelled_pixels_by_class_weight(landcover, tmp_path):
    classes = CWSAM_CLASSES
    weights = [0.5 + 0.25 * k for k in range(classes)]
    objective = {"kind": "semantic", "cross_entropy": 1.0, "bce": 0.0, "dice": 0.0, "iou": 0.0, "multimask": 1}
    trainer = make_trainer(
        semantic_recipe(landcover, objective={**objective, "class_weights": weights}), tmp_path, ALONE
    )
    batch = collate([trainer.items[i] for i in range(2)])
    (loss,), count = trainer.objective(batch, 0)[0].values(), trainer.objective(batch, 0)[1]
    total, weight = 0.0, 0.0
    for image, labels in zip(batch.images, batch.labels, strict=True):
        with torch.no_grad():
            logits = trainer.student(image[None])[0].double()
        for label in labels.unique().tolist():
            if label == -100:
                continue
            here = labels == label
            error = logits.logsumexp(0)[here] - logits[label][here]
            total += weights[label] * float(error.sum())
            weight += weights[label] * int(here.sum())
    assert float(loss) == pytest.approx(total / weight, rel=1e-4)
    assert count == pytest.approx(weight, rel=1e-5)
    assert float((batch.labels == -100).float().mean()) == pytest.approx(5 / 90, abs=0.01)


def test_labels_that_are_no_class_are_counted_and_named(landcover, tmp_path):
    said = []
    data = {"layout": "semantic", "split": "bad"}
    outcome = make_trainer(
        semantic_recipe(landcover, data=data, train={"epochs": 1}), tmp_path, ALONE, said.append
    ).fit()
    assert outcome.progress.broken == 1
    assert any("label 7 is none of" in text for text in said)


def test_what_does_not_go_together_is_refused(landcover, scenes, tmp_path):
    with pytest.raises(UsageError, match="class_weights: 1 numbers"):
        objective = {"kind": "semantic", "cross_entropy": 1.0, "bce": 0, "dice": 0, "iou": 0, "class_weights": [1.0]}
        make_trainer(semantic_recipe(landcover, objective=objective), tmp_path, ALONE)
    with pytest.raises(UsageError, match="does not go with"):
        semantic_recipe(landcover, data={"layout": "sa1b"})
    with pytest.raises(UsageError, match="is not trained by"):
        make_trainer(semantic_recipe(landcover, model={"name": "edge_sam", "config": CONFIG}), tmp_path, ALONE)


CWSAM_CLASSES = load("cwsam", seed=0, config=CWSAM).classes
