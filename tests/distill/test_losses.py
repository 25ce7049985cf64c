"""Each loss against its formula, written again in NumPy; and each fault of the reference, on request."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgesam_deploy.distill import losses


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.fixture
def masks():
    """Logits and targets of 3 prompts with 4 masks of 8 x 8; the second's right half is padding."""
    rng = np.random.default_rng(1)
    logits, target = rng.normal(0, 3, (3, 4, 8, 8)), (rng.random((3, 4, 8, 8)) < 0.4).astype(float)
    valid = np.ones((3, 8, 8))
    valid[1, :, 4:] = 0
    return logits, target, valid


@pytest.fixture
def embeddings():
    rng = np.random.default_rng(2)
    valid = np.ones((2, 6, 6))
    valid[1, 3:] = 0
    return rng.normal(0, 1, (2, 16, 6, 6)), rng.normal(0, 1, (2, 16, 6, 6)), valid


def given(function, *arrays, **options):
    return float(function(*(torch.from_numpy(a) for a in arrays), **options))


def test_pixel(embeddings):
    student, teacher, valid = embeddings
    per_image = [
        np.mean([((student[b, :, y, x] - teacher[b, :, y, x]) ** 2).mean() for y, x in np.argwhere(valid[b])])
        for b in range(2)
    ]
    assert given(losses.pixel_loss, *embeddings) == pytest.approx(np.mean(per_image))


def test_channel(embeddings):
    student, teacher = (softmax(e.reshape(2, 16, 36) / 4) for e in embeddings[:2])
    divergence = teacher * (np.log(teacher) - np.log(student))
    assert given(losses.channel_loss, *embeddings[:2]) == pytest.approx(16 * divergence.sum(-1).mean())
    fault = given(losses.channel_loss, *embeddings[:2], mean_over_pixels=True)
    assert fault == pytest.approx(16 * divergence.mean())


def test_correlation(embeddings):
    grams = []
    for e in embeddings[:2]:
        flat = e.reshape(2, 16, 36)
        unit = flat / np.linalg.norm(flat, axis=1, keepdims=True)
        grams.append(np.einsum("bci,bcj->bij", unit, unit))
    assert given(losses.correlation_loss, *embeddings[:2]) == pytest.approx(((grams[0] - grams[1]) ** 2).mean())


def test_bce(masks):
    logits, target, valid = masks
    p = sigmoid(logits)
    error = -(target * np.log(p) + (1 - target) * np.log(1 - p))
    per_prompt = [error[n][:, valid[n] > 0].mean() for n in range(3)]
    assert given(losses.bce_loss, *masks) == pytest.approx(np.mean(per_prompt))
    assert given(losses.bce_loss, *masks, on_probabilities=True) == pytest.approx(np.mean(per_prompt))


def test_bce_on_probabilities_goes_blind():
    """A pixel that is surely wrong: the reference's loss ends at 100 and, beyond, has no gradient."""
    valid, target = torch.ones(1, 1, 1), torch.zeros(1, 1, 1, 1)
    slopes = {}
    for fault in (False, True):
        logits = torch.full((1, 1, 1, 1), 200.0, requires_grad=True)
        loss = losses.bce_loss(logits, target, valid, on_probabilities=fault)
        loss.backward()
        slopes[fault] = (float(loss.detach()), float(logits.grad))
    assert slopes == {False: (200.0, 1.0), True: (100.0, 0.0)}


def test_focal(masks):
    logits, target, valid = masks
    p = sigmoid(logits)
    right = np.where(target > 0, p, 1 - p)
    error = np.where(target > 0, 0.25, 0.75) * (1 - right) ** 2 * -np.log(right)
    per_mask = [error[n, m][valid[n] > 0].mean() for n in range(3) for m in range(4)]
    assert given(losses.focal_loss, *masks) == pytest.approx(np.mean(per_mask))


def test_dice(masks):
    logits, target, valid = masks
    per_mask = []
    for n in range(3):
        for m in range(4):
            p, t = sigmoid(logits[n, m])[valid[n] > 0], target[n, m][valid[n] > 0]
            per_mask.append(1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1))
    assert given(losses.dice_loss, *masks) == pytest.approx(np.mean(per_mask))


def test_mask_iou(masks):
    logits, target, valid = masks
    found = losses.mask_iou(*(torch.from_numpy(a) for a in masks)).numpy()
    for n in range(3):
        for m in range(4):
            a, b = (logits[n, m] > 0) & (valid[n] > 0), (target[n, m] > 0) & (valid[n] > 0)
            assert found[n, m] == pytest.approx((a & b).sum() / (a | b).sum())
    nothing = torch.full((1, 1, 2, 2), -1.0)
    assert losses.mask_iou(nothing, nothing * 0, torch.ones(1, 2, 2)).item() == 1


def test_targets():
    teacher = torch.tensor([-3.0, 0.0, 2.0])
    assert losses.mask_target(teacher).tolist() == [0, 0, 1]
    assert losses.mask_target(teacher, temperature=2.0, soft=True).tolist() == pytest.approx(
        sigmoid(np.array([-1.5, 0, 1]))
    )


def test_inside_the_decoder():
    rng = np.random.default_rng(3)
    student, teacher = ({k: torch.from_numpy(rng.random((2, 3, 4))) for k in ("t2t_0", "i2t_1")} for _ in range(2))
    wanted = np.mean([((student[k] - teacher[k]) ** 2).mean() for k in student])
    assert float(losses.attention_loss(student, teacher)) == pytest.approx(wanted)
    a, b = rng.normal(size=(2, 5, 4, 8))
    assert given(losses.iou_loss, a, b) == given(losses.feature_loss, a, b) == pytest.approx(((a - b) ** 2).mean())
    for axis, fault in ((-1, False), (1, True)):
        units = [x / np.abs(x).sum(axis, keepdims=True) for x in (a, b)]
        wanted = ((units[0] - units[1]) ** 2).mean()
        assert given(losses.query_loss, a, b, over_tokens=fault) == pytest.approx(wanted)


def test_query_over_tokens_sees_signs_only_with_one_mask():
    one = torch.rand(3, 1, 8) + 0.1
    assert float(losses.query_loss(one, one * torch.rand(3, 1, 8), over_tokens=True)) == pytest.approx(0)
    assert float(losses.query_loss(one, one * torch.rand(3, 1, 8))) > 1e-5


def test_uncertain_points_lie_at_the_outline_and_on_the_picture():
    """Logits that are 0 along the middle column; the lower half is padding."""
    x = torch.linspace(-8, 8, 32)
    logits = x.expand(1, 1, 32, 32)
    valid = torch.ones(1, 32, 32)
    valid[:, 16:] = 0
    noise = torch.rand(1, 4 * 400, 2, generator=torch.Generator().manual_seed(0))
    points = losses.uncertain_points(logits, valid, noise, count=400)
    assert points.shape == (1, 400, 2)
    important, rest = points[0, :300], points[0, 300:]
    assert (important[:, 1] < 0.53).all()
    assert ((important[:, 0] - 0.5).abs() < 0.3).all()
    assert (rest[:, 1] > 0.53).any()
    sampled = losses.at_points(logits, points)[0, 0]
    assert torch.allclose(sampled[:300], 16 / 31 * (points[0, :300, 0] * 32 - 16), atol=1e-4)


def test_fp16_survives():
    logits = torch.full((1, 1, 8, 8), 30.0, dtype=torch.float16)
    target, valid = torch.zeros(1, 1, 8, 8, dtype=torch.float16), torch.ones(1, 8, 8, dtype=torch.float16)
    assert torch.isfinite(losses.bce_loss(logits, target, valid))
    assert torch.isfinite(losses.focal_loss(logits, target, valid))
