"""A real OpenSSH server on loopback, with keys of its own, for this process's user; and what is left on the device."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

SSHD = shutil.which("sshd") or next((p for p in ("/usr/sbin/sshd", "/usr/local/sbin/sshd") if Path(p).exists()), None)
MISSING = "no sshd here: apt-get install openssh-server" if SSHD is None or not shutil.which("ssh") else ""


@dataclass
class Server:
    """``spec`` is what --device takes, ``config`` what --ssh-config takes; ``stop`` cuts every connection."""

    spec: str
    config: Path
    process: subprocess.Popen

    def sessions(self):
        """Processes that serve connections: children of the listening one, and theirs."""
        return _descendants(self.process.pid)

    def cut(self):
        """Break every connection, as if the machine went away; the server goes on listening."""
        for pid in self.sessions():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)


def _descendants(pid):
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,comm="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()]
    children = [int(p) for p, parent, comm in rows if int(parent) == pid and "sshd" in comm]
    return [each for child in children for each in [*_descendants(child), child]]


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def loopback_sshd(folder):
    """A server that takes the key in ``folder`` and nothing else."""
    folder.chmod(0o700)
    for name in ("host", "user"):
        words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(words, check=True, capture_output=True)
    port, user = _free_port(), getpass.getuser()
    shutil.copyfile(folder / "user.pub", folder / "authorized")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where it separates its privileges
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\n"
        f"PidFile {folder}/pid\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\n"
    )
    key = (folder / "host.pub").read_text().split()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {key[0]} {key[1]}\n")
    (folder / "ssh_config").write_text(
        f"Host *\n  IdentityFile {folder}/user\n  IdentitiesOnly yes\n  UserKnownHostsFile {folder}/known_hosts\n"
    )
    with (folder / "sshd.log").open("w") as log:
        process = subprocess.Popen([SSHD, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=log)
    try:
        end = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < end:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.05)
        assert process.poll() is None, (folder / "sshd.log").read_text()
        server = Server(f"ssh:{user}@127.0.0.1:{port}", folder / "ssh_config", process)
        yield server
        server.cut()
    finally:
        process.terminate()
        process.wait(30)


def left_behind(root="/tmp"):
    """Folders that the command made on a device, here this machine."""
    return sorted(path.name for path in Path(root).glob("edgesam-deploy-*"))


def wait_until(true, patience=60):
    """Whether it becomes true."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if true():
            return True
        time.sleep(0.05)
    return False
