"""The host encodes the points: another input, the same results, proved across the change."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from math import pi

import numpy as np
import pytest
import torch
from passes.programs import Calls, counts, rewritten, traced
from torch import Tensor

from edgesam_deploy.capture import capture, trace
from edgesam_deploy.contract import Interface, TensorSpec, encode_positions, sample_inputs
from edgesam_deploy.errors import PassError
from edgesam_deploy.model.sam import Sam
from edgesam_deploy.passes.aten import (
    eliminate_dead,
    eliminate_identity,
    fold_constants,
    gather_to_slice,
    hoist_positional_encoding,
)
from edgesam_deploy.passes.aten.hoist_positional_encoding import encoding_input
from edgesam_deploy.passes.engine import Engine
from edgesam_deploy.passes.execute import relative_l2, run_program
from edgesam_deploy.passes.lower_to_onnx import lower_to_onnx
from edgesam_deploy.passes.program import Program

G = torch.tensor([[0.3, -1.1, 0.8], [0.9, 0.2, -0.4]])
Function = Callable[..., Tensor | tuple[Tensor, ...]]


def encode(s: Calls, c: Tensor) -> Tensor:
    angles = 2 * pi * ((2 * ((c + 0.5) / 512) - 1) @ s.g)
    return torch.cat([angles.sin(), angles.cos()], -1)


class Points(Calls):
    """``function`` of point_coords (B, N, 2) and an image."""

    def forward(self, point_coords: Tensor, x: Tensor) -> Tensor:  # type: ignore[override]
        return self.function(self, point_coords, x)  # type: ignore[no-any-return]


def program(function: Function, shape: tuple[int | str, ...] = (2, 5, 2), role: str = "coords") -> Program:
    coords = TensorSpec("point_coords", shape, role=role, extent=512)  # type: ignore[arg-type]
    inputs = (coords, TensorSpec("x", (4, 6)))
    return trace("part", Points(function, g=G), inputs, (TensorSpec("out0", ()),))


def test_the_input_becomes_the_encoding() -> None:
    before = program(lambda s, c, x: encode(s, c) @ x.T)
    after = rewritten(before, hoist_positional_encoding, 1)
    assert [(s.name, s.shape, s.role, s.dtype) for s in after.inputs] == [
        ("point_embedding_pe", (2, 5, 6), "normal", "float32"), ("x", (4, 6), "normal", "float32"),
    ]  # fmt: skip
    assert "512" in after.inputs[0].meaning
    assert counts(after) == {"numpy_T": 1, "matmul": 1} or set(counts(after)) == {"permute", "matmul"}
    np.testing.assert_array_equal(after.sidecars["pe_gaussian_matrix"], G)
    assert before.sidecars == {}
    assert before.inputs[0].name == "point_coords"
    assert not after.aten.state_dict


def test_the_host_computes_the_same() -> None:
    before = program(lambda s, c, x: encode(s, c) * x[0])
    inputs = sample_inputs(before.inputs, 7)
    after = rewritten(before, hoist_positional_encoding, 1)
    matrix = after.sidecars["pe_gaussian_matrix"]
    given = {"x": inputs["x"], "point_embedding_pe": encode_positions(inputs["point_coords"], matrix, 512)}
    expected = run_program(before, inputs)["out0"]
    assert relative_l2(expected, run_program(after, given)["out0"]) < 1e-6
    assert given["point_embedding_pe"].dtype == np.float32


@pytest.mark.parametrize(("size", "x", "turns"), [(2, 0.5, 0.0), (2, 1.5, 0.3), (4, -0.5, -0.3), (4, 2.5, 0.15)])
def test_the_formula(size: int, x: float, turns: float) -> None:
    """((x + 0.5) / S * 2 - 1) * 2 pi * g, sines first."""
    found = encode_positions(np.array([[[x, size / 2 - 0.5]]]), np.array([[0.3], [1e9]]), size)
    angle = 2 * pi * turns
    np.testing.assert_allclose(found, [[[np.sin(angle), np.cos(angle)]]], atol=1e-6)


def test_dynamic_points_and_calling_it_as_a_module() -> None:
    before = program(lambda s, c, x: encode(s, c) * x[0], ("batch", "points", 2))
    after = rewritten(before, hoist_positional_encoding, 1)
    assert after.inputs[0].shape == ("batch", "points", 6)
    inputs = sample_inputs(after.inputs, 4)
    tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
    with torch.no_grad():
        found = after.aten.module()(**tensors)
        core = after.aten.run_decompositions().module()(**tensors)
    np.testing.assert_array_equal(found, run_program(after, inputs)["out0"])
    np.testing.assert_array_equal(found, core)


def test_lowers_with_the_new_name() -> None:
    after = rewritten(program(lambda s, c, x: encode(s, c) * x[0], (1, "points", 2)), hoist_positional_encoding, 1)
    lowered = Engine("fast").run(after, (lower_to_onnx(20, 9),))
    assert [value.name for value in lowered.onnx.graph.inputs] == ["point_embedding_pe", "x"]
    assert not {"Sin", "Cos", "MatMul"} & set(counts(lowered))
    assert lowered.sidecars == after.sidecars


def test_later_passes_are_proved_on_the_new_inputs() -> None:
    before = program(lambda s, c, x: encode(s, c)[:, 1] * x[0].clone())
    engine = Engine("fast")
    engine.run(before, (hoist_positional_encoding, eliminate_identity, gather_to_slice))
    assert [step.sites > 0 for step in engine.steps] == [True] * 3
    assert all(step.error is not None and step.error < 1e-6 for step in engine.steps)


def test_on_a_twin() -> None:
    engine = Engine("fast")
    big, small = (program(lambda s, c, x: encode(s, c) * x[0], (2, n, 2)) for n in (50, 3))
    after = engine.run(big, (hoist_positional_encoding,), twin=small)
    assert after.inputs[0].shape == (2, 50, 6)
    assert engine.steps[0].error is not None


def test_an_adaptation_that_is_wrong_is_found() -> None:
    def cosines_first(before: Program, after: Program, inputs):  # type: ignore[no-untyped-def]
        right = hoist_positional_encoding.adapt(before, after, inputs)  # type: ignore[misc]
        return right | {"point_embedding_pe": np.roll(right["point_embedding_pe"], 3, -1)}

    wrong = replace(hoist_positional_encoding, adapt=cosines_first)
    with pytest.raises(PassError, match="left its bound"):
        Engine("fast").run(program(lambda s, c, x: encode(s, c) * x[0]), (wrong,))


def test_copies_do_not_share_the_sidecars() -> None:
    after = rewritten(program(lambda s, c, x: encode(s, c) * x[0]), hoist_positional_encoding, 1)
    copied = after.copy()
    copied.sidecars.clear()
    assert set(after.sidecars) == {"pe_gaussian_matrix"}


def angles(s: Calls, c: Tensor) -> Tensor:
    return 2 * pi * ((2 * ((c + 0.5) / 512) - 1) @ s.g)


def both(a: Tensor) -> Tensor:
    return torch.cat([a.sin(), a.cos()], -1)


SPELLINGS: dict[str, Function] = {
    "scaled before": lambda s, c, x: both((((c + 0.5) / 256 - 1) @ s.g) * (2 * pi)),
    "unscaled": lambda s, c, x: both(((c - 255.5) / 256) @ s.g * pi * 2),
    "by position": lambda s, c, x: torch.cat([(a := angles(s, c)).sin(), a.cos()], 2),
}


@pytest.mark.parametrize("case", SPELLINGS)
def test_spellings(case: str) -> None:
    rewritten(program(lambda s, c, x: SPELLINGS[case](s, c, x) * x[0]), hoist_positional_encoding, 1)


REFUSED: dict[str, Function] = {
    "the coordinates are read elsewhere": lambda s, c, x: encode(s, c) * x[0] + c.sum(),
    "another offset": lambda s, c, x: both(angles(s, c + 0.5)) * x[0],
    "another frame": lambda s, c, x: both(angles(s, c * 0.5 - 0.25)) * x[0],
    "not twice pi": lambda s, c, x: both(angles(s, c) / 2) * x[0],
    "shifted angles": lambda s, c, x: both(angles(s, c) + 1) * x[0],
    "squared": lambda s, c, x: both(angles(s, c * c)) * x[0],
    "cosines first": lambda s, c, x: torch.cat([(a := angles(s, c)).cos(), a.sin()], -1) * x[0],
    "other angles": lambda s, c, x: torch.cat([angles(s, c).sin(), angles(s, c).cos()], -1) * x[0],
    "twice the angle of the cosines": lambda s, c, x: torch.cat([((a := angles(s, c)) * 2).sin(), a.cos()], -1) * x[0],
    "twice the angle of the sines": lambda s, c, x: torch.cat([(a := angles(s, c)).sin(), (a * 2).cos()], -1) * x[0],
    "along another axis": lambda s, c, x: torch.cat([(a := angles(s, c)).sin(), a.cos()], 1) * x[0, :3],
    "three of them": lambda s, c, x: torch.cat([(a := angles(s, c)).sin(), a.cos(), a.sin()], -1),
    "a computed matrix": lambda s, c, x: both(2 * pi * (((c + 0.5) / 256 - 1) @ x[:2, :3])) * x[0],
    "no matrix": lambda s, c, x: both(2 * pi * ((c + 0.5) / 256 - 1)) @ x,
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case: str) -> None:
    rewritten(program(REFUSED[case]), hoist_positional_encoding, 0)


def test_refuses_what_are_no_coordinates() -> None:
    rewritten(program(lambda s, c, x: encode(s, c) * x[0], role="normal"), hoist_positional_encoding, 0)


def test_names() -> None:
    assert encoding_input("point_coords") == "point_embedding_pe"
    assert encoding_input("y") == "y_embedding_pe"


@pytest.mark.parametrize("points", [5, "dynamic"])
def test_the_decoder(tiny_model: Sam, points: int | str) -> None:
    """The host's side as in upstream's NPU layout: [1, N, 2F], the matrix as float32 [2][F]."""
    _, decoder = capture(tiny_model, Interface(image_size=256, embed_dim=64, points=points))  # type: ignore[arg-type]
    before = Engine("off").run(decoder, (eliminate_identity, fold_constants, eliminate_dead))
    after = rewritten(before, hoist_positional_encoding, 1)
    assert not {"sin", "cos"} & set(counts(after))
    names = [s.name for s in after.inputs]
    assert names == ["image_embeddings", "point_embedding_pe", "point_labels"]
    matrix = after.sidecars["pe_gaussian_matrix"]
    assert (matrix.dtype, matrix.shape, json.dumps(matrix.tolist())[:2]) == (np.float32, (2, 32), "[[")
    assert torch.equal(torch.from_numpy(matrix), tiny_model.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix)


def test_a_box_beside_the_points_keeps_it_in_the_graph(tiny_model: Sam) -> None:
    _, decoder = capture(tiny_model, Interface(image_size=256, embed_dim=64, io="edgesam-dyt"))
    rewritten(decoder, hoist_positional_encoding, 0)


def test_programs_without_coordinates() -> None:
    rewritten(traced(Calls(lambda _, x: torch.cat([x.sin(), x.cos()], -1)), (3, 4)), hoist_positional_encoding, 0)
