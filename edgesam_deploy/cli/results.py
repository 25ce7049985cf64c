"""Where run and everything put their files: all of them or none."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edgesam_deploy.bundle import MANIFEST
from edgesam_deploy.errors import OutputError

RESULT, MASKS, OVERLAY = "result.json", "masks.json", "overlay.png"
CLASSES, CONFIDENCE = "classes.png", "confidence.png"
_MASK_FILE = re.compile(r"mask_\d+\.png")


def mask_file(index: int) -> str:
    """The name of a mask's picture."""
    return f"mask_{index}.png"


def check_results(out: Path, image: Path) -> None:
    """Raise OutputError where results must not go, before the work: a file, a bundle, over the picture itself."""
    try:
        if out.exists() and not out.is_dir():
            raise OutputError(f"--out {out}: is a file; name a folder")
        if (out / MANIFEST).exists():
            raise OutputError(f"--out {out}: is a bundle, which would no longer verify; choose another folder")
        ours = image.name in (RESULT, MASKS, OVERLAY, CLASSES, CONFIDENCE) or _MASK_FILE.fullmatch(image.name)
        if ours and out.is_dir() and image.resolve().parent == out.resolve():
            raise OutputError(f"--out {out}: {image.name} would be overwritten; choose another folder")
        place = _nearest(out)
    except OSError as e:
        raise OutputError(f"--out {out}: {e.strerror}; choose another folder") from e
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise OutputError(f"--out {out}: cannot write to {place}; choose another folder")


@contextmanager
def results(out: Path) -> Iterator[Path]:
    """A hidden folder to write into; its files move to ``out`` when the block ends well, and none does when not.

    What an earlier run left in ``out`` is replaced, and its further pictures are removed; other files stay.
    Raises OutputError where the disk refuses.
    """
    draft = None
    try:
        draft = _nearest(out) / f".{secrets.token_hex(4)}.partial"
        draft.mkdir()
        yield draft
        _publish(draft, out)
    except OSError as e:
        raise OutputError(f"--out {out}: {e.strerror}; nothing was written, choose another folder") from e
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)


def _nearest(out: Path) -> Path:
    """``out`` or the nearest parent that exists: on the same file system as what will be created there."""
    out = out.absolute()
    return next(p for p in (out, *out.parents) if p.exists())


def _publish(draft: Path, out: Path) -> None:
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        draft.rename(out)
        return
    stale = _pictures_of(out)
    for file in draft.iterdir():
        os.replace(file, out / file.name)
        stale.discard(file.name)
    for name in stale:
        (out / name).unlink(missing_ok=True)


def _pictures_of(out: Path) -> set[str]:
    """The pictures of masks and classes that an earlier run wrote there, by its own account."""
    with suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
        told = json.loads((out / RESULT).read_text())
        files = {entry["file"] for entry in told.get("masks", [])} | {told.get("class_map"), told.get("confidence")}
        return {name for name in files if name in (CLASSES, CONFIDENCE) or _MASK_FILE.fullmatch(name or "")}
    return set()
