"""An onnx_ir model as values by name, and pieces of it as models of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgesam_deploy.contract import TensorSpec
from edgesam_deploy.passes.correspondence import Region, Sketch, View, first_true, recipe_lines
from edgesam_deploy.passes.execute import Arrays
from edgesam_deploy.passes.program import Program

if TYPE_CHECKING:
    import onnx_ir as ir

AT_ONCE = 1 << 28  # elements of intermediate values that ONNX Runtime returns in one go


class OnnxView(View):
    """Names are those of the values; a node with several results stands behind each of them."""

    def __init__(self, program: Program) -> None:
        super().__init__(program)
        self.model = program.onnx
        graph = self.model.graph
        self.nodes = {v.name: node for node in graph for v in node.outputs if v.name}
        self.sources = {_name(v) for v in graph.inputs}
        self.outputs = [_name(v) for v in graph.outputs]
        self.constants = {name for name in graph.initializers if name not in self.sources}

    def reads(self, name: str) -> list[str]:
        import onnx_ir as ir

        node = self.nodes[name]
        read = [_name(v) for v in node.inputs if v is not None]
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:  # a branch reads values of the graph around it
                inner = ir.traversal.RecursiveGraphIterator(attribute.as_graph())
                read += [v.name for n in inner for v in n.inputs if v is not None and v.name in self._outer]
        return read

    @property
    def _outer(self) -> set[str]:
        return {*self.nodes, *self.sources, *self.constants}

    def operator(self, name: str) -> str:
        node = self.nodes[name]
        return f"{node.domain}::{node.op_type}:{[v.name for v in node.outputs].index(name)}"

    def is_baked(self, name: str) -> bool:
        return name in self.constants

    def sketches(self, inputs: Arrays) -> dict[str, Sketch]:
        names = list(self.nodes)
        found: dict[str, Sketch] = {}
        session = self._session(names)
        for batch in self._batches(names):
            for name, value in zip(batch, session.run(batch, self._feeds(inputs)), strict=True):
                if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
                    found[name] = Sketch.of(value)
        return found

    def _batches(self, names: list[str]) -> Iterable[list[str]]:
        batch: list[str] = []
        size = 0
        for name in names:
            value = next(v for v in self.nodes[name].outputs if v.name == name)
            shape = value.shape
            count = int(np.prod([d if isinstance(d, int) else 64 for d in shape])) if shape is not None else 1 << 20
            if batch and size + count > AT_ONCE:
                yield batch
                batch, size = [], 0
            batch.append(name)
            size += count
        yield batch

    def values(self, inputs: Arrays, names: Sequence[str]) -> Arrays:
        computed = [n for n in dict.fromkeys(names) if n in self.nodes]
        found = dict(inputs)
        if computed:
            found.update(zip(computed, self._session(computed).run(computed, self._feeds(inputs)), strict=True))
        return {n: found[n] if n in found else _tensor(self.model.graph.initializers[n]) for n in names}

    def _feeds(self, inputs: Arrays) -> Arrays:
        return {name: inputs[name] for name in self.sources}

    def _session(self, outputs: Sequence[str]) -> Any:
        import onnx
        import onnx_ir as ir

        model = ir.to_proto(self.ending_in(outputs).onnx)
        del model.graph.output[:]  # their types are not always known
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
        return _session(model.SerializeToString())

    def first_failing(self, inputs: Arrays) -> str | None:
        names = list(self.nodes)

        def fails(index: int) -> bool:
            try:
                self._session(names[: index + 1]).run(None, self._feeds(inputs))
            except Exception:  # runtimes have error types of their own
                return True
            return False

        first = first_true(len(names), fails)
        return None if first is None else names[first]

    def ending_in(self, names: Sequence[str]) -> Program:
        from onnx_ir.passes import common

        shorter = self.program.copy()
        shorter.outputs = tuple(TensorSpec(name, ()) for name in names)
        graph = shorter.onnx.graph
        ends = {v.name: v for node in graph for v in node.outputs}
        graph.outputs[:] = [ends[name] for name in names]
        common.RemoveUnusedNodesPass()(shorter.onnx)
        return shorter

    def _model(self, region: Region, inputs: Arrays) -> Any:
        import onnx
        import onnx_ir as ir

        nodes = list(dict.fromkeys(self.nodes[name] for name in region.nodes))
        protos = [ir.to_proto(node) for node in nodes]
        end = region.end
        if all(v.name != end for node in nodes for v in node.outputs):
            protos, end = [onnx.helper.make_node("Identity", [end], [f"{end}_result"])], f"{end}_result"
        read = dict.fromkeys(r for name in region.nodes for r in self.reads(name))
        constants = [self.model.graph.initializers[n] for n in (read or [region.end]) if n in self.constants]
        feeds = self.values(inputs, region.inputs)
        graph = onnx.helper.make_graph(
            protos,
            self.model.graph.name or "piece",
            [
                onnx.helper.make_tensor_value_info(n, onnx.helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
                for n, v in feeds.items()
            ],
            [onnx.ValueInfoProto(name=end)],
            initializer=[onnx.numpy_helper.from_array(_tensor(v), v.name) for v in constants],
        )
        imports = [onnx.helper.make_opsetid(domain, version) for domain, version in self.model.opset_imports.items()]
        functions = [ir.to_proto(f) for f in self.model.functions.values()]
        return onnx.helper.make_model(
            graph, opset_imports=imports, functions=functions, ir_version=self.model.ir_version
        )

    def write(self, region: Region, inputs: Arrays, stem: Path, *, runs: bool = True) -> Path:
        import onnx

        path = stem.with_suffix(".onnx")
        model = self._model(region, inputs)
        stem.with_suffix(".txt").write_text(onnx.printer.to_text(model))
        try:
            model = onnx.shape_inference.infer_shapes(model)  # viewers show the result's type
        except Exception:
            if runs:
                raise
        onnx.save(model, path)
        return path

    def run_piece(self, path: Path, feeds: Arrays) -> NDArray[Any]:
        return np.asarray(_session(path.read_bytes()).run(None, feeds)[0])

    def recipe(self, path: Path) -> str:
        return recipe_lines(
            path,
            "import onnxruntime",
            'inputs = dict(np.load(here / "inputs.npz"))',
            f'(actual,) = onnxruntime.InferenceSession(here / "{path.name}").run(None, inputs)',
            compare=True,
        )

    def recipe_of_pass(self, path: Path, run: Callable[[Program], int]) -> str:
        return recipe_lines(
            path,
            "import onnx_ir as ir",
            "from edgesam_deploy.passes.program import Program",
            f"from {run.__module__} import {run.__name__}",
            f'{run.__name__}(Program("part", (), (), ir.load(here / "{path.name}")))',
        )

    def piece(self, region: Region, inputs: Arrays) -> Program:
        import onnx
        import onnx_ir as ir

        model = onnx.shape_inference.infer_shapes(self._model(region, inputs))
        specs = tuple(TensorSpec(n, v.shape) for n, v in self.values(inputs, region.inputs).items())
        outputs = tuple(TensorSpec(value.name, ()) for value in model.graph.output)
        return Program(self.program.name, specs, outputs, ir.from_proto(model))


def _name(value: ir.Value) -> str:
    return value.name or ""


def _tensor(value: ir.Value) -> NDArray[Any]:
    assert value.const_value is not None
    return value.const_value.numpy()


def _session(model: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
