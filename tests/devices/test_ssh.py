"""Measuring behind a real OpenSSH server on loopback, and that nothing stays there, whatever happens."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from loopback import MISSING, left_behind, loopback_sshd, wait_until

from edgesam_deploy.bench import Settings
from edgesam_deploy.bench.measure import AGAIN
from edgesam_deploy.bench.remote import measure_on
from edgesam_deploy.cli.console import finite
from edgesam_deploy.devices import ConnectionLost, open_device
from edgesam_deploy.errors import MissingToolkit, UsageError

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)
QUICK = Settings(runs=3, warmup=1, points=(1, 5), prompts=(3,), threads=1)
ENDLESS = "600"  # seconds per stage


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with loopback_sshd(tmp_path_factory.mktemp("sshd")) as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_stays():
    before = left_behind()
    yield
    assert wait_until(lambda: set(left_behind()) <= set(before)), left_behind()


def device(server):
    return open_device(server.spec, ssh_config=server.config)


def bench_words(server, bundle, *more):
    return [
        sys.executable, "-m", "edgesam_deploy", "bench", str(bundle), "--device", server.spec, "--ssh-config",
        str(server.config), "--device-python", sys.executable, "--threads", "1", *more,
    ]  # fmt: skip


def test_push_run_pull_and_clean(server, tmp_path):
    (tmp_path / "data").write_bytes(bytes(range(256)) * 300)
    (tmp_path / "it's a script").write_text(
        "import sys; print('one'); print('two'); sys.stderr.write('three'); sys.exit(7)"
    )
    with device(server) as reached:
        assert Path(reached.folder).stat().st_mode & 0o777 == 0o700
        reached.push({"sub/data": tmp_path / "data", "it's.py": tmp_path / "it's a script"})
        lines = []
        assert reached.run([sys.executable, "it's.py"], lines.append) == (7, "three")
        assert lines == ["one", "two"]
        reached.pull("sub/data", tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == (tmp_path / "data").read_bytes()
        assert reached.state()["memory_available_mb"] > 0
        with pytest.raises(ConnectionLost, match="No such file"):
            reached.pull("none", tmp_path / "none")
        folder = Path(reached.folder)
    assert not folder.exists()
    assert reached.clean()  # a second time does nothing


def test_bench_end_to_end(server, bundles):
    done = subprocess.run(
        bench_words(server, bundles().path, "--runs=2", "--warmup=0", "--points=1", "--prompts=3", "--json"),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    (row,) = result["bundles"]
    assert (result["device"], result["complete"]) == (server.spec, True)
    assert [stage["stage"] for stage in row["stages"]] == ["encoder", "decoder, 1 point", "decoder, 3 prompts"]
    assert all(stage["runs"] == len(stage["times"]) == 2 and stage["min"] > 0 for stage in row["stages"])
    assert row["stages"][-1]["prompts"] == 3
    assert row["agreement"] < 1e-5  # the same file on the same machine
    assert row["executed"].startswith("onnxruntime")
    assert result["state_before"]["load"] >= 0
    assert result == json.loads((bundles().path / "bench.json").read_text())


def test_several_bundles_take_turns_there(server, bundles):
    paths = [bundles(points=n).path for n in (4, 6)]
    with device(server) as reached:
        result = measure_on(reached, paths, QUICK, python=sys.executable)
    few, many = result["bundles"]
    assert few["skipped"] == ["5 points: the artifact has 4 slots"]
    assert [stage["stage"] for stage in many["stages"]] == [
        "encoder", "decoder, 1 point", "decoder, 5 points", "decoder, 3 prompts"
    ]  # fmt: skip
    pairs = [(row["stage"], row["bundle"]) for row in result["ratios"]]
    for stage in ("encoder", "decoder, 1 point", "decoder, 3 prompts"):
        assert {(stage, str(paths[1])), (stage, str(paths[0]) + AGAIN)} <= set(pairs)
    assert max(few["agreement"], many["agreement"]) < 1e-5
    json.dumps(finite(result))


@pytest.mark.parametrize("name", ["edge_sam_dyt_hq", "cwsam", "vit_b"])
def test_the_rest_of_the_family(server, family, name):
    _, bundle = family(name)
    with device(server) as reached:
        result = measure_on(reached, [bundle.path], QUICK, python=sys.executable)
    assert result["bundles"][0]["agreement"] < 1e-5
    assert len(result["bundles"][0]["stages"]) == (1 if name == "cwsam" else 4)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_stays_after_a_kill(server, bundles, number, tmp_path):
    before = left_behind()
    with (tmp_path / "err").open("w") as err:
        process = subprocess.Popen(
            bench_words(server, bundles().path, "--seconds", ENDLESS), stdout=subprocess.DEVNULL, stderr=err,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
    assert wait_until(lambda: "encoder" in (tmp_path / "err").read_text() or process.poll() is not None, 240)
    (folder,) = set(left_behind()) - set(before)
    runner = int((Path("/tmp") / folder / "running.pid").read_text())
    os.kill(runner, 0)  # it runs
    process.send_signal(number)
    code = process.wait(120)
    assert code == (-number if number == signal.SIGKILL else 128 + number)
    assert "Traceback" not in (tmp_path / "err").read_text()
    assert wait_until(lambda: folder not in left_behind())

    def gone():
        try:
            os.kill(runner, 0)
        except ProcessLookupError:
            return True
        return "Z" in Path(f"/proc/{runner}/stat").read_text().rpartition(")")[2].split()[0]

    assert wait_until(gone)


def test_a_lost_connection_ends_with_what_was_measured(server, bundles):
    seen = []

    def cut(stage):
        seen.append(stage)
        if stage.startswith("decoder"):
            server.cut()

    with device(server) as reached:
        endless = Settings(runs=1, warmup=0, points=(1,), prompts=(1024,), threads=1)
        result = measure_on(reached, [bundles().path], endless, python=sys.executable, progress=cut)
    assert not result["complete"]
    assert "the connection to" in result["incomplete_because"]
    stages = [stage["stage"] for stage in result["bundles"][0]["stages"]]
    assert stages[0] == "encoder"
    assert len(stages) < 3


def test_what_is_missing_there(server, bundles, tmp_path):
    with device(server) as reached, pytest.raises(MissingToolkit, match="--device-python names another"):
        measure_on(reached, [bundles().path], QUICK, python="no-such-python")
    bare = tmp_path / "bare"  # an interpreter without NumPy
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E "$@"\n')
    bare.chmod(0o755)
    with device(server) as reached, pytest.raises(MissingToolkit, match="numpy"):
        measure_on(reached, [bundles().path], QUICK, python=str(bare))


def test_nobody_there(server, tmp_path):
    with pytest.raises(MissingToolkit, match=r"cannot be used: .*refused"), open_device("ssh:x@127.0.0.1:1"):
        pass
    (tmp_path / "config").write_text(server.config.read_text().replace("IdentityFile", "#"))
    with (
        pytest.raises(MissingToolkit, match="Permission denied"),
        open_device(server.spec, ssh_config=tmp_path / "config"),
    ):
        pass


def test_what_the_device_cannot_run(server, family, tmp_path):
    import shutil

    _, bundle = family("edge_sam")
    copy = shutil.copytree(bundle.path, tmp_path / "copy")
    manifest = json.loads((copy / "manifest.json").read_text())
    for part in manifest["parts"].values():
        part["file"] = "model.mlpackage"
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with device(server) as reached, pytest.raises(UsageError, match=r"model.mlpackage cannot be run on a device"):
        measure_on(reached, [copy], QUICK)
