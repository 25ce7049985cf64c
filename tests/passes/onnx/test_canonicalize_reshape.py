"""Reshapes whose target is computed at run time get constant ones, where that says the same."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from passes.programs import counts, initializer, node_named, parsed, rewritten, wrapped

from edgesam_deploy.passes.onnx import canonicalize_reshape
from edgesam_deploy.passes.program import Program


def reshape(before: list[str], after: list[str], allowzero: int = 0) -> Program:
    """x (``before``) reshaped to ``after``, of which each symbol is copied from x and at most one is worked out."""
    known = [i for i, d in enumerate(after) if d in before or d.isdigit()]
    lines = []
    for i in range(len(after)):
        if i not in known:
            lines.append(f"s{i} = Constant<value_ints = [-1]>()")
        elif after[i].isdigit():
            lines.append(f"s{i} = Constant<value_ints = [{after[i]}]>()")
        else:
            axis = before.index(after[i])
            lines.append(f"s{i} = Shape<start = {axis}, end = {axis + 1}>(x)")
    parts = ", ".join(f"s{i}" for i in range(len(after)))
    names = [d.replace("*", "_").replace(" ", "") for d in after]
    return parsed(
        f"""part (float[{",".join(before)}] x) => (float[{",".join(names)}] y) {{
            {" ".join(lines)}
            shape = Concat<axis = 0>({parts})
            y = Reshape<allowzero = {allowzero}>(x, shape)
        }}""",
        infer=False,
    )


def shape_of(program: Program) -> list[int]:
    return list(initializer(program, "y_shape"))


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (["batch", "num_points", "256"], ["batch", "num_points", "8", "32"], [0, 0, 8, 32]),
        (["batch", "num_points", "8", "32"], ["batch", "num_points", "256"], [0, 0, 256]),
        (["batch", "8", "num_points", "4"], ["batch*8", "num_points", "4"], None),  # copied from another place
        (["batch", "8", "4"], ["batch*8", "4"], [-1, 4]),
        (["batch", "num_points", "4"], ["batch", "num_points*4"], [0, -1]),
        (["batch", "num_points", "4"], ["batch*num_points", "4"], [-1, 4]),
        (["4", "batch", "3"], ["batch", "12"], [-1, 12]),
        (["2", "3", "4"], ["6", "4"], [6, 4]),
        (["a", "b", "c", "2"], ["a", "b", "c*2"], [0, 0, -1]),
        (["a", "b", "6"], ["b", "a", "6"], None),  # two that are not in their place: only one can be -1
        (["a", "b"], ["a", "b"], [0, 0]),
        (["a", "6"], ["1", "a", "2", "3"], [1, -1, 2, 3]),
        (["a", "6"], ["a", "2", "3"], [-1, 2, 3]),  # every runtime knows -1; 0 only where there is no other way
        (["a", "b"], ["a", "1", "b"], [0, 1, -1]),
    ],
)
def test_copies_and_works_out(before: list[str], after: list[str], expected: list[int] | None) -> None:
    program = reshape(before, after)
    if expected is None:
        rewritten(program, canonicalize_reshape, 0)
        return
    result = rewritten(program, canonicalize_reshape, 1)
    assert counts(result) == {"Reshape": 1}
    assert shape_of(result) == expected


@given(
    dims=st.lists(st.sampled_from(["a", "b", "c", "2", "3"]), min_size=2, max_size=4),
    joins=st.integers(0, 2),
)
@settings(max_examples=20, deadline=None, derandomize=True)
def test_any_joining_of_two_axes(dims: list[str], joins: int) -> None:
    """Either it stays, or it is the same on two unrelated sizes: the proof inside decides."""
    at = joins % (len(dims) - 1)
    joined = dims[at : at + 2]
    middle = str(int(joined[0]) * int(joined[1])) if "".join(joined).isdigit() else "joined"
    after = [*dims[:at], middle, *dims[at + 2 :]]
    program = reshape(dims, after)
    outside = [i for i, d in enumerate(after) if not d.isdigit() and d != "joined" and (i >= len(dims) or dims[i] != d)]
    unknown = [d for d in after if not d.isdigit()]
    left = 1 if len(unknown) == 1 else len(outside) + (middle == "joined")
    rewritten(program, canonicalize_reshape, int(left <= 1))


def test_allowzero_goes_with_the_computed_shape() -> None:
    """With it, the 0 that copies would be an empty dimension."""
    after = rewritten(reshape(["batch", "6"], ["batch", "2", "3"], allowzero=1), canonicalize_reshape, 1)
    assert "allowzero" not in node_named(after, "Reshape").attributes


def test_an_empty_dimension_is_not_a_copy() -> None:
    program = parsed(
        """part (float[n,0] x) => (float[m,0] y) {
            a = Shape<start = 0, end = 1>(x)
            two = Constant<value_ints = [2]>()
            b = Mul(a, two)
            zero = Constant<value_ints = [0]>()
            shape = Concat<axis = 0>(b, zero)
            y = Reshape<allowzero = 1>(x, shape)
        }""",
        infer=False,
    )
    rewritten(program, canonicalize_reshape, 0)


def test_constant_shapes_are_left_as_they_are() -> None:
    program = parsed("part (float[batch,6] x) => (float[batch,2,3] y) <int64[3] s = {-1, 2, 3}> { y = Reshape(x, s) }")
    rewritten(program, canonicalize_reshape, 0)


@pytest.mark.parametrize("which", ["input", "output"])
def test_unknown_dimensions_are_left_alone(which: str) -> None:
    before, after = ("?,6", "batch,2,3") if which == "input" else ("batch,6", "?,2,3")
    program = parsed(
        f"part (float[{before}] x, int64[3] s) => (float[{after}] y) {{ t = Abs(s) y = Reshape(x, t) }}", infer=False
    )
    assert canonicalize_reshape(program) == 0


def test_several_with_names_that_are_taken() -> None:
    program = parsed(
        """part (float[n,6] y_shape) => (float[n,2,3] y) <float[n,3,2] z> {
            a = Shape<start = 0, end = 1>(y_shape)
            z_s = Constant<value_ints = [3, 2]>()
            z_t = Concat<axis = 0>(a, z_s)
            z = Reshape(y_shape, z_t)
            y_s = Constant<value_ints = [2, 3]>()
            y_t = Concat<axis = 0>(a, y_s)
            y = Reshape(z, y_t)
        }""",
        infer=False,
    )
    after = rewritten(program, canonicalize_reshape, 2)
    assert counts(after) == {"Reshape": 2}
    assert set(after.onnx.graph.initializers) == {"z_shape", "y_shape_1"}


def test_shape_arithmetic_that_others_read_stays() -> None:
    program = parsed(
        """part (float[n,6] x) => (float[n,2,3] y, int64[3] t) {
            a = Shape<start = 0, end = 1>(x)
            s = Constant<value_ints = [2, 3]>()
            t = Concat<axis = 0>(a, s)
            y = Reshape(x, t)
        }""",
        infer=False,
    )
    assert counts(rewritten(program, canonicalize_reshape, 1)) == {"Shape": 1, "Constant": 1, "Concat": 1, "Reshape": 1}


def test_symbols_that_are_expressions() -> None:
    """As PyTorch writes them: "s55 + 5" tokens are copied where they stand."""
    tensor = onnx.TensorProto.FLOAT
    helper = onnx.helper
    nodes = [
        helper.make_node("Shape", ["x"], ["a"], start=0, end=2),
        helper.make_node("Concat", ["a", "s"], ["t"], axis=0),
        helper.make_node("Reshape", ["x", "t"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "part",
        [helper.make_tensor_value_info("x", tensor, ["s77", "s55 + 5", 8])],
        [helper.make_tensor_value_info("y", tensor, ["s77", "s55 + 5", 2, 4])],
        [onnx.numpy_helper.from_array(np.array([2, 4]), "s")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    assert shape_of(rewritten(wrapped(model), canonicalize_reshape, 1)) == [0, 0, 2, 4]
