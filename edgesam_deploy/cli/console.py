"""Where output goes: results to stdout, progress and logs to stderr; plain text when that is no terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console

JSON_HELP = "Print the result as JSON."


def stdout() -> Console:
    """For results. Piped output is wide rather than wrapped."""
    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)


def stderr() -> Console:
    """For progress and logs."""
    return Console(stderr=True, width=None if sys.stderr.isatty() else 160, highlight=False)


def print_json(value: Any) -> None:
    """JSON on stdout, for machines. A number that JSON cannot hold is null."""
    text = json.dumps(_finite(value), indent=2, sort_keys=True, ensure_ascii=False)
    print(text)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    if isinstance(value, float) and not -float("inf") < value < float("inf"):
        return None
    return value


@contextmanager
def progress_bar(total: int) -> Iterator[Callable[[str], None]]:
    """A bar on a terminal, a line per step elsewhere. Call the yielded function when a step begins."""
    console = stderr()
    if not console.is_terminal:
        yield lambda text: print(f"  {text}", file=sys.stderr)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(30), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("starting", total=total)
        started = False

        def step(text: str) -> None:
            nonlocal started
            bar.update(task, description=text, advance=int(started))
            started = True

        yield step
