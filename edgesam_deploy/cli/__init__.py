"""The command line. Commands import what they need when they run, so ``--help`` stays quick."""

from __future__ import annotations

import io
import os
import signal
import sys

import typer

from edgesam_deploy.cli import (
    bisect,
    build,
    data,
    demo,
    evaluate,
    explain,
    inspect,
    measure,
    operators,
    optimize,
    predict,
    ranges,
    report,
    train,
)
from edgesam_deploy.errors import EdgeSamDeployError, MissingToolkit
from edgesam_deploy.toolkits import EXTRAS

EPILOG = (
    "Exit codes: 0 done, 1 error, 2 usage, 3 a toolkit or device is missing, 4 parity failed, "
    "5 unsupported operators, 6 benchmark regressed."
)
app = typer.Typer(
    name="edgesam-deploy",
    help="Deploy EdgeSAM-family models: trace, rewrite with proven passes, emit for edge runtimes, check against "
    "PyTorch."
    "\n\nYou have a checkpoint (.pth): build, then run. You have an .onnx: explain-file tells whose it is, ops what "
    "runs where, optimize rewrites it. You have a bundle: check, verify, bench, report, run, "
    "everything, demo.",
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
build.register(app)
optimize.register(app)
bisect.register(app)
ranges.register(app)
predict.register(app)
operators.register(app)
explain.register(app)
demo.register(app)
measure.register(app)
report.register(app)
data.register(app)
train.register(app)
evaluate.register(app)
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
    _unwind_on_signals()
    _tolerant_streams()
    try:
        try:
            app()
        finally:
            sys.stdout.flush()  # here, where a full disk is still a message
    except EdgeSamDeployError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(e.exit_code)
    except ModuleNotFoundError as e:
        extra = EXTRAS.get((e.name or "").split(".")[0])
        if extra is None:
            raise
        print(f"error: this needs {e.name}: pip install 'edgesam-deploy[{extra}]'", file=sys.stderr)
        sys.exit(MissingToolkit.exit_code)
    except OSError as e:
        if not isinstance(e, BrokenPipeError):  # the reader of a pipe went away: nobody to tell
            where = f"{e.filename}: " if e.filename else ""
            print(f"error: {where}{e.strerror or e}", file=sys.stderr)
        _abandon_stdout()
        sys.exit(1)


def _unwind_on_signals() -> None:
    """A polite kill raises SystemExit, so that a half-written bundle is removed; `nohup` keeps its meaning."""

    def leave(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_IGN)  # a second one must not cut the removal short
        sys.exit(128 + number)

    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, leave)


def _tolerant_streams() -> None:
    """Names of files need not be UTF-8, the terminal's encoding need not hold a table's lines, stdout may be closed."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for the rest of the process
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _abandon_stdout() -> None:
    """What could not be written is dropped; Python would try again at exit, and complain."""
    stream = sys.__stdout__
    if stream is not None and stream is sys.stdout:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
