"""The commands of README and docs run as they are written, on models some 300 times smaller.

Names, flags, file names and order are the reader's; only what a name builds is small. What no test can run is in
``blocks.NOT_HERE`` with its reason.
"""

from __future__ import annotations

import json
import shutil
import types

import pytest
import torch
from blocks import PAGES, ROOT, blocks, commands, reason
from cli.command_line import DONE, MISSING, edgesam_deploy
from conftest import FAMILY
from PIL import Image
from scenes import picture

from edgesam_deploy import parity
from edgesam_deploy.demo.page import Page
from edgesam_deploy.model import configs
from edgesam_deploy.model.configs import override
from edgesam_deploy.model.registry import load

WITH_COMMANDS = [page for page in PAGES if any(b.page == page and reason(w) is None for b, w in commands())]
HEAVY = {  # seconds: builds for several targets, searches, everything-mode
    "README.md", "docs/precision.md", "docs/devices.md", "docs/evaluation.md", "docs/training.md", "docs/passes.md",
    "docs/targets/coreml.md", "docs/targets/tflite.md", "docs/targets/tensorrt.md", "docs/targets/onnx.md",
    "docs/targets/npu.md", "docs/targets/openvino.md", "docs/demo.md", "docs/plugins.md", "docs/folders.md",
}  # fmt: skip
PROMPTABLE = [name for name in FAMILY if not name.startswith("cwsam")]  # a size of the others comes from --config
NO_DEVICE = "--device"  # no phone and no board here: the command ends with that exit code
SLOWER = 6  # of two measurements on a busy machine one may be


@pytest.fixture
def place(tmp_path, monkeypatch, bundles):
    """A reader's folder: a fresh clone after ``make build``, and the files that the pages speak of."""
    monkeypatch.chdir(tmp_path)
    for name in ("edgesam_deploy", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.setattr(parity, "shipped_pictures", lambda: {"scene": picture(150, 225, 10)})
    monkeypatch.setattr("edgesam_deploy.builder.shipped_pictures", lambda: {"scene": picture(150, 225, 10)})
    for name in PROMPTABLE:
        monkeypatch.setitem(configs.MODELS, name, override(configs.MODELS[name], FAMILY[name]))
    for name in ("out/edge_sam_demo/onnx", "out/old", "out/new"):
        shutil.copytree(bundles().path, name)
    for name in ("photo.jpg", "satellite.png", "photos/photo.jpg", "photos/other.jpg", "my/pictures/one.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(660, 960, len(name))).save(name)
    (tmp_path / "size.json").write_text(json.dumps(FAMILY["cwsam_moe_3b"]))
    folders = next(b for b in blocks() if b.page.name == "folders.md" and b.language == "json")
    (tmp_path / "prompts.json").write_text(folders.text)
    return tmp_path


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Files as their authors publish them, of small models."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for name, model in (("edge_sam_3x.pth", "edge_sam"), ("sam_hq_vit_tiny.pth", "sam_hq_vit_tiny")):
        torch.save(load(model, seed=1, config=FAMILY[model]).state_dict(), folder / name)
    return folder


def run_page(page):
    """The page's commands, one after the other."""
    ran = 0
    for block, words in commands():
        if block.page != page or reason(words) is not None:
            continue
        found = edgesam_deploy(*words[1:])
        wanted = {MISSING} if NO_DEVICE in words else {DONE, SLOWER} if "--compare" in words else {DONE}
        assert found.code in wanted, f"{block.name}: {' '.join(words)}\n{found.out}{found.err}"
        ran += 1
    assert ran


def pages(heavy):
    chosen = [page for page in WITH_COMMANDS if (page.relative_to(ROOT).as_posix() in HEAVY) == heavy]
    return pytest.mark.parametrize("page", chosen, ids=lambda page: page.relative_to(ROOT).as_posix())


class ClosedPage(Page):
    """The demo's page up to the moment when it would listen; test_demo_page.py opens it in a browser."""

    def __init__(self, shown, limits, remark=""):
        assert all(entry.predictor for entry in shown)

    def serve(self, host, port):
        return types.SimpleNamespace(block_thread=lambda: None), f"http://{host}:{port}"


def prepare(place, checkpoints, bundles, monkeypatch):
    """What only some pages need and every page may have."""
    monkeypatch.setattr("edgesam_deploy.demo.page.Page", ClosedPage)
    for path in checkpoints.iterdir():
        (place / path.name).symlink_to(path)
    shutil.copy(bundles(io="edgesam").path / "decoder.onnx", "edge_sam_3x_decoder.onnx")


@pages(heavy=False)
def test_commands_run_as_written(page, place, checkpoints, bundles, monkeypatch):
    prepare(place, checkpoints, bundles, monkeypatch)
    run_page(page)


@pytest.mark.slow
@pages(heavy=True)
def test_heavy_commands_run_as_written(page, place, checkpoints, bundles, monkeypatch, request):
    prepare(place, checkpoints, bundles, monkeypatch)
    if page.stem == "plugins":
        request.getfixturevalue("installed_plugin")
    if page.stem in ("demo", "devices"):
        assert edgesam_deploy("build", "edge_sam", "--target", "tflite", "--proof", "off").code == DONE
    if page.stem == "devices":
        (place / "benchmark_model").write_text("an executable for the phone")
        assert edgesam_deploy("bench", "out/old", "--runs", "1", "--no-cold", "-o", "last.json").code == DONE
    run_page(page)
