"""Synthetic scenes: exact, deterministic, not trivial."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco
from scipy.ndimage import binary_fill_holes

from edgesam_deploy.distill import synthetic
from edgesam_deploy.distill.synthetic import MIN_VISIBLE, Style, scene, synthesize
from edgesam_deploy.errors import OutputError, UsageError


def digest(drawn):
    return hashlib.sha256(drawn.image.tobytes() + drawn.masks.tobytes()).hexdigest()


def test_a_scene_depends_on_its_own_number_only():
    assert digest(scene(0, "train", 5, 128)) == digest(scene(0, "train", 5, 128))
    others = [scene(0, "train", 6, 128), scene(0, "val", 5, 128), scene(1, "train", 5, 128)]
    assert len({digest(scene(0, "train", 5, 128)), *map(digest, others)}) == 4


def test_masks_are_disjoint_and_visible():
    for index in range(20):
        drawn = scene(3, "train", index, 128)
        assert drawn.image.dtype == np.uint8
        assert max(drawn.image.shape) == 128
        assert drawn.masks.sum(0).max() == 1
        assert (drawn.masks.mean((1, 2)) >= MIN_VISIBLE).all()


def test_a_disc_has_the_area_of_a_disc(monkeypatch):
    """The outline is where the formula says: what a distance below 0 encloses is pi r^2 times the stretch."""
    monkeypatch.setattr(synthetic, "OUTLINES", (synthetic._ellipse,))
    for seed in range(8):
        rng = np.random.default_rng(seed)
        radius, centre = 40.0, np.array([64.0, 64.0])
        distance = synthetic._distance(rng, (slice(0, 128), slice(0, 128)), centre, radius, 0.15)
        replay = np.random.default_rng(seed)
        stretch = replay.uniform(0.55, 1.0)
        replay.uniform(), replay.integers(1)
        ring = replay.random() < 0.15
        inner = replay.uniform(0.35, 0.6) if ring else 0.0
        wanted = np.pi * radius**2 * stretch * (1 - inner**2)
        assert (distance < 0).sum() == pytest.approx(wanted, rel=0.01)


def test_colour_alone_does_not_tell_the_objects():
    """Even with every object's mean colour known, the nearest one is often another's: texture, shadow, noise."""
    wrong = []
    for index in range(12):
        drawn = scene(0, "train", index, 128)
        regions = [*drawn.masks, ~drawn.masks.any(0)]
        regions = [r for r in regions if r.any()]
        means = np.stack([drawn.image[r].mean(0) for r in regions])
        nearest = np.linalg.norm(drawn.image[:, :, None].astype(float) - means, axis=-1).argmin(-1)
        truth = np.select(regions, range(len(regions)))
        wrong.append((nearest != truth).mean())
    assert np.mean(wrong) > 0.05


def test_files_are_in_sa1bs_layout(tmp_path):
    stems = list(synthesize(tmp_path, count=3, seed=7, size=96, split="val"))
    assert stems == ["scene_000000", "scene_000001", "scene_000002"]
    content = json.loads((tmp_path / "annotations/val/scene_000001.json").read_text())
    drawn = scene(7, "val", 1, 96)
    picture = np.asarray(Image.open(tmp_path / "images/val/scene_000001.jpg"))
    assert np.abs(picture.astype(float) - drawn.image).mean() < 12  # JPEG: half the chroma of small checks is gone
    assert (content["image"]["height"], content["image"]["width"]) == drawn.image.shape[:2]
    assert len(content["annotations"]) == len(drawn.masks)
    for row, mask in zip(content["annotations"], drawn.masks, strict=True):
        assert (coco.decode(row["segmentation"]) == mask).all()
        assert row["area"] == mask.sum()
        assert row["bbox"] == coco.toBbox(row["segmentation"]).tolist()
        ((x, y),) = row["point_coords"]
        assert mask[int(y), int(x)]


def test_it_writes_beside_nothing_that_is_there(tmp_path):
    list(synthesize(tmp_path, count=1, size=64))
    with pytest.raises(OutputError, match="holds files already"):
        list(synthesize(tmp_path, count=1, size=64))
    list(synthesize(tmp_path, count=1, size=64, split="val"))


def test_interrupted_making_goes_on(tmp_path):
    """A kill leaves some scenes, and a picture without its annotation: the end is that of one go."""
    list(synthesize(tmp_path / "whole", count=4, size=64))
    list(synthesize(tmp_path / "cut", count=3, size=64))
    (tmp_path / "cut/annotations/train/scene_000002.json").rename(tmp_path / "cut/annotations/train/.scene_000002")
    (tmp_path / "cut/images/train/scene_000002.jpg").write_bytes(b"cut short")
    kept = (tmp_path / "cut/images/train/scene_000000.jpg").stat().st_mtime_ns
    assert len(list(synthesize(tmp_path / "cut", count=4, size=64, go_on=True))) == 4
    assert (tmp_path / "cut/images/train/scene_000000.jpg").stat().st_mtime_ns == kept
    files = [
        [p.relative_to(place) for p in sorted(place.rglob("*")) if p.is_file()] for place in sorted(tmp_path.iterdir())
    ]
    assert files[0] == files[1]
    assert all((tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes() for name in files[0])


def test_going_on_leaves_other_files_alone(tmp_path):
    list(synthesize(tmp_path / "other", count=3, size=64, seed=5))
    with pytest.raises(OutputError, match="holds other pictures"):
        list(synthesize(tmp_path / "other", count=4, size=64, go_on=True))
    own = tmp_path / "mine/images/train/holiday.jpg"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"a picture")
    with pytest.raises(OutputError, match="holds other pictures"):
        list(synthesize(tmp_path / "mine", count=4, size=64, go_on=True))
    assert own.read_bytes() == b"a picture"


@pytest.mark.parametrize(("count", "size"), [(0, 64), (1, 8), (1, 10000)])
def test_values_that_make_no_scene(tmp_path, count, size):
    with pytest.raises(UsageError, match="at least 1 scene"):
        list(synthesize(tmp_path, count=count, size=size))


def test_a_style_is_kept():
    plain, ring = Style(most=2, smallest=0.3, rings=0), Style(most=1, smallest=0.3, rings=1)
    drawn = [scene(3, "train", index, 128, plain) for index in range(12)]
    assert all(len(one.masks) <= 2 for one in drawn)
    largest = [max(mask.mean() for mask in one.masks) for one in drawn]
    assert np.median(largest) > 0.1
    alone = [one.masks[0] for one in drawn if len(one.masks) == 1]
    assert not any(holes(mask) for mask in alone)
    assert sum(holes(scene(3, "train", index, 128, ring).masks[0]) for index in range(6)) >= 3  # the frame opens some


def test_no_mask_is_asked_of_what_is_mostly_hidden():
    """The same pictures with and without: half of an object in sight is enough, less is not."""
    crowded, asked = Style(most=9, smallest=0.2), Style(most=9, smallest=0.2, covered=0.5)
    kept, dropped = 0, 0
    for index in range(6):
        every, few = scene(3, "train", index, 128, crowded), scene(3, "train", index, 128, asked)
        np.testing.assert_array_equal(every.image, few.image)
        asked_for, visible = ({mask.tobytes() for mask in drawn.masks} for drawn in (few, every))
        assert asked_for <= visible
        kept, dropped = kept + len(asked_for), dropped + len(visible - asked_for)
    assert kept > dropped > 3


def holes(mask):
    return (binary_fill_holes(mask) & ~mask).any()


@pytest.mark.parametrize("values", [(0, 0.1, 0), (65, 0.1, 0), (3, 0.5, 0), (3, 0.1, 1.5), (3, 0.1, 0, -1)])
def test_styles_that_cannot_be(values):
    with pytest.raises(UsageError, match="most lies in"):
        Style(*values)
