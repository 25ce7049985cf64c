"""Rounding the kernels of depthwise convolutions to fp16 together, instead of each weight to its nearest."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from edgesam_deploy.passes.program import Program

CORRELATION = 0.95  # of neighbouring pixels in a map; 0.9 to 0.97 give the same
MOST_TAPS = 9  # of a kernel: all 2^taps ways to round are tried


def with_rounded_kernels(program: Program, finest: int | None) -> Program:
    """A copy whose depthwise kernels are values of fp16, chosen by ``rounded``; convolutions on maps of side
    ``finest`` and more are left, for they are not computed in fp16.

    A map is smooth, so the errors of a kernel's nine weights add up in what it gives, pixel after pixel, unless they
    cancel. Of edge_sam's loss by rounding weights this is nearly all: 2.6e-3 of the embeddings on the worst photograph
    become 1.1e-3, at no cost. Nothing is measured, so nothing depends on pictures.
    """
    import torch

    from edgesam_deploy.passes.aten.graph import AtenGraph, shape

    program = program.copy()
    with AtenGraph(program) as graph:
        for node in graph.calls(torch.ops.aten.conv2d.default):
            weight = graph.constant(node.args[1])
            if weight is None or weight.shape[1] != 1 or not 1 < weight[0].numel() <= MOST_TAPS:
                continue
            if finest is not None and min(shape(node.args[0])[-2:]) >= finest:
                continue
            kernels = torch.from_numpy(rounded(weight.detach().float().numpy()))
            new = graph.add_constant(f"{graph.target(node.args[1])}.rounded", kernels.to(weight.dtype))
            node.args = (node.args[0], new, *node.args[2:])
    return program


def rounded(kernels: NDArray[np.float32]) -> NDArray[np.float32]:
    """(C, 1, h, w) with each weight at one of its two neighbours in fp16: those whose errors d have the least
    E[(d * x)^2] = d^T R d on a map x whose pixels (i, j) apart correlate by CORRELATION^(i + j).
    """
    channels, _, height, width = kernels.shape
    exact = kernels.reshape(channels, height * width).astype(np.float64)
    below, above = neighbours(exact)
    choices = np.array(list(product((0.0, 1.0), repeat=height * width)))
    errors = (below - exact)[:, None] + (above - below)[:, None] * choices
    loss = np.einsum("cki,ij,ckj->ck", errors, correlations(height, width), errors, optimize=True)
    best = choices[loss.argmin(1)]
    return np.asarray(below + (above - below) * best, np.float32).reshape(kernels.shape)


def neighbours(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The next values of fp16 at or below, and at or above."""
    nearest = values.astype(np.float16)
    below = np.where(nearest <= values, nearest, np.nextafter(nearest, np.float16(-np.inf)))
    above = np.where(nearest >= values, nearest, np.nextafter(nearest, np.float16(np.inf)))
    return below.astype(np.float64), above.astype(np.float64)


def correlations(height: int, width: int) -> NDArray[np.float64]:
    """(h w, h w): of the pixels under a kernel."""
    row, column = np.divmod(np.arange(height * width), width)
    apart = np.abs(row[:, None] - row) + np.abs(column[:, None] - column)
    return np.asarray(CORRELATION**apart, np.float64)
