"""Driving the command line: in this process where it can be, in another where it must be."""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from edgesam_deploy.cli import main

PHOTOGRAPHS = Path(__file__).parents[2] / "edgesam_deploy" / "photographs"
COFFEE, HOPPER = PHOTOGRAPHS / "coffee.jpg", PHOTOGRAPHS / "hopper.jpg"
DONE, ERROR, USAGE, MISSING, PARITY, UNSUPPORTED = range(6)


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def words(self):
        """stderr without the frame that usage errors are printed in."""
        return re.sub(r"[\s│╭╮╰╯─]+", " ", self.err)


def edgesam_deploy(*args):
    """Run ``edgesam-deploy ARGS`` in this process."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    argv, sys.argv = sys.argv, ["edgesam-deploy", *map(str, args)]
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main()
                code = 0
            except SystemExit as e:
                code = e.code or 0
    finally:
        sys.argv = argv
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return Ended(code, *(stream.buffer.getvalue().decode() for stream in (out, err)))


def environment(**changes):
    """Of a process beside this one: one thread, since a second only waits for the first beside a busy neighbour."""
    return {**os.environ, "OMP_NUM_THREADS": "1", **changes}


def subprocess_of(*args, **changes):
    """Run ``python -m edgesam_deploy ARGS`` to its end in a process of its own; ``changes`` to its environment."""
    command = [sys.executable, "-m", "edgesam_deploy", *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, env=environment(**changes))
    return Ended(done.returncode, done.stdout, done.stderr)


def contents(folder):
    """Every path under ``folder``, hidden ones too, with the bytes of the files."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if not path.is_symlink() or path.exists()
    }


@contextlib.contextmanager
def tmpfs(folder, options):
    """A small or read-only file system at ``folder``; yields False where this machine does not let us mount one."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        mounted = os.name == "posix" and subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)
