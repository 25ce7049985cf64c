"""An Android device behind adb."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

from edgesam_deploy.devices.base import Device
from edgesam_deploy.devices.state import ASK, ASK_ANDROID


class AdbDevice(Device):
    """The device with this serial number, or the only one there is.

    The guard needs a shell that hands on the end of its input (the "shell v2" of Android 7 and newer); on an older
    device what was pushed is still removed at the end, but not after a kill.
    """

    client = "adb"
    folders = "/data/local/tmp"
    ask = ASK + ASK_ANDROID

    def __init__(self, serial: str | None = None) -> None:
        super().__init__()
        self.name = f"adb:{serial}" if serial else "adb"
        self._words = ["adb", *(["-s", serial] if serial else [])]

    def command(self, script: str) -> list[str]:
        return [*self._words, "shell", script]

    def push(self, files: Mapping[str, Path]) -> None:
        for name, path in files.items():
            self._copy("push", str(path), f"{self.folder}/{name}")

    def pull(self, name: str, to: Path) -> None:
        self._copy("pull", f"{self.folder}/{name}", str(to))

    def _copy(self, *words: str) -> None:
        self.transfer([*self._words, *words], stdout=subprocess.DEVNULL)
