"""TensorRT's latency by trtexec on a device, which is stood in for: its words, what it prints, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from recorded import TRTEXEC, TRTEXEC_FAILED, TRTEXEC_OLDER

from edgesam_deploy.bench import Settings
from edgesam_deploy.bench.formats import google_benchmark_json, markdown, pytest_benchmark_json
from edgesam_deploy.bench.trtexec_tool import measure_with_trtexec, parse_trtexec, words
from edgesam_deploy.cli import main
from edgesam_deploy.devices import LocalDevice
from edgesam_deploy.errors import EdgeSamDeployError, MissingToolkit, UsageError
from edgesam_deploy.targets.tensorrt.recipe import trtexec


@pytest.fixture
def engines(bundles, tmp_path):
    """An ONNX bundle that says it is for TensorRT."""
    copy = shutil.copytree(bundles().path, tmp_path / "engines")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["target"] = "tensorrt"
    (copy / "manifest.json").write_text(json.dumps(manifest))
    files = {part: f"{part.split('_')[1]}.onnx" for part in ("image_encoder", "mask_decoder")}
    parts = {part: {"file": file, "trtexec": trtexec(file, {}, 10)} for part, file in files.items()}
    (copy / "build_engine.json").write_text(json.dumps({"parts": parts}))
    return copy


def stand_in(tmp_path, text, *, code=0):
    path = tmp_path / "trtexec"
    path.write_text(f"#!/bin/sh\necho \"$@\" >> '{tmp_path}/arguments'\nls */ > '{tmp_path}/there'\n"
                    f"cat << 'END'\n{text}\nEND\nexit {code}\n")  # fmt: skip
    path.chmod(0o755)
    return str(path)


def test_each_part_becomes_an_engine_and_is_timed(engines, tmp_path):
    with LocalDevice() as device:
        result = measure_with_trtexec(device, [engines], Settings(runs=30, warmup=4), stand_in(tmp_path, TRTEXEC))
        folder = Path(device.folder)
    assert not folder.exists()
    (row,) = result["bundles"]
    assert [stage["stage"] for stage in row["stages"]] == ["encoder", "decoder"]
    assert (row["load_ms"], row["executed"]) == (2 * 18731.2, "trtexec on the device")
    assert (tmp_path / "arguments").read_text().splitlines() == [
        f"--onnx=0/{part}.onnx --stronglyTyped --noTF32 --iterations=30 --duration=0 --warmUp=200"
        for part in ("encoder", "decoder")
    ]
    assert (tmp_path / "there").read_text().split() == ["decoder.onnx", "encoder.onnx"]
    assert "| encoder | 726 |  | 4.11 | 4.03 | 4.10 | 4.19 | 4.41 |  |  |" in markdown(result)
    assert pytest_benchmark_json(result)["benchmarks"] == []
    assert {entry["aggregate_name"] for entry in google_benchmark_json(result)["benchmarks"]} == {"mean", "median"}


def test_what_trtexec_prints():
    row = parse_trtexec(TRTEXEC)
    assert {key: row[key] for key in ("runs", "min", "max", "mean", "p50", "p90", "p99")} == {
        "runs": 726, "min": 4.02637, "max": 4.69, "mean": 4.11321, "p50": 4.10254, "p90": 4.18945, "p99": 4.41211
    }  # fmt: skip
    assert (row["with_copies"], row["load_ms"], row["peak_memory_mb"]) == (4.50146, 18731.2, 41.5)
    older = parse_trtexec(TRTEXEC_OLDER)
    assert (older["p90"], older["p99"], older["load_ms"]) == (None, 4.41211, None)


@pytest.mark.parametrize(
    ("text", "said"),
    [(TRTEXEC_FAILED, r"Error\[1\]: .*out of memory"), ("", "nothing"), ("Illegal\ninstruction", "instruction")],
)
def test_no_figures(text, said):
    with pytest.raises(EdgeSamDeployError, match=f"trtexec gave no figures; it said: {said}"):
        parse_trtexec(text)


def test_dynamic_shapes_run_at_the_usual_one():
    shapes = {"point_coords": {"min": [1, 1, 2], "opt": [1, 6, 2], "max": [1, 64, 2]}}
    line = words(trtexec("decoder.onnx", shapes, 11), "/opt/trtexec", "0/decoder.onnx", Settings(seconds=2, warmup=0))
    assert line == [
        "/opt/trtexec", "--onnx=0/decoder.onnx", "--noTF32", "--minShapes=point_coords:1x1x2",
        "--optShapes=point_coords:1x6x2", "--maxShapes=point_coords:1x64x2", "--shapes=point_coords:1x6x2",
        "--iterations=20", "--duration=2", "--warmUp=0",
    ]  # fmt: skip


def test_a_device_without_it(engines):
    with LocalDevice() as device, pytest.raises(MissingToolkit, match="--trtexec /none/trtexec: local has no such"):
        measure_with_trtexec(device, [engines], Settings(), "/none/trtexec")


def test_bundles_of_other_targets_are_refused(bundles):
    with LocalDevice() as device, pytest.raises(UsageError, match="this one is for onnx"):
        measure_with_trtexec(device, [bundles().path], Settings())


def test_the_command(engines, tmp_path, capsys, monkeypatch):
    words_given = ["edgesam-deploy", "bench", str(engines), "--trtexec", stand_in(tmp_path, TRTEXEC), "--json"]
    monkeypatch.setattr("sys.argv", words_given)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    assert json.loads(capsys.readouterr().out)["bundles"][0]["stages"][1]["p50"] == 4.10254
