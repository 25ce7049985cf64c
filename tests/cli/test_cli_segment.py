"""run with a bundle that gives every pixel a class: what it writes and prints."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, field

import numpy as np
import pytest
from command_line import COFFEE, contents
from PIL import Image

from edgesam_deploy.cli.results import results
from edgesam_deploy.cli.segment import run_segmenter
from edgesam_deploy.errors import ImageError, OutputError, UsageError
from edgesam_deploy.model.semantic import SemanticPredictor
from edgesam_deploy.model.transforms import read_image
from edgesam_deploy.overlay import GROUND, overlay_classes

FILES = ["classes.png", "confidence.png", "overlay.png", "result.json"]


class Brightness(SemanticPredictor):
    """Class 24 where the picture is bright, 3 where it is dark."""

    image_size, classes = 256, 33

    def infer(self, image):
        logits = np.zeros((1, self.classes, 256, 256), np.float32)
        logits[:, 24], logits[:, 3] = 4 * image.mean(1), -4 * image.mean(1)
        return logits


class BrightnessMap(Brightness):
    has_logits = False

    def infer_map(self, image):
        return self.infer(image).argmax(1)


@dataclass
class Named:
    """As much of a bundle as is asked for."""

    manifest: dict = field(default_factory=lambda: {"weights": {"source": "checkpoint", "name": "a"}})


def pixels(path):
    return np.asarray(Image.open(path))


def test_what_is_written(tmp_path, capsys):
    out = tmp_path / "deep" / "out"
    run_segmenter(Brightness(), Named(), COFFEE, out, overlap=32)
    assert sorted(os.listdir(out)) == FILES
    found = Brightness().predict(read_image(COFFEE), overlap=32)
    np.testing.assert_array_equal(pixels(out / "classes.png"), found.class_map)
    assert np.abs(pixels(out / "confidence.png") / 255 - found.confidence).max() <= 0.5 / 255 + 1e-6
    result = json.loads((out / "result.json").read_text())
    assert (result["image"], result["size"], result["weights"]["name"]) == ("coffee.jpg", [600, 400], "a")
    assert result["tiles"] == [list(box) for box in found.tiles]
    assert len(result["tiles"]) == 6
    assert {result[key] for key in ("class_map", "confidence", "overlay")} == {*FILES} - {"result.json"}
    rows = result["classes"]
    assert sum(row["pixels"] for row in rows) == 600 * 400
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    assert [row["pixels"] for row in rows] == sorted((row["pixels"] for row in rows), reverse=True)
    for row in rows:
        there = found.class_map == row["index"]
        assert row["pixels"] == there.sum()
        assert row["mean_confidence"] == pytest.approx(found.confidence[there].mean(), rel=1e-4)
    assert {"water", "paddy"} <= {row["name"] for row in rows}
    printed = capsys.readouterr()
    assert "water" in printed.out
    assert printed.out.splitlines()[-3:] == [str(out / name) for name in FILES[:3]]
    assert "tile 6 of 6" in printed.err
    assert "random" not in printed.err


def test_json_and_random_weights(tmp_path, capsys):
    seeded = Named({"weights": {"source": "seeded", "seed": 0}})
    run_segmenter(Brightness(), seeded, COFFEE, tmp_path, tiles=False, json=True)
    printed = capsys.readouterr()
    assert json.loads(printed.out) == json.loads((tmp_path / "result.json").read_text())
    assert json.loads(printed.out)["tiles"] == []
    assert "random weights (seed 0)" in printed.err


def test_without_logits_there_is_no_confidence(tmp_path, capsys):
    run_segmenter(Brightness(), Named(), COFFEE, tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    run_segmenter(BrightnessMap(), Named(), COFFEE, tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["classes.png", "notes.txt", "overlay.png", "result.json"]
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["confidence"] is None
    assert {row["mean_confidence"] for row in result["classes"]} == {None}


def test_other_classes_have_numbers(tmp_path, capsys):
    class Ten(Brightness):
        classes = 30

    run_segmenter(Ten(), Named(), COFFEE, tmp_path)
    assert "class 24" in capsys.readouterr().out


def test_masks_and_classes_replace_each_other(tmp_path):
    with results(tmp_path) as folder:
        (folder / "mask_0.png").write_bytes(b"")
        (folder / "result.json").write_text('{"masks": [{"file": "mask_0.png"}]}')
    run_segmenter(Brightness(), Named(), COFFEE, tmp_path)
    assert sorted(os.listdir(tmp_path)) == FILES
    with results(tmp_path) as folder:
        (folder / "result.json").write_text('{"masks": []}')
    assert sorted(os.listdir(tmp_path)) == ["overlay.png", "result.json"]


@pytest.mark.parametrize("account", ['{"class_map": "../x", "confidence": 3}', "[]", '{"class_map": "notes.txt"}'])
def test_another_account_removes_nothing(tmp_path, account):
    out = tmp_path / "out"
    out.mkdir()
    for name, text in (("notes.txt", "mine"), ("confidence.png", "mine"), ("result.json", account)):
        (out / name).write_text(text)
    (tmp_path / "x").write_text("mine")
    run_segmenter(BrightnessMap(), Named(), COFFEE, out)
    assert all((path).read_text() == "mine" for path in (tmp_path / "x", out / "notes.txt", out / "confidence.png"))


@pytest.mark.parametrize("name", FILES[:3])
def test_the_picture_is_not_overwritten(tmp_path, name):
    shutil.copy(COFFEE, tmp_path / name)
    before = contents(tmp_path)
    with pytest.raises(OutputError, match=f"{name} would be overwritten"):
        run_segmenter(Brightness(), Named(), tmp_path / name, tmp_path)
    assert contents(tmp_path) == before


def test_nothing_is_left_of_a_failure(tmp_path):
    class Broken(Brightness):
        def infer(self, image):
            raise KeyboardInterrupt

    for predictor, options, error in (
        (Broken(), {}, KeyboardInterrupt),
        (Brightness(), {"overlap": 256}, UsageError),
    ):
        with pytest.raises(error):
            run_segmenter(predictor, Named(), COFFEE, tmp_path / "out", **options)
    with pytest.raises(ImageError):
        run_segmenter(Brightness(), Named(), tmp_path / "absent.png", tmp_path / "out")
    assert contents(tmp_path) == {}


# --- the overlay -----------------------------------------------------------------------------------------------------


def test_overlay_blends_and_lists_classes():
    picture = np.full((400, 600, 3), 100, np.uint8)
    class_map = np.zeros((400, 600), np.uint8)
    class_map[:, 300:] = 1  # its colour is green
    shown = overlay_classes(picture, class_map, ["a", "b"], "remark")
    assert shown.shape[1] == 600
    middle = shown[100:350]
    assert (middle[:, :300] == 50).all()
    assert (middle[:, 300:] == (50, 177, 50)).all()
    top, bottom = shown[:20], shown[-25:]
    for strip in (top, bottom):
        assert (strip == GROUND).all(-1).any()
        assert (strip == 255).all(-1).any()
    assert (shown[400:] == (0, 255, 0)).all(-1).any()  # the square in the legend


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (2500, 2000)])
@pytest.mark.parametrize("classes", [1, 33, 300])
def test_overlay_of_any_size_and_number(size, classes):
    class_map = (np.arange(size[0] * size[1]) % classes).reshape(size).astype(np.uint16)
    shown = overlay_classes(np.full((*size, 3), 90, np.uint8), class_map, [f"name {i}" for i in range(classes)])
    assert min(shown.shape[:2]) >= 20
    assert max(shown.shape[:2]) < 1500
