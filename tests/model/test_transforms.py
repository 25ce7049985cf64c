"""Pictures in and masks out, against PyTorch, torchvision's formulas and damaged files."""

from __future__ import annotations

import ast
import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional

from edgesam_deploy.errors import ImageError, PromptError
from edgesam_deploy.model import mask_generator, masks, transforms
from edgesam_deploy.model.transforms import (
    check_image,
    normalize_and_pad,
    preprocess,
    read_image,
    resize_longest_side,
    resize_mask_window,
    resize_masks,
    resized_size,
    scale_boxes,
    scale_coords,
    stability_score,
)


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def logits(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.asarray(np.random.default_rng(seed).standard_normal(shape) * 8, dtype=np.float32)


def two_steps(
    low: NDArray[np.float32], inner: tuple[int, int], size: tuple[int, int], side: int
) -> NDArray[np.float32]:
    """The reference's postprocess_masks on (B, C, h, w)."""
    masks = functional.interpolate(torch.from_numpy(low), (side, side), mode="bilinear", align_corners=False)
    masks = masks[..., : inner[0], : inner[1]]
    return np.asarray(functional.interpolate(masks, size, mode="bilinear", align_corners=False).numpy())


@pytest.mark.parametrize("module", [transforms, masks, mask_generator])
def test_needs_no_torch(module: Any) -> None:
    tree = ast.parse(Path(module.__file__).read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not [name for name in imported if name.split(".")[0] in ("torch", "torchvision")]


# --- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm", "webp"])
def test_reads_lossless_files(tmp_path: Path, suffix: str) -> None:
    image = picture(7, 5)
    Image.fromarray(image).save(tmp_path / f"a.{suffix}", lossless=True)
    read = read_image(tmp_path / f"a.{suffix}")
    assert read.dtype == np.uint8
    assert read.flags.writeable
    np.testing.assert_array_equal(read, image)


def test_one_pixel(tmp_path: Path) -> None:
    Image.fromarray(picture(1, 1)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(str(tmp_path / "a.png")), picture(1, 1))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "L", "P", "1", "CMYK", "YCbCr", "HSV"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    source = Image.fromarray(picture(6, 4)).convert(mode)
    path = tmp_path / ("a.tif" if mode in ("CMYK", "YCbCr") else "a.png")
    if mode == "HSV":  # no file holds it: the conversion alone
        np.testing.assert_array_equal(transforms._to_rgb(source), np.asarray(source.convert("RGB")))
        return
    source.save(path)
    np.testing.assert_array_equal(read_image(path), np.asarray(source.convert("RGB")))


def test_alpha_is_dropped_and_not_blended(tmp_path: Path) -> None:
    rgba = np.dstack([picture(6, 4), np.zeros((6, 4), np.uint8)])
    Image.fromarray(rgba).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), rgba[..., :3])


def test_palette_with_transparency_warns_nothing(tmp_path: Path) -> None:
    source = Image.fromarray(picture(6, 4)).convert("P")
    source.save(tmp_path / "a.png", transparency=bytes(range(200)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.asarray(source.convert("RGB")))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey_is_scaled_by_its_declared_range(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(np.array([[0, 128, 257, 65535]], np.uint16)).save(tmp_path / f"a.{suffix}")
    assert read_image(tmp_path / f"a.{suffix}")[0].tolist() == [[v] * 3 for v in (0, 0, 1, 255)]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 7, 255]], np.int32), [0, 7, 255]),
        (np.array([[0, 257, 65535]], np.int32), [0, 1, 255]),
        (np.array([[-100, 0, 100]], np.int32), [0, 128, 255]),
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[0.0, 64.2, 255.0]], np.float32), [0, 64, 255]),
        (np.array([[np.nan, np.inf, 0.2]], np.float32), [0, 0, 51]),
        (np.array([[-3e38, np.nan, 3e38]], np.float32), [0, 0, 255]),
        (np.array([[-5.0, -5.0, -5.0]], np.float32), [0, 0, 0]),
        (np.array([[np.nan, 70000.0, 80000.0]], np.float32), [0, 0, 255]),
        (np.array([[np.nan, np.nan]], np.float32), [0, 0]),
    ],
)
def test_samples_without_declared_range(tmp_path: Path, values: NDArray[Any], expected: list[int]) -> None:
    Image.fromarray(values).save(tmp_path / "a.tif")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = read_image(tmp_path / "a.tif")
    assert read[0, :, 0].tolist() == expected


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, suffix: str, orientation: int) -> None:
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :8] = 255  # a bright corner tells all eight orientations apart together with the sides
    upright[:8, 24:] = 128
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.transpose(1, 0, 2), 6: np.rot90(upright), 7: np.rot90(upright.transpose(1, 0, 2), 2),
        8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    image = Image.fromarray(np.ascontiguousarray(stored))
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / f"a.{suffix}", exif=exif, quality=100)
    read = read_image(tmp_path / f"a.{suffix}")
    assert read.shape == upright.shape
    assert np.abs(read.astype(int) - upright).max() <= 8


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_counts_as_upright(tmp_path: Path) -> None:
    image = Image.fromarray(picture(8, 8))
    image.save(tmp_path / "a.png", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff garbage")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), picture(8, 8))


def test_first_frame_of_several(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "a.gif")[0, 0].tolist() == [255, 0, 0]


def test_missing_folder_and_foreign_files(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("this is not a picture\n" * 50)
    (tmp_path / "empty.jpg").touch()
    for path, words in [
        (tmp_path / "absent.png", "no such picture"),
        (tmp_path, "is a folder"),
        (tmp_path / "text.png", "not a picture"),
        (tmp_path / "empty.jpg", "not a picture"),
        (Path("bad\0name.png"), "bad"),
    ]:
        with pytest.raises(ImageError, match=words):
            read_image(path)


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture(24, 40)).save(buffer, kind)
    return buffer.getvalue()


ENCODED = {kind: encoded(kind) for kind in ("JPEG", "PNG", "TIFF", "WEBP", "GIF", "BMP")}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "GIF", "BMP"])
def test_truncated_files_are_named(tmp_path: Path, kind: str) -> None:
    (tmp_path / "half").write_bytes(ENCODED[kind][: len(ENCODED[kind]) // 2])
    with pytest.raises(ImageError, match="half"):
        read_image(tmp_path / "half")


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(sorted(ENCODED)),
    cut=st.floats(0.02, 1.0),
    edits=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=6),
)
def test_damaged_files_read_or_raise_image_error(
    tmp_path: Path, kind: str, cut: float, edits: list[tuple[float, int]]
) -> None:
    data = bytearray(ENCODED[kind][: max(4, int(len(ENCODED[kind]) * cut))])
    for position, value in edits:
        data[int(position * len(data))] = value
    (tmp_path / "damaged").write_bytes(bytes(data))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = read_image(tmp_path / "damaged")
        except ImageError:
            return
    check_image(image)


def test_decompression_bomb_names_the_limit(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b""))
    with pytest.raises(ImageError, match="limit of 178,956,970"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ([[0]], "builtins.list"),
        (torch.zeros(3, 4, 4), "torch.Tensor"),
        (np.zeros((4, 4), np.uint8), r"\(4, 4\), uint8"),
        (np.zeros((4, 4, 4), np.uint8), r"\(4, 4, 4\)"),
        (np.zeros((3, 4, 5), np.uint8), "transpose"),
        (np.zeros((4, 4, 3), np.float32), "float32; scale it"),
        (np.zeros((0, 4, 3), np.uint8), "at least one pixel"),
    ],
)
def test_check_image_names_what_it_got(image: object, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        check_image(image)


# --- into the model frame --------------------------------------------------------------------------------------------


@given(height=st.integers(1, 5000), width=st.integers(1, 5000), size=st.sampled_from([512, 704, 1024]))
def test_resized_size_fits_and_has_the_long_side(height: int, width: int, size: int) -> None:
    h, w = resized_size(height, width, size)
    assert max(h, w) == size
    assert min(h, w) >= 1
    scale = size * 1.0 / max(height, width)
    assert (h, w) == (max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5)))


def test_resized_size_at_the_edges() -> None:
    assert resized_size(1, 1, 1024) == (1024, 1024)
    assert resized_size(1, 5000, 1024) == (1, 1024)  # the reference: (0, 1024), and a failure
    with pytest.raises(ImageError):
        resized_size(0, 5, 1024)


@pytest.mark.parametrize(("height", "width"), [(30, 45), (300, 451), (1, 1), (3000, 20)])
def test_preprocess_is_the_reference(height: int, width: int) -> None:
    image = picture(height, width)
    tensor, (h, w) = preprocess(image, 256)
    resized = np.array(Image.fromarray(image).resize((w, h), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(resize_longest_side(image, 256), resized)
    mean = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)
    std = torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1)
    expected = (torch.from_numpy(resized).permute(2, 0, 1) - mean) / std
    expected = functional.pad(expected, (0, 256 - w, 0, 256 - h))
    assert tensor.shape == (1, 3, 256, 256)
    assert tensor.dtype == np.float32
    np.testing.assert_array_equal(tensor[0], expected.numpy())


def test_normalize_refuses_what_does_not_fit() -> None:
    with pytest.raises(ImageError, match="does not fit"):
        normalize_and_pad(picture(65, 10), 64)


def test_scale_coords_and_boxes() -> None:
    coords = scale_coords([[200.0, 150.0], [30.5, 40.0]], (300, 451), 1024)
    sx, sy = 1024 / 451, int(300 * (1024 / 451) + 0.5) / 300
    assert coords.dtype == np.float32
    np.testing.assert_array_equal(coords, np.array([[200 * sx, 150 * sy], [30.5 * sx, 40 * sy]]).astype(np.float32))
    boxes = scale_boxes(np.arange(24).reshape(2, 3, 4), (300, 451), 1024)
    assert boxes.shape == (2, 3, 4)
    np.testing.assert_array_equal(boxes[1, 2], scale_coords([[20, 21], [22, 23]], (300, 451), 1024).ravel())
    assert scale_coords(np.zeros((0, 2)), (4, 4), 64).shape == (0, 2)


@pytest.mark.parametrize("coords", [[1, 2, 3], 5, [[1, 2], [3]], "ab", [[np.nan, 1]], [[np.inf, 1]], None])
def test_scale_coords_refuses(coords: Any) -> None:
    with pytest.raises(PromptError):
        scale_coords(coords, (10, 10), 64)
    with pytest.raises(PromptError):
        scale_boxes(coords, (10, 10), 64)


# --- masks back to the picture ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(300, 451), (1000, 700), (1, 1), (1, 1500), (1024, 1024), (77, 3)])
def test_resize_masks_is_the_two_step_reference(size: tuple[int, int]) -> None:
    low = logits(2, 2, 256, 256)
    inner = resized_size(*size, 1024)
    ours = resize_masks(low, inner, size, 1024)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, two_steps(low, inner, size, 1024), rtol=0, atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(
    low=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    size=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    side=st.sampled_from([16, 64, 100]),
    seed=st.integers(0, 99),
)
def test_resize_masks_at_any_size(low: tuple[int, int], size: tuple[int, int], side: int, seed: int) -> None:
    masks, inner = logits(1, 1, *low, seed=seed), resized_size(*size, side)
    expected = two_steps(masks, inner, size, side)
    np.testing.assert_allclose(resize_masks(masks, inner, size, side), expected, rtol=0, atol=1e-4)


def test_resize_masks_keeps_leading_dimensions() -> None:
    low = logits(3, 2, 16, 16)
    whole = resize_masks(low, (64, 32), (50, 25), 64)
    assert whole.shape == (3, 2, 50, 25)
    np.testing.assert_array_equal(whole[1, 1], resize_masks(low[1, 1], (64, 32), (50, 25), 64))
    assert resize_masks(low[:0], (64, 32), (50, 25), 64).shape == (0, 2, 50, 25)


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    spot=st.tuples(st.integers(0, 31), st.integers(0, 31), st.integers(1, 12)),
    floor=st.sampled_from([-1.0, 0.0, 2.5]),
)
def test_mask_window_holds_all_that_exceeds_the_floor(
    size: tuple[int, int], spot: tuple[int, int, int], floor: float
) -> None:
    low = np.minimum(logits(32, 32), floor)
    y, x, extent = spot
    low[y : y + extent, x : x + extent] = floor + 3.0
    inner = resized_size(*size, 128)
    whole = resize_masks(low, inner, size, 128)
    window, (top, left) = resize_mask_window(low, inner, size, 128, floor)
    height, width = window.shape
    np.testing.assert_allclose(window, whole[top : top + height, left : left + width], rtol=0, atol=1e-5)
    whole[top : top + height, left : left + width] = floor
    assert (whole <= floor + 1e-5).all()


def test_mask_window_of_nothing_is_empty() -> None:
    window, corner = resize_mask_window(np.full((8, 8), -5.0, np.float32), (32, 32), (20, 20), 32, -1.0)
    assert window.shape == (0, 0)
    assert corner == (0, 0)


@pytest.mark.parametrize(
    ("shape", "inner", "size"), [((8,), (8, 8), (8, 8)), ((0, 8), (8, 8), (8, 8)), ((8, 8), (65, 8), (8, 8)),
                                 ((8, 8), (0, 8), (8, 8)), ((8, 8), (8, 8), (0, 8))],
)  # fmt: skip
def test_resize_masks_refuses(shape: tuple[int, ...], inner: tuple[int, int], size: tuple[int, int]) -> None:
    with pytest.raises(PromptError):
        resize_masks(np.zeros(shape, np.float32), inner, size, 64)


def test_stability_score() -> None:
    low = logits(3, 4, 16, 16)
    expected = (low > 1.5).sum((-2, -1)) / (low > -0.5).sum((-2, -1))
    scores = stability_score(low, threshold=0.5, offset=1.0)
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(scores, expected.astype(np.float32))
    assert stability_score(np.full((4, 4), -9.0)) == 0.0  # the reference: NaN
    assert stability_score(np.full((2, 40000), 9.0)) == 1.0  # the reference: int16 overflow
    assert stability_score(np.full((3, 4, 4), np.nan)).tolist() == [0.0, 0.0, 0.0]
