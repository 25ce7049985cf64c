"""bisect from end to end: a clean pipeline, and one with a pass broken on purpose."""

from __future__ import annotations

import json
import runpy
from dataclasses import replace

import pytest
import typer
from command_line import DONE, ERROR, USAGE, edgesam_deploy
from conftest import TINY, TINY_VIT

import edgesam_deploy.cli as cli
from edgesam_deploy import capture
from edgesam_deploy.cli import bisect as command
from edgesam_deploy.model import configs
from edgesam_deploy.model.configs import override
from edgesam_deploy.passes.aten.graph import AtenGraph
from edgesam_deploy.passes.engine import exact
from edgesam_deploy.targets.onnx import OnnxTarget


@pytest.fixture(autouse=True)
def tiny(tmp_path, monkeypatch):
    """In a folder of the test's own, edge_sam and vit_b are tiny ones."""
    if "bisect" not in {c.callback.__name__ for c in cli.app.registered_commands if c.callback}:
        command.register(cli.app)
    monkeypatch.chdir(tmp_path)
    for name, config in (("edge_sam", TINY), ("vit_b", TINY_VIT)):
        monkeypatch.setitem(configs.MODELS, name, override(configs.MODELS[name], config))
    return tmp_path


@pytest.fixture
def short(monkeypatch):
    """The first passes are as good as all of them, and lowering takes most of the time."""
    right = OnnxTarget.pipeline
    monkeypatch.setattr(OnnxTarget, "pipeline", lambda self, config: right(self, config)[:6])


def test_the_first_passes_keep_their_bounds(tiny, short):
    ended = edgesam_deploy("bisect", "edge_sam", "--points", "dynamic", "--proof", "full")
    assert ended.code == DONE, ended.err
    encoder, decoder, last = ended.out.splitlines()
    assert encoder.startswith("image_encoder: 6 passes ran, ")
    assert decoder.startswith("mask_decoder: 6 passes ran, ")
    assert last == "every pass keeps its bound"
    assert list(tiny.iterdir()) == []


@exact
def forget_bias(program):
    """Break the last linear layer that has a bias."""
    import torch

    with AtenGraph(program) as graph:
        nodes = [n for n in graph.calls(torch.ops.aten.linear.default) if len(n.args) == 3]
        if nodes:
            nodes[-1].args = nodes[-1].args[:2]
    return len(nodes)


@pytest.fixture
def broken(monkeypatch):
    right = OnnxTarget.pipeline
    monkeypatch.setattr(OnnxTarget, "pipeline", lambda self, config: (*right(self, config)[:6], forget_bias))


def test_what_moves_work_between_the_parts_is_searched_too(tiny, short, monkeypatch):
    words = ["bisect", "edge_sam", "--prompts-per-image", "1024", "--points", "2"]
    ended = edgesam_deploy(*words)
    assert ended.code == DONE, ended.err
    right = OnnxTarget.joint_pipeline

    def forgetful(self, config):
        (whole,) = right(self, config)
        return (replace(whole, run=lambda encoder, decoder: whole.run(encoder, decoder) + forget_bias.run(decoder)),)

    monkeypatch.setattr(OnnxTarget, "joint_pipeline", forgetful)
    ended = edgesam_deploy(*words)
    assert ended.code == ERROR
    assert "left its bound on image_encoder + mask_decoder" in " ".join(ended.err.split())


@pytest.mark.slow
def test_every_pass_keeps_its_bound(tiny):
    ended = edgesam_deploy("bisect", "edge_sam", "--points", "dynamic")
    assert ended.code == DONE, ended.err
    assert ended.out.splitlines()[-1] == "every pass keeps its bound"
    assert "image_encoder: lower_to_onnx" in ended.err
    assert list(tiny.iterdir()) == []


def test_a_broken_pass_is_named(tiny, broken):
    ended = edgesam_deploy("bisect", "edge_sam", "--target", "onnx", "-o", "found")
    assert ended.code == ERROR
    assert "mask_decoder: pass forget_bias left its bound at linear" in ended.err
    assert "to run it:" in ended.out
    folder = tiny / "found" / "mask_decoder.forget_bias"
    assert (folder / "after.pt2").is_file()
    assert runpy.run_path(str(folder / "reproduce.py"))["actual"].size > 0


def test_json(tiny, broken):
    ended = edgesam_deploy("bisect", "edge_sam", "--json")
    assert ended.code == ERROR
    found = json.loads(ended.out)
    (_, decoder) = found["parts"]
    assert decoder["finding"]["pass_name"] == "forget_bias"
    assert decoder["finding"]["folder"] == "out/edge_sam/onnx.bisect/mask_decoder.forget_bias"
    assert [row["name"] for row in decoder["passes"]][-1] == "forget_bias"


def test_a_large_model_is_searched_on_its_twin(monkeypatch, short):
    monkeypatch.setattr(capture, "LARGE", 0)
    ended = edgesam_deploy("bisect", "vit_b", "--json")
    assert ended.code == DONE, ended.err
    assert [part["on_twin"] for part in json.loads(ended.out)["parts"]] == [True, True]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("edge_samm",), "did you mean edge_sam"),
        (("edge_sam", "--target", "onx"), "did you mean onnx"),
        (("edge_sam", "--seed", "1", "--checkpoint", "x.pth"), "--seed is for random weights"),
        (("edge_sam", "--proof", "off"), "nothing to search without a proof"),
        (("edge_sam", "--config", "none.json"), "none.json"),
    ],
)
def test_usage(options, words):
    ended = edgesam_deploy("bisect", *options)
    assert ended.code == USAGE
    assert words in ended.err


def test_registered_once():
    app = typer.Typer()
    command.register(app)
    assert [c.callback.__name__ for c in app.registered_commands if c.callback] == ["bisect"]
