"""Names that the shell completes. Each is looked up when Tab is pressed."""

from __future__ import annotations


def models(incomplete: str) -> list[str]:
    """Models and their aliases."""
    from edgesam_deploy.model.configs import ALIASES, MODELS

    return [name for name in (*MODELS, *ALIASES) if name.startswith(incomplete)]


def targets(incomplete: str) -> list[str]:
    """Targets."""
    from edgesam_deploy.targets import target_names

    return [name for name in target_names() if name.startswith(incomplete)]


def report_targets(incomplete: str) -> list[str]:
    """Targets of the operator report, the last of a list."""
    from edgesam_deploy.targets.rules import ALIASES, report_names

    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in (*report_names(), *ALIASES, "all") if name.startswith(last)]


def checkpoints(incomplete: str) -> list[str]:
    """Published checkpoints."""
    from edgesam_deploy.model.fetch import SOURCES

    return [name for name in SOURCES if name.startswith(incomplete)]
