"""What a device is: push files, run a command among them, pull results, and leave nothing behind.

Whatever is pushed lies in one folder there. A guard, a shell that only waits for the end of its input, removes it: when
the host closes that input, and just as well when the host is killed or the connection breaks, since then the input ends
too. It first ends what runs in the folder.
"""

from __future__ import annotations

import contextlib
import secrets
import shlex
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from edgesam_deploy.devices.state import ASK, parse_state
from edgesam_deploy.errors import EdgeSamDeployError, MissingToolkit

PATIENCE = 30  # seconds for what takes moments on a device that answers
RUNNING = "running.pid"
GUARD = """
d={folder}; mkdir -m 700 "$d" || exit 1
leave() {{ trap '' HUP INT TERM; [ -f "$d/{running}" ] && kill -9 "$(cat "$d/{running}")"; rm -rf "$d"; }}
trap 'leave; exit 0' HUP INT TERM
echo ready; cat > /dev/null; leave
"""


class ConnectionLost(EdgeSamDeployError):
    """The device went away while something ran on it."""


class Device(ABC):
    """One machine to measure on. A context manager: the folder is there within the block, and gone after it.

    Raises MissingToolkit where the client program is missing or the device does not answer.
    """

    name: str
    client: str  # the program that reaches it
    folders = "/tmp"  # where it keeps what is temporary
    ask = ASK
    lost_code: int | None = None  # what the client alone ends with when a connection breaks

    def __init__(self) -> None:
        self._folder = ""
        self._guard: subprocess.Popen[str] | None = None

    @abstractmethod
    def command(self, script: str) -> list[str]:
        """The words that run a shell script there, its streams and exit code being the command's."""

    @abstractmethod
    def push(self, files: Mapping[str, Path]) -> None:
        """Copy files into the folder, under these names."""

    @abstractmethod
    def pull(self, name: str, to: Path) -> None:
        """Copy a file out of the folder."""

    @property
    def folder(self) -> str:
        """The folder there. Only within the ``with`` block."""
        assert self._folder, "not within the device's block"
        return self._folder

    def __enter__(self) -> Self:
        folder = f"{self.folders}/edgesam-deploy-{secrets.token_hex(8)}"
        script = GUARD.format(folder=shlex.quote(folder), running=RUNNING)
        guard = self._started(script, stdin=subprocess.PIPE)
        assert guard.stdout is not None
        self._guard, self._folder = guard, folder
        try:
            ready = guard.stdout.readline()
        except BaseException:  # asked to stop while waiting
            self.clean()
            raise
        if ready.strip() != "ready":
            said = guard.communicate()[1].strip().splitlines()
            self._guard, self._folder = None, ""
            raise MissingToolkit(f"--device {self.name} cannot be used: {said[-1] if said else 'it did not answer'}")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        folder = self._folder
        if not self.clean() and error is None:
            raise ConnectionLost(f"{self.name} no longer answers; {folder} there may not be removed yet")

    def clean(self) -> bool:
        """End what runs there and remove the folder; whether that is known to be done. May be called twice."""
        guard, self._guard = self._guard, None
        folder, self._folder = self._folder, ""
        if guard is None:
            return True
        with contextlib.suppress(subprocess.TimeoutExpired, OSError):
            if guard.stdin is not None:
                guard.stdin.close()
            if guard.wait(PATIENCE) == 0:
                _close(guard)
                return True
        _stop(guard)
        try:  # the guard's connection broke, but there may be another
            left = subprocess.run(
                self.command(f"rm -rf {shlex.quote(folder)}"), stdin=subprocess.DEVNULL, capture_output=True,
                check=False, timeout=PATIENCE, start_new_session=True,
            )  # fmt: skip
        except (subprocess.TimeoutExpired, OSError):
            return False
        return left.returncode == 0

    def run(self, words: Sequence[str], line: Callable[[str], None] = lambda _: None) -> tuple[int, str]:
        """Run a program in the folder; ``line`` gets each line of its stdout as it comes. Exit code and stderr.

        Raises ConnectionLost where the device went away.
        """
        inside = f"cd {shlex.quote(self.folder)} && echo $$ > {RUNNING} && exec {shlex.join(words)} 2> stderr.txt"
        process = self._started(inside)
        try:
            assert process.stdout is not None
            for text in process.stdout:
                line(text.rstrip("\n"))
            code = process.wait()
        finally:
            _stop(process)
        if code != 0 and (code == self.lost_code or not self._answers()):
            raise ConnectionLost(f"the connection to {self.name} broke while {words[0]} ran")
        there = shlex.quote(self.folder)
        return code, self.ran(f"rm -f {there}/{RUNNING}; cat {there}/stderr.txt")  # its number may be another's soon

    def ran(self, script: str) -> str:
        """What a short script prints there, whatever it ends with."""
        try:
            done = subprocess.run(
                self.command(script), stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
                check=False, timeout=PATIENCE, start_new_session=True,
            )  # fmt: skip
        except subprocess.TimeoutExpired as e:
            raise ConnectionLost(f"{self.name} did not answer within {PATIENCE} s") from e
        return done.stdout

    def state(self) -> dict[str, Any]:
        """Load, memory, clock and temperature, as ``parse_state`` gives them."""
        return parse_state(self.ran(self.ask))

    def _answers(self) -> bool:
        with contextlib.suppress(ConnectionLost):
            return self.ran("echo here").strip() == "here"
        return False

    def _started(self, script: str, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
        try:  # in a session of its own: Ctrl-C is for us, who then clean up in order
            return subprocess.Popen(
                self.command(script), stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                errors="replace", start_new_session=True,
            )  # fmt: skip
        except FileNotFoundError as e:
            raise MissingToolkit(f"--device {self.name} needs {self.client}, which is not on the path") from e

    def transfer(self, words: list[str], **how: Any) -> None:
        """Run a command that copies. Raises ConnectionLost with what it says where it fails."""
        how.setdefault("stdin", subprocess.DEVNULL)
        done = subprocess.run(words, stderr=subprocess.PIPE, check=False, start_new_session=True, **how)
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise ConnectionLost(f"copying from or to {self.name} failed: {said[-1] if said else words[0]}")


def _stop(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.terminate()
        end = time.monotonic() + 5
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        process.kill()
        process.wait()
    _close(process)


def _close(process: subprocess.Popen[str]) -> None:
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
