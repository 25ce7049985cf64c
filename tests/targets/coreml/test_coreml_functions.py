"""One package with several functions: their names, what they share, which of them a prompt runs in."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FAMILY
from scenes import picture

from edgesam_deploy.builder import build
from edgesam_deploy.bundle import Bundle
from edgesam_deploy.contract import TensorSpec, interface_from
from edgesam_deploy.errors import BundleError, PromptError, UsageError
from edgesam_deploy.model.registry import load
from edgesam_deploy.parity import measure_on
from edgesam_deploy.runtime import open_artifact, open_predictor
from edgesam_deploy.targets import make_target
from edgesam_deploy.targets.coreml.interpreter import open_mlpackage
from edgesam_deploy.targets.coreml.interpreter.package import read_model
from edgesam_deploy.targets.coreml.mlpackage import write
from edgesam_deploy.targets.coreml.runner import EmulatedRunner, SeveralDecoders, open_part

ct = pytest.importorskip("coremltools")
ENCODER = {**FAMILY["edge_sam"]["image_encoder"], "depths": (1, 1, 1, 1), "squeeze": (0, 0)}
SHALLOW = {**FAMILY["edge_sam"], "image_encoder": ENCODER}
ABOUT = {"model": "m", "part": "p", "license": "none", "edgesam_deploy_version": "0"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    model = load("edge_sam", seed=0, config=SHALLOW)
    return build(
        model, "coreml", tmp_path_factory.mktemp("functions") / "bundle", proof="off", precision="fp32",
        pictures={"scene": picture(150, 225, 10)}, deployment_target="iOS18", single_file=True, signatures="2,6",
    )  # fmt: skip


def package(bundle: Bundle) -> Path:
    return bundle.path / "model.mlpackage"


def weights(path: Path) -> int:
    return (path / "Data/com.apple.CoreML/weights/weight.bin").stat().st_size


def test_every_function_is_the_model(whole: Bundle) -> None:
    parity = whole.read_json("parity.json")
    assert (parity["verdict"], parity["summary"]["outputs"]["logits"]["relative_l2"] < 1e-5) == ("pass", True)
    assert {part["file"] for part in whole.manifest["parts"].values()} == {"model.mlpackage"}
    assert whole.manifest["contract"]["signatures"] == {
        "image_encoder": "encode", "mask_decoder": "decode_6", "mask_decoder_2": "decode_2"
    }  # fmt: skip


def test_names_and_what_the_package_says_of_itself(whole: Bundle) -> None:
    spec = read_model(package(whole))
    about = spec.description
    assert [function.name for function in about.functions] == ["encode", "decode_6", "decode_2"]
    assert (about.defaultFunctionName, spec.specificationVersion) == ("encode", 9)
    assert about.metadata.shortDescription == "image_encoder, mask_decoder, mask_decoder_2 of edge_sam"
    assert about.metadata.author == "edgesam-deploy"
    assert not [key for key in about.metadata.userDefined if "date" in key]
    for function in about.functions:
        assert all(entry.shortDescription for entry in (*function.input, *function.output))
    assert open_mlpackage(package(whole), "decode_2").inputs["point_coords"].shape == (1, 2, 2)
    assert list(open_mlpackage(package(whole)).inputs) == ["image"]


def test_decoders_share_their_weights(whole: Bundle) -> None:
    """What a function stores beyond the others is what depends on N: nothing to speak of."""
    stored = {
        name: {id(value): value for value in open_mlpackage(package(whole), name).constants.values()}
        for name in ("encode", "decode_6", "decode_2")
    }
    floats = {
        name: sum(v.nbytes for v in values.values() if getattr(v, "dtype", None) == np.float32)
        for name, values in stored.items()
    }
    assert floats["decode_2"] > 5e5
    assert weights(package(whole)) < 1.02 * (floats["encode"] + floats["decode_6"])


def test_the_smaller_decoder_answers_alike(whole: Bundle, rng: np.random.Generator) -> None:
    """Two slots run in decode_2; filled up with empty ones they are what decode_6 gives."""
    inputs = {
        "image_embeddings": rng.standard_normal((1, 64, 16, 16)).astype(np.float32),
        "point_coords": np.array([[[60, 40], [0, 0], [7, 7]]], np.float32),
        "point_labels": np.array([[1, -1, -10]], np.float32),
    }
    decoder = open_part(package(whole), "mask_decoder")
    assert isinstance(decoder, SeveralDecoders)
    few = decoder(inputs)
    assert list(decoder._open) == [2]
    more = EmulatedRunner(package(whole), "decode_6")({
        "image_embeddings": inputs["image_embeddings"],
        "point_coords": np.pad(inputs["point_coords"], ((0, 0), (0, 3), (0, 0))),
        "point_labels": np.pad(inputs["point_labels"], ((0, 0), (0, 3)), constant_values=-10),
    })  # fmt: skip
    for name in ("masks", "scores"):
        assert np.linalg.norm(few[name] - more[name]) < 1e-5 * np.linalg.norm(more[name])
    with pytest.raises(PromptError, match="at most 6"):
        decoder({**inputs, "point_labels": np.ones((1, 7), np.float32)})


def test_predictor_and_verdict_over_it(whole: Bundle) -> None:
    predictor = open_predictor(whole.path)
    predictor.set_image(picture(150, 225, 10))
    masks, scores, _ = predictor.predict([[60, 40]], [1])
    assert (masks.shape, scores.shape) == ((3, 150, 225), (3,))
    assert "emulated" in predictor.executed
    other = load("edge_sam", seed=1, config=SHALLOW)
    assert measure_on(other, open_artifact(whole.path), {"scene": picture(150, 225, 10)}, few=True).verdict == "fail"


def test_a_part_that_is_not_there(whole: Bundle) -> None:
    with pytest.raises(BundleError, match=r"no function for segmenter, only encode, decode_6, decode_2"):
        open_part(package(whole), "segmenter")


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"single_file": True}, "--single-file: packages have several functions from iOS18 on"),
    ({"signatures": "1,2", "deployment_target": "iOS16"}, "--signatures: .* add --deployment-target iOS18"),
    ({"signatures": "1,2", "deployment_target": "iOS18", "points": 4}, "leave --points out"),
    ({"signatures": "1,x", "deployment_target": "iOS18"}, "numbers of slots"),
]


@pytest.mark.parametrize(("options", "words"), REFUSED, ids=str)
def test_what_does_not_fit(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        make_target("coreml", **options)
    assert caught.value.exit_code == 2


def test_names_of_functions() -> None:
    config = load("edge_sam", config=SHALLOW).config
    several = make_target("coreml", deployment_target="iOS18", signatures="1,5")
    interface = several.interface(config)
    assert list(interface.parts()) == ["image_encoder", "mask_decoder", "mask_decoder_1"]
    assert several.file(interface.parts()["mask_decoder_1"]) == "decoder.mlpackage"
    assert interface_from(interface.describe()).describe()["points"] == 5
    with pytest.raises(UsageError, match="takes no prompts"):
        several.interface(load("cwsam", config=FAMILY["cwsam"]).config)


@pytest.fixture
def models() -> Callable[[], dict[str, Any]]:
    """Two models with one weight, made anew on every call."""

    def make() -> dict[str, Any]:
        made = {}
        for name, count in (("encode", 2), ("decode", 3)):

            @ct.converters.mil.Builder.program(
                input_specs=[ct.converters.mil.Builder.TensorSpec(shape=(count, 64))], opset_version=ct.target.iOS18
            )
            def program(x: Any) -> Any:
                weight = np.arange(64 * 64, dtype=np.float32).reshape(64, 64)
                return ct.converters.mil.Builder.linear(x=x, weight=weight, name="y")

            made[name] = ct.convert(
                program, minimum_deployment_target=ct.target.iOS18, compute_precision=ct.precision.FLOAT32,
                skip_model_load=True,
            )  # fmt: skip
        return made

    return make


def test_joined_twice_the_same_bytes(models: Callable[[], dict[str, Any]], tmp_path: Path) -> None:
    tensors = [TensorSpec("x", (2, 64), meaning="in"), TensorSpec("y", (2, 64), meaning="out")]
    for folder in ("one", "two"):
        write(models(), tmp_path / folder / "m.mlpackage", ABOUT, tensors)
    files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*") if p.is_file())
    assert len(files) == 3
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file
    assert weights(tmp_path / "one" / "m.mlpackage") < 1.1 * 64 * 64 * 4  # stored once


def test_a_function_that_was_cut_off(whole: Bundle, tmp_path: Path) -> None:
    shutil.copytree(package(whole), tmp_path / "m.mlpackage")
    blob = tmp_path / "m.mlpackage/Data/com.apple.CoreML/weights/weight.bin"
    blob.write_bytes(blob.read_bytes()[: blob.stat().st_size // 2])
    with pytest.raises(BundleError, match=r"weight\.bin"):
        open_part(tmp_path / "m.mlpackage", "mask_decoder")
