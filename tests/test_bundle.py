"""Bundles: whole or not at all, verifiable, byte-identical."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from edgesam_deploy import bundle as bundling
from edgesam_deploy.bundle import draft, open_bundle, verify
from edgesam_deploy.errors import BundleError, OutputError
from edgesam_deploy.parity import seeded_scene


@pytest.fixture
def copy(bundles, tmp_path):
    return shutil.copytree(bundles().path, tmp_path / "copy")


def test_a_fresh_bundle_verifies(bundles):
    found = verify(bundles().path)
    integration = {f"integration/{name}" for name in ("README.md", "edgesam_deploy.hpp", "main.cpp")}
    papers = {"ops.json", "README.md", "WEIGHTS_LICENSE.md", "sbom.cdx.json"}
    assert {"encoder.onnx", "decoder.onnx", *papers, *integration} == set(found.manifest["files"])
    assert found.manifest["weights"] == {
        "source": "seeded", "seed": 0, "checkpoint": None, "sha256": None, "notes": [],
    }  # fmt: skip
    assert found.manifest["parts"]["mask_decoder"]["passes"][0]["name"] == "eliminate_identity"
    assert "random" in (found.path / "README.md").read_text()


@pytest.mark.parametrize("name", ["encoder.onnx", "ops.json", "README.md"])
def test_changed_files_are_named(copy, name):
    file = copy / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(BundleError, match=name):
        verify(copy)


def test_missing_added_and_cut_files_are_named(copy):
    (copy / "decoder.onnx").unlink()
    (copy / "encoder.onnx").write_bytes((copy / "encoder.onnx").read_bytes()[:100])
    (copy / "notes.txt").write_text("mine")
    with pytest.raises(BundleError) as e:
        verify(copy)
    for words in ("decoder.onnx: missing", "encoder.onnx: 100 bytes", "notes.txt: not part"):
        assert words in str(e.value)


def test_an_edited_manifest_is_noticed(copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["license"] = "public domain"
    (copy / "manifest.json").write_text(bundling.dump_json(manifest))
    with pytest.raises(BundleError, match="edited"):
        verify(copy)


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "no manifest"), ("{", "not readable"), ("[]", "not a manifest"), ('{"schema": 99}', "upgrade")],
)
def test_folders_that_are_no_bundle(tmp_path, content, words):
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(BundleError, match=words):
        open_bundle(tmp_path)


def test_a_newer_schema_is_refused(copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["schema"] = 99
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="upgrade"):
        open_bundle(copy)


def test_a_bundle_moved_aside_by_a_killed_build_comes_back(copy):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    copy.rename(copy.parent / f".copy.{gone.pid}.abcd.replaced")
    with pytest.raises(OutputError, match="--overwrite"), draft(copy):
        pass
    verify(copy)


def test_later_files_do_not_disturb_verification(copy):
    open_bundle(copy).write_json("bench.json", {"p50": 1.5})
    assert verify(copy).read_json("bench.json") == {"p50": 1.5}


def test_a_draft_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), draft(tmp_path / "out") as folder:
        (folder / "encoder.onnx").write_bytes(b"half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_overwriting_keeps_the_old_bundle_when_the_new_one_fails(copy):
    before = (copy / "manifest.json").read_bytes()
    with pytest.raises(RuntimeError), draft(copy, overwrite=True):
        raise RuntimeError
    assert (copy / "manifest.json").read_bytes() == before
    verify(copy)


def test_an_existing_bundle_needs_overwrite(copy):
    with pytest.raises(OutputError, match="--overwrite"), draft(copy):
        pass
    with draft(copy, overwrite=True) as folder:
        (folder / "manifest.json").write_text("{}")
    assert (copy / "manifest.json").read_text() == "{}"


@pytest.mark.parametrize("overwrite", [False, True])
def test_files_of_the_user_are_never_deleted(tmp_path, copy, overwrite):
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter1.tex").write_text("...")
    with pytest.raises(OutputError, match="not a bundle"), draft(thesis, overwrite=overwrite):
        pass
    assert (thesis / "chapter1.tex").exists()
    (copy / "notes.txt").write_text("mine")
    with pytest.raises(OutputError), draft(copy, overwrite=overwrite):
        pass
    assert (copy / "notes.txt").exists()


def test_a_full_disk(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match="no space"), draft(tmp_path / "out") as folder:
        monkeypatch.setattr("pathlib.Path.write_text", full)
        (folder / "x").write_text("")
    assert list(tmp_path.iterdir()) == []


def test_drafts_of_killed_builds_are_swept_and_of_running_ones_not(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    dead, alive = (tmp_path / f".out.{pid}.abcd.partial" for pid in (gone.pid, os.getpid()))
    dead.mkdir()
    alive.mkdir()
    with draft(tmp_path / "out") as folder:
        (folder / "manifest.json").write_text("{}")
    assert not dead.exists()
    assert alive.exists()


@pytest.mark.slow
def test_two_builds_are_byte_identical(tmp_path):
    """In two processes with other hash seeds, thread counts and folders."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import torch; torch.set_num_threads(int(sys.argv[3]))\n"
        "from conftest import TINY\n"
        "import edgesam_deploy as ed\n"
        "from edgesam_deploy.parity import seeded_scene\n"
        "model = ed.load('edge_sam', seed=0, config=TINY)\n"
        "ed.build(model, 'onnx', sys.argv[2], proof='off', points='dynamic', batch='dynamic',"
        " pictures={'s': seeded_scene(3)})\n"
    )
    folders = [tmp_path / "a" / "onnx", tmp_path / "b" / "deeper" / "onnx"]
    tests = os.path.dirname(__file__)
    for index, folder in enumerate(folders):
        env = {**os.environ, "PYTHONHASHSEED": str(index + 1)}
        subprocess.run([sys.executable, "-c", script, tests, str(folder), str(index + 1)], env=env, check=True)
    manifests = [(folder / "manifest.json").read_bytes() for folder in folders]
    assert manifests[0] == manifests[1]
    for folder in folders:
        verify(folder)


def test_seeded_scenes_repeat():
    assert (seeded_scene(4) == seeded_scene(4)).all()
