"""A program: one part of a model on its way from the trace to the artifact."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from edgesam_deploy.contract import TensorSpec

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray
    from torch.export import ExportedProgram
    from torch.fx import Node

Dialect = Literal["aten", "onnx"]


@dataclass
class Program:
    """The only thing that passes between rooms: a name, its inputs and outputs, and a body in one of two dialects.

    ``sidecars``: arrays that the host needs beside the artifact, by name, for work that a pass gave to it.
    ``islands``: aten nodes that stay fp32 where the artifact computes in fp16, beside those that its target keeps so.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    body: ExportedProgram | ir.Model
    sidecars: dict[str, NDArray[Any]] = field(default_factory=dict)
    islands: frozenset[str] = frozenset()

    @property
    def dialect(self) -> Dialect:
        """``aten`` for a torch.export program, ``onnx`` for an onnx_ir model."""
        return "onnx" if hasattr(self.body, "ir_version") else "aten"

    @property
    def aten(self) -> ExportedProgram:
        assert self.dialect == "aten", f"{self.name} is in the onnx dialect already"
        return self.body  # type: ignore[return-value]

    @property
    def onnx(self) -> ir.Model:
        assert self.dialect == "onnx", f"{self.name} is still in the aten dialect"
        return self.body  # type: ignore[return-value]

    def copy(self) -> Program:
        """The same program with a graph of its own; constants are shared: passes replace them, never mutate."""
        return Program(self.name, self.inputs, self.outputs, _copied(self.body), dict(self.sidecars), self.islands)

    def operators(self) -> Counter[str]:
        """Operator names and how often each occurs."""
        if self.dialect == "aten":
            return Counter(operator(n) for n in self.aten.graph.nodes if n.op == "call_function")
        return Counter(node.op_type for node in self.onnx.graph)


def operator(node: Node) -> str:
    """An aten operator's name without its overload: ``layer_norm``."""
    return str(node.target).removeprefix("aten.").split(".")[0]


def _copied(body: Any) -> Any:
    if hasattr(body, "ir_version"):
        return body.clone()
    from torch.export import ExportedProgram

    copied = ExportedProgram(
        root=body.graph_module,
        graph=copy.deepcopy(body.graph),
        graph_signature=copy.deepcopy(body.graph_signature),
        state_dict=dict(body.state_dict),
        range_constraints=body.range_constraints,
        module_call_graph=body.module_call_graph,
        example_inputs=body.example_inputs,
        constants=dict(body.constants),
        verifiers=[body.verifier],
    )
    copied.graph_module.meta.update(body.graph_module.meta)
    return copied
