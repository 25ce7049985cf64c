"""Classes of pictures of any size, against PyTorch and an oracle that stitches tiles pixel by pixel."""

from __future__ import annotations

import ast
import io
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional

from edgesam_deploy.errors import EdgeSamDeployError, ImageError, UsageError
from edgesam_deploy.model import semantic, semantic_classes, semantic_metrics
from edgesam_deploy.model.semantic import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    SemanticPredictor,
    SemanticResult,
    normalise,
    preprocess,
    resize_class_map,
    tile_boxes,
)
from edgesam_deploy.model.semantic_classes import LAND_COVER, class_map_png, class_names, class_totals, palette

SIDE, CLASSES = 16, 7


def picture(height: int, width: int) -> NDArray[np.uint8]:
    """Its red and green say where a pixel is, so that a model can tell."""
    y, x = np.mgrid[:height, :width]
    return np.stack([y % 256, x % 256, (3 * y + 7 * x) % 256], axis=-1).astype(np.uint8)


def noise(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), np.uint8)


def rule(red: Any, green: Any, y: Any, x: Any) -> tuple[Any, Any]:
    """Class and sureness 1..5 of a pixel by its colours and its place in the tile: tiles disagree, and often tie."""
    return (3 * red + 5 * green + 4 * y + 11 * x) % CLASSES, (red * y + green + 2 * x) % 5 + 1


class Positions(SemanticPredictor):
    """Answers by ``rule``. The sureness is the logit; a second class has 0 and the others vanish from the softmax, so
    that equally sure pixels have the same confidence to the last bit."""

    image_size, classes = SIDE, CLASSES

    def __init__(self) -> None:
        self.seen: list[NDArray[np.float32]] = []

    def decided(self, image: NDArray[np.float32]) -> tuple[Any, Any]:
        assert image.shape == (1, 3, SIDE, SIDE)
        assert image.dtype == np.float32
        self.seen.append(image)
        mean, std = (np.array(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
        red, green, _ = np.rint((image[0] * std + mean) * 255).astype(int)
        return rule(red, green, *np.mgrid[:SIDE, :SIDE])

    def infer(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        winner, sureness = self.decided(image)
        index = np.arange(CLASSES)[:, None, None]
        logits = np.where(index == winner, sureness, np.where(index == (winner + 1) % CLASSES, 0, -200))
        return logits[None].astype(np.float32)


class MapsAlone(Positions):
    """As an artifact built with --argmax."""

    has_logits = False

    def infer(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        raise AssertionError("it has no logits")

    def infer_map(self, image: NDArray[np.float32]) -> NDArray[Any]:
        return np.asarray(self.decided(image)[0])[None].astype(np.int64)


class Fixed(SemanticPredictor):
    """Gives the same output for everything."""

    def __init__(self, output: NDArray[Any], classes: int, has_logits: bool = True) -> None:
        self.output, self.classes, self.image_size = output, classes, output.shape[-1]
        self._has_logits = has_logits

    @property
    def has_logits(self) -> bool:
        return self._has_logits

    def infer(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        return self.output

    def infer_map(self, image: NDArray[np.float32]) -> NDArray[Any]:
        return super().infer_map(image) if self._has_logits else self.output


def starts(length: int, overlap: int) -> list[int]:
    """By walking, not by the formula."""
    found = [0]
    while found[-1] + SIDE < length:
        found.append(min(found[-1] + SIDE - overlap, length - SIDE))
    return found


def stitched(height: int, width: int, overlap: int, by_sureness: bool) -> tuple[NDArray[Any], NDArray[Any]]:
    """Class and sureness of each pixel: the first of the surest tiles over it."""
    winners, best = np.zeros((2, height, width), int)
    for y in range(height):
        for x in range(width):
            for top in starts(height, overlap):
                for left in starts(width, overlap):
                    if not (top <= y < top + SIDE and left <= x < left + SIDE):
                        continue
                    winner, sureness = rule(y % 256, x % 256, y - top, x - left)
                    if sureness > best[y, x] and (by_sureness or not best[y, x]):
                        winners[y, x], best[y, x] = winner, sureness
    return winners, best


def confidence_of(sureness: NDArray[Any]) -> NDArray[Any]:
    return 1 / (1 + np.exp(-sureness.astype(np.float64)))


@pytest.mark.parametrize("module", [semantic, semantic_classes, semantic_metrics])
def test_needs_no_torch(module: Any) -> None:
    tree = ast.parse(Path(module.__file__).read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not [name for name in imported if name.split(".")[0] in ("torch", "torchvision")]


# --- into the frame --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(40, 90), (1, 1), (300, 7), (64, 64)])
def test_preprocess_is_torchvisions(height: int, width: int) -> None:
    image = noise(height, width)
    resized = np.array(Image.fromarray(image).resize((64, 64), Image.Resampling.BILINEAR))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    expected = torch.from_numpy(resized).permute(2, 0, 1).float().div(255).sub(mean).div(std)
    tensor = preprocess(image, 64)
    assert tensor.dtype == np.float32
    np.testing.assert_array_equal(tensor, expected[None].numpy())


def test_every_colour_is_normalised_as_torchvision_does() -> None:
    image = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    expected = torch.from_numpy(image).permute(2, 0, 1).float().div(255).sub(mean).div(std)
    np.testing.assert_array_equal(normalise(image)[0], expected.numpy())


# --- tiles -----------------------------------------------------------------------------------------------------------


@given(height=st.integers(1, 300), width=st.integers(1, 300), size=st.integers(1, 70), share=st.floats(0, 0.999))
def test_tiles_cover_the_picture(height: int, width: int, size: int, share: float) -> None:
    overlap = min(int(size * share), size - 1)
    if -(-height // (size - overlap)) * -(-width // (size - overlap)) > 5000:
        return
    boxes = list(tile_boxes(height, width, size, overlap))
    counts = [max(1, int(np.ceil((length - overlap) / (size - overlap)))) for length in (height, width)]
    assert len(boxes) == len(set(boxes)) == counts[0] * counts[1]
    assert boxes == sorted(boxes, key=lambda box: (box[1], box[0]))
    covered = np.zeros((height, width), bool)
    for x0, y0, x1, y1 in boxes:
        assert 0 <= x0 < x1 <= width
        assert 0 <= y0 < y1 <= height
        assert (x1 - x0, y1 - y0) == (min(size, width), min(size, height))
        covered[y0:y1, x0:x1] = True
    assert covered.all()


def test_tiles_by_hand() -> None:
    assert list(tile_boxes(1024, 1792, 1024, 256)) == [(0, 0, 1024, 1024), (768, 0, 1792, 1024)]
    assert list(tile_boxes(1025, 1024, 1024, 256)) == [(0, 0, 1024, 1024), (0, 1, 1024, 1025)]
    assert list(tile_boxes(2, 5, 3, 0)) == [(0, 0, 3, 2), (2, 0, 5, 2)]
    assert list(tile_boxes(1, 1, 8, 7)) == [(0, 0, 1, 1)]


@pytest.mark.parametrize("overlap", [-1, SIDE, 99])
def test_overlap_out_of_range(overlap: int) -> None:
    for height in (5, 50):
        with pytest.raises(UsageError, match=f"overlap {overlap}"):
            Positions().predict(picture(height, 5), overlap=overlap)


def test_tiles_share_a_quarter_by_default() -> None:
    assert Positions().predict(picture(9, 40)).tiles == tuple(tile_boxes(9, 40, SIDE, SIDE // 4))


SIZES = [(40, 9), (9, 40), (1, 40), (40, 1), (17, 16), (32, 48), (28, 40), (50, 37)]


@pytest.mark.parametrize("overlap", [0, 4, 15])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_stitching_is_the_oracles(height: int, width: int, overlap: int) -> None:
    check_stitching(height, width, overlap)


@settings(max_examples=25, deadline=None)
@given(height=st.integers(1, 45), width=st.integers(1, 45), overlap=st.integers(0, 12))
def test_stitching_at_any_size(height: int, width: int, overlap: int) -> None:
    check_stitching(height, width, overlap)


def check_stitching(height: int, width: int, overlap: int) -> None:
    model = Positions()
    found = model.predict(picture(height, width), tiles=True, overlap=overlap, return_logits=True)
    winners, sureness = stitched(height, width, overlap, by_sureness=True)
    np.testing.assert_array_equal(found.class_map, winners)
    assert found.class_map.dtype == np.uint8
    assert found.confidence is not None
    assert found.confidence.dtype == np.float32
    np.testing.assert_allclose(found.confidence, confidence_of(sureness), rtol=1e-6)
    assert found.logits is not None
    np.testing.assert_array_equal(found.logits.argmax(0), winners)  # the whole vector comes from the one tile
    np.testing.assert_array_equal(found.logits.max(0), sureness)
    assert len(found.tiles) == len(model.seen) == len(starts(height, overlap)) * len(starts(width, overlap))


def test_tiles_may_disagree_and_tie() -> None:
    surest, first = (stitched(40, 40, 8, by_sureness=by)[0] for by in (True, False))
    assert (surest != first).mean() > 0.05  # the oracle test means something
    flat = Fixed(np.zeros((1, 3, 8, 8), np.float32), 3).predict(picture(20, 20), overlap=2)
    assert not flat.class_map.any()  # the first of equal classes
    assert flat.confidence is not None
    np.testing.assert_allclose(flat.confidence, 1 / 3, rtol=1e-6)


def test_short_sides_are_padded_with_black() -> None:
    model = Positions()
    image = picture(5, 20)
    model.predict(image, overlap=4)
    expected = np.zeros((SIDE, SIDE, 3), np.uint8)
    expected[:5] = image[:, :SIDE]
    np.testing.assert_array_equal(model.seen[0], normalise(expected))


# --- the whole picture resized ---------------------------------------------------------------------------------------


def random_logits(*shape: int) -> NDArray[np.float32]:
    return np.asarray(np.random.default_rng(3).standard_normal(shape) * 4, np.float32)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (9, 13), (1, 1), (1, 16), (100, 70), (16, 300)])
def test_resized_logits_are_pytorchs(height: int, width: int) -> None:
    logits = random_logits(1, 5, 16, 16)
    found = Fixed(logits, 5).predict(noise(height, width), tiles=False, return_logits=True)
    expected = functional.interpolate(torch.from_numpy(logits), (height, width), mode="bilinear", align_corners=False)
    assert found.logits is not None
    np.testing.assert_allclose(found.logits, expected[0].numpy(), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(found.class_map, found.logits.argmax(0))
    sure = expected.softmax(1).amax(1)[0].numpy()
    np.testing.assert_allclose(found.confidence, sure, rtol=0, atol=1e-5)  # type: ignore[arg-type]
    assert found.tiles == ()


def test_size_decides_unless_forced() -> None:
    def tiles_of(height: int, width: int, tiles: bool | None) -> int:
        return len(Positions().predict(picture(height, width), tiles=tiles).tiles)

    assert tiles_of(SIDE, SIDE, None) == tiles_of(3, SIDE, None) == 0
    assert tiles_of(SIDE + 1, 3, None) == tiles_of(3, SIDE + 1, None) == 2
    assert tiles_of(3, 5, True) == 1
    assert tiles_of(70, 70, False) == 0


def test_one_tile_is_the_whole_picture() -> None:
    image = picture(SIDE, SIDE)
    tiled, whole = (Positions().predict(image, tiles=tiles, return_logits=True) for tiles in (True, False))
    np.testing.assert_array_equal(tiled.logits, whole.logits)  # type: ignore[arg-type]
    np.testing.assert_array_equal(tiled.class_map, whole.class_map)


# --- class maps alone ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(40, 9), (50, 37)])
def test_the_first_tile_decides_without_logits(height: int, width: int) -> None:
    found = MapsAlone().predict(picture(height, width), overlap=5)
    np.testing.assert_array_equal(found.class_map, stitched(height, width, 5, by_sureness=False)[0])
    assert found.class_map.dtype == np.uint8
    assert found.confidence is found.logits is None


def test_resized_class_maps() -> None:
    class_map = np.array([[[0, 1], [2, 3]]])
    found = Fixed(class_map, 4, has_logits=False).predict(noise(2, 1), tiles=False)
    assert found.class_map.tolist() == [[1], [3]]
    assert resize_class_map(class_map[0], (4, 4)).tolist() == np.kron(class_map[0], np.ones((2, 2), int)).tolist()


@given(old=st.integers(1, 40), new=st.integers(1, 200))
def test_nearest_is_the_nearest_centre(old: int, new: int) -> None:
    ours = resize_class_map(np.arange(old)[:, None], (new, 1))[:, 0]
    expected = functional.interpolate(torch.arange(old).float()[None, None], new, mode="nearest-exact")
    away = np.abs((ours + 0.5) / old - (np.arange(new) + 0.5) / new)
    assert (away <= 0.5 / old + 1e-9).all()
    assert (ours != expected[0, 0].numpy()).mean() <= 0.5  # PyTorch rounds positions to float32
    assert (np.abs(ours - expected[0, 0].numpy()) <= 1).all()


def test_logits_of_a_map_are_refused() -> None:
    with pytest.raises(UsageError, match="--argmax"):
        MapsAlone().predict(picture(4, 4), return_logits=True)


def test_a_model_with_logits_gives_maps() -> None:
    logits = random_logits(1, 3, 8, 8)
    np.testing.assert_array_equal(Fixed(logits, 3).infer_map(np.zeros((1, 3, 8, 8), np.float32)), logits.argmax(1))


# --- what is refused, and what it costs ------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("tiles", [True, False])
def test_nan_is_refused(bad: float, tiles: bool) -> None:
    logits = random_logits(1, 3, 8, 8)
    logits[0, 1, 4, 4] = bad
    with pytest.raises(EdgeSamDeployError, match="NaN or infinite"):
        Fixed(logits, 3).predict(noise(9, 9), tiles=tiles)


@pytest.mark.parametrize(
    ("output", "has_logits", "words"),
    [
        (np.zeros((1, 4, 8, 8), np.float32), True, r"logits must be \(1, 3, 8, 8\), got \(1, 4, 8, 8\)"),
        (np.zeros((2, 3, 8, 8), np.float32), True, "logits must be"),
        (np.zeros((8, 8), np.int64), False, r"class map must be \(1, 8, 8\)"),
        (np.zeros((1, 8, 8), np.float32), False, "integers in 0..2, got float32"),
        (np.full((1, 8, 8), 3), False, "int64 3..3"),
        (np.full((1, 8, 8), -1), False, "-1"),
    ],
)
def test_outputs_of_another_model_are_refused(output: NDArray[Any], has_logits: bool, words: str) -> None:
    with pytest.raises(EdgeSamDeployError, match=words):
        Fixed(output, 3, has_logits).predict(noise(8, 8))


def test_other_things_than_pictures_are_refused() -> None:
    with pytest.raises(ImageError):
        Positions().predict(np.zeros((3, 4, 4), np.uint8))


def test_half_precision_logits_are_taken() -> None:
    found = Fixed(random_logits(1, 3, 8, 8).astype(np.float16), 3).predict(noise(12, 8))
    assert found.confidence is not None
    assert found.confidence.dtype == np.float32


def test_more_classes_than_a_byte_holds() -> None:
    logits = np.zeros((1, 300, 8, 8), np.float32)
    logits[:, 299] = 1
    found = Fixed(logits, 300).predict(noise(10, 8))
    assert found.class_map.dtype == np.uint16
    assert (found.class_map == 299).all()


def test_progress() -> None:
    calls: list[tuple[int, int]] = []
    Positions().predict(picture(20, 40), overlap=4, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(done, 6) for done in range(1, 7)]
    calls.clear()
    Positions().predict(picture(4, 4), progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 1)]


@pytest.mark.parametrize("tiles", [True, False])
def test_logits_of_the_whole_are_not_kept(tiles: bool) -> None:
    image, model = noise(4096, 64), Fixed(random_logits(1, 100, 64, 64), 100)
    tracemalloc.start()
    try:
        found = model.predict(image, tiles=tiles)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert isinstance(found, SemanticResult)
    assert peak < 100 * 4 * image.shape[0] * image.shape[1] * 0.1


# --- names and colours -----------------------------------------------------------------------------------------------


def test_names() -> None:
    assert len(set(LAND_COVER)) == 33
    assert class_names(33)[24] == "water"
    assert class_names(2) == ("class 0", "class 1")


def test_colours_are_told_apart_and_keep_their_class() -> None:
    colours = palette(33).astype(int)
    assert colours.shape == (33, 3)
    assert colours[0].tolist() == [0, 0, 0]
    apart = np.abs(colours[:, None] - colours[None]).sum(-1) + 1000 * np.eye(33)
    assert apart.min() >= 70
    np.testing.assert_array_equal(palette(10), palette(33)[:10])
    assert palette(1000).shape == (1000, 3)
    assert len(np.unique(palette(256), axis=0)) == 256


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_class_map_png_is_an_index_picture(dtype: Any) -> None:
    class_map = np.arange(12, dtype=dtype).reshape(3, 4) * (20 if dtype == np.uint8 else 5000)
    read = Image.open(io.BytesIO(class_map_png(class_map.astype(dtype))))
    assert read.mode == ("L" if dtype == np.uint8 else "I;16")
    np.testing.assert_array_equal(np.asarray(read), class_map)


def test_totals() -> None:
    class_map = np.random.default_rng(0).integers(0, 5, (700, 3)).astype(np.uint8)
    values = random_logits(700, 3)
    assert class_totals(class_map, 6).tolist() == [(class_map == index).sum() for index in range(6)]
    sums = [values[class_map == index].sum(dtype=np.float64) for index in range(6)]
    np.testing.assert_allclose(class_totals(class_map, 6, values), sums, rtol=1e-6)
