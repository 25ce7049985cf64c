"""--layout ane: what the emitted decoder holds and does not hold, and that it is the model."""

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
from edgesam_deploy.contract import PE_MATRIX, Interface, encode_positions
from edgesam_deploy.errors import UsageError
from edgesam_deploy.model.registry import load
from edgesam_deploy.passes.engine import Engine
from edgesam_deploy.passes.execute import relative_l2
from edgesam_deploy.runtime import open_predictor
from edgesam_deploy.targets import make_target
from edgesam_deploy.targets.coreml.interpreter import Model, open_mlpackage

pytest.importorskip("coremltools")
ENCODER = {**FAMILY["edge_sam"]["image_encoder"], "depths": (1, 1, 1, 1), "squeeze": (0, 0)}
SHALLOW = {**FAMILY["edge_sam"], "image_encoder": ENCODER}
ABOUT = {"model": "edge_sam", "part": "mask_decoder", "license": "none", "edgesam_deploy_version": "0"}
UNWANTED = {  # by the Neural Engine of some chip, or a sign of a layout that is not its own
    "linear", "gather", "gather_along_axis", "gather_nd", "sin", "cos", "equal", "not_equal", "greater_equal", "less",
    "logical_and", "select", "shape", "tile", "stack", "layer_norm",
}  # fmt: skip
Decoder = Callable[[str], Model]


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    made: dict[str, Path] = {}

    def get(precision: str) -> Model:
        if precision not in made:
            model = load("edge_sam", seed=6, config=SHALLOW)
            target = make_target("coreml", layout="ane", io="edgesam-npu", precision=precision)
            interface = target.interface(model.config)
            program = Engine("off").run(capture(model, interface)[1], target.pipeline(model.config))
            made[precision] = tmp_path_factory.mktemp("ane") / "decoder.mlpackage"
            target.emit(program, interface, made[precision], ABOUT)
        return open_mlpackage(made[precision])

    return get


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return build(
        load("edge_sam", seed=6, config=SHALLOW), "coreml", tmp_path_factory.mktemp("ane") / "bundle", proof="fast",
        pictures={"scene": picture(150, 225, 10)}, layout="ane", io="edgesam-npu",
    )  # fmt: skip


def ranks(model: Model, kind: str) -> set[int]:
    """Axes of the results of operators of one kind."""
    found = (k for op in model.function.operations if op.kind == kind for _, k in op.outputs)
    return {len(k.shape) for k in found if k is not None}


def test_what_the_decoder_holds(decoder: Decoder) -> None:
    model = decoder("fp16")
    operators = model.function.operators()
    assert not UNWANTED & operators.keys()
    assert operators["matmul"] == 15  # two of each of the seven attentions, and the masks
    assert ranks(model, "matmul") == ranks(model, "conv") == ranks(model, "softmax") == {4}
    assert operators["transpose"] <= 2  # where tokens come in, and of the four mask tokens
    assert operators.total() <= 300


def test_types_are_floats(decoder: Decoder) -> None:
    """No integers and no booleans: the only casts are to fp16 at the entrance, and back at the exit."""
    model = decoder("fp16")
    kinds = {k.dtype for op in model.function.operations if op.kind != "const" for _, k in op.outputs if k is not None}
    assert kinds == {"fp16", "fp32"}
    assert model.function.operators()["cast"] == len(model.inputs) + len(model.outputs)


def test_nothing_has_more_than_four_axes(decoder: Decoder) -> None:
    for op in decoder("fp32").function.operations:
        assert all(kind is None or len(kind.shape) <= 4 for _, kind in op.outputs), op.name


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-5), ("fp16", 6e-3)])
def test_it_is_the_model(decoder: Decoder, precision: str, bound: float, rng: np.random.Generator) -> None:
    model = load("edge_sam", seed=6, config=SHALLOW)
    part = MaskDecoderPart(model, Interface(image_size=256, embed_dim=64, points=5)).eval()
    inputs = {
        "image_embeddings": rng.standard_normal((1, 64, 16, 16)).astype(np.float32),
        "point_coords": rng.uniform(0, 256, (1, 5, 2)).astype(np.float32),
        "point_labels": np.array([[1, 2, 3, -1, -10]], np.float32),
    }
    with torch.no_grad():
        masks, scores = part(**{name: torch.from_numpy(value) for name, value in inputs.items()})
    matrix = model.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix.numpy()
    encoded = encode_positions(inputs.pop("point_coords"), matrix, 256)
    found = decoder(precision).run({**inputs, "point_embedding_pe": encoded})
    assert relative_l2(masks.numpy(), found["masks"]) < bound
    assert relative_l2(scores.numpy(), found["scores"], 1.0) < bound


def test_the_bundle(whole: Bundle) -> None:
    """Every pass proved, parity in fp16, the matrix for the host beside it, and the predictor over it."""
    assert whole.read_json("parity.json")["verdict"] == "pass"
    passes = {row["name"]: row for row in whole.manifest["parts"]["mask_decoder"]["passes"]}
    for name in ("boolean_to_float", "tokens_to_maps", "legalize_matmul_rank", "decompose_layer_norm_2d"):
        assert passes[name]["sites"] > 0, name
        assert passes[name]["proof"].startswith("within bound"), name
    assert f"{PE_MATRIX}.bin" in whole.manifest["files"]
    predictor = open_predictor(whole.path)
    predictor.set_image(picture(150, 225, 10))
    assert predictor.predict([[60, 40]], [1])[0].shape == (3, 150, 225)


def test_models_without_a_decoder_of_prompts() -> None:
    target: Any = make_target("coreml", layout="ane", io="edgesam-npu")
    with pytest.raises(UsageError, match="leave it and --io out") as caught:
        target.interface(load("cwsam", config=FAMILY["cwsam"]).config)
    assert caught.value.exit_code == 2
