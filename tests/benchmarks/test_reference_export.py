"""The baseline is what the reference exports, and computes what PyTorch computes."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper

from benchmarks.reference_export import (
    COUNTS,
    NODES,
    PARTS,
    NotTheReference,
    Part,
    check_counts,
    count_operators,
    example_inputs,
    export_reference,
    reference_module,
)
from edgesam_deploy.model import registry
from edgesam_deploy.model.repvit import RepVit
from edgesam_deploy.model.sam import Sam

BOUND = 1e-4  # relative L2; fp32 sums in another order measure 2e-6 on the encoder and 1e-6 on the decoder


def apart(a: torch.Tensor, b: np.ndarray) -> float:
    return float(np.linalg.norm(b - a.numpy()) / np.linalg.norm(a.numpy()))


@pytest.fixture(scope="module")
def model() -> Sam:
    return registry.load("edge_sam", seed=0)


@pytest.fixture(scope="module")
def exported(model: Sam, tmp_path_factory: pytest.TempPathFactory) -> dict[Part, Path]:
    folder = tmp_path_factory.mktemp("reference")
    return {part: export_reference(model, part, folder / f"{part}.onnx") for part in PARTS}


@pytest.mark.parametrize("part", PARTS)
def test_form_is_the_published_one(exported: dict[Part, Path], part: Part) -> None:
    file = onnx.load(exported[part])
    assert [(entry.domain, entry.version) for entry in file.opset_import] == [("", 11)]
    counts = count_operators(exported[part])
    differing = {name: counts[name] for name, published in COUNTS[part].items() if counts[name] != published}
    assert differing == ({} if part == "encoder" else {"Constant": 237})  # 240 published
    assert counts.total() == (484 if part == "encoder" else 1034)  # 1,038 published


@pytest.mark.parametrize(("part", "points"), [("encoder", 5), ("decoder", 1), ("decoder", 5), ("decoder", 8)])
def test_onnx_runtime_agrees_with_pytorch(model: Sam, exported: dict[Part, Path], part: Part, points: int) -> None:
    inputs = example_inputs(model, part, points, seed=1)
    session = onnxruntime.InferenceSession(exported[part], providers=["CPUExecutionProvider"])
    found = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    with torch.no_grad():
        expected = reference_module(model, part)(**inputs)
    for a, b in zip(expected if part == "decoder" else (expected,), found, strict=True):
        assert apart(a, b) <= BOUND


def test_encoder_is_our_encoder_with_a_bilinear_neck(model: Sam) -> None:
    inputs = example_inputs(model, "encoder", seed=2)
    bilinear = copy.deepcopy(model.image_encoder)
    assert isinstance(bilinear, RepVit)
    bilinear.fuse_stage3.mode = "bilinear"
    with torch.no_grad():
        found = reference_module(model, "encoder")(**inputs).numpy()
        assert apart(bilinear(inputs["image"]), found) <= BOUND
        assert apart(model.image_encoder(inputs["image"]), found) > 0.01  # ours stays bicubic
    assert model.image_encoder.fuse_stage3.mode == "bicubic"


def test_decoder_is_our_decoder(model: Sam) -> None:
    inputs = example_inputs(model, "decoder", seed=2)
    prompts = model.prompt_encoder
    with torch.no_grad():
        scores, masks = reference_module(model, "decoder")(**inputs)
        expected_masks, expected_scores = model.mask_decoder.predict_masks(
            inputs["image_embeddings"],
            prompts.get_dense_pe(),
            prompts.embed_slots(inputs["point_coords"], inputs["point_labels"]),
            prompts.no_mask_embed.weight.reshape(1, -1, 1, 1),
        )
    assert apart(expected_masks, masks.numpy()) <= BOUND
    assert apart(expected_scores, scores.numpy()) <= BOUND


def test_the_last_of_the_example_points_is_the_padding_point(model: Sam) -> None:
    inputs = example_inputs(model, "decoder", 5)
    assert inputs["point_labels"].shape == (1, 5)
    assert inputs["point_labels"][0, -1] == -1
    assert not inputs["point_coords"][0, -1].any()
    assert (inputs["point_labels"][0, :-1] >= 0).all()


def write_operators(path: Path, counts: Counter[str]) -> Path:
    """A file with operators in the given numbers; it need not run."""
    nodes = [helper.make_node(name, [], [f"{name}{i}"]) for name, count in counts.items() for i in range(count)]
    onnx.save(helper.make_model(helper.make_graph(nodes, "counted", [], [])), path)
    return path


def with_published_counts(part: Part, change: dict[str, int]) -> Counter[str]:
    counts = Counter(COUNTS[part])
    counts["Reshape"] = NODES[part] - counts.total()
    counts.update(change)
    return counts


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("change", [{}, {"Reshape": 10}, {"Reshape": -10}])
def test_within_five_percent_is_the_reference(tmp_path: Path, part: Part, change: dict[str, int]) -> None:
    check_counts(write_operators(tmp_path / "baseline.onnx", with_published_counts(part, change)), part)


@pytest.mark.parametrize(
    ("part", "change", "complaint"),
    [
        ("encoder", {"Conv": -23}, "Conv 107 instead of 130"),  # the merged model is ours, not the reference's
        ("encoder", {"Erf": -27, "Tanh": 27}, "Erf 0 instead of 27"),
        ("encoder", {"Identity": 30}, "nodes 514 instead of 484"),
        ("decoder", {"Tile": -1}, "Tile 1 instead of 2"),
        ("decoder", {"MatMul": 4}, "MatMul 53 instead of 49"),
        ("decoder", {"Identity": 60}, "nodes 1098 instead of 1038"),
    ],
)
def test_a_straw_man_is_refused(tmp_path: Path, part: Part, change: dict[str, int], complaint: str) -> None:
    path = write_operators(tmp_path / "baseline.onnx", with_published_counts(part, change))
    with pytest.raises(NotTheReference, match=complaint):
        check_counts(path, part)
