"""--embed-preprocess: the package takes a picture, normalises it and cuts off what is outside of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FAMILY
from scenes import picture

from edgesam_deploy.builder import build
from edgesam_deploy.bundle import Bundle
from edgesam_deploy.model.registry import load
from edgesam_deploy.runtime import open_artifact, open_predictor
from edgesam_deploy.targets.coreml.convert import follows_none
from edgesam_deploy.targets.coreml.interpreter import Model, open_mlpackage
from edgesam_deploy.targets.coreml.interpreter.package import read_model
from edgesam_deploy.targets.coreml.runner import DeviceRunner

pytest.importorskip("coremltools")
ENCODER = {**FAMILY["edge_sam"]["image_encoder"], "depths": (1, 1, 1, 1), "squeeze": (0, 0)}
SHALLOW = {**FAMILY["edge_sam"], "image_encoder": ENCODER}
SIZE = np.array([171, 256], np.float32)  # of a picture of 150 x 225 in a frame of 256


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """fp16 from the first convolution on, with the seed that loses least in it."""
    return build(
        load("edge_sam", seed=6, config=SHALLOW), "coreml", tmp_path_factory.mktemp("picture") / "bundle", proof="fast",
        pictures={"scene": picture(150, 225, 10)}, embed_preprocess=True, fine_maps="fp16",
    )  # fmt: skip


@pytest.fixture(scope="module")
def encoder(half: Bundle) -> Model:
    return open_mlpackage(half.path / "encoder.mlpackage")


def test_it_is_the_model(half: Bundle) -> None:
    parity = half.read_json("parity.json")
    assert (parity["verdict"], parity["precision"]) == ("pass", "fp16")
    passes = {row["name"]: row for row in half.manifest["parts"]["image_encoder"]["passes"]}
    assert (passes["pixels_to_planes"]["sites"], passes["pixels_to_planes"]["proof"]) == (1, "within bound")


def test_the_input_is_a_picture(half: Bundle, encoder: Model) -> None:
    image, size = read_model(half.path / "encoder.mlpackage").description.input
    assert (image.name, image.type.imageType.width, image.type.imageType.height) == ("image", 256, 256)
    assert image.type.imageType.colorSpace == 20  # RGB
    assert image.shortDescription.startswith("RGB 0..255")
    assert (size.name, list(size.type.multiArrayType.shape)) == ("image_size", [2])
    assert encoder.features["image"].colors == 20
    said = half.manifest["parts"]["image_encoder"]["inputs"][0]
    assert (said["dtype"], said["shape"]) == ("uint8", [1, 256, 256, 3])
    assert said["meaning"].endswith("in the package an RGB image")


def test_what_is_outside_of_the_picture_does_not_matter(encoder: Model, rng: np.random.Generator) -> None:
    pixels = rng.integers(0, 256, (256, 256, 3), np.uint8)
    other = pixels.copy()
    other[171:] = rng.integers(0, 256, (85, 256, 3), np.uint8)
    one, two = (encoder.run({"image": p, "image_size": SIZE})["image_embeddings"] for p in (pixels, other))
    assert np.array_equal(one, two)
    other[170] = 255 - other[170]  # the last row inside
    assert not np.array_equal(one, encoder.run({"image": other, "image_size": SIZE})["image_embeddings"])


def test_normalisation_stays_in_fp32(encoder: Model) -> None:
    operations = encoder.function.operations
    first = next(op for op in operations if op.kind == "conv")
    before = [op for op in operations[: operations.index(first)] if op.kind != "const"]
    results = {op.kind: kind.dtype for op in before for _, kind in op.outputs if kind is not None}
    assert (results["sub"], results["mul"], results["cast"]) == ("fp32", "fp32", "fp16")
    assert first.outputs[0][1] is not None
    assert first.outputs[0][1].dtype == "fp16"
    assert len(before) == 11, [op.kind for op in before]  # what an app saves costs this many operators, on CPU or GPU


def test_the_predictor_over_it(half: Bundle) -> None:
    predictor = open_predictor(half.path)
    predictor.set_image(picture(150, 225, 10))
    masks, _, _ = predictor.predict([[60, 40]], [1])
    assert masks.shape == (3, 150, 225)


def test_a_semantic_model(tmp_path: Path) -> None:
    model = load("cwsam", seed=0, config=FAMILY["cwsam"])
    bundle = build(
        model, "coreml", tmp_path / "bundle", proof="off", precision="fp32", embed_preprocess=True, argmax=True,
        pictures={"scene": picture(150, 225, 10)},
    )  # fmt: skip
    assert bundle.read_json("parity.json")["verdict"] == "pass"
    assert open_artifact(bundle.path).interface.embed_preprocess


def test_a_mac_gets_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    class Loaded:
        def __init__(self, path: str, function_name: str | None) -> None:
            pass

        def predict(self, inputs: dict[str, Any]) -> dict[str, Any]:
            seen.update(inputs)
            return {}

    stand_in = type(sys)("coremltools")
    stand_in.models = type(sys)("models")  # type: ignore[attr-defined]
    stand_in.models.MLModel, stand_in.__version__ = Loaded, "9.0"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "coremltools", stand_in)
    pixels = np.arange(60, dtype=np.uint8).reshape(1, 4, 5, 3)
    DeviceRunner(tmp_path)({"image": pixels, "image_size": SIZE})
    assert (seen["image"].mode, seen["image"].size) == ("RGB", (5, 4))
    assert np.array_equal(np.asarray(seen["image"]), pixels[0])
    assert seen["image_size"] is SIZE


def test_what_comes_before_the_first_weights() -> None:
    class Value:
        def __init__(self, op: Any) -> None:
            self.op = op

    class Op:
        def __init__(self, kind: str, *sources: Any) -> None:
            self.op_type = kind
            self.inputs = {"values": [Value(source) for source in sources]}

    normalised = Op("mul", Op("sub", None), Op("less", None))
    conv = Op("conv", normalised)
    assert follows_none(normalised, ("conv",))
    assert not follows_none(conv, ("conv",))
    assert not follows_none(Op("add", Op("relu", conv), normalised), ("conv",))
