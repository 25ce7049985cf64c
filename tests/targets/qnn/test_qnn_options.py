"""What the target refuses before anything is compiled; needs no toolkit of Qualcomm's."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from PIL import Image

import edgesam_deploy as ed
from edgesam_deploy.errors import MissingToolkit, UsageError
from edgesam_deploy.precision.calibration_rows import HELD_OUT, calibration_set, decoder_rows
from edgesam_deploy.targets import make_target
from edgesam_deploy.targets.qnn.soc import SOCS, soc_named


@pytest.mark.parametrize("name", ["SM8450", "sm8550", "SM8650", "SM8750", "SM8850"])
def test_a_chip_goes_by_name_or_number(name):
    soc = soc_named(name)
    assert soc.name == name.upper()
    assert soc_named(str(soc.number)) is soc


@pytest.mark.parametrize(("name", "said"), [("SM9999", "not a chip"), ("1", "not a chip"), ("SM8350", "no fp16")])
def test_a_wrong_chip_is_an_error_with_the_list(name, said):
    with pytest.raises(UsageError, match=said) as caught:
        make_target("qnn", soc=name)
    assert caught.value.exit_code == 2
    assert all(soc.name in str(caught.value) for soc in SOCS if soc.fp16)


@pytest.mark.parametrize(
    "options",
    [
        {"points": "dynamic"},
        {"batch": "dynamic"},
        {"io": "sam"},
        {"io": "edgesam"},
        {"precision": "fp32"},
        {"optimization": 4},
        {"vtcm_mb": -1},
        {"compile_seconds": 0},
        {"calibration": "pictures"},
        {"precision": "w8a8", "io": "edgesam-npu"},
        {"precision": "w8a16", "mask_input": True},
    ],
)
def test_options_that_do_not_fit_are_refused(options):
    with pytest.raises(UsageError, match="--"):
        make_target("qnn", **options)


def test_without_the_toolkit_a_build_ends_before_it_starts(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime_qnn", None)
    with pytest.raises(MissingToolkit, match=r"edgesam-deploy\[qnn\]") as caught:
        ed.build(tiny_model, "qnn", tmp_path / "out")
    assert caught.value.exit_code == 3
    assert not list(tmp_path.iterdir())


def test_the_shipped_calibration_leaves_a_photograph_to_judge_on():
    chosen = calibration_set(None)
    assert HELD_OUT not in chosen.pictures
    assert len(chosen.pictures) >= 3
    assert chosen.to_json()["source"] == "shipped photographs"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    return tmp_path


def test_broken_pictures_are_left_out_and_named(folder):
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(folder / "good.png")
    chosen = calibration_set(str(folder))
    assert list(chosen.pictures) == list(chosen.sha256) == ["good.png"]
    assert "broken.png" in chosen.left_out[0]


@pytest.mark.parametrize("remove", [True, False])
def test_a_folder_without_pictures_is_an_error(folder, remove):
    if remove:
        (folder / "broken.png").unlink()
    with pytest.raises(UsageError, match="--calibration") as caught:
        make_target("qnn", precision="w8a16", calibration=str(folder))
    assert caught.value.exit_code == 2


def test_prompts_to_calibrate_with_lie_in_the_resized_picture(tiny_model):
    interface = make_target("qnn", points=3, batch=2).interface(tiny_model.config)
    rows = decoder_rows(interface, np.zeros((100, 200, 3), np.uint8), {"image_embeddings": np.zeros(1)})
    assert len(rows) == 4
    labels = {label for row in rows for label in row["point_labels"].ravel()}
    assert labels == {-10, -1, 0, 1, 2, 3}
    for row in rows:
        assert row["point_coords"].shape == (2, 3, 2)
        assert row["point_coords"][..., 0].max() <= 256
        assert row["point_coords"][..., 1].max() <= 128
