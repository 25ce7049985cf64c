"""Two processes over loopback: the gradients of one with twice the batch, and a run that outlives a killed rank."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import safetensors.torch
import torch
from tiny import recipe

LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def written(made, path):
    """A recipe as TOML that the command reads."""
    tables = made.model_dump(mode="json", exclude_none=True, exclude={"name"})
    lines = []

    def table(values, prefix):
        nested = {k: v for k, v in values.items() if isinstance(v, dict)}
        if prefix:
            lines.append(f"[{prefix}]")
        lines.extend(f"{k} = {json.dumps(v)}" for k, v in values.items() if k not in nested)
        for key, value in nested.items():
            table(value, f"{prefix}.{key}" if prefix else key)

    table(tables, "")
    path.write_text("\n".join(lines) + "\n")
    return path


def train(file, out, *launch):
    command = [
        *(launch or [sys.executable]),
        "-m",
        "edgesam_deploy",
        "train",
        str(file),
        "-o",
        str(out),
        "--device",
        "cpu",
    ]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=900)


@pytest.mark.slow
def test_two_ranks_are_one_with_twice_the_batch(scenes, tmp_path):
    """Unequal numbers of prompts, batch norm over both ranks: weights after six updates agree to 1e-3 of their size.

    By SGD, which is linear in the gradient. AdamW divides each gradient by its own size, so that where the true one is
    0 (the keys' biases) the order of sums decides about a whole step.
    """
    changes = {
        "train": {"epochs": 3},
        "objective": {"prompts": ["box"]},
        "optimizer": {"name": "sgd", "clip_grad": 1.0},
        "rates": {"base": 1e-2},
    }
    one = written(recipe(scenes, data={"batch_size": 4}, **changes), tmp_path / "one.toml")
    two = written(recipe(scenes, data={"batch_size": 2}, **changes), tmp_path / "two.toml")
    alone, both = train(one, tmp_path / "a"), train(two, tmp_path / "b", *LAUNCH, "--nproc-per-node=2")
    assert (alone.returncode, both.returncode) == (0, 0), alone.stderr + both.stderr
    ours, theirs = (safetensors.torch.load_file(tmp_path / run / "model.safetensors") for run in "ab")
    worst = max(float((ours[k].double() - theirs[k].double()).norm() / (ours[k].double().norm() + 1e-3)) for k in ours)
    assert worst < 1e-3  # 2e-4 measured: one rank has torch's batch norm, two have the one that spans them
    logs = [[json.loads(line) for line in (tmp_path / run / "log.jsonl").read_text().splitlines()] for run in "ab"]
    for a, b in zip(*logs, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4)


@pytest.mark.slow
def test_a_killed_rank_is_restarted_and_the_run_ends_right(scenes, tmp_path):
    """torchrun starts both ranks again; they resume from the last checkpoint and end with the undisturbed weights."""
    file = written(recipe(scenes, train={"epochs": 40}), tmp_path / "r.toml")
    quiet = train(file, tmp_path / "quiet", *LAUNCH, "--nproc-per-node=2")
    assert quiet.returncode == 0, quiet.stderr
    command = [*LAUNCH, "--nproc-per-node=2", "--max-restarts=2", "-m", "edgesam_deploy", "train", str(file)]
    command += ["-o", str(tmp_path / "hit"), "--device", "cpu"]
    run = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 600
    while not list((tmp_path / "hit").glob("checkpoint_*.pt")) and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = subprocess.run(["pgrep", "-P", str(run.pid)], capture_output=True, text=True, check=True).stdout.split()
    os.kill(int(workers[-1]), signal.SIGKILL)
    _, errors = run.communicate(timeout=600)
    assert run.returncode == 0, errors
    assert "resumed at update" in errors
    files = [tmp_path / run / "model.safetensors" for run in ("quiet", "hit")]
    ours, theirs = map(safetensors.torch.load_file, files)
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.mark.slow
def test_the_command_resumes_after_kill_9(scenes, tmp_path):
    file = written(recipe(scenes, train={"epochs": 40}), tmp_path / "r.toml")
    assert train(file, tmp_path / "quiet").returncode == 0
    command = [
        sys.executable,
        "-m",
        "edgesam_deploy",
        "train",
        str(file),
        "-o",
        str(tmp_path / "hit"),
        "--device",
        "cpu",
    ]
    run = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 600
    while not list((tmp_path / "hit").glob("checkpoint_*.pt")) and time.monotonic() < deadline:
        time.sleep(0.02)
    run.kill()
    run.wait()
    assert not (tmp_path / "hit/model.safetensors").exists()
    again = train(file, tmp_path / "hit")
    assert again.returncode == 0
    assert "resumed at update" in again.stderr
    files = [tmp_path / run / "model.safetensors" for run in ("quiet", "hit")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.slow
def test_stages_resume_after_kill_9(scenes, tmp_path):
    """As the demonstration's: a teacher on exact masks, then a student against it; killed in the second stage, the same
    command leaves the first alone and ends with the same bytes.
    """
    written(recipe(scenes, train={"epochs": 4}), tmp_path / "teach.toml")
    taught = {"checkpoint": "{out}/teach/model.safetensors"}
    written(recipe(scenes, "decoder", teacher=taught, train={"epochs": 40}), tmp_path / "learn.toml")
    both = tmp_path / "both.toml"
    both.write_text('stages = ["teach", "learn"]\n')
    assert train(both, tmp_path / "quiet").returncode == 0
    command = [
        sys.executable,
        "-m",
        "edgesam_deploy",
        "train",
        str(both),
        "-o",
        str(tmp_path / "hit"),
        "--device",
        "cpu",
    ]
    run = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 600
    while not list((tmp_path / "hit/learn").glob("checkpoint_*.pt")) and time.monotonic() < deadline:
        time.sleep(0.02)
    run.kill()
    run.wait()
    assert not (tmp_path / "hit/learn/model.safetensors").exists()
    again = train(both, tmp_path / "hit")
    assert again.returncode == 0
    assert "teach: done before" in again.stderr
    assert "resumed at update" in again.stderr
    for stage in ("teach", "learn"):
        files = [tmp_path / run / stage / "model.safetensors" for run in ("quiet", "hit")]
        assert files[0].read_bytes() == files[1].read_bytes()
