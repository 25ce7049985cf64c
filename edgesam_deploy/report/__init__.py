"""What a build did, for people: tables on a terminal, and one HTML file about one bundle or several."""

from __future__ import annotations

from edgesam_deploy.report.terminal import print_build, print_parity, print_plan

__all__ = ["print_build", "print_parity", "print_plan"]
