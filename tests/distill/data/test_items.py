"""Samples in the model frame: geometry, choice of prompts, and survival of broken ones."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from edgesam_deploy.distill.data import Annotated, open_source
from edgesam_deploy.distill.data.items import (
    ItemOptions,
    Items,
    choose,
    collate,
    flip_and_scale,
    jitter,
    make_item,
    suppress_covered,
    within_area,
)
from edgesam_deploy.errors import DataError
from edgesam_deploy.model.transforms import PIXEL_MEAN, PIXEL_STD

OPTIONS = ItemOptions(image_size=128, masks=True)


def sample(height=60, width=100, boxes=((10, 6, 50, 30),)):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    masks = np.zeros((len(boxes), height, width), dtype=np.bool_)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    corners = np.array(boxes, dtype=np.float32)
    return Annotated("x", image, corners, corners[:, None, :2] + 1, masks)


def test_the_model_frame(rng):
    item = make_item(sample(), OPTIONS, rng)
    assert item.size == (77, 128)  # 60 * 1.28 = 76.8
    assert item.boxes.tolist() == [pytest.approx([12.8, 6 * 77 / 60, 64.0, 30 * 77 / 60])]
    assert item.points[0, 0].tolist() == pytest.approx([11 * 1.28, 7 * 77 / 60])
    assert item.masks.shape == (1, 128, 128)
    columns = np.flatnonzero(item.masks[0].numpy().any(0))
    assert (columns.min(), columns.max()) == (13, 63)
    assert item.image[:, 77:].abs().max() == 0


def test_a_plain_picture_keeps_its_colour(rng):
    read = replace(sample(), image=np.full((60, 100, 3), 200, np.uint8))
    item = make_item(read, OPTIONS, rng)
    wanted = [(200 - m) / s for m, s in zip(PIXEL_MEAN, PIXEL_STD, strict=True)]
    assert torch.allclose(item.image[:, :77], torch.tensor(wanted).view(3, 1, 1).expand(3, 77, 128), atol=1e-5)


def test_batches_keep_the_owner_of_each_prompt(rng):
    items = [make_item(sample(boxes=[(1, 2, 30, 30)] * n), OPTIONS, rng, index=n) for n in (2, 1, 3)]
    batch = collate(items)
    assert batch.counts.tolist() == [2, 1, 3]
    assert batch.owner.tolist() == [0, 0, 1, 2, 2, 2]
    assert batch.boxes.shape == (6, 4)
    assert batch.masks_at(32).shape == (6, 32, 32)


def test_valid_is_the_bilinear_half(rng):
    valid = collate([make_item(sample(), OPTIONS, rng)]).valid(8)[0]
    # cells of 16 pixels, their centres between pixels 7 and 8 of each: row 4 ends at pixel 76, its samples are 71, 72
    assert valid[:, 0].tolist() == [1, 1, 1, 1, 1, 0, 0, 0]
    assert valid[0].tolist() == [1] * 8


def test_areas_and_nms():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 4, 4], [0, 0, 50, 50]], np.float32)
    assert within_area(boxes, (20, 1000)).tolist() == [0]
    assert within_area(boxes, (None, 50)).tolist() == [1]
    assert within_area(boxes, (9000, None)).tolist() == [0, 1, 2]  # nothing survives: nothing is filtered
    masks = np.zeros((3, 10, 10), np.bool_)
    masks[0, :5, :5] = masks[1, :, :] = True
    masks[2, 0, 0] = True
    assert suppress_covered(masks, 0.5).tolist() == [1]
    assert suppress_covered(masks, 1.0).tolist() == [0, 1, 2]


def test_choosing_prompts(rng):
    assert choose(3, 5, rng, with_replacement=False).tolist() == [0, 1, 2]
    chosen = choose(100, 10, rng, with_replacement=False)
    assert len(set(chosen.tolist())) == 10
    repeated = [len(set(choose(12, 10, rng, with_replacement=True).tolist())) for _ in range(20)]
    assert max(repeated) < 10  # the reference's way


def test_jitter_is_bounded(rng):
    boxes = np.tile(np.array([[100, 100, 900, 140]], np.float32), (2000, 1))
    moved = jitter(boxes, rng) - boxes
    assert np.abs(moved[:, ::2]).max() == 20  # a tenth of 800 is beyond the limit
    assert moved[:, 1::2].std() == pytest.approx(4.0, rel=0.05)


def test_flip_and_scale_moves_boxes_with_masks():
    sizes = set()
    for seed in range(12):
        read = flip_and_scale(sample(), 128, np.random.default_rng(seed))
        assert read.image.shape == (128, 128, 3)
        assert read.masks.shape == (1, 128, 128)
        if read.masks.any():
            ys, xs = np.nonzero(read.masks[0])
            assert read.boxes[0].tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        sizes.add(int(read.masks.sum()))
    assert len(sizes) > 6


def test_nothing_to_ask_for_is_an_error(rng):
    read = sample()
    with pytest.raises(DataError, match="no object"):
        make_item(replace(read, masks=np.zeros_like(read.masks)), OPTIONS, rng)
    with pytest.raises(DataError, match="no object"):
        make_item(replace(read, boxes=read.boxes[:0], masks=read.masks[:0], points=None), OPTIONS, rng)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sample_is_the_same_whoever_loads_it(scenes, workers):
    items = Items(open_source("sa1b", scenes, "train"), replace(OPTIONS, box_jitter=True, max_prompts=2), seed=3)
    items.set_epoch(4)
    alone = collate([items[i] for i in range(6)])
    loaded = list(DataLoader(items, 3, collate_fn=collate, num_workers=workers))
    assert torch.equal(torch.cat([b.boxes for b in loaded]), alone.boxes)
    items.set_epoch(5)
    assert not torch.equal(collate([items[i] for i in range(6)]).boxes, alone.boxes)


def test_a_broken_sample_is_replaced_and_named(scenes, tmp_path):
    shutil.copytree(scenes, tmp_path / "data")
    picture = tmp_path / "data/images/train/scene_000005.jpg"
    picture.write_bytes(picture.read_bytes()[:300])
    items = Items(open_source("sa1b", tmp_path / "data", "train"), OPTIONS)
    item = items[5]
    assert item.name == "scene_000000"  # the next one
    assert len(item.broken) == 1
    assert "scene_000005" in item.broken[0]
    assert collate([items[4], item]).broken == item.broken
    for path in (tmp_path / "data/images/train").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="6 samples in a row cannot be used"):
        items[0]
