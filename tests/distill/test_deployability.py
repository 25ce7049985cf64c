"""What training does for deployment: looks at fp16's limits, fake quantisation; and curves for other programs."""

from __future__ import annotations

import sys
import types

import pytest
import torch
import torch.nn.functional as F
from tiny import CONFIG, recipe
from torch import nn

from edgesam_deploy.distill.fake_quantization import QuantizedConv2d, fake_affine, fake_symmetric, quantize_convolutions
from edgesam_deploy.distill.parallel import Ranks
from edgesam_deploy.distill.range_check import fp16_candidates
from edgesam_deploy.distill.train import make_trainer
from edgesam_deploy.errors import UsageError
from edgesam_deploy.model.registry import load

ALONE = Ranks(0, 1, torch.device("cpu"))
RANDOM = torch.Generator().manual_seed(0)


def test_ranges_are_looked_at_and_nothing_of_the_run_changes(scenes, tmp_path):
    models, said = [], []
    for every in (0, 4):
        made = recipe(scenes, train={"check_ranges_every": every})
        models.append(make_trainer(made, tmp_path / str(every), ALONE, said.append).fit().model.read_bytes())
    assert models[0] == models[1]
    assert [text.split(": ")[:2] for text in said if "fp16" in text] == [["update 4", "fp16"]]


def test_what_fp16_cannot_hold_is_named(scenes, tmp_path):
    made = recipe(scenes, model={"lora": 2})
    trainer = make_trainer(made, tmp_path, ALONE)
    assert not fp16_candidates(trainer.student, made, trainer.items)["overflow"]
    with torch.no_grad():
        trainer.student.mask_decoder.output_upscaling[0].weight.mul_(1e7)
    worst = fp16_candidates(trainer.student, made, trainer.items)["overflow"][0]
    assert "output_upscaling" in worst.tensor.module
    assert worst.tensor.largest > 65504


# --- fake quantisation -----------------------------------------------------------------------------------------------


def test_weights_lie_on_the_grid_of_their_channel():
    weight = torch.randn(5, 3, 3, 3, generator=RANDOM) * torch.logspace(-3, 2, 5).view(-1, 1, 1, 1)
    found = fake_symmetric(weight)
    for mine, theirs in zip(found, weight, strict=True):
        scale = theirs.abs().max() / 127
        steps = mine / scale
        assert torch.allclose(steps, steps.round(), atol=1e-3)
        assert steps.abs().max().round() == 127
        assert (mine - theirs).abs().max() <= 0.5001 * scale
    gamma = torch.rand(5, generator=RANDOM).view(-1, 1, 1, 1) + 0.5
    assert torch.allclose(
        fake_symmetric(weight * gamma), found * gamma, rtol=1e-4
    )  # folding batch norm changes nothing


def test_inputs_lie_on_256_values_with_0_among_them():
    x = torch.linspace(-1.0, 4.0, 1001)
    found = fake_affine(x, torch.tensor(-0.5), torch.tensor(3.0))
    assert found.unique().numel() == 256
    assert (found == 0).any()
    inside = (x > -0.49) & (x < 2.99)
    assert (found - x)[inside].abs().max() <= 3.5 / 255
    assert torch.equal(fake_affine(x, torch.zeros(()), torch.zeros(())), x)


def test_gradients_pass_where_values_are_in_range():
    x = torch.tensor([-2.0, 0.3, 1.0, 9.0], requires_grad=True)
    fake_affine(x, torch.tensor(-1.0), torch.tensor(2.0)).sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 0]
    weight = torch.randn(2, 3, generator=RANDOM, requires_grad=True)
    fake_symmetric(weight).sum().backward()
    assert torch.allclose(weight.grad, torch.ones_like(weight))


def test_a_convolution_keeps_a_running_range_and_its_names():
    plain = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, groups=2), nn.BatchNorm2d(4))
    reference = {name: value.clone() for name, value in plain.state_dict().items()}
    assert quantize_convolutions(plain) == 1
    conv = plain[0]
    assert type(conv) is QuantizedConv2d
    assert set(plain.state_dict()) == {*reference, "0.input_range"}
    x = torch.rand(1, 2, 8, 8, generator=RANDOM)
    exact = F.conv2d(x, reference["0.weight"], reference["0.bias"], padding=1, groups=2)
    assert (conv(x) - exact).abs().max() < 0.02
    assert conv.input_range.tolist() == [0.0, pytest.approx(float(x.max()))]
    conv(3 * x)
    assert float(conv.input_range[1]) == pytest.approx(float(x.max()) * (1 + 0.05 * 2), rel=1e-5)
    kept = conv.input_range.clone()
    conv.eval()
    conv(9 * x)
    assert torch.equal(conv.input_range, kept)


def test_a_run_with_fake_quantisation_saves_a_plain_model(scenes, tmp_path):
    made = recipe(scenes, train={"quantize_encoder": True, "epochs": 3})
    trainer = make_trainer(made, tmp_path, ALONE)
    trainer.fit(until=4)
    again = make_trainer(made, tmp_path, ALONE)
    outcome = again.fit()
    whole = make_trainer(made, tmp_path / "whole", ALONE).fit()
    assert outcome.model.read_bytes() == whole.model.read_bytes()
    plain = load("edge_sam", outcome.model, config=CONFIG)
    assert type(plain.image_encoder.neck[0]) is nn.Conv2d
    ranges = [m.input_range for m in again.student.image_encoder.modules() if isinstance(m, QuantizedConv2d)]
    assert len(ranges) > 10
    assert all(high > low for low, high in ranges)
    with pytest.raises(UsageError, match="activation_checkpointing shows it twice"):
        recipe(scenes, train={"quantize_encoder": True, "activation_checkpointing": True})


# --- curves ----------------------------------------------------------------------------------------------------------


def test_curves_go_to_weights_and_biases_where_asked_for(scenes, tmp_path, monkeypatch):
    """Its calls as its documentation has them; the program itself is not installed here."""
    calls = []
    stand_in = types.ModuleType("wandb")
    run = types.SimpleNamespace(
        log=lambda values, step: calls.append((step, values)), finish=lambda: calls.append("finish")
    )
    stand_in.init = lambda **options: calls.append(options) or run
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    trainer = make_trainer(recipe(scenes, train={"wandb": "scenes"}), tmp_path, ALONE)
    trainer.fit(until=2)
    make_trainer(recipe(scenes, train={"wandb": "scenes"}), tmp_path, ALONE).fit(until=3)
    first, second = (call for call in calls if isinstance(call, dict))
    assert (first["project"], first["name"], first["resume"]) == ("scenes", "tiny", "allow")
    assert first["id"] == second["id"]
    points = [call for call in calls if isinstance(call, tuple)]
    assert [step for step, _ in points] == [1, 2, 3]
    assert {"loss", "rate", "loss/dice"} <= points[0][1].keys()
    assert calls.count("finish") == 2
