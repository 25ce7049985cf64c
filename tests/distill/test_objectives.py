"""Objectives: a student that equals its teacher has nothing to learn; masks are learned; hooks see what is inside."""

from __future__ import annotations

import pytest
import torch
from tiny import CONFIG, recipe

from edgesam_deploy.distill import losses
from edgesam_deploy.distill.data.items import collate
from edgesam_deploy.distill.objectives import EncoderObjective, PromptObjective, embeddings_of
from edgesam_deploy.distill.taps import tapped
from edgesam_deploy.distill.train import copy_decoder, initialise, load_into, make_items, make_student
from edgesam_deploy.errors import CheckpointError, UsageError
from edgesam_deploy.model.registry import load


@pytest.fixture
def batch(scenes):
    made = recipe(scenes)
    items = make_items(made, make_student(made, None, lambda text: None))
    return collate([items[0], items[1]])


INSIDE = {"attention": 1.0, "feature": 1.0, "query": 1.0}


def test_a_twin_has_nothing_to_learn(scenes, batch):
    """Student and teacher with the same weights: every imitation is 0, and refinement finds no error to point at."""
    made = recipe(
        scenes,
        "decoder",
        objective={**INSIDE, "bce": 0, "dice": 0, "focal": 0, "iterations": 3, "iterate_on_box": True},
    )
    student, teacher = (load("edge_sam", seed=0, config=CONFIG) for _ in range(2))
    objective = PromptObjective(student, made, teacher, embeddings_of(teacher))
    for update in range(4):  # boxes and points
        terms, count = objective(batch, update)
        assert count == len(batch.boxes)
        assert set(terms) == {"iou", "attention", "feature", "query"}
        assert all(float(v) == pytest.approx(0, abs=1e-9) for v in terms.values())
    student = load("edge_sam", seed=1, config=CONFIG)
    terms, _ = PromptObjective(student, made, teacher, embeddings_of(teacher))(batch, 0)
    assert all(float(v) > 1e-6 for v in terms.values())


def test_the_terms_are_the_formulas(scenes, batch):
    """One box iteration, put together by hand from model and formulas."""
    made = recipe(scenes, "decoder", objective={"prompts": ["box"], "focal": 20.0, "pixel": 2.0})
    student, teacher = (load("edge_sam", seed=seed, config=CONFIG) for seed in (0, 1))
    terms, _ = PromptObjective(student, made, teacher, embeddings_of(teacher))(batch, 0)
    decoded, embeddings = {}, {}
    for name, model in (("student", student), ("teacher", teacher)):
        embeddings[name] = model.image_encoder(batch.images)
        masks, iou = [], []
        for number, owner in enumerate(batch.owner.tolist()):
            sparse, dense = model.prompt_encoder(None, batch.boxes[number : number + 1])
            pe = model.prompt_encoder.get_dense_pe()
            one = model.mask_decoder.predict_masks(embeddings[name][owner : owner + 1], pe, sparse, dense)
            masks.append(one[0][:, :1]), iou.append(one[1][:, :1])
        decoded[name] = torch.cat(masks), torch.cat(iou)
    valid = batch.valid(16)[batch.owner]
    target = (decoded["teacher"][0] > 0).float()
    logits = decoded["student"][0]
    wanted = {
        "pixel": 2 * losses.pixel_loss(embeddings["student"], embeddings["teacher"], batch.valid(4)),
        "bce": 5 * losses.bce_loss(logits, target, valid),
        "focal": 20 * losses.focal_loss(logits, target, valid),
        "dice": 5 * losses.dice_loss(logits, target, valid),
        "iou": losses.iou_loss(decoded["student"][1], decoded["teacher"][1]),
    }
    assert terms.keys() == wanted.keys()
    for name, value in wanted.items():
        assert float(terms[name]) == pytest.approx(float(value), rel=1e-4), name


def test_iterations_are_averaged(scenes, batch):
    once, thrice = (
        recipe(scenes, "decoder", objective={"prompts": ["point"], "iterations": n, "iou": 0, "dice": 0})
        for n in (1, 3)
    )
    student, teacher = (load("edge_sam", seed=seed, config=CONFIG) for seed in (0, 1))
    first, _ = PromptObjective(student, once, teacher, embeddings_of(teacher))(batch, 0)
    calls = []
    decode = PromptObjective._decode
    objective = PromptObjective(student, thrice, teacher, embeddings_of(teacher))
    objective._decode = lambda model, e, prompts, *rest: (
        calls.append(prompts) or decode(objective, model, e, prompts, *rest)
    )
    terms, _ = objective(batch, 0)
    assert [p.points.shape[1] for p in calls] == [1, 1, 2, 2, 3, 3]  # student and teacher, one more point each time
    assert float(terms["bce"]) != pytest.approx(float(first["bce"]))
    assert float(terms["bce"]) < 3 * float(first["bce"])


def test_a_box_is_one_iteration_and_one_mask_unless_told(scenes, batch):
    shapes = []
    for options in ({}, {"iterate_on_box": True, "multimask_on_box": True}):
        made = recipe(scenes, objective={"prompts": ["box"], "iterations": 2, **options})
        objective = PromptObjective(load("edge_sam", seed=0, config=CONFIG), made)
        decode = objective._decode
        seen = []
        objective._decode = lambda *a, seen=seen, decode=decode: seen.append(decode(*a)) or seen[-1]
        objective(batch, 0)
        shapes.append([d.masks.shape[1] for d in seen])
    assert shapes == [[1], [4, 4]]


def test_exact_masks_train_the_best_fitting_one(scenes, batch):
    made = recipe(scenes, objective={"prompts": ["point"], "dice": 0, "iou": 0})
    student = load("edge_sam", seed=0, config=CONFIG)
    terms, _ = PromptObjective(student, made)(batch, 0)
    valid, target = batch.valid(16)[batch.owner], (batch.masks_at(16) > 0.5).float()[:, None]
    labels = torch.ones(batch.points.shape[:2])
    sparse, dense = student.prompt_encoder((batch.points, labels))
    embeddings = student.image_encoder(batch.images)[batch.owner]
    masks, _ = student.mask_decoder.predict_masks(embeddings, student.prompt_encoder.get_dense_pe(), sparse, dense)
    iou = losses.mask_iou(masks, target.expand_as(masks), valid)
    best = torch.stack([masks[n, i] for n, i in enumerate(iou.argmax(1).tolist())])[:, None]
    assert float(terms["bce"]) == pytest.approx(float(5 * losses.bce_loss(best, target, valid)), rel=1e-5)


def test_point_rend(scenes, batch):
    made = recipe(scenes, objective={"prompts": ["box"], "multimask": 1, "point_rend": True})
    terms, _ = PromptObjective(load("edge_sam", seed=0, config=CONFIG), made)(batch, 0)
    assert all(torch.isfinite(v) for v in terms.values())
    assert {"bce", "dice"} <= terms.keys()


def test_encoder_objective_and_its_refusal(scenes, batch):
    made = recipe(scenes, "encoder", objective={"channel": 1.0, "correlation": 1.0})
    student, teacher = (load("edge_sam", seed=seed, config=CONFIG) for seed in (0, 1))
    terms, count = EncoderObjective(student, made, embeddings_of(teacher))(batch, 0)
    assert (set(terms), count) == ({"pixel", "channel", "correlation"}, 2)
    with pytest.raises(UsageError, match="give both the same image_size and embed_dim"):
        EncoderObjective(student, made, lambda batch: torch.zeros(2, 16, 4, 4))(batch, 0)


def test_the_teacher_is_no_part_of_it(scenes):
    teacher = load("edge_sam", seed=1, config=CONFIG)
    student = load("edge_sam", seed=0, config=CONFIG)
    objective = PromptObjective(student, recipe(scenes, "decoder"), teacher, embeddings_of(teacher))
    assert {name.split(".")[0] for name in objective.state_dict()} == {"student"}


def test_taps_see_what_attention_does(batch):
    model = load("edge_sam", seed=0, config=CONFIG)
    sparse, dense = model.prompt_encoder(None, batch.boxes[:1])
    pe = model.prompt_encoder.get_dense_pe()
    embeddings = model.image_encoder(batch.images[:1])
    with tapped(model.mask_decoder, attention=True, features=True) as taps:
        masks, _ = model.mask_decoder.predict_masks(embeddings, pe, sparse, dense)
    names = [f"{kind}_{layer}" for layer in (0, 1) for kind in ("t2t", "t2i", "i2t")]
    assert sorted(taps.attention) == sorted([*names, "t2i_final"])
    for probabilities in taps.attention.values():
        assert torch.allclose(probabilities.sum(-1), torch.ones(()), atol=1e-5)
    rebuilt = (taps.filters @ taps.features.flatten(2)).reshape(masks.shape)
    assert torch.allclose(rebuilt, masks, atol=1e-5)
    with tapped(model.mask_decoder) as taps:
        model.mask_decoder.predict_masks(embeddings, pe, sparse, dense)
    assert not taps.attention


def test_students_begin_as_they_are_told_to(scenes, tmp_path):
    said = []
    teacher = load("edge_sam", seed=1, config=CONFIG)
    made = recipe(scenes, "decoder", model={"from_teacher": True})
    student = make_student(made, teacher, said.append)
    assert torch.equal(student.mask_decoder.iou_token.weight, teacher.mask_decoder.iou_token.weight)
    again = make_student(made, teacher, said.append)
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), again.parameters(), strict=True))
    dyt = load("edge_sam_dyt", seed=2, config=CONFIG)
    copy_decoder(teacher, dyt, said.append)
    assert "norm1.alpha" in said[-1]
    assert torch.equal(
        dyt.mask_decoder.transformer.norm_final_attn.weight, teacher.mask_decoder.transformer.norm_final_attn.weight
    )
    encoder = load("repvit_m1", seed=5, config={k: v for k, v in CONFIG.items() if k != "mask_decoder"})
    torch.save(encoder.image_encoder.state_dict(), tmp_path / "phase1.pth")  # names without their part, as published
    load_into(student, str(tmp_path / "phase1.pth"), said.append)
    assert torch.equal(student.image_encoder.neck[0].weight, encoder.image_encoder.neck[0].weight)
    tensors = encoder.image_encoder.state_dict()
    del tensors["neck.0.weight"]
    torch.save(tensors, tmp_path / "part.pth")
    with pytest.raises(CheckpointError, match=r"image_encoder\.neck\.0\.weight is missing"):
        load_into(student, str(tmp_path / "part.pth"), said.append)
    torch.save({"unknown": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="does not fit"):
        load_into(student, str(tmp_path / "other.pth"), said.append)


def test_lora_can_move():
    config = {**CONFIG, "mask_decoder": {"mlp_dim": 32, "lora": 2}}
    model = load("edge_sam", seed=0, config=config)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            torch.nn.init.zeros_(parameter)
    initialise(model)
    attention = model.mask_decoder.transformer.layers[0].self_attn.q_proj
    attention(torch.ones(1, 32)).sum().backward()
    assert attention.lora_B.grad.abs().max() > 0
