"""eval from the command line, on a model and on a bundle."""

from __future__ import annotations

import json

import pytest
from command_line import DONE, ERROR, USAGE, edgesam_deploy
from conftest import TINY


def test_an_artifact_answers_as_its_model(scenes, bundles, tmp_path):
    """The same weights, seed 0: PyTorch's masks and the artifact's have the same IoU."""
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    asked = ["--data", scenes, "--multimask", "3", "--refine", "2", "--json"]
    model = edgesam_deploy("eval", "edge_sam", "--config", tmp_path / "config.json", *asked, "--out", tmp_path / "out")
    assert model.code == DONE, model.err
    assert "random weights" in model.err
    artifact = edgesam_deploy("eval", bundles().path, *asked)
    assert artifact.code == DONE, artifact.err
    ours, theirs = json.loads(model.out), json.loads(artifact.out)
    assert ours["miou"] == pytest.approx(theirs["miou"], abs=0.01)
    assert (ours["pictures"], len(ours["miou"])) == (3, 2)
    assert json.loads((tmp_path / "out/eval.json").read_text())["miou"] == ours["miou"]
    assert len(list((tmp_path / "out").glob("worst_*.png"))) == min(6, ours["masks"])
    table = edgesam_deploy("eval", bundles().path, "--data", scenes, "--samples", "1")
    assert "boundary mIoU" in table.out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--select", "luck"], USAGE, "--select luck: must be one of score"),
        (["--multimask", "2"], USAGE, "--multimask 2"),
        (["--layout", "coco"], ERROR, "instances_val2017.json"),
        (["--split", "test"], ERROR, "no picture of the layout"),
        (["--boxes", "none.json"], USAGE, "needs --layout coco"),
        (["--checkpoint", "x.pth"], USAGE, "is a bundle"),
    ],
)
def test_bad_input(scenes, bundles, arguments, code, words):
    found = edgesam_deploy("eval", bundles().path, "--data", scenes, *arguments)
    assert found.code == code
    assert words in found.words
    assert found.out == ""
