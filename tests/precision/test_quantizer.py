"""The search for the fewest layers that are not quantised: few tries, the artifact decides, and what it refuses."""

from __future__ import annotations

import pytest
from conftest import FAMILY, TINY
from scenes import picture

import edgesam_deploy as ed
from edgesam_deploy import quantizer
from edgesam_deploy.errors import ParityError, UsageError
from edgesam_deploy.precision.quantisation import REPORT, after_check
from edgesam_deploy.quantizer import fewest, quantize

SCENE = {"scene": picture(150, 225, 10)}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGESAM_DEPLOY_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("total", [0, 1, 2, 7, 64])
def test_the_fewest_are_found_in_few_tries(total):
    for needed in range(total + 1):
        tries = []
        assert fewest(total, lambda n: tries.append(n) or n >= needed) == needed  # noqa: B023
        assert len(tries) == len(set(tries)) <= 2 * max(total, 1).bit_length() + 2
    assert fewest(total, lambda _: False) is None


@pytest.mark.parametrize(
    ("name", "target", "options", "min_iou", "words"),
    [
        ("edge_sam", "tensorrt", {"precision": "int8"}, 1.5, "between 0 and 1"),
        ("edge_sam", "tflite", {"precision": "int8"}, 0.9, "tflite cannot keep single layers"),
        ("edge_sam", "tensorrt", {}, 0.9, "--precision fp16 quantises nothing"),
        ("edge_sam", "tensorrt", {"precision": "int8", "keep": "a:b"}, 0.9, "leave --keep out"),
        ("cwsam", "tensorrt", {"precision": "int8"}, 0.9, "gives no masks for prompts"),
    ],
)
def test_what_cannot_be_searched(tmp_path, name, target, options, min_iou, words):
    model = ed.load(name, seed=0, config=FAMILY[name])
    with pytest.raises(UsageError, match=words):
        quantize(model, target, tmp_path / "out", min_iou=min_iou, options=options)
    assert not (tmp_path / "out").exists()


def test_a_bound_that_no_choice_reaches(tmp_path, monkeypatch):
    monkeypatch.setattr(quantizer, "_iou", lambda *_: 0.5)
    monkeypatch.setattr(quantizer, "_ranked", lambda *_: ["image_encoder:a", "image_encoder:b"])
    model = ed.load("edge_sam", seed=0, config=TINY)
    with pytest.raises(ParityError, match=r"mask IoU 0\.5000 with all 2 layers of tensorrt kept, where 0\.9"):
        quantize(model, "tensorrt", tmp_path / "out", min_iou=0.9, options={"precision": "int8"})
    assert not (tmp_path / "out").exists()


def test_what_is_found_is_built_and_reported(tmp_path, monkeypatch):
    monkeypatch.setattr("edgesam_deploy.parity.SEEDS", ())
    monkeypatch.setattr(quantizer, "_iou", lambda model, target, *_: 0.9 + 0.03 * len(target.keep.split(",")))
    model = ed.load("edge_sam", seed=0, config=TINY)
    how = {"pictures": SCENE, "options": {"precision": "int8"}, "proof": "off"}
    found = quantize(model, "tensorrt", tmp_path / "out", min_iou=0.985, **how)
    said = found.read_json(REPORT)
    names = [row["name"] for row in said["layers"]]
    assert said["kept"] == names[:3]
    assert [row["kept"] for row in said["search"]["tries"]] == [0, 1, 2, 4, 3]
    kept = {name.removeprefix("image_encoder:") for name in names[:3]}
    assert set(found.manifest["parts"]["image_encoder"]["kept_layers"]) == kept
    assert len(found.read_json("calibration.json")["quantised"]["image_encoder"]) == len(names) - 3
    assert said["measured"]["pictures"] == ["scene"]
    assert said["bits"] == {"image_encoder": {"weights": 8, "activations": 8}, "mask_decoder": None}
    parity = found.read_json("parity.json")
    found.write_json(REPORT, {**said, "measured": None, "search": {**said["search"], "min_iou": 0.01}})
    after_check(found, parity)
    assert found.read_json(REPORT)["measured"] == said["measured"]
    found.write_json(REPORT, {**said, "search": {**said["search"], "min_iou": 0.999999}})
    with pytest.raises(ParityError, match=r"searched for 0\.999999"):
        after_check(found, parity)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "options", "min_iou"), [("tensorrt", {"precision": "int8"}, 0.996), ("qnn", {"precision": "w8a8"}, 0.84)]
)
def test_the_search_executes_what_it_chooses_between(tmp_path, target, options, min_iou):
    """Nothing is stood in for: layers are ranked, artifacts built and run, QNN's last one on the emulator."""
    model = ed.load("edge_sam", seed=0, config=TINY)
    found = quantize(model, target, tmp_path / "out", min_iou=min_iou, options=options, proof="off")
    if target == "qnn":
        after_check(found, ed.check(found.path, model).to_json())
    said = found.read_json(REPORT)
    tries = {row["kept"]: row["mask_iou"] for row in said["search"]["tries"]}
    assert tries[len(said["kept"])] >= min_iou
    assert all(iou < min_iou for kept, iou in tries.items() if kept < len(said["kept"]))
    assert said["kept"] == [row["name"] for row in said["layers"]][: len(said["kept"])]
    assert len(said["kept"]) == 2
    assert said["measured"]["decided_mask_iou"] >= min_iou
    assert "HTP emulator" in said["measured"]["executed"] or target == "tensorrt"
