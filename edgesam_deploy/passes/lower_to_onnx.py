"""Where a program changes dialect: from aten operators to ONNX ones, by PyTorch's own exporter."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from edgesam_deploy.passes.engine import Pass, exact
from edgesam_deploy.passes.islands import mark
from edgesam_deploy.passes.program import Program

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch.export import ExportedProgram


def lower_to_onnx(opset: int, ir_version: int) -> Pass:
    """The pass that lowers to ``opset`` (18 to 23) in files of ``ir_version``."""

    def lower(program: Program) -> int:
        """Lower the aten program to ONNX operators of one opset; what the exporter leaves behind goes in later passes.

            aten.conv2d ── aten.gelu ── aten.layer_norm        Conv ── Gelu ── LayerNormalization

        Exact. Nodes of fp32 islands are marked as such. Site = a node of the result.
        """
        return _lower(program, opset, ir_version)

    lower.__name__ = "lower_to_onnx"
    return exact(lower)


def _lower(program: Program, opset: int, ir_version: int) -> int:
    import torch

    def export(body: ExportedProgram) -> torch.onnx.ONNXProgram | None:
        return torch.onnx.export(
            body, dynamo=True, optimize=False, verify=False, verbose=False, opset_version=opset
        )  # fmt: skip

    with _quiet(), _translations_kept():
        try:
            with _decomposed_if_needed(quick := program.copy().aten, always=bool(program.islands)):
                exported = export(quick)
        except torch.onnx.OnnxExporterError:  # an operator that the table leaves out, such as aten.to
            exported = export(program.aten)
    assert exported is not None
    model = exported.model
    model.ir_version = ir_version
    model.graph.name = program.name
    _name_outputs(model, program)
    assert exported.exported_program is not None
    mark(model, exported.exported_program, program.islands)
    program.body = model
    return len(model.graph)


@contextlib.contextmanager
def _decomposed_if_needed(body: ExportedProgram, *, always: bool) -> Iterator[None]:
    """The exporter traces every program again to decompose operators that it has no translation for: half of its time.
    It hands over a table of those; a graph that has none of them, and nothing that works in place, stays as it is.
    ``always``: islands are found by what the second trace says of the first.
    """
    decompose = body.run_decompositions

    def run_decompositions(table: Mapping[Any, Any] | None = None, **options: Any) -> ExportedProgram:
        targets = [node.target for node in body.graph.nodes if node.op == "call_function"]
        needed = always or table is None or any(t in table or _works_in_place(t) for t in targets)
        return decompose(table, **options) if needed else body

    body.run_decompositions = run_decompositions
    try:
        yield
    finally:
        del body.run_decompositions


def _works_in_place(target: Any) -> bool:
    return bool(getattr(getattr(target, "_schema", None), "is_mutable", False))


def _name_outputs(model: ir.Model, program: Program) -> None:
    """Give the outputs the contract's names; one that is an input, a constant or another output is copied."""
    import onnx_ir as ir
    from onnx_ir.passes import common

    graph = model.graph
    for index, value in enumerate(graph.outputs):
        if value.is_graph_input() or value.is_initializer() or value in graph.outputs[:index]:
            copy = ir.node("Identity", [value])
            copy.outputs[0].shape, copy.outputs[0].type = value.shape, value.type
            graph.append(copy)
            graph.outputs[index] = copy.outputs[0]
    for value, spec in zip(graph.outputs, program.outputs, strict=True):
        value.name = spec.name
    common.NameFixPass()(model)  # another value may have had that name


@contextlib.contextmanager
def _translations_kept() -> Iterator[None]:
    """The exporter gathers its table of translations anew for every program, 0.7 s each time; nothing here adds to it,
    so one for each opset does. A PyTorch that keeps it elsewhere is only slower. One thread at a time: a table that
    another thread's export adds to would not be this one's alone.
    """
    try:
        from torch.onnx._internal.exporter import _registration

        kind: Any = _registration.ONNXRegistry
        original, gather = vars(kind)["from_torchlib"], kind.from_torchlib
    except (ImportError, AttributeError, KeyError):
        yield
        return
    with _GATHERING:
        kind.from_torchlib = staticmethod(lambda *args, **named: _table(gather, args, tuple(named.items())))
        try:
            yield
        finally:
            kind.from_torchlib = original


_GATHERING = threading.RLock()


@functools.cache
def _table(gather: Callable[..., Any], opset: tuple[Any, ...], named: tuple[tuple[str, Any], ...]) -> Any:
    return gather(*opset, **dict(named))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns of packages that this project does not use; its errors still come through as exceptions."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
