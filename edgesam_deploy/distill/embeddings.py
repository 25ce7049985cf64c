"""A teacher's image embeddings on disk: computed once, read in every epoch.

Two layouts, in both of which record i of a rank's values belongs to line i of its keys, so that a record counts once
its line is whole, and an interrupted run goes on where it stopped:

    reference  DIR/logits_top256_epoch0/rank0-keys.txt     one name per line
               DIR/logits_top256_epoch0/rank0-values.bin   per record: 4 bytes seed (int32), then float16 (C, h, w)
    checked    DIR/embeddings.json                         shape and teacher
               DIR/rank0-index.jsonl                       {"crc32": ..., "key": ...} per line
               DIR/rank0-values.bin                        per record: float16 (C, h, w), all little endian
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, TextIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgesam_deploy.distill.data.items import Batch, Items
from edgesam_deploy.distill.parallel import Ranks
from edgesam_deploy.distill.state import write_whole
from edgesam_deploy.errors import DataError
from edgesam_deploy.model.sam import Sam

Layout = Literal["checked", "reference"]
META = "embeddings.json"
SEED_BYTES = 4
HALF = np.dtype("<f2")


class EmbeddingWriter:
    """Appends records to one rank's files; what a kill left incomplete is cut off first."""

    def __init__(self, folder: Path, shape: Sequence[int], layout: Layout, *, rank: int = 0, about: str = "") -> None:
        self.shape, self.layout = tuple(shape), layout
        self.folder = folder / f"logits_top{shape[0]}_epoch0" if layout == "reference" else folder
        self.folder.mkdir(parents=True, exist_ok=True)
        if layout == "checked":
            _write_meta(self.folder, self.shape, about)
        names = _files(self.folder, rank, layout)
        size = _record_bytes(self.shape, layout)
        lines = [line for line in _whole_lines(names[0]) if line]
        have = min(len(lines), names[1].stat().st_size // size if names[1].exists() else 0)
        text = "".join(f"{line}\n" for line in lines[:have])
        if not names[0].exists() or names[0].read_text() != text:
            write_whole(names[0], lambda partial: partial.write_text(text))  # a list cut short would cost the values
        with names[1].open("ab") as file:
            file.truncate(have * size)
        self.keys: TextIO = names[0].open("a")
        self.values: BinaryIO = names[1].open("ab")

    def write(self, key: str, embedding: Tensor | NDArray[Any], seed: int = 0) -> None:
        """One record: (C, h, w) in any float type. Raises DataError for another shape, or what half precision cannot
        hold.
        """
        with np.errstate(over="ignore"):  # looked at below
            array = np.ascontiguousarray(np.asarray(embedding, dtype=np.float32).astype(HALF))
        if array.shape != self.shape:
            raise DataError(f"{key}: an embedding of {array.shape}, the files hold {self.shape}")
        if not np.isfinite(array).all():
            raise DataError(f"{key}: the embedding holds NaN or exceeds float16; compute the teacher in fp32")
        data = array.tobytes()
        if self.layout == "reference":
            self.values.write(int(seed).to_bytes(SEED_BYTES, "little", signed=True))
        self.values.write(data)
        self.values.flush()
        line = key if self.layout == "reference" else json.dumps({"crc32": zlib.crc32(data), "key": key})
        self.keys.write(line + "\n")
        self.keys.flush()

    def close(self) -> None:
        self.keys.close()
        self.values.close()


class EmbeddingReader(Mapping[str, NDArray[np.float16]]):
    """Name -> float16 (C, h, w), from every rank's files of a folder in either layout; checksums are compared at each
    read.
    """

    def __init__(self, folder: Path, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)
        self.folder, self.layout = _recognised(folder, self.shape)
        self.places: dict[str, tuple[Path, int, int | None]] = {}
        size = _record_bytes(self.shape, self.layout)
        pattern = "rank*-index.jsonl" if self.layout == "checked" else "rank*-keys.txt"
        for keys in sorted(self.folder.glob(pattern)):
            values = keys.with_name(keys.name.split("-")[0] + "-values.bin")
            held = values.stat().st_size // size if values.is_file() else 0
            for index, line in enumerate(_whole_lines(keys)[:held]):
                key, crc = _line(line, self.layout, keys)
                self.places.setdefault(key, (values, index * size, crc))
        if not self.places:
            raise DataError(f"{self.folder}: holds no embeddings; write them with `edgesam-deploy embed`")

    def __getitem__(self, key: str) -> NDArray[np.float16]:
        if key not in self.places:
            raise DataError(
                f"{self.folder}: no embedding of {key!r} among {len(self.places)}; `edgesam-deploy embed` adds it"
            )
        values, offset, crc = self.places[key]
        skipped = SEED_BYTES if self.layout == "reference" else 0
        count = int(np.prod(self.shape))
        array = np.fromfile(values, dtype=HALF, count=count, offset=offset + skipped)
        if crc is not None and zlib.crc32(array.tobytes()) != crc:
            raise DataError(f"{values}: the embedding of {key!r} is damaged (its checksum differs); write it again")
        return array.reshape(self.shape)

    def seed(self, key: str) -> int | None:
        """What the reference stored before the record, which no augmentation of its reads; None in the other layout."""
        values, offset, _ = self.places[key]
        if self.layout == "checked":
            return None
        with values.open("rb") as file:
            file.seek(offset)
            return int.from_bytes(file.read(SEED_BYTES), "little", signed=True)

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)

    def batch(self, batch: Batch) -> Tensor:
        """(B, C, h, w) float32 of a batch's pictures, on its device."""
        stacked = np.stack([self[name] for name in batch.names])
        return torch.from_numpy(stacked).to(batch.images.device).float()


def embed(
    teacher: Sam, items: Items, folder: Path, layout: Layout, ranks: Ranks, *, batch_size: int = 1
) -> Iterator[tuple[int, int]]:
    """Write the embeddings of all items that have none yet; yields how many of this rank's are written, and how many
    were left out since they cannot be read.
    """
    size = teacher.image_size // 16
    shape = (teacher.config.embed_dim, size, size)
    done = written(folder, shape)
    ranks.wait()  # nobody writes while another still looks at what is there
    todo = [i for i, name in enumerate(items.source.names[: len(items)]) if name not in done][ranks.rank :: ranks.world]
    writer = EmbeddingWriter(folder, shape, layout, rank=ranks.rank, about=str(teacher.weights))
    made = broken = 0
    try:
        for start in range(0, len(todo), batch_size):
            chosen = [items[i] for i in todo[start : start + batch_size]]
            usable = [item for item in chosen if not item.broken]  # a stand-in is embedded under its own name
            if usable:
                images = torch.stack([item.image for item in usable]).to(ranks.device)
                with torch.no_grad():
                    found = teacher.image_encoder(images).float().cpu()
                for item, embedding in zip(usable, found, strict=True):
                    writer.write(item.name, embedding)
            made, broken = made + len(usable), broken + len(chosen) - len(usable)
            yield made, broken
    finally:
        writer.close()


def written(folder: Path, shape: Sequence[int]) -> set[str]:
    """The names that have an embedding in ``folder``."""
    try:
        return set(EmbeddingReader(folder, shape))
    except DataError:
        if any(folder.glob("**/rank*-values.bin")):
            _recognised(folder, tuple(shape))  # of another shape: that is an error
        return set()


def _recognised(folder: Path, shape: tuple[int, ...]) -> tuple[Path, Layout]:
    meta = folder / META
    if meta.is_file():
        try:
            held = tuple(json.loads(meta.read_text())["shape"])
        except (ValueError, KeyError, TypeError) as e:
            raise DataError(f"{meta}: damaged: {e}") from e
        if held != shape:
            raise DataError(f"{folder}: holds embeddings of {held}, the model's are {shape}")
        return folder, "checked"
    inside = folder / f"logits_top{shape[0]}_epoch0"
    place = inside if inside.is_dir() else folder
    if any(place.glob("rank*-keys.txt")):
        return place, "reference"
    raise DataError(f"{folder}: holds no embeddings; write them with `edgesam-deploy embed`")


def _write_meta(folder: Path, shape: tuple[int, ...], about: str) -> None:
    if (folder / META).exists():
        _recognised(folder, shape)
        held = json.loads((folder / META).read_text()).get("teacher")
        if about and held and held != about:
            raise DataError(f"{folder}: holds embeddings of {held}, not of {about}; choose another folder")
        return
    text = json.dumps({"dtype": "float16", "shape": list(shape), "teacher": about, "version": 1}, sort_keys=True)
    write_whole(folder / META, lambda partial: partial.write_text(text + "\n"))


def _files(folder: Path, rank: int, layout: Layout) -> tuple[Path, Path]:
    keys = "index.jsonl" if layout == "checked" else "keys.txt"
    return folder / f"rank{rank}-{keys}", folder / f"rank{rank}-values.bin"


def _record_bytes(shape: tuple[int, ...], layout: Layout) -> int:
    return int(np.prod(shape)) * HALF.itemsize + (SEED_BYTES if layout == "reference" else 0)


def _whole_lines(path: Path) -> list[str]:
    """The lines of a file that end with a newline: the last may have been cut short."""
    if not path.is_file():
        return []
    text = path.read_text()
    return text[: text.rfind("\n") + 1].splitlines()


def _line(line: str, layout: Layout, path: Path) -> tuple[str, int | None]:
    if layout == "reference":
        return line, None
    try:
        entry = json.loads(line)
        return str(entry["key"]), int(entry["crc32"])
    except (ValueError, KeyError, TypeError) as e:
        raise DataError(f"{path}: a damaged line {line[:40]!r}: {e}") from e
