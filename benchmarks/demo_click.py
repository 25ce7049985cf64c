"""From a click in the browser to the mask on the page: python -m benchmarks.demo_click BUNDLE

Serves the demo in this process, drives headless Chromium on the same machine, and measures in the page itself: from
the mouse button's press to the loaded new picture. What the artifact's decoder took of it stands in the page's table,
so every click has its own limit, 1.5 times its decoder + 100 ms, whatever else the machine does. Writes
``results/demo_click.{md,json}``.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import edgesam_deploy as ed
from benchmarks.chromium import Chromium, find_chromium
from benchmarks.interleaved import Machine, ended
from edgesam_deploy.demo.session import SAMPLES, Limits, shown_artifacts
from edgesam_deploy.errors import MissingToolkit

FACTOR, SLACK = 1.5, 100.0  # of the decoder's milliseconds, and milliseconds
PLACES = ((0.3, 0.4), (0.6, 0.5), (0.45, 0.7))  # of the picture's width and height; then the prompt is cleared
WARM_UP = 3
WATCH = """
addEventListener('pointerdown', () => { window.pressed = performance.now(); window.shown = 0 }, true);
document.addEventListener('load', event => {
  if (event.target.closest?.('#picture0')) window.shown = performance.now() }, true);
"""


@dataclass(frozen=True)
class Click:
    """Milliseconds of one click: all of it, and the decoder's share."""

    total: float
    decoder: float

    @property
    def limit(self) -> float:
        """What it may take."""
        return FACTOR * self.decoder + SLACK


def measure(url: str, picture: Path, clicks: int) -> list[Click]:
    """Open the page, upload a picture, click."""
    found: list[Click] = []
    with Chromium() as browser:
        browser.open(url)
        browser.wait("!!document.querySelector('input[type=file]')")
        browser.upload("input[type=file]", picture)
        browser.wait("document.querySelector('#picture0 img')?.naturalWidth")
        browser.value(WATCH)
        for index in range(clicks + WARM_UP):
            browser.click("#picture0 img", *PLACES[index % len(PLACES)])
            browser.wait("window.shown")
            total = browser.value("window.shown - window.pressed")
            words = browser.wait("document.querySelector('#scores').innerText.match(/decode ([\\d.]+) ms/)?.[1]")
            found.append(Click(total, float(words)))
            if index % len(PLACES) == len(PLACES) - 1:
                browser.click("#clear")
                browser.wait("!/decode/.test(document.querySelector('#scores').innerText)")
    return found[WARM_UP:]


def report(machine: Machine, subject: str, clicks: Sequence[Click], load: Sequence[float]) -> str:
    """The Markdown file."""
    within = sum(click.total < click.limit for click in clicks)
    totals, decoders = ([getattr(click, name) for click in clicks] for name in ("total", "decoder"))
    beside = [click.total - click.decoder for click in clicks]
    rows = {"click to picture": totals, "decoder": decoders, "all else": beside, "limit": [c.limit for c in clicks]}
    busy = f"The machine's load was {load[0]:.1f} before and {load[1]:.1f} after, with {machine.cores} core(s)."
    return "\n".join([
        "# The demo's answer to a click\n",
        f"{machine}\n",
        f"{subject}, {len(clicks)} clicks, server and browser on the same cores, by `python -m benchmarks.demo_click "
        f"BUNDLE`. The limit is each click's own: {FACTOR} x its decoder + {SLACK:.0f} ms. {busy}\n",
        f"**{within} of {len(clicks)} clicks within the limit.**\n",
        "| milliseconds | median | least | most |",
        "|---|---|---|---|",
        *(f"| {name} | {median(v):.0f} | {min(v):.0f} | {max(v):.0f} |" for name, v in rows.items()),
        "",
    ])  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Serve, measure, write."""
    if find_chromium() is None:
        raise MissingToolkit("chromium is not installed (Debian: apt install chromium)")
    from edgesam_deploy.demo.page import Page

    artifact = ed.open(args.bundle, threads=args.threads)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app, url = Page(shown_artifacts({"bundle": artifact}), Limits()).serve("127.0.0.1", port)
    load = [os.getloadavg()[0]]
    try:
        clicks = measure(url, args.picture, args.clicks)
        load.append(os.getloadavg()[0])
    finally:
        app.close()
    machine = Machine.here(("onnxruntime", "gradio", "numpy", "pillow"))
    made = artifact.bundle.manifest
    args.out.mkdir(parents=True, exist_ok=True)
    text = report(machine, f"`{made['model']['name']}` for `{made['target']}`, {args.picture.name}", clicks, load)
    (args.out / "demo_click.md").write_text(text)
    data = {"machine": asdict(machine), "load": load, "clicks": [asdict(click) for click in clicks]}
    (args.out / "demo_click.json").write_text(json.dumps(data, indent=2) + "\n")
    print(text)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundle", type=Path, help="a bundle that takes prompts")
    parser.add_argument("--picture", type=Path, default=SAMPLES / "coffee.jpg", help="what is clicked on")
    parser.add_argument("--clicks", type=int, default=30, help="how many (default 30)")
    parser.add_argument("--threads", type=int, default=0, help="threads of the runtime; 0: its own choice")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for the results")
    return ended(lambda: run(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
