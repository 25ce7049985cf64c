"""The tensorrt target: what its parser refuses is not there, each value has a type, and the types cost what is said."""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import FAMILY
from onnx import TensorProto, helper
from scenes import picture

from edgesam_deploy.bench import Settings
from edgesam_deploy.bench import measure as measure_latency
from edgesam_deploy.builder import build
from edgesam_deploy.bundle import verify
from edgesam_deploy.errors import BundleError, EdgeSamDeployError, MissingToolkit, UsageError
from edgesam_deploy.model.registry import load
from edgesam_deploy.parity import check
from edgesam_deploy.runtime import open_predictor
from edgesam_deploy.targets import make_target
from edgesam_deploy.targets.tensorrt.hazards import hazards
from edgesam_deploy.targets.tensorrt.recipe import trtexec

STANDIN = Path(__file__).parent / "standin"
SCENE = {"scene": picture(150, 225, 10)}
KEPT = {"LayerNormalization", "Softmax", "Sin", "Cos", "ReduceMean"}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    done = {}

    def get(name="edge_sam", **options):
        key = name, repr(sorted(options.items()))
        if key not in done:
            model = load(name, config=FAMILY[name])
            folder = tmp_path_factory.mktemp("trt") / "bundle"
            done[key] = (
                model,
                build(model, "tensorrt", folder, proof="off" if options else "fast", pictures=SCENE, **options),
            )
        return done[key]

    return get


def graphs(bundle):
    return {part: onnx.shape_inference.infer_shapes(onnx.load(bundle.part(part))) for part in bundle.manifest["parts"]}


def kinds(model):
    values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    return {value.name: value.type.tensor_type.elem_type for value in values}


# ------------------------------------------------------------------------------------------------------ the artifact

CASES = [
    ("edge_sam", {}),
    ("edge_sam", {"points": "dynamic", "batch": "dynamic", "scores": "stability", "trt": 11, "attention": "fused"}),
    pytest.param("edge_sam_dyt", {"embed_preprocess": True, "mask_input": True}, marks=pytest.mark.slow),
    pytest.param("edge_sam_dyt_hq", {"io": "edgesam-dyt"}, marks=pytest.mark.slow),
    pytest.param("sam_hq_vit_tiny", {}, marks=pytest.mark.slow),
    pytest.param("vit_b", {"precision": "fp32"}, marks=pytest.mark.slow),
    pytest.param("edge_sam", {"precision": "bf16"}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_its_parts(built, name, options):
    _, bundle = built(name, **options)
    parity = bundle.read_json("parity.json")
    assert parity["verdict"] == "pass", parity["reasons"]
    assert parity["executed"].startswith("typed ONNX in onnxruntime")
    assert parity["executed"].endswith("; engine not built")
    assert ("rounded (emulation)" in parity["executed"]) == (options.get("precision") != "fp32")
    status = {row["status"] for part in bundle.read_json("ops.json")["parts"].values() for row in part["rows"]}
    assert status == ({"partial"} if options.get("trt") == 11 else {"supported"})
    for part, model in graphs(bundle).items():
        assert hazards(bundle.part(part)) == []
        check_types(
            model, {"bf16": TensorProto.BFLOAT16, "fp32": None}.get(options.get("precision"), TensorProto.FLOAT16)
        )


def check_types(model, half):
    known = kinds(model) | {weight.name: weight.data_type for weight in model.graph.initializer}
    for value in (*model.graph.input, *model.graph.output):
        assert known[value.name] in (TensorProto.FLOAT, TensorProto.BOOL, TensorProto.UINT8)
    for node in model.graph.node:
        floats = {known[name] for name in (*node.input, *node.output) if known.get(name) in FLOATS}
        assert len(floats) <= 1 or node.op_type == "Cast", (node.op_type, node.name)
        attention = node.op_type == "Softmax" and half in floats
        assert node.op_type not in KEPT or floats == {TensorProto.FLOAT} or attention, (node.op_type, node.name)
        if node.op_type in ("Conv", "ConvTranspose", "Gelu", "Gemm"):
            assert floats == ({TensorProto.FLOAT} if half is None else {half}), node.name


FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)


def test_a_version_without_a_table_says_so(built):
    _, bundle = built(*CASES[1][:1], **CASES[1][1])
    rows = [row for part in bundle.read_json("ops.json")["parts"].values() for row in part["rows"]]
    assert all("table not verified" in row["reason"] for row in rows)


def test_onnx_runtime_loads_the_typed_file_itself(built):
    _, bundle = built()
    session = onnxruntime.InferenceSession(str(bundle.part("mask_decoder")), providers=["CPUExecutionProvider"])
    feeds = {i.name: np.zeros(i.shape, np.float32) for i in session.get_inputs()}
    assert all(np.isfinite(value).all() for value in session.run(None, feeds))


def test_empty_slots_stay_exact_in_half(built):
    """n points in N slots are n points whatever lies in the empty ones."""
    _, bundle = built()
    predictor = open_predictor(bundle.path)
    predictor.set_image(SCENE["scene"])
    coords = np.zeros((1, 6, 2), np.float32)
    coords[0, 0], labels = (60, 40), np.array([[1, -1, -10, -10, -10, -10]], np.float32)
    first = predictor.predict_slots(coords, labels)
    coords[0, 2:] = 777.0
    second = predictor.predict_slots(coords, labels)
    for a, b in zip(first[:2], second[:2], strict=True):
        np.testing.assert_array_equal(a, b)


def test_fused_attention_leaves_no_cast_around_softmax(built):
    for name, options in (CASES[0], CASES[1]):
        _, bundle = built(name, **options)
        graph = onnx.load(bundle.part("mask_decoder")).graph
        made = {node.output[0]: node.op_type for node in graph.node}
        before = {made[node.input[0]] for node in graph.node if node.op_type == "Softmax"}
        assert (before == {"Cast"}) == (options.get("attention") != "fused")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"trt": 9}, "10 or 11"), ({"precision": "fp64"}, "fp32, fp16, bf16"), ({"io": "sam"}, "orig_im_size"),
        ({"points_profile": "1,6"}, "three numbers"), ({"points_profile": "8,6,64"}, "rise"),
        ({"batch_profile": "0,1,2"}, "rise"), ({"attention": "x"}, "fp32 or fused"),
    ],
)  # fmt: skip
def test_options_that_mean_nothing(options, words):
    with pytest.raises(UsageError, match=words):
        make_target("tensorrt", **options)


def test_hazards_are_named(tmp_path):
    nodes = [
        helper.make_node("OneHot", ["x", "depth", "values"], ["y"], name="codes"),
        helper.make_node("Cast", ["size"], ["size64"], to=TensorProto.INT64),
        helper.make_node("Expand", ["y", "size64"], ["z"], name="grow"),
    ]
    inputs = [helper.make_tensor_value_info(n, 1, [2]) for n in ("x", "depth", "values", "size")]
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_empty_tensor_value_info("z")])
    onnx.save(helper.make_model(graph), tmp_path / "x.onnx")
    found = hazards(tmp_path / "x.onnx")
    assert [line.split(":")[0] for line in found] == ["OneHot codes", "input size becomes a shape in Expand grow"]


def test_weights_beyond_half_are_refused_by_name(tmp_path):
    model = load("edge_sam", config=FAMILY["edge_sam"])
    model.mask_decoder.iou_prediction_head.layers[0].bias.data[3] = 1e5
    with pytest.raises(EdgeSamDeployError, match=r"iou_prediction_head.* reaches 1e\+05 where fp16 ends at 65,504"):
        build(model, "tensorrt", tmp_path / "out", proof="off", pictures=SCENE)
    assert list(tmp_path.iterdir()) == []


# -------------------------------------------------------------------------------------------------- the script, alone


def trtexec_of(bundle):
    return {name: part["trtexec"] for name, part in bundle.read_json("build_engine.json")["parts"].items()}


def test_the_trtexec_line_of_each_major(built):
    _, static = built()
    line = trtexec_of(static)["mask_decoder"]
    assert line.startswith("trtexec --onnx=decoder.onnx --stronglyTyped --noTF32 --saveEngine=decoder.engine")
    assert "Shapes" not in line
    _, dynamic = built(*CASES[1][:1], **CASES[1][1])
    line = trtexec_of(dynamic)["mask_decoder"]
    assert "--stronglyTyped" not in line
    assert "--minShapes=point_coords:1x1x2,point_labels:1x1" in line
    assert "--optShapes=point_coords:1x6x2,point_labels:1x6" in line
    assert "--maxShapes=point_coords:64x64x2,point_labels:64x64" in line
    assert line in (dynamic.path / "README.md").read_text()
    assert not any(f"--{flag}" in line for flag in ("fp16", "int8", "bf16", "best"))
    words = "--onnx=encoder.onnx --noTF32 --saveEngine=encoder.engine --timingCacheFile=timing.cache --skipInference"
    assert trtexec("encoder.onnx", {}, 11) == f"trtexec {words}"


def run_script(bundle, tmp_path, *arguments, **environment):
    """The bundle's own script in a process that has the stand-in and nothing of this project."""
    folder = tmp_path / "device"
    if not folder.exists():
        shutil.copytree(bundle.path, folder)
    log = tmp_path / "calls.jsonl"
    log.unlink(missing_ok=True)
    variables = {"PATH": os.environ["PATH"], "PYTHONPATH": str(STANDIN), "STANDIN_LOG": str(log), **environment}
    command = [sys.executable, str(folder / "build_engine.py"), *arguments]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, cwd=tmp_path, check=False)
    calls = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return done, calls, folder


@pytest.mark.parametrize(("version", "flags"), [("10.15.1.29", 2), ("11.4.0.106", 0)])
def test_the_script_builds_for_both_majors(built, tmp_path, version, flags):
    _, bundle = built(*CASES[1][:1], **CASES[1][1])  # for 11
    done, calls, folder = run_script(bundle, tmp_path, STANDIN_VERSION=version)
    assert done.returncode == 0, done.stderr
    assert ("note: this bundle was made for TensorRT 11" in done.stderr) == (version[:2] == "10")
    suffix = f"{version}.Stand-in-GPU-1"
    names = sorted(path.name for path in (folder / "engines").iterdir())
    stems = [f"{part}.{suffix}" for part in ("decoder", "encoder")]
    assert names == sorted([*(f"{s}.{e}" for s in stems for e in ("engine", "json")), f"timing.{suffix}.cache"])
    assert [call[1] for call in calls if call[0] == "create_network"] == [flags, flags]
    assert [call[1] for call in calls if call[0] == "clear_flag"] == ["TF32", "TF32"]
    assert [call[1:] for call in calls if call[0] == "set_shape"] == [
        ["point_coords", [1, 1, 2], [1, 6, 2], [64, 64, 2]], ["point_labels", [1, 1], [1, 6], [64, 64]],
    ]  # fmt: skip
    caches = [call[1] for call in calls if call[0] == "create_timing_cache"]
    assert caches == [0, 1]  # the second part starts from what the first learnt
    about = json.loads((folder / "engines" / f"decoder.{suffix}.json").read_text())
    assert (about["tensorrt"], about["gpu"], about["compute_capability"]) == (version, "Stand-in GPU (1)", "9.0")
    assert about["onnx_sha256"] == bundle.manifest["files"]["decoder.onnx"]["sha256"]
    assert verify(folder).path == folder  # engines are the device's, not strangers
    again, calls, _ = run_script(bundle, tmp_path, "--parts", "mask_decoder", "--workspace-mb", "64")
    assert again.returncode == 0
    assert ["set_memory_pool_limit", "WORKSPACE", 64 << 20] in calls


@pytest.mark.parametrize(
    ("fail", "code", "words"),
    [
        ("parse decoder.onnx", 1, "cannot parse decoder.onnx:\n  In node 0 with name: Mystery_0"),
        ("build", 1, "cannot build encoder.onnx"),
        ("gpu", 3, "finds no GPU"),
    ],
)
def test_the_script_fails_aloud_and_leaves_nothing_half_written(built, tmp_path, fail, code, words):
    _, bundle = built()
    done, _, folder = run_script(bundle, tmp_path, STANDIN_FAIL=fail)
    assert done.returncode == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    engines = {path.name.split(".")[0] for path in folder.glob("engines/*")}
    assert engines == ({"encoder", "timing"} if fail.startswith("parse") else set())
    assert not list(folder.glob("engines/.*"))


def test_the_script_without_tensorrt_and_with_a_wrong_part(built, tmp_path):
    _, bundle = built()
    done, _, _ = run_script(bundle, tmp_path, PYTHONPATH=str(tmp_path))
    if "tensorrt" not in sys.modules and importlib.util.find_spec("tensorrt") is None:
        assert done.returncode == 3
        assert "pip install tensorrt" in done.stderr
    done, _, _ = run_script(bundle, tmp_path, "--parts", "head")
    assert done.returncode == 2
    assert "no part head; this bundle has image_encoder, mask_decoder" in done.stderr


# ------------------------------------------------------------------------------------------------ engines, stood in for


@pytest.fixture
def standin(monkeypatch):
    """TensorRT and CUDA as the stand-ins, in this process."""
    names = [n for n in sys.modules if n.split(".")[0] in ("tensorrt", "cuda")]
    for name in names:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(STANDIN)
    monkeypatch.setattr(ctypes, "CDLL", ctypes.CDLL)
    yield
    for name in [n for n in sys.modules if n.split(".")[0] in ("tensorrt", "cuda")]:
        del sys.modules[name]


def test_engines_are_built_measured_and_timed_by_the_same_code(standin, tmp_path, tiny_model):
    bundle = build(tiny_model, "tensorrt", tmp_path / "out", proof="off", pictures=SCENE, engine=True)
    parity = bundle.read_json("parity.json")
    assert (parity["verdict"], parity["executed"]) == ("pass", "TensorRT 10.15.1.29 on Stand-in GPU (1)")
    assert not [name for name in bundle.manifest["files"] if name.startswith("engines")]
    verify(bundle.path)
    latency = measure_latency([bundle.path], Settings(runs=2, warmup=1, provider="cuda", cold=False))
    stages = {row["stage"]: row for row in latency["bundles"][0]["stages"]}
    for part in ("image_encoder", "mask_decoder"):
        for stage in ("H2D", "GPU", "GPU, CUDA graph", "D2H"):
            assert stages[f"{part}: {stage}"]["runs"] == 2


def test_an_engine_gives_what_its_file_gives_with_and_without_graphs(standin, built, tmp_path):
    from edgesam_deploy.targets.tensorrt.build_engine import build_engines
    from edgesam_deploy.targets.tensorrt.engine import EngineRunner

    _, bundle = built(*CASES[1][:1], **CASES[1][1])
    shutil.copytree(bundle.path, tmp_path / "out")
    build_engines(tmp_path / "out", tmp_path / "out" / "engines")
    decoder = tmp_path / "out" / "decoder.onnx"
    session = onnxruntime.InferenceSession(str(decoder), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(3)
    for graphs_on in (False, True):
        runner = EngineRunner(decoder, graphs=graphs_on)
        for batch, points in ((1, 3), (4, 7), (1, 3), (1, 3)):
            feeds = {
                "image_embeddings": rng.standard_normal((1, 64, 16, 16), np.float32),
                "point_coords": rng.uniform(0, 256, (batch, points, 2)).astype(np.float32),
                "point_labels": np.ones((batch, points), np.float32),
            }
            found = runner(feeds)
            for name, expected in zip(["masks", "scores"], session.run(["masks", "scores"], feeds), strict=True):
                np.testing.assert_array_equal(found[name], expected)
        with pytest.raises(UsageError, match=r"point_coords \(1, 65, 2\): outside of the engine's profile"):
            runner({**feeds, "point_coords": np.zeros((1, 65, 2)), "point_labels": np.zeros((1, 65))})


def test_engines_of_another_file_are_not_taken(standin, built, tmp_path):
    from edgesam_deploy.targets.tensorrt.build_engine import build_engines
    from edgesam_deploy.targets.tensorrt.engine import EngineRunner

    _, bundle = built()
    shutil.copytree(bundle.path, tmp_path / "out")
    with pytest.raises(BundleError, match=r"decoder.onnx has no engine for TensorRT .* run .*build_engine.py"):
        EngineRunner(tmp_path / "out" / "decoder.onnx")
    build_engines(tmp_path / "out", tmp_path / "out" / "engines")
    with (tmp_path / "out" / "decoder.onnx").open("ab") as file:
        file.write(b"\x00")
    with pytest.raises(BundleError, match=r"of another decoder.onnx"):
        EngineRunner(tmp_path / "out" / "decoder.onnx")


def has_tensorrt():
    try:
        import tensorrt  # noqa: F401
        from cuda.bindings import runtime

        return int(runtime.cudaGetDeviceCount()[0]) == 0
    except (ImportError, AttributeError):
        return False


@pytest.mark.skipif(has_tensorrt(), reason="this machine has TensorRT and a GPU")
def test_engine_without_a_gpu_ends_with_code_3(tmp_path, tiny_model):
    with pytest.raises(MissingToolkit, match="pip install tensorrt cuda-python"):
        build(tiny_model, "tensorrt", tmp_path / "out", engine=True)
    assert MissingToolkit.exit_code == 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not has_tensorrt(), reason="no TensorRT with a GPU here: real engines were not built")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_real_engines(tmp_path, tiny_model, precision):
    bundle = build(tiny_model, "tensorrt", tmp_path / "out", pictures=SCENE, engine=True, precision=precision)
    assert bundle.read_json("parity.json")["executed"].startswith("TensorRT ")
    assert check(bundle.path, tiny_model, pictures=SCENE, provider="cuda").verdict == "pass"
