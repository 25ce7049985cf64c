"""fp32 islands across lowering: aten nodes that were named to stay fp32, and what they have become."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch.export import ExportedProgram

MARK = "edgesam_deploy.island"  # key of a node's metadata; its value is the aten node's name
FX_NODE = "pkg.torch.onnx.fx_node"  # where the exporter says of which node one came: "%add_3 : [num_users=1] = ..."


def lowered_names(lowered: ExportedProgram, islands: Collection[str]) -> dict[str, str]:
    """The nodes of a decomposed trace that came of ``islands``, with the island's name."""
    sources = {n.name: n.meta["from_node"][-1].name for n in lowered.graph.nodes if n.meta.get("from_node")}
    return {name: source for name, source in sources.items() if source in islands}


def mark(model: ir.Model, lowered: ExportedProgram, islands: Collection[str]) -> None:
    """Mark the nodes of an exported model that compute ``islands`` of the trace that it was ``lowered`` from."""
    names = lowered_names(lowered, islands)
    for node in model.graph:
        source = names.get(node.metadata_props.get(FX_NODE, "").partition(" ")[0].removeprefix("%"))
        if source is not None:
            node.metadata_props[MARK] = source
