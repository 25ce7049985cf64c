"""Range analysis: the figures are those of the tensors, candidates are named by module, the file can be read back."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import FAMILY
from torch import nn

import edgesam_deploy as ed
from edgesam_deploy.errors import UsageError
from edgesam_deploy.precision.observe import Observer
from edgesam_deploy.precision.ranges import LARGEST, Ranges, TensorRange, read_ranges

from passes.programs import Calls, traced  # isort: skip


def observed(module, *runs, shapes=((2, 8),)):
    """The ranges of a small program, by node, over ``runs`` of inputs x, y."""
    observer = Observer(traced(module, *shapes))
    for run in runs:
        observer.run(dict(zip("xy", map(torch.as_tensor, run), strict=False)))
    return {r.name: r for r in observer.ranges()}


def as_file(*tensors, **changes):
    return Ranges("tiny", "seed 0", {"scene": "ab"}, ("point",), {"part": tensors}, **changes)


TENSOR = TensorRange("mul", "mul", "neck.1", "", (2, 8), -1.0, 2.0, 1.0, 0.5, 0.0, 0.0)


def candidates(**changes):
    return [(c.kind, c.why) for c in as_file(replace(TENSOR, **changes)).candidates()]


def test_the_figures_are_those_of_the_values():
    x = torch.linspace(-3, 5, 16).reshape(2, 8)
    x[0, :4] = torch.tensor([0.0, 1e-9, 3e-5, -2e-7])
    found = observed(Calls(lambda s, x: x * 2), (x,), (10 * x,))
    both = torch.cat([2 * x, 20 * x]).double()
    seen = found["mul"]
    assert (seen.minimum, seen.maximum) == (float(both.min()), float(both.max()))
    assert seen.mean_square == pytest.approx(float((both**2).mean()))
    real = both[both != 0].abs()
    assert seen.smallest == pytest.approx(float(real.min()))
    assert seen.vanishing == pytest.approx(float((real.half() == 0).double().mean()))
    subnormal = (real < 2**-14) & (real.half() != 0)
    assert seen.subnormal == pytest.approx(float(subnormal.double().mean()))
    assert seen.shape == (2, 8)
    assert seen.margin == pytest.approx(LARGEST / 100)
    assert found["x"].operator == "input"


def test_large_and_channels_last_tensors_are_seen_whole():
    x = torch.randn(2, 8, 300, 300, generator=torch.Generator().manual_seed(0))  # more than one piece
    x[1, 7, 299, 299] = -77
    seen = observed(Calls(lambda s, x: -x), (x.contiguous(memory_format=torch.channels_last),), shapes=[x.shape])["neg"]
    assert seen.maximum == 77
    assert seen.mean_square == pytest.approx(float(x.double().square().mean()), rel=1e-4)  # summed in fp32


def test_the_squares_of_a_norm_are_seen():
    x = torch.randn(2, 8, generator=torch.Generator().manual_seed(1)) * 300 + 900
    centred = (x - x.mean(-1, keepdim=True)).abs().max()
    spelled = observed(
        Calls(lambda s, x: (x - x.mean(-1, keepdim=True)).pow(2).mean(-1, keepdim=True).add(1e-6).rsqrt()), (x,)
    )
    (square,) = (r for r in spelled.values() if r.role == "variance")
    assert square.largest == pytest.approx(float(centred) ** 2, rel=1e-5)
    (kind, why), *_ = [(c.kind, c.why) for c in as_file(square).candidates()]
    assert kind == "overflow"
    assert "variance reach" in why
    (norm,) = (r for r in observed(nn.LayerNorm(8), (x,)).values() if r.role == "norm")
    assert norm.inside == pytest.approx(float(centred) ** 2, rel=1e-5)
    assert norm.module == "net"
    assert [c.kind for c in as_file(norm).candidates()] == ["inside"]


def test_attention_logits_and_what_a_softmax_holds():
    def attention(_, x, y):
        return torch.softmax((x @ y.transpose(-1, -2)) * 0.5 + 1, -1)

    x = torch.full((2, 8), 60.0)
    found = observed(Calls(attention), (x, x), shapes=[(2, 8), (2, 8)])
    assert [r.role for r in found.values() if r.operator == "matmul"] == ["attention logits"]
    (softmax,) = (r for r in found.values() if r.role == "softmax")
    assert softmax.inside == math.exp(700)  # as much as a float can tell


def test_a_difference_that_cancels():
    x = torch.randn(2, 8, generator=torch.Generator().manual_seed(2)) + 5000
    found = observed(Calls(lambda s, x: x - x.mean(-1, keepdim=True)), (x,))
    assert found["sub"].cancelled == pytest.approx(5000, rel=0.5)
    assert [c.kind for c in as_file(found["sub"]).candidates()] == ["absorbed"]


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        ({}, []),
        ({"maximum": 70_000.0}, ["overflow"]),
        ({"minimum": -20_000.0}, ["narrow"]),
        ({"inside": 60_000.0, "role": "norm"}, ["inside"]),
        ({"vanishing": 0.2}, ["underflow"]),
        ({"vanishing": 0.2, "role": "softmax"}, []),
        ({"mean_square": 1e-10}, ["underflow"]),
        ({"cancelled": 100.0}, ["absorbed"]),
        ({"cancelled": 10.0}, []),
    ],
)
def test_candidates(changes, kinds):
    assert [kind for kind, _ in candidates(**changes)] == kinds


def test_the_file_reads_back(tmp_path):
    found = as_file(TENSOR, replace(TENSOR, name="exp", maximum=1e5), target="coreml")
    found.write(tmp_path / "new" / "ranges.json")
    assert read_ranges(tmp_path / "new" / "ranges.json") == found
    assert [p.name for p in tmp_path.rglob("*")] == ["new", "ranges.json"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "write it with"),
        ("{", "no JSON"),
        ("[]", "schema"),
        ('{"schema": 99}', "schema"),
        ('{"schema": 1}', "damaged"),
        ('{"schema": 1, "parts": {"p": [{"name": "x"}]}}', "damaged"),
    ],
)
def test_other_files_are_refused(tmp_path, text, words):
    path = tmp_path / "ranges.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match=words):
        read_ranges(path)


def test_it_is_not_written_where_it_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="choose another file"):
        as_file(TENSOR).write(tmp_path / "file" / "ranges.json")


# --- models ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scene_ranges(scene):
    found = {}

    def get(name, target=None):
        if (name, target) not in found:
            model = ed.load(name, seed=0, config=FAMILY[name])
            found[name, target] = model, ed.ranges(model, target, pictures={"scene": scene})
        return found[name, target]

    return get


@pytest.mark.parametrize("name", ["edge_sam", "edge_sam_dyt_hq", "sam_hq_vit_tiny", "vit_b", "cwsam_moe_3b"])
def test_every_family_is_observed(scene_ranges, name):
    model, found = scene_ranges(name)
    assert set(found.parts) == ({"image_encoder", "mask_decoder"} if model.promptable else {"segmenter"})
    assert bool(found.cases) == model.promptable
    for rows in found.parts.values():
        assert all(np.isfinite([r.minimum, r.maximum, r.mean_square]).all() for r in rows)
        calls = [r for r in rows if r.operator not in ("", "input")]
        assert len(calls) > 50
        assert sum(bool(r.module) for r in calls) > 0.8 * len(calls)
    weights = {r.module: r for rows in found.parts.values() for r in rows if r.role == "weight"}
    state = {**model.state_dict(), **{f"model.{k}": v for k, v in model.state_dict().items()}}
    known = [n for n in weights if n in state]
    assert len(known) > 50
    for name in known[:20]:
        assert weights[name].maximum == float(state[name].max())


def test_the_decoder_sees_the_encoders_own_embeddings(scene_ranges):
    _, found = scene_ranges("edge_sam")
    last = found.parts["image_encoder"][-1]
    (given,) = (r for r in found.parts["mask_decoder"] if r.name == "image_embeddings")
    assert (given.minimum, given.maximum) == (last.minimum, last.maximum)


def test_behind_a_targets_passes(scene_ranges):
    _, captured = scene_ranges("edge_sam")
    _, found = scene_ranges("edge_sam", "coreml")
    assert found.target == "coreml"
    assert not [r for r in found.parts["image_encoder"] if r.operator == "batch_norm"]
    assert [r for r in captured.parts["image_encoder"] if r.operator == "batch_norm"]
    json.dumps(found.to_json(), allow_nan=False)


def test_the_same_twice(scene_ranges, scene):
    model, found = scene_ranges("edge_sam")
    assert ed.ranges(model, pictures={"scene": scene}) == found
