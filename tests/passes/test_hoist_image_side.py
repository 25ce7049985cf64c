"""What the decoder computes from the image alone, moved to the encoder."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from passes.programs import Calls, counts, randomise, traced
from torch import Tensor, nn

from edgesam_deploy.capture import trace
from edgesam_deploy.contract import TensorSpec, sample_inputs
from edgesam_deploy.model.transformer import Attention
from edgesam_deploy.passes.aten import canonicalize_cross_attention, eliminate_identity, fold_constants
from edgesam_deploy.passes.aten.absorb_token_projections import ELEMENT, absorbing
from edgesam_deploy.passes.engine import EXACT, Engine
from edgesam_deploy.passes.hoist_image_side import hoist_image_side, hoisting, work
from edgesam_deploy.passes.joint import composed, run_joint, run_joint_on_twin
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


def test_after_absorbing_there_is_no_product_left_to_move() -> None:
    joined(encoder(), Engine("fast").run(decoder(), (absorbing(element=1e9),)), 0)


def moved(prompts: int) -> int:
    """Values that move for so many prompts per image, where absorbing always pays for the decoder alone."""
    return hoisting(prompts, absorbing(element=1e9))(encoder(), decoder())


def test_hoisting_pays_from_some_number_of_prompts_on() -> None:
    alone, (above, below) = decoder(), (encoder(), decoder())
    absorbing(element=1e9)(alone)
    hoist_image_side(above, below)
    once, saved = work(above) - work(encoder()), work(alone) - work(below)
    assert once > saved > 0
    even = once // saved
    assert [bool(moved(prompts)) for prompts in (1, even, even + 1, 1000)] == [False, False, True, True]


def test_hoisting_never_pays_where_nothing_depends_on_the_image_alone() -> None:
    module = Small(lambda self, embeddings, prompt: self.layer(embeddings + prompt))
    programs = encoder(), decoder(module, prompt=(1, C, H, W), outputs=1)
    assert hoisting(1000, absorbing())(*programs) == 0


def test_fewer_than_one_prompt_is_no_number() -> None:
    with pytest.raises(ValueError, match="0 prompts per image"):
        hoisting(0, absorbing())


@pytest.mark.parametrize(
    ("function", "sizes", "expected"),
    [
        (lambda s, x: x @ s.w, {"w": (4, 7)}, 3 * 7 * (4 + ELEMENT)),
        (lambda s, x: torch.nn.functional.linear(x, s.w), {"w": (7, 4)}, 3 * 7 * (4 + ELEMENT)),
        (lambda s, x: torch.conv2d(x.reshape(1, 3, 2, 2), s.w), {"w": (5, 3, 1, 1)}, 5 * 4 * (3 + ELEMENT)),
        (
            lambda s, x: torch.conv_transpose2d(x.reshape(1, 3, 2, 2), s.w, stride=2),
            {"w": (3, 5, 2, 2)},
            4 * 3 * 5 * 4 + 5 * 16 * ELEMENT,
        ),
        (lambda s, x: x.softmax(-1) + s.w, {"w": (4,)}, 0),
    ],
)
def test_work(function: Any, sizes: dict[str, tuple[int, ...]], expected: int) -> None:
    module = Calls(function)
    for name, size in sizes.items():
        module.register_buffer(name, torch.ones(size))
    assert work(traced(module, (3, 4))) == expected


def test_proved_on_a_twin_of_the_encoder() -> None:
    engine = Engine("fast")
    big = Engine("off").run(encoder(), ())
    above, twin, below = run_joint_on_twin(engine, big, encoder(), decoder(), hoist_image_side)
    (step,) = engine.steps
    assert step.on_twin
    assert step.error is not None
    assert above.outputs == twin.outputs
    image, prompts = sample_inputs((IMAGE,), 5), sample_inputs(decoder().inputs, 6)
    found = composed(above, below, image, prompts)
    for name, value in composed(encoder(), decoder(), image, prompts).items():
        np.testing.assert_allclose(found[name], value, rtol=1e-3, atol=1e-4)


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


def test_work_of_a_dynamic_dimension() -> None:
    """It counts as ten tokens."""
    program = traced(Calls(lambda s, x: x @ s.w, w=torch.ones(4, 7)), ("n", 4))
    assert work(program) == 10 * 7 * (4 + ELEMENT)
