"""Twins: a few blocks of a large model, its own weights, every kind of block."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import FAMILY
from scenes import picture

from edgesam_deploy import builder, capture
from edgesam_deploy.errors import ParityError, PassError
from edgesam_deploy.model.registry import load
from edgesam_deploy.model.twin import shallow_twin
from edgesam_deploy.passes import aten
from edgesam_deploy.passes.engine import exact

DEEP_VIT = {
    **FAMILY["vit_b"],
    "image_encoder": {**FAMILY["vit_b"]["image_encoder"], "depth": 6, "global_blocks": (2, 5)},
}


def test_one_block_of_each_kind_with_its_own_weights():
    model = load("vit_b", config=DEEP_VIT)
    twin = shallow_twin(model)
    assert twin.config.image_encoder.depth == 2
    assert twin.config.image_encoder.global_blocks == (1,)
    own, theirs = twin.state_dict(), model.state_dict()
    for place, index in enumerate((0, 2)):
        for name, tensor in own.items():
            if name.startswith(f"image_encoder.blocks.{place}."):
                original = theirs[name.replace(f"blocks.{place}.", f"blocks.{index}.")]
                assert tensor.data_ptr() == original.data_ptr(), name  # shared: a twin costs no memory
    assert twin.weights == model.weights
    assert not twin.training


@pytest.mark.parametrize("name", ["cwsam", "cwsam_moe_3b", "cwsam_hierarchical_moe_10b"])
def test_the_kinds_of_semantic_models(name):
    model = load(name, config=FAMILY[name])
    twin = shallow_twin(model)
    encoder, kinds = model.config.image_encoder, set()
    for index in range(encoder.depth):
        experts = encoder.experts.kind != "dense" and index >= encoder.experts.first_block
        kinds.add((index in encoder.global_blocks, experts))
    assert twin.config.image_encoder.depth == len(kinds)
    image = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 3, 128, 128)).astype(np.float32))
    with torch.no_grad():
        logits = twin(image)
    assert logits.shape == (1, twin.classes, 128, 128)
    assert torch.isfinite(logits).all()
    assert logits.std() > 1e-3


def test_convolutional_encoders_have_none(tiny_model):
    assert shallow_twin(tiny_model) is None


@pytest.fixture
def everything_is_large(monkeypatch):
    monkeypatch.setattr(capture, "LARGE", 1)
    monkeypatch.setattr(builder, "LARGE", 1)


@pytest.mark.slow
def test_a_large_part_is_proved_on_its_twin(everything_is_large, tmp_path):
    model = load("vit_b", config=DEEP_VIT)
    bundle = builder.build(model, "onnx", tmp_path / "vit", pictures={"s": picture(150, 225, 10)})
    rows = bundle.manifest["parts"]["image_encoder"]["passes"]
    proofs = [row["proof"] for row in rows if row["sites"]]
    assert all(p.startswith("within bound") and p.endswith(" on a twin of fewer blocks") for p in proofs)
    steps = bundle.read_json("timings.json")["steps"]
    proved = [step for step in steps if step["on_twin"] and step["sites"]]
    assert len(proved) > 3
    assert all(step["error"] <= step["bound"] for step in proved)
    assert bundle.read_json("parity.json")["verdict"] == "pass"  # the whole artifact, end to end


def _doubles_a_norm(program):
    """Break the norm of every block: seen on the twin as well. ──"""
    from edgesam_deploy.passes.aten.graph import AtenGraph

    with AtenGraph(program) as graph:
        found = list(graph.calls(torch.ops.aten.layer_norm.default))
        for node in found:
            with graph.graph.inserting_after(node):
                twice = graph.graph.call_function(torch.ops.aten.mul.Tensor, (node, 2.0))
            twice.meta["val"] = node.meta["val"]
            node.replace_all_uses_with(twice, delete_user_cb=lambda user, twice=twice: user is not twice)
    return len(found)


def test_a_broken_pass_is_caught_by_the_twin(everything_is_large, tmp_path, monkeypatch):
    broken = exact(_doubles_a_norm)
    monkeypatch.setattr(aten, "limit_rank", broken)
    with pytest.raises(PassError, match="left its bound"):
        builder.build(load("vit_b", config=DEEP_VIT), "onnx", tmp_path / "vit")
    assert not (tmp_path / "vit").exists()


@pytest.mark.slow
def test_without_proofs_the_end_to_end_run_still_catches_it(everything_is_large, tmp_path, monkeypatch):
    monkeypatch.setattr(aten, "limit_rank", exact(_doubles_a_norm))
    with pytest.raises(ParityError):
        builder.build(
            load("vit_b", config=DEEP_VIT), "onnx", tmp_path / "vit", proof="off", pictures={"s": picture(90, 70, 1)}
        )
    assert list(tmp_path.iterdir()) == []
