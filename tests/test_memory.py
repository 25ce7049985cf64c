"""Builds that cannot fit are refused, with their estimate, before gigabytes are loaded."""

from __future__ import annotations

import json
import os
import resource

import pytest
from cli.command_line import DONE, edgesam_deploy
from conftest import FAMILY
from scenes import picture

from edgesam_deploy import builder, memory
from edgesam_deploy.errors import TooLarge
from edgesam_deploy.memory import GIB, available_bytes, build_bytes, check_memory
from edgesam_deploy.model.configs import model_config
from edgesam_deploy.model.registry import configured, load


def test_estimates_grow_with_the_model():
    sizes = [build_bytes(model_config(name))[1] for name in ("edge_sam", "vit_b", "vit_l", "vit_h")]
    assert sizes == sorted(sizes)
    assert sizes[0] < 2 * GIB
    assert build_bytes(model_config("cwsam_hierarchical_moe_10b"))[0] == 6_790_078_130
    assert build_bytes(model_config("cwsam_hierarchical_moe_10b"))[1] > 3 * 4 * 6_790_078_130


def test_a_refusal_says_how_much_it_would_take(monkeypatch):
    config, name = model_config("cwsam_hierarchical_moe_10b"), "cwsam_hierarchical_moe_10b"
    with pytest.raises(TooLarge, match=r"6\.79 billion parameters.* about 7\d\.\d GiB .*20\.0 GiB are allowed"):
        check_memory(config, name, limit=20 * GIB)
    check_memory(config, name, limit=200 * GIB)
    monkeypatch.setattr(memory, "available_bytes", lambda: 20 * GIB)
    with pytest.raises(TooLarge, match=r"20\.0 GiB are there; .*set --max-memory"):
        check_memory(config, name)


def test_large_pictures_take_more():
    small, large = (configured("edge_sam_dyt_hq", config={"image_size": size}) for size in (1024, 4096))
    assert build_bytes(large)[1] > 5 * build_bytes(small)[1]


@pytest.mark.parametrize("amount", ["nan", "inf", "-1", "0"])
def test_limits_that_are_none(amount, tmp_path):
    refused = edgesam_deploy("build", "edge_sam", "--max-memory", amount, "-o", tmp_path / "out")
    assert refused.code == 2
    assert "--max-memory" in refused.err


def test_what_is_loaded_already_is_not_counted_twice(monkeypatch):
    config = model_config("vit_b")
    parameters, needed = build_bytes(config)
    monkeypatch.setattr(memory, "available_bytes", lambda: needed - 4 * parameters)
    check_memory(config, "vit_b", loaded=True)
    with pytest.raises(TooLarge):
        check_memory(config, "vit_b")


def test_available_memory_is_that_of_the_machine():
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0.01 * total < available_bytes() <= total


def test_a_control_group_limits_it(monkeypatch, tmp_path):
    from pathlib import Path

    real = Path.read_text
    given = {"/sys/fs/cgroup/memory.max": "3000", "/sys/fs/cgroup/memory.current": "1000"}
    monkeypatch.setattr(Path, "read_text", lambda self, *a, **k: given.get(str(self)) or real(self, *a, **k))
    assert available_bytes() == 2000
    given["/sys/fs/cgroup/memory.max"] = "max"
    assert available_bytes() > 2000


def test_the_build_refuses_and_leaves_nothing(tmp_path):
    model = load("cwsam", config=FAMILY["cwsam"])
    with pytest.raises(TooLarge):
        builder.build(model, "onnx", tmp_path / "out", max_memory=1000)
    assert list(tmp_path.iterdir()) == []


def test_the_command_refuses_before_it_loads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = edgesam_deploy("build", "cwsam_hierarchical_moe_10b", "--max-memory", "16", "-o", tmp_path / "out")
    assert refused.code == 1
    assert "6.79 billion" in refused.err
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2 << 20  # kilobytes; its weights take 27 GB
    assert list(tmp_path.iterdir()) == []


def test_a_size_of_ones_own_from_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(builder, "shipped_pictures", dict)
    monkeypatch.setattr("edgesam_deploy.parity.shipped_pictures", lambda: {"scene": picture(90, 70, 1)})
    (tmp_path / "size.json").write_text(json.dumps(FAMILY["cwsam_moe_3b"]))
    built = edgesam_deploy("build", "sam_moe_3b", "--config", "size.json", "-o", "bundle", "--proof", "off")
    assert built.code == DONE, built.err
    assert edgesam_deploy("run", "bundle", _photograph(tmp_path), "-o", "found").code == DONE
    assert sorted(p.name for p in (tmp_path / "found").iterdir()) == [
        "classes.png", "confidence.png", "overlay.png", "result.json"
    ]  # fmt: skip
    assert edgesam_deploy("check", "bundle").code == DONE
    for wrong, words in (
        (["--point", "3,4"], "takes no prompts"),
        (["--overlap", "500"], "overlap"),
    ):
        refused = edgesam_deploy("run", "bundle", "photo.png", "-o", "more", *wrong)
        assert refused.code == 2
        assert words in refused.err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nothing", "not a JSON file"),
        ("[1]", "expected an object"),
        ('{"depth": 3}', "no field 'depth'"),
        ('{"image_encoder": {"global_blocks": 3}}', "expected a list"),
        ('{"image_encoder": {"global_blocks": [1.5]}}', "expected int"),
        ('{"image_encoder": {"heads": true}}', "expected int"),
        ('{"image_encoder": {"experts": {"kind": "many"}}}', "must be dense or token or groups"),
        ('{"image_encoder": 3}', "expected a mapping"),
    ],
)
def test_bad_sizes(tmp_path, monkeypatch, text, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "size.json").write_text(text)
    refused = edgesam_deploy("build", "cwsam", "--config", "size.json")
    assert refused.code == 2
    assert words in refused.err


def _photograph(folder):
    from PIL import Image

    Image.fromarray(picture(100, 300, 4)).save(folder / "photo.png")
    return folder / "photo.png"
