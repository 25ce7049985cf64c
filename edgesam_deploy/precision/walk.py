"""Running an aten program node by node, with a say in what each node gives; a value is let go after its last reader."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_aggregate, map_arg

from edgesam_deploy.passes.execute import channels_last
from edgesam_deploy.passes.program import Program

aten = torch.ops.aten
Compute = Callable[[Node, tuple[Any, ...], dict[str, Any]], Any]

# operators that only move, choose or copy values: what they give is representable where what they read is
MOVES = frozenset(
    {
        aten.alias.default, aten.cat.default, aten.clone.default, aten.expand.default, aten.flatten.using_ints,
        aten.index.Tensor, aten.index_select.default, aten.pad.default, aten.permute.default, aten.relu.default,
        aten.repeat.default, aten.reshape.default, aten.select.int, aten.slice.Tensor, aten.split.Tensor,
        aten.squeeze.dim, aten.stack.default, aten.transpose.int, aten.unbind.int, aten.unflatten.int,
        aten.unsqueeze.default, aten.view.default, aten.where.self,
    }
)  # fmt: skip


class Walker:
    """A program ready to be run node by node, its constants in the order PyTorch computes fastest in."""

    def __init__(self, program: Program) -> None:
        self.program = program
        ep = program.aten
        state = {**ep.constants, **ep.state_dict}
        specs = {s.arg.name: s.target for s in ep.graph_signature.input_specs}
        self.nodes: list[Node] = list(ep.graph.nodes)
        self.constants: dict[str, Tensor] = {
            name: channels_last(state[target]) for name, target in specs.items() if target is not None
        }
        self.names = {name: str(target) for name, target in specs.items() if target is not None}
        self._spent = _last_reads(self.nodes)

    def run(self, inputs: Mapping[str, Tensor], compute: Compute) -> list[Any]:
        """The outputs in order. ``compute`` gives the value of each call and of each placeholder, whose one argument
        is the input or the constant; what it gives is what later nodes' arguments hold in the node's place.
        """
        values: dict[Node, Any] = {}
        for node in self.nodes:
            if node.op == "output":
                return [values[n] for n in node.args[0]]  # type: ignore[index, union-attr]
            if node.op == "placeholder":
                given = self.constants.get(node.name)
                args: Any = (inputs[node.name] if given is None else given,)
                kwargs: Any = {}
            elif node.op == "get_attr":
                args, kwargs = (getattr(self.program.aten.graph_module, str(node.target)),), {}
            else:
                args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
            values[node] = compute(node, args, kwargs)
            for spent in self._spent.get(node, ()):
                del values[spent]
        raise AssertionError("a graph ends in its output")


def _last_reads(nodes: list[Node]) -> dict[Node, list[Node]]:
    """Node -> the nodes that it is the last to read."""
    last: dict[Node, Node] = {}
    for node in nodes:
        for read in node.all_input_nodes:
            last[read] = node
        if node.op == "call_function" and not node.users:
            last[node] = node
    spent: dict[Node, list[Node]] = {}
    for read, reader in last.items():
        if reader.op != "output":
            spent.setdefault(reader, []).append(read)
    return spent


def called(node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a node gives for these arguments."""
    if node.op != "call_function":
        return args[0]
    return node.target(*args, **kwargs)  # type: ignore[operator]


def each_tensor(value: Any, function: Callable[[Tensor], Any]) -> Any:
    """``function`` of every floating-point tensor in (nested) values, the rest as it is."""
    return map_aggregate(value, lambda v: function(v) if isinstance(v, Tensor) and v.dtype.is_floating_point else v)


def is_real(value: Any) -> bool:
    """Whether a value is one floating-point tensor with something in it."""
    return isinstance(value, Tensor) and value.dtype.is_floating_point and value.numel() > 0


def module_path(node: Node) -> str:
    """Where in the model a node stands: its module's path, or for one that a pass made, that of its nearest neighbour
    that has one, what it reads before what reads it.
    """
    return _nearest_path(node, lambda n: n.all_input_nodes) or _nearest_path(node, lambda n: list(n.users))


def _nearest_path(node: Node, neighbours: Callable[[Node], list[Node]]) -> str:
    waiting, seen = [node], {node}
    while waiting:
        near = waiting.pop(0)
        stack = near.meta.get("nn_module_stack")
        path = next(reversed(stack.values()))[0] if stack else ""
        if path:
            return str(path)
        fresh = [n for n in neighbours(near) if n not in seen and n.op == "call_function"]
        seen |= set(fresh)
        waiting += fresh
    return ""
