"""The compiler on foreign graphs: what it takes, refuses, and dies of."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import graphs
import onnx
import pytest

from edgesam_deploy.errors import MissingToolkit
from edgesam_deploy.targets.qnn import compiler
from edgesam_deploy.targets.qnn.compiler import Limits, Settings, compile_onnx
from edgesam_deploy.targets.qnn.soc import soc_named
from edgesam_deploy.targets.qnn.suspect import beginning
from edgesam_deploy.targets.qnn.verdict import compile_part

pytest.importorskip("onnxruntime_qnn", reason="onnxruntime-qnn is not installed")

SETTINGS = Settings(soc_named("SM8650"), optimization=1)


def test_a_crash_is_survived_and_its_node_named(tmp_path):
    model = graphs.identity_tile(tmp_path / "tile.onnx")
    verdict = compile_part(model, tmp_path / "tile.qnn.onnx", SETTINGS)
    assert verdict.end == "crashed"
    assert verdict.error == "SIGSEGV"
    (row,) = verdict.off_npu
    assert (row.processor, row.operator, row.dtype, row.rank, row.nodes) == (
        "none",
        "Tile",
        "float32",
        5,
        ("the_tile",),
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tile.onnx"]


def test_what_falls_to_the_cpu_is_named_with_the_reason(tmp_path):
    verdict = compile_part(graphs.lone_erf(tmp_path / "erf.onnx"), tmp_path / "erf.qnn.onnx", SETTINGS)
    assert verdict.end == "compiled"
    assert verdict.partitions == 2
    assert verdict.count("npu") == 2
    (row,) = verdict.off_npu
    assert (row.processor, row.operator, row.dtype, row.rank, row.nodes) == ("cpu", "Erf", "float32", 4, ("the_erf",))
    assert "not supported" in row.reason


def test_what_the_npu_takes_whole_is_one_partition_with_its_traffic(tmp_path):
    context = tmp_path / "plain.qnn.onnx"
    verdict = compile_part(graphs.plain(tmp_path / "plain.onnx"), context, SETTINGS)
    assert (verdict.end, verdict.partitions, verdict.count("npu"), verdict.off_npu) == ("compiled", 1, 3, ())
    assert verdict.traffic.dram_read >= 24 * 4  # the input
    assert [node.op_type for node in onnx.load(context).graph.node] == ["EPContext"]


@pytest.mark.parametrize("embed", [True, False])
def test_two_compilations_are_the_same_bytes(tmp_path, embed):
    model = graphs.plain(tmp_path / "plain.onnx")
    made = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        compile_onnx(model, folder / "plain.qnn.onnx", replace(SETTINGS, embed=embed))
        made.append({p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()})
    assert made[0] == made[1]
    assert len(made[0]) == (1 if embed else 2)


@pytest.mark.parametrize(
    ("limits", "end"), [(Limits(seconds=0.01), "out of time"), (Limits(memory_mb=1), "out of memory")]
)
def test_limits_are_kept_and_nothing_is_left(tmp_path, limits, end):
    model = graphs.plain(tmp_path / "plain.onnx")
    done = compile_onnx(model, tmp_path / "plain.qnn.onnx", SETTINGS, limits)
    assert done.end == end
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain.onnx"]


def test_a_compiler_that_somebody_killed_is_no_crash(tmp_path, monkeypatch):
    (tmp_path / "killed.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(compiler, "MODULE", "killed")
    verdict = compile_part(graphs.plain(tmp_path / "plain.onnx"), tmp_path / "plain.qnn.onnx", SETTINGS)
    assert (verdict.end, verdict.error, verdict.rows) == ("killed", "SIGKILL", ())


@pytest.mark.parametrize(
    ("breaks", "words"),
    [("raise ImportError('libQnnHtp.so: no such file')", "libQnnHtp.so"), ("return []", "offers no device")],
)
def test_a_broken_installation_is_no_fault_of_the_graph(tmp_path, monkeypatch, breaks, words):
    """In the compiler's process its devices cannot be had."""
    (tmp_path / "broken.py").write_text(
        "import json, sys\nfrom pathlib import Path\nimport edgesam_deploy.targets.qnn.compile as c\n"
        f"def qnn_devices():\n    {breaks}\nc.qnn_devices = qnn_devices\nc.main(sys.argv[1])\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(compiler, "MODULE", "broken")
    with pytest.raises(MissingToolkit, match=words):
        compile_onnx(graphs.lone_erf(tmp_path / "erf.onnx"), tmp_path / "erf.qnn.onnx", SETTINGS)


def test_a_process_that_fails_in_python_is_no_crash(tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text("raise SystemExit(3)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(compiler, "MODULE", "broken")
    verdict = compile_part(graphs.lone_erf(tmp_path / "erf.onnx"), tmp_path / "erf.qnn.onnx", SETTINGS)
    assert (verdict.end, verdict.error, verdict.off_npu) == ("refused", "exit code 3", ())


def test_an_error_of_the_compiler_is_its_words(tmp_path):
    path = tmp_path / "broken.onnx"
    onnx.save(onnx.load(graphs.plain(path)), path)
    model = onnx.load(path)
    model.graph.node[1].op_type = "NoSuchOperator"
    onnx.save(model, path)
    done = compile_onnx(path, tmp_path / "broken.qnn.onnx", SETTINGS)
    assert done.end == "refused"
    assert "NoSuchOperator" in done.error


def test_the_beginning_of_a_graph_is_a_graph(tmp_path):
    model = onnx.shape_inference.infer_shapes(onnx.load(graphs.identity_tile(tmp_path / "tile.onnx")))
    piece = beginning(model, 2)
    onnx.checker.check_model(piece, full_check=True)
    assert [node.name for node in piece.graph.node] == ["first", "the_tile"]
    assert [value.name for value in piece.graph.output] == ["b"]
