"""A torch.export program as values by name, and pieces of it as programs of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgesam_deploy.contract import TensorSpec
from edgesam_deploy.passes.correspondence import Region, Sketch, View, recipe_lines
from edgesam_deploy.passes.execute import Arrays
from edgesam_deploy.passes.program import Program

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node


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
        return recipe_lines(
            path,
            "import torch",
            'inputs = np.load(here / "inputs.npz")',
            f'program = torch.export.load(here / "{path.name}").module()',
            "(actual,) = program(*(torch.from_numpy(inputs[name]) for name in inputs.files))",
            "actual = actual.detach().numpy()",
            compare=True,
        )

    def recipe_of_pass(self, path: Path, run: Callable[[Program], int]) -> str:
        return recipe_lines(
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
