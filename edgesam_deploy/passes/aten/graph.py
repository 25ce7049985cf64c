"""Editing a torch.export program in place: constants in and out, shapes kept, signature in step with the graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, count
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument
from torch.fx import Node

from edgesam_deploy.passes.program import Program

_CONSTANT_KINDS = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


class AtenGraph:
    """A view for rewriting. Use as ``with AtenGraph(program) as graph: ...``; leaving it removes what became dead.

    Parameters, buffers and constants are placeholders in torch.export; ``constant`` gives their value, ``add_constant``
    makes a new one. ``call`` inserts an operator and computes its fake value, so that later passes see its shape.
    """

    def __init__(self, program: Program) -> None:
        self.ep: ExportedProgram = program.aten
        self.graph = self.ep.graph
        self._specs = {s.arg.name: s for s in self.ep.graph_signature.input_specs if s.kind in _CONSTANT_KINDS}
        self._mode = next(n.meta["val"].fake_mode for n in self.graph.nodes if isinstance(n.meta.get("val"), Tensor))

    def __enter__(self) -> AtenGraph:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.clean()

    def calls(self, *operators: Any) -> Iterator[Node]:
        """Nodes that call one of ``operators``, in order; safe while the graph is edited."""
        for node in list(self.graph.nodes):
            if node.target in operators and not node._erased:
                yield node

    def constant(self, node: Any) -> Tensor | None:
        """The value behind a node if it is a parameter, buffer or constant."""
        spec = self._specs.get(node.name) if isinstance(node, Node) else None
        if spec is None:
            return None
        assert spec.target is not None
        value = self.ep.state_dict.get(spec.target)
        found: Tensor = self.ep.constants[spec.target] if value is None else value
        return found

    def target(self, node: Any) -> str:
        """The name of a constant's node in the state_dict."""
        return str(self._specs[node.name].target or node.name)

    def add_constant(self, name: str, value: Tensor) -> Node:
        """A new constant called ``name`` (made unique), as a node that later ones may read."""
        value = value.detach().contiguous()
        taken = {s.target for s in self._specs.values()}
        unique = next(n for n in chain([name], (f"{name}_{i}" for i in count(1))) if n not in taken)
        first = next(iter(self.graph.nodes))
        with self.graph.inserting_before(first):
            node: Node = self.graph.placeholder("c_" + unique.replace(".", "_"))
        node.meta["val"] = self._mode.from_tensor(value, static_shapes=True)
        spec = InputSpec(InputKind.BUFFER, TensorArgument(node.name), unique, persistent=True)
        self._specs[node.name] = spec
        self.ep.graph_signature.input_specs.insert(0, spec)
        self.ep.state_dict[unique] = value
        return node

    def call(self, operator: Callable[..., Any], *args: Any, **kwargs: Any) -> Node:
        """Insert a call at the current insertion point, with its shape and type worked out."""
        node: Node = self.graph.call_function(operator, args, kwargs)
        fake_args, fake_kwargs = torch.fx.node.map_arg((args, kwargs), lambda n: n.meta["val"])
        with self._mode:
            node.meta["val"] = operator(*fake_args, **fake_kwargs)
        return node

    def replace(self, old: Node, new: Node) -> None:
        """Let every reader of ``old``, the program's own output list included, read ``new``; ``old`` is erased."""
        old.replace_all_uses_with(new)
        for spec in self.ep.graph_signature.output_specs:
            if spec.arg.name == old.name:
                spec.arg = TensorArgument(new.name)
        self.graph.erase_node(old)

    def clean(self) -> None:
        """Remove calls and constants that nobody reads, and bring signature and state_dict in step."""
        self.graph.eliminate_dead_code()  # it checks the graph first
        for node in list(self.graph.nodes):
            if node.name in self._specs and not node.users:
                self.graph.erase_node(node)
                self._forget(node.name)
        self.ep.graph_module.recompile()

    def _forget(self, name: str) -> None:
        spec = self._specs.pop(name)
        self.ep.graph_signature.input_specs.remove(spec)
        if spec.target is not None and all(s.target != spec.target for s in self._specs.values()):
            self.ep.state_dict.pop(spec.target, None)
            self.ep.constants.pop(spec.target, None)


def shape(node: Any) -> tuple[Any, ...]:
    """The shape of a node's value; symbolic dimensions are SymInt."""
    return tuple(node.meta["val"].shape)


def same_shape(a: Any, b: Any) -> bool:
    """Whether two nodes have the same shape for every value of the symbols in it."""
    return [str(d) for d in shape(a)] == [str(d) for d in shape(b)]


def argument(node: Node, index: int, name: str, default: Any = None) -> Any:
    """An operator's argument, whether it was given by position, by name, or left at its default."""
    if len(node.args) > index:
        return node.args[index]
    return node.kwargs.get(name, default)


def only_reader(node: Node) -> bool:
    """Whether exactly one node reads this one."""
    return len(node.users) == 1
