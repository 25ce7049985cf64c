"""Generate qnn_htp.json by asking Qualcomm's compiler about models of one operator each.

    python -m edgesam_deploy.targets.rules.probe_qnn [-o FILE] [--soc SM8650]

For every operator of the family, and for what exporters leave around it, one model for each element type and rank;
where an operand may be a weight or a runtime value, one of each; then the known exceptions: Tile of ones, GELU's Erf,
casts, dynamic dimensions. The verdict is the compiler's own, in fp16 precision; it holds for the sizes that were tried.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edgesam_deploy.targets.rules import Condition, Dtypes, Rule, RuleStatus, RuleTable, write_table
from edgesam_deploy.targets.rules.qnn_compiler import SOC, Assignment, assignments
from edgesam_deploy.targets.rules.qnn_nodes import (
    ELEMENTS,
    FLOATS,
    PROBES,
    RUNTIME,
    SHAPES,
    Node,
    Probe,
    data,
    model_of,
    numbers,
    resize,
    scalar,
)  # fmt: skip

NAME = "qnn_htp"
SOURCE = "single-operator model"
CRASH = "the compiler ends its process with a crash"
FIXED_BY = {
    "Erf": "fuse_gelu", "CastLike": "legalize_cast_like", "If": "fold_branches", "OneHot": "legalize_one_hot",
    "Shape": "fold_shapes", "ConstantOfShape": "fold_constants", "Range": "fold_constants", "Size": "fold_shapes",
    "DFT": "decompose_fft", "Cast": "legalize_comparison_sums", "Resize": "legalize_bicubic",
}  # fmt: skip
REMEDIES: dict[Condition, str] = {
    "dynamic": "freeze_dims", "rank": "limit_rank", "constant": "fold_shapes", "value": "fold_constants",
    "int64": "narrow_int64_data",
}  # fmt: skip
QUANTIZED = ("uint8", "int8", "uint16")
CASTS = ("float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")
MODES = ("nearest", "linear", "cubic")
DYNAMIC = ("Add", "MatMul", "Relu", "Concat", "Softmax", "Transpose", "Sin", "Equal")  # a sample of the kinds
Ask = Callable[[ModelProto], Assignment]


@dataclass(frozen=True)
class Compiler:
    """Answers for models. Collected first and asked for together, since starting the compiler takes longer than it."""

    models: dict[bytes, Assignment | None]

    def ask(self, model: ModelProto) -> Assignment:
        """The answer; until there is one, that nothing runs."""
        return self.models.setdefault(model.SerializeToString(), None) or Assignment({}, refused="not asked yet")

    def compile(self, soc: str) -> None:
        """Ask for everything that was collected."""
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder) / f"{i}.onnx" for i in range(len(self.models))]
            for path, content in zip(paths, self.models, strict=True):
                path.write_bytes(content)
            self.models.update(zip(list(self.models), assignments(paths, soc=soc), strict=True))


def generate(soc: str = SOC) -> RuleTable:
    """The table of the installed compiler for one SoC."""
    compiler = Compiler({})
    list(_rules(compiler.ask))  # only to learn which models there are
    compiler.compile(soc)
    rules = tuple(_rules(compiler.ask))
    assert all(compiler.models.values()), "a model that was not asked about decides a rule"
    return RuleTable(
        name=NAME,
        runtime=f"QNN HTP compiler, {soc}, fp16",
        version=f"onnxruntime-qnn {version('onnxruntime-qnn')}",
        source=f"onnxruntime-qnn {version('onnxruntime-qnn')} and onnxruntime {version('onnxruntime')}",
        generated_by="python -m edgesam_deploy.targets.rules.probe_qnn",
        newest_opset={"": 23},
        remedies=REMEDIES,
        rules=rules,
    )


def _rules(ask: Ask) -> Iterator[Rule]:
    static = not any(_dynamic_runs(ask, probe) for probe in PROBES if probe.op in DYNAMIC)
    yield from _special(ask, static)
    for probe in sorted(PROBES, key=lambda probe: probe.op):
        yield from _of_operator(ask, probe, static)


def _dynamic_runs(ask: Ask, probe: Probe) -> bool:
    return ask(model_of(probe.make("float32", SHAPES[3]), dynamic=True)).on_npu


def _of_operator(ask: Ask, probe: Probe, static: bool) -> Iterator[Rule]:
    """Where it crashes; then the types that run up to each rank; nothing more: what lies outside is unsupported."""
    answers = {
        (dtype, rank): ask(model_of(probe.make(dtype, SHAPES[rank]))) for dtype in probe.dtypes for rank in probe.ranks
    }
    for (dtype, rank), answer in answers.items():
        if answer.crashed:
            highest = rank + probe.grows
            yield _rule(probe.op, "unsupported", CRASH, inputs=_typed(probe, (dtype,)), min_rank=rank, max_rank=highest)
    runs = {dtype: tuple(rank for rank in probe.ranks if answers[dtype, rank].on_npu) for dtype in probe.dtypes}
    constant = _constant_operands(ask, probe)
    for ranks in dict.fromkeys(ranks for ranks in runs.values() if ranks):
        types = tuple(dtype for dtype in probe.dtypes if runs[dtype] == ranks)
        yield _rule(
            probe.op, "supported", inputs=_typed(probe, types), min_rank=ranks[0] if ranks[0] > probe.ranks[0] else 0,
            max_rank=ranks[-1] + probe.grows, static_shape=static, constant_inputs=constant,
        )  # fmt: skip
    if not any(runs.values()) and not any(answer.crashed for answer in answers.values()):
        yield _rule(probe.op, "unsupported", "the compiler refuses every type and rank that was tried")


def _typed(probe: Probe, types: tuple[str, ...]) -> tuple[Dtypes, ...]:
    return (*[None] * probe.typed, types, None)


def _constant_operands(ask: Ask, probe: Probe) -> tuple[int, ...]:
    """The operand that may be a weight, if it must be one."""
    if probe.op not in RUNTIME:
        return ()
    rank = 4 if 4 in probe.ranks else probe.ranks[-1]
    position = RUNTIME[probe.op]
    answer = ask(model_of(probe.make(probe.dtypes[0], SHAPES[rank]), runtime=(position,)))
    return () if answer.on_npu else (position,)


def _rule(op: str, status: RuleStatus, reason: str = "", **conditions: Any) -> Rule:
    return Rule(op=op, status=status, reason=reason, source=SOURCE, **{"fixed_by": FIXED_BY.get(op), **conditions})


# ---------------------------------------------------------------------------------------------------- exceptions


def _special(ask: Ask, static: bool) -> Iterator[Rule]:
    yield _rule("Constant", "supported")  # an initialiser, once ONNX Runtime has loaded the file
    yield _rule("Identity", "supported", "ONNX Runtime removes it")
    yield from _tiles_of_ones(ask)
    if ask(gelu()).on_npu:
        reason = "taken as part of a GELU only"
        yield _rule("Erf", "supported", reason, inputs=(FLOATS,), pattern="Gelu", static_shape=static)
    for mode in MODES:
        types = tuple(t for t in FLOATS if ask(model_of(resize(t, SHAPES[4], mode))).on_npu)
        if types:
            yield _rule(
                "Resize", "supported", inputs=(types, None), attributes={"mode": (mode,)}, max_rank=4,
                static_shape=static,
            )  # fmt: skip
    for given in CASTS:
        taken = tuple(out for out in CASTS if out == given or ask(cast(given, out)).on_npu)
        yield _rule("Cast", "supported", inputs=((given,),), outputs=(taken,), max_rank=4, static_shape=static)
    taken = tuple(zero for zero in QUANTIZED if ask(model_of(quantize(zero))).on_npu)
    yield _rule("QuantizeLinear", "supported", inputs=(FLOATS, None), outputs=(taken,), static_shape=static)
    taken = tuple(zero for zero in QUANTIZED if ask(model_of(dequantize(zero))).on_npu)
    yield _rule("DequantizeLinear", "supported", inputs=(taken, None), static_shape=static)
    if not ask(branch()).on_npu:
        yield _rule("If", "unsupported", "the compiler refuses it")


def _tiles_of_ones(ask: Ask) -> Iterator[Rule]:
    """Tile with repeats of 1 changes nothing, and crashes the compiler at some ranks."""
    for rank in SHAPES:
        answer = ask(model_of(Node("Tile", (data("float32", SHAPES[rank]), numbers(*[1] * rank)))))
        if answer.crashed:
            yield _rule(
                "Tile", "unsupported", CRASH, values={1: (1,)}, min_rank=rank, max_rank=None,
                fixed_by="eliminate_identity",
            )  # fmt: skip


def cast(given: str, wanted: str) -> ModelProto:
    """x -> wanted."""
    return model_of(Node("Cast", (data(given, SHAPES[4]),), {"to": ELEMENTS[wanted]}))


def gelu() -> ModelProto:
    """x -> 0.5 x (1 + erf(x / sqrt(2))), the five nodes that exporters below opset 20 write."""
    scalars = {"root": np.sqrt(2.0), "one": 1.0, "half": 0.5}
    weights = [numpy_helper.from_array(np.array(value, np.float32), name) for name, value in scalars.items()]
    nodes = [
        helper.make_node("Div", ["x", "root"], ["a"], "div"),
        helper.make_node("Erf", ["a"], ["b"], "erf"),
        helper.make_node("Add", ["b", "one"], ["c"], "add"),
        helper.make_node("Mul", ["x", "c"], ["d"], "times"),
        helper.make_node("Mul", ["d", "half"], ["y"], "halve"),
    ]
    edges = [helper.make_tensor_value_info(name, TensorProto.FLOAT, SHAPES[4]) for name in "xy"]
    graph = helper.make_graph(nodes, "gelu", edges[:1], edges[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def quantize(zero: str) -> Node:
    """x -> its 8- or 16-bit form."""
    return Node("QuantizeLinear", (data("float32", SHAPES[4]), scalar(0.1, "float32"), scalar(3, zero)))


def dequantize(zero: str) -> Node:
    """The way back."""
    return Node("DequantizeLinear", (data(zero, SHAPES[4]), scalar(0.1, "float32"), scalar(3, zero)))


def branch() -> ModelProto:
    """x or -x, decided when it runs."""
    text = """<ir_version: 9, opset_import: ["": 17]>
    net (float[1,8,16,16] x, bool c) => (float[1,8,16,16] y) {
      y = If (c) <then_branch = yes () => (float[1,8,16,16] a) { a = Relu (x) },
                  else_branch = no () => (float[1,8,16,16] b) { b = Neg (x) }>
    }"""
    return onnx.parser.parse_model(text)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write the operator table of the installed QNN HTP compiler.")
    default = Path(__file__).with_name(f"{NAME}.json")
    parser.add_argument("-o", "--output", type=Path, default=default, help="default: the table in this package")
    parser.add_argument("--soc", default=SOC, help=f"which chip to compile for, default {SOC}")
    given = parser.parse_args(arguments)
    print(write_table(generate(given.soc), given.output))


if __name__ == "__main__":
    main()
