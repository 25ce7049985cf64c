"""Asks Qualcomm's compiler, as onnxruntime-qnn brings it, which nodes of ONNX files it takes for the HTP.

    assignments([Path("a.onnx"), Path("b.onnx")])      one answer for each file

The compiler may end the process that calls it (a 5-D Tile of ones does), so it runs in another one, which is started
anew after the file that ended it: ``python -m edgesam_deploy.targets.rules.qnn_compiler`` is that process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgesam_deploy.errors import EdgeSamDeployError
from edgesam_deploy.toolkits import require

PROVIDER = "QNNExecutionProvider"
SOC = "SM8650"
PURPOSE = "asking Qualcomm's compiler"
SECONDS = 600.0  # for one file: an encoder takes half a minute on a free machine
BEGIN = "begin"  # the worker's line before a file, so that a crash can be laid at its door


@dataclass(frozen=True)
class Assignment:
    """What became of one file: ``nodes``, name to (operator, provider) after ONNX Runtime's own rewrites.

    Nodes that the runtime removed or merged before it asked are not in it. refused: why there are none.
    crashed: the compiler ended its process.
    """

    nodes: Mapping[str, tuple[str, str]]
    refused: str = ""
    crashed: bool = False

    @property
    def on_npu(self) -> bool:
        """Whether every node that there is runs on the NPU."""
        return not self.refused and all(provider == PROVIDER for _, provider in self.nodes.values())


def assignments(paths: Sequence[Path], *, soc: str = SOC, seconds: float = SECONDS) -> list[Assignment]:
    """The compiler's answer for each file, in order. Raises MissingToolkit; EdgeSamDeployError if it never starts."""
    require("onnxruntime_qnn", PURPOSE)
    found: list[Assignment] = []
    with tempfile.TemporaryDirectory() as folder:
        while len(found) < len(paths):
            rest = [str(path.resolve()) for path in paths[len(found) :]]
            found += _answers(rest, soc, seconds, folder)
    return found


def _answers(paths: list[str], soc: str, seconds: float, folder: str) -> list[Assignment]:
    """The answers of one process: for all files, or up to and with the one that ended it."""
    command = [sys.executable, "-m", __name__, soc, folder]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        done = subprocess.run(
            command, input="\n".join(paths), capture_output=True, text=True, timeout=seconds * len(paths),
            env=environment, check=False,
        )  # fmt: skip
        lines, code = done.stdout.splitlines(), done.returncode
    except subprocess.TimeoutExpired as e:
        raise EdgeSamDeployError(f"Qualcomm's compiler did not answer within {seconds:.0f} s a file") from e
    answers = list(_read(lines))
    begun = sum(line == BEGIN for line in lines)
    if begun > len(answers):
        return [*answers, Assignment({}, refused=f"the compiler crashed (exit code {code})", crashed=True)]
    if len(answers) < len(paths):
        raise EdgeSamDeployError(f"Qualcomm's compiler does not run here: {done.stderr.strip()[-500:]}")
    return answers


def _read(lines: Sequence[str]) -> Iterator[Assignment]:
    for line in lines:
        if line.startswith("{"):
            content = json.loads(line)
            yield Assignment({name: (op, ep) for name, op, ep in content["nodes"]}, content["refused"])


def _answer(path: str, devices: Sequence[object], soc: str, folder: str) -> dict[str, object]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    context = Path(folder) / "context.onnx"
    context.unlink(missing_ok=True)  # the compiler refuses to overwrite one
    for key, value in (
        ("ep.context_enable", "1"),
        ("ep.context_file_path", str(context)),
        ("ep.context_embed_mode", "1"),
        ("session.record_ep_graph_assignment_info", "1"),
    ):
        options.add_session_config_entry(key, value)
    provider = {
        "backend_path": require("onnxruntime_qnn", PURPOSE).get_qnn_htp_path(),
        "soc_model": soc,
        "enable_htp_fp16_precision": "1",
        "htp_graph_finalization_optimization_mode": "1",
    }
    options.add_provider_for_devices(devices, provider)
    try:
        session = onnxruntime.InferenceSession(path, sess_options=options, enable_fallback=0)
    except Exception as e:  # the runtime's errors share no narrower base
        return {"nodes": [], "refused": str(e).splitlines()[0]}
    groups = session.get_provider_graph_assignment_info()
    return {"nodes": [(n.name, n.op_type, g.ep_name) for g in groups for n in g.get_nodes()], "refused": ""}


def _work(soc: str, folder: str) -> None:
    import onnxruntime

    onnxruntime.register_execution_provider_library(PROVIDER, require("onnxruntime_qnn", PURPOSE).get_library_path())
    devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name == PROVIDER][:1]
    if not devices:
        raise SystemExit("onnxruntime-qnn offers no device")
    for path in sys.stdin.read().splitlines():
        print(f"\n{BEGIN}", flush=True)  # on lines of their own: the compiler writes to the same stream
        print("\n" + json.dumps(_answer(path, devices, soc, folder)), flush=True)


if __name__ == "__main__":
    _work(*sys.argv[1:3])
