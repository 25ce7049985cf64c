"""train and embed from the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
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
