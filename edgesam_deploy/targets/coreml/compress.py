"""Weights of an ML Program in fewer bits; arithmetic stays fp16."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesam_deploy.toolkits import require

PALETTES = {"palette8": 8, "palette6": 6}  # bits per weight
COMPRESSED = ("int8", *PALETTES)
SMALLEST = 512  # elements: below it a table or scales take more than they save
ROUNDS = 40  # of Lloyd's iteration; one-dimensional clusters settle in fewer


def compressed(model: Any, precision: str) -> Any:
    """The model with its larger weights as 8-bit integers with a scale per channel, or as indices into a table.

    Tables are found by ``nearest_table``: the toolkit's own search needs scikit-learn and draws at random.
    """
    cto = require("coremltools.optimize.coreml", "compressing a Core ML model")
    if precision == "int8":
        scheme = cto.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=SMALLEST)
        return cto.linear_quantize_weights(model, config=cto.OptimizationConfig(global_config=scheme))
    bits = PALETTES[precision]
    scheme = cto.OpPalettizerConfig(
        mode="custom", lut_function=lambda weight: nearest_table(weight, bits), weight_threshold=SMALLEST
    )
    return cto.palettize_weights(model, config=cto.OptimizationConfig(global_config=scheme))


def nearest_table(weight: NDArray[Any], bits: int) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """A table of 2^bits values and each weight's index into it, by k-means on the line, begun at the quantiles.

    The table is (2^bits,), ascending, in the type of ``weight``; the indices have its shape. Nothing is random.
    """
    values = np.asarray(weight, np.float64).ravel()
    table = np.quantile(values, (np.arange(1 << bits) + 0.5) / (1 << bits))
    for _ in range(ROUNDS):
        index = _nearest(values, table)
        count = np.bincount(index, minlength=table.size)
        total = np.bincount(index, values, table.size)
        moved = np.where(count > 0, total / np.maximum(count, 1), table)  # an empty cluster stays where it is
        if np.array_equal(moved, table):
            break
        table = np.sort(moved)
    index = _nearest(values, table)
    return table.astype(weight.dtype), index.astype(np.uint8).reshape(weight.shape)


def _nearest(values: NDArray[np.float64], table: NDArray[np.float64]) -> NDArray[np.intp]:
    found: NDArray[np.intp] = np.searchsorted((table[1:] + table[:-1]) / 2, values)
    return found
