"""Where published checkpoints live, and how one gets here.

Nothing is downloaded unless a name asks for it; of weights, only the demonstration model's come along. This module does
not import torch: listing and fetching stay fast. What no program can fetch is said, with the steps to do it by hand.
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal, Protocol, cast

from edgesam_deploy.errors import CheckpointError, MissingToolkit, OutputError, UnknownName

log = logging.getLogger(__name__)

APACHE = "Apache-2.0"
S_LAB = "NTU S-Lab License 1.0 (non-commercial)"
UNLICENSED = "none given: all rights reserved by its authors"
META = "https://dl.fbaipublicfiles.com/segment_anything"
HUB = "https://huggingface.co"
DRIVE = "https://drive.google.com/file/d"
CHUNK = 1 << 20  # bytes


class Response(Protocol):
    """What an opener gives: the body, and how many bytes it will have (None where the server does not say)."""

    length: int | None

    def read(self, amount: int, /) -> bytes: ...


Opener = Callable[[str], AbstractContextManager[Response]]
Progress = Callable[[int, int | None], None]  # bytes so far, bytes in all


@dataclass(frozen=True)
class Source:
    """One published checkpoint.

    ``model`` is what it builds. ``repo`` and ``repo_type`` locate a Hugging Face file, ``url`` any other (for
    "manual", the page to open). ``path`` is the file's path in its repository; in the cache it keeps its last part.
    ``sha256`` is checked after download where it is known. ``remark`` adds to the steps for doing it by hand.
    """

    name: str
    model: str
    kind: Literal["huggingface", "url", "manual", "unpublished"]
    licence: str
    path: str
    repo: str = ""
    repo_type: Literal["space", "model"] = "model"
    url: str = ""
    sha256: str = ""
    remark: str = ""

    @property
    def location(self) -> str:
        """The address to open by hand; empty when unpublished."""
        if self.kind != "huggingface":
            return self.url
        spaces = "spaces/" if self.repo_type == "space" else ""
        return f"{HUB}/{spaces}{self.repo}/resolve/main/{self.path}"

    @property
    def cached(self) -> Path:
        """Where it lies, or would lie, on this machine."""
        return cache_folder() / Path(self.path).name

    @property
    def steps(self) -> str:
        """How to get it by hand, one step a line."""
        if self.kind == "unpublished":
            get = f"1. {self.remark}"
        else:
            get = f"1. download {self.location}{f' ({self.remark})' if self.remark else ''}"
        check = f"\n   sha256: {self.sha256}" if self.sha256 else ""
        return (
            f"{get}{check}\n2. save it as {self.cached}\n   or pass it: --checkpoint PATH\n   licence: {self.licence}"
        )


def _edge_sam(name: str) -> Source:
    return Source(
        name, "edge_sam", "huggingface", S_LAB, f"weights/{name}.pth", repo="chongzhou/EdgeSAM", repo_type="space"
    )


def _hq(size: str) -> Source:
    name = f"sam_hq_vit_{size}"
    return Source(name, name, "huggingface", APACHE, f"{name}.pth", repo="lkeab/hq-sam")


def _meta(name: str, file: str, sha256: str) -> Source:
    return Source(name, name, "url", APACHE, file, url=f"{META}/{file}", sha256=sha256)


def _drive(name: str, model: str, step: str, file_id: str) -> Source:
    remark = f"{step} of the EdgeSAM-DyT README; Google Drive asks for a click in a browser"
    return Source(name, model, "manual", S_LAB, f"{name}.pth", url=f"{DRIVE}/{file_id}/view", remark=remark)


def _cwsam(name: str) -> Source:
    remark = "its authors published no weights: train it, or leave --checkpoint out for seeded random weights"
    return Source(name, name, "unpublished", UNLICENSED, f"{name}.pth", remark=remark)


# The digits in Meta's file names are of the MD5, not of the SHA-256.
_TABLE = (
    _edge_sam("edge_sam"),
    _edge_sam("edge_sam_3x"),
    _drive("repvit_m1_dyt", "repvit_m1_dyt", "step 1", "14zMPCbdInahfwNS8rHIMdpY2m7szVwaw"),
    _drive("edge_sam_dyt_frozen_mask", "edge_sam_dyt_frozen_mask", "step 2", "1lsd2TsfYMgBN3NJGxGVs-HEu2DANaJQz"),
    _drive("edge_sam_dyt_step3", "edge_sam_dyt", "step 3, base", "1YFBE939hOeraelSXm4lEYzoOLR-WQRtS"),
    _drive("edge_sam_dyt", "edge_sam_dyt", "step 4, final", "10cTazWMI2tq0LMXkFog-TdHqn1zFNS2s"),
    _drive("edge_sam_dyt_hq", "edge_sam_dyt_hq", "step 5, HQ", "1pYztXLdoBMpUd41No3wdBXSUPtidpKke"),
    _hq("b"),
    _hq("l"),
    _hq("h"),
    _hq("tiny"),
    _meta("vit_b", "sam_vit_b_01ec64.pth", "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912"),
    _meta("vit_l", "sam_vit_l_0b3195.pth", "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622"),
    _meta("vit_h", "sam_vit_h_4b8939.pth", "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e"),
    _cwsam("cwsam"),
    _cwsam("cwsam_moe_3b"),
    _cwsam("cwsam_hierarchical_moe_10b"),
)
SOURCES: dict[str, Source] = {source.name: source for source in _TABLE}


def cache_folder() -> Path:
    """``EDGESAM_DEPLOY_CACHE``, or ``edgesam-deploy`` in the user's cache folder (XDG)."""
    if own := os.environ.get("EDGESAM_DEPLOY_CACHE"):
        return Path(own).expanduser()
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    # the XDG specification says to ignore a relative path
    return (Path(xdg) if os.path.isabs(xdg) else Path.home() / ".cache") / "edgesam-deploy"


def offline() -> bool:
    """``HF_HUB_OFFLINE`` is set: no address is opened, Hugging Face's or another's."""
    return os.environ.get("HF_HUB_OFFLINE", "").strip().upper() in ("1", "ON", "YES", "TRUE")


def shipped_weights(name: str) -> Path | None:
    """The weights of a model that come along with this package, or None; how they were made lies beside them."""
    path = Path(str(files("edgesam_deploy.model") / "shipped" / f"{name}.safetensors"))
    return path if path.is_file() else None


def resolve(name_or_path: str | Path, *, opener: Opener | None = None, progress: Progress | None = None) -> Path:
    """The file that a path, a name of ``SOURCES`` or of a model whose weights come along stands for; downloaded if it
    is not there yet.

    An existing file wins over a name. ``opener`` replaces the HTTPS client for addresses that are not Hugging Face's,
    whose own client shows its own progress; ``progress`` is called with the bytes so far and in all.

    Raises UnknownName or CheckpointError (neither a file nor a name; a download of the wrong content), MissingToolkit
    (offline, or nothing a program can fetch; the message has the steps to do by hand), OutputError (cache not
    writable).
    """
    path = Path(name_or_path).expanduser()
    source = SOURCES.get(str(name_or_path))
    # a folder may well be called like a model (out/edge_sam): only a file wins over a name
    if path.is_file() or (source is None and path.exists()):
        return path
    if source is None and (own := shipped_weights(str(name_or_path))):
        return own
    if source is None:
        raise _not_found(str(name_or_path), path)
    target = source.cached
    if target.is_file():
        return target
    if source.kind == "manual":
        raise MissingToolkit(f"{source.name}: no program can download it; by hand:\n{source.steps}")
    if source.kind == "unpublished":
        raise MissingToolkit(f"{source.name}: not published; what you can do:\n{source.steps}")
    if source.kind == "huggingface" and (known := _in_hub_cache(source)):
        return known
    if offline():
        raise MissingToolkit(f"{source.name}: offline (HF_HUB_OFFLINE is set); by hand:\n{source.steps}")
    return _download(source, target, opener or _https, progress)


def _not_found(given: str, path: Path) -> UnknownName | CheckpointError:
    if path.suffix or os.sep in given:
        names = ", ".join(SOURCES)
        return CheckpointError(f"{given}: no such file, nor the name of a published checkpoint ({names})")
    return UnknownName("checkpoint (neither a file nor a published one)", given, SOURCES)


def _download(source: Source, target: Path, opener: Opener, progress: Progress | None) -> Path:
    """Fetch into a folder beside ``target`` and rename: whatever happens meanwhile, nothing half-written stays."""
    log.info("downloading %s from %s; licence of the weights: %s", source.name, source.location, source.licence)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=target.parent) as folder:
            if source.kind == "huggingface":
                partial = _from_hub(source, Path(folder))
            else:
                partial = Path(folder) / target.name
                _from_url(source, partial, opener, progress)
            os.replace(partial, target)
    except OSError as e:
        raise OutputError(f"{target}: cannot be written: {e}; EDGESAM_DEPLOY_CACHE names another folder") from e
    return target


def _from_url(source: Source, partial: Path, opener: Opener, progress: Progress | None) -> None:
    digest = hashlib.sha256()
    done = 0
    with partial.open("xb") as file:
        for chunk, total in _body(source, opener):
            digest.update(chunk)
            file.write(chunk)
            done += len(chunk)
            if progress is not None:
                progress(done, total)
    if source.sha256 and digest.hexdigest() != source.sha256:
        raise CheckpointError(
            f"{source.url}: {done:,} bytes came, of sha256 {digest.hexdigest()} instead of "
            f"{source.sha256}; nothing was kept. Try again, or by hand:\n{source.steps}"
        )


def _body(source: Source, opener: Opener) -> Iterator[tuple[bytes, int | None]]:
    """The download in chunks, each with the bytes that there are in all.

    Only the network's errors are raised in here, so only they are taken for such.
    """
    try:
        with opener(source.url) as response:
            total, done = response.length, 0
            while chunk := response.read(CHUNK):
                done += len(chunk)
                yield chunk, total
            if total is not None and done != total:
                raise http.client.HTTPException(f"the connection ended after {done:,} of {total:,} bytes")
    except (OSError, http.client.HTTPException) as e:
        raise MissingToolkit(f"{source.name}: cannot download {source.url}: {e}; by hand:\n{source.steps}") from e


def _https(url: str) -> AbstractContextManager[Response]:
    assert url.startswith("https://")
    return cast("AbstractContextManager[Response]", urllib.request.urlopen(url, timeout=60))


def _from_hub(source: Source, folder: Path) -> Path:
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as e:
        raise MissingToolkit(
            f"{source.name}: needs huggingface_hub: pip install huggingface_hub; or by hand:\n{source.steps}"
        ) from e
    try:
        return Path(hf_hub_download(source.repo, source.path, repo_type=source.repo_type, local_dir=folder))
    except Exception as e:  # its HTTP client's errors come through unwrapped, and the client varies with its version
        reason = str(e).strip().split("\n")[0]
        raise MissingToolkit(
            f"{source.name}: cannot download {source.location}: {type(e).__name__}: {reason}; by hand:\n{source.steps}"
        ) from e


def _in_hub_cache(source: Source) -> Path | None:
    """The file in Hugging Face's own cache, where another program may have put it; no network."""
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    found = try_to_load_from_cache(source.repo, source.path, repo_type=source.repo_type)
    return Path(found) if isinstance(found, str) else None
