"""The command line. Commands import what they need when they run, so ``--help`` stays quick."""

from __future__ import annotations

import signal
import sys

import typer

from edgesam_deploy.cli import build, inspect, measure, predict
from edgesam_deploy.errors import EdgeSamDeployError

EPILOG = (
    "Exit codes: 0 done, 1 error, 2 usage, 3 a toolkit or device is missing, 4 parity failed, "
    "5 unsupported operators, 6 benchmark regressed."
)
app = typer.Typer(
    name="edgesam-deploy",
    help="Deploy EdgeSAM-family models: trace, rewrite with proven passes, emit for edge runtimes, check against "
    "PyTorch."
    "\n\nYou have a checkpoint (.pth): build, then run. You have an .onnx: ops tells what runs where. "
    "You have a bundle: check, verify, bench, run, everything.",
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
build.register(app)
predict.register(app)
measure.register(app)
inspect.register(app)


def _version(asked: bool) -> None:
    if asked:
        from edgesam_deploy import __version__

        typer.echo(f"edgesam-deploy {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Options before the command."""


def main() -> None:
    """Run a command; an error of ours ends with one message on stderr and its own exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, so that a half-written bundle is removed
    try:
        app()
    except EdgeSamDeployError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(e.exit_code)
    except BrokenPipeError:  # the reader of a pipe went away
        sys.stderr.close()
        sys.exit(0)
