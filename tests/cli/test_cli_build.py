"""build, check, verify, bench from end to end."""

from __future__ import annotations

import json
import os

import pytest
from command_line import COFFEE, DONE, HOPPER, USAGE, contents, edgesam_deploy, subprocess_of
from conftest import TINY
from PIL import Image
from scenes import picture

from edgesam_deploy import parity
from edgesam_deploy.model import configs
from edgesam_deploy.model.configs import override

HASHED = {"README.md", "decoder.onnx", "encoder.onnx", "integration", "ops.json", "WEIGHTS_LICENSE.md"}


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """In a folder of the test's own, the models' names build tiny ones, measured on one small picture."""
    monkeypatch.chdir(tmp_path)
    encoder = {key: value for key, value in TINY.items() if key != "mask_decoder"}
    for name, config in (("edge_sam", TINY), ("repvit_m1", encoder)):
        monkeypatch.setitem(configs.MODELS, name, override(configs.MODELS[name], config))
    monkeypatch.setattr(parity, "shipped_pictures", lambda: {"scene": picture(150, 225, 10)})
    return tmp_path


def test_the_real_model(tmp_path):
    """EdgeSAM itself at 512 pixels, every proof on: what is printed where, what is written, and what then works."""
    out = tmp_path / "bundle"
    options = ["edge_sam", "--image-size", "512", "-o", out]
    planned = edgesam_deploy("build", *options, "--dry-run", "--json")
    assert not out.exists()
    built = subprocess_of("build", *options)
    assert built.code == DONE, built.err
    first, *progress = built.err.splitlines()
    assert first == f"building edge_sam for onnx into {out}"
    assert [line.strip() for line in progress] == json.loads(planned.out)  # what is done is what was announced
    for words in ("parity: pass", "random weights (seed 0)", "merge_parallel_convs", f"{out}: ", "peak memory"):
        assert words in built.out
    assert "not proved" not in built.out
    assert "\x1b" not in built.out + built.err
    assert {path.name for path in out.iterdir()} == HASHED | {
        "manifest.json",
        "sbom.cdx.json",
        "parity.json",
        "timings.json",
    }
    assert os.listdir(tmp_path) == ["bundle"]

    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["contract"]["image_size"] == 512
    assert manifest["parts"]["image_encoder"]["outputs"][0]["shape"] == [1, 256, 32, 32]
    assert edgesam_deploy("verify", out).out == f"{out}: {len(manifest['files'])} files match their manifest\n"
    assert edgesam_deploy("run", out, COFFEE, "--point", "300,190", "-o", tmp_path / "masks").code == DONE
    assert Image.open(tmp_path / "masks" / "mask_0.png").size == (600, 400)
    assert edgesam_deploy("ops", out, "--fail-on", "partial").code == DONE
    before = contents(out)
    assert edgesam_deploy("build", *options).code == USAGE
    assert contents(out) == before


@pytest.mark.slow
def test_the_real_model_in_full_size_as_json(tmp_path):
    built = subprocess_of("build", "edge_sam", "-o", tmp_path / "bundle", "--json")
    assert built.code == DONE, built.err
    found = json.loads(built.out)
    assert found["parity"]["verdict"] == "pass"
    assert found["timings"]["peak_rss_mb"] < 4096
    assert found["manifest"]["contract"]["image_size"] == 1024


def test_json_and_every_option(tiny):
    target = ["--points", "4", "--batch", "dynamic", "--mask-input", "--scores", "stability", "--opset", "18"]
    target += ["--prompts-per-image", "2"]
    model = ["--embed-preprocess", "--seed", "7", "--strict", "--json"]
    built = edgesam_deploy("build", "default", *target, *model, "--proof", "off")
    assert built.code == DONE, built.err
    found = json.loads(built.out)
    assert found.keys() == {"bundle", "manifest", "parity", "timings"}
    assert found["bundle"] == "out/edge_sam/onnx"
    manifest = found["manifest"]
    assert manifest == json.loads((tiny / "out/edge_sam/onnx/manifest.json").read_text())
    assert manifest["options"] == {
        "points": 4, "batch": "dynamic", "mask_input": True, "scores": "stability", "io": "contract",
        "return_single_mask": False, "embed_preprocess": True, "opset": 18, "precision": "fp32", "calibration": None,
            "multimask": False, "hq_token_only": False, "argmax": False, "prompts_per_image": 2,
    }  # fmt: skip
    assert manifest["weights"]["seed"] == 7
    assert found["parity"]["verdict"] == "pass"
    parts = {"image_encoder", "mask_decoder", "image_encoder + mask_decoder"}
    assert {step["part"] for step in found["timings"]["steps"]} == parts
    assert {step["error"] for step in found["timings"]["steps"]} == {None}


def test_an_encoder_alone_dumped_and_approximated(tiny):
    built = edgesam_deploy("build", "repvit_m1", "-o", "bundle", "--dump-after", "lower_to_onnx", "--proof", "off")
    assert built.code == DONE, built.err
    assert sorted(path.relative_to(tiny).as_posix() for path in tiny.rglob("*.onnx")) == [
        "bundle.dump/image_encoder.onnx", "bundle/encoder.onnx"
    ]  # fmt: skip
    assert edgesam_deploy("verify", "bundle").code == DONE
    (tiny / "bundle" / "parity.json").unlink()
    assert "not proved" in built.out
    approximate = ["--upsample", "bilinear", "--gelu", "tanh"]
    rebuilt = edgesam_deploy("build", "repvit_m1", "-o", "bundle", *approximate, "--overwrite", "--proof", "off")
    assert rebuilt.code == DONE
    assert "against repvit_m1, fp32 PyTorch, bilinear neck, tanh GELU" in rebuilt.out
    assert "against the checkpoint's own form (repvit_m1, fp32 PyTorch, bicubic neck, erf GELU" in rebuilt.out
    encoder = json.loads((tiny / "bundle" / "manifest.json").read_text())["model"]["config"]["image_encoder"]
    assert (encoder["upsample"], encoder["gelu"]) == ("bilinear", "tanh")


def test_a_dry_run_says_what_would_be_done(tiny):
    found = edgesam_deploy("build", "edge_sam", "--points", "9", "--dry-run")
    assert found.code == DONE
    first, *steps = found.out.splitlines()
    assert first.startswith("edge_sam for onnx (points=9, ")
    assert first.endswith("into out/edge_sam/onnx:")
    assert steps[0].split() == ["1", "load"]
    assert contents(tiny) == {}


def test_check_on_pictures_of_ones_own(bundles, tmp_path):
    Image.open(HOPPER).resize((128, 150)).save(tmp_path / "a.png")
    Image.open(COFFEE).resize((150, 100)).save(tmp_path / "b.jpg")
    (tmp_path / "notes.txt").write_text("no picture")
    found = edgesam_deploy("check", bundles().path, "--images", tmp_path, "--strict", "--json")
    assert found.code == DONE
    rows = json.loads(found.out)["rows"]
    assert {row["picture"] for row in rows} == {"a.png", "b.jpg", "seed 1", "seed 2"}
    assert "left out: " in found.err
    assert [line.strip() for line in found.err.splitlines()[1:]] == [
        "parity: a.png", "parity: b.jpg", "parity: seed 1", "parity: seed 2"
    ]  # fmt: skip
    assert json.loads((bundles().path / "parity.json").read_text()) == json.loads(found.out)


def test_bench(bundles):
    found = edgesam_deploy("bench", bundles().path, "--runs", "3", "--warmup", "0", "--threads", "1", "--json")
    assert found.code == DONE
    result = json.loads(found.out)
    assert result == json.loads((bundles().path / "bench.json").read_text())
    (bundle,) = result["bundles"]
    assert [row["stage"] for row in bundle["stages"]] == [
        "preprocess", "encoder", "prompt encoding, 1 point", "decoder, 1 point", "prompt encoding, 2 points",
        "decoder, 2 points", "prompt encoding, 5 points", "decoder, 5 points", "decoder, 16 prompts",
        "postprocess, 3 masks", "click to masks", "end to end",
    ]  # fmt: skip
    for row in bundle["stages"]:
        assert 0 < row["min"] <= row["p50"] <= row["p90"] <= row["p99"] <= row["max"]
        assert row["runs"] == len(row["times"]) == 3
        assert row["prompts"] == (16 if row["stage"] == "decoder, 16 prompts" else 1)
    assert result["settings"]["threads"] == 1
    cold = bundle["cold"]
    assert 0 < cold["imported_ms"] < cold["loaded_ms"] < cold["encoded_ms"] < cold["answered_ms"]
    assert cold["peak_rss_mb"] is None or cold["peak_rss_mb"] > 20
    table = edgesam_deploy("bench", bundles().path, "--runs", "1", "--warmup", "0")
    assert "end to end" in table.out
    assert edgesam_deploy("verify", bundles().path).code == DONE
