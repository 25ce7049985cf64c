"""Checkpoints: read without running them, recognised by their keys, loaded strictly.

A pickle is a program, so three walls stand between a file and this process: only two containers reach torch at all
(its zip archive and its legacy stream); every global that their pickles ask for must be on the list below; and torch's
restricted unpickler (``weights_only=True``) reads them, with inert stand-ins for what training scripts leave beside the
weights (yacs' CfgNode, argparse.Namespace, NumPy scalars). The list alone would not do: it trusts the scanner to see
what the unpickler sees. torch alone would not do either: its list is wider and its refusals do not always name names.
"""

from __future__ import annotations

import hashlib
import io
import logging
import pickletools
import re
import threading
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import safetensors.torch
import torch
from torch import Tensor, nn

from edgesam_deploy.errors import CheckpointError

log = logging.getLogger(__name__)

WRAPPERS = ("model", "state_dict", "model_state_dict")  # the keys under which training scripts keep the weights
PREFIXES = {"module.": "data-parallel training", "_orig_mod.": "torch.compile"}
LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # what torch wrote first until 1.6
MAX_PICKLE = 1 << 28  # bytes; that of a 6.8-billion-parameter model has 3 MB
FEW = 4  # how many names a message shows of each sort


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The tensors of one file: float32 or integer, contiguous in memory or not, finite, on the CPU.

    ``wrapper`` is where they lay in it: "flat", one of ``WRAPPERS``, or "safetensors". ``notes`` says what was changed
    or left out on the way.
    """

    tensors: dict[str, Tensor]
    source: Path
    sha256: str
    wrapper: str
    notes: tuple[str, ...] = ()


def read_checkpoint(path: str | Path) -> Checkpoint:
    """The weights in ``path``: safetensors, or what ``torch.save`` wrote, recognised by content.

    Raises CheckpointError for a file that is missing, truncated, hostile, not a checkpoint, or without usable tensors.
    """
    source = Path(path).expanduser()
    with _opened(source) as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        container = _container(file, source)
        if container == "safetensors":
            with _damage_reported(source):
                entries: dict[Any, Any] = dict(safetensors.torch.load_file(source))
            wrapper = "safetensors"
        else:
            entries, wrapper = _unwrapped(_unpickled(file, container, source), source)
    notes = ["legacy (non-zip) torch file"] if container == "legacy" else []
    tensors = _floats(_named_tensors(entries, source, notes), source, notes)
    return Checkpoint(tensors, source, sha256, wrapper, tuple(notes))


def read_tree(path: str | Path) -> object:
    """Everything that ``torch.save`` wrote into ``path``, optimiser state included, behind the same walls; what
    training scripts leave beside it is inert. Raises CheckpointError, also for safetensors, which holds no tree.
    """
    source = Path(path).expanduser()
    with _opened(source) as file:
        container = _container(file, source)
        if container == "safetensors":
            raise CheckpointError(f"{source}: safetensors holds weights alone, no state of a training run")
        return _unpickled(file, container, source)


# ---------------------------------------------------------------------------------------------------------------------
# The file


@contextmanager
def _opened(source: Path) -> Iterator[io.BufferedReader]:
    try:
        if source.is_dir():
            raise CheckpointError(f"{source}: is a folder; give the checkpoint file inside it")
        if source.exists() and not source.is_file():
            raise CheckpointError(f"{source}: is not a regular file")
        file = source.open("rb")
    except FileNotFoundError as e:
        raise CheckpointError(f"{source}: no such file; `edgesam-deploy fetch --list` has names to give instead") from e
    except (OSError, ValueError) as e:
        raise CheckpointError(f"{shown(str(source))}: cannot be read: {e}") from e
    with file:
        yield file


@contextmanager
def _damage_reported(source: Path) -> Iterator[None]:
    try:
        yield
    except CheckpointError:
        raise
    except Exception as e:  # a parser can meet damaged bytes with an exception of any type
        # torch's text advises to load without restriction; only what follows it is about the file
        reason = shown(str(e).split("WeightsUnpickler error: ")[-1].strip().split("\n")[0], 160)
        raise CheckpointError(
            f"{source}: truncated or damaged ({source.stat().st_size:,} bytes; {type(e).__name__}: {reason}); "
            "download or copy it again and compare its size"
        ) from e


def _container(file: io.BufferedReader, source: Path) -> Literal["safetensors", "zip", "legacy"]:
    file.seek(0)
    head = file.read(1024)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    if head.startswith(LEGACY_MAGIC):
        return "legacy"
    # 8 bytes of header length, at most 100 MB by the format's own rule, then JSON
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= 100_000_000:
        return "safetensors"
    raise CheckpointError(f"{source}: {_foreign(file, head)}")


SIGNATURES = (
    (0, b"\x1f\x8b", "is compressed with gzip; unpack it first"),
    (0, b"\xfd7zXZ", "is compressed with xz; unpack it first"),
    (0, b"7z\xbc\xaf", "is a 7z archive; unpack it first"),
    (257, b"ustar", "is a tar archive; unpack it first"),
    (0, b"\x89HDF", "is an HDF5 file, not a PyTorch checkpoint"),
    (0, b"\x93NUMPY", "is a NumPy array, not a PyTorch checkpoint"),
    (0, b"GGUF", "is a GGUF file, not a PyTorch checkpoint"),
    (4, b"TFL3", "is a TFLite model, not a PyTorch checkpoint"),
    (2, b"\x12\x07pytorch", "is an ONNX model, not a PyTorch checkpoint"),
)


def _foreign(file: io.BufferedReader, head: bytes) -> str:
    """What a file is that is no checkpoint, as the rest of a message."""
    if not head:
        return "is empty (0 bytes); download it again"
    for offset, signature, meaning in SIGNATURES:
        if head[offset:].startswith(signature):
            return meaning
    asked = _globals_asked(_pickle_bytes(file), pickles=1).names
    if asked:
        return _refusal(asked)
    if len(head) < 16:
        return f"has only {len(head)} bytes: no checkpoint; download it again"
    if head[0] == 0x80:
        return "is a bare pickle, not a torch checkpoint; save its tensors with torch.save or safetensors"
    try:
        text = head.decode("utf-8", errors="strict" if len(head) < 1024 else "ignore").strip()
    except UnicodeDecodeError:
        text = ""
    if not text or "\0" in text:
        return f"is not a PyTorch or safetensors file (it begins with the bytes {head[:8].hex(' ')})"
    return _foreign_text(text)


def _foreign_text(text: str) -> str:
    if text.startswith("version https://git-lfs.github.com/spec/"):
        return "is a git-lfs pointer, not the weights themselves; run `git lfs pull`, or download the file itself"
    if re.match(r"<(!doctype|html|\?xml)", text, re.IGNORECASE):
        return (
            "is a web page saved under a checkpoint's name (a login, error or virus-scan page); "
            "download the file itself, in a browser if need be"
        )
    return f"is a text file, not a checkpoint; it begins with {shown(text, 60)!r}"


# ---------------------------------------------------------------------------------------------------------------------
# The pickle


class _Inert:
    """Stands in for an object that the weights do not need: swallows its arguments and its state, does nothing."""

    def __new__(cls, *args: object) -> _Inert:
        return object.__new__(cls)

    def __setstate__(self, state: object) -> None:
        pass


class _InertMapping:
    """Stands in for a subclass of dict. The restricted unpickler fills exact dicts only, so it makes one."""

    def __new__(cls, *args: object) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        return OrderedDict()


STAND_INS: dict[str, type] = {
    "yacs.config.CfgNode": _InertMapping,
    "argparse.Namespace": _Inert,
    "pathlib.PosixPath": _Inert,
    "pathlib.WindowsPath": _Inert,
    "numpy.dtype": _Inert,
    "numpy.ndarray": _Inert,
    "numpy.core.multiarray.scalar": _Inert,
    "numpy._core.multiarray.scalar": _Inert,
    "numpy.core.multiarray._reconstruct": _Inert,
    "numpy._core.multiarray._reconstruct": _Inert,
}
PLAIN = STAND_INS.keys() | {
    "collections.OrderedDict",
    "collections.Counter",
    "_codecs.encode",
    "builtins.set",
    "torch.Size",
    "torch.device",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch._utils._rebuild_meta_tensor_no_storage",  # these two load and are then refused with a better message
    "torch._utils._rebuild_qtensor",
}


_LOADING = threading.Lock()  # torch keeps its safe globals per process: one loader leaving would take another's away


def _plain(name: str) -> bool:
    if name in PLAIN or re.fullmatch(r"torch\.(cuda\.|storage\.)?\w+Storage", name):
        return True
    # vars(), not getattr(): torch imports sub-modules on attribute access
    return name.startswith("torch.") and isinstance(vars(torch).get(name[6:]), torch.dtype | torch.qscheme)


def _todays_name(module: str, name: str) -> str:
    """Protocol 2 writes Python 2's names (``__builtin__``); unpicklers read them as today's, and so do we."""
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    return f"{module}.{name}"


@dataclass(frozen=True)
class _Asked:
    names: tuple[str, ...]  # globals, in order of appearance, each once
    protocol: int
    failure: Exception | None = None  # why the scan ended early


def _globals_asked(stream: io.BytesIO, pickles: int) -> _Asked:
    """The globals that the first ``pickles`` pickles in ``stream`` would import, without running them.

    STACK_GLOBAL takes its two names from the stack, so the strings pushed so far and the memo are followed; a name
    that is hidden better than that comes out as "?", which no list allows.
    """
    names: dict[str, None] = {}
    protocol = 0
    try:
        for _ in range(pickles):
            pushed: list[str] = ["?", "?"]
            memo: dict[object, str] = {}
            for opcode, arg, _position in pickletools.genops(stream):
                op = opcode.name
                if op == "PROTO":
                    protocol = max(protocol, cast(int, arg))
                elif op in ("GLOBAL", "INST"):
                    names[_todays_name(*cast(str, arg).split(" ", 1))] = None
                elif op == "STACK_GLOBAL":
                    names[".".join(pushed[-2:])] = None
                    protocol = max(protocol, 4)
                elif op.startswith("EXT"):
                    names[f"copyreg extension {arg}"] = None
                elif op == "MEMOIZE":
                    memo[len(memo)] = pushed[-1]
                elif "PUT" in op:
                    memo[arg] = pushed[-1]
                elif "GET" in op:
                    pushed.append(memo.get(arg, "?"))
                elif "UNICODE" in op or "STRING" in op:
                    pushed.append(arg if isinstance(arg, str) else "?")
                elif op not in ("MARK", "FRAME"):
                    pushed.append("?")
    except Exception as e:  # not a pickle, or a damaged one
        return _Asked(tuple(names), protocol, e)
    return _Asked(tuple(names), protocol)


def _pickle_bytes(file: io.BufferedReader) -> io.BytesIO:
    """The file's beginning in memory: opcodes with absurd lengths then end at once instead of being allocated."""
    file.seek(0)
    return io.BytesIO(file.read(MAX_PICKLE))


def _refusal(names: Collection[str]) -> str:
    return (
        f"{listed([*names])}: refused, not loaded. This pickle asks to import "
        f"{'that' if len(names) == 1 else 'those'}; weights need nothing of the kind. If the file is your own, save "
        "tensors only: torch.save(model.state_dict(), ...) or safetensors"
    )


def _unpickled(file: io.BufferedReader, container: str, source: Path) -> object:
    with _damage_reported(source):
        # legacy files hold five: magic number, version, machine, the object, the storage keys
        streams = _archive_pickles(file, source) if container == "zip" else [_pickle_bytes(file)]
        scans = [_globals_asked(stream, 1 if container == "zip" else 5) for stream in streams]
        refused = [name for scan in scans for name in scan.names if not _plain(name)]
        if refused:
            raise CheckpointError(f"{source}: {_refusal(refused)}")
        for scan in scans:
            if scan.failure is not None:  # what lies behind it has not been looked at
                raise scan.failure
        if any(scan.protocol > 2 for scan in scans):
            raise CheckpointError(
                f"{source}: was saved with pickle protocol {max(s.protocol for s in scans)}, which the restricted "
                "loader does not read; save it again with torch.save's default protocol, or as safetensors"
            )
        file.seek(0)
        stand_ins: list[Any] = [(stand_in, name) for name, stand_in in STAND_INS.items()]
        with _LOADING, torch.serialization.safe_globals(stand_ins):
            return torch.load(file, map_location="cpu", weights_only=True)


def _archive_pickles(file: io.BufferedReader, source: Path) -> list[io.BytesIO]:
    """The ``data.pkl`` entries of torch's zip archive, in memory. Raises CheckpointError for any other archive."""
    file.seek(0)
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        names = [entry.filename for entry in entries]
        size = source.stat().st_size
        if sum(entry.file_size for entry in entries) > 4 * size + (1 << 30):
            raise CheckpointError(f"{source}: unpacks to far more than its {size:,} bytes: refused, not loaded")
        if any(name.split("/", 1)[-1] == "constants.pkl" for name in names):
            raise CheckpointError(
                f"{source}: is a TorchScript archive, a program and not weights; save its tensors where you trust it: "
                "torch.save(torch.jit.load(...).state_dict(), ...)"
            )
        pickles = [entry for entry in entries if entry.filename.split("/")[-1] == "data.pkl"]
        if not pickles:
            raise CheckpointError(f"{source}: is a zip archive, but no checkpoint (no data.pkl): {listed(names)}")
        if any(entry.file_size > MAX_PICKLE for entry in pickles):
            raise CheckpointError(f"{source}: its pickle alone has over {MAX_PICKLE:,} bytes: refused, not loaded")
        return [io.BytesIO(archive.read(entry)) for entry in pickles]


# ---------------------------------------------------------------------------------------------------------------------
# The tensors


def _unwrapped(tree: object, source: Path) -> tuple[dict[Any, Any], str]:
    """The dict that holds the tensors, and the key it lay under."""
    if not isinstance(tree, dict):
        what = "a single tensor" if isinstance(tree, Tensor) else f"a {type(tree).__name__}"
        raise CheckpointError(f"{source}: holds {what}, not a dict of named tensors; save model.state_dict()")
    # dict.items(x), not x.items(): a pickle can give an OrderedDict attributes of its own
    entries = dict(dict.items(tree))
    for key in WRAPPERS:
        inner = entries.get(key)
        if isinstance(inner, dict) and any(isinstance(value, Tensor) for value in dict.values(inner)):
            return dict(dict.items(inner)), key
    if any(isinstance(value, Tensor) for value in entries.values()):
        return entries, "flat"
    places = _places(entries)
    if not places:
        raise CheckpointError(f"{source}: holds no tensors; its keys: {listed([*entries])}")
    where = "; ".join(f"{count} under {place}" for place, count in [*places.items()][:FEW])
    raise CheckpointError(
        f"{source}: its tensors are nested unexpectedly ({where}); expected name -> tensor at the top or under "
        f"{', '.join(WRAPPERS)}. Save that dict alone, with flat names"
    )


def _places(tree: Mapping[Any, Any]) -> dict[str, int]:
    """Path of each nested dict or list that holds tensors -> how many; at most 10,000 containers are looked at."""
    found: dict[str, int] = {}
    queue: list[tuple[str, object]] = [("", tree)]
    seen: set[int] = set()  # a pickle can share and close loops
    while queue and len(seen) < 10_000:
        place, node = queue.pop(0)
        if id(node) in seen:
            continue
        seen.add(id(node))
        children = dict.items(node) if isinstance(node, dict) else enumerate(cast(list[object], node))
        for key, value in children:
            if isinstance(value, Tensor):
                found[place] = found.get(place, 0) + 1
            elif isinstance(value, dict | list | tuple):
                step = shown(str(key), 40) if isinstance(key, str | int) else "?"
                queue.append((f"{place}[{step}]", value))
    return found


def _named_tensors(entries: Mapping[Any, Any], source: Path, notes: list[str]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    others: list[str] = []
    for name, value in entries.items():
        if not isinstance(value, Tensor):
            others.append(str(name) if isinstance(name, str | int) else f"a {type(name).__name__}")
        elif not isinstance(name, str):
            raise CheckpointError(f"{source}: a tensor's key is a {type(name).__name__}, not a name")
        else:
            tensors[name] = _sound(name, value, source)
    if not tensors:
        raise CheckpointError(f"{source}: holds no tensors")
    if others:
        notes.append(f"left out what is not a tensor: {listed(others)}")
    return _stripped(tensors, notes)


def _stripped(tensors: dict[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    while True:
        prefix = next((p for p in PREFIXES if all(name.startswith(p) for name in tensors)), None)
        if prefix is None:
            return tensors
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        notes.append(f"stripped the prefix {prefix!r} of {PREFIXES[prefix]}")


def _sound(name: str, value: Tensor, source: Path) -> Tensor:
    """``value`` as a bare tensor without hooks and attributes. Raises CheckpointError where it has no plain data."""
    if type(value) not in (Tensor, nn.Parameter):
        raise CheckpointError(f"{source}: {shown(name)} is a {type(value).__name__}, not a plain tensor")
    tensor = Tensor.detach(value)  # attributes stay behind: a pickle can put its own over a tensor's methods
    if tensor.is_quantized or tensor.is_complex():
        problem = f"is {tensor.dtype}; float weights are needed, from before it was quantised"
    elif tensor.is_meta:
        problem = "has a shape but no data (it was saved from the meta device)"
    elif tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        # a few bytes with strides of zero can claim terabytes
        problem = f"claims the shape {tuple(tensor.shape)} over {tensor.untyped_storage().nbytes():,} bytes of data"
    else:
        return tensor
    raise CheckpointError(f"{source}: {shown(name)} {problem}")


def _floats(tensors: dict[str, Tensor], source: Path, notes: list[str]) -> dict[str, Tensor]:
    """All floating tensors in float32. Raises CheckpointError for NaN or infinity."""
    changed: Counter[str] = Counter()
    bad: list[str] = []
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.dtype is not torch.float32:
            changed[str(tensor.dtype).removeprefix("torch.")] += 1
            tensor = tensor.to(torch.float32)
        result[name] = tensor
        if tensor.is_floating_point() and not (finite := torch.isfinite(tensor)).all():
            bad.append(f"{name} ({int((~finite).sum()):,} of {tensor.numel():,} values)")
    if bad:
        raise CheckpointError(f"{source}: not finite: {listed(bad)}; the training diverged or the file is damaged")
    notes += [f"converted {count} tensors from {dtype} to float32" for dtype, count in sorted(changed.items())]
    return result


def shown(text: str, length: int = 120) -> str:
    """``text`` fit for a terminal: names come from the file, and could carry control codes."""
    text = text if text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= length else text[: length - 1] + "…"


def listed(names: Collection[object], few: int = FEW) -> str:
    """The first few of ``names`` and how many more there are; values that are not text are named by their type."""
    first = [shown(str(n)) if isinstance(n, str | int) else f"a {type(n).__name__}" for n in names][:few]
    return ", ".join(first or ["nothing"]) + (f" and {len(names) - few:,} more" if len(names) > few else "")
