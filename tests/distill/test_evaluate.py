"""Evaluation: figures by their definitions, prompts where they should be, the reference's protocol."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion
from tiny import CONFIG

from edgesam_deploy.distill.data import open_source
from edgesam_deploy.distill.data.coco import CocoSource
from edgesam_deploy.distill.evaluate import (
    Protocol,
    average_precision,
    boundary,
    boundary_iou,
    deepest,
    evaluate,
    grown,
    iou,
)
from edgesam_deploy.errors import DataError, UsageError
from edgesam_deploy.model.base_predictor import Answers, PromptPredictor
from edgesam_deploy.model.predictor import SamPredictor
from edgesam_deploy.model.registry import load


class Oracle(PromptPredictor):
    """Knows the masks of a source: answers with what lies at the prompt, four masks, each moved by ``wrong`` cells."""

    image_size = 128

    def __init__(self, source, wrong=(0, 0, 0, 0)):
        self.reads = [source.read(i, masks=True) for i in range(len(source))]
        self.wrong, self.asked = wrong, []

    def encode(self, image):
        self.read = next(r for r in self.reads if r.image.shape == image.shape and (r.image == image).all())
        return np.zeros(1)

    def decode(self, prompts, mask_input):
        self.asked.append(prompts)
        logits = np.stack([self.answer(*slots) for slots in zip(prompts.coords, prompts.labels, strict=True)])
        scores = np.tile(np.array([0.1, 0.4, 0.3, 0.2], np.float32), (len(logits), 1))
        return Answers(logits, scores)

    def answer(self, coords, labels):
        height, width = self.read.size
        scale = max(height, width) / 128
        if labels[0] == 1:
            x, y = (coords[0] * scale).round().astype(int)
            mask = next(m for m in self.read.masks if m[min(y, height - 1), min(x, width - 1)])
        else:
            x0, y0, x1, y1 = (coords[labels >= 2].ravel() * scale).tolist()
            mask = min(self.read.masks, key=lambda m: np.abs(np.array(box_of(m)) - [x0, y0, x1, y1]).sum())
        planes = torch.zeros(1, 1, 128, 128)
        resized = torch.from_numpy(mask.astype(np.float32))[None, None]
        h, w = (int(s * 128 / max(height, width) + 0.5) for s in (height, width))
        planes[..., :h, :w] = torch.nn.functional.interpolate(resized, (h, w), mode="bilinear")
        logits = planes[0, 0].numpy() * 20 - 10
        return np.stack([np.roll(logits, shift, axis=1) for shift in self.wrong]).astype(np.float32)


def box_of(mask):
    ys, xs = np.nonzero(mask)
    return xs.min(), ys.min(), xs.max() + 1, ys.max() + 1


@pytest.fixture(scope="module")
def source(scenes):
    return open_source("sa1b", scenes, "val")


def test_who_knows_the_masks_is_nearly_perfect(source):
    for protocol in (Protocol(), Protocol("point"), Protocol("point", "data"), Protocol("point", "mask-random")):
        result = evaluate(Oracle(source), source, protocol)
        assert result.miou[0] > 0.93  # there and back through 128 pixels
        assert result.boundary_miou[0] > 0.8
        assert (result.pictures, result.broken) == (3, {})
        assert result.masks == sum(len(source.read(i, masks=True).boxes) for i in range(3))
        assert result.miou[0] == pytest.approx(np.mean([case.iou for case in result.cases]))


def test_choosing_among_masks(source):
    """Mask 0 right, mask 1, with the highest score, far off: score falls for it, the oracle does not."""
    found = {
        select: evaluate(Oracle(source, (0, 9, 4, 6)), source, Protocol(multimask=4, select=select)).miou[0]
        for select in ("score", "oracle", "area")
    }
    assert found["oracle"] > 0.93
    assert found["score"] < found["oracle"] - 0.1
    one = evaluate(Oracle(source, (0, 9, 4, 6)), source, Protocol(multimask=1)).miou[0]
    assert one == pytest.approx(found["oracle"])
    three = evaluate(Oracle(source, (9, 0, 4, 6)), source, Protocol(multimask=3)).miou[0]
    assert three == pytest.approx(one)


def test_refinement_points_at_what_was_wrong(source):
    oracle = Oracle(source, (12, 0, 0, 0))
    result = evaluate(oracle, source, Protocol(refine=3))
    assert len(result.miou) == 3
    first, second, third = oracle.asked[:3]
    assert [first.count, second.count, third.count] == [2, 3, 4]
    assert set(second.labels[:, 0].tolist()) <= {0.0, 1.0, -2.0}
    oracle = Oracle(source)
    perfect = evaluate(oracle, source, Protocol("point", refine=2, samples=1))
    assert perfect.pictures == 1
    read = oracle.reads[0]
    for (x, y), label, mask in zip(oracle.asked[1].coords[:, 1], oracle.asked[1].labels[:, 1], read.masks, strict=True):
        if label != -2:
            scale = max(read.size) / 128
            assert mask[round(y * scale), round(x * scale)] == (label == 1)


def test_prompts_are_limited_and_the_same_each_time(source):
    few = Protocol("point", "mask-random", max_prompts=1, seed=5)
    one, other = (evaluate(Oracle(source), source, few) for _ in range(2))
    assert one.as_json() == other.as_json()
    assert one.masks == 3
    assert "answer" not in one.as_json()["cases"][0]
    assert json.dumps(one.as_json())
    assert [c.iou for c in one.worst(3)] == sorted(c.iou for c in one.cases)


def test_iou_and_boundary_iou_by_definition(rng):
    for _ in range(5):
        a, b = rng.random((2, 30, 40)) < 0.5
        assert iou(a, b) == (a & b).sum() / (a | b).sum()
    empty = np.zeros((30, 40), np.bool_)
    assert iou(empty, empty) == boundary_iou(empty, empty) == 1.0
    disc = np.hypot(*np.mgrid[-50:50, -50:50]) < 30
    eroded = binary_erosion(np.pad(disc, 1), np.ones((3, 3)), iterations=4)[1:-1, 1:-1]
    assert (boundary(disc, 4) == (disc & ~eroded)).all()
    touching = np.ones((20, 20), np.bool_)
    assert boundary(touching, 2).sum() == 400 - 16 * 16  # the picture's edge is an outline
    moved = np.roll(disc, 2, axis=0)
    edges = [m & ~binary_erosion(m, np.ones((3, 3)), iterations=3) for m in (disc, moved)]
    assert boundary_iou(disc, moved) == pytest.approx(iou(*edges))  # 2 % of 141 pixels is 3


def test_the_deepest_pixel():
    mask = np.zeros((20, 30), np.bool_)
    mask[2:9, 3:10] = True
    assert deepest(mask) == (6, 5)
    mask[:] = False
    mask[0:3, 0:30] = True
    assert deepest(mask)[1] == 1  # the edge is outside


def test_the_references_masks_are_grown():
    disc = np.hypot(*np.mgrid[-50:50, -50:50]) < 30
    same = grown(disc[None], 100)[0]
    assert (same == disc).all()  # nothing to interpolate: nothing grows
    large = grown(disc[None], 1024)[0]
    assert (large >= disc).all()
    added = large.sum() - disc.sum()
    outline = (disc & ~binary_erosion(disc, np.ones((3, 3)))).sum()
    assert 0 <= added <= 1.6 * outline
    smaller = grown(disc[None], 64)[0]
    assert smaller.sum() > disc.sum()


def test_the_references_protocol_leaves_out_the_empty(source):
    exact, reference = (
        evaluate(Oracle(source), source, Protocol(protocol=name)).miou[0] for name in ("exact", "reference")
    )
    assert exact != reference
    assert abs(exact - reference) < 0.2


def test_a_model_and_its_cases(source):
    model = load("edge_sam", seed=0, config=CONFIG)
    result = evaluate(SamPredictor(model), source, Protocol(samples=1, multimask=3, select="stability"))
    assert 0 <= result.miou[0] <= 1
    assert all(0 <= case.boundary_iou <= 1 for case in result.cases)


def test_nothing_to_evaluate(scenes, tmp_path):
    import shutil

    shutil.copytree(scenes, tmp_path / "data")
    for path in (tmp_path / "data/images/val").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="nothing could be evaluated"):
        evaluate(Oracle(open_source("sa1b", scenes, "val")), open_source("sa1b", tmp_path / "data", "val"), Protocol())


def test_average_precision_of_perfect_and_of_wrong_boxes(scenes, tmp_path, source, monkeypatch):
    """Boxes of the objects with the right masks: AP near 1; moved ones: AP near 0; COCO's own arithmetic."""
    from PIL import Image
    from pycocotools import mask as coco

    (tmp_path / "annotations").mkdir()
    (tmp_path / "trainval").mkdir()
    images, rows = [], []
    for index in range(len(source)):
        read = source.read(index, masks=True)
        Image.fromarray(read.image).save(tmp_path / f"trainval/{index}.png")
        images.append({"id": index, "height": read.size[0], "width": read.size[1], "file_name": f"{index}.png"})
        for mask in read.masks:
            packed = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
            rows.append({
                "id": len(rows) + 1, "image_id": index, "category_id": 1, "iscrowd": 0, "area": int(mask.sum()),
                "bbox": coco.toBbox(packed).tolist(),
                "segmentation": {"size": packed["size"], "counts": packed["counts"].decode()},
            })  # fmt: skip
    content = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "shape"}]}
    (tmp_path / "annotations/instances_val2017.json").write_text(json.dumps(content))
    data = CocoSource(tmp_path, "val")
    detections = [{**{k: r[k] for k in ("image_id", "category_id", "bbox")}, "score": 0.9} for r in rows]
    found = average_precision(Oracle(data), data, detections)
    assert found["AP50"] == pytest.approx(1.0)
    assert found["AP"] > 0.8
    # areas are the masks', not their boxes', by which COCO would judge results that keep them
    given, load = [], data.api.loadRes
    monkeypatch.setattr(data.api, "loadRes", lambda results: given.append(load(results)) or given[-1])
    average_precision(Oracle(data), data, detections)
    judged = list(given[0].anns.values())
    assert [a["area"] for a in judged] == [coco.area(a["segmentation"]) for a in judged]
    assert len(judged) == len(rows)
    # and what is found where nothing is counts against
    blank = {"id": 77, "height": images[0]["height"], "width": images[0]["width"], "file_name": "0.png"}
    (tmp_path / "annotations/instances_train2017.json").write_text(json.dumps({**content, "images": [*images, blank]}))
    more = CocoSource(tmp_path, "train")
    assert (len(more), more.all_ids[-1]) == (len(data), 77)
    wrong = {"image_id": 77, "category_id": 1, "bbox": detections[0]["bbox"], "score": 0.99}
    assert average_precision(Oracle(data), more, [*detections, wrong])["AP50"] < found["AP50"]
    assert more.read(0, masks=False).name == more.names[0]
    elsewhere = [{**d, "bbox": [0, 0, 5, 5]} for d in detections]  # every mask is that of the object nearest to it
    assert average_precision(Oracle(data), data, elsewhere)["AP"] < 0.5 * found["AP"]
    with pytest.raises(UsageError, match="bbox, category_id, image_id, score"):
        average_precision(Oracle(data), data, [{"bbox": [1, 2, 3, 4]}])
    with pytest.raises(UsageError, match="none of their image_ids"):
        average_precision(Oracle(data), data, [{**detections[0], "image_id": 99}])
