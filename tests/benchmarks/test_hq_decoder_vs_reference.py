"""The HQ baseline has the published form and does the published work, and computes what PyTorch computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from benchmarks.hq_decoder_vs_reference import (
    GOAL,
    MODEL,
    OURS,
    POINTS,
    REFERENCE,
    Result,
    check_work,
    inputs_of_both,
    masks_apart,
    own,
)
from benchmarks.interleaved import Candidate, Comparison, Ratio, Row
from benchmarks.reference_export import (
    COUNTS,
    NotTheReference,
    count_operators,
    example_inputs,
    export_reference,
    reference_module,
)
from edgesam_deploy.cost import model_macs, onnx_macs
from edgesam_deploy.errors import BundleError
from edgesam_deploy.model import registry
from edgesam_deploy.model.sam import Sam

BOUND = 1e-5  # relative L2; measured 8e-7


def apart(a: torch.Tensor, b: np.ndarray) -> float:
    return float(np.linalg.norm(b - a.numpy()) / np.linalg.norm(a.numpy()))


@pytest.fixture(scope="module")
def model() -> Sam:
    loaded = registry.load(MODEL, seed=0)
    assert isinstance(loaded, Sam)
    return loaded


@pytest.fixture(scope="module")
def baseline(model: Sam, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_reference(model, "hq_decoder", tmp_path_factory.mktemp("reference") / "hq_decoder.onnx")


def test_form_is_the_published_one(baseline: Path) -> None:
    file = onnx.load(baseline)
    assert [(entry.domain, entry.version) for entry in file.opset_import] == [("", 17)]
    counts = count_operators(baseline)
    assert {name: counts[name] for name in COUNTS["hq_decoder"]} == COUNTS["hq_decoder"]
    assert counts["ConvTranspose"] == 5  # two for SAM's masks, two for the embedding, one for the last feature
    assert counts["Conv"] == 7
    assert [value.name for value in file.graph.input] == [
        "image_embeddings", "point_coords", "point_labels", "boxes", "point_valid", "boxes_valid",
        "interm_embeddings_0", "interm_embeddings_1", "interm_embeddings_2",
    ]  # fmt: skip
    dynamic = {d.dim_param for value in file.graph.input for d in value.type.tensor_type.shape.dim if d.dim_param}
    assert dynamic == {"num_points"}


def test_work_is_the_published_one(model: Sam, baseline: Path) -> None:
    inputs = {name: value.numpy() for name, value in example_inputs(model, "hq_decoder", POINTS).items()}
    macs = onnx_macs(baseline, inputs=inputs)
    check_work(macs)
    with pytest.raises(NotTheReference, match=r"4\.24 GMAC"):  # as it would be without the HQ features
        check_work({"Conv": 4_240_000_000})


@pytest.mark.parametrize(("points", "box"), [(True, True), (False, False)])
def test_onnx_runtime_agrees_with_pytorch(model: Sam, baseline: Path, points: bool, box: bool) -> None:
    inputs = example_inputs(model, "hq_decoder", 3, seed=1)
    inputs |= {"point_valid": torch.tensor([[points]]), "boxes_valid": torch.tensor([[box]])}
    session = onnxruntime.InferenceSession(baseline, providers=["CPUExecutionProvider"])
    found = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    with torch.no_grad():
        expected = reference_module(model, "hq_decoder")(*inputs.values())
    for a, b in zip(expected, found, strict=True):
        assert a.shape == b.shape
        assert apart(a, b) <= BOUND


@pytest.mark.parametrize("box", [False, True])
def test_it_is_our_decoder(model: Sam, box: bool) -> None:
    inputs = example_inputs(model, "hq_decoder", 3, seed=2)
    inputs["boxes_valid"] = torch.tensor([[box]])
    prompts = model.prompt_encoder
    corners = inputs["boxes"].reshape(1, 2, 2)
    coords = torch.cat([inputs["point_coords"], corners], dim=1) if box else inputs["point_coords"]
    labels = inputs["point_labels"]
    labels = torch.cat([labels, torch.tensor([[2.0, 3.0]])], dim=1) if box else labels
    intermediate = [inputs[f"interm_embeddings_{i}"] for i in range(3)]
    with torch.no_grad():
        score, mask = reference_module(model, "hq_decoder")(*inputs.values())
        masks, scores = model.mask_decoder.predict_masks(
            inputs["image_embeddings"],
            prompts.get_dense_pe(),
            prompts.embed_slots(coords, labels),
            prompts.no_mask_embed.weight.reshape(1, -1, 1, 1),
            hq_features=model.mask_decoder.hq_features(inputs["image_embeddings"], intermediate),
        )
    assert apart(masks[:, 4:], mask.numpy()) <= BOUND
    assert apart(scores[:, 3:], score.numpy()) <= BOUND  # the reference's choice; ours is that of mask 0


def test_our_decoder_needs_a_seventh_of_the_work(model: Sam, baseline: Path) -> None:
    """On the module itself, without a build: what a prompt costs once the features are there."""
    inputs = {name: torch.from_numpy(value) for name, value in inputs_of_both(model).items()}
    prompts = model.prompt_encoder

    class PerPrompt(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.decoder = model.mask_decoder

        def forward(self, embeddings: torch.Tensor, features: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
            return self.decoder.predict_masks(embeddings, *rest, hq_features=features)[0]

    ours = model_macs(
        PerPrompt(),
        inputs["image_embeddings"],
        inputs["hq_features"],
        prompts.get_dense_pe(),
        torch.zeros(1, POINTS, 256),
        torch.zeros(1, 256, 1, 1),
    )
    taken = own(Candidate(REFERENCE, baseline), {name: value.numpy() for name, value in inputs.items()})
    assert ours <= GOAL * sum(onnx_macs(baseline, inputs=taken).values())


def test_other_inputs_are_refused(model: Sam, baseline: Path) -> None:
    candidate = Candidate(REFERENCE, baseline)
    inputs = inputs_of_both(model)
    assert "hq_features" in inputs
    assert "hq_features" not in own(candidate, inputs)
    assert masks_apart(candidate, candidate, inputs) == 0
    with pytest.raises(BundleError, match="takes boxes as"):
        own(candidate, {**inputs, "boxes": inputs["boxes"][0]})
    with pytest.raises(BundleError, match="no such input"):
        own(candidate, {})


def test_report_of_a_result() -> None:
    ratio = Ratio(0.2, 0.1, 0.3)
    rows = tuple(Row(name, 1.0, 1.0, ratio, ratio) for name in (REFERENCE, "baseline again (A/A)", OURS))
    comparison = Comparison("HQ decoder", 1, 3, 1, rows, 0.0, 0.0)
    macs = {REFERENCE: {"Conv": 90, "MatMul": 10}, OURS: {"MatMul": 12}}
    result = Result(comparison, 1e-7, macs, {REFERENCE: 20, OURS: 108}, {REFERENCE: 3, OURS: 2})
    assert result.ratio == 0.12
    assert "**reached**" in result.sentence()
    assert "| **per prompt** | 0.000 | 0.000 | 0.120 |" in result.table()
    assert "Gemm" not in result.table()
    assert result.json()["macs_per_picture"] == {REFERENCE: 20, OURS: 108}
    worse = Result(comparison, 1e-7, {**macs, OURS: {"MatMul": 16}}, {REFERENCE: 20, OURS: 108}, {})
    assert worse.verdict == "missed"
