"""Which layers cost most: the scan sees the layer that 8 bit ruin, and is made once for the same question."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from conftest import TINY
from scenes import picture
from torch import nn

import edgesam_deploy as ed
from edgesam_deploy.capture import capture, trace
from edgesam_deploy.contract import TensorSpec
from edgesam_deploy.errors import UsageError
from edgesam_deploy.precision import sensitivity as module
from edgesam_deploy.precision.analyse import after_aten_passes
from edgesam_deploy.precision.quantisation import keep_layers
from edgesam_deploy.precision.sensitivity import in_bits, layers_of, sensitivity
from edgesam_deploy.targets import make_target
from edgesam_deploy.targets.base import Bits


def test_values_on_steps():
    x = torch.tensor([-1.0, 0.0, 0.3, 2.0])
    found = in_bits(x, 8)
    assert float((found - x).abs().max()) <= 3 / 255 / 2 + 1e-6
    assert found[1] == 0
    rows = torch.tensor([[1.0, -0.5], [100.0, 3.0]])
    found = in_bits(rows, 8, 0)
    assert float((found - rows).abs()[0].max()) <= 1 / 127 / 2 + 1e-6  # its own step, not that of the large row
    assert torch.equal(in_bits(torch.zeros(3), 8), torch.zeros(3))


class Two(nn.Module):
    """Two layers of which the second has one weight in a row that is 1,000 times the others."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.good, self.bad = nn.Linear(16, 16), nn.Linear(16, 16)
        with torch.no_grad():
            self.bad.weight[:, 0] = 1000
            self.good.weight[0], self.good.bias[0] = 0, 0.001

    def forward(self, x):
        return self.bad(self.good(x))


def test_the_layer_that_loses_most_is_first():
    spec = TensorSpec("x", (4, 16)), TensorSpec("y", (4, 16))
    program = trace("image_encoder", Two().eval(), spec[:1], spec[1:])
    good, bad = (node.name for node in layers_of(program))
    samples = [{"x": torch.randn(4, 16, generator=torch.Generator().manual_seed(seed))} for seed in range(2)]
    costs = {cost.name: cost for cost in module._scanned(program, Bits(8, None), samples)}
    assert costs.keys() == {f"image_encoder:{good}", f"image_encoder:{bad}"}
    worst = costs[f"image_encoder:{bad}"]
    assert (worst.where, worst.operator) == ("bad", "linear")
    assert worst.share > 0.9
    assert sum(cost.share for cost in costs.values()) == pytest.approx(1, abs=0.1)


@pytest.fixture(scope="module")
def prepared():
    """A tiny EdgeSAM behind TensorRT's aten passes: model, target, interface, programs."""
    model, target = ed.load("edge_sam", seed=0, config=TINY), make_target("tensorrt", precision="int8")
    interface = target.interface(model.config)
    programs, interface = after_aten_passes(capture(model, interface), target, model, interface)
    return model, target, interface, programs


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGESAM_DEPLOY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "sensitivity"


def test_a_scan_is_made_once(prepared, cache, monkeypatch):
    model, target, interface, programs = prepared
    found = sensitivity(model, target, interface, programs)
    encoder = {f"image_encoder:{node.name}" for node in layers_of(programs[0])}
    assert {cost.name for cost in found} == encoder  # the decoder is not quantised
    assert [cost.share for cost in found] == sorted((cost.share for cost in found), reverse=True)
    assert sum(cost.share for cost in found) == pytest.approx(1, abs=0.35)  # first order, errors of some 10 %
    assert all(cost.where for cost in found)
    (file,) = cache.iterdir()
    scanned = []
    monkeypatch.setattr(module, "_scanned", lambda program, *_: scanned.append(program.name) or [])
    assert sensitivity(model, target, interface, programs) == found
    assert scanned == []
    file.write_text("{" + json.dumps({})[1:] + "cut")  # a damaged file is made again
    sensitivity(model, target, interface, programs)
    sensitivity(model, make_target("tensorrt", precision="int8", attention="fused"), interface, programs)
    assert scanned == ["image_encoder"] * 2
    assert len(list(cache.iterdir())) == 2
    trained = copy.deepcopy(model)
    with torch.no_grad():
        next(trained.parameters()).mul_(2)
    sensitivity(trained, target, interface, programs)  # where the weights came from says nothing about them now
    assert scanned == ["image_encoder"] * 3


def test_layers_are_kept_by_name(prepared):
    _, _, _, programs = prepared
    encoder, decoder = (program.copy() for program in programs)
    first, second = (node.name for node in layers_of(encoder)[:2])
    target = make_target("tensorrt", precision="int8", keep=f"image_encoder:{first},image_encoder:{second}")
    keep_layers([encoder, decoder], target)
    assert encoder.islands == {first, second}
    assert not decoder.islands
    for name in ("conv2d", "image_encoder:nothing", f"mask_decoder:{layers_of(decoder)[0].name}"):
        with pytest.raises(UsageError, match=f"--keep {name}: no layer"):
            keep_layers([encoder, decoder], make_target("tensorrt", precision="int8", keep=name))


def test_a_picture_decides_the_key(prepared, cache, tmp_path, monkeypatch):
    from PIL import Image

    model, _, interface, programs = prepared
    monkeypatch.setattr(module, "_scanned", lambda *_: [])
    for seed in (1, 2):
        (tmp_path / "own").mkdir(exist_ok=True)
        Image.fromarray(picture(60, 80, seed)).save(tmp_path / "own" / "a.png")
        target = make_target("tensorrt", precision="int8", calibration=str(tmp_path / "own"))
        sensitivity(model, target, interface, programs)
    assert len(list(cache.iterdir())) == 2
