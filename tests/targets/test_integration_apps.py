"""The generated Kotlin and Swift as an app takes them: they parse, name what the files hold, and run the bundle."""

from __future__ import annotations

import os

import numpy as np
import pytest
from conftest import TINY
from scenes import picture
from test_integration import (
    BYTES,
    CLASS_MAPS,
    CLASSES,
    CONTRACT,
    DATA,
    HQ,
    NPU,
    SMALL,
    kotlin,
    manifest,
    needs_kotlin,
    predictor_of,
    ran,
)

from edgesam_deploy.builder import build
from edgesam_deploy.bundle import verify
from edgesam_deploy.contract import Interface
from edgesam_deploy.model.registry import load
from edgesam_deploy.runtime import open_predictor
from edgesam_deploy.targets.integration import integration_files, write_integration

INTERFACES = {"contract": CONTRACT, "npu": NPU, "hq": HQ, "bytes": BYTES, "classes": CLASSES, "class maps": CLASS_MAPS}
GRAMMARS = {".swift": "tree_sitter_swift", ".kt": "tree_sitter_kotlin"}


def faults(name, text):
    """Where a file does not parse, as line numbers."""
    suffix = name[name.rindex(".") :]
    sitter, grammar = pytest.importorskip("tree_sitter"), pytest.importorskip(GRAMMARS[suffix])
    waiting, found = [sitter.Parser(sitter.Language(grammar.language())).parse(text.encode()).root_node], []
    while waiting:
        node = waiting.pop()
        found += [node.start_point[0] + 1] if node.type == "ERROR" or node.is_missing else []
        waiting += node.children
    return found


def sources(interface, extension, **changed):
    found = integration_files(manifest(interface, extension=extension, **changed))
    return {name: text for name, text in found.items() if name.endswith((".kt", ".swift"))}


@pytest.mark.parametrize("interface", INTERFACES.values(), ids=INTERFACES)
@pytest.mark.parametrize(("extension", "count"), [("tflite", 2), ("mlpackage", 3)])
def test_every_file_parses(interface, extension, count):
    if extension == "mlpackage" and interface.embed_preprocess:
        pytest.skip("the generated Swift makes no pictures")
    for changed in ({}, {"promptable": False}):
        found = sources(interface, extension, **changed)
        assert len(found) == count
        for name, text in found.items():
            assert faults(name, text) == [], name
            assert "$" not in text


@pytest.mark.parametrize("extension", ["tflite", "mlpackage"])
def test_a_file_that_lost_a_brace_does_not_parse(extension):
    for name, text in sources(CONTRACT, extension).items():
        cut = text.rindex("}") if "}" in text else text.rindex(")")
        assert faults(name, text[:cut] + text[cut + 1 :]), name


@pytest.mark.parametrize("path", sorted(DATA.glob("*.swift")) + sorted(DATA.glob("*.kt")), ids=lambda p: p.name)
def test_what_drives_them_parses(path):
    assert faults(path.name, path.read_text()) == []


def test_the_swift_package_carries_the_artifacts_own_names():
    found = integration_files(manifest(HQ, extension="mlpackage"))
    assert list(found) == [
        "Package.swift",
        "Sources/EdgeSamDeploy/EdgeSamDeploy.swift",
        "Sources/EdgeSamDeploy/CoreMLSession.swift",
        "README.md",
    ]
    session = found["Sources/EdgeSamDeploy/CoreMLSession.swift"]
    assert 'for name in ["image_embeddings", "hq_features"]' in session
    assert 'loadModel("encoder"' in session
    assert "let sam = true ?" in session
    host = found["Sources/EdgeSamDeploy/EdgeSamDeploy.swift"]
    for words in ("imageSize = 256\n", "slotsPerPrompt = 6\n", "masksPerPrompt = 1 "):
        assert words in host
    assert '.iOS("17.0"), .macOS("14.0")' in found["Package.swift"]
    assert "not compiled" in found["README.md"] or "without one" in found["README.md"]


def test_shapes_that_vary_get_no_kotlin_and_no_swift():
    for extension in ("tflite", "mlpackage"):
        found = integration_files(manifest(Interface(**SMALL, points="dynamic"), extension=extension))
        assert list(found) == ["README.md"]
        assert "its shapes vary" in found["README.md"]


def test_what_the_swift_does_not_know_is_said():
    one_file = manifest(CONTRACT, extension="mlpackage")
    for entry in one_file["parts"].values():
        entry["file"] = "model.mlpackage"
    cases = {"takes a picture (CVPixelBuffer)": manifest(BYTES, extension="mlpackage"), "several functions": one_file}
    for words, content in cases.items():
        found = integration_files(content)
        assert list(found) == ["README.md"]
        assert words in found["README.md"]


# ---------------------------------------------------------------------------------------------------- channels last


def channels_last(interface):
    changed = manifest(interface, extension="tflite")
    image = changed["parts"]["image_encoder"]["inputs"][0]
    image["shape"] = [1, *image["shape"][2:], 3]
    return changed


def test_an_image_with_its_channels_last_is_known_in_tflite_alone():
    changed = channels_last(CONTRACT)
    assert "val CHANNELS_LAST: Boolean = true" in integration_files(changed)["EdgeSamDeploy.kt"]
    assert "val CHANNELS_LAST: Boolean = false" in sources(CONTRACT, "tflite")["EdgeSamDeploy.kt"]
    changed["parts"]["image_encoder"]["file"] = "encoder.onnx"
    assert list(integration_files(changed)) == ["README.md"]


@needs_kotlin
@pytest.mark.slow
def test_kotlin_writes_an_image_with_its_channels_last(tmp_path):
    write_integration(tmp_path, channels_last(CONTRACT))
    drivers = [DATA / "integration_driver.kt", DATA / "integration_prompts.kt"]
    command = kotlin(tmp_path, tmp_path / "integration" / "EdgeSamDeploy.kt", *drivers)
    pixels = picture(150, 225, 10)
    predictor, encoder, _ = predictor_of(CONTRACT, tmp_path)
    predictor.set_image(pixels)

    (tmp_path / "rgb.bin").write_bytes(pixels.tobytes())
    ran(*command, "encode", *pixels.shape[:2], tmp_path / "rgb.bin", tmp_path)
    ours = np.fromfile(tmp_path / "image.bin", np.float32).reshape(1, 256, 256, 3)
    np.testing.assert_array_equal(ours, encoder.fed[0]["image"].transpose(0, 2, 3, 1))


# ---------------------------------------------------------------------------------------------------- whole bundles


@pytest.fixture(scope="module")
def tflite(tmp_path_factory):
    """One file with decoders for 2 and 6 slots, channels last."""
    pytest.importorskip("litert_torch")
    place = tmp_path_factory.mktemp("app") / "tflite"
    options = {"single_file": True, "layout": "nhwc", "signatures": "2,6"}
    pictures = {"scene": picture(150, 225, 10)}
    return build(load("edge_sam", seed=0, config=TINY), "tflite", place, proof="off", pictures=pictures, **options)


@pytest.mark.slow
def test_kotlin_names_the_signatures_of_the_file(tflite):
    from edgesam_deploy.targets.tflite import flatbuffer

    assert verify(tflite.path)
    assert "integration/LiteRt.kt" in tflite.manifest["files"]
    session = (tflite.path / "integration" / "LiteRt.kt").read_text()
    for name, (inputs, outputs) in flatbuffer.signatures(
        flatbuffer.parse((tflite.path / "model.tflite").read_bytes())
    ).items():
        listed = [", ".join(f'"{tensor}"' for tensor in names) for names in (inputs, outputs)]
        assert f'Part("model.tflite", "{name}", listOf({listed[0]}), listOf({listed[1]}))' in session
    assert "intArrayOf(2, 6)" in (tflite.path / "integration" / "EdgeSamDeploy.kt").read_text()


def test_a_core_ml_bundle_holds_the_package(tmp_path):
    pytest.importorskip("coremltools")
    model, pictures = load("edge_sam", seed=0, config=TINY), {"scene": picture(150, 225, 10)}
    bundle = build(model, "coreml", tmp_path / "b", proof="off", pictures=pictures, precision="fp32")
    written = {name for name in verify(bundle.path).manifest["files"] if name.startswith("integration/")}
    assert written == {f"integration/{name}" for name in integration_files(bundle.manifest)}
    assert "integration/Package.swift" in written


@needs_kotlin
@pytest.mark.slow
def test_kotlin_of_every_interface_compiles(tmp_path):
    """All at once, each in a package of its own: what runs the file too, and an image encoder alone."""
    cases = [*((interface, {}) for interface in INTERFACES.values()), (CONTRACT, {"promptable": False})]
    written = []
    for index, (interface, changed) in enumerate(cases):
        for name, text in sources(interface, "tflite", **changed).items():
            written.append(tmp_path / f"{index}{name}")
            written[-1].write_text(text.replace("package edgesam.deploy", f"package edgesam.case{index}"))
    kotlin(tmp_path, *written, DATA / "litert_stand_in.kt")


PROMPTS = [([[40.5, 33.25]], [1]), ([[40.5, 33.25], [7, 9], [90, 120]], [1, 0, 1])]  # 2 slots, then 4


@needs_kotlin
@pytest.mark.slow
def test_kotlin_runs_the_bundle(tflite, tmp_path):
    """LiteRt.kt on a stand-in that answers with what LiteRT gave: what it feeds is Python's, and so are the masks."""
    pixels, predictor = picture(150, 225, 10), open_predictor(tflite.path)
    predictor.set_image(pixels)
    (tmp_path / "rgb.bin").write_bytes(pixels.tobytes())
    (tmp_path / "encode.image_embeddings.out").write_bytes(predictor.features.tobytes())
    masks = []
    for (coords, labels), slots in zip(PROMPTS, (2, 6), strict=True):
        found, scores, low_res = predictor.predict(coords, labels, num_multimask_outputs=4)
        (tmp_path / f"decode_{slots}.masks.out").write_bytes(low_res.tobytes())
        (tmp_path / f"decode_{slots}.scores.out").write_bytes(scores.tobytes())
        masks.append(found[1 + int((-scores[1:]).argsort(kind="stable")[0])])
    place = tflite.path / "integration"
    driver, stand_in = DATA / "integration_session.kt", DATA / "litert_stand_in.kt"
    *start, jar, path = kotlin(tmp_path, place / "EdgeSamDeploy.kt", place / "LiteRt.kt", driver, stand_in)
    ran(*start, f"-Dlitert={tmp_path}", jar, path, tflite.path, *pixels.shape[:2], tmp_path / "rgb.bin", tmp_path)
    for index, mask in enumerate(masks):
        ours = np.fromfile(tmp_path / f"mask{index}.bin", np.uint8).reshape(mask.shape)
        assert (ours.astype(bool) == mask).mean() > 0.9999
    fed = np.fromfile(tmp_path / "encode.image.bin", np.float32).reshape(1, 256, 256, 3)
    np.testing.assert_array_equal(fed, predictor.preprocess(pixels).reshape(1, 3, 256, 256).transpose(0, 2, 3, 1))
    labels = np.fromfile(tmp_path / "decode_6.point_labels.bin", np.float32)
    np.testing.assert_array_equal(labels, [1, 0, 1, -1, -10, -10])
    np.testing.assert_array_equal(np.fromfile(tmp_path / "decode_2.point_labels.bin", np.float32), [1, -1])
    given = np.fromfile(tmp_path / "decode_2.image_embeddings.bin", np.float32)
    np.testing.assert_array_equal(given, predictor.features.ravel())
    assert os.path.getsize(tmp_path / "mask0.bin") == 150 * 225
