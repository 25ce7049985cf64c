"""The engine proves, records, dumps and blames; and a copy of a program is a copy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import Fail
from passes.programs import Calls, counts, parsed, randomise, traced
from torch import nn

from edgesam_deploy.contract import sample_inputs
from edgesam_deploy.errors import MissingToolkit, PassError, UnknownName
from edgesam_deploy.passes import aten as aten_passes
from edgesam_deploy.passes import engine as engine_module
from edgesam_deploy.passes import onnx as onnx_passes
from edgesam_deploy.passes.aten.graph import AtenGraph
from edgesam_deploy.passes.engine import EXACT, SEEDS, Engine, Pass, Step, approximate, exact
from edgesam_deploy.passes.program import Program

aten = torch.ops.aten


def aten_program() -> Program:
    return traced(randomise(Calls(lambda s, x: s.net(x).relu() + 1, net=nn.Linear(3, 4))), ("batch", 3))


def onnx_program() -> Program:
    return parsed("""
        part (float[batch,3] x) => (float[batch,3] y) <float[3] w = {1, 2, 3}> { a = Mul(x, w) y = Relu(a) }""")


def rewriting(edit: Callable[[AtenGraph], None], sites: int = 1, name: str = "edit") -> Pass:
    """An aten pass that applies ``edit``."""

    def run(program: Program) -> int:
        """What it does."""
        with AtenGraph(program) as graph:
            edit(graph)
        return sites

    run.__name__ = name
    return exact(run)


def scale_relu(by: float) -> Callable[[AtenGraph], None]:
    def edit(graph: AtenGraph) -> None:
        for node in graph.calls(aten.relu.default):
            with graph.graph.inserting_after(node):
                scaled = graph.call(aten.mul.Tensor, node, by)
            for reader in [user for user in node.users if user is not scaled]:
                reader.replace_input_with(node, scaled)

    return edit


@exact
def nothing(program: Program) -> int:
    """Find nothing, but scribble on the program all the same."""
    with AtenGraph(program) as graph:
        scale_relu(7.0)(graph)
    return 0


# --- declaring -------------------------------------------------------------------------------------------------------


def test_a_pass_is_its_function() -> None:
    assert (nothing.name, nothing.is_exact, nothing.bound, nothing.dialect) == ("nothing", True, EXACT, "aten")
    assert nothing.why == "Find nothing, but scribble on the program all the same."
    assert onnx_passes.fold_constants.dialect == "onnx"
    assert aten_passes.fold_constants.dialect == "aten"


def test_an_approximation_says_so() -> None:
    rough = approximate(1e-2, "tanh for erf")(lambda program: 0)
    assert (rough.is_exact, rough.bound, rough.note) == (False, 1e-2, "tanh for erf")


# --- proving ---------------------------------------------------------------------------------------------------------


def test_a_right_pass_is_recorded() -> None:
    engine = Engine("fast")
    after = engine.run(aten_program(), (rewriting(scale_relu(1.0), sites=3, name="harmless"),))
    (step,) = engine.steps
    assert isinstance(step, Step)
    assert (step.name, step.part, step.sites, step.bound, step.error) == ("harmless", "part", 3, EXACT, 0.0)
    assert (step.operators_before, step.operators_after) == (3, 4) == (3, sum(counts(after).values()))
    assert step.seconds >= 0
    assert step.proof_seconds > 0


def test_a_wrong_pass_is_named_with_its_figures() -> None:
    engine = Engine("fast")
    wrong = rewriting(scale_relu(1.01), sites=5, name="break_relu")
    with pytest.raises(PassError, match=r"break_relu.*part.*relative L2 \d\.\d\de-0\d.*at most 1e-05.*5 sites"):
        engine.run(aten_program(), (rewriting(scale_relu(1.0)), wrong, nothing))
    assert [step.name for step in engine.steps] == ["edit", "break_relu"], (
        "the step that failed is recorded, none after"
    )
    assert engine.steps[-1].error == pytest.approx(0.01, rel=0.5)


def test_an_approximation_may_be_as_wrong_as_it_says() -> None:
    rough = rewriting(scale_relu(1.01)).run
    assert Engine("fast").run(aten_program(), (approximate(0.1, "why not")(rough),))
    with pytest.raises(PassError, match="at most 1e-04"):
        Engine("fast").run(aten_program(), (approximate(1e-4, "too little")(rough),))


def test_errors_do_not_add_up_unseen() -> None:
    """Each step is compared with the one before it: every one has its own bound to keep."""
    small = approximate(1e-3, "small")(rewriting(scale_relu(1.0005)).run)
    engine = Engine("fast")
    engine.run(aten_program(), (small, small, small))
    assert all(step.error == pytest.approx(5e-4, rel=0.6) for step in engine.steps)


# --- proving several as one ------------------------------------------------------------------------------------------


def test_neighbouring_exact_passes_share_a_proof() -> None:
    engine = Engine("fast")
    rough = approximate(1e-2, "rough")(rewriting(scale_relu(1.001), name="rough").run)
    passes = [rewriting(scale_relu(1.0), name=name) for name in "abcd"]
    engine.run(aten_program(), (passes[0], nothing, passes[1], rough, passes[2], passes[3]))
    assert [(s.name, s.proved_with) for s in engine.steps] == [
        ("a", ("b",)), ("nothing", ()), ("b", ("a",)), ("rough", ()), ("c", ("d",)), ("d", ("c",)),
    ]  # fmt: skip
    assert [s.error is None for s in engine.steps] == [False, True, False, False, False, False]


@pytest.mark.parametrize("position", [0, 1, 2])
def test_the_one_to_blame_is_found_among_several(position: int) -> None:
    passes = [rewriting(scale_relu(1.0), name=name) for name in "abc"]
    passes[position] = rewriting(scale_relu(1.01), name="break_relu")
    engine = Engine("fast")
    with pytest.raises(PassError, match=r"break_relu left its bound on part: relative L2"):
        engine.run(aten_program(), passes)
    assert len(engine.steps) == position + 1
    assert all(step.proved_with == () for step in engine.steps)


def test_a_crash_among_several_is_blamed_on_what_caused_it() -> None:
    """The second pass leaves a program that does not run, which is seen when the third has been applied."""

    def strip(graph: AtenGraph) -> None:
        for node in graph.calls(aten.relu.default):
            node.args = ()

    good = rewriting(lambda graph: None, name="good")
    with pytest.raises(PassError, match="strip failed on part"):
        Engine("fast").run(aten_program(), (good, rewriting(strip, name="strip"), good))


def test_a_wrong_pass_is_to_blame_where_a_later_one_crashes() -> None:
    @exact
    def crash(program: Program) -> int:
        raise KeyError("k")

    with pytest.raises(PassError, match="break_relu left its bound"):
        Engine("fast").run(aten_program(), (rewriting(scale_relu(1.01), name="break_relu"), crash))


def test_bounds_that_only_add_up_are_kept_by_each() -> None:
    """Two steps of 0.8 bounds are out of bound together and in bound alone."""
    engine = Engine("fast")
    engine.run(aten_program(), [rewriting(scale_relu(1 + 0.6 * EXACT), name=name) for name in "abc"])
    assert all(step.proved_with == () and 0 < step.error <= EXACT for step in engine.steps)


def test_full_proves_every_pass_alone() -> None:
    engine = Engine("full")
    engine.run(aten_program(), [rewriting(scale_relu(1.0), name=name) for name in "ab"])
    assert all(step.proved_with == () and step.error == 0 for step in engine.steps)


def masked() -> Program:
    program = traced(Calls(lambda _, x: x.relu() - 0.5), (1, 2, 16, 16))
    program.outputs = (replace(program.outputs[0], name="masks"),)
    return program


@pytest.mark.parametrize(("flipped", "iou"), [((0, 0), 0.0), ((0, 3), 1.0), ((1, 1), 2 / 3)])
def test_masks_are_compared_where_they_are_decided(flipped: tuple[int, int], iou: float) -> None:
    """The worst plane counts, and a pixel that lies within the bound of 0 does not."""
    before = np.array([[[1.0, -1, -1, 0.001], [1, 1, 1, -1]]])[..., None]
    after = before.copy()
    after[0, flipped[0], flipped[1]] *= -1
    assert engine_module._mask_iou([{"masks": before}], [{"masks": after}], 0.01) == pytest.approx(iou)
    assert engine_module._mask_iou([{"scores": before}], [{"scores": after}], 0.01) is None


def test_masks_that_leave_their_iou_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "_decided_iou", lambda *_: 0.9998)
    with pytest.raises(PassError, match=r"shift left its bound on part: mask IoU 0\.99980 where at least 0\.9999"):
        Engine("fast").run(masked(), (rewriting(scale_relu(1.0), name="shift"),))


def test_the_iou_of_masks_is_recorded() -> None:
    engine = Engine("fast")
    engine.run(masked(), (rewriting(scale_relu(1.0)),))
    assert engine.steps[0].mask_iou == 1.0
    other = Engine("fast")
    other.run(aten_program(), (rewriting(scale_relu(1.0)),))
    assert other.steps[0].mask_iou is None


def flagged() -> Program:
    """x * 2 where the flag is set, x * 3 where not."""
    module = Calls(lambda _, x, y: torch.where(y.reshape(1, 1) > 0.5, x * 2, x * 3))
    return traced(module, (4, 3), (1,), roles={"y": "flag"})


def test_the_second_input_catches_a_branch_that_was_baked_in(monkeypatch: pytest.MonkeyPatch) -> None:
    program = flagged()
    flags = [float(sample_inputs(program.inputs, seed)["y"][0]) for seed in range(100)]
    with_flag, without = flags.index(1.0), flags.index(0.0)

    def keep_first_branch(graph: AtenGraph) -> None:
        for node in graph.calls(aten.where.self):
            graph.replace(node, node.args[1])  # type: ignore[arg-type]

    baked = rewriting(keep_first_branch, name="bake_branch")
    monkeypatch.setitem(SEEDS, "fast", (with_flag,))
    assert Engine("fast").run(program, (baked,)), "right on the first input"
    monkeypatch.setitem(SEEDS, "fast", (with_flag, without))
    with pytest.raises(PassError, match="bake_branch"):
        Engine("fast").run(program, (baked,))


def test_the_seeded_inputs_are_unrelated() -> None:
    """Sizes of dynamic dimensions and values differ from seed to seed."""
    inputs = [sample_inputs(aten_program().inputs, seed)["x"] for seed in SEEDS["full"]]
    assert len({x.shape[0] for x in inputs}) > 1
    assert len(SEEDS["fast"]) >= 2
    first, second = (x.ravel()[:6] for x in inputs[:2])
    assert not np.allclose(first, second)


def test_a_size_that_was_baked_in() -> None:
    program = traced(Calls(lambda _, x: x.relu().reshape(x.shape[0], 3)), ("batch", 3))
    size = sample_inputs(program.inputs, SEEDS["fast"][0])["x"].shape[0]

    def bake(graph: AtenGraph) -> None:
        for node in graph.calls(aten.reshape.default, aten.view.default):
            node.args = (node.args[0], [size, 3])

    with pytest.raises(PassError, match="bake_size"):
        Engine("fast").run(program, (rewriting(bake, name="bake_size"),))


@pytest.mark.parametrize("make", [float("nan"), float("inf")], ids=["nan", "inf"])
def test_a_value_that_is_no_number_fails(make: float) -> None:
    with pytest.raises(PassError, match="poison"):
        Engine("fast").run(aten_program(), (rewriting(scale_relu(make), name="poison"),))


def test_a_program_that_gives_nan_from_the_start_cannot_be_proved() -> None:
    program = traced(Calls(lambda _, x: (x * 0).log() * 0 + x), (2, 3))
    with pytest.raises(PassError, match="nan"):
        Engine("fast").run(program, (rewriting(lambda graph: None),))


def test_another_shape_or_type_fails() -> None:
    def widen(graph: AtenGraph) -> None:
        (node,) = graph.calls(aten.add.Tensor)
        with graph.graph.inserting_after(node):
            wide = graph.call(aten.unsqueeze.default, node, 0)
        output = graph.graph.output_node()
        output.replace_input_with(node, wide)
        graph.ep.graph_signature.output_specs[0].arg.name = wide.name

    def retype(graph: AtenGraph) -> None:
        (node,) = graph.calls(aten.add.Tensor)
        with graph.graph.inserting_after(node):
            double = graph.call(aten.to.dtype, node, torch.float64)
        graph.graph.output_node().replace_input_with(node, double)
        graph.ep.graph_signature.output_specs[0].arg.name = double.name

    for edit in (widen, retype):
        with pytest.raises(PassError, match="inf"):
            Engine("fast").run(aten_program(), (rewriting(edit),))


def test_every_output_counts() -> None:
    """The second output is wrong where the first is right."""
    program = traced(Calls(lambda _, x: (x.sigmoid(), x.relu())), (2, 3), outputs=2)
    with pytest.raises(PassError, match="edit"):
        Engine("fast").run(program, (rewriting(scale_relu(1.001)),))


# --- blaming ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [KeyError("k"), TypeError("t"), RuntimeError("r"), AssertionError("a"), StopIteration(), Fail("f")],
    ids=lambda e: type(e).__name__,
)  # fmt: skip
def test_a_pass_that_crashes_is_named(error: Exception) -> None:
    @exact
    def crash(program: Program) -> int:
        raise error

    with pytest.raises(PassError, match=f"crash failed on part: {type(error).__name__}") as caught:
        Engine("fast").run(aten_program(), (crash,))
    assert caught.value.__cause__ is error


def test_a_program_that_no_longer_runs_is_the_passs_fault() -> None:
    @exact
    def dangle(program: Program) -> int:
        next(iter(program.onnx.graph)).op_type = "NoSuchOperator"
        return 1

    with pytest.raises(PassError, match="dangle failed on part"):
        Engine("fast").run(onnx_program(), (dangle,))


def test_an_error_on_purpose_keeps_its_exit_code() -> None:
    @exact
    def needs_toolkit(program: Program) -> int:
        raise MissingToolkit("needs X")

    with pytest.raises(MissingToolkit, match="needs X"):
        Engine("fast").run(aten_program(), (needs_toolkit,))


def test_a_pass_of_the_other_dialect_is_named() -> None:
    with pytest.raises(PassError, match="fold_batch_norm failed"):
        Engine("fast").run(onnx_program(), (aten_passes.fold_batch_norm,))


def test_an_interrupt_is_not_swallowed() -> None:
    @exact
    def interrupted(program: Program) -> int:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Engine("off").run(aten_program(), (interrupted,))


# --- running ---------------------------------------------------------------------------------------------------------


def test_no_sites_no_change() -> None:
    program = aten_program()
    engine = Engine("fast")
    assert engine.run(program, (nothing,)) is program
    assert counts(program) == {"linear": 1, "relu": 1, "add": 1}
    (step,) = engine.steps
    assert (step.sites, step.error, step.proof_seconds) == (0, None, 0.0)


def test_an_empty_pipeline() -> None:
    program = aten_program()
    assert Engine("fast").run(program, ()) is program


def test_the_program_given_stays_as_it_was() -> None:
    program = aten_program()
    before = counts(program)
    after = Engine("fast").run(program, (rewriting(scale_relu(1.0)),))
    assert after is not program
    assert counts(program) == before


def test_without_proof_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_on_each(_: object, samples: list[object]) -> list[object]:
        assert not samples, "must not run"
        return []

    monkeypatch.setattr(engine_module, "run_on_each", run_on_each)
    engine = Engine("off")
    engine.run(aten_program(), (rewriting(scale_relu(3.0)),))
    assert [step.error for step in engine.steps] == [None]


@pytest.mark.parametrize(("proof", "runs"), [("off", 0), ("fast", 4), ("full", 8)])
def test_how_often_it_runs(monkeypatch: pytest.MonkeyPatch, proof: str, runs: int) -> None:
    """Once per input before, once after each step that did something; steps that did nothing cost nothing."""
    calls = []
    original = engine_module.run_on_each
    monkeypatch.setattr(engine_module, "run_on_each", lambda p, s: calls.extend(s) or original(p, s))
    Engine(proof).run(aten_program(), (nothing, rewriting(scale_relu(1.0)), nothing))  # type: ignore[arg-type]
    assert len(calls) == runs


def test_one_engine_for_several_parts() -> None:
    engine = Engine("fast")
    for name in ("image_encoder", "mask_decoder"):
        program = aten_program()
        program.name = name
        engine.run(program, (nothing,))
    assert [(s.part, s.name) for s in engine.steps] == [("image_encoder", "nothing"), ("mask_decoder", "nothing")]


def test_progress() -> None:
    told: list[str] = []
    Engine("off", progress=told.append).run(aten_program(), (nothing, rewriting(scale_relu(1.0))))
    assert told == ["part: nothing", "part: edit"]


# --- dumping ---------------------------------------------------------------------------------------------------------


def test_dump_after_an_aten_pass(tmp_path: Path) -> None:
    engine = Engine("off", "edit", tmp_path / "new" / "folder")
    engine.run(aten_program(), (rewriting(scale_relu(1.5)), rewriting(scale_relu(2.5), name="later")))
    text = (tmp_path / "new" / "folder" / "part.aten.txt").read_text()
    assert "1.5" in text
    assert "2.5" not in text


def test_dump_after_an_onnx_pass(tmp_path: Path) -> None:
    engine = Engine("off", "canonicalize_names", tmp_path)
    engine.run(onnx_program(), (onnx_passes.canonicalize_names,))
    assert [n.name for n in ir.load(tmp_path / "part.onnx").graph] == ["Mul_0", "Relu_0"]


def test_dump_after_a_pass_that_found_nothing(tmp_path: Path) -> None:
    Engine("off", "nothing", tmp_path).run(aten_program(), (nothing,))
    assert "7.0" not in (tmp_path / "part.aten.txt").read_text()


def test_the_wrong_program_is_what_one_wants_to_see(tmp_path: Path) -> None:
    """As the message of the failure recommends."""
    with pytest.raises(PassError, match="see --dump-after break_relu"):
        Engine("fast", "break_relu", tmp_path).run(aten_program(), (rewriting(scale_relu(1.25), name="break_relu"),))
    assert "1.25" in (tmp_path / "part.aten.txt").read_text()


def test_dump_after_a_name_that_is_not_in_the_pipeline(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match=r"fold_batch_norms.*did you mean fold_batch_norm"):
        Engine("off", "fold_batch_norms", tmp_path).run(aten_program(), (aten_passes.fold_batch_norm, nothing))
    assert not list(tmp_path.iterdir())


def test_no_dump_unless_asked(tmp_path: Path) -> None:
    Engine("off", None, tmp_path).run(aten_program(), (nothing,))
    assert not list(tmp_path.iterdir())
