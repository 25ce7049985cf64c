"""The code blocks of README and docs, and in one place those that cannot run in a test, each with its reason.

What is not named here is run as it is written: test_commands.py.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
# beginning of a command -> why no test runs it; it is still checked that the command and its options exist
NOT_HERE = {
    "make": "sets up an environment or runs tests: continuous integration does",
    "pip install": "changes the environment; make package-check does it in fresh ones",
    "edgesam-deploy train": "hours; tests/distill run the recipes at small sizes",
    "edgesam-deploy embed": "needs SA-1B and a teacher; tests/distill do it at small sizes",
    "edgesam-deploy convert": "its files come from the reference's training; tests/distill/test_convert.py makes such",
    "edgesam-deploy eval edge_sam --checkpoint": "needs SA-1B; tests/cli/test_cli_eval.py does it",
    "edgesam-deploy eval out/edge_sam/qnn": "minutes a picture on the emulator; tests/cli/test_cli_eval.py has boxes",
    "python out/edge_sam/tensorrt/build_engine.py": "a GPU; tests/targets run it against a stand-in of TensorRT",
    "pytest": "a test itself",
    "adb": "a phone", "xcrun": "a Mac", "swift": "a Mac", "trtexec": "a GPU", "docker": "a Docker engine",
    "g++": "tests/targets/test_integration.py compiles it", "torchrun": "tests/distill/test_ranks.py does it",
}  # fmt: skip


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, line, language and text."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def name(self):
        return f"{self.page.relative_to(ROOT).as_posix()}:{self.line}"


def blocks():
    """Every fenced block of every page."""
    found = []
    for page in PAGES:
        lines = page.read_text("utf-8").splitlines()
        start = None
        for number, line in enumerate(lines):
            if not line.startswith("```"):
                continue
            if start is None:
                start = number
            else:
                found.append(Block(page, start + 1, lines[start][3:].strip(), "\n".join(lines[start + 1 : number])))
                start = None
    return found


def commands():
    """(block, words) of each shell line in blocks without a language or of a shell."""
    found = []
    for block in blocks():
        if block.language not in ("", "sh", "bash", "shell", "console"):
            continue
        text = re.sub(r"\\\n\s*", " ", block.text)
        for line in text.splitlines():
            words = shlex.split(re.sub(r"(^|\s)#.*", "", line))
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words = words[1:]
            if words:
                found.append((block, words))
    return found


def reason(words):
    """Why a command is not run in a test; None for one that nobody accounts for."""
    text = " ".join(words)
    fitting = [start for start in NOT_HERE if text == start or text.startswith(start + " ")]
    return NOT_HERE[max(fitting, key=len)] if fitting else None
