"""The judge: what it measures, and that planted faults are found."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from edgesam_deploy.errors import BundleError, ParityError
from edgesam_deploy.model.base_predictor import Answers
from edgesam_deploy.model.prompts import Slots
from edgesam_deploy.model.registry import load
from edgesam_deploy.parity import (
    BOUNDS,
    Difference,
    check,
    judge,
    mask_iou,
    measure,
    official_choice,
    seeded_scene,
    shipped_pictures,
    usable_cases,
)
from edgesam_deploy.parity.verdict import UNCLAIMED
from edgesam_deploy.runtime import BundlePredictor, open_predictor
from edgesam_deploy.targets import make_target

from conftest import TINY  # isort: skip


class Faulty(BundlePredictor):
    """A predictor over a good artifact whose outputs are spoilt on the way out."""

    def __init__(self, good, encode=lambda x: x, decode=lambda m, s: (m, s)):
        super().__init__(good.bundle, {"image_encoder": good._encoder, "mask_decoder": good._decoder})
        self.spoil_features, self.spoil_answer = encode, decode

    def encode(self, image):
        return self.spoil_features(super().encode(image))

    def decode(self, prompts, mask_input):
        logits, scores, _ = super().decode(prompts, mask_input)
        return Answers(*self.spoil_answer(logits, scores))


def swapped(masks, scores):
    scores = scores.copy()
    scores[:, [1, 2, 3]] = scores[:, [2, 3, 1]]
    return masks, scores


def one_nan(features):
    features = features.copy()
    features[0, 0, 0, 0] = np.nan
    return features


def block_off(masks, scores):
    masks = masks.copy()
    masks[..., :8, :8] = -masks[..., :8, :8]
    return masks, scores


def waves(shape):
    """The same for every input."""
    return np.broadcast_to(np.sin(np.arange(np.prod(shape[-2:]), dtype=np.float32)).reshape(shape[-2:]), shape)


FAULTS = {
    "a constant embedding": ({"encode": lambda x: np.full_like(x, x.mean())}, "constant output"),
    "embeddings that ignore the picture": ({"encode": lambda x: waves(x.shape)}, "ignore the picture"),
    "one NaN": ({"encode": one_nan}, "NaN"),
    "embeddings off by a thousandth": ({"encode": lambda x: x * np.float32(1.001)}, "relative L2"),
    "dead masks": ({"decode": lambda m, s: (np.full_like(m, -7), s)}, "constant output"),
    "saturated masks": ({"decode": lambda m, s: (np.clip(m, -0.01, 0.01), s)}, "saturated"),
    "masks that ignore the prompt": ({"decode": lambda m, s: (waves(m.shape), s)}, "ignore the prompt"),
    "swapped scores": ({"decode": swapped}, "best score"),
    "a corner of the mask": ({"decode": block_off}, "mask IoU"),
    "masks in another order": ({"decode": lambda m, s: (m[:, ::-1], s)}, "relative L2"),
    "a missing mask": ({"decode": lambda m, s: (m[:, :3], s[:, :3])}, "relative L2"),
}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """One seeded scene beside the pictures is enough here."""
    monkeypatch.setattr("edgesam_deploy.parity.SEEDS", (1,))


@pytest.mark.parametrize(("fault", "words"), FAULTS.values(), ids=FAULTS.keys())
def test_planted_faults_are_found(bundles, tiny_model, scene, fault, words):
    good = open_predictor(bundles(batch=3, mask_input=True).path)  # built with the verdict pass
    parity = measure(tiny_model, Faulty(good, **fault), pictures={"scene": scene})
    assert parity.verdict == "fail"
    assert any(words in reason for reason in parity.reasons), parity.reasons[:5]


def test_other_weights_fail(bundles, scene):
    parity = measure(load("edge_sam", seed=9, config=TINY), open_predictor(bundles().path), pictures={"s": scene})
    assert parity.verdict == "fail"


def test_a_build_that_fails_parity_leaves_nothing(tiny_model, tmp_path, monkeypatch):
    from edgesam_deploy import builder

    strict = type(BOUNDS["fp32"])(relative_l2=1e-12, mask_iou=1.0, best_mask_flips=0)
    monkeypatch.setitem(BOUNDS, "fp32", strict)
    with pytest.raises(ParityError, match="no bundle was written"):
        builder.build(tiny_model, "onnx", tmp_path / "out", proof="off", pictures={"s": seeded_scene(5)})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("target", "options", "words"),
    [
        ("coreml", {}, "try --auto-mixed, which keeps"),
        ("coreml", {"auto_mixed": True}, "try --precision fp32"),
        ("qnn", {"precision": "fp16"}, "try --precision w8a16"),
        ("coreml", {"precision": "fp32"}, None),
        ("tensorrt", {"precision": "int8"}, None),
    ],
)
def test_a_refusal_says_what_helps_in_fp16(target, options, words):
    from edgesam_deploy import builder

    failed = SimpleNamespace(verdict="fail", reasons=["embeddings: too far"])
    with pytest.raises(ParityError, match="embeddings: too far") as refusal:
        builder._gate(failed, make_target(target, **options), strict=False)
    assert ("try" in str(refusal.value)) == (words is not None)
    assert words is None or words in str(refusal.value)


def test_an_approximation_is_told_apart_from_converter_error(tmp_path, scene):
    from edgesam_deploy.builder import build

    model = load("edge_sam", seed=0, config=TINY, upsample="bilinear")
    bundle = build(model, "onnx", tmp_path / "b", proof="off", pictures={"scene": scene})
    parity = bundle.read_json("parity.json")
    assert parity["verdict"] == "pass"
    assert "bilinear" in parity["reference"]
    assert "bicubic" in parity["faithful"]["reference"]
    assert parity["faithful"]["summary"]["outputs"]["embeddings"]["relative_l2"] > 1e-3
    assert check(bundle.path, pictures={"scene": scene}).verdict == "pass"


def test_check_rebuilds_the_model_from_the_manifest(bundles, scene):
    parity = check(bundles().path, pictures={"scene": scene})
    assert parity.verdict == "pass"
    assert parity.summary()["pictures"] == 2
    assert open_predictor(bundles().path).bundle.read_json("parity.json")["summary"]["pictures"] == 2


def test_check_refuses_what_does_not_verify(bundles, tmp_path):
    with pytest.raises(BundleError):
        check(tmp_path)


def test_nothing_run_is_not_verified():
    assert judge([], [], BOUNDS["fp32"])[0] == "not verified"


def test_mask_iou():
    a, b = np.zeros((2, 4, 4), bool), np.zeros((2, 4, 4), bool)
    assert mask_iou(a, b) == 1  # two empty masks agree
    a[0, :2], b[0, 1:3] = True, True
    assert mask_iou(a, b) == pytest.approx(1 / 3)
    assert mask_iou(a, b[:, :3]) == 0


def test_without_a_claim_figures_are_reported_and_dead_outputs_fail():
    row = Difference("p", "point", "logits", 1.0, 0.5, 6.0, 1.0)
    verdict, reasons = judge([row], [], UNCLAIMED)
    assert verdict == "not verified"
    assert "depends on the weights" in reasons[0]
    assert judge([row], ["logits of p are constant"], UNCLAIMED)[0] == "fail"


def test_a_nan_error_is_a_fail():
    row = Difference("p", "c", "logits", float("nan"), float("nan"), 0, 1)
    assert judge([row], [], BOUNDS["fp32"])[0] == "fail"


def test_every_case_is_usable_with_everything_asked_for():
    from edgesam_deploy.contract import Interface

    cases, skipped = usable_cases(Interface(batch="dynamic", mask_input=True))
    assert not skipped
    assert {"point", "box", "box and points", "batch", "mask", "no prompt"} <= {case.name for case in cases}
    assert usable_cases(Interface(points=1))[1]


@pytest.mark.parametrize(("count", "best"), [(1, 2), (2, 2), (3, 0)])
def test_the_official_choice_of_a_mask(count, best):
    scores = np.array([[0.5, 0.2, 0.9, 0.3]], np.float32)
    slots = Slots(np.zeros((1, count, 2), np.float32), np.ones((1, count), np.float32))
    assert official_choice(scores, slots) == best


def test_the_shipped_photographs():
    pictures = shipped_pictures()
    assert len(pictures) >= 3
    shapes = [p.shape for p in pictures.values()]
    assert all(p.dtype == np.uint8 and p.ndim == 3 for p in pictures.values())
    assert any(h > w for h, w, _ in shapes)
    assert any(w > h for h, w, _ in shapes)
