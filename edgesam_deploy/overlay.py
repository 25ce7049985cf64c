"""Pictures of masks, for looking at: tinted panels with their captions and the prompt drawn in."""

from __future__ import annotations

import colorsys
import io
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from edgesam_deploy.model.masks import rle_to_mask
from edgesam_deploy.model.prompts import BACKGROUND, FOREGROUND
from edgesam_deploy.model.semantic import resize_class_map
from edgesam_deploy.model.semantic_classes import class_totals, palette

Picture = NDArray[np.uint8]
Colour = tuple[int, int, int]
LARGEST, SMALLEST = 1024, 320  # pixels: long side of a panel
PLEASANT = 1.5  # width over height of several panels together
TINT = 0.5
MASK, BOX, WHITE, BLACK, GROUND = (30, 144, 255), (255, 214, 0), (255, 255, 255), (0, 0, 0), (34, 34, 34)
MARKERS: dict[float, Colour] = {FOREGROUND: (0, 170, 70), BACKGROUND: (220, 40, 40)}
OTHER = (110, 110, 110)  # labels that are neither
LEGEND = 12  # classes that a legend lists


def png(picture: Picture | NDArray[np.bool_]) -> bytes:
    """(H, W, 3) uint8, or (H, W) bool as 0 and 255, in a PNG file."""
    pixels = picture.astype(np.uint8) * 255 if picture.dtype == bool else picture
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def overlay_masks(
    picture: Picture,
    masks: NDArray[np.bool_],
    scores: Sequence[float] | NDArray[np.float32],
    points: Sequence[Sequence[float]],
    box: Sequence[float] | None,
    remark: str = "",
) -> Picture:
    """A panel per mask (C, H, W), best score first, with the prompt: points (x, y[, label]) and box in pixels."""
    base = _fitted(picture)
    scale = base.width / picture.shape[1], base.height / picture.shape[0]
    panels = []
    for rank, index in enumerate(np.argsort(-np.asarray(scores), kind="stable")):
        panel = _tinted(base, [(masks[index], MASK)])
        _draw_prompt(panel, points, box, scale)
        best = "best" if rank == 0 and len(masks) > 1 else ""
        panels.append(_captioned(panel, [f"mask {index}", f"score {scores[index]:.3f}", best, remark]))
    return np.asarray(_grid(panels))


def overlay_prompt(
    picture: Picture,
    mask: NDArray[np.bool_] | None,
    points: Sequence[Sequence[float]],
    box: Sequence[float] | None,
) -> Picture:
    """The picture at its own size with one mask (H, W), if there is one, and the prompt: what a click answers with.

    Integers and shifts instead of the panels' filters, pasting instead of indexing: milliseconds, for it is drawn at
    every click.
    """
    panel = Image.fromarray(picture)
    if mask is not None:
        panel.paste(Image.fromarray((picture >> 1) + (np.array(MASK, np.uint8) >> 1)), mask=Image.fromarray(mask))
        panel.paste(WHITE, mask=Image.fromarray(mask & ~_shrunk(mask, max(1, max(mask.shape) // 400))))
    _draw_prompt(panel, points, box, (1.0, 1.0))
    return np.asarray(panel)


def _shrunk(mask: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    """The mask without its outermost ``pixels``; the picture's border is no border of the mask."""
    inner = mask.copy()
    for axis in (0, 1):
        for near, far in ((slice(pixels, None), slice(None, -pixels)), (slice(None, -pixels), slice(pixels, None))):
            here, there = (near, far) if axis == 0 else ((slice(None), near), (slice(None), far))
            inner[here] &= mask[there]
    return inner


def overlay_everything(picture: Picture, records: Sequence[Mapping[str, Any]], remark: str = "") -> Picture:
    """All masks over the picture, smaller ones on top, each in a colour of its own."""
    caption = f"{len(records)} mask{'' if len(records) == 1 else 's'}"
    return np.asarray(_captioned(_tinted(_fitted(picture), _layers(records)), [caption, remark]))


def tint_everything(picture: Picture, records: Sequence[Mapping[str, Any]]) -> Picture:
    """As ``overlay_everything``, at the picture's own size and without a caption: what is seen at (x, y) is there."""
    return np.asarray(_tinted(Image.fromarray(picture), _layers(records)))


def _layers(records: Sequence[Mapping[str, Any]]) -> list[tuple[NDArray[np.bool_], Colour]]:
    largest_first = sorted(records, key=lambda record: -int(record["area"]))
    return [(rle_to_mask(record["segmentation"]), _hue(rank)) for rank, record in enumerate(largest_first)]


def overlay_classes(
    picture: Picture, class_map: NDArray[np.unsignedinteger[Any]], names: Sequence[str], remark: str = ""
) -> Picture:
    """Classes (H, W) over the picture in the colours of ``palette``; below, the largest ones by name and share."""
    base = _fitted(picture)
    colours = palette(len(names))
    tint = colours[resize_class_map(class_map, (base.height, base.width))]
    panel = Image.fromarray(((1 - TINT) * np.asarray(base) + TINT * tint).astype(np.uint8))
    shares = class_totals(class_map, len(names)) / class_map.size
    present = [int(index) for index in np.argsort(-shares, kind="stable") if shares[index] > 0]
    listed: list[tuple[str, Colour | None]] = [
        (f"{names[index]}  {100 * shares[index]:.1f} %", tuple(colours[index].tolist())) for index in present[:LEGEND]
    ]
    if rest := present[LEGEND:]:
        listed.append((f"{len(rest)} more  {100 * shares[rest].sum():.1f} %", None))
    caption = f"{len(present)} class{'' if len(present) == 1 else 'es'}"
    return np.asarray(_captioned(_with_legend(panel, listed), [caption, remark]))


def _hue(rank: int) -> Colour:
    """Hues by the golden ratio: neighbours in rank are far apart."""
    r, g, b = colorsys.hsv_to_rgb((0.58 + rank * 0.618034) % 1, 0.85, 1.0)
    return round(255 * r), round(255 * g), round(255 * b)


def _fitted(picture: Picture) -> Image.Image:
    """The picture at the size of a panel: small ones enlarged, so that the prompt can be seen in them."""
    height, width = picture.shape[:2]
    longest = max(height, width)
    wanted = min(max(longest, SMALLEST), LARGEST)
    size = max(1, round(width * wanted / longest)), max(1, round(height * wanted / longest))
    how = Image.Resampling.NEAREST if wanted > longest else Image.Resampling.LANCZOS
    return Image.fromarray(picture).resize(size, how)


def _tinted(base: Image.Image, layers: Sequence[tuple[NDArray[np.bool_], Colour]]) -> Image.Image:
    """Each mask's colour over ``base`` with a white rim inside it; later masks hide earlier ones."""
    original = np.asarray(base)
    pixels = original.copy()
    rim = 2 * max(1, max(base.size) // 400) + 1
    for mask, colour in layers:
        small = Image.fromarray(mask.astype(np.uint8) * 255).resize(base.size, Image.Resampling.BOX)
        inside = np.asarray(small) >= 128
        inner = np.asarray(small.point(lambda value: 255 * (value >= 128)).filter(ImageFilter.MinFilter(rim))) >= 128
        pixels[inside] = ((1 - TINT) * original[inside] + TINT * np.array(colour)).astype(np.uint8)
        pixels[inside & ~inner] = WHITE
    return Image.fromarray(pixels)


def _draw_prompt(
    panel: Image.Image, points: Sequence[Sequence[float]], box: Sequence[float] | None, scale: tuple[float, float]
) -> None:
    line = max(2, max(panel.size) // 300)
    if box is not None:
        corners = [side * scale[axis % 2] for axis, side in enumerate(box)]
        right, bottom = panel.width - 1, panel.height - 1
        x0, y0, x1, y1 = (min(c, limit) for c, limit in zip(corners, (right, bottom) * 2, strict=True))
        draw = ImageDraw.Draw(panel)
        draw.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline=BLACK, width=line + 2)
        draw.rectangle((x0, y0, x1, y1), outline=BOX, width=line)
    radius = max(6, max(panel.size) // 80)
    for x, y, *label in points:
        marker = _marker(label[0] if label else FOREGROUND, radius)
        corner = round(x * scale[0] - marker.width / 2), round(y * scale[1] - marker.height / 2)
        panel.paste(marker, corner, marker)


@lru_cache
def _marker(label: float, radius: int) -> Image.Image:
    """A disc in two rims, seen on any ground; the sign says the label where the colour does not."""
    fine = 4  # drawn larger and reduced: Pillow draws jagged circles
    size = 2 * radius + 1
    big = Image.new("RGBA", (size * fine, size * fine))
    draw = ImageDraw.Draw(big)
    middle = size * fine / 2
    for share, colour in ((1.0, BLACK), (0.9, WHITE), (0.72, MARKERS.get(label, OTHER))):
        reach = share * middle
        draw.ellipse((middle - reach, middle - reach, middle + reach, middle + reach), fill=(*colour, 255))
    arm, half = 0.42 * middle, 0.1 * middle
    if label in MARKERS:
        draw.rectangle((middle - arm, middle - half, middle + arm, middle + half), fill=WHITE)
    if label == FOREGROUND:
        draw.rectangle((middle - half, middle - arm, middle + half, middle + arm), fill=WHITE)
    return big.resize((size, size), Image.Resampling.LANCZOS)


def _captioned(panel: Image.Image, words: Sequence[str]) -> Image.Image:
    """The panel under a strip of text, so that no text covers the picture; widened where the text needs it."""
    text = "    ".join(word for word in words if word)
    size = _text_size(panel)
    font = ImageFont.load_default(size)
    margin = size // 2
    width = max(panel.width, math.ceil(font.getlength(text)) + 2 * margin)
    canvas = Image.new("RGB", (width, panel.height + size + 2 * margin), GROUND)
    ImageDraw.Draw(canvas).text((margin, margin - size // 8), text, fill=WHITE, font=font)
    canvas.paste(panel, ((width - panel.width) // 2, size + 2 * margin))
    return canvas


def _with_legend(panel: Image.Image, rows: Sequence[tuple[str, Colour | None]]) -> Image.Image:
    """The panel over a strip of coloured squares with their words, in as many columns as fit beside each other."""
    size = _text_size(panel)
    font = ImageFont.load_default(size)
    line, margin = 3 * size // 2, size // 2
    column = math.ceil(max(font.getlength(text) for text, _ in rows)) + line + 2 * margin
    columns = min(max(1, (panel.width - margin) // column), len(rows))
    lines = math.ceil(len(rows) / columns)
    width = max(panel.width, columns * column + margin)
    canvas = Image.new("RGB", (width, panel.height + lines * line + margin), GROUND)
    canvas.paste(panel, ((width - panel.width) // 2, 0))
    draw = ImageDraw.Draw(canvas)
    for index, (text, colour) in enumerate(rows):
        x, y = margin + index // lines * column, panel.height + margin + index % lines * line
        if colour is not None:
            draw.rectangle((x, y, x + size - 1, y + size - 1), fill=colour, outline=OTHER)
        draw.text((x + line, y - size // 8), text, fill=WHITE, font=font)
    return canvas


def _text_size(panel: Image.Image) -> int:
    return min(max(14, panel.width // 36), 22)


def _grid(panels: Sequence[Image.Image]) -> Image.Image:
    """The panels, row by row, in the number of columns that gives the most pleasant shape."""
    gap = 8
    width, height = (max(sides) + gap for sides in zip(*(panel.size for panel in panels), strict=True))

    def strain(columns: int) -> float:
        return abs(math.log(columns * width / (math.ceil(len(panels) / columns) * height) / PLEASANT))

    columns = min(range(1, len(panels) + 1), key=strain)
    canvas = Image.new("RGB", (columns * width - gap, math.ceil(len(panels) / columns) * height - gap), GROUND)
    for index, panel in enumerate(panels):
        canvas.paste(panel, (index % columns * width, index // columns * height))
    return canvas
