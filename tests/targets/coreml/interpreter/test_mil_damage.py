"""Packages that are damaged, hostile or not what they say: one clear error, what and where."""

from __future__ import annotations

import json
import shutil
import struct
import sys

import numpy as np
import pytest
from mil_packages import OPSETS, built, ct, mb

from edgesam_deploy.errors import BundleError, EdgeSamDeployError, MissingToolkit
from edgesam_deploy.targets.coreml.interpreter import TensorType, open_mlpackage
from edgesam_deploy.targets.coreml.interpreter.proto import schema
from edgesam_deploy.targets.coreml.interpreter.weights import CODES, open_weights

MODEL, WEIGHTS = "Data/com.apple.CoreML/model.mlmodel", "Data/com.apple.CoreML/weights/weight.bin"
LARGE = np.random.default_rng(0).standard_normal((40, 30)).astype(np.float32)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    @mb.program(input_specs=[mb.TensorSpec(shape=(2, 30))], opset_version=OPSETS["iOS17"])
    def program(x):
        return mb.softmax(x=mb.linear(x=x, weight=LARGE), axis=-1, name="y")

    return built(program, tmp_path_factory.mktemp("whole") / "p.mlpackage")


@pytest.fixture
def package(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "p.mlpackage")


def edit_manifest(package, change):
    path = package / "Manifest.json"
    content = json.loads(path.read_text())
    change(content, content["itemInfoEntries"][content["rootModelIdentifier"]])
    path.write_text(json.dumps(content))


def edit_model(package, change):
    model = schema("Model_pb2").Model()
    path = package / MODEL
    model.ParseFromString(path.read_bytes())
    change(model.mlProgram.functions["main"].block_specializations["CoreML7"], model)
    path.write_bytes(model.SerializeToString())


def refuses(package, match):
    with pytest.raises(BundleError, match=match):
        open_mlpackage(package)


def test_the_whole_one_runs(package):
    x = np.ones((2, 30), np.float32)
    got = open_mlpackage(package)({"x": x})["y"]
    wanted = np.exp(x @ LARGE.T)
    np.testing.assert_allclose(got, wanted / wanted.sum(1, keepdims=True), rtol=1e-5)


def test_manifests(package, tmp_path):
    refuses(tmp_path / "none.mlpackage", "no .mlpackage: No such file")
    edit_manifest(package, lambda content, root: root.update(path="com.apple.CoreML/other.mlmodel"))
    refuses(package, r"names 'com.apple.CoreML/other.mlmodel', which is no file")
    edit_manifest(package, lambda content, root: root.update(path=7))
    refuses(package, "path is 7")
    edit_manifest(package, lambda content, root: root.update(path="a\0b"))
    refuses(package, "cannot be a path")
    edit_manifest(package, lambda content, root: root.pop("path"))
    refuses(package, r"no itemInfoEntries\[rootModelIdentifier\].path \(KeyError")
    for text in ("{", "[]", "[" * 10000, '{"itemInfoEntries": [], "rootModelIdentifier": 1}'):
        (package / "Manifest.json").write_text(text)
        refuses(package, "no itemInfoEntries")


@pytest.mark.parametrize("how", ["up", "absolute", "link"])
def test_a_manifest_cannot_point_outside(package, tmp_path, how):
    outside = tmp_path / "outside.mlmodel"
    shutil.copy(package / MODEL, outside)
    entry = {"up": "../../outside.mlmodel", "absolute": str(outside), "link": "com.apple.CoreML/link.mlmodel"}[how]
    if how == "link":
        (package / "Data" / entry).symlink_to(outside)
    edit_manifest(package, lambda content, root: root.update(path=entry))
    refuses(package, "points outside its folder")


def test_weights_cannot_be_outside(package):
    def point_at(name):
        def change(block, model):
            blobs = [op.attributes["val"].blobFileValue for op in block.operations if op.type == "const"]
            next(b for b in blobs if b.fileName).fileName = name

        edit_model(package, change)

    point_at("@model_path/../../Manifest.json")
    refuses(package, "points outside its folder")
    point_at("/etc/hostname")
    refuses(package, "does not start with @model_path/")


def test_a_truncated_model_is_no_model(package):
    content = (package / MODEL).read_bytes()
    (package / MODEL).write_bytes(content[:-9])
    refuses(package, "is no Core ML model")
    (package / MODEL).write_bytes(b"")
    refuses(package, "a model of kind None; only ML Programs")


def test_weight_files(package):
    path = package / WEIGHTS
    content = path.read_bytes()
    for broken, match in (
        (b"", "empty"),
        (content[:40], "40 bytes, a header has 64"),
        (struct.pack("<II", 1, 1) + content[8:], "storage version 1"),
        (content[:100], "no record at offset 64 of 100 bytes"),
        (content[:64] + b"\0" * 4 + content[68:], r"not a record \(it starts with 0x0\)"),
        (content[:68] + struct.pack("<I", 1) + content[72:], r"element type 1, the model declares fp32\[40, 30\]"),
        (content[:72] + struct.pack("<Q", 4) + content[80:], r"4 bytes, the model declares fp32\[40, 30\]"),
        (content[:80] + struct.pack("<Q", 1 << 40) + content[88:], "data ends at"),
        (content[:-8], "data ends at"),
    ):
        path.write_bytes(broken)
        refuses(package, match)
    path.unlink()
    refuses(package, "names 'weights/weight.bin', which is no file")


def test_programs_that_contradict_themselves(package):
    def last(block):
        return block.operations[-1]

    def operation(block, kind):
        return next(op for op in block.operations if op.type == kind)

    def unknown_name(block, model):
        last(block).inputs["x"].arguments[0].name = "nobody"

    def twice(block, model):
        block.operations.append(last(block))

    def no_output(block, model):
        del block.outputs[:]

    def lacking(block, model):
        del operation(block, "linear").inputs["weight"]

    def untyped(block, model):
        operation(block, "const").outputs[0].type.tensorType.dataType = 99

    def no_value(block, model):
        operation(block, "const").attributes["val"].ClearField("immediateValue")
        operation(block, "const").attributes["val"].ClearField("blobFileValue")

    def no_body(block, model):
        model.mlProgram.functions["main"].opset = "CoreML99"

    kept = (package / MODEL).read_bytes()
    for change, match in (
        (unknown_name, "softmax y reads 'nobody', which nothing before it defines"),
        (twice, "'y' is defined twice"),
        (no_output, "no output"),
        (lacking, "linear linear_0 lacks weight"),
        (untyped, "element type 99"),
        (no_value, "has no value"),
        (no_body, "no body for its opset 'CoreML99'"),
    ):
        (package / MODEL).write_bytes(kept)
        edit_model(package, change)
        refuses(package, match)


def test_a_shape_other_than_declared_stops_the_run(package):
    def declare(block, model):
        block.operations[-1].outputs[0].type.tensorType.dimensions[1].constant.size = 41

    edit_model(package, declare)
    with pytest.raises(EdgeSamDeployError, match=r"softmax y gave shape \(2, 40\); the program declares fp32\[2, 41\]"):
        open_mlpackage(package)({"x": np.ones((2, 30), np.float32)})


def test_only_ml_programs_are_run(package):
    model = schema("Model_pb2").Model()
    model.neuralNetwork.layers.add()
    (package / MODEL).write_bytes(model.SerializeToString())
    refuses(package, "a model of kind neuralNetwork; only ML Programs")


WRITTEN = {
    "fp32": np.array([1.5, -2, 3e-9], np.float32), "fp16": np.array([1.5, -2, 6e-8], np.float16),
    "int8": np.array([-128, 127, 3], np.int8), "uint8": np.array([0, 255, 3], np.uint8),
    "int16": np.array([-32768, 5, 7], np.int16), "uint16": np.array([65535, 5, 7], np.uint16),
    "int32": np.array([-(2**31), 5, 7], np.int32), "uint32": np.array([2**32 - 1, 5, 7], np.uint32),
    "int4": np.array([-8, 7, 0, -1, 3], np.int8), "uint1": np.array([1, 0, 0, 1, 1], np.uint8),
    "uint2": np.array([3, 0, 2, 1, 1], np.uint8), "uint3": np.array([7, 0, 5, 1, 6], np.uint8),
    "uint4": np.array([15, 0, 5, 1, 6], np.uint8), "uint6": np.array([63, 0, 5, 1, 62], np.uint8),
}  # fmt: skip


def test_every_element_type_is_read_as_coremltools_wrote_it(tmp_path):
    """coremltools' own writer is native; it is here on Linux too."""
    storage = pytest.importorskip("coremltools.libmilstoragepython")
    path = tmp_path / "weight.bin"
    writer = storage._BlobStorageWriter(str(path))
    offsets = {}
    for dtype, array in WRITTEN.items():
        write = getattr(writer, f"write_{'float' if dtype == 'fp32' else dtype}_data")
        offsets[dtype] = write(array.view(np.uint16) if dtype == "fp16" else array)
    del writer
    weights = open_weights(path)
    for dtype, array in WRITTEN.items():
        got = weights.read(offsets[dtype], TensorType(dtype, array.shape))
        np.testing.assert_array_equal(got, array)
    assert set(WRITTEN) == set(CODES) - {"bf16"}


def test_without_coremltools_the_extra_is_named(monkeypatch, tmp_path):
    """Nor does a folder that happens to be called proto take its place."""
    (tmp_path / "proto").mkdir()
    (tmp_path / "proto" / "Model_pb2.py").write_text("Model = 1")
    monkeypatch.chdir(tmp_path)
    for module in ("coremltools", "coremltools.proto.Model_pb2"):
        monkeypatch.setitem(sys.modules, module, None)
    schema.cache_clear()
    try:
        with pytest.raises(MissingToolkit, match=r"needs coremltools.*pip install 'edgesam-deploy\[coreml\]'") as e:
            schema("Model_pb2")
        assert e.value.exit_code == 3
    finally:
        schema.cache_clear()


def test_the_classes_are_coremltools_own():
    """Whether coremltools was imported before or not, a file means the same."""
    assert schema("Model_pb2").Model.DESCRIPTOR.full_name == "CoreML.Specification.Model"
    assert ct.proto.Model_pb2.Model.DESCRIPTOR is schema("Model_pb2").Model.DESCRIPTOR
