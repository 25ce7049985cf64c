"""Pictures in, masks out: everything between a file and the model frame, and between the model's masks and the picture.

NumPy and Pillow only, so that an artifact's predictor runs where torch is not installed. The numbers are the reference
predictor's: Pillow's antialiased bilinear resize on uint8, normalisation before zero padding, masks brought back by two
bilinear steps.

Frames used here: *original* (the picture), *input* (the picture resized so that its long side is ``image_size``),
*model* (the input zero-padded right and bottom to ``image_size`` x ``image_size``), *low-res* (the decoder's mask
plane, a quarter of the model frame). Sizes are ``(height, width)``, coordinates ``(x, y)`` in pixels.

Noted deviations from the reference:

* ``resized_size`` gives at least one pixel per side; the reference's rounding gives 0 for an aspect ratio beyond
  ``2 * image_size`` and then fails inside Pillow.
* ``stability_score`` of a mask without any pixel above the lower cut is 0 where the reference has 0/0 = NaN (which
  argmax then selects), and it counts in 64 bits where the reference's int16 row sums overflow.
* ``read_image`` turns pictures upright by their EXIF orientation, and scales deeper grey pictures to 8 bit.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, UnidentifiedImageError

from edgesam_deploy.errors import ImageError, PromptError

Size = tuple[int, int]

PIXEL_MEAN: Final = (123.675, 116.28, 103.53)
PIXEL_STD: Final = (58.395, 57.12, 57.375)

# What Pillow's decoders raise on truncated or damaged files, beside their own classes.
_DECODER_FAULTS: Final = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
)

_ORIENTATION_TAG = 0x0112
_UPRIGHT_BY_ORIENTATION: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


# --- reading ---------------------------------------------------------------------------------------------------------


def read_image(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """The picture at ``path`` as (H, W, 3) uint8 RGB, upright by its EXIF orientation; the first frame of several.

    Alpha is dropped and not blended with a background, as the reference apps do: the colours stored under transparent
    pixels appear. Grey and palette pictures become RGB; CMYK is converted by Pillow's formula without a colour profile.
    Grey deeper than 8 bit is scaled: 16-bit files by 255/65535; 32-bit integers and floats, which declare no range, as
    ``_eight_bit`` says.

    Raises ImageError for a missing file, a folder, something that is not a picture, a truncated or damaged picture,
    and one that declares more pixels than Pillow's decompression-bomb limit.
    """
    if Path(path).is_dir():
        raise ImageError(f"{path} is a folder, not a picture; name one file in it")
    return _decoded(path, path)


def decode_image(data: bytes, name: str) -> NDArray[np.uint8]:
    """As ``read_image`` for the bytes of a file, which ``name`` stands for in messages."""
    return _decoded(io.BytesIO(data), name)


def _decoded(source: str | os.PathLike[str] | io.BytesIO, path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    try:
        with Image.open(source) as image:
            image.load()
            pixels = _to_rgb(_upright(image))
    except FileNotFoundError as error:
        raise ImageError(f"no such picture: {path}; check the path") from error
    except PermissionError as error:
        raise ImageError(f"{path} may not be read: {error.strerror}; check the file's permissions") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{path} is not a picture Pillow can read; convert it to PNG or JPEG") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(
            f"{path} declares more pixels than the decompression-bomb limit of {2 * (Image.MAX_IMAGE_PIXELS or 0):,};"
            " shrink it, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust the file"
        ) from error
    except _DECODER_FAULTS as error:
        raise ImageError(f"cannot decode {path}: {error}; the file is truncated, damaged or of a rare kind") from error
    return check_image(pixels)


def _upright(image: Image.Image) -> Image.Image:
    """``image`` turned by its EXIF orientation; unreadable EXIF counts as upright, for the pixels are still good."""
    try:
        # Asked for after load(): the TIFF reader turns the picture itself and removes the tag.
        orientation = image.getexif().get(_ORIENTATION_TAG)
    except _DECODER_FAULTS:
        orientation = None
    method = _UPRIGHT_BY_ORIENTATION.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB from any Pillow mode, alpha dropped."""
    if image.mode.startswith("I;16"):
        grey = np.round(np.asarray(image).astype(np.float64) / 257.0).astype(np.uint8)
    elif image.mode in ("I", "F"):
        grey = _eight_bit(np.asarray(image, dtype=np.float64), is_float=image.mode == "F")
    else:
        if image.mode in ("P", "PA") and "transparency" in image.info:
            image = image.convert("RGBA")  # straight to RGB, Pillow warns about the transparency it drops
        return np.array(image.convert("RGB"))
    return np.repeat(grey[:, :, None], 3, axis=2)


def _eight_bit(values: NDArray[np.float64], is_float: bool) -> NDArray[np.uint8]:
    """0..255 from samples without a declared range.

    The range is the smallest of 0..1 (floats only), 0..255 and 0..65535 that holds every sample; where none does, the
    smallest and largest finite sample become 0 and 255. NaN and infinities become 0.
    """
    finite = np.isfinite(values)
    low, high = (float(values[finite].min()), float(values[finite].max())) if finite.any() else (0.0, 0.0)
    for top in (1.0, 255.0, 65535.0) if is_float else (255.0, 65535.0):
        if low >= 0.0 and high <= top:
            low, high = 0.0, top
            break
    scaled = (np.where(finite, values, low) - low) * 255.0 / ((high - low) or 1.0)
    return np.round(scaled).astype(np.uint8)


def check_image(image: object) -> NDArray[np.uint8]:
    """``image`` itself when it is an (H, W, 3) uint8 array with H, W >= 1; ImageError naming what it is otherwise."""
    if not isinstance(image, np.ndarray):
        kind = f"{type(image).__module__}.{type(image).__qualname__}"
        raise ImageError(f"an image must be an (H, W, 3) uint8 array, got {kind}; read_image(path) gives one")
    got = f"got shape {image.shape}, {image.dtype}"
    if image.ndim != 3 or image.shape[2] != 3:
        hint = "transpose it to (H, W, 3)" if image.ndim == 3 and image.shape[0] == 3 else "make it (H, W, 3) RGB"
        raise ImageError(f"an image must be an (H, W, 3) uint8 array, {got}; {hint}")
    if image.dtype != np.uint8:
        raise ImageError(f"an image must be an (H, W, 3) uint8 array, {got}; scale it to 0..255 and cast it to uint8")
    if image.size == 0:
        raise ImageError(f"an image must have at least one pixel, {got}")
    return image


# --- into the model frame --------------------------------------------------------------------------------------------


def resized_size(height: int, width: int, image_size: int) -> Size:
    """(h, w) of the picture with its long side at ``image_size``: ``int(side * scale + 0.5)``, at least 1."""
    if min(height, width, image_size) < 1:
        raise ImageError(f"sizes must be at least 1, got height {height}, width {width}, image_size {image_size}")
    scale = image_size / max(height, width)
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resize_longest_side(image: NDArray[np.uint8], image_size: int) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 to (h, w, 3) uint8, long side ``image_size``: Pillow's bilinear, antialiased when shrinking."""
    height, width = resized_size(image.shape[0], image.shape[1], image_size)
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def normalize_and_pad(resized: NDArray[np.uint8], image_size: int) -> NDArray[np.float32]:
    """(h, w, 3) uint8 to (1, 3, S, S) float32: normalised by PIXEL_MEAN and PIXEL_STD, then padded right and bottom.

    The padding is 0 *after* normalisation, which no uint8 colour reaches: 124 is not 123.675.
    """
    height, width = resized.shape[:2]
    if max(height, width) > image_size:
        raise ImageError(f"a resized picture of {height} x {width} does not fit the model frame of {image_size}")
    tensor = np.zeros((1, 3, image_size, image_size), dtype=np.float32)
    for channel in range(3):
        plane = tensor[0, channel, :height, :width]
        np.subtract(resized[:, :, channel], np.float32(PIXEL_MEAN[channel]), out=plane, dtype=np.float32)
        plane /= np.float32(PIXEL_STD[channel])
    return tensor


def preprocess(image: NDArray[np.uint8], image_size: int) -> tuple[NDArray[np.float32], Size]:
    """(H, W, 3) uint8 RGB to the encoder's (1, 3, S, S) float32, and the (h, w) of the picture inside it."""
    resized = resize_longest_side(check_image(image), image_size)
    return normalize_and_pad(resized, image_size), (resized.shape[0], resized.shape[1])


def scale_coords(coords: ArrayLike, original_size: Size, image_size: int) -> NDArray[np.float32]:
    """(..., 2) of (x, y) original pixels to model-frame pixels; computed in float64, given in float32.

    Points outside the picture are scaled like any other. Raises PromptError for another shape, for what is not a
    number, and for NaN and infinity.
    """
    points = _as_numbers(coords, "point coordinates")
    if points.ndim == 0 or points.shape[-1] != 2:
        raise PromptError(f"point coordinates must be (..., 2) of (x, y), got shape {points.shape}")
    height, width = original_size
    new_height, new_width = resized_size(height, width, image_size)
    scaled: NDArray[np.float64] = points * np.array([new_width / width, new_height / height])
    return scaled.astype(np.float32)


def scale_boxes(boxes: ArrayLike, original_size: Size, image_size: int) -> NDArray[np.float32]:
    """(..., 4) of (x0, y0, x1, y1) original pixels to model-frame pixels, as ``scale_coords`` does for both corners."""
    corners = _as_numbers(boxes, "boxes")
    if corners.ndim == 0 or corners.shape[-1] != 4:
        raise PromptError(f"boxes must be (..., 4) of (x0, y0, x1, y1), got shape {corners.shape}")
    points = corners.reshape(*corners.shape[:-1], 2, 2)
    return scale_coords(points, original_size, image_size).reshape(corners.shape)


def _as_numbers(values: ArrayLike, what: str) -> NDArray[np.float64]:
    """``values`` as finite float64; PromptError otherwise."""
    try:
        numbers = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise PromptError(f"{what} must be numbers in equal rows: {error}") from error
    if not np.isfinite(numbers).all():
        raise PromptError(f"{what} must be finite, got NaN or infinity in {numbers.tolist()}")
    return numbers


# --- masks back to the picture ---------------------------------------------------------------------------------------

# Output rows per matrix product. Each product then needs the few mask rows under its strip instead of all 256, and
# stays below the size where BLAS starts threads: 1.5 ms a mask at 1000 x 1500 against 6.6 ms for the whole matrices.
_STRIP = 32


@dataclass(frozen=True, slots=True)
class _Strip:
    """Output positions ``start:stop`` of one axis as ``weights @ mask[lo:hi]``; weights (stop - start, hi - lo)."""

    start: int
    stop: int
    lo: int
    hi: int
    weights: NDArray[np.float32]


def resize_masks(
    masks: NDArray[np.floating[Any]], input_size: Size, original_size: Size, image_size: int
) -> NDArray[np.float32]:
    """(..., h, w) low-res logits to (..., H, W) float32 logits on the original picture.

    What the reference's two steps give: bilinear (align_corners=False, no antialias) to (S, S), cropped to
    ``input_size``, bilinear to ``original_size``. Both are linear and separable, so each axis is one composed matrix,
    kept as its band and cached per size; within 1e-5 of PyTorch at a standard deviation of 8. Beside the result it
    needs memory for one (h, W) plane.

    Raises PromptError where the sizes do not fit together.
    """
    rows, columns = _axes(masks.shape, input_size, original_size, image_size)
    planes = np.asarray(masks, dtype=np.float32).reshape(-1, *masks.shape[-2:])
    resized = np.empty((len(planes), *original_size), dtype=np.float32)
    for plane, out in zip(planes, resized, strict=True):
        _resize_plane(plane, rows, columns, out)
    return resized.reshape(*masks.shape[:-2], *original_size)


def resize_mask_window(
    mask: NDArray[np.floating[Any]], input_size: Size, original_size: Size, image_size: int, floor: float
) -> tuple[NDArray[np.float32], Size]:
    """The part of ``resize_masks(mask)`` that can exceed ``floor``: its logits (h', w') and its (top, left) corner.

    Interpolation never leaves the range of its sources, so a pixel all of whose low-res sources are at most ``floor``
    is too; the cost is that of the object, not of the picture. (0, 0) in size where nothing exceeds ``floor``.
    """
    rows, columns = _axes(mask.shape, input_size, original_size, image_size)
    above = mask > floor
    rows = _touched(rows, np.asarray(above.any(axis=1)))
    columns = _touched(columns, np.asarray(above.any(axis=0)))
    if not rows or not columns:
        return np.zeros((0, 0), dtype=np.float32), (0, 0)
    top, left = rows[0].start, columns[0].start
    window = np.empty((rows[-1].stop - top, columns[-1].stop - left), dtype=np.float32)
    _resize_plane(np.asarray(mask, dtype=np.float32), rows, columns, window)
    return window, (top, left)


def stability_score(
    logits: NDArray[np.floating[Any]], threshold: float = 0.0, offset: float = 1.0
) -> NDArray[np.float32]:
    """(..., h, w) logits to (...) in 0..1: the IoU of the masks cut at ``threshold`` plus and minus ``offset``.

    0 where no pixel exceeds the lower cut: an empty mask is not a stable one.
    """
    lead, plane = logits.shape[:-2], logits.shape[-2:]
    planes = logits.reshape(prod(lead), *plane)
    # Plane by plane: without an axis NumPy counts bools five times as fast, and the temporary stays one plane.
    inner = np.array([np.count_nonzero(values > threshold + offset) for values in planes], dtype=np.int64)
    outer = np.array([np.count_nonzero(values > threshold - offset) for values in planes], dtype=np.int64)
    return (inner / np.maximum(outer, 1)).astype(np.float32).reshape(lead)


def soft_stability_score(logits: NDArray[np.floating[Any]], offset: float = 1.0) -> NDArray[np.float32]:
    """``stability_score`` with each pixel counted by a steep sigmoid, 100 per logit, as the NPU target counts."""

    def count(cut: float) -> NDArray[np.float64]:
        # the exponent's limit keeps exp finite; a pixel there counts as 0 to all digits
        steep = np.clip(-100 * (logits.astype(np.float64) - cut), None, 700)
        total: NDArray[np.float64] = (1 / (1 + np.exp(steep))).sum((-1, -2))
        return total

    return (count(offset) / np.maximum(count(-offset), 1)).astype(np.float32)


def _axes(
    shape: tuple[int, ...], input_size: Size, original_size: Size, image_size: int
) -> tuple[Sequence[_Strip], Sequence[_Strip]]:
    """The strips of both axes; PromptError where the sizes do not fit together."""
    if len(shape) < 2 or min(shape[-2:]) < 1:
        raise PromptError(f"low-res masks must be (..., h, w), got shape {shape}")
    if min(*input_size, *original_size) < 1 or max(input_size) > image_size:
        raise PromptError(
            f"input size {input_size} must be in 1..{image_size}, original size {original_size} at least 1"
        )
    return (
        strips(shape[-2], image_size, input_size[0], original_size[0]),
        strips(shape[-1], image_size, input_size[1], original_size[1]),
    )


@lru_cache(maxsize=32)
def strips(low: int, image_size: int, input_side: int, original_side: int) -> tuple[_Strip, ...]:
    """One axis of the two steps: ``low`` -> ``image_size``, cropped to ``input_side``, -> ``original_side``."""
    composed = _interpolate_rows(_interpolate_rows(np.eye(low), image_size)[:input_side], original_side)
    found = []
    for start in range(0, original_side, _STRIP):
        weights = composed[start : start + _STRIP]
        used = np.flatnonzero(weights.any(axis=0))
        lo, hi = int(used[0]), int(used[-1]) + 1
        found.append(_Strip(start, start + len(weights), lo, hi, weights[:, lo:hi].astype(np.float32)))
    return tuple(found)


def _interpolate_rows(matrix: NDArray[np.float64], target: int) -> NDArray[np.float64]:
    """(n, k) to (target, k): bilinear along the first axis with half-pixel centres, the edge rows repeated outside."""
    source = len(matrix)
    # PyTorch's arithmetic: the scale is a float32, the position one fused multiply-add rounded to float32. Exact
    # positions would differ from it by 3e-5 of a pixel at 1024, 2.5e-4 in logits.
    scale = float(np.float32(source) / np.float32(target))
    position = np.maximum((scale * (np.arange(target) + 0.5) - 0.5).astype(np.float32), np.float32(0.0))
    before = np.minimum(position.astype(np.int64), source - 1)
    after = np.minimum(before + 1, source - 1)
    fraction = (position - before).astype(np.float64)[:, None]
    rows: NDArray[np.float64] = matrix[before] * (1.0 - fraction) + matrix[after] * fraction
    return rows


def _touched(strips: Sequence[_Strip], above: NDArray[np.bool_]) -> Sequence[_Strip]:
    """The run of strips that read from the first to the last position marked in ``above``."""
    marked = np.flatnonzero(above)
    if marked.size == 0:
        return ()
    first, last = int(marked[0]), int(marked[-1])
    return [strip for strip in strips if strip.lo <= last and strip.hi > first]


def _resize_plane(
    mask: NDArray[np.float32], rows: Sequence[_Strip], columns: Sequence[_Strip], out: NDArray[np.float32]
) -> None:
    """Write the part of one resized mask that ``rows`` x ``columns`` cover into ``out``."""
    lo, top, left = rows[0].lo, rows[0].start, columns[0].start
    band = mask[lo : rows[-1].hi]
    wide = np.empty((len(band), out.shape[1]), dtype=np.float32)
    for strip in columns:
        wide[:, strip.start - left : strip.stop - left] = band[:, strip.lo : strip.hi] @ strip.weights.T
    for strip in rows:
        np.matmul(strip.weights, wide[strip.lo - lo : strip.hi - lo], out=out[strip.start - top : strip.stop - top])
