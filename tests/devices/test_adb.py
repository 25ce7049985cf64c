"""Measuring on Android: adb and the device are stood in for; what is called, understood and left behind is not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from loopback import wait_until
from recorded import (
    ANDROID_STATE,
    BENCHMARK_MODEL,
    BENCHMARK_MODEL_FAILED,
    BENCHMARK_MODEL_NEWER,
    JETSON_POWER,
    PI_STATE,
)

from edgesam_deploy.bench import Settings
from edgesam_deploy.bench.compare import changes
from edgesam_deploy.bench.formats import google_benchmark_json, markdown, pytest_benchmark_json
from edgesam_deploy.bench.remote import measure_on
from edgesam_deploy.bench.tflite_tool import measure_with_tool, parse_benchmark_model
from edgesam_deploy.devices import LocalDevice, SshDevice, open_device
from edgesam_deploy.devices.state import parse_state
from edgesam_deploy.errors import EdgeSamDeployError, MissingToolkit, UsageError

QUICK = Settings(runs=2, warmup=0, points=(1,), prompts=(), threads=1)


@pytest.fixture
def phone(tmp_path, monkeypatch):
    """A folder that stands for the device, with adb on the path."""
    root = tmp_path / "phone"
    (root / "data" / "local" / "tmp").mkdir(parents=True)
    stand_in = Path(__file__).with_name("adb_stand_in.py").read_text().replace("/usr/bin/env python3", sys.executable)
    for place, name, text in (
        (tmp_path / "host", "adb", stand_in),
        (root / "bin", "dumpsys", '#!/bin/sh\n[ "$1" = battery ] && echo "  level: 87" || echo "Thermal Status: 2"\n'),
        (root / "bin", "getprop", '#!/bin/sh\n[ "$1" = ro.product.model ] && echo "Stand-in phone"\n'),
    ):  # fmt: skip
        place.mkdir(exist_ok=True)
        (place / name).write_text(text)
        (place / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'host'}:{os.environ['PATH']}")
    monkeypatch.setenv("ADB_ROOT", str(root))
    monkeypatch.setenv("ADB_SERIALS", "R58N1,R58N2")
    yield root
    assert wait_until(lambda: not os.listdir(root / "data" / "local" / "tmp"))


def calls(phone):
    return [json.loads(line) for line in (phone / "calls.jsonl").read_text().splitlines()]


def as_tflite(bundle, tmp_path):
    """A copy of an ONNX bundle whose parts are named as a .tflite file's."""
    copy = shutil.copytree(bundle.path, tmp_path / "tflite")
    manifest = json.loads((copy / "manifest.json").read_text())
    for part in manifest["parts"].values():
        part["file"] = "model.tflite"
    (copy / "model.tflite").write_bytes(b"a model")
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy


def tool(tmp_path, text, *, fail=False):
    path = tmp_path / "benchmark_model"
    path.write_text(f"#!/bin/sh\necho \"$@\" >> '{tmp_path}/arguments'\ncat << 'END'\n{text}\nEND\nexit {int(fail)}\n")
    return path


def test_benchmark_model_is_pushed_run_and_removed(phone, bundles, tmp_path):
    bundle = as_tflite(bundles(), tmp_path)
    with open_device("adb:R58N2") as device:
        path = tool(tmp_path, BENCHMARK_MODEL)
        path.chmod(path.stat().st_mode & ~stat.S_IXUSR)  # as a download has it
        result = measure_with_tool(device, [bundle], Settings(runs=30, warmup=4, threads=2), path)
        folder = device.folder
    (row,) = result["bundles"]
    assert [stage["stage"] for stage in row["stages"]] == ["encoder", "decoder, 6 slots"]
    assert row["stages"][0]["mean"] == 140.5
    assert (result["device"], result["cpu"]) == ("adb:R58N2", "Stand-in phone")
    assert (result["state_before"]["thermal_status"], result["state_after"]["battery_percent"]) == (2, 87)
    assert (tmp_path / "arguments").read_text().splitlines() == [
        f"--graph=0.model.tflite --signature_to_run_for={name} --warmup_runs=4 --num_runs=30 --min_secs=0 "
        "--report_peak_memory_footprint=true --num_threads=2"
        for name in ("encode", "decode_6")
    ]
    assert all(words[:2] == ["-s", "R58N2"] for words in calls(phone))
    pushed = [words[4] for words in calls(phone) if words[2] == "push"]
    assert pushed == [f"{folder}/benchmark_model", f"{folder}/0.model.tflite"]
    # every form takes figures without quantiles
    assert "| encoder | 30 | 152.31 | 140.50 | 139.00 |  |  |  | 1.90 |  |" in markdown(result)
    assert pytest_benchmark_json(result)["benchmarks"] == []
    assert {entry["aggregate_name"] for entry in google_benchmark_json(result)["benchmarks"]} == {"mean", "stddev"}
    assert changes(result, result)[0].now == 140.5


def test_a_tool_that_fails(phone, bundles, tmp_path):
    bundle = as_tflite(bundles(), tmp_path)
    path = tool(tmp_path, BENCHMARK_MODEL_FAILED, fail=True)
    with (
        pytest.raises(EdgeSamDeployError, match="gave no figures; it said: ERROR: Benchmarking failed"),
        open_device("adb:R58N1") as device,
    ):
        measure_with_tool(device, [bundle], QUICK, path)
    with open_device("adb:R58N1") as device, pytest.raises(UsageError, match=r"not encoder.onnx"):
        measure_with_tool(device, [bundles().path], QUICK, path)
    with open_device("adb:R58N1") as device, pytest.raises(UsageError, match="no such file"):
        measure_with_tool(device, [bundle], QUICK, tmp_path / "none")


def test_where_the_device_has_an_interpreter(phone, bundles, monkeypatch):
    """Termux, say: the runner is the same as behind ssh."""
    monkeypatch.setenv("ADB_SERIALS", "only")
    with open_device("adb") as device:
        result = measure_on(device, [bundles().path], QUICK, python=sys.executable)
    assert result["bundles"][0]["agreement"] < 1e-5
    assert calls(phone)[0][0] == "shell"  # no serial was asked for
    own = phone / "bin" / "python3"
    own.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E "$@"\n')  # an interpreter without ONNX Runtime
    own.chmod(0o755)
    with open_device("adb") as device, pytest.raises(MissingToolkit, match="--device-python names another"):
        measure_on(device, [bundles().path], QUICK)


@pytest.mark.parametrize(
    ("serials", "spec", "words"),
    [("", "adb", "no devices"), ("a,b", "adb", "more than one device"), ("a", "adb:b", "device 'b' not found")],
)
def test_devices_that_are_not_there(phone, monkeypatch, serials, spec, words):
    monkeypatch.setenv("ADB_SERIALS", serials)
    with pytest.raises(MissingToolkit, match=words), open_device(spec):
        pass


def test_without_adb(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingToolkit, match="needs adb, which is not on the path"), open_device("adb"):
        pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_stays_after_a_kill(phone, bundles, tmp_path, number):
    bundle = as_tflite(bundles(), tmp_path)
    endless = tool(tmp_path, "")
    endless.write_text(f"#!/bin/sh\ntouch '{tmp_path}/runs'\nexec sleep 600\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "edgesam_deploy", "bench", str(bundle), "--device", "adb:R58N1",
         "--benchmark-model", str(endless)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert wait_until(lambda: (tmp_path / "runs").exists() or process.poll() is not None, 240)
    assert os.listdir(phone / "data" / "local" / "tmp")
    process.send_signal(number)
    assert process.wait(120) == (-number if number == signal.SIGKILL else 128 + number)
    assert wait_until(lambda: not os.listdir(phone / "data" / "local" / "tmp"))


# ---------------------------------------------------------------------------------------------------------- parsers


def test_a_phones_state():
    assert parse_state(ANDROID_STATE) == {
        "load": 1.42, "memory_available_mb": 5120, "governors": {"walt": 3}, "mhz": [1804, 2496],
        "celsius": {"cpu-0-0-usr": 41.0, "skin-therm": 38.5, "battery": 31.5, "skin": 36.25},
        "thermal_status": 1, "battery_percent": 87, "cpu": "Qualcomm Technologies, Inc SM8550",
        "system": "Linux aarch64", "model": "Pixel 8 SM8550 14",
    }  # fmt: skip


def test_a_boards_state():
    found = parse_state(PI_STATE)
    assert (found["throttled"], found["cpu"]) == ("0x50000", "Raspberry Pi 5 Model B Rev 1.0")
    assert (found["celsius"], found["governors"]) == ({"cpu-thermal": 48.3}, {"ondemand": 2})
    assert parse_state(JETSON_POWER) == {"power": "MAXN_SUPER", "system": "Linux aarch64"}
    assert parse_state("") == {}


def test_this_machines_state():
    found = LocalDevice().state()
    assert found["memory_available_mb"] > 0
    assert found["load"] >= 0
    assert found["system"]


def test_what_benchmark_model_prints():
    row = parse_benchmark_model(BENCHMARK_MODEL)
    assert (row["runs"], row["first"], row["mean"], row["min"], row["max"]) == (30, 152.31, 140.5, 139.003, 149.12)
    assert (row["load_ms"], row["std"], row["peak_memory_mb"], row["p50"]) == (41.25, 1.9, 187.4, None)
    assert parse_benchmark_model(BENCHMARK_MODEL_NEWER)["p50"] == 140.2
    once = BENCHMARK_MODEL.replace(
        "count=30 first=140112 curr=139911 min=139003 max=149120 avg=140500 std=1900", "count=1 curr=140500"
    )
    row = parse_benchmark_model(once)
    assert (row["runs"], row["min"], row["max"], row["std"]) == (1, 140.5, 140.5, 0.0)
    for text in ("", "Segmentation fault", BENCHMARK_MODEL_FAILED, BENCHMARK_MODEL.replace("count=", "x=")):
        with pytest.raises(EdgeSamDeployError, match="gave no figures"):
            parse_benchmark_model(text)


# ------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("ssh:pi@board", ["--", "pi@board"]), ("ssh:board:2222", ["-p", "2222", "--", "board"]),
        ("ssh:a.b@[fe80::1%eth0]:22", ["-p", "22", "--", "a.b@fe80::1%eth0"]), ("ssh:[::1]", ["--", "::1"]),
    ],
)  # fmt: skip
def test_hosts(spec, words):
    device = open_device(spec)
    assert isinstance(device, SshDevice)
    command = [word for word in device.command("true") if word not in ("-o", "-T") and "=" not in word]
    assert command == ["ssh", *words, "sh -c true"]


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "phone",
        "ssh:",
        "ssh",
        "ssh:-oProxyCommand=x",
        "ssh:a b",
        "ssh:u@-x",
        "ssh:h:port",
        "adb:-d",
        "adb:a b",
        "local:x",
    ],
)
def test_what_is_no_device(spec):
    with pytest.raises(UsageError, match="must be local, ssh:user@host"):
        open_device(spec)


def test_the_configuration_of_ssh_for_another_device(tmp_path):
    with pytest.raises(UsageError, match="--ssh-config belongs to --device ssh"):
        open_device("adb", ssh_config=tmp_path)
