"""The measuring method: ratios per round, the A/A row, what is refused a verdict, what is written."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.interleaved import AGAIN, Candidate, Comparison, Machine, Ratio, Row, compare, compare_calls, write_json

SIDE = 192


def write_chain(path: Path, length: int) -> Path:
    """An ONNX file that multiplies ``x`` by one matrix ``length`` times."""
    weight = numpy_helper.from_array(np.eye(SIDE, dtype=np.float32), "w")
    names = ["x", *(f"x{i}" for i in range(length - 1)), "y"]
    nodes = [helper.make_node("MatMul", [a, "w"], [b]) for a, b in itertools.pairwise(names)]
    tensors = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [SIDE, SIDE]) for n in "xy"]
    graph = helper.make_graph(nodes, "chain", tensors[:1], tensors[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, path)
    return path


def comparison(again: float = 1.0, ours: float = 0.9, cpu_ms: float = 20.0, threads: int = 2) -> Comparison:
    rows = [
        Row(name, 10.0 * ratio, cpu_ms * ratio, Ratio(ratio, ratio, ratio), Ratio(1.0, 1.0, 1.0))
        for name, ratio in (("base", 1.0), (AGAIN, again), ("ours", ours))
    ]
    return Comparison("decoder", threads, 15, 1, tuple(rows), 0.5, 0.7)


def test_ratio_is_the_median_of_rounds_not_of_totals() -> None:
    ratio = Ratio.of([1.0, 2.0, 90.0, 4.0, 5.0], [2.0, 4.0, 10.0, 8.0, 10.0])  # one round was disturbed
    assert (ratio.low, ratio.median, ratio.high) == (0.5, 0.5, 0.5)


def test_a_longer_graph_takes_longer(tmp_path: Path) -> None:
    short = Candidate("short", write_chain(tmp_path / "short.onnx", 2))
    long = Candidate("long", write_chain(tmp_path / "long.onnx", 40))
    inputs = {"x": np.ones((SIDE, SIDE), np.float32), "only another file has this": np.zeros(1)}
    found = compare("chain", short, [long], inputs, threads=1, rounds=5, calls=2)
    assert [row.name for row in found.rows] == ["short", AGAIN, "long"]
    assert found["short"].wall == Ratio(1.0, 1.0, 1.0)
    assert found["long"].wall.median > 3
    assert found["long"].cpu.median > 3


@pytest.mark.parametrize(
    ("again", "ours", "verdict"),
    [(1.0, 0.97, "reached"), (1.049, 0.9, "reached"), (0.96, 0.98, "missed"), (1.06, 0.5, "no verdict")],
)
def test_verdict(again: float, ours: float, verdict: str) -> None:
    found = comparison(again, ours)
    assert found.verdict("ours", 0.97) == verdict
    assert ("no verdict" in found.markdown()) == (verdict == "no verdict")


def test_threads_without_cores_are_reported() -> None:
    assert not comparison(cpu_ms=19.0).starved
    starved = comparison(cpu_ms=10.5)
    assert starved.starved
    assert "the threads got 1.1 cores" in starved.markdown()


def test_table_has_a_line_per_session() -> None:
    table = [line for line in comparison().markdown().splitlines() if line.startswith("|")]
    assert len(table) == 2 + 3
    assert table[-1] == "| ours | 9.0 | 0.900 (0.900-0.900) | 18.0 | 1.000 (1.000-1.000) |"


def test_json_says_on_what_machine_but_not_whose(tmp_path: Path) -> None:
    path = tmp_path / "results" / "run.json"
    write_json(path, Machine.here(), [comparison(again=1.2)], weights="seed 0")
    data = json.loads(path.read_text())
    assert data["weights"] == "seed 0"
    assert set(data["machine"]) == {"cpu", "cores", "date", "system", "versions"}
    assert data["comparisons"][0]["trusted"] is False
    assert data["comparisons"][0]["rows"][2]["wall"]["median"] == 0.9
    assert str(tmp_path) not in path.read_text()


@pytest.mark.parametrize("options", [{"rounds": 0}, {"calls": 0}])
def test_nothing_to_measure_is_refused(tmp_path: Path, options: dict[str, int]) -> None:
    file = Candidate("short", write_chain(tmp_path / "short.onnx", 2))
    with pytest.raises(ValueError, match="at least 1"):
        compare("chain", file, [], {}, **options)


def test_two_of_one_name_are_refused(tmp_path: Path) -> None:
    file = Candidate("short", write_chain(tmp_path / "short.onnx", 2))
    with pytest.raises(ValueError, match="names of their own"):
        compare("chain", file, [file], {})


def test_calls_are_told_the_round() -> None:
    told: dict[str, list[int]] = {"base": [], AGAIN: [], "ours": []}
    compare_calls("anything", {name: seen.append for name, seen in told.items()}, rounds=3, warmup=1, calls=2)
    assert set(map(tuple, told.values())) == {(0, 0, 0, 1, 1, 2, 2)}


def test_without_a_second_copy_nothing_is_to_be_trusted() -> None:
    with pytest.raises(ValueError, match="A/A"):
        compare_calls("anything", {"base": print})
