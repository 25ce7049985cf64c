"""OpenVINO: the target, and the runtime of other .onnx bundles; the same answers, its own errors."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from conftest import TINY
from scenes import picture

from edgesam_deploy.bench import Settings, remote
from edgesam_deploy.bench import measure as measure_latency
from edgesam_deploy.builder import build
from edgesam_deploy.bundle import Bundle, verify
from edgesam_deploy.devices import runner
from edgesam_deploy.errors import BundleError, EdgeSamDeployError, MissingToolkit, UsageError
from edgesam_deploy.model.registry import load
from edgesam_deploy.parity import check
from edgesam_deploy.runtime import open_artifact, open_predictor
from edgesam_deploy.targets import make_target
from edgesam_deploy.targets.openvino_runner import openvino_core
from edgesam_deploy.targets.rules import load_table, probe_openvino

ov = pytest.importorskip("openvino", reason="openvino is not installed")

PICTURES = {"scene": picture(150, 225, 10)}
OPTIONS = [
    ("edge_sam", "onnx", {}),
    ("edge_sam", "onnx", {"points": "dynamic", "batch": "dynamic", "prompts_per_image": 64, "mask_input": True}),
    pytest.param("edge_sam", "onnx", {"embed_preprocess": True, "scores": "stability"}, marks=pytest.mark.slow),
    pytest.param("edge_sam_dyt_hq", "onnx", {}, marks=pytest.mark.slow),
    pytest.param("edge_sam", "npu", {}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "target", "options"), OPTIONS)
def test_it_answers_as_pytorch_does(tmp_path, name, target, options):
    model = load(name, seed=0, config=TINY)
    bundle = build(model, target, tmp_path / "b", proof="off", pictures=PICTURES, **options)
    found = check(bundle.path, model, pictures=PICTURES, provider="openvino")
    assert found.verdict == "pass", found
    assert found.executed.startswith("openvino")


def test_threads_and_fp32_are_asked_for(small, monkeypatch):
    asked = []
    compile_model = ov.Core.compile_model
    monkeypatch.setattr(ov.Core, "compile_model", lambda s, *a: asked.append(a[2]) or compile_model(s, *a))
    open_artifact(small.path, "openvino", 1)
    open_artifact(small.path, "openvino")
    assert [c["INFERENCE_PRECISION_HINT"] for c in asked] == ["f32"] * 4
    assert [c.get("INFERENCE_NUM_THREADS") for c in asked] == [1, 1, None, None]


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """The tiny model for OpenVINO, in 8 bit and in fp32."""
    model, folder = load("edge_sam", seed=0, config=TINY), tmp_path_factory.mktemp("own")
    return [build(model, "openvino", folder / p, proof="off", pictures=PICTURES, precision=p) for p in ("int8", "fp32")]


def test_the_target_is_measured_in_openvino(own):
    parity = [bundle.read_json("parity.json") for bundle in own]
    assert [found["verdict"] for found in parity] == ["not verified", "pass"]
    assert all(found["executed"].startswith("openvino") for found in parity)
    assert [bundle.target for bundle in own] == ["openvino"] * 2
    assert open_artifact(own[1].path).executed.startswith("openvino")
    with pytest.raises(UsageError, match="run in OpenVINO on the CPU"):
        open_artifact(own[1].path, "cuda")
    verify(own[0].path)


def test_what_is_8_bit_is_what_convolutions_and_their_sums_read(own):
    graph = onnx.load(own[0].path / "encoder.onnx").graph
    made = {name: node for node in graph.node for name in node.output}
    layers = json.loads((own[0].path / "calibration.json").read_text())["quantised"]["image_encoder"]
    for node in graph.node:
        if node.name in layers:
            assert [made[name].op_type for name in node.input[:2]] == ["DequantizeLinear"] * 2
        if node.op_type == "Gelu":  # exact, and between convolutions
            assert made[node.input[0]].op_type == "Conv"
    sums = [node for node in graph.node if node.op_type == "Add" and all(name in made for name in node.input)]
    assert any(all(made[name].op_type == "DequantizeLinear" for name in node.input) for node in sums)
    assert not any(node.op_type == "Sigmoid" and node.name.endswith("_gate") for node in graph.node)


def test_openvino_computes_it_in_8_bit(own):
    model = openvino_core().compile_model(str(own[0].path / "encoder.onnx"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    facts = [op.get_rt_info() for op in model.get_runtime_model().get_ops()]
    kinds = [f["runtimePrecision"].astype(str) for f in facts if "Convolution" in f["layerType"].astype(str)]
    assert sum(kind in ("u8", "i8") for kind in kinds) > len(kinds) / 2, kinds


def test_gelu_stays_exact_so_8_bit_costs_less_than_for_onnxruntime(own, tmp_path):
    model, scene = load("edge_sam", seed=0, config=TINY), picture(180, 240, 4)
    other = build(model, "onnx", tmp_path / "b", proof="off", pictures=PICTURES, precision="int8")
    maps = [open_predictor(path).set_image(scene) for path in (own[1].path, own[0].path, other.path)]
    apart = [np.linalg.norm(found - maps[0]) / np.linalg.norm(maps[0]) for found in maps[1:]]
    assert 1e-3 < apart[0] < apart[1]


def test_the_operator_table_is_the_installed_openvinos(tmp_path):
    held = load_table("openvino")
    if held.source != probe_openvino.source():
        pytest.skip(f"the table is of {held.source}; installed: {probe_openvino.source()}")
    probe_openvino.main(["-o", str(tmp_path / "again.json")])
    assert (tmp_path / "again.json").read_bytes() == Path(probe_openvino.__file__).with_name(
        "openvino.json"
    ).read_bytes()
    known = {rule.op: rule.status for rule in held.rules}
    assert (known["Conv"], known["Gelu"], known["StringNormalizer"]) == ("supported", "supported", "unsupported")


@pytest.mark.slow
def test_8_bit_of_another_target(small, tmp_path):
    """The file was quantised for another runtime's kernels: here it is as far from fp32 as there."""
    model = load("edge_sam", seed=0, config=TINY)
    bundle = build(model, "onnx", tmp_path / "b", proof="off", pictures=PICTURES, precision="int8")
    scene = picture(180, 240, 4)
    wanted = open_predictor(small.path).set_image(scene)
    maps = [open_predictor(bundle.path, provider).set_image(scene) for provider in ("cpu", "openvino")]
    apart = [np.linalg.norm(found - wanted) / np.linalg.norm(wanted) for found in maps]
    assert apart[1] == pytest.approx(apart[0], rel=0.2)


@pytest.mark.parametrize("opened", ["OpenvinoRunner(file)", 'OpenvinoPart(file, "", "openvino", 1)'])
def test_signals_are_handled_when_runners_are_gone(own, opened):
    """In a process of its own: what went wrong ended it."""
    script = f"""
import os, signal, sys
from pathlib import Path
from edgesam_deploy.devices.runner import OpenvinoPart
from edgesam_deploy.targets.openvino_runner import OpenvinoRunner
runners = [{opened} for file in map(Path, sys.argv[1:])]
while runners:
    del runners[0]  # the first made goes first
signal.signal(signal.SIGINT, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGINT)
"""
    files = [str(own[0].path / name) for name in ("encoder.onnx", "decoder.onnx")]
    done = subprocess.run([sys.executable, "-c", script, *files], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


def test_bench(small):
    result = measure_latency([small.path], Settings(runs=2, warmup=1, provider="openvino", cold=False))
    (row,) = result["bundles"]
    assert row["executed"].startswith("openvino")
    assert "encoder" in {stage["stage"] for stage in row["stages"]}


def test_on_a_device(own, tmp_path):
    """Packed for it, run by the script that is pushed, and compared with what this machine computes."""
    packed, there = tmp_path / "packed", tmp_path / "there"
    packed.mkdir()
    settings = Settings(runs=1, warmup=0, points=(1,), prompts=(), threads=1)
    name = str(own[1].path)
    files, job, rows = remote._packed({name: own[1]}, settings, packed)
    assert [bundle["provider"] for bundle in job["bundles"]] == ["openvino"]
    for file, path in files.items():
        (there / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, there / file)
    said = []
    runner.run(job, there, said.append)
    assert next(fact["executed"] for fact in said if fact["event"] == "loaded").startswith("openvino")
    device = SimpleNamespace(pull=lambda file, to: shutil.copy(there / file, to))
    remote._compare(device, job, {name: own[1]}, rows, settings, packed)
    assert rows[name]["agreement"] < 1e-5
    with pytest.raises(UsageError, match="openvino bundles run in openvino"):
        remote._provider(own[1], "cuda")
    other = Bundle(tmp_path, {"target": "tflite", "parts": {"image_encoder": {"file": "model.tflite"}}})
    with pytest.raises(UsageError, match=r"runs \.onnx files, not model\.tflite"):
        remote._provider(other, "openvino")
    assert remote._provider(other, "cpu") == "cpu"


def test_what_it_refuses(small, tmp_path, monkeypatch):
    target, encoder = make_target("onnx"), small.part("image_encoder")
    with pytest.raises(EdgeSamDeployError, match="failed in OpenVINO"):
        target.load(encoder, provider="openvino")({"image": np.zeros((1, 3, 7, 7), np.float32)})
    (tmp_path / "damaged.onnx").write_bytes(encoder.read_bytes()[:1000])
    with pytest.raises(BundleError, match=r"damaged\.onnx cannot be loaded by OpenVINO"):
        target.load(tmp_path / "damaged.onnx", provider="openvino")
    with pytest.raises(UsageError, match="--provider gpu: must be cpu or cuda, or openvino"):
        target.load(encoder, provider="gpu")
    with pytest.raises(UsageError, match="--provider openvino"):
        make_target("tflite").load(tmp_path / "x.tflite", part="image_encoder", provider="openvino", threads=1)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingToolkit, match=r"edgesam-deploy\[openvino\]"):
        target.load(encoder, provider="openvino")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    model = load("edge_sam", seed=0, config=TINY)
    return build(model, "onnx", tmp_path_factory.mktemp("fp32") / "b", proof="off", pictures=PICTURES)
