"""Every operator that has coremltools' own value inference gives the same values: a second opinion on its semantics."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
from mil_packages import inferred

from edgesam_deploy.targets.coreml.interpreter.operators import OPERATORS


def values(*shape, low=-2.0, high=2.0, seed=0):
    return np.random.default_rng((seed, *shape)).uniform(low, high, shape).astype(np.float32)


def whole(*shape, low=-3, high=4):
    return np.random.default_rng(shape).integers(low, high, shape).astype(np.int32)


def flags(*shape):
    return np.random.default_rng(shape).random(shape) < 0.5


X, Y, ROW = values(2, 3, 4), values(2, 3, 4, seed=1), values(3, 1, seed=2)
POSITIVE = values(2, 3, 4, low=0.1, high=3)
WITHIN_ONE = values(2, 3, 4, low=-0.9, high=0.9)
MAP = values(1, 3, 4, 5)
LABELS, OTHER_LABELS = whole(2, 5), whole(2, 5, low=1, high=4)
MASK, OTHER_MASK = flags(2, 5), flags(2, 5)[::-1].copy()
CHANNELS = values(3, low=0.5, high=1.5)

CASES = [
    *[(kind, {"x": X}) for kind in ("abs", "atan", "ceil", "cos", "cosh", "erf", "exp", "exp2", "floor", "round")],
    *[(kind, {"x": X}) for kind in ("sign", "sin", "sinh", "square", "tan", "tanh", "relu", "relu6", "sigmoid")],
    *[(kind, {"x": X}) for kind in ("softplus", "softsign", "softmax", "identity", "squeeze", "shape", "reverse")],
    *[(kind, {"x": WITHIN_ONE}) for kind in ("acos", "asin", "atanh")],
    *[(kind, {"x": POSITIVE}) for kind in ("sqrt", "log", "rsqrt", "inverse")],
    *[(kind, {"x": X, "y": Y}) for kind in ("add", "sub", "mul", "maximum", "minimum", "real_div", "floor_div", "mod")],
    *[(kind, {"x": X, "y": ROW}) for kind in ("add", "greater", "greater_equal", "less", "less_equal")],
    *[(kind, {"x": LABELS, "y": OTHER_LABELS}) for kind in ("add", "mod", "floor_div", "equal", "not_equal")],
    *[(kind, {"x": MASK, "y": OTHER_MASK}) for kind in ("logical_and", "logical_or", "logical_xor")],
    ("logical_not", {"x": MASK}),
    ("pow", {"x": POSITIVE, "y": Y}),
    ("pow", {"x": X, "y": np.float32(2)}),
    ("clip", {"x": X, "alpha": np.float32(-0.5), "beta": np.float32(0.75)}),
    ("threshold", {"x": X, "alpha": np.float32(0.3)}),
    ("log", {"x": POSITIVE, "epsilon": np.float32(0.5)}),
    ("rsqrt", {"x": POSITIVE, "epsilon": np.float32(0.5)}),
    ("inverse", {"x": POSITIVE, "epsilon": np.float32(0.5)}),
    *[("cast", {"x": X, "dtype": kind}) for kind in ("int32", "int16", "bool", "fp32")],
    ("cast", {"x": LABELS, "dtype": "fp32"}),
    ("cast", {"x": MASK, "dtype": "int32"}),
    ("select", {"cond": X > 0, "a": X, "b": Y}),
    ("clamped_relu", {"x": X, "alpha": np.float32(0.3), "beta": np.float32(0.9)}),
    ("elu", {"x": X, "alpha": np.float32(0.7)}),
    ("leaky_relu", {"x": X, "alpha": np.float32(0.1)}),
    ("linear_activation", {"x": X, "alpha": np.float32(0.3), "beta": np.float32(0.9)}),
    ("prelu", {"x": MAP, "alpha": CHANNELS}),
    ("scaled_tanh", {"x": X, "alpha": np.float32(0.3), "beta": np.float32(0.9)}),
    ("sigmoid_hard", {"x": X, "alpha": np.float32(0.3), "beta": np.float32(0.4)}),
    ("softplus_parametric", {"x": MAP, "alpha": CHANNELS, "beta": CHANNELS[::-1].copy()}),
    ("thresholded_relu", {"x": X, "alpha": np.float32(0.3)}),
    *[("gelu", {"x": X, "mode": mode}) for mode in ("EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION")],
    *[("softmax", {"x": X, "axis": axis}) for axis in (0, 1, -1)],
    ("linear", {"x": X, "weight": values(5, 4), "bias": values(5)}),
    ("matmul", {"x": X, "y": values(2, 4, 5)}),
    ("matmul", {"x": values(2, 4, 3), "y": values(2, 5, 4), "transpose_x": True, "transpose_y": True}),
    ("matmul", {"x": values(1, 4, 3), "y": values(6, 3, 2)}),
    ("matmul", {"x": values(4), "y": values(4, 3)}),
    ("einsum", {"values": (values(1, 3, 4, 5), values(1, 5, 4, 2)), "equation": "nchw,nwhu->nchu"}),
    ("l2_norm", {"x": values(2, 3, 4, 5)}),
    ("layer_norm", {"x": X, "axes": [2], "gamma": values(4), "beta": values(4, seed=1), "epsilon": np.float32(1e-3)}),
    ("layer_norm", {"x": X, "axes": [-2, -1], "gamma": values(3, 4), "beta": values(3, 4, seed=1)}),
    ("layer_norm", {"x": X, "axes": [1]}),
    *[
        (f"reduce_{kind}", {"x": POSITIVE, "axes": axes, "keep_dims": keep})
        for kind in ("max", "min", "sum", "mean", "prod", "sum_square", "l1_norm", "l2_norm", "log_sum", "log_sum_exp")
        for axes, keep in (([1], True), ([-1, 0], False))
    ],
    ("reduce_mean", {"x": X}),
    *[(f"reduce_arg{kind}", {"x": X, "axis": 1}) for kind in ("max", "min")],
    *[(f"reduce_arg{kind}", {"x": X, "axis": -1, "keep_dims": True}) for kind in ("max", "min")],
    ("reshape", {"x": X, "shape": [3, -1]}),
    ("reshape", {"x": X, "shape": [0, 2, -1]}),
    ("transpose", {"x": X, "perm": [2, 0, 1]}),
    ("expand_dims", {"x": X, "axes": [0, -1]}),
    ("squeeze", {"x": values(1, 3, 1), "axes": [2]}),
    ("flatten2d", {"x": X, "axis": 2}),
    ("slice_by_index", {"x": X, "begin": [0, 2, 1], "end": [2, 0, 4], "stride": [1, -1, 2]}),
    ("slice_by_index", {"x": X, "begin": [0, -2, 1], "end": [2, -1, 0], "end_mask": [False, False, True]}),
    ("slice_by_index", {"x": X, "begin": [1, 1, 1], "end": [0, 3, 3], "squeeze_mask": [True, False, False]}),
    (
        "slice_by_index",
        {"x": X[0], "begin": [1, 9], "end": [2, 0], "begin_mask": [False, True], "end_mask": [False, True]},
    ),
    ("slice_by_size", {"x": X, "begin": [0, 1, -2], "size": [2, -1, 1]}),
    ("concat", {"values": (X, Y), "axis": -2}),
    ("stack", {"values": (X, Y), "axis": 1}),
    ("stack", {"values": (X, Y), "axis": -1}),
    ("split", {"x": X, "num_splits": 2, "axis": 2}),
    ("split", {"x": X, "split_sizes": [1, 2], "axis": -2}),
    ("tile", {"x": X, "reps": [1, 2, 3]}),
    ("reverse", {"x": X, "axes": [0, -1]}),
    ("pad", {"x": X, "pad": [1, 2, 0, 3], "constant_val": np.float32(1.5)}),
    *[("pad", {"x": X, "pad": [1, 1, 2, 3], "mode": mode}) for mode in ("reflect", "replicate")],
    ("gather", {"x": X, "indices": [[2, 0], [1, 1]], "axis": 1}),
    ("gather", {"x": X, "indices": [[2, 0], [1, 1]], "axis": 1, "batch_dims": 1}),
    ("gather", {"x": X, "indices": [[2, 0], [1, 1]], "axis": 2, "batch_dims": 1}),
    ("gather_along_axis", {"x": X, "indices": whole(2, 5, 4, low=0, high=3), "axis": 1}),
    # of its modes the value inference knows this one alone
    ("scatter_along_axis", {"data": X, "indices": whole(2, 1, 4, low=0, high=3), "updates": values(2, 1, 4), "axis": 1,
                            "mode": "update"}),
    ("argsort", {"x": X, "axis": 1, "ascending": True}),
    ("argsort", {"x": X}),
    ("topk", {"x": X, "k": 2, "axis": 1}),
    ("topk", {"x": X, "k": 3, "axis": -1, "ascending": True}),
    ("band_part", {"x": values(2, 4, 5), "lower": 1, "upper": 0}),
    ("band_part", {"x": values(4, 5), "lower": -1, "upper": 2}),
    *[("cumsum", {"x": X, "axis": 1, "reverse": reverse}) for reverse in (False, True)],
    ("fill", {"shape": [2, 3], "value": np.float32(1.5)}),
    ("fill_like", {"ref_tensor": X, "value": np.float32(1.5)}),
    ("range_1d", {"start": 2, "end": 11, "step": 3}),
    ("range_1d", {"start": np.float32(0), "end": np.float32(1), "step": np.float32(0.25)}),
    ("non_zero", {"x": LABELS}),
]  # fmt: skip
NEWER = [
    ("slice_update", {"x": X, "update": values(1, 2, 2), "begin": [1, 0, 1], "end": [2, 3, 3], "stride": [1, 2, 1]}),
    (
        "scaled_dot_product_attention",
        {"query": values(1, 2, 3, 4), "key": values(1, 2, 5, 4), "value": values(1, 2, 5, 6)},
    ),
    (
        "scaled_dot_product_attention",
        {"query": values(1, 3, 4), "key": values(1, 5, 4), "value": values(1, 5, 6), "attn_mask": values(3, 5)},
    ),
    (
        "scaled_dot_product_attention",
        {"query": values(1, 3, 4), "key": values(1, 5, 4), "value": values(1, 5, 6), "attn_mask": np.arange(5) < 3},
    ),
    ("quantize", {"input": X, "scale": np.float32(0.02), "zero_point": np.int8(3), "output_dtype": "int8"}),
    ("quantize", {"input": X, "scale": CHANNELS / 64, "axis": 1, "output_dtype": "uint8"}),
]  # fmt: skip


def interpreted(kind, arguments):
    return OPERATORS[kind](**{k: v if isinstance(v, (str, tuple)) else np.asarray(v) for k, v in arguments.items()})


def compare(kind, arguments, opset):
    got = interpreted(kind, arguments)
    wanted = inferred(kind, opset, **deepcopy(arguments))  # some inferences write into their arguments
    wanted, got = (v if isinstance(v, (tuple, list)) else [v] for v in (wanted, got))
    assert len(got) == len(wanted)
    for a, b in zip(got, wanted, strict=True):
        assert a.shape == b.shape
        if b.dtype.kind == "f":
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=3e-6)
        else:
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("kind", "arguments"), CASES, ids=[kind for kind, _ in CASES])
def test_values_are_those_of_coremltools(kind, arguments):
    compare(kind, arguments, "iOS17")


@pytest.mark.parametrize(("kind", "arguments"), NEWER, ids=[kind for kind, _ in NEWER])
def test_values_are_those_of_coremltools_on_ios18(kind, arguments):
    compare(kind, arguments, "iOS18")


def test_every_operator_with_value_inference_is_compared():
    from coremltools.converters.mil.mil.operation import Operation
    from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

    compared = {kind for kind, _ in CASES + NEWER}
    for kind in sorted(set(OPERATORS) - compared):
        classes = SSAOpRegistry.core_ops[kind].values()
        has_values = any(c.value_inference is not Operation.value_inference for c in classes)
        assert not has_values or kind == "reverse_sequence", kind  # whose inference raises NotImplementedError


def test_parameters_are_those_of_coremltools():
    """The names that a serialised operation can carry, with the default of each."""
    from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

    from edgesam_deploy.targets.coreml.interpreter.operators import parameters

    for kind in OPERATORS:
        specs = [c.input_spec.input_types for c in SSAOpRegistry.core_ops[kind].values()]
        known, needed = parameters(kind)
        assert known == set().union(*specs), kind
        for name in needed:
            assert all(not spec[name].optional for spec in specs if name in spec), f"{kind} {name} is optional"
