"""Teacher embeddings on disk: the reference's bytes, checksums, resuming, shards."""

from __future__ import annotations

import json
import shutil
import struct

import numpy as np
import pytest
import torch
from tiny import CONFIG

from edgesam_deploy.distill.data import open_source
from edgesam_deploy.distill.data.items import ItemOptions, Items, collate
from edgesam_deploy.distill.embeddings import EmbeddingReader, EmbeddingWriter, embed
from edgesam_deploy.distill.parallel import Ranks
from edgesam_deploy.errors import DataError
from edgesam_deploy.model.registry import load

SHAPE = (4, 3, 3)
CPU = torch.device("cpu")


def arrays(count):
    return {f"sa_{i}": np.random.default_rng(i).normal(size=SHAPE).astype(np.float16) for i in range(count)}


def write(folder, records, layout, **options):
    writer = EmbeddingWriter(folder, SHAPE, layout, **options)
    for key, value in records.items():
        writer.write(key, value)
    writer.close()


def test_the_references_bytes(tmp_path):
    """Record i: the seed as a little-endian int32, then float16 in C, H, W order; line i names it."""
    records = arrays(2)
    writer = EmbeddingWriter(tmp_path, SHAPE, "reference")
    for seed, (key, value) in enumerate(records.items(), 7):
        writer.write(key, value, seed)
    writer.close()
    folder = tmp_path / "logits_top4_epoch0"
    assert (folder / "rank0-keys.txt").read_text() == "sa_0\nsa_1\n"
    wanted = b"".join(struct.pack("<i", seed) + v.astype("<f2").tobytes() for seed, v in enumerate(records.values(), 7))
    assert (folder / "rank0-values.bin").read_bytes() == wanted
    reader = EmbeddingReader(tmp_path, SHAPE)
    assert (reader["sa_1"] == records["sa_1"]).all()
    assert reader.seed("sa_1") == 8


def test_the_full_size_record_has_the_references_length(tmp_path):
    writer = EmbeddingWriter(tmp_path, (256, 64, 64), "reference")
    writer.write("x", np.zeros((256, 64, 64)))
    writer.close()
    assert (tmp_path / "logits_top256_epoch0/rank0-values.bin").stat().st_size == 2_097_156


@pytest.mark.parametrize("layout", ["checked", "reference"])
def test_ranks_are_read_together_and_a_cut_record_is_written_again(tmp_path, layout):
    records = arrays(5)
    names = list(records)
    write(tmp_path, {k: records[k] for k in names[:3]}, layout, rank=0)
    write(tmp_path, {k: records[k] for k in names[3:]}, layout, rank=1)
    assert sorted(EmbeddingReader(tmp_path, SHAPE)) == names
    folder = next(tmp_path.glob("**/rank0-values.bin")).parent
    values = folder / "rank0-values.bin"
    values.write_bytes(values.read_bytes()[:-5])  # killed while the third record was written
    reader = EmbeddingReader(tmp_path, SHAPE)
    assert sorted(reader) == [names[0], names[1], names[3], names[4]]
    write(tmp_path, {names[2]: records[names[2]]}, layout, rank=0)
    again = EmbeddingReader(tmp_path, SHAPE)
    assert all((again[k] == records[k]).all() for k in names)


def test_a_cut_line_does_not_count(tmp_path):
    records = arrays(2)
    write(tmp_path, records, "checked")
    index = tmp_path / "rank0-index.jsonl"
    index.write_text(index.read_text()[:-4])
    assert list(EmbeddingReader(tmp_path, SHAPE)) == ["sa_0"]


def test_damage_is_found_by_its_checksum(tmp_path):
    write(tmp_path, arrays(2), "checked")
    values = tmp_path / "rank0-values.bin"
    data = bytearray(values.read_bytes())
    data[-1] ^= 1
    values.write_bytes(data)
    reader = EmbeddingReader(tmp_path, SHAPE)
    assert reader["sa_0"].shape == SHAPE
    with pytest.raises(DataError, match="'sa_1' is damaged"):
        reader["sa_1"]


def test_what_does_not_fit(tmp_path):
    write(tmp_path, arrays(1), "checked")
    with pytest.raises(DataError, match=r"holds embeddings of \(4, 3, 3\)"):
        EmbeddingReader(tmp_path, (4, 6, 6))
    with pytest.raises(DataError, match=r"holds embeddings of \(4, 3, 3\)"):
        EmbeddingWriter(tmp_path, (4, 6, 6), "checked")
    with pytest.raises(DataError, match="no embedding of 'other'"):
        EmbeddingReader(tmp_path, SHAPE)["other"]
    with pytest.raises(DataError, match="holds no embeddings"):
        EmbeddingReader(tmp_path / "none", SHAPE)
    writer = EmbeddingWriter(tmp_path, SHAPE, "checked")
    with pytest.raises(DataError, match="exceeds float16"):
        writer.write("big", np.full(SHAPE, 1e6))
    with pytest.raises(DataError, match="the files hold"):
        writer.write("small", np.zeros((1, 2, 2)))
    writer.close()
    (tmp_path / "embeddings.json").write_text("{")
    with pytest.raises(DataError, match="damaged"):
        EmbeddingReader(tmp_path, SHAPE)


def test_an_opened_folder_stays_as_it_is_and_has_one_teacher(scenes, tmp_path, monkeypatch):
    items = Items(open_source("sa1b", scenes, "train"), ItemOptions(64))
    teacher = load("edge_sam", seed=0, config=CONFIG)
    assert list(embed(teacher, items, tmp_path, "checked", Ranks(0, 1, CPU), batch_size=3)) == [(3, 0), (6, 0)]
    before = {path.name: path.stat().st_ino for path in tmp_path.iterdir()}
    assert list(embed(teacher, items, tmp_path, "checked", Ranks(0, 1, CPU))) == []
    assert {path.name: path.stat().st_ino for path in tmp_path.iterdir()} == before  # nothing was written anew
    with pytest.raises(DataError, match="seed 0: its masks mean nothing, not of random weights, seed 1"):
        list(embed(load("edge_sam", seed=1, config=CONFIG), items, tmp_path, "checked", Ranks(0, 1, CPU)))


def test_pictures_that_cannot_be_read_are_counted(scenes, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(scenes, data)
    victim = sorted((data / "images/train").iterdir())[1]
    victim.write_bytes(victim.read_bytes()[:100])
    items = Items(open_source("sa1b", data, "train"), ItemOptions(64))
    teacher = load("edge_sam", seed=0, config=CONFIG)
    found = list(embed(teacher, items, tmp_path / "out", "checked", Ranks(0, 1, CPU), batch_size=2))
    assert found[-1] == (5, 1)


def test_a_teacher_is_written_in_shards_and_resumed(scenes, tmp_path):
    teacher = load("edge_sam", seed=0, config=CONFIG)
    items = Items(open_source("sa1b", scenes, "train"), ItemOptions(64))
    first = embed(teacher, items, tmp_path, "checked", Ranks(0, 1, CPU), batch_size=2)
    next(first)
    first.close()  # interrupted after two
    before = (tmp_path / "rank0-values.bin").read_bytes()
    shape = (32, 4, 4)
    assert len(EmbeddingReader(tmp_path, shape)) == 2

    class Alone(Ranks):
        def wait(self):
            """The other rank is not really there."""

    list(embed(teacher, items, tmp_path, "checked", Alone(1, 2, CPU)))  # the second of two ranks takes its half
    assert len(EmbeddingReader(tmp_path, shape)) == 4
    list(embed(teacher, items, tmp_path, "checked", Ranks(0, 1, CPU), batch_size=4))
    reader = EmbeddingReader(tmp_path, shape)
    assert sorted(reader) == items.source.names
    assert (tmp_path / "rank0-values.bin").read_bytes().startswith(before)
    batch = collate([items[3], items[0]])
    with torch.no_grad():
        wanted = teacher.image_encoder(batch.images)
    assert torch.allclose(reader.batch(batch), wanted, atol=2e-3)
    lines = (tmp_path / "rank0-index.jsonl").read_text().splitlines()
    assert all({"crc32", "key"} == json.loads(line).keys() for line in lines)
