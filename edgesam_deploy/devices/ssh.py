"""A machine behind ssh: the system's OpenSSH client, with the user's keys and configuration. It asks nothing."""

from __future__ import annotations

import shlex
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path

from edgesam_deploy.devices.base import ConnectionLost, Device

OPTIONS = (
    "BatchMode=yes",  # no question that nobody would answer: not for a password, not for an unknown host
    "ConnectTimeout=15",
    "ServerAliveInterval=10",
    "ServerAliveCountMax=3",
)


class SshDevice(Device):
    """``host`` as ssh takes it (``user@host``, or a name of its configuration)."""

    client = "ssh"
    lost_code = 255

    def __init__(self, host: str, port: int | None = None, config: Path | None = None) -> None:
        super().__init__()
        self.name = f"ssh:{host}" + (f":{port}" if port else "")
        self._words = ["ssh", "-T"]
        self._words += ["-F", str(config)] if config else []
        self._words += ["-p", str(port)] if port else []
        self._words += [word for option in OPTIONS for word in ("-o", option)] + ["--", host]

    def command(self, script: str) -> list[str]:
        return [*self._words, f"sh -c {shlex.quote(script)}"]  # the user's shell there may be another one

    def push(self, files: Mapping[str, Path]) -> None:
        words = self.command(f"tar xf - -C {shlex.quote(self.folder)}")
        with subprocess.Popen(words, stdin=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True) as process:
            assert process.stdin is not None
            assert process.stderr is not None
            try:
                with tarfile.open(fileobj=process.stdin, mode="w|") as archive:
                    for name, path in files.items():
                        archive.add(path, name)
                process.stdin.close()
            except (BrokenPipeError, ConnectionResetError):
                pass  # its exit code says more
            except BaseException:
                process.kill()
                raise
            said = process.stderr.read().decode(errors="replace").strip()
        if process.returncode != 0:
            raise ConnectionLost(f"copying to {self.name} failed: {(said.splitlines() or ['no reason given'])[-1]}")

    def pull(self, name: str, to: Path) -> None:
        with to.open("wb") as file:
            self.transfer(self.command(f"cat {shlex.quote(f'{self.folder}/{name}')}"), stdout=file)
