"""Which operations are on the picture's finest maps, and that they are in fp32 with one cast behind them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import FAMILY

from edgesam_deploy.capture import capture
from edgesam_deploy.errors import UsageError
from edgesam_deploy.model.registry import load
from edgesam_deploy.passes.engine import Engine
from edgesam_deploy.targets import make_target
from edgesam_deploy.targets.coreml.fine_maps import on_fine_maps
from edgesam_deploy.targets.coreml.interpreter import Model, open_mlpackage

pytest.importorskip("coremltools")
SHALLOW = {**FAMILY["edge_sam"]["image_encoder"], "depths": (1, 1, 1, 1), "squeeze": (0, 0)}


class Value:
    def __init__(self, shape: tuple[Any, ...], op: Op | None = None) -> None:
        self.shape, self.op, self.child_ops = shape, op, []


class Op:
    def __init__(self, kind: str, shape: tuple[Any, ...], *read: Value | tuple[Value, ...]) -> None:
        self.op_type, self.outputs = kind, [Value(shape, self)]
        self.inputs: Mapping[str, Any] = {str(place): value for place, value in enumerate(read)}
        for value in read:
            for each in value if isinstance(value, tuple) else (value,):
                each.child_ops.append(self)

    @property
    def value(self) -> Value:
        return self.outputs[0]


def names(found: list[Any]) -> list[str]:
    return sorted(op.op_type for op in found)


def test_down_to_where_maps_are_coarser() -> None:
    image = Value((1, 3, 64, 64))
    kernel = Op("const", (8, 3, 3, 3))
    conv = Op("conv", (1, 8, 32, 32), image, kernel.value)
    mean = Op("reduce_mean", (1, 8, 1, 1), conv.value)
    sigmoid = Op("sigmoid", (1, 8, 1, 1), mean.value)
    mul = Op("mul", (1, 8, 32, 32), conv.value, sigmoid.value)
    down = Op("conv down", (1, 8, 16, 16), mul.value, kernel.value)
    gelu = Op("gelu", (1, 8, 16, 16), down.value)
    up = Op("upsample", (1, 8, 32, 32), gelu.value)
    late = Op("add", (1, 8, 32, 32), up.value, gelu.value)
    every = [kernel, conv, mean, sigmoid, mul, down, gelu, up, late]
    assert names(on_fine_maps(every, 32)) == ["conv", "conv down", "mul", "reduce_mean", "sigmoid"]
    assert names(on_fine_maps(every, 64)) == ["conv"]
    assert names(on_fine_maps(every, 128)) == []


def test_a_sum_with_a_coarser_path_is_not_among_them() -> None:
    image = Value((1, 3, 64, 64))
    conv = Op("conv", (1, 8, 64, 64), image)
    down = Op("down", (1, 8, 16, 16), conv.value)
    up = Op("up", (1, 8, 64, 64), down.value)
    both = Op("concat", (1, 16, 64, 64), (conv.value, up.value))
    assert names(on_fine_maps([conv, down, up, both], 64)) == ["conv", "down"]


def test_sizes_that_vary_are_no_maps() -> None:
    value = Value((1, "n", "n", 64))
    assert on_fine_maps([Op("add", (1, "n", "n", 64), value)], 16) == []


def test_what_the_option_may_be() -> None:
    assert make_target("coreml").options()["fine_maps"] == "fp32"
    with pytest.raises(UsageError, match="--fine-maps int8"):
        make_target("coreml", fine_maps="int8")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Model]:
    model = load("edge_sam", seed=0, config={**FAMILY["edge_sam"], "image_encoder": SHALLOW})
    interface = make_target("coreml").interface(model.config)
    program, *_ = capture(model, interface)
    about = dict.fromkeys(("model", "part", "license", "edgesam_deploy_version"), "a test")

    def get(fine_maps: str) -> Model:
        target = make_target("coreml", fine_maps=fine_maps)
        path = tmp_path_factory.mktemp("fine") / "encoder.mlpackage"
        target.emit(Engine("off").run(program, target.pipeline(model.config)), interface, path, about)
        return open_mlpackage(path)

    return get


def test_one_cast_behind_them(encoder: Callable[[str], Model]) -> None:
    """The picture is 256 pixels wide: fine maps have 64 and more."""
    operations = [op for op in encoder("fp32").function.operations if op.kind != "const"]
    kinds = [(op, kind) for op in operations for _, kind in op.outputs if kind is not None]
    casts = [kind.shape for op, kind in kinds if op.kind == "cast"]
    assert casts == [(1, 16, 32, 32), (1, 64, 16, 16)]
    single = [op.kind for op, kind in kinds if kind.dtype == "fp32" and op.kind != "cast"]
    assert single[:3] == ["conv", "gelu", "conv"]
    assert single[-1] == "conv"
    assert {"reduce_mean", "sigmoid", "mul", "add"} <= set(single)
    fine = [op for op, kind in kinds if kind.dtype == "fp16" and len(kind.shape) == 4 and kind.shape[2:] >= (64, 64)]
    assert not fine


def test_all_of_it_in_fp16(encoder: Callable[[str], Model]) -> None:
    kinds = [
        (op.kind, kind.dtype)
        for op in encoder("fp16").function.operations
        for _, kind in op.outputs
        if kind is not None
    ]
    assert not [kind for kind, dtype in kinds if dtype == "fp32" and kind not in ("const", "cast")]
    assert [kind for kind, _ in kinds].count("cast") == 2


def test_how_many_operators(encoder: Callable[[str], Model]) -> None:
    """Four blocks, a gate, and a neck with two norms: what is more is a converter's doing."""
    found = encoder("fp32").operators()
    assert found == {
        "conv": 22, "gelu": 5, "add": 5, "reduce_mean": 1, "relu": 1, "sigmoid": 1, "mul": 1, "matmul": 2,
        "layer_norm": 2, "transpose": 4, "cast": 2,
    }  # fmt: skip
    assert found == encoder("fp16").operators()


@pytest.mark.slow
def test_how_many_operators_at_full_size(tmp_path: Path) -> None:
    model, target = load("edge_sam", seed=0), make_target("coreml")
    interface = target.interface(model.config)
    about = dict.fromkeys(("model", "part", "license", "edgesam_deploy_version"), "a test")
    counts = {}
    for program in capture(model, interface):
        path = tmp_path / f"{program.name}.mlpackage"
        target.emit(Engine("off").run(program, target.pipeline(model.config)), interface, path, about)
        counts[program.name] = open_mlpackage(path).operators()
    assert counts["image_encoder"] == {
        "conv": 106, "gelu": 27, "add": 27, "reduce_mean": 10, "relu": 10, "sigmoid": 10, "mul": 10, "matmul": 2,
        "layer_norm": 2, "transpose": 4, "cast": 2,
    }  # fmt: skip
    assert counts["mask_decoder"].total() <= 200
    assert not {"shape", "gather", "range_1d", "non_zero"} & set(counts["mask_decoder"])
