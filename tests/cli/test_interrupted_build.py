"""A build that is killed leaves no half bundle: nothing verifies that was not finished, and the next build sweeps."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from command_line import DONE, ERROR, contents, edgesam_deploy, environment
from conftest import TINY

from edgesam_deploy.cli import _unwind_on_signals
from edgesam_deploy.model import configs
from edgesam_deploy.model.configs import override

PATIENCE = 240  # seconds until a build writes, on a busy machine


TINY_ENCODER = {key: value for key, value in TINY.items() if key != "mask_decoder"}
# the command line on a tiny encoder, with so many pictures that measuring takes a while
TINY_BUILD = f"""
from edgesam_deploy import parity
from edgesam_deploy.cli import main
from edgesam_deploy.model import configs
configs.MODELS["repvit_m1"] = configs.override(configs.MODELS["repvit_m1"], {TINY_ENCODER!r})
scene = parity.seeded_scene(5)
parity.shipped_pictures = lambda: {{str(i): scene for i in range(10_000)}}
main()
"""


def started(program, *options):
    return subprocess.Popen(
        [sys.executable, *program, "build", *options, "--proof", "off"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )  # fmt: skip


def wait_for_draft(process, out):
    """The hidden folder of a running build, once a file of it has been begun."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        for draft in out.parent.glob(f".{out.name}.*.partial"):
            if (draft / "encoder.onnx").exists():
                return draft
        if process.poll() is not None:
            break
        time.sleep(0.002)
    process.kill()
    raise AssertionError(f"no draft was seen; the build said: {process.communicate()[1][-500:]}")


def interrupted(process, out, number):
    """Send ``number`` to a build that is writing; (exit code, stdout, stderr, the draft's path)."""
    draft = wait_for_draft(process, out)
    process.send_signal(number)
    printed, said = process.communicate(timeout=PATIENCE)
    return process.returncode, printed, said, draft


def test_killed_in_the_middle_of_writing(tmp_path, monkeypatch):
    out = tmp_path / "bundle"
    process = started(["-m", "edgesam_deploy"], "edge_sam", "--image-size", "512", "-o", str(out))
    code, printed, _, draft = interrupted(process, out, signal.SIGKILL)
    assert (code, printed) == (-signal.SIGKILL, "")
    assert not out.exists()
    assert draft.exists()  # nobody was left to remove it
    assert not (draft / "manifest.json").exists() or not (draft / "parity.json").exists()  # it was cut short
    assert edgesam_deploy("verify", out).code == ERROR
    # what a draft holds is not a bundle, unless all its files are there as its manifest says
    shutil.copytree(draft, tmp_path / "rescued")
    with (tmp_path / "rescued" / "encoder.onnx").open("r+b") as file:
        file.truncate(1000)
    assert edgesam_deploy("verify", tmp_path / "rescued").code == ERROR
    shutil.rmtree(tmp_path / "rescued")
    # the next build of the same folder works and sweeps up
    monkeypatch.setitem(configs.MODELS, "repvit_m1", override(configs.MODELS["repvit_m1"], TINY_ENCODER))
    assert edgesam_deploy("build", "repvit_m1", "-o", out, "--proof", "off").code == DONE
    assert edgesam_deploy("verify", out).code == DONE
    assert os.listdir(tmp_path) == ["bundle"]


def test_asked_to_stop(tmp_path, bundles):
    """The draft goes, and a bundle that was to be replaced stays."""
    running = {}
    for number in (signal.SIGTERM, signal.SIGINT):
        out = shutil.copytree(bundles().path, tmp_path / number.name / "bundle")
        running[number] = out, started(["-c", TINY_BUILD], "repvit_m1", "--overwrite", "-o", str(out))
    before = contents(bundles().path)
    for number, (out, process) in running.items():
        code, printed, said, draft = interrupted(process, out, number)
        assert code == 128 + number
        assert printed == ""
        assert "Traceback" not in said
        assert not draft.exists()
        assert os.listdir(out.parent) == ["bundle"]
        assert contents(out) == before
        assert edgesam_deploy("verify", out).code == DONE


def test_a_closed_terminal_is_as_good_as_a_kill(monkeypatch):
    handlers = {}
    monkeypatch.setattr(signal, "getsignal", lambda number: handlers.get(number, signal.SIG_DFL))
    monkeypatch.setattr(signal, "signal", handlers.__setitem__)
    _unwind_on_signals()
    assert handlers.keys() == {signal.SIGTERM, signal.SIGHUP}
    for number, leave in list(handlers.items()):
        with pytest.raises(SystemExit) as e:
            leave(number, None)
        assert e.value.code == 128 + number
        assert handlers[number] == signal.SIG_IGN  # a second one must not cut the removal short


def test_nohup_is_respected():
    """A build started by nohup outlives the terminal: SIGHUP, ignored at the start, stays ignored."""
    code = (
        "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); sys.argv[1:] = ['models']\n"
        "from edgesam_deploy.cli import main\n"
        "try: main()\n"
        "finally: print(signal.getsignal(signal.SIGHUP) is signal.SIG_IGN)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "True"
