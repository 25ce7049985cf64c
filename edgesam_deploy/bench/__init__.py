"""How fast: of bundles on this machine or on a device, against each other and against older figures. No PyTorch."""

from __future__ import annotations

from edgesam_deploy.bench.measure import measure
from edgesam_deploy.bench.settings import Settings

__all__ = ["Settings", "measure"]
