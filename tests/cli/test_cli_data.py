"""data synthesize and data check from the command line."""

from __future__ import annotations

import json

from command_line import DONE, ERROR, USAGE, edgesam_deploy


def test_made_checked_damaged_checked(tmp_path):
    folder = tmp_path / "scenes"
    made = edgesam_deploy("data", "synthesize", folder, "--count", "4", "--size", "64", "--json")
    assert (made.code, json.loads(made.out)["pictures"]) == (DONE, 4)
    found = edgesam_deploy("data", "check", folder, "--json")
    assert found.code == DONE
    report = json.loads(found.out)
    assert (report["pictures"], report["broken"], report["odd"]) == (4, {}, {})
    (folder / "images/train/scene_000001.jpg").write_bytes(b"\xff\xd8\xff")
    (folder / "images/train/scene_000002.jpg").unlink()
    found = edgesam_deploy("data", "check", folder)
    assert found.code == ERROR
    assert "scene_000001" in found.out
    assert "annotations without a picture" in found.out
    assert "3 pictures" in found.out
    assert "1 broken, 1 odd" in found.out


def test_bad_arguments(tmp_path):
    assert edgesam_deploy("data", "synthesize", tmp_path, "--size", "5").code == USAGE
    assert edgesam_deploy("data", "check", tmp_path, "--layout", "imagenet").code == USAGE
    found = edgesam_deploy("data", "check", tmp_path / "none")
    assert (found.code, found.out) == (ERROR, "")
    assert "no such folder" in found.err
