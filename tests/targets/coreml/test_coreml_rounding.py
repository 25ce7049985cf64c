"""Kernels of depthwise convolutions are rounded to fp16 together: what a smooth map gives changes less."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from passes.programs import Calls, traced
from torch import nn

from edgesam_deploy.passes.program import Program
from edgesam_deploy.targets.coreml.rounding import neighbours, rounded, with_rounded_kernels


def weights(program: Program) -> dict[str, torch.Tensor]:
    return {name: value for name, value in program.aten.state_dict.items() if value.dim() == 4}


def test_the_neighbours_of_a_value() -> None:
    exact = np.array([1.0, 1.0001, -1.0001, 0.0, 3e-8, 2048.9])
    below, above = neighbours(exact)
    assert (below <= exact).all()
    assert (above >= exact).all()
    assert (below[[0, 3]] == above[[0, 3]]).all()
    assert [*(above - below)[[1, 2, 5]]] == [2**-10, 2**-10, 2]


def test_each_weight_goes_to_a_neighbour(rng: np.random.Generator) -> None:
    kernels = rng.standard_normal((40, 1, 3, 3)).astype(np.float32)
    chosen = rounded(kernels)
    below, above = neighbours(kernels.astype(np.float64))
    assert ((chosen == below) | (chosen == above)).all()
    assert np.array_equal(rounded(chosen), chosen)


def test_a_smooth_map_changes_less(rng: np.random.Generator) -> None:
    kernels = torch.from_numpy(rng.standard_normal((48, 1, 3, 3)).astype(np.float32))
    coarse = torch.from_numpy(rng.standard_normal((1, 48, 6, 6)).astype(np.float32))
    smooth = F.interpolate(coarse, scale_factor=8, mode="bicubic")
    exact = F.conv2d(smooth, kernels, groups=48)
    together = F.conv2d(smooth, torch.from_numpy(rounded(kernels.numpy())), groups=48) - exact
    singly = F.conv2d(smooth, kernels.half().float(), groups=48) - exact
    assert together.norm() < 0.5 * singly.norm()


def test_which_kernels(rng: np.random.Generator) -> None:
    layers = nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=1, groups=4),
        nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=4),
        nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 5, padding=2, groups=8), nn.Conv2d(8, 8, 3, padding=1, groups=8),
    )  # fmt: skip
    program = traced(Calls(lambda s, x: s.layers(x), layers=layers), (1, 4, 16, 16))
    before = weights(program)
    after = weights(with_rounded_kernels(program, 16))
    changed = [value for name, value in after.items() if name not in before]
    assert [value.shape[0] for value in changed] == [8]  # the first two read the finest map
    assert torch.equal(changed[0], changed[0].half().float())
    assert len(weights(with_rounded_kernels(program, None)).keys() - before.keys()) == 3
    assert weights(program).keys() == before.keys()
