"""Prompts in the loop: where points are put, with which label, and what they depend on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from edgesam_deploy.distill.data.items import Batch
from edgesam_deploy.distill.prompts import Prompts, best_mask, error_points, first_prompts, points_in_masks
from edgesam_deploy.distill.randomness import coin, generator, uniform_rows
from edgesam_deploy.errors import DataError


def batch(indices=(4, 9), counts=(2, 1), side=32):
    total = sum(counts)
    masks = torch.zeros(total, side, side, dtype=torch.bool)
    masks[:, 8:20, 4:12] = True
    return Batch(
        torch.tensor(indices), tuple(map(str, indices)), torch.zeros(len(indices), 3, side, side),
        torch.full((len(indices), 2), side), torch.tensor(counts), torch.rand(total, 4), torch.rand(total, 1, 2), masks,
    )  # fmt: skip


def noise(count, cells, seed=0):
    return torch.rand(count, cells, generator=torch.Generator().manual_seed(seed))


def test_points_fall_where_the_masks_differ():
    mask, target = torch.zeros(2, 16, 16, dtype=torch.bool), torch.zeros(2, 16, 16, dtype=torch.bool)
    target[0, 2:8, 3:9] = True  # missed
    mask[1, 10:14, 0:12] = True  # added
    for seed in range(20):
        points, labels = error_points(mask, target, noise(2, 256, seed), 2, 4)
        assert labels.tolist() == [[1, 1], [0, 0]]
        cells = ((points + 0.5) / 4 - 0.5).long()
        for row in range(2):
            assert all((mask ^ target)[row, y, x] for x, y in cells[row].tolist())
        assert not torch.equal(points[0, 0], points[0, 1])


def test_points_are_uniform():
    mask, target = torch.zeros(4000, 4, 8, dtype=torch.bool), torch.zeros(4000, 4, 8, dtype=torch.bool)
    target[:, 1:3, 1:6] = True
    points, _ = error_points(mask, target, noise(4000, 32), 1, 1)
    cells, seen = torch.unique((points[:, 0, 1] * 8 + points[:, 0, 0]).long(), return_counts=True)
    assert cells.tolist() == [y * 8 + x for y in (1, 2) for x in range(1, 6)]
    assert ((seen - 400).abs() < 90).all()  # 4.7 standard deviations


def test_few_errors_ask_for_nothing():
    mask, target = torch.zeros(2, 16, 16, dtype=torch.bool), torch.zeros(2, 16, 16, dtype=torch.bool)
    target[0, 0, :9], target[1, 0, :10] = True, True
    points, labels = error_points(mask, target, noise(2, 256), 1, 4)
    assert labels.tolist() == [[-2], [1]]
    assert points[0].tolist() == [[0, 0]]


def test_centres_and_the_references_corners():
    mask, target = torch.zeros(1, 8, 8, dtype=torch.bool), torch.zeros(1, 8, 8, dtype=torch.bool)
    target[0, 3:5, 0:8] = True
    middle, _ = error_points(mask, target, noise(1, 64), 1, 4)
    corner, _ = error_points(mask, target, noise(1, 64), 1, 4, corners=True)
    assert (middle - corner).tolist() == [[[1.5, 1.5]]]
    assert (corner % 4 == 0).all()


def test_one_coin_for_the_batch():
    kinds = [first_prompts(batch(), ("box", "point"), 0, update).kind for update in range(200)]
    assert 70 < kinds.count("box") < 130
    assert kinds == [first_prompts(batch((7,), (1,)), ("box", "point"), 0, update).kind for update in range(200)]
    given = batch()
    box = first_prompts(given, ("box",), 0, 0)
    assert box.points is None
    assert box.boxes is given.boxes
    point = first_prompts(given, ("point",), 0, 0)
    assert point.boxes is None
    assert torch.equal(point.points, given.points)
    assert point.labels.tolist() == [[1], [1], [1]]


def test_data_without_points():
    bare = replace(batch(), points=None)
    with pytest.raises(DataError, match="points_from_masks"):
        first_prompts(bare, ("point",), 0, 0)
    prompts = first_prompts(bare, ("point",), 0, 0, from_masks=True)
    assert all(bare.masks[n, int(y), int(x)] for n, ((x, y),) in enumerate(prompts.points.tolist()))


def test_an_empty_mask_gives_an_ignored_point():
    given = batch()
    given.masks[1] = False
    points, labels = points_in_masks(given, 0, 0)
    assert labels.tolist() == [[1], [-2], [1]]
    assert points[1].tolist() == [[0, 0]]


def test_points_join_behind_and_the_box_stays():
    boxes = torch.rand(2, 4)
    prompts = Prompts(None, None, boxes).with_points(torch.ones(2, 1, 2), torch.ones(2, 1))
    prompts = prompts.with_points(torch.zeros(2, 1, 2), torch.zeros(2, 1))
    assert prompts.points[:, :, 0].tolist() == [[1, 0], [1, 0]]
    assert prompts.boxes is boxes


def test_best_mask():
    masks = torch.arange(2 * 3).reshape(2, 3, 1, 1).float()
    assert best_mask(masks, torch.tensor([[0.1, 0.9, 0.2], [0.3, 0.1, 0.2]])).flatten().tolist() == [1, 3]


def test_randomness_belongs_to_the_picture_not_to_the_batch():
    together = uniform_rows("x", 0, 5, torch.tensor([3, 8]), torch.tensor([2, 1]), 4)
    alone = uniform_rows("x", 0, 5, torch.tensor([8]), torch.tensor([1]), 4)
    assert torch.equal(together[2:], alone)
    assert not torch.equal(alone, uniform_rows("x", 0, 6, torch.tensor([8]), torch.tensor([1]), 4))
    assert not torch.equal(alone, uniform_rows("y", 0, 5, torch.tensor([8]), torch.tensor([1]), 4))
    assert coin("c", 1, 2) == coin("c", 1, 2)
    assert generator("g", 0).initial_seed() != generator("g", 1).initial_seed()
