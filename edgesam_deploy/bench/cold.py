"""A bundle's cold start: what the first click costs a program that has just been started. Its files may be cached.

``cold_start`` runs this file's ``main`` in a process of its own, which also tells how much memory that bundle takes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from edgesam_deploy.devices.runner import peak_rss_mb
from edgesam_deploy.errors import EdgeSamDeployError


def cold_start(path: str | Path, provider: str, threads: int) -> dict[str, Any]:
    """Milliseconds since the process was started, at each step; the largest resident memory in MB (None off Linux).

    Raises EdgeSamDeployError with what the process said where it ended badly.
    """
    words = [sys.executable, "-m", "edgesam_deploy.bench.cold", str(path), provider, str(threads), repr(time.time())]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        raise EdgeSamDeployError(f"{path} could not be started in a process of its own: {said[-1] if said else ''}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(argv: list[str]) -> None:
    """Open, encode, click once; print the milestones."""
    path, provider, threads, started = argv[0], argv[1], int(argv[2]), float(argv[3])

    from edgesam_deploy.parity.cases import seeded_scene
    from edgesam_deploy.runtime import BundleSegmenter, open_artifact

    marks = {"imported_ms": 1e3 * (time.time() - started)}
    artifact, scene = open_artifact(path, provider, threads), seeded_scene(1)
    marks["loaded_ms"] = 1e3 * (time.time() - started)
    if isinstance(artifact, BundleSegmenter):
        artifact.predict(scene, tiles=False)
    else:
        artifact.set_image(scene)
        marks["encoded_ms"] = 1e3 * (time.time() - started)
        if artifact.has_decoder:
            artifact.predict([[scene.shape[1] / 2, scene.shape[0] / 2]], [1])
    marks["answered_ms"] = 1e3 * (time.time() - started)
    print(json.dumps({**marks, "peak_rss_mb": peak_rss_mb()}))


if __name__ == "__main__":
    main(sys.argv[1:])
