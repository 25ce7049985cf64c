"""This machine, as a device: in a process of its own, as on any other."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from edgesam_deploy.devices.base import Device


class LocalDevice(Device):
    """A folder among the temporary ones here."""

    name, client = "local", "sh"

    def __init__(self) -> None:
        super().__init__()
        self.folders = tempfile.gettempdir()

    def command(self, script: str) -> list[str]:
        return ["sh", "-c", script]

    def push(self, files: Mapping[str, Path]) -> None:
        for name, path in files.items():
            target = Path(self.folder, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)

    def pull(self, name: str, to: Path) -> None:
        shutil.copyfile(Path(self.folder, name), to)
