"""train and embed from the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from command_line import DONE, ERROR, USAGE, edgesam_deploy

from edgesam_deploy.distill.synthetic import synthesize
from edgesam_deploy.model.registry import load

sys.path.insert(0, str(Path(__file__).parents[1] / "distill"))
from tiny import CONFIG

RECIPE = """
[model]
name = "edge_sam"
config = {config}
[data]
root = "{{out}}/scenes"
synthetic = {{ count = 4, size = 64 }}
batch_size = 2
workers = 0
[objective]
kind = "masks"
dice = 1.0
[rates]
base = 1e-3
reference_batch = 0
[train]
epochs = 1
freeze = []
"""


def inline(value):
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{k} = {inline(v)}" for k, v in value.items()) + " }"
    return json.dumps(value)


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE.format(config=inline(CONFIG)))
    return path


def test_trained_and_not_trained_again(recipe, tmp_path):
    found = edgesam_deploy("train", recipe, "-o", tmp_path / "run", "--json", "--device", "cpu")
    assert found.code == DONE, found.err
    (row,) = json.loads(found.out)
    assert (row["status"], row["update"], row["total"]) == ("done", 2, 2)
    assert Path(row["model"]).is_file()
    assert "tiny 2/2 loss" in found.err
    again = edgesam_deploy("train", recipe, "-o", tmp_path / "run", "--device", "cpu")
    assert (again.code, again.out) == (DONE, "tiny: done before\n")
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config == CONFIG
    assert load("edge_sam", row["model"], config=config).weights.source == "checkpoint"


def test_lists_and_plans(recipe, tmp_path):
    listed = json.loads(edgesam_deploy("train", "--list", "--json").out)
    assert {"demo", "edge_sam_phase1", "edge_sam_phase2", "finetune"} <= listed.keys()
    assert all(listed.values())
    assert "edge_sam_phase1" in edgesam_deploy("train", "--list").out
    (plan,) = json.loads(edgesam_deploy("train", recipe, "--dry-run", "--set", "train.epochs=7").out)
    assert plan["train"]["epochs"] == 7
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["demo_", "--dry-run"], USAGE, "did you mean demo"),
        (["demo", "--set", "rates.base=-1"], USAGE, "rates.base"),
        (["demo", "--set", "nonsense"], USAGE, "must be section.key=value"),
        (["edge_sam_phase2", "--set", "teacher.checkpoint=none.pth"], ERROR, "none.pth"),
        (["--dry-run"], USAGE, "name a recipe"),
    ],
)
def test_bad_input(tmp_path, arguments, code, words):
    found = edgesam_deploy("train", *arguments, "-o", tmp_path / "run", "--device", "cpu")
    assert found.code == code, found.err
    assert words in found.words
    assert found.out == ""


def test_a_device_that_is_not_there(recipe, tmp_path):
    found = edgesam_deploy("train", recipe, "-o", tmp_path / "run", "--device", "cuda")
    if found.code != DONE:
        assert (found.code, "use --device cpu" in found.err) == (ERROR, True)


def test_embed(tmp_path):
    import torch

    list(synthesize(tmp_path / "scenes", count=3, size=64))
    model = load("edge_sam", seed=0, config=CONFIG)
    torch.save(model.state_dict(), tmp_path / "teacher.pth")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    arguments = ["embed", "edge_sam", "--data", tmp_path / "scenes", "--checkpoint", tmp_path / "teacher.pth"]
    arguments += ["--config", tmp_path / "config.json", "--device", "cpu", "--json"]
    for form, file in (("checked", "rank0-values.bin"), ("reference", "logits_top32_epoch0/rank0-values.bin")):
        for count in (3, 0):  # the second time there is nothing left to do
            found = edgesam_deploy(*arguments, "-o", tmp_path / form, "--format", form)
            assert found.code == DONE, found.err
            assert json.loads(found.out)["written by this rank"] == count
        assert (tmp_path / form / file).stat().st_size == 3 * (32 * 16 * 2 + 4 * (form == "reference"))
    assert edgesam_deploy(*arguments, "-o", tmp_path / "x", "--format", "zip").code == USAGE
    assert edgesam_deploy(*arguments[:4], "-o", tmp_path / "x").code == USAGE


def test_convert_joins_takes_apart_and_halves(tmp_path):
    student, sam = (load("edge_sam", seed=seed, config=CONFIG) for seed in (1, 2))
    torch.save({"model": student.image_encoder.state_dict()}, tmp_path / "ckpt_epoch_9.pth")
    torch.save(sam.state_dict(), tmp_path / "sam.pth")
    whole = tmp_path / "whole.safetensors"
    found = edgesam_deploy("convert", tmp_path / "ckpt_epoch_9.pth", "--decoder", tmp_path / "sam.pth", "-o", whole)
    assert found.code == DONE, found.err
    again = load("edge_sam", whole, config=CONFIG).state_dict()
    assert torch.equal(again["image_encoder.neck.0.weight"], student.state_dict()["image_encoder.neck.0.weight"])
    assert torch.equal(again["mask_decoder.iou_token.weight"], sam.state_dict()["mask_decoder.iou_token.weight"])
    part = tmp_path / "part.pth"
    found = edgesam_deploy("convert", whole, "--part", "prompt_encoder", "--bare", "--half", "-o", part, "--json")
    assert json.loads(found.out)["tensors"] == len(sam.prompt_encoder.state_dict())
    assert torch.load(part, weights_only=True)["no_mask_embed.weight"].dtype == torch.float16
    for code, options in (
        (USAGE, [whole, "-o", part]),  # exists
        (USAGE, [whole, "--bare", "-o", tmp_path / "x.pth"]),
        (USAGE, [whole, "--part", "head", "-o", tmp_path / "x.pth"]),
        (USAGE, [whole, "--part", "mask_decoder", "--decoder", whole, "-o", tmp_path / "x.pth"]),
        (USAGE, [whole, "-o", tmp_path / "x.onnx"]),
        (ERROR, [tmp_path / "ckpt_epoch_9.pth", "--part", "mask_decoder", "-o", tmp_path / "x.pth"]),
    ):
        assert edgesam_deploy("convert", *options).code == code, options
    assert not list(tmp_path.glob("*x.*"))


def test_a_run_of_the_reference_is_imported_once(recipe, tmp_path):
    """From after its first epoch of two, by the option; the same command then says that all is done."""
    network = load("edge_sam", seed=1, config=CONFIG)
    named = list(network.named_parameters())
    decay = [p for n, p in named if p.ndim > 1 and not n.endswith(".bias")]
    plain = [p for n, p in named if p.ndim <= 1 or n.endswith(".bias")]
    optimizer = torch.optim.AdamW([{"params": decay}, {"params": plain}])
    content = {"model": network.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 0}
    torch.save(content, tmp_path / "ckpt_epoch_0.pth")
    options = ("train", recipe, "--set", "train.epochs=2", "-o", tmp_path / "run", "--device", "cpu")
    found = edgesam_deploy(*options, "--import", tmp_path / "ckpt_epoch_0.pth")
    assert found.code == DONE, found.err
    assert "resumed at update 2 of 4" in found.err
    assert edgesam_deploy(*options, "--import", tmp_path / "ckpt_epoch_0.pth").out == "tiny: done before\n"
