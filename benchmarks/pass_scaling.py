"""How the onnx-level pipeline grows with a graph, beside its peers: python -m benchmarks.pass_scaling.

Synthetic graphs of the family's operators (blocks of a transformer and of a convolutional stage, in the spelling of old
exporters: LayerNorm and GELU in pieces, shapes computed in the graph) of about 1,000, 5,000 and 10,000 nodes. CPU
seconds of one process, model in memory to model in memory, each tool in a process of its own that is stopped after a
minute of CPU time. Writes benchmarks/results/pass_scaling.{md,json}.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import resource
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

SIZES = (1000, 5000, 10000)
LIMIT = 60  # CPU seconds after which a tool is stopped
RESULTS = Path(__file__).parent / "results"
WIDTH, TOKENS = 16, 6


def synthetic(nodes: int) -> onnx.ModelProto:
    """Blocks of a decoder until there are ``nodes`` of them; x (1, TOKENS, WIDTH) -> y of the same shape."""
    build = _Builder()
    value = "x"
    while len(build.nodes) < nodes:
        value = build.block(value)
    build.nodes.append(helper.make_node("Identity", [value], ["y"]))
    shape = [1, TOKENS, WIDTH]
    graph = helper.make_graph(
        build.nodes,
        "synthetic",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, shape)],
        build.constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


class _Builder:
    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.rng = np.random.default_rng(0)

    def op(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [name], name=f"n{len(self.nodes)}", **attributes))
        return name

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def weight(self, *shape: int) -> str:
        return self.constant(self.rng.standard_normal(shape) / shape[0] ** 0.5)

    def block(self, x: str) -> str:
        """Norm, attention over two heads with computed shapes, norm, GELU block: 60-odd nodes."""
        y = self.norm(x)
        q, k, v = (self.heads(self.linear(y)) for _ in "qkv")
        scores = self.op("Div", self.op("MatMul", q, self.op("Transpose", k, perm=[0, 1, 3, 2])), self.constant(2.0))
        mixed = self.op("Transpose", self.op("MatMul", self.op("Softmax", scores, axis=-1), v), perm=[0, 2, 1, 3])
        x = self.op("Add", x, self.op("Reshape", mixed, self.constant([1, TOKENS, WIDTH], np.int64)))
        hidden = self.gelu(self.op("MatMul", self.norm(x), self.weight(WIDTH, 2 * WIDTH)))
        return self.op("Add", x, self.op("Identity", self.op("MatMul", hidden, self.weight(2 * WIDTH, WIDTH))))

    def linear(self, x: str) -> str:
        return self.op("Add", self.op("MatMul", x, self.weight(WIDTH, WIDTH)), self.weight(WIDTH))

    def heads(self, x: str) -> str:
        shape, zero = self.op("Shape", x), self.constant([0], np.int64)
        sizes = [self.op("Unsqueeze", self.op("Gather", shape, self.constant(i, np.int64)), zero) for i in (0, 1)]
        target = self.op("Concat", *sizes, self.constant([2], np.int64), self.constant([WIDTH // 2], np.int64), axis=0)
        return self.op("Transpose", self.op("Reshape", x, target), perm=[0, 2, 1, 3])

    def norm(self, x: str) -> str:
        axes = self.constant([-1], np.int64)
        centred = self.op("Sub", x, self.op("ReduceMean", x, axes))
        variance = self.op("ReduceMean", self.op("Pow", centred, self.constant(2.0)), axes)
        deviation = self.op("Sqrt", self.op("Add", variance, self.constant(1e-5)))
        scaled = self.op("Mul", self.op("Div", centred, deviation), self.weight(WIDTH))
        return self.op("Add", scaled, self.weight(WIDTH))

    def gelu(self, x: str) -> str:
        error = self.op("Erf", self.op("Div", x, self.constant(2**0.5)))
        return self.op("Mul", self.op("Mul", x, self.op("Add", error, self.constant(1.0))), self.constant(0.5))


def _ours(model: onnx.ModelProto) -> int:
    import onnx_ir as ir

    from edgesam_deploy import optimizer

    program = optimizer.as_program("synthetic", ir.from_proto(model), {})
    program, _ = optimizer.run_passes(program, optimizer.legalization("onnx"), "off")
    return len(ir.to_proto(program.onnx).graph.node)


def _onnxsim(model: onnx.ModelProto) -> int:
    import onnxsim

    return len(onnxsim.simplify(model)[0].graph.node)


def _onnxslim(model: onnx.ModelProto) -> int:
    import onnxslim

    return len(onnxslim.slim(model).graph.node)


def _onnxscript(model: onnx.ModelProto) -> int:
    from onnxscript import optimizer

    return len(optimizer.optimize(model).graph.node)


TOOLS: dict[str, Callable[[onnx.ModelProto], int]] = {
    "edgesam-deploy": _ours, "onnxsim": _onnxsim, "onnxslim": _onnxslim, "onnxscript": _onnxscript,
}  # fmt: skip


def _measure(tool: str, nodes: int, sender: Any) -> None:
    TOOLS[tool](synthetic(20))  # imports are not what is measured
    model = synthetic(nodes)
    used = int(time.process_time())
    resource.setrlimit(resource.RLIMIT_CPU, (used + LIMIT, used + LIMIT + 5))
    start = time.process_time()
    after = TOOLS[tool](model)
    sender.send({"cpu_s": time.process_time() - start, "before": len(model.graph.node), "after": after})


def measure(tool: str, nodes: int) -> dict[str, Any] | None:
    """CPU seconds and node counts; None where the tool was stopped."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(tool, nodes, sender))
    process.start()
    sender.close()
    try:
        return dict(receiver.recv())
    except EOFError:
        return None
    finally:
        process.join()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--tools", nargs="+", choices=list(TOOLS), default=list(TOOLS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    for size in args.sizes:
        for tool in args.tools:
            stopped = any(found.get(tool, {}).get(str(s), 0) is None for s in args.sizes if s < size)
            row = None if stopped else measure(tool, size)
            found.setdefault(tool, {})[str(size)] = row
            print(f"{tool:15} {size:6} {'stopped' if row is None else row}", flush=True)
    versions = {name: version(name) for name in ("onnx", "onnx-ir", "onnxsim", "onnxslim", "onnxscript", "onnxruntime")}
    data = {
        "command": "python -m benchmarks.pass_scaling", "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {multiprocessing.cpu_count()} cores", "python": platform.python_version(),
        "versions": versions, "limit_cpu_s": LIMIT, "results": found,
    }  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "pass_scaling.json").write_text(json.dumps(data, indent=2, sort_keys=True) + "\n")
    (args.out / "pass_scaling.md").write_text(_table(data, args.sizes))
    return 0


def _table(data: dict[str, Any], sizes: list[int]) -> str:
    lines = [
        "# Onnx-level passes on synthetic graphs", "",
        f"CPU seconds (nodes left). `{data['command']}`, {data['date']}, {data['machine']}, Python {data['python']};",
        ", ".join(f"{name} {number}" for name, number in data["versions"].items()) + ".",
        f"Stopped: more than {data['limit_cpu_s']} CPU seconds, then not tried on larger graphs.", "",
        "| tool | " + " | ".join(f"{size:,} nodes" for size in sizes) + " |",
        "|---" * (len(sizes) + 1) + "|",
    ]  # fmt: skip
    for tool, rows in data["results"].items():
        cells = [rows[str(size)] for size in sizes]
        text = ["stopped" if c is None else f"{c['cpu_s']:.2f} ({c['after']:,})" for c in cells]
        lines.append(f"| {tool} | " + " | ".join(text) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
