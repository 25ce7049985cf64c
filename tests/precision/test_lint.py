"""The fp16 gate: planted faults are refused, the message names the tensor and what mends it, and that mends it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import FAMILY, TINY
from scenes import picture

import edgesam_deploy as ed
from edgesam_deploy import builder
from edgesam_deploy.bundle import Bundle
from edgesam_deploy.capture import capture
from edgesam_deploy.errors import ParityError, UsageError
from edgesam_deploy.parity import measure_on
from edgesam_deploy.passes import aten
from edgesam_deploy.passes.engine import Pass
from edgesam_deploy.precision.analyse import after_aten_passes
from edgesam_deploy.precision.lint import gate, lint
from edgesam_deploy.precision.mixed import keep_islands
from edgesam_deploy.runtime import BundlePredictor
from edgesam_deploy.targets.coreml.target import CoremlTarget
from edgesam_deploy.targets.onnx import OnnxRunner
from edgesam_deploy.targets.qnn.target import QnnTarget
from edgesam_deploy.targets.tflite import TfliteTarget

SCENES = {"a": picture(150, 225, 10), "b": picture(180, 120, 3)}


@pytest.fixture(scope="module")
def prepared():
    """``prepared(target, {name: function})``: a tiny EdgeSAM with these weights changed, its interface, and its
    programs behind the target's aten passes.
    """
    known = {}

    def get(target, changes=None):
        key = (target.name, *(changes or {}))
        if key not in known:
            model = ed.load("edge_sam", seed=0, config=TINY)
            for name, change in (changes or {}).items():
                parameter = model.get_parameter(name)
                parameter.data = change(parameter.detach())
            interface = target.interface(model.config)
            known[key] = model, *after_aten_passes(capture(model, interface), target, model, interface)
        model, programs, interface = known[key]
        return model, interface, [program.copy() for program in programs]

    return get


@pytest.fixture
def found(prepared):
    """``found(target, {name: function}, *steps)``: the lint's findings as text, of the tiny model with these weights
    changed, after further steps: passes, or functions of programs and interface.
    """

    def get(target, changes=None, *steps):
        model, interface, programs = prepared(target, changes)
        for step in steps:
            if isinstance(step, Pass):
                assert sum(step(program) for program in programs)
            else:
                step(programs, target, interface)
        return [str(finding) for finding in lint(model, target, interface, programs, SCENES)]

    return get


def mixed(programs, target, interface):
    """What --auto-mixed does."""
    keep_islands(programs, target, interface, pictures=SCENES)
    assert any(program.islands for program in programs)


@pytest.mark.parametrize("target", [CoremlTarget(), QnnTarget(), TfliteTarget(precision="fp16")], ids=lambda t: t.name)
def test_good_weights_pass(found, target):
    assert found(target) == []


# --- planted faults --------------------------------------------------------------------------------------------------


# the neck's deviations reach some 800, and the norm behind them makes the same of it: in fp32 nothing changes
WIDE = {"image_encoder.neck.0.weight": lambda w: 80 * w}
# the neck's first norm gives numbers of 1e-9, each of which becomes 0 in fp16, and large ones are made of them
FAINT = {
    "image_encoder.neck.1.weight": lambda w: 5e-9 * w,
    "image_encoder.neck.1.bias": lambda b: 5e-9 * b,
    "image_encoder.neck.2.weight": lambda w: 1e5 * w,
}
# mask logits stand on a pedestal of some 100,000, where a chip stays at fp16's largest number, or at infinity
HIGH = {"mask_decoder.output_upscaling.3.bias": lambda b: b + 20_000}
# what the last stages see never reaches the neck
DEAD = {f"image_encoder.{name}.weight": torch.zeros_like for name in ("fuse_stage2", "fuse_stage3.op_list.0")}


def test_a_variance_that_overflows_is_refused_and_the_named_pass_mends_it(found):
    refusal = found(CoremlTarget(), WIDE, aten.decompose_layer_norm_fp32)  # which squares the deviations as they are
    assert "image_encoder.neck.1" in refusal[0]
    assert "the squares of a norm reach" in refusal[0]
    assert "65,504" in refusal[0]
    assert "decompose_layer_norm (divides" in refusal[0]
    assert found(CoremlTarget(), WIDE, aten.decompose_layer_norm) == []
    assert found(CoremlTarget(), WIDE) == []  # one operator: the other remedy that the message names
    assert found(CoremlTarget(), WIDE, aten.decompose_layer_norm_fp32, mixed) == []  # and the third


def test_a_dead_branch_is_refused_and_the_checkpoint_without_it_passes(found):
    refusal = found(CoremlTarget(), DEAD)
    assert "image_encoder.fuse_stage" in refusal[0]
    assert "in fp32 too" in refusal[0]
    assert "another checkpoint" in refusal[0]
    assert found(CoremlTarget()) == []


def test_a_constant_embedding_is_refused_and_islands_mend_it(found):
    refusal = found(CoremlTarget(), FAINT)
    assert any("ignore the picture" in line or "constant output" in line for line in refusal), refusal
    assert all("image_encoder.neck" in line for line in refusal if "embeddings" in line), refusal
    assert any("--auto-mixed" in line for line in refusal)
    assert found(CoremlTarget(), FAINT, mixed) == []


def test_a_saturated_mask_is_refused_and_islands_mend_it(found):
    refusal = found(CoremlTarget(), HIGH)
    assert "mask_decoder" in refusal[0]
    assert "where fp16 ends at 65,504" in refusal[0]
    assert "--auto-mixed" in refusal[0]
    assert any("logits of a" in line and "NaN or infinity" in line for line in refusal), refusal
    assert not any("in fp32 too" in line for line in refusal), refusal
    assert found(CoremlTarget(), HIGH, mixed) == []


def quantised(encoder, folder):
    """An int8 QDQ encoder by ONNX Runtime's quantiser, calibrated on the scenes."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    from edgesam_deploy.model.transforms import preprocess

    class Reader(CalibrationDataReader):
        rows = iter([{"image": preprocess(scene, TINY["image_size"])[0]} for scene in SCENES.values()])

        def get_next(self):
            return next(self.rows, None)

    path = folder / "encoder.int8.onnx"
    quantize_static(
        encoder, path, Reader(), quant_format=QuantFormat.QDQ, per_channel=True, activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )  # fmt: skip
    return path


def with_wrong_zero_point(path):
    """The same file, but that the last tensor's zero point is off by a third of the range."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(path)
    weights = {w.name: w for w in model.graph.initializer}
    (last,) = (n for n in model.graph.node if n.output[0] == "image_embeddings")
    assert last.op_type == "DequantizeLinear"
    held = weights[last.input[2]]
    wrong = ((numpy_helper.to_array(held).astype(int) + 85) % 256).astype(np.uint8)
    # its own zero point: the quantiser that feeds it keeps the right one, as a converter that mixed them up would
    model.graph.initializer.append(numpy_helper.from_array(wrong, "wrong_zero_point"))
    last.input[2] = "wrong_zero_point"
    onnx.save(model, path)
    return path


def test_a_wrong_zero_point_is_refused_and_the_right_one_passes(bundles, tiny_model, tmp_path):
    good = bundles()
    decoder = OnnxRunner(good.part("mask_decoder"))
    manifest = {**good.manifest, "target": "qnn", "options": {"precision": "w8a8"}}  # whose cost nobody claims

    def parity(encoder):
        runners = {"image_encoder": OnnxRunner(encoder), "mask_decoder": decoder}
        return measure_on(tiny_model, BundlePredictor(Bundle(good.path, manifest), runners), SCENES)

    encoder = quantised(good.part("image_encoder"), tmp_path)
    right = parity(encoder)
    assert right.verdict == "not verified", right.reasons
    wrong = parity(with_wrong_zero_point(encoder))
    assert wrong.verdict == "fail"
    assert any("embeddings of a" in reason and "all zeros" in reason for reason in wrong.reasons), wrong.reasons


# --- the gate --------------------------------------------------------------------------------------------------------


def planted(changes):
    model = ed.load("edge_sam", seed=0, config=TINY)
    for name, change in changes.items():
        model.get_parameter(name).data = change(model.get_parameter(name).detach())
    return model


def test_a_build_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(CoremlTarget, "emit_parts", lambda *_: pytest.fail("it went on"))
    steps = []
    with pytest.raises(ParityError, match=r"emulated") as refusal:
        builder.build(planted(FAINT), "coreml", tmp_path / "out", proof="off", progress=steps.append)
    assert refusal.value.exit_code == 4
    assert "no bundle was written" in str(refusal.value)
    assert steps[-1] == "fp16 lint"
    assert list(tmp_path.iterdir()) == []


def test_weights_beyond_the_end_are_named(found):
    change = {"mask_decoder.iou_prediction_head.layers.0.weight": lambda w: 1e6 * w}
    for target in (CoremlTarget(), TfliteTarget(precision="fp16")):
        assert any(f"the weight {next(iter(change))} reaches" in line for line in found(target, change))


def test_large_parts_are_left_to_parity_or_seen_on_a_twin(monkeypatch):
    model = ed.load("vit_b", seed=0, config=FAMILY["vit_b"])
    looked = []
    monkeypatch.setattr(
        "edgesam_deploy.precision.lint.lint", lambda m, *_: looked.append(len(m.image_encoder.blocks)) or []
    )
    macs = {"image_encoder": 1e12}
    gate(model, CoremlTarget(precision="fp32"), None, {}, {}, twin=True)
    gate(model, CoremlTarget(), None, {}, macs)
    assert looked == []
    gate(model, CoremlTarget(), None, {}, macs, twin=True)
    assert looked == [2]


def test_semantic_models_are_seen():
    model, target = ed.load("cwsam", seed=0, config=FAMILY["cwsam"]), CoremlTarget()
    interface = target.interface(model.config)
    assert lint(model, target, interface, capture(model, interface), SCENES) == []


def test_targets_that_cannot_mix_say_so():
    with pytest.raises(UsageError, match="does not mix"):
        keep_islands([], QnnTarget(), None)
    with pytest.raises(UsageError, match="nothing to mix"):
        CoremlTarget(precision="fp32", auto_mixed=True)


@pytest.mark.slow
def test_islands_reach_the_package_and_its_parity(tmp_path, monkeypatch):
    pytest.importorskip("coremltools")
    monkeypatch.setattr("edgesam_deploy.precision.mixed.few_pictures", lambda: SCENES)
    bundle = ed.build(planted(HIGH), "coreml", tmp_path / "out", proof="off", pictures=SCENES, auto_mixed=True)
    assert bundle.read_json("parity.json")["verdict"] == "pass"
    assert bundle.manifest["parts"]["mask_decoder"]["fp32_islands"]
