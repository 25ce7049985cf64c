"""Reading checkpoints without running them, and strict loading.

One file, above the usual length: every test feeds one reader with one more kind of hostile or damaged file.
"""

from __future__ import annotations

import argparse
import builtins
import functools
import gzip
import hashlib
import importlib
import io
import itertools
import os
import pickle
import subprocess
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model.test_layouts import layout
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from edgesam_deploy.errors import CheckpointError
from edgesam_deploy.model import checkpoint
from edgesam_deploy.model.checkpoint import read_checkpoint
from edgesam_deploy.model.strict import load_strict


def weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "image_encoder.neck.0.weight": torch.randn(4, 3, 1, 1, generator=generator),
        "image_encoder.bn.running_mean": torch.randn(4, generator=generator),
        "image_encoder.bn.num_batches_tracked": torch.tensor(7),
    }


def saved(tree: object, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(tree, buffer, **options)
    return buffer.getvalue()


def legacy(tree: object) -> bytes:
    return saved(tree, _use_new_zipfile_serialization=False)


def read(folder: Path, content: bytes) -> checkpoint.Checkpoint:
    path = folder / "weights.pth"
    path.write_bytes(content)
    return read_checkpoint(path)


def refusal(folder: Path, content: bytes) -> str:
    """The message with which ``content`` is refused; every one names the file first."""
    with pytest.raises(CheckpointError) as caught:
        read(folder, content)
    message = str(caught.value)
    assert message.startswith(f"{folder / 'weights.pth'}: ")
    assert message.isprintable()
    return message


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()  # safetensors has an order of its own
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


# ---------------------------------------------------------------------------------------------------------------------
# Formats


def with_prefix(prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in weights().items()}


@pytest.mark.parametrize(
    ("make", "wrapper", "note"),
    [
        (lambda: saved(weights()), "flat", None),
        (lambda: saved(OrderedDict(weights())), "flat", None),
        (lambda: saved({name: nn.Parameter(t, t.is_floating_point()) for name, t in weights().items()}), "flat", None),
        (lambda: saved({"model": weights()}), "model", None),
        (lambda: saved({"state_dict": weights(), "epoch": 3}), "state_dict", None),
        (lambda: saved({"model_state_dict": weights()}), "model_state_dict", None),
        (lambda: legacy(weights()), "flat", "legacy"),
        (lambda: legacy({"model": weights()}), "model", "legacy"),
        (lambda: saved(with_prefix("module.")), "flat", "data-parallel"),
        (lambda: saved({"model": with_prefix("module.")}), "model", "data-parallel"),
        (lambda: saved({"model": with_prefix("module._orig_mod.")}), "model", "torch.compile"),
        (lambda: saved(weights() | {"epoch": 3, "note": "x"}), "flat", "not a tensor: epoch, note"),
        (lambda: safetensors_bytes(weights()), "safetensors", None),
        (lambda: safetensors_bytes(weights(), {"format": "pt"}), "safetensors", None),
        (lambda: safetensors_bytes(with_prefix("module.")), "safetensors", "data-parallel"),
    ],
)
def test_formats(tmp_path: Path, make: Callable[[], bytes], wrapper: str, note: str | None) -> None:
    content = make()
    found = read(tmp_path, content)
    assert_same(found.tensors, weights())
    assert found.wrapper == wrapper
    assert found.source == tmp_path / "weights.pth"
    assert found.sha256 == hashlib.sha256(content).hexdigest()
    assert (not found.notes) if note is None else (note in "; ".join(found.notes))


def test_a_prefix_that_not_all_names_have_stays(tmp_path: Path) -> None:
    tensors = {"module.weight": torch.ones(2), "bias": torch.ones(2)}
    assert list(read(tmp_path, saved(tensors)).tensors) == ["module.weight", "bias"]


def test_re_zipped_with_compression(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(saved(weights()))) as old,
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert_same(read(tmp_path, buffer.getvalue()).tensors, weights())


def test_tensors_saved_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    content = saved({"model": weights()}), legacy({"model": weights()})
    monkeypatch.undo()
    for written in content:
        assert b"cuda:0" in written
        assert_same(read(tmp_path, written).tensors, weights())


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "w.pth").write_bytes(saved(weights()))
    assert_same(read_checkpoint("~/w.pth").tensors, weights())


@contextmanager
def fake_yacs() -> Iterator[type]:
    """A module ``yacs.config`` for as long as a checkpoint is written, with a CfgNode built like the real one."""

    class CfgNode(dict[str, Any]):
        def __init__(self, tree: dict[str, Any]) -> None:
            super().__init__({k: CfgNode(v) if isinstance(v, dict) else v for k, v in tree.items()})
            self.__dict__["__immutable__"] = True
            self.__dict__["__deprecated_keys__"] = {"OLD"}
            self.__dict__["__renamed_keys__"] = {}

    CfgNode.__module__, CfgNode.__qualname__ = "yacs.config", "CfgNode"
    config = types.ModuleType("yacs.config")
    config.CfgNode = CfgNode  # type: ignore[attr-defined]
    sys.modules.update({"yacs": types.ModuleType("yacs"), "yacs.config": config})
    try:
        yield CfgNode
    finally:
        del sys.modules["yacs"], sys.modules["yacs.config"]


@pytest.mark.parametrize("save", [saved, legacy])
def test_checkpoint_of_a_training_run(tmp_path: Path, save: Callable[[object], bytes]) -> None:
    """What EdgeSAM's scripts write as ckpt_epoch_N.pth."""
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    with fake_yacs() as cfg_node:
        content = save(
            {
                "model": weights(),
                "optimizer": optimizer.state_dict(),
                "lr_scheduler": {"t_initial": 10, "base_values": [1e-3], "update_groups": True, "noise_range_t": None},
                "scaler": {"scale": 65536.0, "_growth_tracker": 0},
                "max_accuracy": np.float64(0.25),
                "curve": np.arange(3.0),
                "epoch": 9,
                "args": argparse.Namespace(cfg="a.yaml", output=Path("out"), rank=np.int64(0)),
                "config": cfg_node({"MODEL": {"TYPE": "rep_vit_m1", "DEPTHS": [1, 2], "NECK": {"FUSE": True}}}),
            }
        )
    found = read(tmp_path, content)
    assert "yacs" not in sys.modules
    assert_same(found.tensors, weights())
    assert found.wrapper == "model"


def test_nothing_stays_on_torchs_list_of_safe_globals(tmp_path: Path) -> None:
    before = set(torch.serialization.get_safe_globals())
    read(tmp_path, saved(weights()))
    refusal(tmp_path, saved(nn.Linear(1, 1)))
    assert set(torch.serialization.get_safe_globals()) == before


# ---------------------------------------------------------------------------------------------------------------------
# Hostile files


class Calls:
    """Pickles as a call of ``function``."""

    def __init__(self, function: Callable[..., object], *args: object) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.function, self.args


def touch(path: str) -> None:
    Path(path).touch()


PAYLOADS: dict[str, tuple[Callable[[str], Calls], str]] = {
    "system": (lambda marker: Calls(os.system, f"touch {marker}"), "posix.system"),
    "eval": (lambda marker: Calls(builtins.eval, f"open({marker!r}, 'w')"), "builtins.eval"),
    "exec": (lambda marker: Calls(builtins.exec, f"open({marker!r}, 'w')"), "builtins.exec"),
    "open": (lambda marker: Calls(open, marker, "w"), "io.open"),
    "getattr": (lambda marker: Calls(getattr, Path(marker), "touch"), "builtins.getattr"),
    "subprocess": (lambda marker: Calls(subprocess.check_call, ["touch", marker]), "subprocess.check_call"),
    "numpy": (lambda marker: Calls(np.load, marker), "numpy.load"),
    "numpy.save": (lambda marker: Calls(np.save, marker, 1), "numpy.save"),
    "importlib": (lambda marker: Calls(importlib.import_module, "antigravity"), "importlib.import_module"),
    "partial": (lambda marker: Calls(functools.partial, os.system, f"touch {marker}"), "functools.partial"),
    "torch.load": (lambda marker: Calls(torch.load, marker), "torch.serialization.load"),
    "torch.save": (lambda marker: Calls(torch.save, 1, marker), "torch.serialization.save"),
    "own": (lambda marker: Calls(touch, marker), f"{__name__}.touch"),
}
PLACES: dict[str, Callable[[object], object]] = {
    "whole": lambda evil: evil,
    "beside": lambda evil: {"model": weights(), "optimizer": {"state": [evil]}},
    "inside": lambda evil: weights() | {"extra": evil},
}
CONTAINERS: dict[str, Callable[[object], bytes]] = {
    "zip": saved,
    "zip4": lambda tree: saved(tree, pickle_protocol=4),
    "legacy": legacy,
}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("payload", PAYLOADS)
def test_calls_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, payload: str, place: str, container: str
) -> None:
    make, name = PAYLOADS[payload]
    content = CONTAINERS[container](PLACES[place](make(str(tmp_path / "marker"))))
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("a hostile file reached the unpickler"))
    message = refusal(tmp_path, content)
    assert name in message
    assert "refused, not loaded" in message
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("container", ["zip", "legacy"])
@pytest.mark.parametrize("payload", PAYLOADS)
def test_torch_refuses_alone_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, payload: str, container: str) -> None:
    """The second wall, with the first one gone."""
    monkeypatch.setattr(checkpoint, "_plain", lambda name: True)
    evil = PAYLOADS[payload][0](str(tmp_path / "marker"))
    assert "without restriction" not in refusal(tmp_path, CONTAINERS[container](PLACES["beside"](evil)))
    assert not (tmp_path / "marker").exists()


def test_what_the_process_allows_torch_is_still_refused_here(tmp_path: Path) -> None:
    with torch.serialization.safe_globals([touch]):
        message = refusal(tmp_path, saved({"model": weights(), "x": Calls(touch, str(tmp_path / "marker"))}))
    assert f"{__name__}.touch: refused" in message
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("protocol", range(6))
def test_bare_pickles(tmp_path: Path, protocol: int) -> None:
    content = pickle.dumps(Calls(os.system, f"touch {tmp_path / 'marker'}"), protocol)
    assert "posix.system: refused" in refusal(tmp_path, content)
    assert not (tmp_path / "marker").exists()


def archive(**entries: bytes) -> bytes:
    """A zip archive with ``entries`` in one folder, ``_`` for ``.`` in their names."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in entries.items():
            file.writestr(f"archive/{name.replace('_', '.')}", content)
    return buffer.getvalue()


MARKER = b"X\x04\x00\x00\x00echo"  # a harmless argument: these are refused by name, never by what they do


@pytest.mark.parametrize(
    ("program", "name"),
    [
        # protocol 2 by its own word, and STACK_GLOBAL all the same
        (b"\x80\x02\x8c\x05posix\x8c\x06system\x93" + MARKER + b"\x85R.", "posix.system"),
        # names out of the memo, with decoys pushed in between
        (
            b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x940\x8c\x0bcollections0h\x00h\x01\x93" + MARKER + b"\x85R.",
            "posix.system",
        ),
        # the module's name computed by the pickle itself
        (b"\x80\x04c_codecs\nencode\n" + MARKER + b"\x85R\x8c\x06system\x93" + MARKER + b"\x85R.", "?.system"),
        # an attribute path behind an allowed beginning
        (b"\x80\x02ctorch.serialization\nos.system\n" + MARKER + b"\x85R.", "torch.serialization.os.system"),
        (b"\x80\x02ctorch\nos.Storage\n.", "torch.os.Storage"),
        (b"\x80\x02c__builtin__\neval\n" + MARKER + b"\x85R.", "builtins.eval"),
        (b"\x80\x02(iposix\nsystem\n.", "posix.system"),
        (b"\x80\x02\x82\x01.", "copyreg extension 1"),
    ],
)
@pytest.mark.parametrize("wrap", [lambda p: archive(data_pkl=p, version=b"3"), lambda p: p], ids=["zip", "bare"])
def test_tricks(tmp_path: Path, program: bytes, name: str, wrap: Callable[[bytes], bytes]) -> None:
    assert f"{name}: refused, not loaded" in refusal(tmp_path, wrap(program))


def test_what_the_scan_cannot_follow_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = b"\x80\x02c\xff\nx\n0cposix\nsystem\n" + MARKER + b"\x85R."
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("it reached the unpickler"))
    assert "truncated or damaged" in refusal(tmp_path, archive(data_pkl=program, version=b"3"))


def test_methods_put_over_a_tensors_own_are_left_behind(tmp_path: Path) -> None:
    evil = nn.Parameter(torch.ones(2))
    evil.numel = torch.Size  # type: ignore[assignment, method-assign]
    content = saved({"a": evil})
    assert read(tmp_path, content).tensors["a"].numel() == 2


def test_attributes_of_the_dict_are_not_trusted(tmp_path: Path) -> None:
    class Tree:
        def __reduce__(self) -> tuple[object, ...]:
            shadows = dict.fromkeys(("items", "keys", "values", "get", "__iter__"), OrderedDict)
            return OrderedDict, (), shadows, None, iter(weights().items())

    assert_same(read(tmp_path, saved({"model": Tree()})).tensors, weights())
    assert_same(read(tmp_path, saved(Tree())).tensors, weights())


def test_control_codes_do_not_reach_the_terminal(tmp_path: Path) -> None:
    evil = "a\x1b[2J\r\nb" * 50
    for tree in ({evil: torch.tensor([float("nan")])}, {evil: {evil: {evil: torch.ones(1)}}}, {evil: 1}):
        assert len(refusal(tmp_path, saved(tree))) < 1000


def test_shared_and_looping_containers(tmp_path: Path) -> None:
    loop: dict[str, Any] = {}
    loop["self"] = loop
    wide: list[Any] = [0]
    for _ in range(60):
        wide = [wide, wide, wide]
    loop["wide"] = wide
    assert "holds no tensors" in refusal(tmp_path, saved(loop))


def test_archive_that_unpacks_to_more_than_it_is(tmp_path: Path) -> None:
    content = bytearray(archive(data_pkl=b"\x80\x02}.", version=b"3"))
    entry = content.index(b"PK\x01\x02")
    content[entry + 24 : entry + 28] = (0xF0000000).to_bytes(4, "little")  # the directory's word on its size
    assert "unpacks to far more" in refusal(tmp_path, bytes(content))


# ---------------------------------------------------------------------------------------------------------------------
# Files that are no checkpoint, and damage


def zipped(**entries: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in entries.items():
            file.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty (0 bytes)"),
        (b"\x80\x02\x8a\nl", "has only 5 bytes"),
        (b"<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title>", "is a web page"),
        (b"\n<HTML><body>403 Forbidden</body></HTML>", "is a web page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 38\n", "is a git-lfs pointer"),
        (b"Entry not found, or you may not see it", "is a text file"),
        ("Nicht gefunden; später wieder versuchen".encode(), "is a text file"),
        (b'{"error": "Invalid username or password."}', "is a text file"),
        (bytes(range(200, 250)), "begins with the bytes c8 c9 ca cb"),
        (gzip.compress(b"x" * 100), "gzip"),
        (b"\x08\x07\x12\x07pytorch\x1a\x052.13.0", "ONNX"),
        (b"\x1c\0\0\0TFL3" + bytes(20), "TFLite"),
        (b"\x89HDF\r\n\x1a\n" + bytes(20), "HDF5"),
        (b"\x93NUMPY\x01\0" + bytes(20), "NumPy"),
        (pickle.dumps({"a": list(range(20))}, 2), "is a bare pickle"),
        (zipped(), "is a zip archive, but no checkpoint (no data.pkl): nothing"),
        (zipped(**{"edge_sam.pth": b"x"}), "is a zip archive, but no checkpoint (no data.pkl): edge_sam.pth"),
        (archive(data_pkl=b"\x80\x02}.", constants_pkl=b"\x80\x02).", version=b"3"), "is a TorchScript archive"),
    ],
    ids=itertools.count(),  # archives carry the time: their bytes must not become the name of a test
)
def test_what_is_no_checkpoint(tmp_path: Path, content: bytes, says: str) -> None:
    assert says in refusal(tmp_path, content)


def test_paths_that_cannot_be_read(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path, says in (
        (tmp_path / "absent.pth", "no such file"),
        (tmp_path, "is a folder"),
        (fifo, "is not a regular file"),
        (tmp_path / ("x" * 300), "cannot be read"),
    ):
        with pytest.raises(CheckpointError, match=says):
            read_checkpoint(path)


CONTENT = {
    "zip": saved({"model": weights(), "config": [1, "a"], "rate": np.float64(1)}),
    "legacy": legacy({"model": weights(), "config": [1, "a"], "rate": np.float64(1)}),
    "safetensors": safetensors_bytes(weights()),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged")


@pytest.mark.parametrize("container", CONTENT)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_truncated_anywhere(folder: Path, container: str, data: st.DataObject) -> None:
    content = CONTENT[container]
    kept = data.draw(st.integers(0, len(content) - 1))
    message = refusal(folder, content[:kept])
    assert kept < 16 or "truncated or damaged" in message


@pytest.mark.parametrize("container", CONTENT)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_anywhere(folder: Path, container: str, data: st.DataObject) -> None:
    """A wrong byte either goes unnoticed in the numbers or gives a CheckpointError, never another one."""
    content = bytearray(CONTENT[container])
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = read(folder, bytes(content))
    except CheckpointError as e:
        assert str(e).isprintable()
    else:
        assert found.tensors


# ---------------------------------------------------------------------------------------------------------------------
# Tensors


def claims_terabytes() -> dict[str, Tensor]:
    return {"a": torch.zeros(1).expand(10**12)}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: {"a.b": torch.tensor([1.0, float("nan"), float("inf")])}, "not finite: a.b (2 of 3 values)"),
        (lambda: {"a": torch.full((2,), 1e300, dtype=torch.float64)}, "not finite: a (2 of 2 values)"),
        (lambda: {f"n{i}": torch.tensor(float("nan")) for i in range(9)}, "n3 (1 of 1 values) and 5 more"),
        (lambda: {"a": torch.quantize_per_tensor(torch.ones(3), 1.0, 0, torch.qint8)}, "a is torch.qint8"),
        (lambda: {"a": torch.ones(2, dtype=torch.complex64)}, "a is torch.complex64"),
        (lambda: {"a": torch.empty(3, device="meta")}, "a has a shape but no data"),
        (
            lambda: {"a": torch.eye(3).to_sparse()},
            "torch._utils._rebuild_sparse_tensor, torch.serialization._get_layout: refused",
        ),
        (claims_terabytes, "a claims the shape (1000000000000,) over 4 bytes"),
        (lambda: {0: torch.ones(2)}, "a tensor's key is a int"),
        (lambda: torch.ones(2), "holds a single tensor"),
        (lambda: [torch.ones(2)], "holds a list"),
        (lambda: {"epoch": 3, "model": {}}, "holds no tensors; its keys: epoch, model"),
        (lambda: {"a": np.ones(2)}, "holds no tensors"),
        (lambda: {"ema": {"shadow": weights()}, "epoch": 1}, "3 under [ema][shadow]"),
        (lambda: {"model": {"image_encoder": weights()}}, "3 under [model][image_encoder]"),
        (lambda: nn.Linear(2, 2), "torch.nn.modules.linear.Linear: refused"),
    ],
)
def test_what_cannot_be_used(tmp_path: Path, make: Callable[[], object], says: str) -> None:
    assert says in refusal(tmp_path, saved(make()))


def test_pickle_protocol_of_an_honest_file(tmp_path: Path) -> None:
    assert "pickle protocol 4" in refusal(tmp_path, saved(weights(), pickle_protocol=4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
@pytest.mark.parametrize("write", [saved, safetensors_bytes])
def test_floats_become_float32(tmp_path: Path, dtype: torch.dtype, write: Callable[[Any], bytes]) -> None:
    values = torch.tensor([0.5, -2.0])
    found = read(tmp_path, write({"a": values.to(dtype), "b": values.to(dtype), "count": torch.tensor(3)}))
    assert_same(found.tensors, {"a": values, "b": values, "count": torch.tensor(3)})
    assert found.notes == (f"converted 2 tensors from {str(dtype)[6:]} to float32",)


# ---------------------------------------------------------------------------------------------------------------------
# Loading


class Room(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 1)
        self.norm = nn.BatchNorm2d(width)


class Model(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.image_encoder = Room(width)
        self.mask_decoder = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))


def state() -> dict[str, Tensor]:
    return {name: torch.full_like(tensor, 3) for name, tensor in Model().state_dict().items()}


def difference(tensors: dict[str, Tensor]) -> str:
    """How loading ``tensors`` fails; the module must not change."""
    module = Model()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_strict(module, tensors, where="weights.pth")
    assert_same(module.state_dict(), before)
    return str(caught.value)


def test_load_strict() -> None:
    module = Model()
    load_strict(module, state(), where="weights.pth")
    assert_same(module.state_dict(), state())


def test_counters_may_be_absent_altogether(caplog: pytest.LogCaptureFixture) -> None:
    module, tensors = Model(), state()
    del tensors["image_encoder.norm.num_batches_tracked"]
    with caplog.at_level("INFO"):
        load_strict(module, tensors, where="weights.pth")
    assert "weights.pth: has no num_batches_tracked" in caplog.text
    assert_same(module.state_dict(), state() | {"image_encoder.norm.num_batches_tracked": torch.tensor(0)})
    assert "1 missing" in difference(tensors | {"x.num_batches_tracked": torch.tensor(1)})


def test_the_difference_is_readable() -> None:
    tensors = state()
    tensors["image_encoder.conv.weight"] = torch.ones(5, 3, 1, 1)
    tensors["mask_decoder.0.bias"] = torch.ones(2, dtype=torch.int64)
    for i in range(6):
        tensors[f"image_encoder.conv{i}.weight"] = torch.ones(2, 2)
    del tensors["mask_decoder.2.weight"]
    lines = difference(tensors).split("\n")
    assert lines[:12] == [
        "weights.pth: does not fit this model: 1 missing, 6 unexpected, 1 wrong shape, 1 wrong type",
        "  image_encoder: 6 unexpected, 1 wrong shape",
        "    unexpected  image_encoder.conv0.weight (2, 2)",
        "    unexpected  image_encoder.conv1.weight (2, 2)",
        "    unexpected  image_encoder.conv2.weight (2, 2)",
        "    unexpected  image_encoder.conv3.weight (2, 2)",
        "    unexpected  … and 2 more",
        "    wrong shape image_encoder.conv.weight: expected (4, 3, 1, 1), found (5, 3, 1, 1)",
        "  mask_decoder: 1 missing, 1 wrong type",
        "    missing     mask_decoder.2.weight (2, 2)",
        "    wrong type  mask_decoder.0.bias: expected torch.float32, found torch.int64",
        "  no model of this family: the names begin with image_encoder, mask_decoder",
    ]
    assert len(lines) == 12


@pytest.mark.parametrize("name", Model().state_dict())
def test_one_wrong_tensor_leaves_the_module_alone(name: str) -> None:
    wrong = torch.ones((*state()[name].shape, 2), dtype=state()[name].dtype)
    assert f"{name}: expected" in difference(state() | {name: wrong})
    missing = state()
    del missing[name]
    if not name.endswith("num_batches_tracked"):
        assert "1 missing" in difference(missing)


def test_the_difference_says_which_model_the_file_is_of() -> None:
    assert "the file looks like edge_sam_dyt: RepViT m1" in difference(dict(layout("edge_sam_dyt")))
