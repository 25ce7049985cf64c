"""Two programs side by side: their values by name, which of them correspond, and pieces cut out of either.

Values are compared by sketches of at most 4,096 numbers (sums of blocks with random signs, whose distance is that of
the values within a few per cent), so that all activations of an encoder fit into memory at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgesam_deploy.contract import TensorSpec
from edgesam_deploy.passes.execute import Arrays
from edgesam_deploy.passes.program import Program

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch.fx import GraphModule, Node

BUCKETS = 4096
LEAST = 1e-2  # root mean square that a value counts as having: below, rounding of larger terms is all there is
ENOUGH = 16  # elements that cannot be equal by accident, as flags and sizes are
AT_ONCE = 1 << 28  # elements of intermediate values that ONNX Runtime returns in one go


@dataclass(frozen=True)
class Sketch:
    """What is kept of a value."""

    shape: tuple[int, ...]
    norm: float
    numbers: NDArray[np.float64]

    @classmethod
    def of(cls, array: NDArray[Any]) -> Sketch:
        flat = np.asarray(array).astype(np.float64).ravel()
        norm = float(np.linalg.norm(flat))
        if flat.size > BUCKETS:
            flat = flat * _signs(flat.size)
            flat = np.pad(flat, (0, -flat.size % BUCKETS)).reshape(-1, BUCKETS).sum(0)
        return cls(tuple(np.shape(array)), norm, flat)

    def distance(self, other: Sketch) -> float:
        """|other - self| / |self| in L2, as ``relative_l2``; NaN where either holds NaN."""
        size = max(self.norm, LEAST * float(np.sqrt(np.prod(self.shape))))
        error = float(np.linalg.norm(other.numbers - self.numbers))
        return 0.0 if error == 0 else error / size if size else float("inf")


@lru_cache(maxsize=8)
def _signs(size: int) -> NDArray[np.int8]:
    return np.random.default_rng(size).integers(0, 2, size, np.int8) * 2 - 1


@dataclass
class Region:
    """Nodes that compute ``end`` from ``inputs``; ``deeper``: wrong values that were met on the way back."""

    end: str
    nodes: list[str] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    deeper: list[str] = field(default_factory=list)


class View(ABC):
    """A program as values by name: ``nodes`` what computes them in order, ``sources`` the inputs, ``outputs``."""

    nodes: dict[str, Any]
    sources: set[str]
    outputs: list[str]

    def __init__(self, program: Program) -> None:
        self.program = program
        self.plural: set[str] = set()  # lists of tensors: never the input of a piece

    @abstractmethod
    def reads(self, name: str) -> list[str]:
        """Names of what the node that computes ``name`` reads, in order, constants included."""

    @abstractmethod
    def operator(self, name: str) -> str:
        """What computes ``name``."""

    @abstractmethod
    def sketches(self, inputs: Arrays) -> dict[str, Sketch]:
        """Of every tensor that is computed."""

    @abstractmethod
    def values(self, inputs: Arrays, names: Sequence[str]) -> Arrays:
        """The named values, inputs and constants included."""

    @abstractmethod
    def is_baked(self, name: str) -> bool:
        """Whether a piece holds this value itself, not as an input: constants, and numbers that are no tensors."""

    @abstractmethod
    def write(self, region: Region, inputs: Arrays, stem: Path, *, runs: bool = True) -> Path:
        """The region as a program that runs, beside a text to read. Not ``runs``: one that is expected to fail."""

    @abstractmethod
    def run_piece(self, path: Path, feeds: Arrays) -> NDArray[Any]:
        """The result of what ``write`` wrote."""

    @abstractmethod
    def recipe(self, path: Path) -> str:
        """The lines that run what ``write`` wrote and compare."""

    @abstractmethod
    def recipe_of_pass(self, path: Path, run: Callable[[Program], int]) -> str:
        """The lines that run a pass on what ``write`` wrote."""

    @abstractmethod
    def ending_in(self, names: Sequence[str]) -> Program:
        """The program with the named values as its outputs, and without what they do not need."""

    def prefix(self, names: Sequence[str]) -> Program:
        """The program of the named values, of which those that none of them reads are the outputs."""
        read = {r for name in names for r in self.reads(name)}
        return self.ending_in([name for name in names if name not in read])

    @abstractmethod
    def piece(self, region: Region, inputs: Arrays) -> Program:
        """The region as a program."""

    @abstractmethod
    def first_failing(self, inputs: Arrays) -> str | None:
        """The first value that cannot be computed."""

    def position(self, name: str) -> int:
        return self._positions.get(name, -1)

    @property
    def _positions(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.nodes)}

    def tensors(self, inputs: Arrays) -> list[str]:
        """Names of computed tensors, in order."""
        return list(self.sketches(inputs))

    def region(self, end: str, stops: set[str], wrong: set[str]) -> Region:
        """Back from ``end``, which belongs to it in any case, to ``stops`` and inputs; ``wrong`` values end it too."""
        found, seen, left = Region(end), {end}, [end]
        inside = set()
        while left:
            name = left.pop()
            if name not in self.nodes:
                if not self.is_baked(name):
                    found.inputs.append(name)
                continue
            inside.add(name)
            for read in self.reads(name):
                if read in seen or self.is_baked(read):
                    continue
                seen.add(read)
                if read in stops or read in self.sources:
                    found.inputs.append(read)
                elif read in wrong:
                    found.deeper.append(read)
                else:
                    left.append(read)
        found.nodes = [name for name in self.nodes if name in inside]
        return found

    def near(self, end: str, depth: int) -> Region:
        """The nodes at most ``depth`` steps back from ``end``, which counts as one."""
        inside, edge = {end}, [end]
        for _ in range(depth - 1):
            edge = [r for name in edge for r in self.reads(name) if r in self.nodes and r not in inside]
            inside.update(edge)
        return self.region(end, set(self.nodes) - inside - self.plural, set())


def first_true(count: int, holds: Callable[[int], bool]) -> int | None:
    """The first index from which ``holds`` is true to the end, None where it is not true at the last."""
    if count == 0 or not holds(count - 1):
        return None
    low, high = 0, count - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


def view_of(program: Program) -> View:
    return AtenView(program) if program.dialect == "aten" else OnnxView(program)


# --- which values correspond -----------------------------------------------------------------------------------------


def partners(before: View, after: View) -> dict[str, list[str]]:
    """For each value after, the ones before that it may stand for, the likelier first.

    Those in the same place of the outputs, and of nodes that correspond and have the same operator; and its namesake.
    """
    found: dict[str, list[str]] = {}

    def record(was: str, now: str) -> None:
        if was in before.nodes and now in after.nodes:
            found.setdefault(now, []).append(was)

    outputs = list(zip(before.outputs, after.outputs, strict=True))
    namesakes = [(name, name) for name in after.nodes if name in before.nodes]
    for pair in outputs:
        record(*pair)
    queue = deque([*outputs, *namesakes])
    seen = set(queue)
    while queue:
        was, now = queue.popleft()
        if was not in before.nodes or now not in after.nodes or before.operator(was) != after.operator(now):
            continue
        reads, reads_now = before.reads(was), after.reads(now)
        for pair in zip(reads, reads_now, strict=True) if len(reads) == len(reads_now) else ():
            record(*pair)
            if pair not in seen:
                seen.add(pair)
                queue.append(pair)
    for pair in namesakes:
        record(*pair)
    return {name: list(dict.fromkeys(candidates)) for name, candidates in found.items()}


@dataclass(frozen=True)
class Agreement:
    """``stops``: values after that equal one before; ``shared``: those before; ``wrong``: those that ought to and do
    not. Sizes of the same shape only are compared.
    """

    stops: set[str]
    shared: set[str]
    wrong: set[str]
    is_same: Callable[[str, str], bool]
    partner: Callable[[str], str]


def agreement(
    old: dict[str, Sketch], new: dict[str, Sketch], candidates: dict[str, list[str]], limit: float
) -> Agreement:
    by_shape: dict[tuple[int, ...], list[str]] = {}
    for name, sketch in old.items():
        by_shape.setdefault(sketch.shape, []).append(name)

    def is_same(was: str, now: str) -> bool:
        if was not in old or now not in new:
            return was == now
        return old[was].shape == new[now].shape and old[was].distance(new[now]) <= limit

    def comparable(now: str) -> list[str]:
        return [was for was in candidates.get(now, []) if was in old and old[was].shape == new[now].shape]

    stops, shared, wrong = set(), set(), set()
    for now, sketch in new.items():
        equal = [was for was in comparable(now) if is_same(was, now)]
        if not equal and int(np.prod(sketch.shape)) >= ENOUGH:  # renamed, or computed elsewhere
            equal = [was for was in by_shape.get(sketch.shape, []) if is_same(was, now)]
        if equal:
            stops.add(now)
            shared.update(equal)
        elif comparable(now):
            wrong.add(now)
    return Agreement(stops, shared, wrong, is_same, lambda now: comparable(now)[0])


# --- aten ------------------------------------------------------------------------------------------------------------


class AtenView(View):
    """Names are those of the fx nodes."""

    def __init__(self, program: Program) -> None:
        super().__init__(program)
        ep = program.aten
        self.graph = ep.graph
        self.nodes = {n.name: n for n in self.graph.nodes if n.op == "call_function"}
        self.sources = {spec.name for spec in program.inputs}
        self.outputs = [n.name for n in _flat(self.graph.output_node().args)]
        state = {**ep.constants, **ep.state_dict}
        self.constants = {s.arg.name: state[s.target] for s in ep.graph_signature.input_specs if s.target is not None}
        self._numbers: dict[str, Any] = {}

    def reads(self, name: str) -> list[str]:
        node = self.nodes[name]
        return [n.name for n in _flat((node.args, node.kwargs))]

    def operator(self, name: str) -> str:
        return str(self.nodes[name].target)

    def is_baked(self, name: str) -> bool:
        return name in self.constants or name in self._numbers

    def sketches(self, inputs: Arrays) -> dict[str, Sketch]:
        found: dict[str, Sketch] = {}

        def keep(node: Node, value: Any) -> None:
            if not isinstance(value, int | float | bool | tuple | list) and value is not None:
                found[node.name] = Sketch.of(value.detach().numpy())

        self._interpret(inputs, keep)
        return found

    def values(self, inputs: Arrays, names: Sequence[str]) -> Arrays:
        found = {n: inputs[n] if n in inputs else self.constants[n].numpy() for n in names if n not in self.nodes}
        wanted = set(names) & set(self.nodes)

        def keep(node: Node, value: Any) -> None:
            if node.name in wanted:
                found[node.name] = value.detach().numpy().copy()

        if wanted:
            self._interpret(inputs, keep)
        return {name: found[name] for name in names}

    def _interpret(self, inputs: Arrays, keep: Callable[[Node, Any], None]) -> Node | None:
        """Run node by node; the node that fails, if one does, ends it."""
        import torch
        from torch.fx import Interpreter

        view, failed = self, []

        class Watching(Interpreter):
            def run_node(self, n: Node) -> Any:
                try:
                    value = super().run_node(n)
                except Exception:
                    failed.append(n)
                    raise
                if n.op == "call_function":
                    if isinstance(value, int | float | bool):
                        view._numbers[n.name] = value
                    elif isinstance(value, tuple | list):
                        view.plural.add(n.name)
                    keep(n, value)
                return value

        holders = [n.name for n in self.graph.nodes if n.op == "placeholder"]
        args = [self.constants[n] if n in self.constants else torch.from_numpy(inputs[n]) for n in holders]
        watching = Watching(self.program.aten.graph_module, graph=self.graph)
        watching.extra_traceback = False
        try:
            with torch.no_grad():
                watching.run(*args)
        except Exception:
            if not failed:
                raise
        return failed[0] if failed else None

    def first_failing(self, inputs: Arrays) -> str | None:
        node = self._interpret(inputs, lambda *_: None)
        return None if node is None else node.name

    def _module(self, region: Region) -> GraphModule:
        import torch
        from torch.fx import Graph, GraphModule

        graph, root = Graph(), torch.nn.Module()
        copied = {name: graph.placeholder(name) for name in region.inputs}

        def translate(node: Node) -> Any:
            if node.name in self._numbers:
                return self._numbers[node.name]
            if node.name not in copied:
                root.register_buffer(node.name, self.constants[node.name].detach())
                with graph.inserting_before(graph._root.next):
                    copied[node.name] = graph.get_attr(node.name)
            return copied[node.name]

        for name in region.nodes:
            copied[name] = graph.node_copy(self.nodes[name], translate)
        end = next(n for n in self.graph.nodes if n.name == region.end)
        graph.output((translate(end),))
        return GraphModule(root, graph)

    def _exported(self, region: Region, inputs: Arrays) -> Any:
        import torch

        feeds = self.values(inputs, region.inputs)
        with torch.no_grad():
            return torch.export.export(
                self._module(region), tuple(torch.from_numpy(feeds[name]) for name in region.inputs), strict=False
            )

    def write(self, region: Region, inputs: Arrays, stem: Path, *, runs: bool = True) -> Path:
        import torch

        text = self._module(region).print_readable(print_output=False)
        stem.with_suffix(".txt").write_text(text)
        if not runs:
            return stem.with_suffix(".txt")
        path = stem.with_suffix(".pt2")
        torch.export.save(self._exported(region, inputs), path)
        return path

    def run_piece(self, path: Path, feeds: Arrays) -> NDArray[Any]:
        import torch

        with torch.no_grad():
            (result,) = torch.export.load(path).module()(*(torch.from_numpy(v) for v in feeds.values()))
        return np.asarray(result.numpy())

    def recipe(self, path: Path) -> str:
        if path.suffix == ".txt":
            return f"# in {path.parent}: after.txt is the node that fails, inputs.npz what it reads\n"
        return _lines(
            path,
            "import torch",
            'inputs = np.load(here / "inputs.npz")',
            f'program = torch.export.load(here / "{path.name}").module()',
            "(actual,) = program(*(torch.from_numpy(inputs[name]) for name in inputs.files))",
            "actual = actual.detach().numpy()",
            compare=True,
        )

    def recipe_of_pass(self, path: Path, run: Callable[[Program], int]) -> str:
        return _lines(
            path,
            "import torch",
            "from edgesam_deploy.passes.program import Program",
            f"from {run.__module__} import {run.__name__}",
            f'{run.__name__}(Program("part", (), (), torch.export.load(here / "{path.name}")))',
        )

    def ending_in(self, names: Sequence[str]) -> Program:
        from torch.export.graph_signature import OutputKind, OutputSpec, TensorArgument

        from edgesam_deploy.passes.aten.graph import AtenGraph

        shorter = self.program.copy()
        shorter.outputs = tuple(TensorSpec(name, ()) for name in names)
        ep = shorter.aten
        ends = {n.name: n for n in ep.graph.nodes}
        ep.graph.output_node().args = (tuple(ends[name] for name in names),)
        ep.graph_signature.output_specs[:] = [
            OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(name), None) for name in names
        ]
        AtenGraph(shorter).clean()
        return shorter

    def piece(self, region: Region, inputs: Arrays) -> Program:
        specs = tuple(TensorSpec(n, v.shape) for n, v in self.values(inputs, region.inputs).items())
        return Program(self.program.name, specs, (TensorSpec("result", ()),), self._exported(region, inputs))


def _flat(arguments: Any) -> list[Node]:
    """The nodes among (nested) arguments, in order, with repetition."""
    import torch

    found: list[Node] = []
    torch.fx.node.map_arg(arguments, found.append)
    return found


# --- onnx ------------------------------------------------------------------------------------------------------------


class OnnxView(View):
    """Names are those of the values; a node with several results stands behind each of them."""

    def __init__(self, program: Program) -> None:
        super().__init__(program)
        self.model = program.onnx
        graph = self.model.graph
        self.nodes = {v.name: node for node in graph for v in node.outputs if v.name}
        self.sources = {v.name or "" for v in graph.inputs}
        self.outputs = [v.name or "" for v in graph.outputs]
        self.constants = {name for name in graph.initializers if name not in self.sources}

    def reads(self, name: str) -> list[str]:
        import onnx_ir as ir

        node = self.nodes[name]
        read = [v.name or "" for v in node.inputs if v is not None]
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
        if not nodes or all(v.name != end for node in nodes for v in node.outputs):
            protos, end = [onnx.helper.make_node("Identity", [end], [f"{end}_result"])], f"{end}_result"
        read = dict.fromkeys(r for name in region.nodes or [] for r in self.reads(name))
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
        return _lines(
            path,
            "import onnxruntime",
            'inputs = dict(np.load(here / "inputs.npz"))',
            f'(actual,) = onnxruntime.InferenceSession(here / "{path.name}").run(None, inputs)',
            compare=True,
        )

    def recipe_of_pass(self, path: Path, run: Callable[[Program], int]) -> str:
        return _lines(
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
        return Program(self.program.name, specs, (TensorSpec("result", ()),), ir.from_proto(model))


def _tensor(value: ir.Value) -> NDArray[Any]:
    assert value.const_value is not None
    return value.const_value.numpy()


def _session(model: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _lines(path: Path, *lines: str, compare: bool = False) -> str:
    start = ["from pathlib import Path", "import numpy as np"]
    here = f"here = Path({str(path.parent.resolve())!r})"
    imports = [line for line in lines if line.startswith(("import ", "from "))]
    rest = [line for line in lines if line not in imports]
    end = [
        'expected = np.load(here / "expected.npz")["expected"]',
        "print(np.linalg.norm(actual - expected) / np.linalg.norm(expected))",
    ]
    return "\n".join([*start, *imports, here, *rest, *(end if compare else [])]) + "\n"
