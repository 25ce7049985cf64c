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
        raise CheckpointError(f"{_shown(str(source))}: cannot be read: {e}") from e
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
        reason = _shown(str(e).split("WeightsUnpickler error: ")[-1].strip().split("\n")[0], 160)
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
    return f"is a text file, not a checkpoint; it begins with {_shown(text, 60)!r}"


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
        f"{_listed([*names])}: refused, not loaded. This pickle asks to import "
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
            raise CheckpointError(f"{source}: is a zip archive, but no checkpoint (no data.pkl): {_listed(names)}")
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
        raise CheckpointError(f"{source}: holds no tensors; its keys: {_listed([*entries])}")
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
                step = _shown(str(key), 40) if isinstance(key, str | int) else "?"
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
        notes.append(f"left out what is not a tensor: {_listed(others)}")
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
        raise CheckpointError(f"{source}: {_shown(name)} is a {type(value).__name__}, not a plain tensor")
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
    raise CheckpointError(f"{source}: {_shown(name)} {problem}")


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
        raise CheckpointError(f"{source}: not finite: {_listed(bad)}; the training diverged or the file is damaged")
    notes += [f"converted {count} tensors from {dtype} to float32" for dtype, count in sorted(changed.items())]
    return result


def _shown(text: str, length: int = 120) -> str:
    """``text`` fit for a terminal: names come from the file, and could carry control codes."""
    text = text if text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= length else text[: length - 1] + "…"


def _listed(names: Collection[object], few: int = FEW) -> str:
    """The first few of ``names`` and how many more there are; values that are not text are named by their type."""
    first = [_shown(str(n)) if isinstance(n, str | int) else f"a {type(n).__name__}" for n in names][:few]
    return ", ".join(first or ["nothing"]) + (f" and {len(names) - few:,} more" if len(names) > few else "")


# ---------------------------------------------------------------------------------------------------------------------
# Loading


def load_strict(module: nn.Module, tensors: Mapping[str, Tensor], *, where: str) -> None:
    """Copy ``tensors`` into ``module``: every name, every shape, or nothing.

    Only batch-norm's ``num_batches_tracked`` may be absent, and then everywhere: some exporters drop them, and with a
    fixed momentum nothing depends on them. Raises CheckpointError that begins with ``where`` and lists what is
    missing, unexpected or of another shape by room; the module is then as it was.
    """
    expected = module.state_dict()
    assert not any(tensor.is_meta for tensor in expected.values()), "copying into meta tensors would do nothing"
    state = dict(tensors)
    counters = [name for name in expected if name.endswith("num_batches_tracked")]
    if counters and not any(name.endswith("num_batches_tracked") for name in tensors):
        state.update({name: torch.zeros_like(expected[name]) for name in counters})
        log.info("%s: has no num_batches_tracked; %d counters start at 0", where, len(counters))
    difference = _difference(expected, state)
    if difference:
        found = recognise(tensors)
        looks = f"the file looks like {found.model}: {found.note}" if found.model else found.note
        raise CheckpointError(f"{where}: does not fit this model: {difference}\n  {looks}")
    module.load_state_dict(state)


def _difference(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """Counts of what differs, then per room the first few names; empty when everything fits."""
    rows = [("missing", name, f" {tuple(expected[name].shape)}") for name in expected if name not in found]
    rows += [("unexpected", name, f" {tuple(found[name].shape)}") for name in found if name not in expected]
    for name in expected.keys() & found.keys():
        want, have = expected[name], found[name]
        if want.shape != have.shape:
            rows.append(("wrong shape", name, f": expected {tuple(want.shape)}, found {tuple(have.shape)}"))
        elif want.is_floating_point() != have.is_floating_point():
            rows.append(("wrong type", name, f": expected {want.dtype}, found {have.dtype}"))
    if not rows:
        return ""
    lines = [_counts(rows)]
    for room in sorted({name.split(".")[0] for _, name, _ in rows}):
        inside = [row for row in sorted(rows) if row[1].split(".")[0] == room]
        lines.append(f"  {_shown(room)}: {_counts(inside)}")
        for kind in sorted({row[0] for row in inside}):
            same = [_shown(name) + detail for k, name, detail in inside if k == kind]
            lines += [f"    {kind:<11} {text}" for text in same[:FEW]]
            lines += [f"    {kind:<11} … and {len(same) - FEW} more"] if len(same) > FEW else []
    return "\n".join(lines)


def _counts(rows: list[tuple[str, str, str]]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(Counter(row[0] for row in rows).items()))


# ---------------------------------------------------------------------------------------------------------------------
# Recognition

RepLayout = Literal["original", "dyt_fork"]
Shapes = Mapping[str, tuple[int, ...]]

REPVIT_SIZES = {(48, 26): "m1", (64, 24): "m2", (64, 34): "m3"}  # (stem channels, blocks)
VIT_SIZES = {(768, 12): "vit_b", (1024, 24): "vit_l", (1280, 32): "vit_h"}  # (width, blocks)
EDGE_SAM = {  # (DyT in the neck, DyT in the decoder, HQ decoder)
    (False, False, False): "edge_sam",
    (True, False, False): "edge_sam_dyt_frozen_mask",
    (True, True, False): "edge_sam_dyt",
    (True, True, True): "edge_sam_dyt_hq",
}
REPVIT_NAMES = {"repvit_m1", "repvit_m2", "repvit_m3", "repvit_m1_dyt"}
EDGE_SAM_NAMES = {*EDGE_SAM.values(), "edge_sam_m2", "edge_sam_m3"}


@dataclass(frozen=True)
class Recognised:
    """Which model a set of tensors belongs to, from names and shapes alone.

    ``model`` is its name in the registry, None where there is none that fits. ``rep_layout`` is how RepViT's depthwise
    pairs are stored: "original" (``conv1.c`` and ``conv1.bn``) or "dyt_fork" (a plain ``conv1`` and an outer ``bn``);
    None for other encoders and for pairs that are folded already. ``prefixed``: the image encoder's names begin with
    ``image_encoder.``.
    """

    model: str | None
    rep_layout: RepLayout | None
    encoder_only: bool
    prefixed: bool
    note: str


def recognise(tensors: Mapping[str, Tensor]) -> Recognised:
    """The model that ``tensors`` (their values are not read) are of, by the features that tell the layouts apart."""
    shapes: Shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if any(name.startswith("mask_decoder.cls_upscaling.") for name in shapes):
        return _recognise_cwsam(shapes)
    prefixed = any(name.startswith("image_encoder.") for name in shapes)
    encoder = _room(shapes, "image_encoder.") if prefixed else shapes
    rest = {name: shape for name, shape in shapes.items() if not name.startswith("image_encoder.")} if prefixed else {}
    for recogniser, key in (
        (_recognise_repvit, "features.0.0.c.weight"),
        (_recognise_vit, "patch_embed.proj.weight"),
        (_recognise_tiny_vit, "patch_embed.seq.0.c.weight"),
    ):
        if key in encoder:
            return recogniser(encoder, rest, prefixed)
    return Recognised(None, None, False, prefixed, _unknown(shapes))


def _recognise_repvit(encoder: Shapes, rest: Shapes, prefixed: bool) -> Recognised:
    size = REPVIT_SIZES.get((_dim(encoder, "features.0.2.c.weight"), _blocks(encoder, "features") - 1))
    decoder = _room(rest, "mask_decoder.")
    layout = _rep_layout(encoder)
    neck = "fused neck" if "fuse_stage2.weight" in encoder else "neck on the last stage alone"
    dyt, hq = "neck.1.alpha" in encoder, "hf_token.weight" in decoder
    stored = f"{layout or 'already folded'} RepVGGDW layout"
    note = f"RepViT {size or 'of unknown size'}, {stored}, {neck}{', DyT' if dyt else ''}"
    if "neck.0.weight" not in encoder:
        note = f"a RepViT {size or ''} backbone without EdgeSAM's neck, as trained on ImageNet"
        return Recognised(None, layout, not rest, prefixed, note)
    if not rest:
        name = f"repvit_{size}{'_dyt' if dyt else ''}"
        note += "; image encoder alone"
        return Recognised(name if name in REPVIT_NAMES else None, layout, True, prefixed, note)
    if not decoder:
        return Recognised(None, layout, False, prefixed, f"{note}; without a mask decoder")
    family = EDGE_SAM.get((dyt, _has_dyt(decoder), hq))
    name = f"{family}{'' if size == 'm1' else f'_{size}'}"
    note += f"; {'DyT' if _has_dyt(decoder) else 'LayerNorm'} {'HQ ' if hq else ''}mask decoder" + _extras(rest)
    return Recognised(name if name in EDGE_SAM_NAMES else None, layout, False, prefixed, note)


def _recognise_vit(encoder: Shapes, rest: Shapes, prefixed: bool) -> Recognised:
    width, blocks = _dim(encoder, "patch_embed.proj.weight"), _blocks(encoder, "blocks")
    name = VIT_SIZES.get((width, blocks))
    hq = "mask_decoder.hf_token.weight" in rest
    note = f"SAM's ViT, width {width}, {blocks} blocks"
    if (grid := _dim(encoder, "pos_embed", 1)) not in (0, 64):
        note += f", for {16 * grid} pixels"
    if not rest:
        return Recognised(name, None, True, prefixed, f"{note}; image encoder alone")
    if not _room(rest, "mask_decoder."):
        return Recognised(None, None, False, prefixed, f"{note}; without a mask decoder")
    note += f"; {'HQ ' if hq else ''}mask decoder" + _extras(rest)
    return Recognised(f"sam_hq_{name}" if hq and name else name, None, False, prefixed, note)


def _recognise_tiny_vit(encoder: Shapes, rest: Shapes, prefixed: bool) -> Recognised:
    if not rest:
        return Recognised("sam_hq_vit_tiny", None, True, prefixed, "TinyViT; image encoder alone")
    if "mask_decoder.hf_token.weight" in rest:
        return Recognised("sam_hq_vit_tiny", None, False, prefixed, "TinyViT; HQ mask decoder" + _extras(rest))
    return Recognised(None, None, False, prefixed, "TinyViT with SAM's plain mask decoder, as in MobileSAM")


def _recognise_cwsam(shapes: Shapes) -> Recognised:
    """CWSAM's three families differ in what stands for the MLP: groups of experts, flat experts, or an MLP."""
    encoder, decoder = _room(shapes, "image_encoder."), _room(shapes, "mask_decoder.")
    gate = next((name for name in encoder if name.endswith(".mlp.gate.weight")), None)
    if any(".mlp.group_router." in name for name in encoder):
        name, mlp = "cwsam_h10b", "hierarchical experts"
    elif gate is not None:
        name, mlp = "cwsam_moe3b", f"{_dim(encoder, gate)} experts"
    else:
        name, mlp = "cwsam_vitb", "dense MLPs"
    width, blocks = _dim(encoder, "patch_embed.proj.weight"), _blocks(encoder, "blocks")
    # the class head's channels are (class, channel of the upscaled features)
    classes = _dim(decoder, "cls_upscaling.3.bias") // max(1, _dim(decoder, "output_upscaling.3.bias"))
    note = f"CWSAM, width {width}, {blocks} blocks, {mlp}, {classes} classes"
    return Recognised(name, None, False, True, note)


def _room(shapes: Shapes, prefix: str) -> Shapes:
    return {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}


def _dim(shapes: Shapes, name: str, axis: int = 0) -> int:
    """The size of one axis, 0 where there is none."""
    return (*shapes.get(name, ()), 0, 0)[axis]


def _blocks(encoder: Shapes, name: str) -> int:
    """How many entries the list ``name`` has."""
    indices = [key.split(".")[1] for key in encoder if key.startswith(f"{name}.")]
    return 1 + max((int(i) for i in indices if i.isdecimal() and len(i) < 6), default=-1)


def _rep_layout(encoder: Shapes) -> RepLayout | None:
    if any(name.endswith("token_mixer.0.conv1.c.weight") for name in encoder):
        return "original"
    return "dyt_fork" if any(name.endswith("token_mixer.0.conv1.weight") for name in encoder) else None


def _has_dyt(decoder: Shapes) -> bool:
    return any(name.endswith(".alpha") for name in decoder)


def _extras(rest: Shapes) -> str:
    """What lies beside the model and keeps it from loading as it is."""
    lora = sum(name.endswith(".lora_A") for name in rest)
    heads = any(name.startswith(("rpn_head.", "fpn.")) for name in rest)
    text = f"; {lora} LoRA pairs not merged (weight += lora_B @ lora_A / rank first)" if lora else ""
    return text + ("; with a region-proposal head, which is not part of the model" if heads else "")


def _unknown(shapes: Shapes) -> str:
    rooms = {name.split(".")[0] for name in shapes}
    if "vision_encoder" in rooms:
        return "SAM in the layout of Hugging Face transformers; take the checkpoint that its authors published"
    if rooms & {"iou_token", "mask_tokens", "point_embeddings"} or (
        rooms and rooms <= {"mask_decoder", "prompt_encoder"}
    ):
        return "a mask decoder or prompt encoder without an image encoder"
    return f"no model of this family: the names begin with {_listed(sorted(rooms))}"


def wrong_model_message(recognised: Recognised, asked: str, *, source: str | Path = "...") -> str:
    """What to say when a file recognised as one model was given for ``asked``: what it is and how to use it."""
    model, note = recognised.model, recognised.note
    if model is None:
        return f"this file is not {asked}, nor another model known here: {note}"
    use = f"edgesam-deploy build {model} --checkpoint {source}"
    if recognised.encoder_only:
        alone = f", or build the encoder alone with: {use}" if model in REPVIT_NAMES else ""
        return f"this file holds an image encoder alone ({note}); {asked} needs a full checkpoint{alone}"
    if model == asked:
        return f"this file looks like {model}, as asked, but does not fit: {note}"
    return f"this file looks like {model} ({note}), not {asked}; build it with: {use}"
