"""Where an artifact is measured: this machine, a machine behind ssh, an Android device behind adb."""

from __future__ import annotations

import re
from pathlib import Path

from edgesam_deploy.devices.adb import AdbDevice
from edgesam_deploy.devices.base import ConnectionLost, Device
from edgesam_deploy.devices.local import LocalDevice
from edgesam_deploy.devices.ssh import SshDevice
from edgesam_deploy.errors import UsageError

__all__ = ["AdbDevice", "ConnectionLost", "Device", "LocalDevice", "SshDevice", "open_device"]

FORMS = "local, ssh:user@host[:port] or adb[:serial]"


def open_device(spec: str, *, ssh_config: Path | None = None) -> Device:
    """The device that ``spec`` names; nothing is reached before its ``with`` block. Raises UsageError for other words.

    ssh_config: the file that OpenSSH reads instead of the user's own.
    """
    kind, _, rest = spec.partition(":")
    if ssh_config is not None and kind != "ssh":
        raise UsageError(f"--ssh-config belongs to --device ssh:user@host, not to {spec}")
    if spec == "local":
        return LocalDevice()
    if kind == "adb" and re.fullmatch(r"[\w.:-]*", rest) and not rest.startswith("-"):
        return AdbDevice(rest or None)
    # a host that begins with a dash would be an option of ssh
    found = re.fullmatch(r"((?:[\w.+-]+@)?(?:\[[0-9A-Fa-f:%.\w]+\]|\w[\w.-]*))(?::(\d+))?", rest)
    if kind == "ssh" and found and not rest.startswith("-"):
        return SshDevice(found[1].replace("[", "").replace("]", ""), int(found[2]) if found[2] else None, ssh_config)
    raise UsageError(f"--device {spec}: must be {FORMS}")
