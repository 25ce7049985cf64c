"""``python -m edgesam_deploy``."""

from edgesam_deploy.cli import main

main()
