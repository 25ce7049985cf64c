"""What other installed packages add: targets, operator tables, detectors that propose boxes.

A package declares them as entry points; the name is what a user types:

    [project.entry-points."edgesam_deploy.targets"]
    mine = "my_package.target:MyTarget"             # a Target

    [project.entry-points."edgesam_deploy.rules"]
    my-npu = "my_package:TABLE"                     # anything whose read_text() gives a rule table's JSON, e.g. a Path

    [project.entry-points."edgesam_deploy.detectors"]
    faces = "my_package.faces:FaceDetector"         # a BoxDetector (edgesam_deploy.detectors)

Nothing of a plug-in is imported before its name is asked for. A name of this package's own cannot be taken.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from edgesam_deploy.errors import EdgeSamDeployError

TARGETS, RULES, DETECTORS = (f"edgesam_deploy.{kind}" for kind in ("targets", "rules", "detectors"))


@cache
def plugins(group: str) -> dict[str, EntryPoint]:
    """The entry points of a group by name, in order of their names."""
    return {entry.name: entry for entry in sorted(entry_points(group=group), key=lambda entry: entry.name)}


def load_plugin(group: str, name: str) -> Any:
    """What the plug-in of that name offers. Raises EdgeSamDeployError for one that is installed and does not import."""
    entry = plugins(group)[name]
    try:
        return entry.load()
    except Exception as e:  # a stranger's module may raise anything
        where = f"{entry.value}, of the package {entry.dist.name}" if entry.dist else entry.value
        raise EdgeSamDeployError(
            f"the plug-in {name} ({where}) cannot be loaded: {type(e).__name__}: {e}; repair or uninstall that package"
        ) from e
