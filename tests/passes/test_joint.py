"""Passes over an encoder and its decoder."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from passes.test_hoist_image_side import IMAGE, decoder, encoder

from edgesam_deploy.contract import sample_inputs
from edgesam_deploy.errors import PassError
from edgesam_deploy.passes.aten.graph import AtenGraph
from edgesam_deploy.passes.engine import Engine
from edgesam_deploy.passes.execute import run_program
from edgesam_deploy.passes.joint import JointPass, composed, run_joint, run_joint_on_twin
from edgesam_deploy.passes.program import Program


def test_a_wrong_pass_is_found() -> None:
    def wrong(above: Program, below: Program) -> int:
        """Halve the decoder's weights."""
        for name, value in below.aten.state_dict.items():
            below.aten.state_dict[name] = value / 2
        return 1

    rewrite = JointPass(wrong)
    assert rewrite.why == "Halve the decoder's weights."
    engine = Engine("fast")
    with pytest.raises(PassError, match=r"wrong left its bound on image_encoder \+ mask_decoder: .* after 1 sites"):
        run_joint(engine, encoder(), decoder(), rewrite)
    assert engine.steps[0].error is not None
    run_joint(Engine("off"), encoder(), decoder(), rewrite)


def test_a_failing_pass_is_named() -> None:
    def failing(above: Program, below: Program) -> int:
        raise KeyError("x")

    with pytest.raises(PassError, match="failing failed on mask_decoder: KeyError"):
        run_joint(Engine("off"), encoder(), decoder(), JointPass(failing))


def test_composed_feeds_the_decoder() -> None:
    image, prompts = sample_inputs((IMAGE,), 5), sample_inputs(decoder().inputs, 6)
    found = composed(encoder(), decoder(), image, prompts)
    embeddings = run_program(encoder(), image)["embeddings"]
    assert np.array_equal(found["embeddings"], embeddings)
    alone = run_program(decoder(), prompts | {"embeddings": embeddings})
    assert all(np.array_equal(found[name], alone[name]) for name in alone)
    assert set(found) == {"embeddings", "out0", "out1"}


def scaled(by: float) -> Callable[[Program, Program], int]:
    """Scales what the decoder gives first."""

    def scale(above: Program, below: Program) -> int:
        with AtenGraph(below) as graph:
            first = graph.graph.output_node().args[0][0]
            with graph.graph.inserting_after(first):
                larger = graph.call(torch.ops.aten.mul.Tensor, first, by)
            graph.graph.output_node().replace_input_with(first, larger)
            graph.ep.graph_signature.output_specs[0].arg.name = larger.name
        return 2

    return scale


def test_what_a_step_says() -> None:
    told: list[str] = []
    engine = Engine("fast", progress=told.append)
    given = encoder(), decoder()
    before = sum(p.operators().total() for p in given)
    start = time.perf_counter()
    after = run_joint(engine, *given, JointPass(scaled(1.0)))
    spent = time.perf_counter() - start
    assert told == ["image_encoder + mask_decoder: scale"]
    (step,) = engine.steps
    assert (step.name, step.part, step.sites, step.error) == ("scale", "image_encoder + mask_decoder", 2, 0.0)
    assert (step.operators_before, step.operators_after) == (before, before + 1)
    assert sum(p.operators().total() for p in after) == before + 1
    assert not step.on_twin
    assert step.proof_seconds > 0
    assert step.seconds + step.proof_seconds <= spent


def test_nothing_found_is_not_proved() -> None:
    engine, given = Engine("fast"), (encoder(), decoder())
    assert run_joint(engine, *given, JointPass(lambda above, below: 0)) == given
    assert (engine.steps[0].error, engine.steps[0].proof_seconds) == (None, 0.0)


def test_a_bound_may_be_reached() -> None:
    engine = Engine("fast")
    run_joint(engine, encoder(), decoder(), JointPass(scaled(2.0), bound=1.0))
    assert engine.steps[0].error == 1.0
    with pytest.raises(PassError, match="at most 1e-05"):
        run_joint(engine, encoder(), decoder(), JointPass(scaled(1.001)))


def test_a_program_that_no_longer_runs_is_the_passs_fault() -> None:
    def stripping(above: Program, below: Program) -> int:
        for node in below.aten.graph.nodes:
            if node.target == torch.ops.aten.linear.default:
                node.args = ()
        below.aten.graph_module.recompile()
        return 1

    with pytest.raises(PassError, match="stripping failed on mask_decoder"):
        run_joint(Engine("fast"), encoder(), decoder(), JointPass(stripping))


def test_bounds_and_reasons() -> None:
    exact, rough = JointPass(lambda above, below: 0), JointPass(lambda above, below: 0, bound=0.1)
    assert (exact.is_exact, rough.is_exact) == (True, False)
    assert exact.why == ""


def test_a_twin_stands_for_its_own_step() -> None:
    engine = Engine("fast")
    run_joint(engine, encoder(), decoder(), JointPass(scaled(1.0), bound=0.5))
    given = encoder(), encoder(), decoder()
    _, _, after = run_joint_on_twin(engine, *given, JointPass(scaled(1.0)))
    assert [(step.on_twin, step.bound) for step in engine.steps] == [(False, 0.5), (True, 1e-5)]
    assert after is not given[2]
    assert run_joint_on_twin(engine, *given, JointPass(lambda above, below: 0)) == given
    assert [step.on_twin for step in engine.steps] == [False, True, False]
