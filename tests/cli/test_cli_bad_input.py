"""Whatever is wrong with what is given: a message that names it and the next step, the exit code, and nothing left.

One file, above the usual length: one look shows every kind of wrong input, whatever the command.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from command_line import (
    COFFEE,
    DONE,
    ERROR,
    HOPPER,
    MISSING,
    PARITY,
    UNSUPPORTED,
    USAGE,
    contents,
    edgesam_deploy,
    subprocess_of,
    tmpfs,
)
from conftest import TINY
from PIL import Image
from scenes import picture

from edgesam_deploy import parity
from edgesam_deploy.builder import build
from edgesam_deploy.bundle import draft, write_manifest
from edgesam_deploy.cli.results import results
from edgesam_deploy.errors import OutputError
from edgesam_deploy.model import configs, fetch
from edgesam_deploy.model.configs import override
from edgesam_deploy.model.registry import load
from edgesam_deploy.parity import seeded_scene
from edgesam_deploy.runtime import open_predictor

TRACEBACK = "Traceback"


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A working folder of the test's own, and a cache in it that is empty."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGESAM_DEPLOY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetch, "_in_hub_cache", lambda _: None)
    return tmp_path


TINY_ENCODER = {key: value for key, value in TINY.items() if key != "mask_decoder"}


@pytest.fixture
def tiny_repvit(monkeypatch):
    """The name repvit_m1 builds a tiny encoder, in this process, measured on one small picture."""
    monkeypatch.setattr(parity, "shipped_pictures", lambda: {"scene": picture(150, 225, 10)})
    monkeypatch.setitem(configs.MODELS, "repvit_m1", override(configs.MODELS["repvit_m1"], TINY_ENCODER))


def refused(code, words, *arguments):
    """Run a command that must fail with ``code`` and say all of ``words``, and leave every file as it was."""
    before = contents(Path.cwd())
    found = edgesam_deploy(*arguments)
    assert found.code == code, found.err
    assert TRACEBACK not in found.err
    for word in words:
        assert word in found.words
    assert contents(Path.cwd()) == before
    return found


# --- names and options -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["build", "edg_sam"], ["model 'edg_sam'", "did you mean edge_sam"]),
        (["build", "resnet"], ["model 'resnet'", "known: ", "edge_sam"]),
        (["build", "edge_sam", "--target", "onxx"], ["target 'onxx'", "did you mean onnx"]),
        (["build", "edge_sam", "--checkpoint", "edge_sam_3"], ["'edge_sam_3'", "did you mean edge_sam_3x"]),
        (["build", "edge_sam", "--dump-after", "fold_norm"], ["pass 'fold_norm'", "did you mean fold_batch_norm"]),
        (["passes", "fold_norm"], ["pass 'fold_norm'", "did you mean fold_batch_norm"]),
        (["passes", "--target", "tflight"], ["target 'tflight'", "did you mean tflite"]),
        (["fetch", "edgesam3x"], ["checkpoint 'edgesam3x'", "did you mean edge_sam_3x"]),
        (["fetch"], ["--list"]),
        (["frobnicate"], ["No such command 'frobnicate'"]),
        (["build", "edge_sam", "--image_size", "512"], ["--image_size", "--image-size"]),
        (["build", "edge_sam", "--points", "0"], ["--points 0", "1 to 1024", "dynamic"]),
        (["build", "edge_sam", "--points", "-3"], ["--points -3", "1 to 1024"]),
        (["build", "edge_sam", "--points", "abc"], ["--points abc", "a number or 'dynamic'"]),
        (["build", "edge_sam", "--points", "2000"], ["--points 2000", "1 to 1024"]),
        (["build", "edge_sam", "--batch", "1.5"], ["--batch 1.5", "a number or 'dynamic'"]),
        (["build", "edge_sam", "--opset", "12"], ["--opset 12", "18 to 23"]),
        (["build", "edge_sam", "--opset", "24"], ["--opset 24", "18 to 23"]),
        (["build", "edge_sam", "--opset", "new"], ["--opset new", "a number"]),
        (["build", "edge_sam", "--scores", "best"], ["--scores best", "iou", "stability"]),
        (["build", "edge_sam", "--precision", "int4"], ["--precision int4", "fp32"]),
        (["build", "edge_sam", "--io", "sam-hq"], ["--io sam-hq", "contract", "edgesam", "sam"]),
        (["build", "edge_sam", "--proof", "half"], ["--proof", "'half'", "'fast'"]),
        (["build", "edge_sam", "--upsample", "cubic"], ["upsample", "'cubic'", "bicubic or bilinear"]),
        (["build", "edge_sam", "--gelu", "relu"], ["gelu", "'relu'", "erf or tanh"]),
        (["build", "edge_sam", "--image-size", "1000"], ["image_size 1000", "multiple of 64"]),
        (["build", "edge_sam", "--image-size", "0"], ["image_size 0", "multiple of 64"]),
        (["build", "edge_sam", "--image-size", "big"], ["--image-size", "valid integer"]),
        (["build", "edge_sam", "--seed", "1", "--checkpoint", "x.pth"], ["--seed", "--checkpoint"]),
        (["build", "edge_sam", "--io", "edgesam", "--batch", "2"], ["--io edgesam", "--batch"]),
        (["build", "edge_sam", "--io", "edgesam", "--mask-input"], ["--io edgesam", "--io sam"]),
        (["build", "edge_sam", "--return-single-mask"], ["--return-single-mask", "--io sam"]),
        (["build", "edge_sam", "--target", "tensorrt", "--precision", "bf16", "--auto-mixed"], ["nothing to mix"]),
        (["build", "edge_sam", "--quantize", "some"], ["--quantize some", "all or auto"]),
        (["build", "edge_sam", "--min-iou", "0.9"], ["--min-iou", "--quantize auto"]),
        (["build", "edge_sam", "--target", "onnx", "--quantize", "auto"], ["onnx cannot keep single layers"]),
        (["build", "edge_sam", "--target", "tensorrt", "--quantize", "auto"], ["--precision fp16 quantises nothing"]),
        (["build", "edge_sam", "--target", "tensorrt", "--keep", "a:b"], ["--keep", "takes none"]),
        (["optimize", "x.onnx", "-o", "y.onnx", "--precision", "fp16"], ["--precision fp16", "for onnx it is fp32"]),
        (["ranges", "edg_sam"], ["model 'edg_sam'", "did you mean edge_sam"]),
        (["ranges", "edge_sam", "--target", "cormel"], ["target 'cormel'", "did you mean coreml"]),
        (["ranges", "edge_sam", "--images", "nowhere"], ["--images nowhere", "not a folder"]),
        (["ranges", "edge_sam", "--images", "."], ["--images .", "no picture in it could be read"]),
        (["ranges", "edge_sam", "--seed", "1", "--checkpoint", "x.pth"], ["--seed", "--checkpoint"]),
        (["ranges", "edge_sam", "--image-size", "1000"], ["image_size 1000", "multiple of 64"]),
        (["ranges", "edge_sam", "--out", "."], ["--out .", "is a folder"]),
        (["bench", ".", "--runs", "0"], ["--runs", "greater than or equal to 1"]),
        (["bench", ".", "--runs", "3", "--seconds", "1"], ["--runs and --seconds exclude each other"]),
        (["bench", ".", "--fail-on", "10%"], ["--fail-on 10%", "--compare"]),
        (["bench", ".", "--compare", "none.json"], ["--compare none.json", "No such file"]),
        (["bench", ".", "--points", "1,x"], ["--points 1,x", "such as 1,2,5"]),
        (["bench", ".", "--prompts", "4,4"], ["--prompts 4,4", "different numbers from 1 to 1024"]),
        (["ops", "missing.onnx"], ["missing.onnx", "give one of .onnx, .tflite, .mlpackage, the folder of a bundle"]),
        (["ops", "--fail-on", "sometimes", "x.onnx"], ["--fail-on sometimes", "unsupported or partial"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)  # fmt: skip
def test_names_and_options(arguments, words):
    refused(USAGE, words, *arguments)


def test_ranges_that_cannot_be_kept_are_refused_before_anything_is_run(place, monkeypatch):
    monkeypatch.setattr("edgesam_deploy.model.registry.load", lambda *_, **__: pytest.fail("it went on"))
    (place / "file").write_text("x")
    refused(USAGE, ["file/ranges.json", "file", "not a folder"], "ranges", "edge_sam", "-o", "file/ranges.json")
    assert [path.name for path in place.iterdir()] == ["file"]


def test_ranges_of_a_file_that_is_no_checkpoint(place):
    (place / "weights.pth").write_bytes(b"garbage" * 100)
    refused(ERROR, ["weights.pth"], "ranges", "edge_sam", "--checkpoint", "weights.pth", "-o", "r.json")
    assert not (place / "r.json").exists()


@pytest.mark.parametrize("command", ["verify", "check", "bench"])
def test_a_folder_that_is_no_bundle(place, command):
    (place / "empty").mkdir()
    (place / "manifest.json").write_text("{}")
    refused(ERROR, ["manifest.json is not a bundle", "the folder that it lies in"], command, "manifest.json")
    refused(ERROR, ["missing is not a bundle", "no such folder"], command, "missing")
    refused(ERROR, ["empty is not a bundle", "no manifest.json"], command, "empty")


# --- checkpoints -----------------------------------------------------------------------------------------------------


class Hostile:
    def __reduce__(self):
        return os.system, ("touch owned",)


@pytest.fixture(scope="module")
def encoder_file(tmp_path_factory):
    """A published layout: an image encoder's checkpoint, {'model': ...}."""
    path = tmp_path_factory.mktemp("checkpoints") / "repvit_m1.pth"
    state = {key.removeprefix("image_encoder."): value for key, value in load("repvit_m1").state_dict().items()}
    torch.save({"model": state}, path)
    return path


def truncated(path, source):
    path.write_bytes(source.read_bytes()[:100_000])


def hostile(path, _):
    torch.save({"model": {"weight": torch.zeros(1)}, "extra": Hostile()}, path)


def hostile_raw(path, _):
    path.write_bytes(pickle.dumps(Hostile(), protocol=2))


def other_sizes(path, _):
    torch.save(load("edge_sam", config=TINY).state_dict(), path)


CHECKPOINTS = {
    "missing": (None, ["x.pth: no such file"]),
    "empty": (lambda path, _: path.write_bytes(b""), ["x.pth", "empty"]),
    "truncated": (truncated, ["x.pth", "truncated"]),
    "text": (lambda path, _: path.write_text("not a checkpoint\n" * 99), ["x.pth", "text"]),
    "html": (lambda path, _: path.write_text("<!DOCTYPE html><html>Sign in</html>"), ["x.pth", "web page"]),
    "hostile": (hostile, ["x.pth", "system", "refused, not loaded"]),
    "hostile, bare pickle": (hostile_raw, ["x.pth", "refused, not loaded"]),
    "picture": (lambda path, _: shutil.copy(COFFEE, path), ["x.pth"]),
    "folder": (lambda path, _: path.mkdir(), ["x.pth: is a folder"]),
    "onnx": (lambda path, _: path.write_bytes(onnx.ModelProto(ir_version=8).SerializeToString()), ["x.pth"]),
    "encoder only": (lambda path, source: shutil.copy(source, path), ["x.pth", "repvit_m1"]),
    "other sizes": (other_sizes, ["x.pth", "image_encoder"]),
    "no model": (lambda path, _: torch.save({"fc.weight": torch.zeros(3)}, path), ["x.pth", "fc.weight"]),
    "no tensors": (lambda path, _: torch.save({"epoch": 3}, path), ["x.pth", "no tensors", "epoch"]),
}  # fmt: skip


@pytest.mark.parametrize(("make", "words"), CHECKPOINTS.values(), ids=CHECKPOINTS.keys())
def test_checkpoints(place, encoder_file, make, words):
    if make is not None:
        make(place / "x.pth", encoder_file)
    refused(ERROR, words, "build", "edge_sam", "--checkpoint", "x.pth", "--out", "out", "--proof", "off")
    assert not (place / "owned").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cwsam", ["not published", "train it"]),
        ("edge_sam_dyt", ["no program can download it", "1. download https://drive.google.com", "2. save it as"]),
        ("edge_sam_3x", ["offline (HF_HUB_OFFLINE is set)", "1. download https://huggingface.co", "--checkpoint PATH"]),
        ("vit_b", ["offline", "1. download https://dl.fbaipublicfiles.com", "sha256"]),
    ],
)
def test_names_that_cannot_be_fetched(monkeypatch, name, words):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refused(MISSING, words, "fetch", name)
    refused(MISSING, words, "build", "edge_sam", "--checkpoint", name)


def test_a_bundle_of_a_checkpoint_is_checked_with_it(place, tiny_repvit):
    """check needs the file that the bundle was built from, and no other."""
    for seed, name in ((3, "mine.pth"), (4, "other.pth")):
        torch.save({"model": load("repvit_m1", seed=seed).state_dict()}, name)
    built = edgesam_deploy("build", "repvit_m1", "--checkpoint", "mine.pth", "-o", "bundle", "--proof", "off")
    assert built.code == DONE, built.err
    assert "random weights" not in built.out
    assert json.loads((place / "bundle" / "manifest.json").read_text())["weights"]["checkpoint"] == "mine.pth"
    refused(USAGE, ["mine.pth", "--checkpoint PATH"], "check", "bundle")
    refused(ERROR, ["other.pth is not the file", "mine.pth"], "check", "bundle", "--checkpoint", "other.pth")
    refused(ERROR, ["gone.pth: no such file"], "check", "bundle", "--checkpoint", "gone.pth")
    found = edgesam_deploy("check", "bundle", "--checkpoint", "mine.pth", "--json")
    assert (found.code, json.loads(found.out)["verdict"]) == (DONE, "pass")


# --- pictures and prompts --------------------------------------------------------------------------------------------


def cut_jpeg(path):
    path.write_bytes(COFFEE.read_bytes()[:5000])


PICTURES = {
    "missing": ("x.png", None, ["no such picture", "x.png"]),
    "text": ("x.png", lambda path: path.write_text("hello"), ["x.png is not a picture"]),
    "empty": ("x.png", lambda path: path.write_bytes(b""), ["x.png is not a picture"]),
    "truncated JPEG": ("x.jpg", cut_jpeg, ["cannot decode x.jpg", "truncated"]),
    "folder": ("x.png", lambda path: path.mkdir(), ["x.png", "picture"]),
    "a name too long": ("x" * 300 + ".png", None, ["File name too long"]),
}


@pytest.mark.parametrize(("name", "make", "words"), PICTURES.values(), ids=PICTURES.keys())
def test_pictures(place, bundles, name, make, words):
    if make is not None:
        make(place / name)
    for command in (["run", "--point", "5,5"], ["everything"]):
        found = edgesam_deploy(command[0], bundles().path, name, *command[1:], "-o", "out")
        assert found.code in (USAGE, ERROR)
        assert TRACEBACK not in found.err
        assert all(word in found.words for word in words)
        assert not (place / "out").exists()


@pytest.mark.parametrize("kind", ["missing", "text", "truncated JPEG"])
def test_one_picture_with_a_detector(place, bundles, kind):
    """Of many pictures one that cannot be read is passed over; of one, nothing is begun."""
    name, make, words = PICTURES[kind]
    if make is not None:
        make(place / name)
    refused(USAGE, words, "run", bundles().path, name, "--boxes-from", "regions", "-o", "out")


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ([], ["--point x,y", "--box x0,y0,x1,y1"]),
        (["--point", "a,b"], ["--point a,b", "not numbers"]),
        (["--point", ""], ["--point", "not numbers"]),
        (["--point", "5"], ["--point 5", "2 or 3 numbers, got 1"]),
        (["--point", "5,5,1,1"], ["--point 5,5,1,1", "got 4"]),
        (["--point", "nan,5"], ["--point nan,5", "NaN"]),
        (["--point", "5,1e999"], ["--point 5,1e999", "infinity"]),
        (["--point", "600.5,5"], ["(600.5, 5)", "outside the picture of 600 x 400"]),
        (["--point", "-1,5"], ["(-1, 5)", "outside"]),
        (["--point", "5,5,7"], ["7 is no label code"]),
        (["--point", "5,5,0.5"], ["0.5 is no label code"]),
        (["--box", "1,2,3"], ["--box 1,2,3", "4 numbers, got 3"]),
        (["--box", "9,9,5,20"], ["9,9,5,20", "x0 < x1"]),
        (["--box", "9,9,20,5"], ["9,9,20,5", "y0 < y1"]),
        (["--box", "9,9,9,9"], ["9,9,9,9", "x0 < x1"]),
        (["--box", "0,0,601,400"], ["(601, 400)", "outside the picture of 600 x 400"]),
        (["--box", "0,0,inf,400"], ["infinity"]),
        ([*["--point", "5,5"] * 6], ["7 prompt slots needed", "has 6", "--points 7"]),
        ([*["--point", "5,5"] * 5, "--box", "1,1,9,9"], ["7 prompt slots needed", "--points 7"]),
        (["--point", "5,5", "--masks", "2"], ["--masks 2", "1, 3 or 4"]),
        (["--point", "5,5", "--provider", "npu"], ["--provider npu", "cpu or cuda"]),
        (["--point", "5,5", "--threads", "-1"], ["--threads"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_prompts(bundles, prompt, words):
    refused(USAGE, words, "run", bundles().path, COFFEE, "-o", "out", *prompt)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--points-per-side", "0"], ["--points-per-side"]),
        (["--points-per-side", "100000"], ["--points-per-side", "less than or equal to 1024"]),
        (["--pred-iou-thresh", "nan"], ["--pred-iou-thresh nan"]),
        (["--box-nms-thresh", "inf"], ["--box-nms-thresh inf"]),
        (["--crop-n-layers", "-1"], ["--crop-n-layers"]),
    ],
)
def test_settings_of_everything(bundles, options, words):
    refused(USAGE, words, "everything", bundles().path, COFFEE, "-o", "out", *options)


def test_missing_out_and_swapped_arguments(bundles):
    refused(USAGE, ["--out"], "run", bundles().path, COFFEE, "--point", "5,5")
    refused(
        ERROR, ["is not a bundle", "a file; give the folder"], "run", COFFEE, bundles().path, "-o", "out",
        "--point", "5,5",
    )  # fmt: skip


@pytest.mark.parametrize("command", ["run", "everything", "bench", "check"])
def test_cuda_where_there_is_none(bundles, monkeypatch, command):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    more = {"run": [COFFEE, "--point", "5,5", "-o", "out"], "everything": [COFFEE, "-o", "out"]}.get(command, [])
    refused(MISSING, ["CUDAExecutionProvider", "pip install"], command, bundles().path, "--provider", "cuda", *more)


def test_pictures_to_check_with(place, bundles):
    refused(USAGE, ["--images none", "not a folder"], "check", bundles().path, "--images", "none")
    (place / "mine").mkdir()
    (place / "mine" / "[bold] notes.txt").write_text("no picture")
    found = refused(USAGE, ["no picture in it could be read"], "check", bundles().path, "--images", "mine")
    assert "left out: mine/[bold] notes.txt is not a picture" in found.err


def test_an_encoder_takes_no_prompts(place):
    build(load("repvit_m1", config=TINY_ENCODER), "onnx", "encoder", proof="off", pictures={"s": seeded_scene(5)})
    refused(USAGE, ["image encoder alone"], "run", "encoder", COFFEE, "-o", "out", "--point", "5,5")
    refused(USAGE, ["image encoder alone"], "everything", "encoder", COFFEE, "-o", "out")
    assert edgesam_deploy("bench", "encoder", "--runs", "1", "--warmup", "0").code == DONE


# --- output folders --------------------------------------------------------------------------------------------------


@pytest.fixture
def existing(bundles, place):
    return shutil.copytree(bundles().path, place / "existing")


def test_a_bundle_that_is_there(existing):
    refused(USAGE, ["holds a bundle already", "--overwrite"], "build", "edge_sam", "-o", "existing")
    refused(USAGE, ["holds a bundle already"], "build", "edge_sam", "-o", "existing", "--dry-run")
    assert edgesam_deploy("build", "edge_sam", "-o", "existing", "--dry-run", "--overwrite").code == DONE


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]], ids=["", "--overwrite"])
def test_files_of_the_user(place, existing, overwrite):
    (place / "thesis").mkdir()
    (place / "thesis" / "chapter.tex").write_text("...")
    refused(USAGE, ["thesis holds files", "another --out"], "build", "edge_sam", "-o", "thesis", *overwrite)
    (existing / "notes.txt").write_text("mine")
    refused(USAGE, ["existing holds"], "build", "edge_sam", "-o", "existing", *overwrite)


@pytest.mark.parametrize("command", ["build", "run", "everything"])
def test_out_is_a_file(place, bundles, command):
    (place / "file").write_text("mine")
    first = {
        "build": ["edge_sam"], "run": [bundles().path, COFFEE, "--point", "5,5"], "everything": [bundles().path, COFFEE]
    }[command]  # fmt: skip
    refused(USAGE, ["file", "folder"], command, *first, "-o", "file")
    refused(USAGE, ["file", "another"], command, *first, "-o", "file/deeper")


def test_a_folder_that_may_not_be_written(place, bundles, monkeypatch):
    """os.access says no, as it does to a user who is not root."""
    (place / "locked").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: mode == os.R_OK or "locked" not in str(path))
    refused(USAGE, ["cannot write to", "locked", "another --out"], "build", "edge_sam", "-o", "locked/out")
    refused(USAGE, ["cannot write to", "another"], "run", bundles().path, COFFEE, "--point", "5,5", "-o", "locked")
    refused(USAGE, ["cannot write to", "another"], "everything", bundles().path, COFFEE, "-o", "locked/a/b")


def test_a_read_only_file_system(place, bundles):
    with tmpfs(place / "disk", "ro") as mounted:
        if not mounted:
            pytest.skip("mounting is not permitted here")
        for out in ("disk", "disk/a/b"):
            refused(USAGE, ["cannot write", "another --out"], "build", "edge_sam", "-o", out)
            refused(USAGE, ["disk", "another"], "run", bundles().path, COFFEE, "--point", "5,5", "-o", out)


def test_a_read_only_bundle(place, bundles):
    with tmpfs(place / "disk", "size=9m") as mounted:
        if not mounted:
            pytest.skip("mounting is not permitted here")
        shutil.copytree(bundles().path, place / "disk" / "bundle")
        subprocess.run(["mount", "-o", "remount,ro", str(place / "disk")], check=True)
        before = contents(place)
        found = edgesam_deploy("bench", "disk/bundle", "--runs", "1", "--json")
        assert found.code in (ERROR, USAGE)
        assert "Read-only file system" in found.err
        assert json.loads(found.out)["bundles"][0]["stages"]  # what was measured is shown all the same
        assert contents(place) == before
        assert edgesam_deploy("verify", "disk/bundle").code == DONE


def test_a_full_disk(place, bundles, tiny_repvit, monkeypatch):
    """On a small disk of its own where that can be mounted, else by a write that fails."""
    with tmpfs(place / "disk", "size=300k") as mounted:
        if not mounted:
            monkeypatch.setattr("pathlib.Path.write_text", no_space)
        build = ["build", "repvit_m1", "--proof", "off"]
        refused(USAGE, ["no space left", "disk/bundle"], *build, "-o", "disk/bundle")
        if not mounted:
            return
        (place / "disk" / "filler").write_bytes(bytes(200_000))
        refused(USAGE, ["disk", "No space left"], "run", bundles().path, HOPPER, "--point", "5,5", "-o", "disk/out")
        refused(USAGE, ["disk", "No space left"], "run", bundles().path, HOPPER, "--point", "5,5", "-o", "disk")


def no_space(*_):
    raise OSError(28, "No space left on device")


def test_a_full_disk_simulated(place, bundles, monkeypatch):
    bundle = bundles().path
    monkeypatch.setattr("pathlib.Path.write_text", no_space)
    refused(USAGE, ["out", "No space left"], "run", bundle, COFFEE, "--point", "5,5", "-o", "out")
    refused(USAGE, ["out", "No space left"], "everything", bundle, COFFEE, "--points-per-side", "2", "-o", "out")
    with pytest.raises(OutputError, match="No space"), results(place / "new" / "deep") as folder:
        (folder / "x").write_text("")
    assert contents(place) == {}


def test_stdout_is_full():
    with open("/dev/full", "w") as full:
        import subprocess
        import sys

        done = subprocess.run(
            [sys.executable, "-m", "edgesam_deploy", "models"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (ERROR, "error: No space left on device\n")


# --- bundles that are not what was built -----------------------------------------------------------------------------


def test_a_changed_bundle_is_named(existing):
    with (existing / "decoder.onnx").open("ab") as file:
        file.write(b"\0")
    refused(ERROR, ["existing", "decoder.onnx"], "verify", "existing")
    refused(ERROR, ["existing", "decoder.onnx"], "check", "existing")
    (existing / "encoder.onnx").unlink()
    refused(ERROR, ["encoder.onnx: missing", "decoder.onnx"], "verify", "existing")
    refused(ERROR, ["encoder.onnx is missing", "verify"], "run", "existing", COFFEE, "-o", "out", "--point", "5,5")


def spoiled(folder):
    """The bundle with noise on one weight of its encoder, hashed anew: it verifies, and is wrong."""
    path = folder / "encoder.onnx"
    model = onnx.load(path)
    largest = max(model.graph.initializer, key=lambda tensor: np.prod(tensor.dims))
    values = onnx.numpy_helper.to_array(largest)
    noise = 0.01 * values.std() * np.random.default_rng(0).standard_normal(values.shape).astype(np.float32)
    largest.CopyFrom(onnx.numpy_helper.from_array(values + noise, largest.name))
    onnx.save(model, path)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").unlink()
    write_manifest(folder, {k: v for k, v in manifest.items() if k not in ("schema", "files", "manifest_sha256")})


def test_an_artifact_that_is_not_the_model(place, existing):
    spoiled(existing)
    assert edgesam_deploy("verify", existing).code == DONE
    (place / "pictures").mkdir()
    Image.fromarray(picture(150, 225, 10)).save(place / "pictures" / "scene.png")
    found = edgesam_deploy("check", existing, "--images", "pictures", "--json")
    assert found.code == PARITY
    assert "error: parity: fail; " in found.err
    assert "relative L2" in found.err
    assert json.loads(found.out)["verdict"] == "fail"
    assert json.loads((existing / "parity.json").read_text())["verdict"] == "fail"
    found = edgesam_deploy("check", existing, "--images", "pictures")
    assert found.out.startswith("parity: fail over ")
    assert found.code == PARITY


def test_a_build_that_fails_parity(tiny_repvit, monkeypatch):
    monkeypatch.setitem(parity.BOUNDS, "fp32", parity.Bounds(1e-12, 1.0, 0))
    words = ["parity fail", "no bundle was written", "embeddings of scene", "relative L2"]
    found = refused(PARITY, words, "build", "repvit_m1", "-o", "out", "--proof", "off")
    assert found.out == ""


def unsupported_model(path):
    node = onnx.helper.make_node("MadeUp", ["x"], ["y"], domain="example.org")
    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    graph = onnx.helper.make_graph([node], "g", value[:1], value[1:])
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("example.org", 1)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets), path)


def test_operators_that_do_not_run(place, bundles):
    unsupported_model(place / "made_up.onnx")
    assert edgesam_deploy("ops", "made_up.onnx").code == DONE
    found = refused(UNSUPPORTED, ["MadeUp"], "ops", "made_up.onnx", "--fail-on", "unsupported", "--json")
    assert json.loads(found.out)["made_up.onnx"]["worst"] in ("unsupported", "unknown")
    refused(UNSUPPORTED, ["MadeUp"], "ops", "made_up.onnx", "--fail-on", "partial")
    assert edgesam_deploy("ops", bundles().path, "--fail-on", "partial").code == DONE


@pytest.mark.parametrize("content", [b"", b"hello", b"<html>", b"\x08\x08"])
def test_files_that_are_no_model(place, content):
    (place / "x.onnx").write_bytes(content)
    refused(USAGE, ["x.onnx", "not an ONNX file"], "ops", "x.onnx")


def test_messages_come_in_any_encoding():
    found = subprocess_of("build", "modéle", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert found.code == USAGE
    assert "unknown model 'mod" in found.err


# --- faults that were found beyond the command line, and mended ------------------------------------------------------


def test_a_failed_build_leaves_no_empty_folders(place):
    with pytest.raises(KeyboardInterrupt), draft(place / "new" / "deep" / "bundle"):
        raise KeyboardInterrupt
    assert contents(place) == {}


def test_an_empty_mount_point_as_out(place):
    with tmpfs(place / "disk", "size=1m") as mounted:
        if not mounted:
            pytest.skip("mounting is not permitted here")
        with contextlib.suppress(OutputError), draft(place / "disk") as folder:
            (folder / "manifest.json").write_text("{}")
        assert os.listdir(place) == ["disk"]


def test_a_link_to_an_empty_folder_as_out(place):
    (place / "real").mkdir()
    (place / "link").symlink_to("real")
    with contextlib.suppress(OutputError), draft(place / "link") as folder:
        (folder / "manifest.json").write_text("{}")
    assert sorted(os.listdir(place)) == ["link", "real"]
    assert (place / "link").is_symlink()


def test_the_empty_working_folder_as_out(place, tiny_repvit, monkeypatch):
    (place / "here").mkdir()
    monkeypatch.chdir(place / "here")
    found = edgesam_deploy("build", "repvit_m1", "-o", ".", "--proof", "off")
    assert found.code in (DONE, USAGE)
    assert os.listdir(place) == ["here"]


def test_files_that_come_while_building(place):
    with pytest.raises(OutputError), draft(place / "out") as folder:
        (folder / "manifest.json").write_text("{}")
        (place / "out").mkdir()
        (place / "out" / "thesis.tex").write_text("...")
    assert os.listdir(place / "out") == ["thesis.tex"]


MANIFESTS = {
    "a schema that is no number": {"schema": "x"},
    "files in a list": {"files": [1]},
    "parts in a list": {"parts": []},
    "a part without a file": {"parts": {"image_encoder": {}}},
    "no contract": {"contract": None},
}


@pytest.mark.parametrize("change", MANIFESTS.values(), ids=MANIFESTS.keys())
def test_manifests_of_another_shape(existing, change):
    manifest = json.loads((existing / "manifest.json").read_text())
    (existing / "manifest.json").write_text(json.dumps({**manifest, **change}))
    refused(ERROR, ["manifest.json"], "verify", "existing")
    refused(ERROR, ["manifest.json"], "run", "existing", COFFEE, "-o", "out", "--point", "5,5")
    refused(ERROR, ["manifest.json"], "ops", "existing")


@pytest.mark.parametrize("command", ["run", "everything", "bench"])
def test_a_damaged_artifact(existing, command):
    (existing / "encoder.onnx").write_bytes((existing / "encoder.onnx").read_bytes()[:1000])
    more = {"run": [COFFEE, "--point", "5,5", "-o", "out"], "everything": [COFFEE, "-o", "out"]}.get(command, [])
    refused(ERROR, ["encoder.onnx", "verify"], command, "existing", *more)


def test_one_mask_through_the_predictor(bundles, scene):
    predictor = open_predictor(bundles(io="sam", return_single_mask=True).path)
    predictor.set_image(scene)
    assert predictor.predict([[9, 9]], [1])[0].shape == (1, *scene.shape[:2])


def test_a_read_only_bundle_says_so(place, bundles):
    with tmpfs(place / "disk", "size=9m") as mounted:
        if not mounted:
            pytest.skip("mounting is not permitted here")
        shutil.copytree(bundles().path, place / "disk" / "bundle")
        subprocess.run(["mount", "-o", "remount,ro", str(place / "disk")], check=True)
        refused(USAGE, ["cannot write disk/bundle/bench.json"], "bench", "disk/bundle", "--runs", "1")
