"""What the decoder computes from the image alone, moved to the encoder."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from passes.programs import Calls, counts, randomise
from torch import Tensor, nn

from edgesam_deploy.capture import trace
from edgesam_deploy.contract import TensorSpec, sample_inputs
from edgesam_deploy.model.transformer import Attention
from edgesam_deploy.passes.aten import canonicalize_cross_attention, eliminate_identity, fold_constants
from edgesam_deploy.passes.aten.absorb_token_projections import absorbing
from edgesam_deploy.passes.engine import EXACT, Engine
from edgesam_deploy.passes.hoist_image_side import hoist_image_side
from edgesam_deploy.passes.joint import composed, run_joint
from edgesam_deploy.passes.lower_to_onnx import lower_to_onnx
from edgesam_deploy.passes.program import Program

C, H, W = 8, 8, 10
IMAGE, EMBEDDINGS = TensorSpec("image", (1, 3, H, W)), TensorSpec("embeddings", (1, C, H, W))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, C, 1)

    def forward(self, image: Tensor) -> Tensor:
        return self.conv(image).tanh()  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """One block: tokens to image, and image to tokens."""

    pe: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.to_image, self.to_tokens = Attention(C, 2, 2), Attention(C, 2, 2)
        self.register_buffer("pe", torch.zeros(1, H * W, C))

    def forward(self, embeddings: Tensor, prompt: Tensor) -> tuple[Tensor, Tensor]:
        image = embeddings.flatten(2).transpose(1, 2) + torch.ones(C)
        placed = image + self.pe
        tokens = prompt + self.to_image(prompt, placed, image)
        return tokens, image + self.to_tokens(placed, tokens, tokens)


def encoder() -> Program:
    return trace("image_encoder", randomise(Encoder()), (IMAGE,), (EMBEDDINGS,))


def decoder(module: nn.Module | None = None, prompt: Any = (1, 5, C), outputs: int = 2) -> Program:
    module = randomise(module or Decoder(), 1)
    with torch.no_grad():
        for value in module.parameters():
            value.mul_(0.4)
    specs = EMBEDDINGS, TensorSpec("prompt", prompt)
    made = trace("mask_decoder", module, specs, tuple(TensorSpec(f"out{i}", ()) for i in range(outputs)))
    return Engine("off").run(made, (eliminate_identity, fold_constants))


class Small(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function, self.layer = function, nn.Linear(W, 4)

    def forward(self, embeddings: Tensor, prompt: Tensor) -> Any:
        return self.function(self, embeddings, prompt)


def joined(first: Program, second: Program, sites: int, proof: Any = "fast") -> tuple[Program, Program]:
    engine = Engine(proof)
    before = counts(first), counts(second), first.outputs, second.inputs
    after = run_joint(engine, first, second, hoist_image_side)
    (step,) = engine.steps
    assert (step.name, step.part, step.sites) == ("hoist_image_side", "image_encoder + mask_decoder", sites)
    assert (counts(first), counts(second), first.outputs, second.inputs) == before, "the given programs stay"
    if sites:
        assert step.error is not None
        assert step.error <= EXACT
    else:
        assert after == (first, second)
        assert step.error is None
    return after


def test_the_first_layers_projections_move() -> None:
    lopsided = Engine("fast").run(decoder(), (canonicalize_cross_attention,))
    above, below = joined(encoder(), lopsided, 4)
    assert [s.name for s in above.outputs] == ["embeddings", *(f"image_keys_{i}" for i in range(4))]
    shapes = [(1, H * W, C), (1, 2, 2, H * W), (1, 2, 2, H * W), (1, 2, 2, H * W)]
    assert [s.shape for s in above.outputs[1:]] == shapes == [s.shape for s in below.inputs[2:]]
    assert counts(above)["matmul"] == 3
    assert counts(below)["matmul"] == counts(lopsided)["matmul"] - 3
    assert not any("scaled" in name for name in below.aten.state_dict), "the weights moved too"


def test_what_moved_lowers_and_runs() -> None:
    pair = joined(encoder(), Engine("off").run(decoder(), (canonicalize_cross_attention,)), 4)
    image, prompts = sample_inputs((IMAGE,), 5), sample_inputs(decoder().inputs, 6)
    expected = composed(encoder(), decoder(), image, prompts)
    lowered = [Engine("fast").run(p, (lower_to_onnx(20, 9),)) for p in pair]
    found = composed(*lowered, image, prompts)
    module = pair[0].aten.module()(image=torch.from_numpy(image["image"]))
    assert len(module) == 5
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-3, atol=1e-4)


def test_absorbing_or_hoisting() -> None:
    """What will be hoisted is not absorbed, and after absorbing there is no product left to move."""
    absorb = absorbing(element=1e9)
    joined(encoder(), Engine("fast").run(decoder(), (absorb,)), 0)
    engine = Engine("off")
    kept = engine.run(decoder(), (absorbing(element=1e9, hoisted=frozenset({"embeddings"})),))
    assert engine.steps[0].sites == 0
    joined(encoder(), Engine("off").run(kept, (canonicalize_cross_attention,)), 4)
    engine.run(decoder(), (absorbing(element=1e9, hoisted=frozenset({"prompt"})),))
    assert engine.steps[1].sites == 2


@pytest.mark.parametrize(
    ("function", "sites"),
    [
        (lambda s, x, y: (s.layer(x) + y.sum(),), 1),
        (lambda s, x, y: (s.layer(x).sin().cos() + y.sum(), x + y.sum()), 1),
        (lambda s, x, y: (s.layer(x) + y.sum(), x.exp() + y.sum()), 2),
        (lambda s, x, y: (s.layer(x).transpose(2, 3) @ x.exp() + y.sum(),), 1),
        (lambda s, x, y: (y[:, None] @ s.layer(x)[..., :2].transpose(1, 2).flatten(1, 2)[:, None, :C],), 1),
        (lambda s, x, y: (x.sin() + y.sum(),), 0),  # no product
        (lambda s, x, y: (s.layer(x + y.sum()),), 0),  # of both
        (lambda s, x, y: (s.layer(x), y + 1), 0),  # the decoder's own output
        (lambda s, x, y: (s.layer.weight @ s.layer.weight.t() + x.sum() + y.sum(),), 0),  # a product of constants
    ],
)
def test_what_moves(function: Any, sites: int) -> None:
    outputs = len(function(Small(None), torch.zeros(1, C, H, W), torch.zeros(1, 5, C)))
    joined(encoder(), decoder(Small(function), outputs=outputs), sites)


def test_calls_is_not_needed() -> None:
    """Inputs that only share a name with nothing of the encoder's are prompts."""
    lone = trace(
        "mask_decoder", Calls(lambda _, x: x @ x.transpose(0, 1)), (TensorSpec("x", (3, 4)),), (TensorSpec("o", ()),)
    )
    joined(encoder(), lone, 0)
