"""The table of precisions: built outside the bounds too, measured, written, and kept over several runs."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from scenes import picture

from benchmarks import precision_table
from edgesam_deploy.targets import make_target

pytest.importorskip("coremltools")


@pytest.fixture(scope="module")
def row(tiny_model, tmp_path_factory):
    target = make_target("coreml", precision="palette6")
    folder = tmp_path_factory.mktemp("precision") / "bundle"
    return precision_table.measured(tiny_model, target, folder, {"scene": picture(150, 225, 10)})


def test_what_is_far_from_the_model_is_measured_all_the_same(row):
    assert (row.model, row.precision, row.verdict) == ("edge_sam", "palette6", "not verified")
    assert 1e-2 < row.embeddings < 1
    assert 1e-2 < row.logits < 1
    assert 0 < row.mask_iou <= row.decided_mask_iou < 1
    assert set(row.sizes) == {"image_encoder", "mask_decoder"}
    assert min(row.sizes.values()) > 0.1
    assert "seed" in row.weights
    assert row.executed.startswith("emulated")


def test_rows_of_other_runs_stay(row, tmp_path):
    precision_table.save(tmp_path, "coreml", row)
    precision_table.save(tmp_path, "coreml", replace(row, precision="fp32", verdict="pass"))
    precision_table.save(tmp_path, "coreml", replace(row, embeddings=0.5))
    found = json.loads((tmp_path / "precision_coreml.json").read_text())
    assert [(r["precision"], r["embeddings"]) for r in found["rows"]] == [("fp32", row.embeddings), ("palette6", 0.5)]
    text = (tmp_path / "precision_coreml.md").read_text()
    assert "| `edge_sam` | `palette6` |" in text
    assert "5.00e-01" in text
    assert text.count("nothing claimed") == 1
    assert row.weights in text
    assert ", ".join(row.names) in text
    assert row.names[0] == "scene"
    precision_table.save(tmp_path, "tflite", replace(row, model="edge_sam_dyt", precision="int8"))
    lines = (tmp_path / "precision.md").read_text().splitlines()
    table = [line for line in lines if line.startswith("| ") and "`" in line]
    assert [line.split("|")[1:4] for line in table] == [
        [" coreml ", " `edge_sam` ", " `fp32` "], [" coreml ", " `edge_sam` ", " `palette6` "],
        [" tflite ", " `edge_sam_dyt` ", " `int8` "],
    ]  # fmt: skip


@pytest.mark.parametrize(("target", "precision"), [("tensorrt", "int8"), ("tflite", "int8"), ("coreml", "fp16")])
def test_an_ungated_target_has_the_same_options(target, precision):
    chosen = make_target(target, precision=precision)
    found = precision_table.ungated(chosen)
    assert (found.options(), found.name) == (chosen.options(), target)  # calibrated ones name their pictures in them
    assert found.unmeasured


def test_the_precisions_are_the_target_s_own():
    assert precision_table.precisions_of("coreml")[0] == "fp16"
    assert precision_table.precisions_of("npu") == ("fp32",)
    assert set(precision_table.precisions_of("tflite")) == {"fp32", "fp16", "dynamic-int8", "int8", "w8a16"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["onnx", "--precisions", "fp16"], "--precision fp16"),
        (["coreml", "--precisions", "int3"], "--precision int3"),
        (["coreml", "--set", "deployment_target"], "NAME=VALUE"),
        (["coreml", "--model", "cwsam"], "takes no prompts"),
        (["coremi"], "coreml"),
        (["coreml", "--model", "edge_samm"], "edge_sam"),
    ],
)
def test_what_is_refused(arguments, words, tmp_path, capsys):
    assert precision_table.main([*arguments, "--out", str(tmp_path / "out")]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
