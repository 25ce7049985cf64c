"""The decoder's upscaling in token layout."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from passes.programs import Calls, counts, randomise, rewritten, traced
from torch import Tensor, nn

from edgesam_deploy.model.layers import LayerNorm2d
from edgesam_deploy.passes.aten import channel_last_upscaling, eliminate_identity
from edgesam_deploy.passes.program import Program

C = 8


def upscaling(levels: int = 2, *, norm: bool = True, bias: bool = True, eps: float = 1e-6) -> nn.Sequential:
    layers: list[nn.Module] = []
    for level in range(levels):
        width = C >> level
        layers.append(nn.ConvTranspose2d(width, width // 2, 2, 2, bias=bias))
        if norm and level == 0:
            layers.append(LayerNorm2d(width // 2, eps))
        layers.append(nn.GELU("tanh" if level else "none"))
    return nn.Sequential(*layers)


def masks(s: Calls, tokens: Tensor, hyper: Tensor, grid: tuple[int, int] = (2, 3)) -> Tensor:
    """The mask decoder's last lines."""
    up = s.up(tokens.transpose(1, 2).unflatten(2, grid))
    return (hyper @ up.flatten(2)).unflatten(2, up.shape[-2:])


def program(
    up: nn.Module, function: Any = masks, tokens: Any = (1, 6, C), hyper: Any = (1, 4, 2), outputs: int = 1
) -> Program:
    return traced(randomise(Calls(function, up=up)), tokens, hyper, outputs=outputs)


def test_sams_upscaling() -> None:
    after = rewritten(program(upscaling()), channel_last_upscaling, 1)
    found = counts(after)
    assert "conv_transpose2d" not in found
    assert "permute" not in found
    assert (found["linear"], found["layer_norm"], found["gelu"]) == (2, 1, 2)


@given(
    grid=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    levels=st.integers(1, 3),
    batch=st.integers(1, 3),
    count=st.integers(1, 4),
    norm=st.booleans(),
    bias=st.booleans(),
)
@settings(max_examples=8, deadline=None, derandomize=True)
def test_any_grid_and_depth(grid: tuple[int, int], levels: int, batch: int, count: int, norm: bool, bias: bool) -> None:
    tokens, hyper = (batch, grid[0] * grid[1], C), (batch, count, C >> levels)
    before = program(upscaling(levels, norm=norm, bias=bias), lambda s, x, y: masks(s, x, y, grid), tokens, hyper)
    assert "conv_transpose2d" not in counts(rewritten(before, channel_last_upscaling, 1))


def test_the_norms_epsilon_stays() -> None:
    after = rewritten(program(upscaling(eps=0.5)), channel_last_upscaling, 1)
    (norm,) = (n for n in after.aten.graph.nodes if "layer_norm" in str(n.target))
    assert 0.5 in norm.args


@pytest.mark.parametrize(
    ("tokens", "hyper"),
    [
        (("batch", 6, C), ("batch", 4, 2)),
        ((1, 6, C), ("batch", 4, 2)),  # one image, many prompts
        ((2, 6, C), (4, 2)),  # the same hypernetworks for all
    ],
    ids=["batch", "one-image", "one-hyper"],
)
def test_batches(tokens: tuple[int | str, ...], hyper: tuple[int | str, ...]) -> None:
    rewritten(program(upscaling(), tokens=tokens, hyper=hyper), channel_last_upscaling, 1)


def test_tokens_and_hyper_may_have_other_readers() -> None:
    def function(s: Calls, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return masks(s, x, y), x.mean(1), y + 1

    rewritten(program(upscaling(), function, outputs=3), channel_last_upscaling, 1)


def test_two_decoders() -> None:
    def function(s: Calls, x: Tensor, y: Tensor) -> Tensor:
        return masks(s, x, y) + masks(s, x.relu(), y)

    before = program(upscaling(), function)
    assert "conv_transpose2d" not in counts(rewritten(before, channel_last_upscaling, 2))


def test_every_pointwise_operator() -> None:
    layers = [nn.ConvTranspose2d(C, 4, 2, 2), nn.ReLU(), nn.Tanh(), nn.Sigmoid(), nn.ConvTranspose2d(4, 2, 2, 2)]
    rewritten(program(nn.Sequential(nn.GELU(), *layers)), channel_last_upscaling, 1)


def test_identities_hide_the_pattern() -> None:
    """Why eliminate_identity comes first in the pipeline."""

    def function(s: Calls, x: Tensor, y: Tensor) -> Tensor:
        up = s.up(x.transpose(1, 2).unflatten(2, (2, 3)).clone())
        return (y @ up.flatten(2)).unflatten(2, up.shape[-2:])

    hidden = rewritten(program(upscaling(), function), channel_last_upscaling, 0)
    rewritten(rewritten(hidden, eliminate_identity, 1), channel_last_upscaling, 1)


# --- what it must leave alone ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "first",
    [
        nn.ConvTranspose2d(C, 4, 3, 2, padding=1, output_padding=1),
        nn.ConvTranspose2d(C, 4, 3, 2),
        nn.ConvTranspose2d(C, 4, 2, 2, groups=2),
        nn.ConvTranspose2d(C, 4, 3, 1, padding=1),
        nn.ConvTranspose2d(C, 4, 2, 2, output_padding=1),
        nn.ConvTranspose2d(C, 4, 2, 2, padding=1),
        nn.ConvTranspose2d(C, 4, 2, 2, dilation=2),
        nn.ConvTranspose2d(C, 4, (2, 1), (2, 1)),
        nn.Conv2d(C, 4, 1),
        nn.Sequential(nn.ConvTranspose2d(C, 4, 2, 2), nn.BatchNorm2d(4)),
        nn.Sequential(nn.ConvTranspose2d(C, 4, 2, 2), nn.Softmax(1)),
    ],
    ids=[
        "3x3, padded",
        "3x3",
        "groups",
        "stride-1",
        "output-padding",
        "padding",
        "dilation",
        "2x1",
        "conv",
        "batch-norm",
        "softmax",
    ],
)
def test_refuses_other_layers(first: nn.Module) -> None:
    rewritten(program(nn.Sequential(first, nn.GELU()), hyper=(1, 4, 4)), channel_last_upscaling, 0)


def layer_norm_of_the_map(s: Calls, x: Tensor, y: Tensor) -> Tensor:
    up = s.up(x.transpose(1, 2).unflatten(2, (2, 3)))
    up = nn.functional.layer_norm(up, (8, 12))
    return (y @ up.flatten(2)).unflatten(2, up.shape[-2:])


def map_is_read(s: Calls, x: Tensor, y: Tensor) -> Tensor:
    up = s.up(x.transpose(1, 2).unflatten(2, (2, 3)))
    return (y @ up.flatten(2)).unflatten(2, up.shape[-2:]) + up.mean()


def flat_map_is_read(s: Calls, x: Tensor, y: Tensor) -> Tensor:
    """Rewriting each product would run the chain twice."""
    up = s.up(x.transpose(1, 2).unflatten(2, (2, 3)))
    flat = up.flatten(2)
    return (y @ flat).unflatten(2, up.shape[-2:]) + (y.relu() @ flat).unflatten(2, up.shape[-2:])


def inside_is_read(s: Calls, x: Tensor, y: Tensor) -> Tensor:
    inside = s.up[0](x.transpose(1, 2).unflatten(2, (2, 3)))
    up = s.up[1:](inside)
    return (y @ up.flatten(2)).unflatten(2, up.shape[-2:]) + inside.mean()


def product_is_read(s: Calls, x: Tensor, y: Tensor) -> Tensor:
    up = s.up(x.transpose(1, 2).unflatten(2, (2, 3)))
    product = y @ up.flatten(2)
    return product.unflatten(2, up.shape[-2:]) + product.mean()


def other_size(s: Calls, x: Tensor, y: Tensor) -> Tensor:
    up = s.up(x.transpose(1, 2).unflatten(2, (2, 3)))
    return (y @ up.flatten(2)).unflatten(2, (up.shape[-1], up.shape[-2]))


def other_axis(s: Calls, x: Tensor, y: Tensor) -> Tensor:
    up = s.up(x.transpose(1, 2).unflatten(2, (2, 3)))
    return (y @ up.flatten(2)).unflatten(1, (2, 2))


def flattened_otherwise(s: Calls, x: Tensor, y: Tensor) -> Tensor:
    up = s.up(x.transpose(1, 2).unflatten(2, (2, 3)))
    return (y.repeat(1, 1, up.shape[2]) @ up.flatten(1, 2)).unflatten(2, (2, -1))


def left_side(s: Calls, x: Tensor, y: Tensor) -> Tensor:
    up = s.up(x.transpose(1, 2).unflatten(2, (2, 3)))
    return (up.flatten(2) @ y.new_ones(1, up.shape[2] * up.shape[3], 6)).unflatten(2, (2, 3))


def channels_unflattened(s: Calls, x: Tensor, y: Tensor) -> Tensor:
    up = s.up(x.unflatten(2, (2, 4)).permute(0, 2, 3, 1).flatten(1, 2).unflatten(2, (2, 3)))
    return (y @ up.flatten(2)).unflatten(2, up.shape[-2:])


def map_of_pixels(s: Calls, x: Tensor, y: Tensor) -> Tensor:
    """Tokens are the channels here: unflatten splits the wrong axis."""
    up = s.up(x.transpose(1, 2).unflatten(1, (8, 1)).transpose(2, 3).contiguous().unflatten(2, (2, 3))[..., 0])
    return (y @ up.flatten(2)).unflatten(2, up.shape[-2:])


@pytest.mark.parametrize(
    "function",
    [
        layer_norm_of_the_map, map_is_read, flat_map_is_read, inside_is_read, product_is_read, other_size, other_axis,
        flattened_otherwise, left_side, channels_unflattened, map_of_pixels,
    ],
    ids=lambda f: f.__name__,
)  # fmt: skip
def test_refuses_other_surroundings(function: Any) -> None:
    rewritten(program(upscaling(), function), channel_last_upscaling, 0)


NORMS = {
    "other axes first": lambda x: norm_over(x.permute(0, 3, 2, 1), 1).permute(0, 3, 1, 2),
    "other axes last": lambda x: norm_over(x.permute(0, 2, 3, 1), 1).permute(0, 3, 2, 1),
    "two axes": lambda x: norm_over(x.permute(0, 2, 3, 1), 2).permute(0, 3, 1, 2),
    "softmax": lambda x: x.permute(0, 2, 3, 1).softmax(-1).permute(0, 3, 1, 2),
    "linear": lambda x: nn.functional.linear(x.permute(0, 2, 3, 1), x.new_ones(4, 4)).permute(0, 3, 1, 2),
}


def norm_over(x: Tensor, axes: int) -> Tensor:
    return nn.functional.layer_norm(x, x.shape[-axes:])


@pytest.mark.parametrize("case", NORMS)
def test_refuses_other_norms(case: str) -> None:
    def function(s: Calls, x: Tensor, y: Tensor) -> Tensor:
        up = s.up[1:](NORMS[case](s.up[0](x.transpose(1, 2).unflatten(2, (2, 3)))))
        return (y @ up.flatten(2)).unflatten(2, up.shape[-2:])

    rewritten(program(upscaling(norm=False), function), channel_last_upscaling, 0)


@pytest.mark.parametrize("where", ["before", "after"])
def test_refuses_a_norm_that_is_read_inside(where: str) -> None:
    def function(s: Calls, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        last = s.up[0](x.transpose(1, 2).unflatten(2, (2, 3))).permute(0, 2, 3, 1)
        normed = norm_over(last, 1)
        up = s.up[1:](normed.permute(0, 3, 1, 2))
        return (y @ up.flatten(2)).unflatten(2, up.shape[-2:]), (last if where == "before" else normed).exp()

    rewritten(program(upscaling(norm=False), function, outputs=2), channel_last_upscaling, 0)


def test_refuses_tokens_transposed_along_the_batch() -> None:
    def function(s: Calls, x: Tensor, y: Tensor) -> Tensor:
        up = s.up(x.transpose(0, 2).unflatten(2, (2, 3)))
        return (y @ up.flatten(2)).unflatten(2, up.shape[-2:])

    rewritten(program(upscaling(), function, tokens=(6, C, 3), hyper=(3, 4, 2)), channel_last_upscaling, 0)


def test_refuses_without_a_convolution() -> None:
    rewritten(program(nn.GELU(), hyper=(1, 4, C)), channel_last_upscaling, 0)


def test_refuses_a_product_that_is_an_output() -> None:
    def function(s: Calls, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        up = s.up(x.transpose(1, 2).unflatten(2, (2, 3)))
        product = y @ up.flatten(2)
        return product.unflatten(2, up.shape[-2:]), product

    rewritten(program(upscaling(), function, outputs=2), channel_last_upscaling, 0)


def test_refuses_a_map_that_splits_the_channels() -> None:
    """(B, 2 C, P) taken for (B, C, 2, P): a map as well, but not one of tokens in a grid."""

    def function(s: Calls, x: Tensor, y: Tensor) -> Tensor:
        up = s.up(x.transpose(1, 2).unflatten(1, (C, 2)))
        return (y @ up.flatten(2)).unflatten(2, up.shape[-2:])

    rewritten(program(upscaling(norm=False), function, tokens=(1, 6, 2 * C)), channel_last_upscaling, 0)


@pytest.mark.parametrize("which", ["weight", "bias"])
def test_refuses_computed_weights(which: str) -> None:
    def function(s: Calls, x: Tensor, y: Tensor) -> Tensor:
        grid = x.transpose(1, 2).unflatten(2, (2, 3))
        weight, bias = s.up[0].weight, s.up[0].bias
        pair = (weight.tanh(), bias) if which == "weight" else (weight, bias.tanh())
        up = nn.functional.conv_transpose2d(grid, *pair, stride=2)
        return (y @ up.flatten(2)).unflatten(2, up.shape[-2:])

    rewritten(program(upscaling(1), function, hyper=(1, 4, 4)), channel_last_upscaling, 0)


def test_refuses_a_dynamic_grid() -> None:
    def function(s: Calls, x: Tensor, y: Tensor) -> Tensor:
        up = s.up(x.transpose(1, 2).unflatten(2, (x.shape[1], 1)))
        return (y @ up.flatten(2)).unflatten(2, up.shape[-2:])

    rewritten(program(upscaling(), function, tokens=(1, "tokens", C)), channel_last_upscaling, 0)
