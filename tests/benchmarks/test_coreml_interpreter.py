"""The benchmark of the CoreML interpreter measures a package, and says what it cannot read."""

from __future__ import annotations

import json

import coremltools as ct
import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb

from benchmarks import coreml_interpreter


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    @mb.program(input_specs=[mb.TensorSpec(shape=(1, 5)), mb.TensorSpec(shape=(1, 5))], opset_version=ct.target.iOS17)
    def program(point_coords, point_labels):
        return mb.softmax(x=mb.mul(x=point_coords, y=point_labels), name="y")

    folder = tmp_path_factory.mktemp("bundle")
    for part in coreml_interpreter.PARTS:
        ct.convert(
            program, convert_to="mlprogram", minimum_deployment_target=ct.target.iOS17, skip_model_load=True
        ).save(str(folder / f"{part}.mlpackage"))  # fmt: skip
    return folder


def test_a_bundle_is_measured(bundle, tmp_path, capsys):
    assert coreml_interpreter.main(["--bundle", str(bundle), "--rounds", "2", "--out", str(tmp_path)]) == 0
    text = (tmp_path / "coreml_interpreter.md").read_text()
    assert text in capsys.readouterr().out
    found = json.loads((tmp_path / "coreml_interpreter.json").read_text())
    assert [(p["part"], p["mode"]) for p in found["parts"]] == [
        ("encoder", "declared"), ("encoder", "fp32"), ("decoder", "declared"), ("decoder", "fp32"),
    ]  # fmt: skip
    for part in found["parts"]:
        assert part["wall"] > 0
        assert {"mul", "softmax"} <= set(part["slowest"])
        assert f"| {part['part']} | {part['mode']} | {part['operations']} |" in text


def test_inputs_are_what_a_decoder_takes(bundle):
    model = coreml_interpreter.open_mlpackage(bundle / "decoder.mlpackage")
    inputs = coreml_interpreter.inputs_of(model)
    assert set(np.unique(inputs["point_labels"])) <= {0, 1}
    assert 0 <= inputs["point_coords"].min() < inputs["point_coords"].max() <= 1023


def test_a_missing_package_is_refused(tmp_path, capsys):
    assert coreml_interpreter.main(["--bundle", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert "refused: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
