"""Data sets on disk: each layout read in a fixed order, and what is damaged in it named."""

from __future__ import annotations

import json
import pickle
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from edgesam_deploy.distill.data import open_source
from edgesam_deploy.distill.data.check import check_source
from edgesam_deploy.distill.data.sources import compressed_runs
from edgesam_deploy.distill.synthetic import scene
from edgesam_deploy.errors import DataError, ImageError, UnknownName


@pytest.fixture
def copy(scenes, tmp_path):
    """A copy of the data set to damage."""
    shutil.copytree(scenes, tmp_path / "data")
    return tmp_path / "data"


def edit(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_a_folder(scenes):
    source = open_source("sa1b", scenes, "train")
    assert source.names == [f"scene_{i:06d}" for i in range(6)]
    read = source.read(4, masks=True)
    drawn = scene(0, "train", 4, 96)
    assert (read.masks == drawn.masks).all()
    for box, (x, y), mask in zip(read.boxes, read.points[:, 0], drawn.masks, strict=True):
        ys, xs = np.nonzero(mask)
        assert box.tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        assert mask[int(y), int(x)]
    assert source.read(4, masks=False).masks is None


def test_tars_hold_the_same(scenes, tmp_path):
    """Members in any order, two tars, names as SA-1B's begin: the samples of the folder."""
    for number in range(2):
        with tarfile.open(tmp_path / f"sa_{number:06d}.tar", "w") as tar:
            for stem in [f"scene_{i:06d}" for i in range(5, -1, -1) if i % 2 == number]:
                tar.add(scenes / f"annotations/train/{stem}.json", f"./{stem}.json")
                tar.add(scenes / f"images/train/{stem}.jpg", f"./{stem}.jpg")
    folder, tars = open_source("sa1b", scenes, "train"), open_source("sa1b_tar", tmp_path, "train")
    assert tars.names == folder.names
    for index in (5, 0, 3):
        one, other = folder.read(index, masks=True), tars.read(index, masks=True)
        assert (one.image == other.image).all()
        assert (one.masks == other.masks).all()
    again = pickle.loads(pickle.dumps(tars))  # as a spawned worker gets it
    assert (again.read(2, masks=False).image == folder.read(2, masks=False).image).all()


def test_a_tar_that_is_cut_short(scenes, tmp_path):
    whole = tmp_path / "whole.tar"
    with tarfile.open(whole, "w") as tar:
        tar.add(scenes / "images/train/scene_000000.jpg", "scene_000000.jpg")
    cut = tmp_path / "cut.tar"
    cut.write_bytes(whole.read_bytes()[:700])
    with pytest.raises(DataError, match=r"cut\.tar"):
        open_source("sa1b_tar", cut, "train").read(0, masks=False)
    source = open_source("sa1b_tar", whole, "train")
    with pytest.raises(DataError, match=r"scene_000000\.json: not in the tar"):
        source.read(0, masks=False)
    (tmp_path / "no.tar").write_bytes(b"\x1f\x8b" + bytes(100))
    with pytest.raises(DataError, match="uncompressed tar"):
        open_source("sa1b_tar", tmp_path / "no.tar", "train")


def coco_file(folder, name="instances_val2017.json", **changes):
    """Two scenes as COCO: polygons, run lengths both ways, a crowd, a picture without objects."""
    (folder / "annotations").mkdir(parents=True)
    (folder / "trainval").mkdir()
    images, rows = [], []
    for number in (7, 3, 5):
        drawn = scene(0, "coco", number, 80)
        height, width = drawn.image.shape[:2]
        Image.fromarray(drawn.image).save(folder / f"trainval/{number}.png")
        images.append({"id": number, "height": height, "width": width, "file_name": f"{number}.png"})
        if number == 5:
            continue
        for index, mask in enumerate(drawn.masks):
            packed = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
            runs = {"size": packed["size"], "counts": compressed_runs(packed["counts"])}
            text = {"size": packed["size"], "counts": packed["counts"].decode()}
            rows.append({
                "id": number * 100 + index, "image_id": number, "category_id": 1, "iscrowd": int(index == 1),
                "bbox": coco.toBbox(packed).tolist(), "area": int(mask.sum()),
                "segmentation": runs if index % 2 else text,
            })  # fmt: skip
    square = [[10.0, 10.0, 30.0, 10.0, 30.0, 40.0, 10.0, 40.0]]
    rows.append({
        "id": 999, "image_id": 3, "category_id": 1, "iscrowd": 0, "bbox": [10, 10, 20, 30], "area": 600,
        "segmentation": square,
    })  # fmt: skip
    categories = [{"id": 1, "name": "shape"}]
    content = {"images": images, "annotations": rows, "categories": categories, **changes}
    (folder / "annotations" / name).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("coco", "instances_val2017.json"),
        ("lvis", "lvis_v1_val.json"),
        ("lvis_cocofied", "lvis_v1_val_cocofied.json"),
    ],
)
def test_coco(tmp_path, kind, name):
    coco_file(tmp_path, name)
    source = open_source(kind, tmp_path, "val")
    assert source.names == ["3", "7"]  # by id; the one without objects is left out
    drawn = scene(0, "coco", 3, 80)
    kept = [i for i in range(len(drawn.masks)) if i != 1]  # the crowd
    read = source.read(0, masks=True)
    assert (read.image == drawn.image).all()
    assert (read.masks[:-1] == drawn.masks[kept]).all()
    assert read.boxes[-1].tolist() == [10, 10, 30, 40]
    assert read.masks[-1].sum() == 600
    assert read.points is None


def test_coco_ignores_what_it_is_told_to(tmp_path):
    coco_file(tmp_path)
    (tmp_path / "annotations/ignore.json").write_text("[3]")
    assert open_source("coco", tmp_path, "val").names == ["7"]


def test_coco_that_is_none(tmp_path):
    (tmp_path / "annotations").mkdir()
    with pytest.raises(DataError, match=r"instances_val2017\.json"):
        open_source("coco", tmp_path, "val")
    (tmp_path / "annotations/instances_val2017.json").write_text("[1, 2]")
    with pytest.raises(DataError, match="not COCO's JSON"):
        open_source("coco", tmp_path, "val")
    (tmp_path / "annotations/instances_val2017.json").write_text('{"images": [{"id": 1}], "annotations": []}')
    with pytest.raises(DataError, match="without id, height or width"):
        open_source("coco", tmp_path, "val")


def test_pairs_in_both_layouts(tmp_path):
    """HQ-Seg-44K: im/ and gt/ beside each other, or picture and mask side by side; the mask is what exceeds 128."""
    drawn = scene(0, "pairs", 0, 64)
    for picture, mask in (("DIS5K/im/a.jpg", "DIS5K/gt/a.png"), ("cascade/b.jpg", "cascade/b.png")):
        for file in (picture, mask):
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn.image).save(tmp_path / picture)
        Image.fromarray((drawn.masks[0] * 200 + 20).astype(np.uint8)).save(tmp_path / mask)
    Image.fromarray(drawn.image).save(tmp_path / "cascade/alone.jpg")
    source = open_source("pairs", tmp_path, "train")
    assert source.names == ["DIS5K/im/a", "cascade/b"]
    for index in range(2):
        read = source.read(index, masks=True)
        assert (read.masks[0] == drawn.masks[0]).all()
        assert read.boxes.shape == (1, 4)


def test_semantic_folders(tmp_path):
    labels = np.arange(48, dtype=np.uint8).reshape(6, 8)
    for kind in ("images", "labels"):
        (tmp_path / kind / "train").mkdir(parents=True)
    Image.new("RGB", (8, 6)).save(tmp_path / "images/train/x.jpg")
    Image.fromarray(labels).save(tmp_path / "labels/train/x.png")
    read = open_source("semantic", tmp_path, "train").read(0, masks=False)
    assert (read.labels == labels).all()
    Image.new("RGB", (8, 6), (1, 2, 3)).save(tmp_path / "labels/train/x.png")
    with pytest.raises(DataError, match="in colour"):
        open_source("semantic", tmp_path, "train").read(0, masks=False)


def test_layouts_and_folders_that_are_not_there(tmp_path):
    with pytest.raises(UnknownName, match="did you mean sa1b"):
        open_source("sa1", tmp_path, "train")
    with pytest.raises(DataError, match="data synthesize"):
        open_source("sa1b", tmp_path / "none", "train")
    with pytest.raises(DataError, match="no picture of the layout 'sa1b'"):
        open_source("sa1b", tmp_path, "train")


# --- damage ----------------------------------------------------------------------------------------------------------


def grow(content):
    content["annotations"][0]["segmentation"]["counts"] += "0a"


def shrink(content):
    content["annotations"][0]["segmentation"]["counts"] = content["annotations"][0]["segmentation"]["counts"][:-1]


def strange(content):
    content["annotations"][0]["segmentation"]["counts"] = "\x01\x02"


def resize(content):
    content["image"]["height"] += 1


def lose(content):
    del content["annotations"][0]["bbox"]


def not_a_number(content):
    content["annotations"][0]["bbox"][2] = float("nan")


@pytest.mark.parametrize("change", [grow, shrink, strange, resize, lose, not_a_number])
def test_damaged_annotations_are_named(copy, change):
    edit(copy / "annotations/train/scene_000002.json", change)
    with pytest.raises(DataError, match=r"scene_000002\.json"):
        open_source("sa1b", copy, "train").read(2, masks=True)


def test_the_report_lists_all_of_it(copy):
    picture = copy / "images/train/scene_000000.jpg"
    picture.write_bytes(picture.read_bytes()[:400])
    edit(copy / "annotations/train/scene_000001.json", shrink)
    (copy / "annotations/train/scene_000002.json").unlink()

    def empty(content):
        height, width = content["image"]["height"], content["image"]["width"]
        content["annotations"][0]["segmentation"] = {"size": [height, width], "counts": [height * width]}
        content["annotations"][0]["bbox"][0] = -50

    edit(copy / "annotations/train/scene_000003.json", empty)
    report = check_source(open_source("sa1b", copy, "train"))
    assert report.pictures == 6
    assert set(report.broken) == {"scene_000000", "scene_000001", "scene_000002"}
    assert "truncated" in report.broken["scene_000000"]
    assert "run lengths" in report.broken["scene_000001"]
    assert "No such file" in report.broken["scene_000002"]
    assert set(report.odd) == {"scene_000003"}
    assert "empty mask: object 0" in report.odd["scene_000003"]
    assert "box outside of the picture: object 0" in report.odd["scene_000003"]
    with pytest.raises(ImageError):
        open_source("sa1b", copy, "train").read(0, masks=False)


def test_compressed_runs_equal_pycocotools(rng):
    for _ in range(30):
        mask = np.asfortranarray(rng.random((37, 53)) < rng.uniform(0.01, 0.99)).astype(np.uint8)
        packed = coco.encode(mask)
        runs = compressed_runs(packed["counts"])
        values = np.repeat(np.arange(len(runs)) % 2, runs).reshape(53, 37).T
        assert (values == mask).all()
