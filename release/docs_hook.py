"""What mkdocs needs to know: links out of docs/ lead to files of the project that are not part of the site."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """A link to a file outside of docs/ becomes its path; one that leads nowhere stops the build."""
    here = Path(page.file.abs_src_path).parent

    def plain(match: re.Match[str]) -> str:
        text, target = match.groups()
        file = Path(os.path.normpath(here / target))
        if not target.startswith("..") or (ROOT / "docs") in file.parents:
            return match[0]
        if not file.exists():
            raise SystemExit(f"{page.file.src_path}: {target} leads nowhere")
        path = file.relative_to(ROOT).as_posix()
        return f"`{path}`" if text == path else f"{text} (`{path}`)"

    return re.sub(r"\[([^\]]+)\]\(([^)#\s]+)\)", plain, markdown)
