"""The smallest and largest value that tensors of an ONNX model reach over calibration rows."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from edgesam_deploy.precision.probes import probe_session

Arrays = Mapping[str, NDArray[Any]]


def extremes(model: onnx.ModelProto, rows: Sequence[Arrays], names: Collection[str]) -> dict[str, tuple[float, float]]:
    """(least, most) of each named value over ``rows``, reduced inside the graph: whole maps take gigabytes."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    ordered = sorted(names)
    for index, name in enumerate(ordered):
        for operator in ("ReduceMin", "ReduceMax"):
            result = f"probe.{index}.{operator}"
            probe.graph.node.append(helper.make_node(operator, [name], [result], keepdims=0))
            probe.graph.output.append(helper.make_tensor_value_info(result, onnx.TensorProto.FLOAT, []))
    session = probe_session(probe, "calibrating")
    found = np.array([session.run(None, dict(row)) for row in rows], np.float32).reshape(len(rows), -1, 2)
    return {name: (float(found[:, i, 0].min()), float(found[:, i, 1].max())) for i, name in enumerate(ordered)}
