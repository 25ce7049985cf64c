"""The generated code does what the Python predictor does, tensor by tensor; compiled with every warning an error.

In C++ always; in Kotlin as a slow test where ``kotlinc`` and ``java`` are found, in Swift where ``swiftc`` is. Long
because one driver per language, built once, serves every test here.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import PIL
import pytest
from scenes import picture

from edgesam_deploy.bundle import Bundle
from edgesam_deploy.contract import PE_MATRIX, Interface, SegmenterInterface, describe_tensors
from edgesam_deploy.errors import PromptError
from edgesam_deploy.model.semantic import tile_boxes
from edgesam_deploy.model.transforms import resized_size, stability_score
from edgesam_deploy.runtime import BundlePredictor, BundleSegmenter
from edgesam_deploy.targets.integration import integration_files, write_integration

DATA = Path(__file__).parents[1] / "data"
COMPILER, KOTLIN, JAVA, SWIFT = (shutil.which(name) for name in ("g++", "kotlinc", "java", "swiftc"))
FLAGS = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-pedantic", "-Werror"]
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="g++ is not installed: the generated C++ is not compiled")
no_kotlin = "kotlinc or java is not installed: the generated Kotlin is not compiled (npm's kotlin-compiler has kotlinc)"
needs_kotlin = pytest.mark.skipif(KOTLIN is None or JAVA is None, reason=no_kotlin)
needs_swift = pytest.mark.skipif(SWIFT is None, reason="swiftc is not installed: the generated Swift is not compiled")
EXTENSIONS = {"cpp": "onnx", "kotlin": "tflite", "swift": "mlpackage"}

EXACT = int(PIL.__version__.partition(".")[0]) >= 13  # before, tall pictures were resized in the other order

SMALL = {"image_size": 256, "embed_dim": 64}
CONTRACT = Interface(**SMALL)
NPU = Interface(**SMALL, io="edgesam-npu", points=5)
BYTES = Interface(**SMALL, embed_preprocess=True, mask_input=True, batch=3)
APPS = Interface(**SMALL, io="edgesam", points="dynamic")
HQ = Interface(**SMALL, hq="late", intermediate=((1, 1, 1),))
CLASSES = SegmenterInterface(128, 5)
CLASS_MAPS = SegmenterInterface(128, 5, argmax=True, embed_preprocess=True)
REAL = Interface()


def manifest(interface, *, promptable=True, extension="onnx"):
    parts = interface.parts(promptable=promptable and isinstance(interface, Interface))
    return {
        "edgesam_deploy": "0.0.0",
        "target": "onnx",
        "options": {"deployment_target": "iOS17"},
        "model": {"name": "edge_sam"},
        "contract": interface.describe(),
        "parts": {
            name: {
                "file": f"{part.file}.{extension}",
                "inputs": describe_tensors(part.inputs),
                "outputs": describe_tensors(part.outputs),
            }
            for name, part in parts.items()
        },
    }


class Recorder:
    """A part that keeps what it is fed and answers with seeded noise."""

    description = "noise"

    def __init__(self, outputs):
        self.outputs, self.fed, self.given = outputs, [], []

    def __call__(self, inputs):
        self.fed.append(dict(inputs))
        rng = np.random.default_rng(len(self.fed))
        self.given.append({s.name: 5 * rng.standard_normal(s.bound({"batch": 1})).astype("f4") for s in self.outputs})
        return self.given[-1]


def driver_sources(language, interface):
    kind = "classes" if isinstance(interface, SegmenterInterface) else "prompts"
    if language == "cpp":
        return [DATA / "integration_driver.cpp"]
    end = {"kotlin": "kt", "swift": "swift"}[language]
    return [DATA / f"integration_{name}.{end}" for name in ("driver", kind)]


def compiled(language, interface, folder):
    """The command that runs the driver, compiled with that artifact's generated host code."""
    write_integration(folder, manifest(interface, extension=EXTENSIONS[language]))
    place, sources = folder / "integration", driver_sources(language, interface)
    if language == "cpp":
        semantic = ["-DSEGMENTER"] if isinstance(interface, SegmenterInterface) else []
        ran(COMPILER, *FLAGS, *semantic, "-I", place, *sources, "-o", folder / "driver")
        return [folder / "driver"]
    if language == "kotlin":
        return kotlin(folder, place / "EdgeSamDeploy.kt", *sources)
    host = place / "Sources" / "EdgeSamDeploy" / "EdgeSamDeploy.swift"
    ran(SWIFT, "-O", "-parse-as-library", "-warnings-as-errors", host, *sources, "-o", folder / "driver")
    return [folder / "driver"]


def ran(*command):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def kotlin(folder, *sources):
    ran(KOTLIN, "-J-XX:TieredStopAtLevel=1", "-Werror", "-include-runtime", *sources, "-d", folder / "driver.jar")
    return [JAVA, "-XX:TieredStopAtLevel=1", "-jar", folder / "driver.jar"]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("cpp", marks=needs_compiler),
        pytest.param("kotlin", marks=[pytest.mark.slow, needs_kotlin]),
        pytest.param("swift", marks=needs_swift),
    ],
)
def host(request, tmp_path_factory):
    """``host(interface)``: runs the driver compiled with that artifact's host code; each compiled once a language."""
    known = {}

    def get(interface):
        skip_uncovered(request.param, interface)
        if interface not in known:
            known[interface] = compiled(request.param, interface, tmp_path_factory.mktemp("host"))

        def run(*words, fails=None):
            done = subprocess.run([*map(str, [*known[interface], *words])], capture_output=True, text=True)
            assert done.returncode == (0 if fails is None else 1), done.stderr
            if fails is not None:
                assert fails in done.stderr
            return done.stdout

        return run

    return get


def skip_uncovered(language, interface):
    """Skip what a language's target refuses to build."""
    if language == "swift" and interface.embed_preprocess:
        pytest.skip("the generated Swift makes no pictures")
    if language != "cpp" and isinstance(interface, Interface) and interface.points == "dynamic":
        pytest.skip("TFLite and Core ML have static shapes")


def predictor_of(interface, folder):
    """The Python predictor over recorders, and its encoder and decoder."""
    matrix = np.random.default_rng(7).standard_normal((2, interface.embed_dim // 2)).astype("<f4")
    (folder / f"{PE_MATRIX}.bin").write_bytes(matrix.tobytes())
    parts = interface.parts()
    runners = {name: Recorder(part.outputs) for name, part in parts.items()}
    return BundlePredictor(Bundle(folder, manifest(interface)), runners), *runners.values()


def encoded(run, pixels, folder):
    (folder / "rgb.bin").write_bytes(pixels.tobytes())
    listing = run("encode", *pixels.shape[:2], folder / "rgb.bin", folder)
    return tensors(listing, folder, {"image": "u1" if "256 256 3" in listing else "<f4"})


def tensors(listing, folder, dtypes=None):
    found = {}
    for line in listing.splitlines():
        name, *shape = line.split()
        values = np.fromfile(folder / f"{name}.bin", (dtypes or {}).get(name, "<f4"))
        found[name] = values.reshape([int(side) for side in shape])
    return found


def decoded(run, prompts, size, folder, matrix="-", mask=None, fails=None):
    lines = []
    for points, box in prompts:
        lines += ["next"] if lines else []
        lines += [f"p {x!r} {y!r} {label}" for x, y, label in points]
        lines += ["b " + " ".join(map(repr, box))] if box else []
        lines += [] if points or box else ["nothing"]
    (folder / "prompts.txt").write_text("\n".join(lines))
    given = "-"
    if mask is not None:
        given = folder / "mask.bin"
        given.write_bytes(mask.astype("<f4").tobytes())
    listing = run("decode", *size, folder / "prompts.txt", matrix, given, folder, fails=fails)
    return None if fails else tensors(listing, folder)


# ---------------------------------------------------------------------------------------------------- pictures

SIZES = [
    (1, 1), (1, 300), (300, 1), (2, 3), (256, 256), (255, 257), (150, 225), (97, 613), (700, 256), (3, 2000),
    (511, 256),
]  # fmt: skip


@pytest.mark.parametrize("interface", [CONTRACT, BYTES], ids=["floats", "bytes"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pictures_become_the_same_tensors_to_the_bit(host, tmp_path, interface, size):
    pixels = np.random.default_rng(size[0]).integers(0, 256, (*size, 3)).astype(np.uint8)
    predictor, encoder, _ = predictor_of(interface, tmp_path)
    predictor.set_image(pixels)
    ours = encoded(host(interface), pixels, tmp_path)
    (theirs,) = encoder.fed
    assert list(ours) == list(theirs)
    for name, values in theirs.items():
        assert ours[name].dtype == values.dtype
        if EXACT or size[0] <= 2 * size[1]:
            np.testing.assert_array_equal(ours[name], values)
        else:  # one level of 255, normalised where the artifact does not do that
            assert np.abs(ours[name].astype(float) - values).max() <= (1 if interface is BYTES else 0.018)


def test_a_photograph_at_the_real_size(host, tmp_path):
    pixels = picture(1333, 2000, 3)
    predictor, encoder, _ = predictor_of(REAL, tmp_path)
    predictor.set_image(pixels)
    np.testing.assert_array_equal(encoded(host(REAL), pixels, tmp_path)["image"], encoder.fed[0]["image"])
    check_masks(host(REAL), predictor, tmp_path)


def test_what_is_no_picture(host, tmp_path):
    (tmp_path / "rgb.bin").write_bytes(b"")
    host(CONTRACT)("encode", 0, 5, tmp_path / "rgb.bin", tmp_path, fails="got 0 x 5")
    host(CONTRACT)("encode", 5, 5, tmp_path / "rgb.bin", tmp_path, fails="no pixels")


# ---------------------------------------------------------------------------------------------------- prompts

POINT, BOX = (40.5, 33.25, 1), (10.0, 20.0, 100.5, 90.0)
PROMPTS = {
    "point": [([POINT], None)],
    "points": [([POINT, (7, 9, 0), (-3.5, 400, 1)], None)],
    "ignored": [([POINT, (5, 5, -2)], None)],
    "empty": [([POINT, (5, 5, -10)], None)],
    "box": [([], BOX)],
    "box and points": [([POINT, (3, 4, 0)], BOX)],
    "box as points": [([(10, 20, 2), (90, 80, 3)], None)],
    "nothing": [([], None)],
}


def asked(predictor, prompts, mask=None):
    """The Python predictor's own inputs of the decoder for the same prompts."""
    points, boxes = [p for p, _ in prompts], [b for _, b in prompts]
    predictor.predict_batch(
        [[row[:2] for row in p] for p in points] if points[0] else None,
        [[row[2] for row in p] for p in points] if points[0] else None,
        boxes if boxes[0] else None,
        mask,
    )
    return {k: v for k, v in predictor._decoder.fed[-1].items() if k not in ("image_embeddings", "hq_features")}


@pytest.mark.parametrize("prompts", PROMPTS.values(), ids=PROMPTS)
@pytest.mark.parametrize("interface", [CONTRACT, NPU, APPS, HQ], ids=["contract", "npu", "edgesam", "hq"])
def test_prompts_become_the_same_tensors(host, tmp_path, interface, prompts):
    predictor, *_ = predictor_of(interface, tmp_path)
    predictor.set_image(picture(150, 225, 10))
    matrix = tmp_path / f"{PE_MATRIX}.bin" if interface is NPU else "-"
    if interface is APPS and prompts in (PROMPTS["nothing"], PROMPTS["empty"]):
        with pytest.raises(PromptError, match="no empty slots"):
            asked(predictor, prompts)
        decoded(host(interface), prompts, (150, 225), tmp_path, matrix, fails="no empty slots")
        return
    theirs = asked(predictor, prompts)
    ours = decoded(host(interface), prompts, (150, 225), tmp_path, matrix)
    assert list(ours) == sorted(theirs, key=list(ours).index)
    for name, values in theirs.items():
        bound = 1e-6 if name == "point_embedding_pe" else 0
        assert ours[name].shape == values.shape
        assert np.abs(ours[name] - values).max() <= bound, name


def test_a_batch_with_masks(host, tmp_path):
    predictor, *_ = predictor_of(BYTES, tmp_path)
    predictor.set_image(picture(97, 613, 5))
    prompts = [([POINT], BOX), ([(9, 9, 0)], (1.0, 2.0, 30.0, 40.0))]
    masks = 5 * np.random.default_rng(0).standard_normal((2, 1, 64, 64)).astype(np.float32)
    for given in (None, masks):
        theirs = asked(predictor, prompts, given)
        ours = decoded(host(BYTES), prompts, (97, 613), tmp_path, mask=given)
        for name, values in theirs.items():
            rows = slice(2) if name == "mask_input" else slice(None)  # rows that no prompt fills mean nothing
            np.testing.assert_array_equal(ours[name][rows], values[rows], name)


def test_prompts_of_different_lengths_in_one_call(host, tmp_path):
    """The Python predictor takes them as one array with empty slots; here each is as long as it is."""
    predictor, *_ = predictor_of(BYTES, tmp_path)
    predictor.set_image(picture(150, 225, 10))
    ours = decoded(host(BYTES), [([POINT], None), ([POINT, POINT], None), ([], BOX)], (150, 225), tmp_path)
    for index, prompt in enumerate(([([POINT], None)], [([POINT, POINT], None)], [([], BOX)])):
        theirs = asked(predictor, prompt)
        for name in ("point_coords", "point_labels"):
            np.testing.assert_array_equal(ours[name][index], theirs[name][0])


BAD_PROMPTS = [
    (CONTRACT, [([POINT] * 6, None)], "7 prompt slots needed"),
    (CONTRACT, [([POINT] * 6, None)], "build it with --points 7"),
    (CONTRACT, [([(float("nan"), 1, 1)], None)], "NaN or infinity"),
    (CONTRACT, [([(1, float("inf"), 1)], None)], "NaN or infinity"),
    (CONTRACT, [([], (1.0, 2.0, float("nan"), 4.0))], "NaN or infinity"),
    (CONTRACT, [([(1, 1, 4)], None)], "4 is no label code"),
    (CONTRACT, [([(1, 1, -3)], None)], "-3 is no label code"),
    (CONTRACT, [([POINT], None)] * 2, "2 prompts in one call"),
    (NPU, [([POINT], None)], "the position matrix is missing"),
]


@pytest.mark.parametrize(("interface", "prompts", "words"), BAD_PROMPTS)
def test_prompts_that_do_not_fit_are_named(host, tmp_path, interface, prompts, words):
    decoded(host(interface), prompts, (150, 225), tmp_path, fails=words)


def test_masks_and_matrices_that_do_not_fit_are_named(host, tmp_path):
    one = [([POINT], None)]
    decoded(host(BYTES), one, (150, 225), tmp_path, mask=np.zeros(7), fails="expected 4096 logits, got 7")
    decoded(host(BYTES), one, (150, 225), tmp_path, mask=np.full(4096, np.nan), fails="NaN or infinity")
    decoded(host(CONTRACT), one, (150, 225), tmp_path, mask=np.zeros(4096), fails="takes no mask_input")
    (tmp_path / "cut.bin").write_bytes(b"123")
    decoded(host(NPU), one, (150, 225), tmp_path, matrix=tmp_path / "cut.bin", fails="3 bytes instead of 256")
    decoded(host(NPU), one, (150, 225), tmp_path, matrix=tmp_path / "none.bin", fails="0 bytes instead of 256")


# ---------------------------------------------------------------------------------------------------- masks


def check_masks(run, predictor, folder):
    """Every mask of one answer at the picture's size."""
    logits, scores, low_res = predictor.predict([[3, 4]], [1], num_multimask_outputs=4, return_logits=True)
    for mask, low in zip(logits, low_res, strict=True):
        (folder / "logits.bin").write_bytes(low.tobytes())
        run("upscale", *predictor.original_size, folder / "logits.bin", folder)
        ours = np.fromfile(folder / "upscaled.bin", "<f4").reshape(mask.shape)
        assert np.abs(ours - mask).max() <= 1e-4
        decided = np.abs(mask) > 1e-5  # what is 0 to six digits may round either way
        inside = np.fromfile(folder / "thresholded.bin", "u1").reshape(mask.shape).astype(bool)
        np.testing.assert_array_equal(inside[decided], (mask > 0)[decided])
        assert decided.mean() > 0.999
        assert np.fromfile(folder / "stability.bin", "<f4")[0] == stability_score(low)
    return scores


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_masks_come_back_at_the_pictures_size(host, tmp_path, size):
    predictor, *_ = predictor_of(CONTRACT, tmp_path)
    predictor.set_image(np.zeros((*size, 3), np.uint8))
    check_masks(host(CONTRACT), predictor, tmp_path)


@pytest.mark.parametrize("interface", [CONTRACT, HQ], ids=["four", "one"])
@pytest.mark.parametrize("outputs", [1, 3, 4])
def test_the_mask_is_chosen_as_in_python(host, tmp_path, interface, outputs):
    predictor, _, decoder = predictor_of(interface, tmp_path)
    predictor.set_image(picture(150, 225, 10))
    _, scores, low_res = predictor.predict([[3, 4]], [1], num_multimask_outputs=outputs)
    given = decoder.given[-1]
    (tmp_path / "scores.bin").write_bytes(given["scores"].tobytes())
    token = int(host(interface)("best", outputs, tmp_path / "scores.bin"))
    np.testing.assert_array_equal(given["masks"][0, token], low_res[int((-scores).argsort(kind="stable")[0])])


@pytest.mark.parametrize(
    ("scores", "token"), [([9, 1, 3, 3], 2), ([9, np.nan, 1, 0], 2), ([9, 2, np.nan, 2], 1), ([0, np.nan] * 2, 2)]
)
def test_equal_scores_and_nan(host, tmp_path, scores, token):
    (tmp_path / "scores.bin").write_bytes(np.array(scores, "<f4").tobytes())
    assert int(host(CONTRACT)("best", 3, tmp_path / "scores.bin")) == token
    host(CONTRACT)("best", 2, tmp_path / "scores.bin", fails="must be 1, 3 or 4")


# ---------------------------------------------------------------------------------------------------- classes


@pytest.mark.parametrize("interface", [CLASSES, CLASS_MAPS], ids=["logits", "class maps"])
@pytest.mark.parametrize("size", [(1, 1), (1, 90), (128, 128), (50, 77), (129, 40), (300, 400), (1, 700)], ids=str)
def test_classes_of_a_picture(host, tmp_path, interface, size):
    pixels = picture(*size, 3)
    spec = interface.parts()["segmenter"].outputs[0]
    segmenter = BundleSegmenter(Bundle(tmp_path, manifest(interface)), {"segmenter": Noise(spec, interface.classes)})
    theirs = segmenter.predict(pixels)
    (tmp_path / "rgb.bin").write_bytes(pixels.tobytes())
    for index, given in enumerate(segmenter._run.given):
        (tmp_path / f"region{index}.out").write_bytes(given.tobytes())
    count = int(host(interface)("segment", *size, tmp_path / "rgb.bin", "-", tmp_path))
    assert count == len(segmenter._run.fed)
    for index, fed in enumerate(segmenter._run.fed):
        ours = np.fromfile(tmp_path / f"region{index}.bin", fed.dtype).reshape(fed.shape)
        np.testing.assert_array_equal(ours, fed)
    classes = np.fromfile(tmp_path / "classes.bin", "<u2").reshape(size)
    confidence = np.fromfile(tmp_path / "confidence.bin", "<f4").reshape(size)
    if interface.argmax:
        np.testing.assert_array_equal(classes, theirs.class_map)
        return
    assert np.abs(confidence - theirs.confidence).max() < 1e-5
    assert (classes == theirs.class_map).mean() > 0.9999


class Noise:
    """A segmenter that keeps what it is fed and answers with seeded noise."""

    description = "noise"

    def __init__(self, spec, classes):
        self.spec, self.classes, self.fed, self.given = spec, classes, [], []

    def __call__(self, inputs):
        self.fed.append(inputs["image"])
        rng = np.random.default_rng(len(self.fed))
        whole = rng.integers(0, self.classes, self.spec.shape) if self.spec.dtype == "int32" else None
        values = 5 * rng.standard_normal(self.spec.shape) if whole is None else whole
        self.given.append(values.astype(self.spec.dtype))
        return {self.spec.name: self.given[-1]}


@pytest.mark.parametrize("overlap", [0, 17, 127])
def test_tiles_with_another_overlap(host, tmp_path, overlap):
    (tmp_path / "rgb.bin").write_bytes(picture(200, 300, 1).tobytes())
    count = int(host(CLASSES)("segment", 200, 300, tmp_path / "rgb.bin", overlap, tmp_path))
    assert count == len(list(tile_boxes(200, 300, 128, overlap)))
    host(CLASSES)("segment", 200, 300, tmp_path / "rgb.bin", 128, tmp_path, fails="less than 128")


# ---------------------------------------------------------------------------------------------------- what is written


def test_the_header_carries_the_artifacts_own_numbers():
    header = integration_files(manifest(NPU))["edgesam_deploy.hpp"]
    for words in ("image_size = 256;", "slots_per_prompt = 5;", '"point_embedding_pe"', "position_size = 64;"):
        assert words in header
    assert "$" not in header
    main = integration_files(manifest(NPU))["main.cpp"]
    assert '{"encoder.onnx", {"image"}, {"image_embeddings"}},' in main
    assert '{"decoder.onnx", {"image_embeddings", "point_embedding_pe", "point_labels"}, {"scores", "masks"}},' in main


@pytest.mark.parametrize("io", ["sam", "edgesam-dyt"])
def test_layouts_that_it_does_not_cover_say_so(io):
    found = integration_files(manifest(Interface(io=io, points="dynamic", mask_input=io == "sam")))
    assert list(found) == ["README.md"]
    assert f"There is no code for this bundle: apps that speak --io {io} have host code" in found["README.md"]


ORT_HEADER = "onnxruntime_cxx_api.h"


def ort_include():
    """Where ONNX Runtime's C++ headers are: in the compiler's own paths, or brought by a package."""
    places = [Path("/usr/include"), Path("/usr/local/include"), Path(onnxruntime.__file__).parents[1]]
    return next((hit.parent for place in places if place.is_dir() for hit in sorted(place.rglob(ORT_HEADER))), None)


@needs_compiler
@pytest.mark.parametrize("interface", [CONTRACT, NPU, BYTES, CLASSES, CLASS_MAPS], ids=lambda i: type(i).__name__)
def test_the_example_compiles(tmp_path, interface):
    include = ort_include()
    if include is None:
        pytest.skip(f"{ORT_HEADER} is not on this machine: main.cpp is not compiled (ONNX Runtime's archives bring it)")
    write_integration(tmp_path, manifest(interface))
    command = [COMPILER, "-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-isystem", include]
    done = subprocess.run([*command, tmp_path / "integration" / "main.cpp"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_artifact_that_departs_from_the_contract_gets_no_header():
    changed = manifest(CONTRACT)
    changed["parts"]["mask_decoder"]["inputs"][2]["dtype"] = "int32"
    found = integration_files(changed)
    assert list(found) == ["README.md"]
    assert "point_labels of decoder.onnx" in found["README.md"]


@needs_compiler
def test_an_image_encoder_alone(tmp_path):
    found = integration_files(manifest(CONTRACT, promptable=False))
    assert list(found) == ["edgesam_deploy.hpp", "README.md"]
    (tmp_path / "edgesam_deploy.hpp").write_text(found["edgesam_deploy.hpp"])
    (tmp_path / "main.cpp").write_text(
        '#include "edgesam_deploy.hpp"\nint main() { return edgesam_deploy::resized_size({1, 9000}).height - 1; }\n'
    )
    subprocess.run([COMPILER, *FLAGS, tmp_path / "main.cpp", "-o", tmp_path / "main"], check=True)
    subprocess.run([tmp_path / "main"], check=True)
    assert resized_size(1, 9000, 256)[0] == 1


def test_what_runs_the_files_decides_the_language():
    found = {
        extension: list(integration_files(manifest(CONTRACT, extension=extension))) for extension in EXTENSIONS.values()
    }
    assert found == {
        "onnx": ["edgesam_deploy.hpp", "main.cpp", "README.md"],
        "tflite": ["EdgeSamDeploy.kt", "LiteRt.kt", "README.md"],
        "mlpackage": [
            "Package.swift",
            "Sources/EdgeSamDeploy/EdgeSamDeploy.swift",
            "Sources/EdgeSamDeploy/CoreMLSession.swift",
            "README.md",
        ],
    }
    other = integration_files(manifest(CONTRACT, extension="engine"))
    assert list(other) == ["edgesam_deploy.hpp", "README.md"]  # the host's part; nothing that runs the file
