"""Passes over an encoder and its decoder."""

from __future__ import annotations

import numpy as np
import pytest
from passes.test_hoist_image_side import IMAGE, decoder, encoder

from edgesam_deploy.contract import sample_inputs
from edgesam_deploy.errors import PassError
from edgesam_deploy.passes.engine import Engine
from edgesam_deploy.passes.execute import run_program
from edgesam_deploy.passes.joint import JointPass, composed, run_joint
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
