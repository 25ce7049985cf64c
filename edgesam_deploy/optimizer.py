"""A target's ONNX-level legalisation for any ONNX file, whoever exported it, proved as in a build.

    optimize("decoder.onnx", "out.onnx", points=6)      1,038 nodes of a dynamic decoder become a static, clean graph
    optimize("encoder.onnx", "out.onnx", "tensorrt")    and strongly typed, as TensorRT 11 wants it

Refused with a reason: what is no ONNX file, inputs that are no tensors, a symbol that is not there, an opset that an
operator has no form in, a pass that leaves its bound, and for TensorRT what its parser is known to end at.
"""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from edgesam_deploy.contract import Role, TensorSpec
from edgesam_deploy.errors import (
    EdgeSamDeployError,
    OutputError,
    PassError,
    UnknownName,
    UnsupportedOperators,
    UsageError,
)
from edgesam_deploy.onnx_file import read_graph, write_graph
from edgesam_deploy.passes import onnx as passes
from edgesam_deploy.passes.engine import Engine, Progress, ProofMode, Step
from edgesam_deploy.passes.onnx.graph import opset as opset_of
from edgesam_deploy.passes.onnx.narrow_int64_data import force_int32
from edgesam_deploy.passes.program import Program

if TYPE_CHECKING:
    from edgesam_deploy.passes.engine import Pass

Int64 = Literal["keep", "narrow", "force"]
Precision = Literal["fp32", "fp16", "bf16"]
EXTERNAL_ABOVE = 1 << 30  # bytes of weights; protobuf ends at 2 GiB, and many readers copy what is inside the file
POINT_INPUTS = ("point_coords", "point_labels", "point_embedding_pe")
# what exporters of the family call their inputs -> the values that go in: random numbers are hardly ever labels
ROLES: Mapping[str, Role] = {
    "point_coords": "coords", "boxes": "coords", "point_labels": "labels", "mask_input": "mask_logits",
    "has_mask_input": "flag", "point_valid": "flag", "boxes_valid": "flag", "orig_im_size": "original_size",
}  # fmt: skip


@dataclass(frozen=True)
class Optimized:
    """What was done to a file. ``operators_*``: how often each occurs, bodies of If and Loop included."""

    source: str
    out: str
    target: str
    opset_before: int
    opset: int
    int64: Int64
    precision: Precision
    standard: bool  # False after int64="force"
    frozen: Mapping[str, int]
    nodes_before: int
    nodes: int
    operators_before: Mapping[str, int]
    operators: Mapping[str, int]
    proof: ProofMode
    steps: tuple[Step, ...]
    seconds: float
    external_data: bool

    def to_json(self) -> dict[str, Any]:
        """As JSON-ready data."""
        return {"schema": 1, **asdict(self)}


def legalization(target: str, precision: Precision | None = None) -> tuple[Pass, ...]:
    """The ONNX-level passes of a target, in order; ``precision``: default that of ``PRECISIONS``, else fp32.

    Raises UnknownName for a target that has none, UsageError for a precision that it has not.
    """
    if target not in LEGALIZATIONS:
        raise UnknownName("target", target, LEGALIZATIONS)
    offered = PRECISIONS.get(target, SINGLE)
    precision = precision or offered[0]
    if precision not in offered:
        raise UsageError(f"--precision {precision}: for {target} it is {' or '.join(offered)}")
    typed = () if precision == "fp32" else (passes.cast_to_half(precision),)
    return (*LEGALIZATIONS[target], *typed)


CLEAN: tuple[Pass, ...] = (
    passes.eliminate_dead,  # first: what nobody reads needs no rewriting, and may be what nobody can rewrite
    passes.legalize_cast_like,  # a Cast can be folded, a CastLike of a runtime value cannot
    passes.fold_shapes,
    passes.fold_constants,
    passes.fold_branches,  # its conditions are constants now
    passes.fold_shapes,  # again: what was computed by other than arithmetic is known now, and the branches are inlined
    passes.canonicalize_reshape,  # where a dimension stays dynamic: 0 and -1 instead of arithmetic
    passes.fold_constants,
    passes.eliminate_identity,
    passes.eliminate_expand,
    passes.legalize_one_hot,
    passes.legalize_gather,
    passes.eliminate_common,  # before fusing: a mean that was computed twice hides a norm
    passes.fuse_layer_norm,
    passes.fuse_gelu,
    passes.eliminate_dead,
)
NPU: tuple[Pass, ...] = (
    *CLEAN,
    passes.fuse_reshapes,  # a rank of 5 on the way is one too many
    passes.boolean_to_float,
    passes.eliminate_dead,
)
LEGALIZATIONS: Mapping[str, tuple[Pass, ...]] = {
    "onnx": (*CLEAN, passes.legalize_layer_norm),  # ONNX Runtime's fused Add + LayerNorm is slower than its parts
    "npu": NPU,
    "tv": NPU,
    "mediatek": NPU,
    "rknn": NPU,
    "generic": NPU,
    "qnn": CLEAN,  # its compiler runs what the others refuse
    "openvino": CLEAN,
    "tensorrt": CLEAN,
}
SINGLE: tuple[Precision, ...] = ("fp32",)
PRECISIONS: Mapping[str, tuple[Precision, ...]] = {"tensorrt": ("fp16", "bf16", "fp32")}  # the first is the default
OPSETS = {"npu": 11, "tv": 11, "rknn": 12, "generic": 11}  # where a target wants another than the file's
# targets whose compilers want int64 only where ONNX requires it
NARROW = {"npu", "tv", "mediatek", "rknn", "generic", "tensorrt"}


def optimize(
    path: Path | str,
    out: Path | str,
    target: str = "onnx",
    *,
    points: int | None = None,
    dims: Mapping[str, int] | None = None,
    int64: Int64 | None = None,
    opset: int | None = None,
    precision: Precision | None = None,
    proof: ProofMode = "fast",
    overwrite: bool = False,
    progress: Progress = lambda _: None,
) -> Optimized:
    """Rewrite the ONNX file ``path`` by the passes of ``target`` into ``out``, which appears complete or not at all.

    points, dims: sizes for the number of points and for other dynamic dimensions by name. int64: ``keep`` it,
    ``narrow`` it to int32 where ONNX allows, or ``force`` it away, which is no standard ONNX any more; None takes what
    the target wants, as do opset (else the file's) and precision: TensorRT's fp16 or bf16 is typed into the graph.
    Raises UsageError, OutputError, PassError, UnsupportedOperators.
    """
    start = time.perf_counter()
    source, out = Path(path), Path(out)
    pipeline = legalization(target, precision)
    int64 = int64 or ("narrow" if target in NARROW else "keep")
    opset = opset or OPSETS.get(target)
    if int64 not in get_args(Int64):
        raise UsageError(f"--int64 {int64}: must be {', '.join(get_args(Int64))}")
    _check_output(source, out, overwrite=overwrite)
    model = read_model(source)
    sizes = _sizes(model, points, dims or {})
    program = as_program(source.stem, model, sizes)
    before, opset_before = count_operators(model), opset_of(program)
    with _naming(source, program):
        program, steps = run_passes(program, _passes(pipeline, program, sizes, int64, opset), proof, progress)
    after = count_operators(program.onnx)
    if int64 == "force":
        try:
            force_int32(program.onnx)  # last, and after the proof: nothing here can run the result
        except ValueError as e:
            raise UsageError(f"{source}: --int64 force: {e}") from e
    external = write_model(program.onnx, out, check=int64 != "force", target=target)
    return Optimized(
        str(source), str(out), target, opset_before, opset_of(program), int64,
        precision or PRECISIONS.get(target, SINGLE)[0], int64 != "force", sizes,
        before.total(), after.total(), dict(before), dict(after), proof, steps,
        time.perf_counter() - start, external,
    )  # fmt: skip


def _passes(
    pipeline: tuple[Pass, ...], program: Program, sizes: Mapping[str, int], int64: Int64, opset: int | None
) -> tuple[Pass, ...]:
    now = opset_of(program)
    wanted = now if opset is None else opset
    convert = (passes.set_opset(wanted),) if wanted != now else ()
    return (
        *((passes.freeze_dims(sizes),) if sizes else ()),
        # up before the fusions, which need the operators to fuse to; the converter needs ranks
        *((passes.fold_shapes, passes.fold_constants, passes.fold_shapes, *convert) if wanted > now else ()),
        *pipeline,
        *(convert if wanted < now else ()),  # down after them: what an older opset lacks is taken apart once
        *((passes.narrow_int64_data,) if int64 != "keep" else ()),
        passes.eliminate_common,
        passes.eliminate_dead,
    )


def run_passes(
    program: Program, pipeline: tuple[Pass, ...], proof: ProofMode, progress: Progress = lambda _: None
) -> tuple[Program, tuple[Step, ...]]:
    """The engine's run. Without a proof there is nothing to compare with: the passes then work on the graph itself."""
    engine = Engine(proof=proof, progress=progress)
    if proof != "off":
        return engine.run(program, pipeline), tuple(engine.steps)
    program = _InPlace(program.name, program.inputs, program.outputs, program.body)
    counts = [sum(program.operators().values())]
    with _without_gc():
        program = engine.run(program, pipeline)
    counts += [step.operators_after for step in engine.steps]
    return program, tuple(replace(s, operators_before=n) for s, n in zip(engine.steps, counts, strict=False))


class _InPlace(Program):
    """A program whose copies are itself: copying 10,000 nodes before each pass takes longer than the passes."""

    def copy(self) -> Program:
        return self


@contextlib.contextmanager
def _without_gc() -> Iterator[None]:
    """Graphs are cycles of small objects: the collector goes through all of them again and again, and finds nothing."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def count_operators(model: ir.Model) -> Counter[str]:
    """How often each operator occurs, those in bodies included."""
    return Counter(node.op_type for graph in model.graphs() for node in graph)


# --- reading ---


def read_model(path: Path) -> ir.Model:
    """An ONNX file and its external data. Raises UsageError for what is none, or is damaged."""
    proto = read_graph(path)
    try:
        onnx.checker.check_model(path)  # by its path: it looks for the external data too
        onnx.load_external_data_for_model(proto, str(path.parent))
        model = ir.from_proto(proto)
    except (onnx.checker.ValidationError, OSError, ValueError, TypeError, KeyError, RuntimeError) as e:
        raise UsageError(f"{path} is not a valid ONNX model: {_first_line(e)}") from e
    return _normal_form(path, model)


def _normal_form(path: Path, model: ir.Model) -> ir.Model:
    """Without local functions, as runtimes inline them; weights that are inputs too are weights; shapes known."""
    common = ir.passes.common
    if "ai.onnx" in model.opset_imports:  # the same thing by its other name
        model.opset_imports.setdefault("", model.opset_imports.pop("ai.onnx"))
    if "" not in model.opset_imports:
        raise UsageError(f"{path} uses no operator of standard ONNX (it imports {', '.join(model.opset_imports)})")
    if model.functions:
        common.InlinePass()(model)
    common.RemoveInitializersFromInputsPass()(model)
    for value in model.graph.inputs:
        if not isinstance(value.type, ir.TensorType) or value.dtype == ir.DataType.STRING:
            raise UsageError(f"{path}: input {value.name} is no tensor of numbers but {value.type}: cannot be proved")
    common.ShapeInferencePass(data_prop=True)(model)
    return model


def as_program(name: str, model: ir.Model, sizes: Mapping[str, int]) -> Program:
    """The model as a program whose specs say how to draw inputs; ``sizes`` are given to its dynamic dimensions."""
    inputs = tuple(_spec(value, sizes) for value in model.graph.inputs)
    outputs = tuple(TensorSpec(str(value.name), ()) for value in model.graph.outputs)
    return Program(name, inputs, outputs, model)


def _spec(value: ir.Value, sizes: Mapping[str, int]) -> TensorSpec:
    assert value.dtype is not None
    dims = value.shape if value.shape is not None else ()
    names = [d if isinstance(d, int) else d.value or f"{value.name}_{axis}" for axis, d in enumerate(dims)]
    shape = tuple(sizes.get(d, d) if isinstance(d, str) else d for d in names)
    name, dtype = str(value.name), value.dtype.numpy().name
    return AnyTensor(name, shape, dtype, ROLES.get(name, "normal"))  # type: ignore[arg-type]  # any dtype of NumPy


class AnyTensor(TensorSpec):
    """An input of a file that we know nothing about."""

    def sample(self, rng: np.random.Generator, sizes: dict[str, int]) -> NDArray[Any]:
        """Small integers, which may be indices; booleans of both kinds; every second float is whole, as labels are."""
        if self.role != "normal":
            return super().sample(rng, sizes)
        shape = self.bound(sizes)
        if self.dtype == "bool":
            return rng.integers(0, 2, shape).astype(bool)
        if np.issubdtype(np.dtype(self.dtype), np.integer):
            return rng.integers(0, 2, shape).astype(self.dtype)
        values = rng.standard_normal(shape)
        whole: NDArray[Any] = np.where(rng.integers(0, 2, shape) == 1, values, np.round(values)).astype(self.dtype)
        return whole


def _sizes(model: ir.Model, points: int | None, dims: Mapping[str, int]) -> dict[str, int]:
    """Name of a dynamic dimension -> its size. Raises UsageError for names and sizes that cannot be."""
    symbols = {
        d.value: value.name
        for value in model.graph.inputs
        for d in (value.shape or ())
        if isinstance(d, ir.SymbolicDim) and d.value is not None
    }
    sizes = dict(dims)
    for name in dims:
        if name not in symbols:
            raise UnknownName("dynamic dimension", name, symbols or {"none: the file is static"})
    if points is not None:
        found = {s for s, name in symbols.items() if name in POINT_INPUTS and s in _point_axes(model)}
        found = {"num_points"} & symbols.keys() or found
        if not found:
            listed = ", ".join(f"{s} of {name}" for s, name in symbols.items()) or "none"
            raise UsageError(f"--points {points}: the file has no dynamic number of points (dynamic: {listed})")
        sizes |= dict.fromkeys(found, points)
    for name, size in sizes.items():
        if not 1 <= size <= 1 << 16:
            raise UsageError(f"size {size} for {name}: must be 1 to {1 << 16}")
    return sizes


def _point_axes(model: ir.Model) -> set[str]:
    """The symbols at axis 1 of the inputs that hold points."""
    shapes = [v.shape for v in model.graph.inputs if v.name in POINT_INPUTS and v.shape is not None]
    seconds = [shape[1] for shape in shapes if len(shape) > 1]
    return {d.value for d in seconds if isinstance(d, ir.SymbolicDim) and d.value is not None}


@contextlib.contextmanager
def _naming(source: Path, program: Program) -> Iterator[None]:
    """Errors that say which file; one of the runtime before any pass means that the file does not run as it is."""
    try:
        yield
    except PassError as e:
        raise PassError(f"{source}: {e}") from e
    except EdgeSamDeployError:
        raise
    except Exception as e:  # ONNX Runtime's error types derive from Exception alone
        sizes = ", ".join(sorted({s for spec in program.inputs for s in spec.dynamic.values()})) or "none"
        raise UsageError(
            f"{source} does not run on random inputs, so nothing can be proved on it: {_first_line(e)}; give its "
            f"dynamic dimensions sizes (here: {sizes}), or --proof off"
        ) from e


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# --- writing ---


def _check_output(source: Path, out: Path, *, overwrite: bool) -> None:
    if out.is_dir():
        raise OutputError(f"{out} is a folder; name a file")
    if not out.parent.is_dir():
        raise OutputError(f"{out.parent}: no such folder")
    if out.exists() and source.exists() and out.samefile(source):
        raise OutputError(f"{out} is the file that is read; write to another one")
    if out.exists() and not overwrite:
        raise OutputError(f"{out} is there already; --overwrite replaces it")
    if not overwrite and _data_of(out).exists():
        raise OutputError(f"{_data_of(out)} is there already and may belong to another file; --overwrite replaces it")


def _data_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.data")


def write_model(model: ir.Model, out: Path, *, check: bool = True, target: str = "onnx") -> bool:
    """Write ``out``, with its weights beside it where they are large; whether they are. Checked before it appears."""
    large = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    external = large > EXTERNAL_ABOVE
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        draft = folder / out.name
        write_graph(model, draft, external=external)
        if check:
            _check(draft)
        if target == "tensorrt":
            _check_hazards(draft)
        for part in sorted(folder.iterdir(), reverse=True):  # the weights before the file that names them
            os.replace(part, out.with_name(part.name))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return external


def _check(draft: Path) -> None:
    """Standard ONNX, and loadable here."""
    try:
        onnx.checker.check_model(draft, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as e:
        raise PassError(f"the result is not valid ONNX, nothing was written: {_first_line(e)}") from e


def _check_hazards(draft: Path) -> None:
    from edgesam_deploy.targets.tensorrt.hazards import hazards

    found = hazards(draft)
    if found:
        raise UnsupportedOperators(
            f"{draft.name}: {'; '.join(found[:5])}; nothing was written; freezing sizes with --points or --dim may help"
        )
