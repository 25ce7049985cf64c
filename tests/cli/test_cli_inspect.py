"""What the command line says of itself, how it prints, what it imports, and its public flags.

Run this file as a program to accept changed flags: python tests/cli/test_cli_inspect.py
"""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from command_line import COFFEE, DONE, MISSING, edgesam_deploy, subprocess_of

import edgesam_deploy as package
from edgesam_deploy import doctor
from edgesam_deploy.cli import app
from edgesam_deploy.model.configs import MODELS
from edgesam_deploy.model.fetch import SOURCES

FLAGS = Path(__file__).parents[1] / "data" / "cli_flags.json"
COMMANDS = [
    "models", "targets", "passes", "doctor", "fetch", "build", "check", "ops", "bench", "report", "run", "everything",
    "verify", "optimize", "bisect", "ranges", "data synthesize", "data check", "embed", "train", "eval",
    "convert", "explain-file", "demo",
]  # fmt: skip


def leaves(group, before=""):
    """The commands of a group and of the groups in it: ``data check`` and its like have a space in their name."""
    found = {}
    for name, command in group.commands.items():
        nested = hasattr(command, "commands")
        found |= leaves(command, f"{before}{name} ") if nested else {f"{before}{name}": command}
    return found


def flags():
    """Every command with its arguments and the names of its options."""
    found = {}
    for name, command in sorted(leaves(typer.main.get_command(app)).items()):
        arguments = [p.name for p in command.params if p.param_type_name == "argument"]
        options = [o for p in command.params if p.param_type_name == "option" for o in (*p.opts, *p.secondary_opts)]
        found[name] = {"arguments": arguments, "options": sorted(options)}
    return found


def test_flags_are_frozen():
    frozen = json.loads(FLAGS.read_text())
    for command in sorted(frozen.keys() | flags().keys()):
        was, now = frozen.get(command), flags().get(command)
        assert now == was, (
            f"the flags of {command} are public and have changed: scripts of users may break. If it is meant, "
            "accept it with: python tests/cli/test_cli_inspect.py, and say so in the release notes"
        )


def test_the_commands_are_those_of_the_design():
    assert sorted(flags()) == sorted(COMMANDS)


# --- help ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["", *COMMANDS])
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help(command, flag):
    found = edgesam_deploy(*command.split(), flag)
    assert (found.code, found.err) == (DONE, "")
    assert "Usage:" in found.out
    if not command:
        assert all(name.split()[0] in found.out for name in COMMANDS)
        assert "Exit codes: 0 done, 1 error" in found.out


def test_nothing_given_shows_the_help():
    assert "Usage:" in edgesam_deploy().out + edgesam_deploy().err
    assert edgesam_deploy().code == 2


def test_version():
    assert edgesam_deploy("--version").out == f"edgesam-deploy {package.__version__}\n"


HEAVY = {"torch", "onnxruntime", "onnx", "onnx_ir", "scipy", "huggingface_hub", "safetensors"}
LOADED = """
import sys
from edgesam_deploy.cli import main
for arguments in {calls!r}:
    sys.argv = ["edgesam-deploy", *arguments]
    try:
        main()
    except SystemExit as e:
        assert not e.code, arguments
print(*sorted({heavy!r} & set(sys.modules)), file=sys.stderr)
"""


def test_help_and_lists_import_nothing_heavy(bundles):
    light = [["--help"], *([*name.split(), "--help"] for name in COMMANDS)]
    light += [["models"], ["targets"], ["fetch", "--list"], ["verify", str(bundles().path)]]
    code = LOADED.format(calls=light, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.split() == []


def test_a_bundle_is_used_without_pytorch(bundles, tmp_path):
    bundle = str(bundles().path)
    calls = [
        ["run", bundle, str(COFFEE), "--point", "9,9", "-o", str(tmp_path / "a")],
        ["everything", bundle, str(COFFEE), "--points-per-side", "1", "-o", str(tmp_path / "b")],
        ["ops", bundle], ["bench", bundle, "--runs", "1", "--warmup", "0"], ["verify", bundle], ["doctor", "--quick"],
    ]  # fmt: skip
    code = "import sys; sys.modules['torch'] = None\n" + LOADED.format(calls=calls, heavy={"onnxscript"})
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", [["build", "edge_sam"], ["check", "bundle"], ["ops", "edge_sam"]])
def test_what_needs_pytorch_says_so_without_it(command, bundles, tmp_path):
    command = [str(bundles().path) if word == "bundle" else word for word in command]
    code = "import sys; sys.modules['torch'] = None; from edgesam_deploy.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *command], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == MISSING
    assert "pip install 'edgesam-deploy[torch]'" in done.stderr
    assert "Traceback" not in done.stderr


# --- lists -----------------------------------------------------------------------------------------------------------


def test_models():
    found = json.loads(edgesam_deploy("models", "--json").out)
    assert found.keys() == MODELS.keys()
    assert found["edge_sam"]["aliases"] == ["default"]
    assert all(name in edgesam_deploy("models").out for name in MODELS)


def test_targets():
    found = json.loads(edgesam_deploy("targets", "--json").out)
    assert found["onnx"]["missing"] == []
    assert "points" in found["onnx"]["options"]
    assert "onnx" in edgesam_deploy("targets").out


def test_passes():
    rows = json.loads(edgesam_deploy("passes", "--json").out)
    names = [row["name"] for row in rows]
    assert names.index("fold_batch_norm") < names.index("merge_parallel_convs") < names.index("lower_to_onnx")
    assert all(row["what"] for row in rows)
    assert "merge_parallel_convs" in edgesam_deploy("passes").out
    explained = edgesam_deploy("passes", "merge_parallel_convs").out
    assert "──" in explained
    assert "Why:" in explained
    assert json.loads(edgesam_deploy("passes", "merge_parallel_convs", "--json").out)["text"] in explained


def test_doctor(monkeypatch):
    tried = []
    monkeypatch.setattr(
        "edgesam_deploy.doctor.import_faults", lambda names: tried.extend(names) or dict.fromkeys(names, "")
    )
    found = json.loads(edgesam_deploy("doctor", "--json").out)
    assert "CPUExecutionProvider" in found["machine"]["onnxruntime providers"]
    rows = {row["package"]: row for row in found["packages"]}
    assert rows["torch"]["version"]
    assert rows["torch"]["usable"] is True
    assert "torch" in tried
    targets = {row["target"]: row for row in found["targets"]}
    assert targets["onnx"] == {"target": "onnx", "missing_to_build": [], "missing_to_run": [], "install": ""}
    monkeypatch.setattr("edgesam_deploy.doctor.installed_version", lambda package: None)
    monkeypatch.setattr("edgesam_deploy.doctor.is_installed", lambda module: module == "torch")
    text = edgesam_deploy("doctor").out
    assert "pip install 'edgesam-deploy[coreml]'" in text
    assert "no: needs coremltools" in text


def test_doctor_survives_what_is_broken(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    found = edgesam_deploy("doctor", "--quick")
    assert found.code == DONE
    assert "onnxruntime cannot be imported" in found.out


def test_doctor_tells_what_cannot_be_imported_and_goes_on(tmp_path, monkeypatch):
    (tmp_path / "deadly_toolkit.py").write_text("import os; os._exit(7)")
    (tmp_path / "raising_toolkit.py").write_text("raise RuntimeError('libnone.so.1 is missing')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    faults = doctor.import_faults(["json", "raising_toolkit", "deadly_toolkit", "colorsys"])
    assert faults == {
        "json": "", "raising_toolkit": "RuntimeError: libnone.so.1 is missing",
        "deadly_toolkit": "the interpreter died (exit status 7)", "colorsys": "",
    }  # fmt: skip


def test_fetch(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGESAM_DEPLOY_CACHE", str(tmp_path))
    listed = json.loads(edgesam_deploy("fetch", "--list", "--json").out)
    assert [row["name"] for row in listed] == list(SOURCES)
    assert not any(row["cached"] for row in listed)
    (tmp_path / "edge_sam_3x.pth").write_bytes(b"weights")
    assert edgesam_deploy("fetch", "edge_sam_3x").out == f"{tmp_path / 'edge_sam_3x.pth'}\n"
    found = json.loads(edgesam_deploy("fetch", "edge_sam_3x", "--json").out)
    assert found == {"name": "edge_sam_3x", "path": str(tmp_path / "edge_sam_3x.pth")}
    assert re.search(r"edge_sam_3x .* yes", edgesam_deploy("fetch", "--list").out)


def test_ops(bundles):
    bundle = bundles()
    found = json.loads(edgesam_deploy("ops", bundle.path, "--json").out)
    assert found.keys() == {"encoder.onnx", "decoder.onnx"}
    assert {row["status"] for row in found["encoder.onnx"]["rows"]} == {"supported"}
    text = edgesam_deploy("ops", bundle.path, "--target", "onnx, onnx").out
    assert text.count("operators of") == 2
    assert "Conv" in text
    one = edgesam_deploy("ops", bundle.part("mask_decoder")).out
    assert "Softmax" in one
    assert "Conv " not in one


# --- where output goes -----------------------------------------------------------------------------------------------


def every_command(bundle, out):
    return {
        "models": ["models"], "targets": ["targets"], "passes": ["passes"], "doctor": ["doctor", "--quick"],
        "one pass": ["passes", "fold_constants"], "fetch": ["fetch", "--list"], "verify": ["verify", bundle],
        "ops": ["ops", bundle], "bench": ["bench", bundle, "--runs", "1", "--warmup", "0"],
        "run": ["run", bundle, COFFEE, "--point", "9,9", "-o", out / "run"],
        "everything": ["everything", bundle, COFFEE, "--points-per-side", "2", "-o", out / "all"],
        "dry run": ["build", "edge_sam", "-o", out / "new", "--dry-run"],
    }  # fmt: skip


def test_json_is_alone_on_stdout(bundles, tmp_path):
    for name, arguments in every_command(bundles().path, tmp_path).items():
        found = edgesam_deploy(*arguments, "--json")
        assert found.code == DONE, name
        json.loads(found.out, parse_constant=pytest.fail)
        assert found.out.endswith(("}\n", "]\n")), name


def test_piped_output_is_plain(bundles, tmp_path):
    for name, arguments in every_command(bundles().path, tmp_path).items():
        found = edgesam_deploy(*arguments)
        assert found.code == DONE, name
        assert found.out, name
        assert "\x1b" not in found.out + found.err, name


def on_a_terminal(*arguments, **variables):
    """What a command writes to a terminal, stdout and stderr together."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", **variables}
    for name in {"NO_COLOR", "FORCE_COLOR"} - variables.keys():
        environment.pop(name, None)
    command = [sys.executable, "-m", "edgesam_deploy", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=theirs, stderr=theirs, stdin=theirs, env=environment)
    os.close(theirs)
    chunks = []
    try:
        while chunk := os.read(ours, 65536):
            chunks.append(chunk)
    except OSError:  # how a terminal ends
        pass
    assert process.wait() == DONE
    return b"".join(chunks).decode()


COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7])(?:;\d+)*m")


def test_no_color_is_honoured(bundles):
    ops = ["ops", bundles().path]
    assert COLOUR.search(on_a_terminal(*ops))
    assert not COLOUR.search(on_a_terminal(*ops, NO_COLOR="1"))
    assert not COLOUR.search(on_a_terminal("build", "--help", NO_COLOR="1"))


def test_a_bar_on_a_terminal(bundles):
    shown = on_a_terminal("bench", bundles().path, "--runs", "1", "--warmup", "0")
    assert "end to end" in shown
    assert re.search(r"\d/13", shown)  # which of how many steps


def test_results_and_progress_take_different_ways(bundles):
    found = subprocess_of("bench", bundles().path, "--runs", "1", "--warmup", "0")
    assert [line.strip() for line in found.err.splitlines()][-1] == "end to end"
    assert "stage, ms" in found.out
    assert "stage, ms" not in found.err


@pytest.mark.parametrize("redirect", ["| head -n 1", "| true", ">&-", ">&- 2>&-"])
def test_a_reader_that_goes_away_is_no_error_to_report(redirect):
    command = f"{sys.executable} -m edgesam_deploy fetch --list --json {redirect}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.stderr == ""


def test_any_encoding():
    found = subprocess_of("passes", "merge_parallel_convs", PYTHONIOENCODING="ascii")
    assert (found.code, found.err) == (DONE, "")


# --- completion ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("edgesam-deploy eve", ["everything"]),
        ("edgesam-deploy build edge_sam_dyt_", ["edge_sam_dyt_frozen_mask", "edge_sam_dyt_hq"]),
        ("edgesam-deploy build edge_sam --target o", ["onnx", "openvino"]),
        ("edgesam-deploy build edge_sam --proof f", ["fast", "full"]),
        ("edgesam-deploy build edge_sam --embed", ["--embed-preprocess"]),
        ("edgesam-deploy fetch vit", ["vit_b", "vit_l", "vit_h"]),
    ],
)
def test_the_shell_completes(typed, offered):
    variables = {
        "_EDGESAM_DEPLOY_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1),
    }  # fmt: skip
    command = [str(Path(sys.executable).parent / "edgesam-deploy")]
    done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=True)
    assert done.stdout.split() == offered


if __name__ == "__main__":
    FLAGS.write_text(json.dumps(flags(), indent=2, sort_keys=True) + "\n")
    print(f"wrote {FLAGS}")
