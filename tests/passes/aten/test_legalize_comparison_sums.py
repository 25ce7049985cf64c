"""Counting by steep sigmoids: close to the count, and only where nobody looks at the booleans."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from passes.programs import Calls, counts, rewritten, traced
from torch import Tensor

from edgesam_deploy.capture import capture
from edgesam_deploy.capture.parts import stability_score
from edgesam_deploy.contract import Interface
from edgesam_deploy.model.sam import Sam
from edgesam_deploy.passes.aten import eliminate_identity, legalize_comparison_sums
from edgesam_deploy.passes.engine import Engine
from edgesam_deploy.passes.execute import run_program
from edgesam_deploy.passes.lower_to_onnx import lower_to_onnx
from edgesam_deploy.passes.program import Program

Function = Callable[..., Tensor | tuple[Tensor, ...]]
SOFT = {"sub": 1, "mul": 1, "sigmoid": 1, "sum": 1}


def logits(function: Function, shape: tuple[int | str, ...] = (1, 4, 128, 128), outputs: int = 1) -> Program:
    return traced(Calls(function), shape, roles={"x": "mask_logits"}, outputs=outputs)


COUNTS: dict[str, Function] = {
    "above": lambda _, x: (x > 1.0).float().sum((-1, -2)),
    "at least": lambda _, x: (x >= -1).float().sum((-1, -2)),
    "below": lambda _, x: (x < 2).float().sum((-1, -2)),
    "at most": lambda _, x: (x <= -0.5).to(torch.float32).sum([2, 3], keepdim=True),
    "of all": lambda _, x: (x > 0.25).float().sum(),
}


@pytest.mark.parametrize("case", COUNTS)
def test_counts(case: str) -> None:
    before = logits(lambda s, x: COUNTS[case](s, x) / x[0, 0].numel())  # of a size near 1, as scores are
    found = counts(rewritten(before, legalize_comparison_sums, 1))
    assert found == SOFT | {"div": 1}


@pytest.mark.parametrize(("offset", "value"), [(0.0, 0.5), (0.05, 0.99331), (-0.05, 0.00669), (1.0, 1.0), (-1.0, 0.0)])
@pytest.mark.parametrize("above", [True, False])
def test_one_pixel(offset: float, value: float, above: bool) -> None:
    module = Calls(lambda _, x: (x > 1.5 if above else x < 1.5).float().sum())
    program = traced(module, (1,)).copy()
    assert legalize_comparison_sums(program) == 1
    x = np.array([1.5 + (offset if above else -offset)], np.float32)
    assert float(run_program(program, {"x": x})["out0"]) == pytest.approx(value, abs=2e-5)


def test_the_stability_score_at_sams_size() -> None:
    """Within 4e-4 at 256 x 256 and logits of spread 8, as the issue of the NPU decoder wants it."""
    before = logits(lambda _, x: stability_score(x), (1, 4, 256, 256))
    after = rewritten(before, legalize_comparison_sums, 2)
    x = {"x": 8 * np.random.default_rng(5).standard_normal((1, 4, 256, 256)).astype(np.float32)}
    assert np.abs(run_program(after, x)["out0"] - run_program(before, x)["out0"]).max() < 4e-4
    assert legalize_comparison_sums.bound == 5e-3


def test_one_comparison_counted_twice() -> None:
    def function(_: Calls, x: Tensor) -> tuple[Tensor, Tensor]:
        above = x > 0
        return above.float().mean((0, 1)).sum() * 0 + above.float().sum() / x.numel(), above.float().sum(-1) / 128

    rewritten(logits(function, outputs=2), legalize_comparison_sums, 0)  # the mean reads it too

    def twice(_: Calls, x: Tensor) -> tuple[Tensor, Tensor]:
        above = x > 0
        return above.float().sum() / x.numel(), above.to(torch.float32).sum((0, 2, 3)) / 128**2

    found = counts(rewritten(logits(twice, outputs=2), legalize_comparison_sums, 1))
    assert found == {"sub": 1, "mul": 1, "sigmoid": 1, "sum": 2, "div": 2}


def test_lowers_without_comparison_and_cast() -> None:
    before = logits(lambda _, x: stability_score(x))
    after = Engine("off").run(rewritten(before, legalize_comparison_sums, 2), (eliminate_identity,)).copy()
    lower_to_onnx(20, 9)(after)
    found = counts(after)
    assert not {"Greater", "Equal", "Where", "Not"} & set(found)
    assert found["Sigmoid"] == 2


REFUSED: dict[str, Function] = {
    "the mask itself": lambda _, x: (x > 0).float(),
    "a mean": lambda _, x: (x > 0).float().mean(),
    "a product": lambda _, x: ((x > 0).float() * x).sum(),
    "the sum and the mask": lambda _, x: (m := (x > 0).float()).sum() + m,
    "a boolean sum": lambda _, x: (x > 0).sum() * 1.0,
    "an integer sum": lambda _, x: (x > 0).int().sum() * 1.0,
    "double precision": lambda _, x: (x > 0).double().sum().float(),
    "equality": lambda _, x: (x == 0).float().sum(),
    "negated": lambda _, x: (~(x > 0)).float().sum(),
    "a mask between two": lambda _, x: (x > x.mean()).float().sum(),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case: str) -> None:
    rewritten(logits(REFUSED[case], (1, 4, 8, 8)), legalize_comparison_sums, 0)


def test_refuses_labels() -> None:
    """At a whole number the sigmoid is one half; these have an exact form."""
    program = traced(Calls(lambda _, x: (x >= 0).float().sum()), (2, 6), roles={"x": "labels"})
    rewritten(program, legalize_comparison_sums, 0)


def test_refuses_what_only_an_assertion_of_the_tracer_reads() -> None:
    def function(_: Calls, x: Tensor) -> Tensor:
        torch.ops.aten._assert_tensor_metadata.default(x > 0, dtype=torch.bool)
        return x + 1

    assert counts(rewritten(logits(function), legalize_comparison_sums, 0))["gt"] == 1


def test_sites_of_the_decoder(tiny_model: Sam) -> None:
    _, decoder = capture(tiny_model, Interface(image_size=256, embed_dim=64, scores="stability"))
    rewritten(decoder, legalize_comparison_sums, 2)
    _, plain = capture(tiny_model, Interface(image_size=256, embed_dim=64))
    rewritten(plain, legalize_comparison_sums, 0)
