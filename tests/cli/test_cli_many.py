"""run on folders: from the command line."""

from __future__ import annotations

import json
import shutil

import pytest
from command_line import COFFEE, DONE, ERROR, HOPPER, USAGE, edgesam_deploy


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "pictures"
    place.mkdir()
    for path in (COFFEE, HOPPER):
        (place / path.name).write_bytes(path.read_bytes())
    return place


def test_a_folder_by_each_kind_of_prompt(bundles, folder, tmp_path):
    bundle = bundles().path
    prompts = {"coffee.jpg": [{"points": [[300, 190]]}, {"box": [100, 50, 500, 350]}], "hopper.jpg": []}
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    ways = {
        "file": ["--prompts", tmp_path / "prompts.json"],
        "point": ["--point", "90,90"],
        "regions": ["--boxes-from", "regions"],
    }
    for name, way in ways.items():
        found = edgesam_deploy("run", bundle, folder, *way, "-o", tmp_path / name, "--json")
        assert found.code == DONE, found.err
        results = json.loads((tmp_path / name / "results.json").read_text())
        assert len(results) == json.loads(found.out)["prompts"] >= 1
    again = edgesam_deploy("run", bundle, folder, "--point", "90,90", "-o", tmp_path / "point")
    assert "2 were done already" in again.out
    other = edgesam_deploy("run", bundle, folder, "--point", "91,90", "-o", tmp_path / "point")
    assert (other.code, "another run" in other.err) == (USAGE, True)
    shutil.copytree(folder, tmp_path / "others")
    elsewhere = edgesam_deploy("run", bundle, tmp_path / "others", "--point", "90,90", "-o", tmp_path / "point")
    assert (elsewhere.code, "another run" in elsewhere.err) == (USAGE, True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give prompts in one way"),
        (["--point", "1,1", "--boxes-from", "regions"], "give prompts in one way"),
        (["--boxes-from", "region"], "did you mean regions"),
        (["--point", "1,1", "--tiles"], "one picture at a time"),
        (["--point", "1,1", "--masks", "2"], "--masks 2"),
        (["--point", "1,1", "--masks", "0"], "--masks 0"),
    ],
)
def test_what_does_not_fit_is_said(bundles, folder, tmp_path, arguments, words):
    found = edgesam_deploy("run", bundles().path, folder, *arguments, "-o", tmp_path / "out")
    assert found.code == USAGE
    assert words in found.err
    assert not (tmp_path / "out").exists()


def test_a_picture_that_fails_is_told_at_the_end(bundles, folder, tmp_path):
    (folder / "cut.png").write_bytes(b"no picture")
    found = edgesam_deploy("run", bundles().path, folder, "--point", "90,90", "-o", tmp_path / "out")
    assert found.code == ERROR
    assert "1 picture failed" in found.err
    assert len(json.loads((tmp_path / "out" / "results.json").read_text())) == 2
