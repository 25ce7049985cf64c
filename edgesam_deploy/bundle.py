"""A bundle: the folder a build leaves behind, written whole or not at all, and checkable ever after.

    encoder.<ext>  decoder.<ext>    the artifact                 manifest.json  what it is, hashes of everything above
    ops.json  README.md             what runs, the model card    timings.json parity.json bench.json report.html
    WEIGHTS_LICENSE.md  sbom.cdx.json                            quantization.json engines/
                                                                 later or varying, so neither hashed nor compared

A build writes into a hidden folder beside the target and renames it at the end. The manifest is written last and hashes
every file and itself, so a folder that was cut short does not verify.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgesam_deploy.errors import BundleError, OutputError

SCHEMA = 1
MANIFEST = "manifest.json"
UNHASHED = {"timings.json", "parity.json", "quantization.json", "bench.json", "report.html"}
ENGINES = "engines"  # a folder of what a device makes of the artifact: unhashed too, no two builds of it are alike


@dataclass(frozen=True)
class Bundle:
    """A finished bundle on disk. ``manifest`` is its manifest.json."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def target(self) -> str:
        return str(self.manifest["target"])

    def part(self, name: str) -> Path | None:
        """The file of a part (``image_encoder``, ``mask_decoder``), or None where the bundle has none."""
        file = self.manifest["parts"].get(name, {}).get("file")
        return None if file is None else self.path / file

    def read_json(self, name: str) -> Any:
        """A JSON file of the bundle, or None where it has not been written."""
        path = self.path / name
        return json.loads(path.read_text()) if path.exists() else None

    def write_json(self, name: str, value: Any) -> None:
        """Write one of the unhashed files, atomically. Raises OutputError where the disk refuses."""
        assert name in UNHASHED
        partial = self.path / f".{name}.{secrets.token_hex(4)}"
        try:
            partial.write_text(dump_json(value))
            partial.replace(self.path / name)
        except OSError as e:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise OutputError(f"cannot write {self.path / name}: {e.strerror}") from e


def dump_json(value: Any) -> str:
    """JSON with sorted keys and a final newline: the same bytes for the same value."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def open_bundle(path: str | Path) -> Bundle:
    """Read a bundle's manifest. Raises BundleError for a folder that is none, or of a newer schema."""
    folder = Path(path)
    file = folder / MANIFEST
    if not file.is_file():
        what = f"it has no {MANIFEST}; an interrupted build leaves none"
        if not folder.is_dir():
            what = "a file; give the folder that it lies in" if folder.exists() else "no such folder"
        raise BundleError(f"{folder} is not a bundle: {what}")
    try:
        manifest = json.loads(file.read_text())
    except (OSError, ValueError) as e:
        raise BundleError(f"{file} is not readable: {e}; build the bundle again") from e
    if not _is_manifest(manifest):
        raise BundleError(f"{file} is not a manifest of edgesam-deploy; build the bundle again")
    if manifest["schema"] > SCHEMA:
        raise BundleError(f"{file} has schema {manifest['schema']}, newer than this version reads ({SCHEMA}); upgrade")
    return Bundle(folder, manifest)


def _is_manifest(value: Any) -> bool:
    """Whether what every reader of a manifest relies on is there."""
    if not isinstance(value, dict) or not isinstance(value.get("schema"), int):
        return False
    if value["schema"] > SCHEMA:
        return True  # the caller says to upgrade
    tables = [value.get(key) for key in ("parts", "files", "contract", "weights", "options")]
    if not isinstance(value.get("target"), str) or not all(isinstance(table, dict) for table in tables):
        return False
    parts, files = value["parts"].values(), value["files"].values()
    return all(isinstance(p, dict) and isinstance(p.get("file"), str) for p in parts) and all(
        isinstance(f, dict) and {"sha256", "bytes"} <= f.keys() for f in files
    )


def verify(path: str | Path) -> Bundle:
    """Re-hash a bundle. Raises BundleError naming each file that is missing, changed or unknown."""
    bundle = open_bundle(path)
    problems = []
    if _self_hash(bundle.manifest) != bundle.manifest.get("manifest_sha256"):
        problems.append(f"{MANIFEST}: edited after the build")
    for name, entry in bundle.manifest["files"].items():
        file = bundle.path / name
        if not file.is_file():
            problems.append(f"{name}: missing")
        elif file.stat().st_size != entry["bytes"]:
            problems.append(f"{name}: {file.stat().st_size} bytes instead of {entry['bytes']}")
        elif sha256_of(file) != entry["sha256"]:
            problems.append(f"{name}: contents changed")
    problems += [f"{name}: not part of the bundle" for name in _strangers(bundle)]
    if problems:
        raise BundleError(f"{bundle.path} does not match its manifest: {'; '.join(problems)}")
    return bundle


def _strangers(bundle: Bundle) -> list[str]:
    """Files in the folder that no command of this project wrote."""
    ours = {MANIFEST, *UNHASHED, *bundle.manifest["files"]}
    files = (p for p in bundle.path.rglob("*") if p.is_file() and not _is_engine(bundle.path, p))
    return sorted(name for p in files if (name := p.relative_to(bundle.path).as_posix()) not in ours)


def _is_engine(folder: Path, path: Path) -> bool:
    """Whether a file lies where a device's engines do. They say themselves which artifact they were made of."""
    return path.relative_to(folder).parts[0] == ENGINES


def _self_hash(manifest: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in manifest.items() if key != "manifest_sha256"}
    return hashlib.sha256(dump_json(rest).encode()).hexdigest()


def check_output(out: Path, *, overwrite: bool) -> None:
    """Raise OutputError unless ``out`` may be written: it is free, empty, or a bundle that may be replaced."""
    if out.is_file() or (out.is_symlink() and not out.exists()):
        raise OutputError(f"{out} is a file; --out names a folder")
    if out.exists() and any(out.iterdir()):
        if not (out / MANIFEST).is_file():
            raise OutputError(f"{out} holds files that are not a bundle; choose another --out, nothing was touched")
        if not overwrite:
            raise OutputError(f"{out} holds a bundle already; pass --overwrite to replace it")
        try:
            strangers = _strangers(open_bundle(out))
        except BundleError as e:
            raise OutputError(
                f"{out} holds a bundle that cannot be read ({e}); delete it or choose another --out"
            ) from e
        if strangers:
            raise OutputError(
                f"{out} holds files of yours ({', '.join(strangers[:3])}); move them away before replacing the bundle"
            )
    parent = next(p for p in out.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(out if out.exists() else parent, os.W_OK):
        raise OutputError(f"cannot write to {parent}; choose another --out")


@contextlib.contextmanager
def draft(out: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A folder to write a bundle into; becomes ``out`` when the block ends well, and is removed when it does not.

    Raises OutputError where the disk is full or read-only.
    """
    out = out.resolve()  # a link stays a link: what it points to is replaced
    with _os_errors(out):
        _sweep(out)
    check_output(out, overwrite=overwrite)
    made = [parent for parent in out.parents if not parent.exists()]  # deepest first
    with _os_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = out.parent / f".{out.name}.{os.getpid()}.{secrets.token_hex(4)}.partial"
        folder.mkdir()
    try:
        with _os_errors(out):
            yield folder
            check_output(out, overwrite=overwrite)  # something may have come while we were building
            _publish(folder, out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()  # only if it is empty


def _publish(folder: Path, out: Path) -> None:
    if not out.exists():
        folder.rename(out)
        return
    if not any(out.iterdir()):
        _fill(folder, out)
        return
    old = folder.with_suffix(".replaced")
    out.rename(old)
    try:
        folder.rename(out)
    except OSError:
        old.rename(out)  # the old bundle stays
        raise
    shutil.rmtree(old, ignore_errors=True)


def _fill(folder: Path, out: Path) -> None:
    """Move the draft into a folder that is there and empty, which may be a mount point; the manifest goes last."""
    try:
        for path in sorted(folder.iterdir(), key=lambda p: (p.name == MANIFEST, p.name)):
            shutil.move(path, out / path.name)
    except BaseException:
        for path in out.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        raise


def _sweep(out: Path) -> None:
    """Remove drafts that a killed build left behind; a bundle that it had moved aside comes back."""
    for aside in out.parent.glob(f".{out.name}.*.replaced"):
        pid = aside.name.split(".")[-3]
        if pid.isdigit() and not _alive(int(pid)):
            shutil.rmtree(aside, ignore_errors=True) if out.exists() else aside.rename(out)
    for stale in out.parent.glob(f".{out.name}.*.partial"):
        pid = stale.name.split(".")[-3]
        if pid.isdigit() and not _alive(int(pid)):
            shutil.rmtree(stale, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextlib.contextmanager
def _os_errors(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutputError(f"no space left to write {out}; nothing was left behind") from e
        if e.errno in (errno.EACCES, errno.EBUSY, errno.EROFS, errno.EPERM):
            raise OutputError(f"cannot write {out}: {e.strerror}; choose another --out") from e
        raise


def hashed(folder: Path, known: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """SHA-256 and size of every file of a draft that is part of the bundle, by name; ``known`` ones are not read."""
    names = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in UNHASHED and not _is_engine(folder, path)
    }
    found = dict(known or {})
    rest = {name: path for name, path in names.items() if name not in found}
    return found | {name: {"sha256": sha256_of(path), "bytes": path.stat().st_size} for name, path in rest.items()}


def write_manifest(folder: Path, content: Mapping[str, Any], known: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Hash every file of a draft but those ``known``, and write its manifest, last. ``content`` is what the build says
    of itself.
    """
    manifest: dict[str, Any] = {"schema": SCHEMA, **content, "files": hashed(folder, known)}
    manifest["manifest_sha256"] = _self_hash(manifest)
    (folder / MANIFEST).write_text(dump_json(manifest))
    return manifest
