"""Operators that coremltools cannot evaluate itself, against PyTorch or a definition in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edgesam_deploy.errors import UnsupportedOperators
from edgesam_deploy.targets.coreml.interpreter.operators import OPERATORS, convolution
from edgesam_deploy.targets.coreml.interpreter.operators.resizing import grid_points

QUICK = settings(max_examples=60, deadline=None, derandomize=True)


def values(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def ints(*numbers):
    return np.asarray(numbers, np.int32)


def close(got, wanted, tolerance=2e-5):
    wanted = wanted.numpy() if isinstance(wanted, torch.Tensor) else np.asarray(wanted)
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=tolerance)


CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@st.composite
def convolutions(draw, transposed=False):
    """(x, weight, bias, strides, dilations, pads, groups), all sizes small."""
    count = draw(st.integers(1, 3))
    groups = draw(st.sampled_from([1, 1, 2, 4]))
    each = draw(st.integers(1, 2)), draw(st.integers(1, 3))  # channels per group, in and out
    kernel, strides, dilations, before, after = (
        [draw(st.integers(low, high)) for _ in range(count)] for low, high in ((1, 3), (1, 3), (1, 2), (0, 2), (0, 2))
    )
    sizes = [draw(st.integers((k - 1) * d + 1, 7)) for k, d in zip(kernel, dilations, strict=True)]
    x = values(draw(st.integers(1, 2)), each[0] * groups, *sizes)
    shape = (each[0] * groups, each[1]) if transposed else (each[1] * groups, each[0])
    bias = values(each[1] * groups) if draw(st.booleans()) else None
    return x, values(*shape, *kernel, seed=1), bias, strides, dilations, list(zip(before, after, strict=True)), groups


@given(convolutions())
@QUICK
def test_conv_is_pytorchs(case):
    x, weight, bias, strides, dilations, pads, groups = case
    flat = [side for pair in reversed(pads) for side in pair]
    b = None if bias is None else torch.from_numpy(bias)
    padded = F.pad(torch.from_numpy(x), flat)
    wanted = CONVOLUTIONS[x.ndim - 2](padded, torch.from_numpy(weight), b, strides, 0, dilations, groups)
    got = OPERATORS["conv"](
        x=x, weight=weight, bias=bias, strides=ints(*strides), dilations=ints(*dilations), pad_type="custom",
        pad=ints(*(side for pair in pads for side in pair)), groups=np.int32(groups),
    )  # fmt: skip
    close(got, wanted)


@given(convolutions(transposed=True), st.booleans())
@QUICK
def test_conv_transpose_is_pytorchs(case, with_shape):
    x, weight, bias, strides, dilations, pads, groups = case
    b = None if bias is None else torch.from_numpy(bias)
    full = TRANSPOSED[x.ndim - 2](
        torch.from_numpy(x), torch.from_numpy(weight), b, strides, 0, 0, groups, dilations
    ).numpy()
    pads = [(min(a, (n - 1) // 2), min(c, (n - 1) // 2)) for (a, c), n in zip(pads, full.shape[2:], strict=True)]
    wanted = full[:, :, *(slice(a, n - c) for (a, c), n in zip(pads, full.shape[2:], strict=True))]
    got = OPERATORS["conv_transpose"](
        x=x, weight=weight, bias=bias, strides=ints(*strides), dilations=ints(*dilations), pad_type="custom",
        pad=ints(*(side for pair in pads for side in pair)), groups=np.int32(groups),
        output_shape=ints(*wanted.shape) if with_shape else None,
    )  # fmt: skip
    close(got, wanted)


def test_conv_transpose_with_an_output_padding():
    x, weight = values(1, 3, 5, 4), values(3, 2, 3, 3, seed=1)
    wanted = F.conv_transpose2d(torch.from_numpy(x), torch.from_numpy(weight), None, 2, 1, 1)
    got = OPERATORS["conv_transpose"](
        x=x, weight=weight, strides=ints(2, 2), pad_type="custom", pad=ints(1, 1, 1, 1),
        output_shape=ints(*wanted.shape),
    )  # fmt: skip
    close(got, wanted)
    same = OPERATORS["conv_transpose"](x=x, weight=weight, strides=ints(2, 2), pad_type="same")
    assert same.shape == (1, 2, 10, 8)


@pytest.mark.parametrize(("pad_type", "front"), [("same", 0), ("same_lower", 1)])
def test_same_padding_has_the_odd_one_behind_or_in_front(pad_type, front):
    x, weight = values(1, 2, 6), values(3, 2, 3, seed=1)
    got = OPERATORS["conv"](x=x, weight=weight, strides=ints(2), pad_type=pad_type)
    wanted = F.conv1d(F.pad(torch.from_numpy(x), (front, 1 - front)), torch.from_numpy(weight), stride=2)
    close(got, wanted)


def test_patches_are_taken_in_stripes(monkeypatch):
    x, weight = values(2, 4, 11, 9), values(6, 4, 3, 3, seed=1)
    monkeypatch.setattr(convolution, "PATCHES", 700)  # two rows of output at a time
    got = OPERATORS["conv"](x=x, weight=weight, pad_type="custom", pad=ints(1, 1, 1, 1), strides=ints(2, 1))
    close(got, F.conv2d(torch.from_numpy(x), torch.from_numpy(weight), stride=(2, 1), padding=1))


@pytest.mark.parametrize("bias", [None, values(5, seed=2)])
def test_depthwise_channels_are_taken_in_blocks(monkeypatch, bias):
    x, weight = values(2, 5, 9, 8), values(5, 1, 3, 3, seed=1)
    monkeypatch.setattr(convolution, "BLOCK", 50)  # two channels at a time
    got = OPERATORS["conv"](
        x=x, weight=weight, bias=bias, groups=np.int32(5), strides=ints(2, 2), dilations=ints(1, 2),
        pad_type="custom", pad=ints(1, 1, 2, 2),
    )  # fmt: skip
    b = None if bias is None else torch.from_numpy(bias)
    close(got, F.conv2d(torch.from_numpy(x), torch.from_numpy(weight), b, 2, (1, 2), (1, 2), 5))


def test_unknown_padding_is_refused():
    with pytest.raises(UnsupportedOperators, match="pad_type mirror"):
        OPERATORS["conv"](x=values(1, 1, 3), weight=values(1, 1, 1), pad_type="mirror")


@given(st.integers(1, 3), st.integers(1, 3), st.integers(0, 1), st.integers(3, 8), st.booleans(), st.booleans())
@QUICK
def test_pools_are_pytorchs(kernel, stride, pad, size, up, exclude):
    pad = min(pad, kernel // 2)
    assume(not up or pad or stride <= kernel)  # else MIL starts a window outside, PyTorch does not
    x = values(2, 3, size, size + 1)
    common = {
        "x": x, "kernel_sizes": ints(kernel, kernel), "strides": ints(stride, stride), "pad_type": "custom",
        "pad": ints(pad, pad, pad, pad), "ceil_mode": np.bool_(up),
    }  # fmt: skip
    t = torch.from_numpy(x)
    close(OPERATORS["max_pool"](**common), F.max_pool2d(t, kernel, stride, pad, ceil_mode=up))
    if not up:  # rounded up, PyTorch's last window is cut at the padding, MIL's is not
        got = OPERATORS["avg_pool"](**common, exclude_padding_from_average=np.bool_(exclude))
        close(got, F.avg_pool2d(t, kernel, stride, pad, count_include_pad=not exclude))
        squares = F.avg_pool2d(t * t, kernel, stride, pad) * kernel * kernel
        close(OPERATORS["l2_pool"](**common), squares.sqrt())


@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 3, 4, 5)])
def test_norms_are_pytorchs(shape):
    x, mean, gamma, beta = values(*shape), values(3, seed=1), values(3, seed=2), values(3, seed=3)
    variance = np.abs(values(3, seed=4)) + 0.1
    t, m, v, g, b = (torch.from_numpy(a) for a in (x, mean, variance, gamma, beta))
    eps = np.float32(1e-3)
    got = OPERATORS["batch_norm"](x=x, mean=mean, variance=variance, gamma=gamma, beta=beta, epsilon=eps)
    close(got, F.batch_norm(t, m, v, g, b, eps=1e-3))
    close(OPERATORS["batch_norm"](x=x, mean=mean, variance=variance), F.batch_norm(t, m, v))
    close(
        OPERATORS["instance_norm"](x=x, gamma=gamma, beta=beta, epsilon=eps),
        F.instance_norm(t, None, None, g, b, eps=1e-3),
    )
    got = OPERATORS["local_response_norm"](
        x=x, size=np.int32(3), alpha=np.float32(0.1), beta=np.float32(0.5), k=np.float32(2)
    )
    close(got, F.local_response_norm(t, 3, 0.1, 0.5, 2.0))


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
@QUICK
def test_bilinear_resizing_is_pytorchs(height, width, wanted):
    x = values(1, 2, height, width)
    for aligned, mode in ((False, "UNALIGN_CORNERS"), (True, "STRICT_ALIGN_CORNERS")):
        reference = F.interpolate(torch.from_numpy(x), (wanted, wanted + 1), mode="bilinear", align_corners=aligned)
        size = {"target_size_height": np.int32(wanted), "target_size_width": np.int32(wanted + 1)}
        close(OPERATORS["resize_bilinear"](x=x, **size, sampling_mode=mode), reference)
        got = OPERATORS["resize"](x=x, shape=ints(wanted, wanted + 1), resized_dims=np.uint32(2), sampling_mode=mode)
        close(got, reference)
    nearest = F.interpolate(torch.from_numpy(x), (wanted, wanted + 1), mode="nearest")
    close(OPERATORS["resize_nearest_neighbor"](x=x, **size), nearest)
    close(OPERATORS["resize"](x=x, shape=ints(wanted, wanted + 1), resized_dims=np.uint32(2),
                              interpolation_mode="NEAREST_NEIGHBOR"), nearest)  # fmt: skip


@pytest.mark.parametrize("scale", [2, 3, np.float32(1.5)])
def test_upsampling_is_pytorchs(scale):
    x, factors = values(1, 2, 4, 6), {"scale_factor_height": np.asarray(scale), "scale_factor_width": np.asarray(2)}
    t, size = torch.from_numpy(x), (int(4 * scale), 12)
    for aligned in (False, True):
        got = OPERATORS["upsample_bilinear"](x=x, **factors, align_corners=np.bool_(aligned))
        close(got, F.interpolate(t, size, mode="bilinear", align_corners=aligned))
    close(OPERATORS["upsample_nearest_neighbor"](x=x, **factors), F.interpolate(t, size, mode="nearest"))
    corners = OPERATORS["upsample_bilinear"](
        x=x, **factors, align_corners=np.bool_(False), half_pixel_centers=np.bool_(False)
    )
    close(corners[..., ::2][:, :, 0], x[:, :, 0])  # samples from the corner on: every second one is a pixel
    with pytest.raises(UnsupportedOperators, match="half_pixel_centers"):
        OPERATORS["upsample_bilinear"](x=x, half_pixel_centers=np.bool_(True))


def test_grid_points_are_those_of_the_specification():
    """The worked examples of resize_bilinear's documentation, for two input pixels."""
    examples = {
        ("UNALIGN_CORNERS", 5): [0, 0.1, 0.5, 0.9, 1],
        ("STRICT_ALIGN_CORNERS", 5): [0, 0.25, 0.5, 0.75, 1],
        ("ALIGN_CORNERS", 5): [0, 0.25, 0.5, 0.75, 1],
        ("DEFAULT", 5): [0, 0.4, 0.8, 1, 1],
        ("OFFSET_CORNERS", 5): [0.1, 0.3, 0.5, 0.7, 0.9],
        ("UNALIGN_CORNERS", 6): [0, 0, 1 / 3, 2 / 3, 1, 1],
        ("DEFAULT", 6): [0, 1 / 3, 2 / 3, 1, 1, 1],
        ("OFFSET_CORNERS", 6): [1 / 12, 0.25, 5 / 12, 7 / 12, 0.75, 11 / 12],
        ("ALIGN_CORNERS", 1): [0.5],
        ("STRICT_ALIGN_CORNERS", 1): [0],
    }
    for (mode, count), wanted in examples.items():
        np.testing.assert_allclose(grid_points(2, count, mode), wanted, atol=1e-12)
    with pytest.raises(UnsupportedOperators, match="sampling mode NEAR"):
        grid_points(2, 5, "NEAR")


def test_pixels_and_channels_change_places():
    x = values(2, 12, 3, 5)
    t = torch.from_numpy(x)
    two = np.int32(2)
    close(OPERATORS["pixel_shuffle"](x=x, upscale_factor=two), F.pixel_shuffle(t, 2))
    y = values(2, 3, 6, 4)
    close(OPERATORS["pixel_unshuffle"](x=y, downscale_factor=two), F.pixel_unshuffle(torch.from_numpy(y), 2))
    depth = OPERATORS["space_to_depth"](x=y, block_size=two)
    for i, j in np.ndindex(2, 2):  # the place in the block is the slow part of the channel
        np.testing.assert_array_equal(depth[:, 3 * (2 * i + j) : 3 * (2 * i + j) + 3], y[:, :, i::2, j::2])
    np.testing.assert_array_equal(OPERATORS["depth_to_space"](x=depth, block_size=two), y)


def test_pixels_and_batch_change_places():
    x = values(2, 3, 5, 4)
    block, pads = ints(3, 2), np.array([[1, 0], [0, 2]], np.int32)
    batches = OPERATORS["space_to_batch"](x=x, block_shape=block, paddings=pads)
    padded = np.pad(x, [(0, 0), (0, 0), (1, 0), (0, 2)])
    for i, j in np.ndindex(3, 2):
        np.testing.assert_array_equal(batches[2 * (2 * i + j) : 2 * (2 * i + j) + 2], padded[:, :, i::3, j::2])
    np.testing.assert_array_equal(OPERATORS["batch_to_space"](x=batches, block_shape=block, crops=pads), x)


def test_windows_and_crops():
    x = values(2, 7, 3)
    got = OPERATORS["sliding_windows"](x=x, axis=ints(1), size=ints(3), stride=ints(2))
    close(got, torch.from_numpy(x).unfold(1, 3, 2).permute(0, 1, 3, 2))
    y = values(1, 2, 6, 7)
    np.testing.assert_array_equal(
        OPERATORS["crop"](x=y, crop_height=ints(1, 2), crop_width=ints(0, 3)), y[:, :, 1:4, :4]
    )


def test_concat_can_interleave_and_takes_scalars():
    x, y = values(2, 3), values(2, 3, seed=1)
    got = OPERATORS["concat"](values=(x, y), axis=ints(1), interleave=np.bool_(True))
    np.testing.assert_array_equal(got[:, ::2], x)
    np.testing.assert_array_equal(got[:, 1::2], y)
    np.testing.assert_array_equal(OPERATORS["concat"](values=(np.int32(3), np.int32(4)), axis=ints(0)), [3, 4])
    np.testing.assert_array_equal(OPERATORS["concat"](values=x, axis=ints(0)), x)


def test_squeeze_keeps_what_is_not_one():
    assert OPERATORS["squeeze"](x=values(2, 1, 4), axes=ints(0, 1)).shape == (2, 4)


def test_reverse_sequence():
    x = values(2, 4, 3)
    got = OPERATORS["reverse_sequence"](x=x, lengths=ints(3, 1), seq_axis=ints(1), batch_axis=ints(0))
    np.testing.assert_array_equal(got[0], x[0][[2, 1, 0, 3]])
    np.testing.assert_array_equal(got[1], x[1])


def test_reshape_like_joins_parts_of_shapes():
    refs = values(5, 4, 2), values(7, 3)
    got = OPERATORS["reshape_like"](
        x=values(4, 6), ref_tensors=refs, begins=ints(1, 1), ends=ints(0, 2), end_masks=np.array([True, False])
    )
    assert got.shape == (4, 2, 3)


def test_cumsum_can_exclude():
    x = values(3, 4)
    got = OPERATORS["cumsum"](x=x, axis=ints(1), exclusive=np.bool_(True))
    close(got, np.concatenate([np.zeros((3, 1), np.float32), np.cumsum(x, 1)[:, :-1]], 1))
    backwards = OPERATORS["cumsum"](x=x, axis=ints(1), exclusive=np.bool_(True), reverse=np.bool_(True))
    close(backwards, np.cumsum(x[:, ::-1], 1)[:, ::-1] - x, 1e-5)


def test_gather_nd_indexes_the_leading_dimensions():
    x, index = values(3, 4, 5), ints(0, 2, 1, 3).reshape(2, 2)
    np.testing.assert_array_equal(OPERATORS["gather_nd"](x=x, indices=index), x[[0, 1], [2, 3]])
    batched = ints(1, 3, 0, 2, 2, 1).reshape(3, 2, 1)
    got = OPERATORS["gather_nd"](x=x, indices=batched, batch_dims=ints(1))
    np.testing.assert_array_equal(got, np.stack([x[i][batched[i, :, 0]] for i in range(3)]))


@pytest.mark.parametrize("mode", ["add", "sub", "mul", "div", "max", "min", "update"])
def test_scatters_apply_their_mode(mode):
    """An index that comes twice counts twice; the reference is a loop."""
    apply = {
        "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "max": np.maximum,
        "min": np.minimum, "update": lambda old, new: new,
    }[mode]  # fmt: skip
    data, indices = values(3, 5), ints(1, 4, 1)
    updates = values(3, 3, seed=1)
    wanted = data.copy()
    for place, k in enumerate(indices):
        wanted[:, k] = apply(wanted[:, k], updates[:, place])
    close(OPERATORS["scatter"](data=data, indices=indices, updates=updates, axis=ints(1), mode=mode), wanted)
    grid = np.stack(np.broadcast_arrays(np.arange(3)[:, None], indices[None]), -1).astype(np.int32)
    close(OPERATORS["scatter_nd"](data=data, indices=grid, updates=updates, mode=mode), wanted)
    along = np.broadcast_to(indices, (3, 3))
    close(OPERATORS["scatter_along_axis"](data=data, indices=along, updates=updates, axis=ints(1), mode=mode), wanted)


def test_scatter_refuses_an_unknown_mode():
    with pytest.raises(UnsupportedOperators, match="mode mean"):
        OPERATORS["scatter"](data=values(3), indices=ints(1), updates=values(1), mode="mean")


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_one_hot_is_pytorchs(axis):
    index = ints(0, 2, 1, 2).reshape(2, 2)
    wanted = F.one_hot(torch.from_numpy(index.astype(np.int64)), 3).movedim(-1, axis).numpy()
    got = OPERATORS["one_hot"](indices=index, one_hot_vector_size=ints(3), axis=ints(axis))
    np.testing.assert_array_equal(got, wanted)
    scaled = OPERATORS["one_hot"](
        indices=index, one_hot_vector_size=ints(3), axis=ints(axis), on_value=np.float32(2), off_value=np.float32(-1)
    )
    np.testing.assert_array_equal(scaled, np.where(wanted, 2, -1))
    assert scaled.dtype == np.float32
    assert OPERATORS["one_hot"](indices=ints(5), one_hot_vector_size=ints(3)).sum() == 0


def test_sorts_keep_the_order_of_equal_values():
    x = np.array([[1, 2, 1, 2, 0]], np.float32)
    np.testing.assert_array_equal(OPERATORS["argsort"](x=x), [[1, 3, 0, 2, 4]])
    many = np.random.default_rng(0).integers(0, 3, 500).astype(np.float32)
    wanted = sorted(range(500), key=lambda i: (-many[i], i))
    np.testing.assert_array_equal(OPERATORS["argsort"](x=many), wanted)
    found, places = OPERATORS["topk"](x=x.astype(np.uint8), k=ints(3), output_indices_dtype="uint16")
    np.testing.assert_array_equal(found, [[2, 2, 1]])
    np.testing.assert_array_equal(places, [[1, 3, 0]])
    assert places.dtype == np.uint16
    assert isinstance(OPERATORS["topk"](x=x, return_indices=np.bool_(False)), np.ndarray)


def test_silu_is_pytorchs():
    x = values(40, 50)
    close(OPERATORS["silu"](x=x), F.silu(torch.from_numpy(x)))


@given(st.integers(-128, 127), st.booleans())
@QUICK
def test_dequantize_undoes_quantize(zero, per_channel):
    x = values(2, 3, 4)
    scale = np.array([0.1, 0.2, 0.3], np.float32) if per_channel else np.float32(0.2)
    offset = np.full(3, zero, np.int8) if per_channel else np.int8(zero)
    steps = OPERATORS["quantize"](input=x, scale=scale, zero_point=offset, axis=ints(1), output_dtype="int8")
    got = OPERATORS["dequantize"](input=steps, scale=scale, zero_point=offset, axis=ints(1))
    step = scale[None, :, None] if per_channel else scale
    inside = (steps > -128) & (steps < 127)
    assert (np.abs(got - x) <= step / 2 + 1e-6)[inside].all()
    assert inside.any() or abs(zero) > 100
