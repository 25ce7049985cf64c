"""The demo without its page: clicks become masks, two artifacts are compared, limits hold, visitors do not meet."""

from __future__ import annotations

import copy
import io
import json
import struct
import threading
import zlib

import numpy as np
import pytest
from PIL import Image
from scenes import picture

from edgesam_deploy.demo.session import Limits, Session, check_upload, shown_artifacts
from edgesam_deploy.errors import ImageError, PromptError
from edgesam_deploy.model.mask_generator import SamAutomaticMaskGenerator
from edgesam_deploy.model.masks import mask_to_rle, rle_to_coco, rle_to_mask
from edgesam_deploy.model.predictor import SamPredictor
from edgesam_deploy.runtime import open_artifact


@pytest.fixture(scope="module")
def artifact(bundles):
    return open_artifact(bundles().path, threads=1)


@pytest.fixture
def session(artifact):
    return Session(shown_artifacts({"onnx": artifact}))


@pytest.fixture
def scene_file(tmp_path, scene):
    Image.fromarray(scene).save(tmp_path / "scene.png")
    return tmp_path / "scene.png"


def test_a_click_gives_the_predictors_best_mask(session, scene_file, scene, artifact):
    session.load(scene_file)
    session.click(120, 90)
    own = copy.copy(artifact)
    own.set_image(scene)
    masks, scores, _ = own.predict([[120, 90]], [1])
    np.testing.assert_array_equal(session.mask(), masks[scores.argmax()])
    assert session.chosen == scores.argmax()
    (label, drawn), *rest = session.pictures()
    assert (label, rest) == ("onnx", [])
    assert drawn.shape == scene.shape
    assert (drawn != scene).any(axis=-1).mean() > 0.9 * session.mask().mean()
    rows = session.rows()
    assert [row[2] for row in rows] == [f"{score:.3f}" for score in scores]
    assert "decode" in rows[0][3]
    assert "encode" in rows[0][3]


def test_points_are_added_and_taken_away_and_a_box_has_two_corners(session, scene_file):
    session.load(scene_file)
    session.click(120, 90)
    first = session.mask()
    session.click(20, 20, "outside")
    assert session.points == [[120, 90, 1], [20, 20, 0]]
    session.click(22, 19, "remove")
    np.testing.assert_array_equal(session.mask(), first)
    session.click(118, 92, "remove")
    assert session.mask() is None
    session.click(200, 150, "box")
    assert (session.box, session.mask()) == (None, None)
    session.click(40, 30, "box")
    assert session.box == [40, 30, 200, 150]
    assert session.mask().shape == (180, 240)
    session.clear()
    session.drag(40, 30, 200, 150)
    assert session.box == [40, 30, 200, 150]
    with pytest.raises(PromptError, match="corners"):
        session.drag(40, 30, 40, 150)


def test_clicks_are_in_the_pixels_of_what_is_shown(session):
    session.show(np.zeros((1500, 2048, 3), np.uint8))
    assert session.view.shape == (750, 1024, 3)
    session.click(512, 375)
    assert session.points == [[1024, 750, 1]]
    assert session.mask().shape == (1500, 2048)


def test_downloads(session, scene_file, tmp_path):
    session.load(scene_file)
    with pytest.raises(PromptError, match="no single mask yet"):
        session.as_png()
    assert session.choices() == []
    session.click(120, 90)
    assert session.choices()[0][1] == session.chosen
    assert sorted(session.choices()) == [(f"mask {i}: {row[2]}", i) for i, row in enumerate(session.rows())]
    session.choose(1)
    (tmp_path / "mask.png").write_bytes(session.as_png())
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "mask.png")) == 255, session.mask())
    packed = json.loads(session.as_rle())
    coco = pytest.importorskip("pycocotools.mask")
    np.testing.assert_array_equal(coco.decode(packed), session.mask())


def test_pytorch_beside_a_bundle(artifact, tiny_model, scene_file):
    session = Session(shown_artifacts({"PyTorch": SamPredictor(tiny_model), "onnx": artifact}))
    session.load(scene_file)
    session.click(120, 90)
    assert [label for label, _ in session.pictures()] == ["PyTorch", "onnx", "where they differ"]
    assert session.difference().endswith(("IoU 1.0000", "IoU 0.9999"))
    assert {row[0] for row in session.rows()} == {"PyTorch", "onnx"}


def test_everything(session, scene_file, monkeypatch):
    mask = np.zeros((180, 240), bool)
    mask[:90, :120] = True
    quarter = {"segmentation": mask_to_rle(mask), "area": int(mask.sum())}
    session.load(scene_file)
    with monkeypatch.context() as patch:
        patch.setattr(SamAutomaticMaskGenerator, "generate", lambda *_: [quarter])
        session.everything(4)
        (left, right) = (session.pictures()[0][1][:90, half] for half in (slice(0, 120), slice(120, 240)))
        assert (left != session.view[:90, :120]).any(axis=-1).mean() > 0.95
        np.testing.assert_array_equal(right, session.view[:90, 120:])
    session.everything(4)
    (entry,) = session.answers.values()
    assert all(rle_to_mask(record["segmentation"]).shape == (180, 240) for record in entry.records)
    assert session.pictures()[0][1].shape == session.view.shape  # a click is where it seems, on this picture too
    packed = json.loads(session.as_rle())
    assert [mask["segmentation"] for mask in packed] == [rle_to_coco(r["segmentation"]) for r in entry.records]
    assert [mask["area"] for mask in packed] == [r["area"] for r in entry.records]
    with pytest.raises(PromptError, match="no single mask"):
        session.as_png()
    with pytest.raises(PromptError, match="points a side"):
        session.everything(1000)


def test_a_semantic_bundle_shows_classes(family, scene_file):
    artifact = open_artifact(family("cwsam")[1].path, threads=1)
    session = Session(shown_artifacts({"classes": artifact}))
    session.load(scene_file)
    assert session.rows()[0][1] == "classes"
    assert session.pictures()[0][1].shape[2] == 3
    (answer,) = session.answers.values()
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(session.as_png()))), answer.classes.class_map)
    with pytest.raises(PromptError, match="takes no prompts"):
        session.click(3, 3)
    with pytest.raises(PromptError, match="cannot be compared"):
        shown_artifacts({"a": artifact, "b": open_artifact(family("edge_sam_dyt")[1].path)})


def declared_png(path, width, height):
    """A PNG that says it is that large and holds next to nothing."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )
    return path


def test_uploads_that_are_refused_change_nothing(session, scene_file, tmp_path):
    session.load(scene_file)
    session.click(120, 90)
    before = session.mask()
    (tmp_path / "broken.png").write_bytes(scene_file.read_bytes()[:300])
    (tmp_path / "text.png").write_text("not a picture")
    refused = {
        declared_png(tmp_path / "large.png", 12_000, 12_000): "12000 x 12000 pixels; at most 40 million",
        declared_png(tmp_path / "bomb.png", 60_000, 60_000): "too large",
        tmp_path / "broken.png": "truncated",
        tmp_path / "text.png": "not a picture",
    }
    for path, words in refused.items():
        with pytest.raises(ImageError, match=words):
            session.load(path)
    np.testing.assert_array_equal(session.mask(), before)
    with pytest.raises(ImageError, match="MB"):
        check_upload(scene_file, Limits(file_bytes=100))


def test_a_prompt_without_slots_is_refused_and_forgotten(session, scene_file):
    session.load(scene_file)
    for at in range(20, 70, 10):
        session.click(at, at)
    five, mask = [*session.points], session.mask()
    with pytest.raises(PromptError, match=r"7 prompt slots needed.* has 6"):
        session.click(90, 90)
    with pytest.raises(PromptError, match="7 prompt slots needed"):
        session.drag(10, 10, 80, 80)
    assert (session.points, session.box) == (five, None)
    np.testing.assert_array_equal(session.mask(), mask)
    session.click(60, 60, "remove")
    session.drag(10, 10, 80, 80)
    assert (len(session.points), session.box) == (4, [10, 10, 80, 80])


def test_nothing_works_before_a_picture_is_there(session):
    assert session.pictures() == []
    for act in (lambda: session.click(1, 1), session.everything, session.as_rle):
        with pytest.raises(PromptError, match=r"no picture yet|no single mask yet"):
            act()


def test_two_visitors_at_once_do_not_meet(artifact):
    shown = shown_artifacts({"onnx": artifact})
    scenes = {seed: picture(120, 160, seed) for seed in (1, 2)}

    def visit(seed, found):
        session = Session(shown)
        session.show(scenes[seed])
        for _ in range(3):
            session.clear()
            session.click(80, 60)
        found[seed] = session.mask()

    alone, together = {}, {}
    for seed in scenes:
        visit(seed, alone)
    threads = [threading.Thread(target=visit, args=(seed, together)) for seed in scenes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in scenes:
        np.testing.assert_array_equal(alone[seed], together[seed])
    assert (alone[1] != alone[2]).any()
