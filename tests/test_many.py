"""Folders of pictures: what results.json says, prompts from files, going on where it stopped, memory."""

from __future__ import annotations

import json
import os
import shutil
import tracemalloc

import numpy as np
import pytest
from PIL import Image
from scenes import picture

from edgesam_deploy.detectors import BoxDetector, Regions, proposed
from edgesam_deploy.errors import DataError, OutputError
from edgesam_deploy.many import Ledger, Prompt, jobs_from, jobs_with, pictures, segment
from edgesam_deploy.model.masks import box_xyxy_to_xywh
from edgesam_deploy.runtime import open_predictor

PROMPT = Prompt([[60.0, 50.0]], None, {"category_id": 7})


@pytest.fixture(scope="module")
def predictor(bundles):
    return open_predictor(bundles().path, threads=1)


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "pictures"
    place.mkdir()
    for seed in range(4):
        Image.fromarray(picture(90, 120, seed)).save(place / f"{seed}.png")
    (place / "notes.txt").write_text("not a picture")
    return place


def results(out):
    return json.loads((out / "results.json").read_text())


def test_results_are_the_predictors_best_masks(predictor, folder, tmp_path):
    coco = pytest.importorskip("pycocotools.mask")
    tally = segment(predictor, jobs_with(pictures(folder), (PROMPT,)), Ledger(tmp_path / "out", {}))
    assert tally == {"pictures": 4, "prompts": 4, "resumed": 0, "failed": 0}
    for number, entry in enumerate(results(tmp_path / "out")):
        predictor.set_image(picture(90, 120, number))
        masks, scores, _ = predictor.predict([[60, 50]], [1])
        best = masks[scores.argmax()]
        np.testing.assert_array_equal(coco.decode(entry["segmentation"]), best)
        assert entry["area"] == best.sum()
        assert entry["score"] == pytest.approx(scores.max())
        assert entry["bbox"] == coco.toBbox(entry["segmentation"]).tolist()
        assert (entry["image_id"], entry["file_name"], entry["category_id"]) == (number + 1, f"{number}.png", 7)


def test_a_stopped_run_goes_on_and_ends_the_same(predictor, folder, tmp_path):
    jobs = jobs_with(pictures(folder), (PROMPT,))
    segment(predictor, jobs, Ledger(tmp_path / "whole", {"a": 1}))
    out = tmp_path / "stopped"

    def stop(name):
        if name == "2.png":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        segment(predictor, jobs, Ledger(out, {"a": 1}), progress=stop)
    assert not (out / "results.json").exists()
    with (out / "progress.jsonl").open("a") as file:
        file.write('{"file_name": "2.png", "resu')  # killed while it wrote
    tally = segment(predictor, jobs, Ledger(out, {"a": 1}))
    assert (tally["resumed"], tally["pictures"]) == (2, 2)
    assert (out / "results.json").read_bytes() == (tmp_path / "whole" / "results.json").read_bytes()
    with pytest.raises(OutputError, match="another run"):
        segment(predictor, jobs, Ledger(out, {"a": 2}))


def test_a_bad_picture_does_not_stop_the_others_and_is_tried_again(predictor, folder, tmp_path):
    whole = (folder / "1.png").read_bytes()
    (folder / "1.png").write_bytes(whole[:200])
    jobs = jobs_with(pictures(folder), (PROMPT,))
    assert segment(predictor, jobs, Ledger(tmp_path / "out", {}))["failed"] == 1
    assert [entry["image_id"] for entry in results(tmp_path / "out")] == [1, 3, 4]
    (folder / "1.png").write_bytes(whole)
    assert segment(predictor, jobs, Ledger(tmp_path / "out", {}))["pictures"] == 1
    assert sorted(entry["image_id"] for entry in results(tmp_path / "out")) == [1, 2, 3, 4]


def test_two_pictures_of_one_file_name(predictor, folder, tmp_path):
    (folder / "more").mkdir()
    shutil.copy(folder / "1.png", folder / "more" / "0.png")
    prompts = [{"box": [10, 20, 60, 60]}]
    (tmp_path / "p.json").write_text(json.dumps({"0.png": prompts, "more/0.png": prompts}))
    jobs = jobs_from(tmp_path / "p.json", folder)
    segment(predictor, jobs[:1], Ledger(tmp_path / "out", {}))  # as if stopped after the first
    tally = segment(predictor, jobs, Ledger(tmp_path / "out", {}))
    assert (tally["pictures"], tally["resumed"]) == (1, 1)
    assert [entry["file_name"] for entry in results(tmp_path / "out")] == ["0.png", "more/0.png"]


def test_a_picture_that_comes_in_between_gets_a_number_of_its_own(predictor, folder, tmp_path):
    segment(predictor, jobs_with(pictures(folder), (PROMPT,)), Ledger(tmp_path / "out", {}))
    shutil.copy(folder / "3.png", folder / "00.png")  # sorts before all others
    segment(predictor, jobs_with(pictures(folder), (PROMPT,)), Ledger(tmp_path / "out", {}))
    found = {entry["file_name"]: entry["image_id"] for entry in results(tmp_path / "out")}
    assert found == {"0.png": 1, "1.png": 2, "2.png": 3, "3.png": 4, "00.png": 6}


def test_a_name_that_is_not_utf8(predictor, folder, tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    shutil.copy(folder / "0.png", folder / name)
    tally = segment(predictor, jobs_with(pictures(folder), (PROMPT,)), Ledger(tmp_path / "out", {}))
    assert tally["pictures"] == 5
    assert name in [entry["file_name"] for entry in results(tmp_path / "out")]


@pytest.mark.parametrize("content", ["my own log\n", "{\n"])
def test_a_file_that_is_no_progress_is_left_alone(predictor, folder, tmp_path, content):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "progress.jsonl").write_text(content)
    with pytest.raises(OutputError, match="another run"):
        segment(predictor, jobs_with(pictures(folder), (PROMPT,)), Ledger(tmp_path / "out", {}))
    assert (tmp_path / "out" / "progress.jsonl").read_text() == content


def test_an_empty_progress_file_gets_its_first_line(predictor, folder, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "progress.jsonl").touch()
    for done in (0, 4):
        tally = segment(predictor, jobs_with(pictures(folder), (PROMPT,)), Ledger(tmp_path / "out", {"a": 1}))
        assert tally["resumed"] == done


def test_prompts_from_coco(predictor, folder, tmp_path):
    box = [10, 20, 50, 40]  # x, y, width, height
    content = {
        "images": [{"id": 41, "file_name": "0.png"}, {"id": 42, "file_name": "1.png"}],
        "annotations": [{"id": 5, "image_id": 42, "category_id": 3, "bbox": box}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(content))
    jobs = jobs_from(tmp_path / "coco.json", folder)
    assert [(job.image_id, len(job.prompts)) for job in jobs] == [(41, 0), (42, 1)]
    assert box_xyxy_to_xywh(jobs[1].prompts[0].box).tolist() == box
    segment(predictor, jobs, Ledger(tmp_path / "out", {}))
    (entry,) = results(tmp_path / "out")
    assert (entry["image_id"], entry["category_id"], entry["annotation_id"]) == (42, 3, 5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "expected an object"),
        ("{", "not JSON"),
        ('{"0.png": {}}', "expected a list"),
        ('{"0.png": [{"points": [[1]]}]}', "points are lists"),
        ('{"0.png": [{"box": [1, 2, 3]}]}', "a box is a list"),
        ('{"0.png": [{"box": null}]}', "neither a point nor a box"),
        ('{"none.png": []}', "not there"),
        ('{"images": [], "annotations": [{"bbox": [1, 2, 3, "x"]}]}', "bbox"),
        ('{"images": [{"id": 1}], "annotations": []}', "file_name"),
    ],
)
def test_prompts_that_do_not_fit_are_named(folder, tmp_path, content, message):
    (tmp_path / "prompts.json").write_text(content)
    with pytest.raises(DataError, match=message):
        jobs_from(tmp_path / "prompts.json", folder)


class Constant:
    """Stands where a network would, to see what the walk over a folder itself keeps."""

    def set_image(self, image):
        self.size = image.shape[:2]

    def predict(self, **_):
        return np.zeros((1, *self.size), bool), np.ones(1, np.float32), None


def test_memory_does_not_grow_with_the_folder(folder, tmp_path):
    def peak(count):
        for seed in range(count):
            shutil.copy(folder / f"{seed % 4}.png", tmp_path / f"many{count}_{seed:04}.png")
        jobs = jobs_with(sorted(tmp_path.glob(f"many{count}_*.png")), (PROMPT,))
        tracemalloc.start()
        segment(Constant(), jobs, Ledger(tmp_path / f"out{count}", {}))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(4)  # what is imported and cached on the way
    assert peak(120) - peak(12) < 108 * 1000  # their names; each picture has 32,400 bytes


def test_regions_finds_what_stands_out():
    image = np.full((100, 200, 3), 240, np.uint8)
    image[20:60, 30:80] = (200, 30, 40)
    image[70:90, 120:190] = (20, 90, 30)
    image[5, 5] = 0  # a speck
    detector = Regions()
    assert isinstance(detector, BoxDetector)
    assert sorted(proposed(detector, image)) == [[30, 20, 80, 60], [120, 70, 190, 90]]
    assert proposed(detector, np.zeros((40, 40, 3), np.uint8)) == []


def test_answers_that_are_no_boxes_are_refused():
    image = np.zeros((10, 10, 3), np.uint8)
    assert proposed(lambda _: ([[-5, 2, 20, 5], [3, 3, 3, 9]], [1, 1]), image) == [[0, 2, 10, 5]]
    for answer in (None, ([[1, 2]], [1]), ([[0, 0, 1, 1]], []), ([[0, 0, np.nan, 1]], [1])):
        with pytest.raises(DataError):
            proposed(lambda _, answer=answer: answer, image)
