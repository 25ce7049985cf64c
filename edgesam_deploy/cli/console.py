"""Where output goes: results to stdout, progress and logs to stderr; plain text when that is no terminal."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from rich.console import Console

JSON_HELP = "Print the result as JSON."
PIPED_WIDTH = 160  # columns of a table that no terminal shows


def stdout() -> Console:
    """For results."""
    return _console(stderr=False, terminal=sys.stdout.isatty())


def stderr() -> Console:
    """For progress and logs."""
    return _console(stderr=True, terminal=sys.stderr.isatty())


def _console(*, stderr: bool, terminal: bool) -> Console:
    # no markup and no emoji: names of files and extras hold brackets and colons
    width = None if terminal else PIPED_WIDTH
    return Console(stderr=stderr, width=width, highlight=False, markup=False, emoji=False)


def say(text: str) -> None:
    """A line of the result. It is never wrapped: a path stays whole."""
    stdout().print(text, soft_wrap=True)


def note(text: str) -> None:
    """A line beside the result, on stderr."""
    stderr().print(text, soft_wrap=True)


def print_json(value: Any) -> None:
    """JSON on stdout, for machines. A number that JSON cannot hold is null."""
    text = json.dumps(finite(value), indent=2, sort_keys=True, ensure_ascii=False)
    print(text)


def finite(value: Any) -> Any:
    """The same data with None for NaN and the infinities, which JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(entry) for entry in value]
    if isinstance(value, float) and not -float("inf") < value < float("inf"):
        return None
    return value


def readable_name(path: Path) -> str:
    """A file's name as text that can be encoded: bytes that are not UTF-8 become replacement characters."""
    return os.fsencode(path.name).decode("utf-8", "replace")


@contextmanager
def progress_bar(total: int, lines: int | None = None) -> Iterator[Callable[[str], None]]:
    """A bar on a terminal, a line per step elsewhere, or about ``lines`` of them. Call the yielded function when a step
    begins.
    """
    console = stderr()
    if not console.is_terminal:
        every = 1 if lines is None else max(1, total // lines)
        steps = count()

        def print_some(text: str) -> None:
            if next(steps) % every == 0:
                print(f"  {text}", file=sys.stderr)

        yield print_some
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    description = TextColumn("{task.description}", markup=False)
    columns = (BarColumn(30), MofNCompleteColumn(), TimeElapsedColumn(), description)
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("starting", total=total)
        started = False

        def step(text: str) -> None:
            nonlocal started
            bar.update(task, description=text, advance=int(started))
            started = True

        yield step
