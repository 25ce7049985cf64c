"""What a proof measures, on what program, and how often."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from passes.programs import Calls, counts, traced
from passes.test_engine import aten_program, masked, rewriting, scale_relu

from edgesam_deploy.errors import PassError
from edgesam_deploy.passes import engine as engine_module
from edgesam_deploy.passes.aten.graph import AtenGraph
from edgesam_deploy.passes.engine import EXACT, SEEDS, Engine, Pass, adapting, approximate, exact
from edgesam_deploy.passes.lower_to_onnx import lower_to_onnx
from edgesam_deploy.passes.program import Program

aten = torch.ops.aten


def plain(size: int = 16) -> Program:
    """10 relu(x): large enough values to be measured against themselves."""
    return traced(Calls(lambda _, x: x.relu() * 10), (8, size))


# --- figures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("by", "bound"), [(2.0, 1.0), (0.5, 0.5)])
def test_the_error_is_measured_against_what_was_before(by: float, bound: float) -> None:
    """A bound may be reached exactly: |a| / |a|, |0.5 a| / |a|."""
    engine = Engine("fast")
    engine.run(plain(), (approximate(bound, "rough")(rewriting(scale_relu(by)).run),))
    assert engine.steps[0].error == bound


@pytest.mark.parametrize(
    ("count", "value", "error"),
    [
        (64, 0.5, 0.001),  # so few are measured against 1,
        (65, 0.5, 0.002),  # more against themselves,
        (65, 0.05, 0.01),  # where they are not all near 0: then against 0.1
        (64, 4.0, 0.00025),
    ],
)
def test_what_small_outputs_are_measured_against(count: int, value: float, error: float) -> None:
    before = np.full(count, value)
    assert engine_module._error(before, before + 0.001) == pytest.approx(error)


@pytest.mark.parametrize(
    ("before", "after", "iou"),
    [
        ([[-1.0, -2]], [[-1.0, -2]], 1.0),  # no mask, before and after
        ([[1.0, 1]], [[1.0, 0]], 0.5),  # a logit of 0 is outside
        ([[1.0, 1]], [[1.0, 0.5]], 1.0),
        ([[1.0, 0.1]], [[1.0, -0.1]], 0.5),  # above a hundredth of the root mean square: decided
        ([[1.0, 0.1], [1, 1]], [[1.0, 0.1], [1, -1]], 3 / 4),
    ],
)
def test_iou_of_masks(before: list[list[float]], after: list[list[float]], iou: float) -> None:
    planes = (np.array(value)[None, None] for value in (before, after))
    assert engine_module._decided_iou(*planes, 0.01) == pytest.approx(iou)


def test_masks_of_another_shape_have_nothing_in_common() -> None:
    assert engine_module._decided_iou(np.ones((1, 1, 2, 2)), np.ones((1, 1, 2, 1)), 0.01) == 0


def test_masks_may_have_the_iou_that_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "_decided_iou", lambda *_: 0.9999)
    engine = Engine("fast")
    engine.run(masked(), (rewriting(scale_relu(1.0)),))
    assert engine.steps[0].mask_iou == 0.9999


def test_what_a_fast_proof_finds_a_full_one_finds_too() -> None:
    assert SEEDS["full"][: len(SEEDS["fast"])] == SEEDS["fast"]


def test_times_are_those_of_the_run() -> None:
    """Passes that share a proof share its time."""
    engine = Engine("fast")
    start = time.perf_counter()
    engine.run(aten_program(), [rewriting(scale_relu(1.0), name=name) for name in "abcdefgh"])
    spent = time.perf_counter() - start
    assert all(step.proof_seconds > 0 and step.seconds > 0 for step in engine.steps)
    assert sum(step.proof_seconds + step.seconds for step in engine.steps) <= spent


def test_no_proof_takes_no_time() -> None:
    engine = Engine("off")
    engine.run(aten_program(), (rewriting(scale_relu(1.0)),))
    assert (engine.steps[0].proof_seconds, engine.steps[0].proved_with) == (0.0, ())


def test_a_pass_that_is_wrong_is_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone there is nobody else to blame: real programs take minutes."""
    samples = []
    original = engine_module.run_on_each
    monkeypatch.setattr(engine_module, "run_on_each", lambda p, s: samples.extend(s) or original(p, s))
    with pytest.raises(PassError):
        Engine("fast").run(aten_program(), (rewriting(scale_relu(2.0)),))
    assert len(samples) == 4, "two inputs, before and after"


def test_a_pass_without_a_docstring() -> None:
    assert Pass(lambda program: 0, EXACT, "aten").why == ""


# --- passes that prove alone -----------------------------------------------------------------------------------------


def test_lowering_is_proved_alone() -> None:
    """Another runtime computes what comes out of it."""
    engine = Engine("fast")
    engine.run(aten_program(), (rewriting(scale_relu(1.0)), lower_to_onnx(20, 9)))
    assert [step.proved_with for step in engine.steps] == [(), ()]
    assert all(step.error is not None for step in engine.steps)


def test_a_pass_that_changes_the_inputs_is_proved_alone() -> None:
    @adapting(lambda before, after, inputs: {"x": inputs["x"] / 2})
    @exact
    def halve_input(program: Program) -> int:
        with AtenGraph(program) as graph:
            scale_relu(2.0)(graph)
        return 1

    engine = Engine("fast")
    program = traced(Calls(lambda _, x: x.relu().sin()), (4, 30))
    engine.run(program, (rewriting(scale_relu(1.0)), halve_input, rewriting(scale_relu(1.0))))
    assert [step.proved_with for step in engine.steps] == [(), (), ()]


# --- twins -----------------------------------------------------------------------------------------------------------


def test_a_twin_is_run_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = set()
    original = engine_module.run_on_each
    monkeypatch.setattr(
        engine_module, "run_on_each", lambda p, s: sizes.update(x["x"].shape[1] for x in s) or original(p, s)
    )
    engine = Engine("fast")
    passes = rewriting(scale_relu(1.0), name="a"), rewriting(scale_relu(1.0), name="b")
    after = engine.run(plain(64), passes, twin=plain(4))
    assert after.inputs[0].shape == (8, 64)
    assert counts(after) == {"relu": 1, "mul": 3}
    assert sizes == {4}
    assert [(step.name, step.on_twin, step.error) for step in engine.steps] == [("a", True, 0.0), ("b", True, 0.0)]
    alone = Engine("fast")
    alone.run(plain(4), passes)
    assert [step.on_twin for step in alone.steps] == [False, False]


def test_what_is_wrong_on_the_twin_fails() -> None:
    engine = Engine("fast")
    with pytest.raises(PassError, match="break_relu left its bound"):
        engine.run(plain(64), (rewriting(scale_relu(1.01), name="break_relu"),), twin=plain(4))


def wide_only() -> Pass:
    """Finds work in programs of 64 columns."""

    def run(program: Program) -> int:
        if program.inputs[0].shape[1] != 64:
            return 0
        with AtenGraph(program) as graph:
            scale_relu(1.0)(graph)
        return 1

    run.__name__ = "wide_only"
    return exact(run)


def test_work_that_the_twin_has_no_case_of_is_not_proved() -> None:
    with pytest.raises(PassError, match="wide_only found work in part that its twin has no case of"):
        Engine("fast").run(plain(64), (wide_only(),), twin=plain(4))


def test_work_that_only_the_twin_has_is_proved_all_the_same() -> None:
    engine = Engine("fast")
    program = plain(4)
    assert engine.run(program, (wide_only(),), twin=plain(64)) is program
    (step,) = engine.steps
    assert (step.sites, step.error) == (0, 0.0)


def test_dumping_says_nothing(capsys: pytest.CaptureFixture[str], tmp_path: object) -> None:
    engine_module.write_dump(replace(plain(), name="named"), tmp_path)  # type: ignore[arg-type]
    assert capsys.readouterr().out == ""
