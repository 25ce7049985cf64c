"""TinyViT against the reference's own outputs, and its window attention against loops over cells."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import golden_weights
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scenes import picture

from edgesam_deploy.model.configs import TinyVitConfig
from edgesam_deploy.model.seeded import seeded_state
from edgesam_deploy.model.tiny_vit import PatchMerge, TinyBlock, TinyVit, WindowAttention, offset_index
from edgesam_deploy.model.transforms import preprocess

DATA = Path(__file__).parents[1] / "data"
ROOM = "image_encoder."
SMALL = TinyVitConfig((8, 16, 24, 32), (1, 1, 2, 1), (1, 2, 3, 4), (3, 3, 5, 3), out_channels=16, head_classes=0)


def published():
    """Names and shapes of the encoder in Light HQ-SAM's checkpoint, in its order."""
    layout = json.loads(gzip.decompress((DATA / "layouts.json.gz").read_bytes()))["sam_hq_vit_tiny"]
    return {name: shape for name, shape in layout.items() if name.startswith(ROOM)}


def seeded(module, seed=0):
    """``module`` with every norm, bias and running statistic away from its neutral value."""
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    module.load_state_dict(seeded_state(shapes, seed))
    return module.eval()


@pytest.fixture(scope="module")
def golden_model():
    """The encoder with the golden weights."""
    with torch.device("meta"):
        model = TinyVit(TinyVitConfig(), 1024)
    state = golden_weights.state_dict(published(), seed=0)
    model = model.to_empty(device="cpu").eval()
    model.load_state_dict({name.removeprefix(ROOM): torch.from_numpy(np.asarray(v)) for name, v in state.items()})
    return model


@torch.no_grad()
def test_the_reference_outputs(golden_model):
    z = np.load(DATA / "sam_hq_vit_tiny.seed0.npz")
    image, _ = preprocess(picture(300, 451, 10), 1024)
    embeddings, (feature,) = golden_model.with_intermediate(torch.from_numpy(image))
    assert feature.shape == (1, 160, 64, 64)
    ours = {
        "image_embeddings": embeddings[:, ::4, ::2, ::2],
        "interm_0": feature.permute(0, 2, 3, 1)[:, ::8, ::8, ::8],  # theirs is (B, H, W, C)
    }
    for name, value in ours.items():
        assert value.shape == z[name].shape
        difference = value.numpy() - z[name]
        assert np.abs(difference).max() < 1e-3  # at a standard deviation of 0.8 and 0.3; measured 6e-6
        assert np.linalg.norm(difference) < 1e-5 * np.linalg.norm(z[name])  # measured 1e-6


def test_names_shapes_and_order_are_the_published_ones():
    with torch.device("meta"):
        state = TinyVit(TinyVitConfig(), 1024).state_dict()
    assert [(ROOM + name, list(value.shape)) for name, value in state.items()] == list(published().items())


@torch.no_grad()
@pytest.mark.parametrize("size", [256, 320])
def test_other_image_sizes(size):
    model = seeded(TinyVit(TinyVitConfig(), size))
    image = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    embeddings, (feature,) = model.with_intermediate(image)  # no side of the grids is a multiple of 7 or 14
    assert embeddings.shape == (2, 256, size // 16, size // 16)
    assert feature.shape == (2, 160, size // 16, size // 16)
    assert torch.equal(model(image), embeddings)
    assert torch.allclose(model(image[1:]), embeddings[1:], atol=1e-5)  # pictures of a batch do not meet


def test_strides_and_unused_head():
    model = TinyVit(SMALL, 64)
    assert not hasattr(model, "head")
    merges = [layer.downsample for layer in model.layers]
    assert [merge and merge.conv2.c.stride for merge in merges] == [(2, 2), (2, 2), (1, 1), None]
    assert isinstance(merges[0], PatchMerge)
    assert "norm_head.weight" in TinyVit(TinyVitConfig(head_classes=7), 64).state_dict()


@pytest.mark.parametrize("window", [1, 2, 7, 14])
def test_offsets_are_numbered_by_first_appearance(window):
    """As the checkpoints number them: over ordered pairs of cells, a new number for a new (|dy|, |dx|)."""
    cells = [(y, x) for y in range(window) for x in range(window)]
    numbers = {}
    expected = [[numbers.setdefault((abs(y - v), abs(x - u)), len(numbers)) for v, u in cells] for y, x in cells]
    assert offset_index(window).tolist() == expected
    assert len(numbers) == window * window


def slow_attention(attention, grid):
    """Window attention of a grid (H, W, C) by loops, in float64: cells beyond the edge are zeros before the norm."""
    p = {name: value.double().numpy() for name, value in attention.state_dict().items()}
    window, heads = attention.window, attention.heads
    height, width, channels = grid.shape
    size = channels // heads
    cells = {}
    for y in range(-(-height // window) * window):
        for x in range(-(-width // window) * window):
            cell = grid[y, x] if y < height and x < width else np.zeros(channels)
            cell = (cell - cell.mean()) / np.sqrt(cell.var() + 1e-5) * p["norm.weight"] + p["norm.bias"]
            cells[y, x] = (p["qkv.weight"] @ cell + p["qkv.bias"]).reshape(heads, 3, size)
    out = np.zeros(grid.shape)
    for y, x in np.ndindex(height, width):
        keys = [cell for cell in cells if (cell[0] // window, cell[1] // window) == (y // window, x // window)]
        mixed = []
        for head in range(heads):
            query = cells[y, x][head, 0]
            biases = [p["attention_biases"][head, abs(y - v) * window + abs(x - u)] for v, u in keys]
            scores = np.array([query @ cells[key][head, 1] for key in keys]) / np.sqrt(size) + biases
            weights = np.exp(scores - scores.max())
            mixed.append(weights / weights.sum() @ np.array([cells[key][head, 2] for key in keys]))
        out[y, x] = p["proj.weight"] @ np.concatenate(mixed) + p["proj.bias"]
    return out


@settings(deadline=None, max_examples=15)
@given(height=st.integers(1, 7), width=st.integers(1, 7), window=st.integers(1, 4), seed=st.integers(0, 99))
def test_a_block_is_attention_local_convolution_and_mlp(height, width, window, seed):
    block = seeded(TinyBlock(6, 2, window, TinyVitConfig(mlp_ratio=2)), seed)
    rng = np.random.RandomState(seed)
    block.attn.attention_biases.data = torch.from_numpy(rng.standard_normal((2, window**2)).astype(np.float32))
    grid = rng.standard_normal((height, width, 6))
    attended = torch.from_numpy(grid + slow_attention(block.attn, grid)).float().permute(2, 0, 1)[None]
    with torch.no_grad():
        local = block.local_conv(attended).permute(0, 2, 3, 1)
        expected = (local + block.mlp(local)).permute(0, 3, 1, 2)
        found = block(torch.from_numpy(grid).float().permute(2, 0, 1)[None])
    assert found.shape == (1, 6, height, width)
    assert torch.allclose(found, expected, atol=1e-5)


def test_padding_is_attended_to():
    """A window with padding and the same cells alone differ: padded cells are keys too."""
    attention = seeded(WindowAttention(8, 2, 2))
    cell = torch.randn(1, 1, 1, 8, generator=torch.Generator().manual_seed(2))
    padded = torch.nn.functional.pad(cell, (0, 0, 0, 1, 0, 1))
    repeated = cell.expand(1, 2, 2, 8)
    with torch.no_grad():
        assert not torch.allclose(attention(padded)[:, 0], attention(repeated)[:, 0], atol=1e-2)


def test_an_export_holds_the_biases_as_constants():
    """The lookup depends on no input, and its index is no buffer, which a model made empty would leave unset."""
    model = TinyVit(SMALL, 64).eval()
    assert not {name for name, _ in model.named_buffers()} - set(model.state_dict())
    program = torch.export.export(model, (torch.zeros(1, 3, 64, 64),))
    image = {program.graph_signature.user_inputs[0]}
    for node in program.graph.nodes:
        if image & {source.name for source in node.all_input_nodes}:
            image.add(node.name)
    lookups = [node for node in program.graph.nodes if node.target is torch.ops.aten.index.Tensor]
    assert len(lookups) == sum(SMALL.depths[1:])
    assert not image & {node.name for node in lookups}
    ranks = [node.meta["val"].ndim for node in program.graph.nodes if isinstance(node.meta.get("val"), torch.Tensor)]
    assert max(ranks) <= 6  # window_partition's; attention itself has four axes
