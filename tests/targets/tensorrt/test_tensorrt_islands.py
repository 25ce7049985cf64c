"""fp32 islands of the typed ONNX: the lint knows what stays fp32, and named nodes stay so in the file."""

from __future__ import annotations

import pytest
from conftest import TINY
from onnx_ir import DataType
from scenes import picture

import edgesam_deploy as ed
from edgesam_deploy.capture import capture
from edgesam_deploy.errors import ParityError, UsageError
from edgesam_deploy.passes.engine import Engine
from edgesam_deploy.passes.islands import MARK
from edgesam_deploy.passes.program import operator
from edgesam_deploy.precision.composed import aten_passes
from edgesam_deploy.targets import make_target

SCENES = {"a": picture(150, 225, 10), "b": picture(180, 120, 3)}
ISLANDS = {"linear_2", "conv_transpose2d"}


@pytest.fixture(scope="module")
def decoder():
    """The mask decoder behind the aten passes."""
    target, model = make_target("tensorrt"), ed.load("edge_sam", seed=0, config=TINY)
    _, program = capture(model, target.interface(model.config))
    return Engine("off").run(program, aten_passes(target.pipeline(model.config)))


def kinds_of(program, target, config):
    pipeline = target.pipeline(config)
    names = [step.name for step in pipeline]
    lowered = Engine("off").run(program, pipeline[names.index("lower_to_onnx") : names.index("cast_to_half") + 1])
    return {n.metadata_props[MARK]: n.outputs[0].dtype for n in lowered.onnx.graph if MARK in n.metadata_props}


def test_named_nodes_stay_fp32(decoder):
    target, config = make_target("tensorrt"), ed.load("edge_sam", seed=0, config=TINY).config
    program = decoder.copy()
    assert kinds_of(program, target, config) == {}
    program.islands = frozenset(ISLANDS)
    assert kinds_of(program, target, config) == dict.fromkeys(ISLANDS, DataType.FLOAT)


def test_the_lint_knows_what_the_types_keep(decoder):
    nodes = {n.name: n for n in decoder.aten.graph.nodes}
    kept = {operator(nodes[name]) for name in make_target("tensorrt").islands(decoder)}
    assert {"layer_norm", "softmax", "sin", "cos"} <= kept
    assert not {"linear", "conv_transpose2d", "gelu"} & kept
    fused = make_target("tensorrt", attention="fused").islands(decoder)
    assert "softmax" not in {operator(nodes[name]) for name in fused}


def test_precisions_that_have_nothing_to_mix():
    for precision in ("fp32", "bf16", "int8"):
        with pytest.raises(UsageError, match="nothing to mix"):
            make_target("tensorrt", precision=precision, auto_mixed=True)


def high():
    """Mask logits on a pedestal beyond fp16's end, which fp32 carries without harm."""
    model = ed.load("edge_sam", seed=0, config=TINY)
    model.get_parameter("mask_decoder.output_upscaling.3.bias").data += 20_000
    return model


def test_an_overflow_is_refused_by_name_and_islands_mend_the_artifact(tmp_path, monkeypatch):
    monkeypatch.setattr("edgesam_deploy.precision.mixed.few_pictures", lambda: SCENES)
    monkeypatch.setattr("edgesam_deploy.precision.lint.few_pictures", lambda: SCENES)
    with pytest.raises(ParityError, match=r"mask_decoder.*where fp16 ends at 65,504.*--auto-mixed"):
        ed.build(high(), "tensorrt", tmp_path / "out", proof="off", pictures=SCENES)
    assert list(tmp_path.iterdir()) == []
    bundle = ed.build(high(), "tensorrt", tmp_path / "out", pictures=SCENES, auto_mixed=True)  # every pass proved
    assert bundle.read_json("parity.json")["verdict"] == "pass"
    assert bundle.manifest["parts"]["mask_decoder"]["fp32_islands"]
