"""--points dynamic: one decoder for 1 to 16 slots, the same answers as PyTorch for each number."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import FAMILY
from scenes import picture

from edgesam_deploy.builder import build
from edgesam_deploy.bundle import Bundle
from edgesam_deploy.capture import capture
from edgesam_deploy.capture.parts import MaskDecoderPart
from edgesam_deploy.contract import Interface
from edgesam_deploy.errors import PromptError
from edgesam_deploy.model.registry import load
from edgesam_deploy.passes.engine import Engine
from edgesam_deploy.passes.execute import relative_l2
from edgesam_deploy.runtime import open_predictor
from edgesam_deploy.targets import make_target
from edgesam_deploy.targets.coreml.interpreter import open_mlpackage
from edgesam_deploy.targets.coreml.interpreter.package import read_model
from edgesam_deploy.targets.coreml.runner import VaryingDecoder, open_part

pytest.importorskip("coremltools")
ENCODER = {**FAMILY["edge_sam"]["image_encoder"], "depths": (1, 1, 1, 1), "squeeze": (0, 0)}
SHALLOW = {**FAMILY["edge_sam"], "image_encoder": ENCODER}
MODEL = load("edge_sam", seed=6, config=SHALLOW)
ABOUT = {"model": "edge_sam", "part": "mask_decoder", "license": "none", "edgesam_deploy_version": "0"}
Decoder = Callable[..., Path]


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    made: dict[str, Path] = {}

    def get(**options: Any) -> Path:
        key = repr(sorted(options.items()))
        if key not in made:
            target = make_target("coreml", **options)
            interface = target.interface(MODEL.config)
            program = Engine("off").run(capture(MODEL, interface)[1], target.pipeline(MODEL.config))
            made[key] = tmp_path_factory.mktemp("dynamic") / "decoder.mlpackage"
            target.emit(program, interface, made[key], ABOUT)
        return made[key]

    return get


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return build(
        MODEL, "coreml", tmp_path_factory.mktemp("whole") / "bundle", proof="off", points="dynamic",
        deployment_target="iOS18", single_file=True, pictures={"scene": picture(150, 225, 10)},
    )  # fmt: skip


def prompts(count: int) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(count)
    return {
        "image_embeddings": rng.standard_normal((1, 64, 16, 16)).astype(np.float32),
        "point_coords": rng.uniform(0, 256, (1, count, 2)).astype(np.float32),
        "point_labels": rng.choice([1, 0, 2, 3, -1, -10], (1, count)).astype(np.float32),
    }


@pytest.mark.parametrize(("precision", "bound"), [pytest.param("fp32", 1e-5, marks=pytest.mark.slow), ("fp16", 6e-3)])
def test_every_number_of_slots(decoder: Decoder, precision: str, bound: float) -> None:
    model = open_mlpackage(decoder(points="dynamic", precision=precision))
    part = MaskDecoderPart(MODEL, Interface(image_size=256, embed_dim=64, points="dynamic")).eval()
    for count in (1, 3, 5, 16):
        inputs = prompts(count)
        with torch.no_grad():
            masks, scores = part(**{name: torch.from_numpy(value) for name, value in inputs.items()})
        found = model.run(inputs)
        assert relative_l2(masks.numpy(), found["masks"]) < bound, count
        assert relative_l2(scores.numpy(), found["scores"], 1.0) < bound, count


def test_no_more_operators_than_with_a_fixed_number(decoder: Decoder) -> None:
    varying, fixed = (open_mlpackage(decoder(points=p, precision="fp32")).function.operators() for p in ("dynamic", 6))
    assert varying.keys() <= fixed.keys()  # no shape, gather or select
    assert varying.total() <= fixed.total() + 1  # the row of the decoder's own tokens is joined at run time


def test_the_package_states_the_range(decoder: Decoder) -> None:
    inputs = {entry.name: entry for entry in read_model(decoder(points="dynamic", precision="fp32")).description.input}
    for name, free in (("point_coords", [1, 2]), ("point_labels", [1])):
        kind = inputs[name].type.multiArrayType
        sizes = [(r.lowerBound, r.upperBound) for r in kind.shapeRange.sizeRanges]
        assert sizes[1] == (1, 16)
        assert list(kind.shape) == [1, 6, *free[1:]]


def test_the_whole_of_it(whole: Bundle) -> None:
    """With --single-file too; the predictor sends the slots that a prompt has, none of them empty."""
    assert whole.read_json("parity.json")["verdict"] == "pass"
    labels = whole.manifest["parts"]["mask_decoder"]["inputs"][2]
    assert (labels["shape"], labels["meaning"][-15:]) == ([1, "num_points"], "; 1 to 16 slots")
    predictor = open_predictor(whole.path)
    predictor.set_image(picture(150, 225, 10))
    seen = []
    run = predictor._decoder
    assert isinstance(run, VaryingDecoder)
    predictor._decoder = type(
        "Seen", (), {"__call__": lambda _, x: seen.append(x["point_labels"].tolist()) or run(x)}
    )()
    masks, _, _ = predictor.predict([[60, 40]], [1])
    assert masks.shape == (3, 150, 225)
    assert seen == [[[1, -1]]]
    with pytest.raises(PromptError, match="17 slots; the artifact has at most 16"):
        predictor.predict(np.full((16, 2), 9.0), np.ones(16))


def test_a_fixed_decoder_has_no_range(decoder: Decoder) -> None:
    assert not isinstance(open_part(decoder(points=6, precision="fp32"), "mask_decoder"), VaryingDecoder)
