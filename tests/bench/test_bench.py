"""Latency: what is timed, how bundles take turns, what a result says in every form, and when it is a regression."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from edgesam_deploy.bench import Settings, measure
from edgesam_deploy.bench.compare import changes, differences, parse_limit, read_result, unmeasured
from edgesam_deploy.bench.formats import google_benchmark_json, markdown, pytest_benchmark_json, state_line
from edgesam_deploy.bench.measure import AGAIN, trusted
from edgesam_deploy.bench.stages import grid, stages
from edgesam_deploy.devices import runner
from edgesam_deploy.errors import UsageError
from edgesam_deploy.parity.cases import seeded_scene
from edgesam_deploy.runtime import open_artifact

QUICK = Settings(runs=2, warmup=0, points=(1,), prompts=(2,), everything=(2,), threads=1, cold=False)


@pytest.fixture(scope="module")
def result(bundles, tmp_path_factory):
    """Two bundles of the tiny model, one with more slots, in one run."""
    folder = tmp_path_factory.mktemp("bench")
    few, many = (shutil.copytree(bundles(points=n).path, folder / f"points {n}") for n in (2, 4))
    return measure([few, many], QUICK)


def named(bundle):
    return {row["stage"]: row for row in bundle["stages"]}


# ---------------------------------------------------------------------------------------------------------- turns


def test_everybody_has_a_turn_in_every_round(monkeypatch):
    monkeypatch.setattr(runner, "SETTLE_SECONDS", 0)
    order = []
    found = runner.interleave({name: lambda n=name: order.append(n) for name in "abc"}, warmup=1, runs=40)
    assert all(len(entry["wall"]) == len(entry["cpu"]) == 40 for entry in found.values())
    assert order[:6] == list("aabbcc")  # the first call and the warm-up
    rounds = ["".join(order[i : i + 3]) for i in range(6, len(order), 3)]
    assert all(sorted(turn) == list("abc") for turn in rounds)
    assert len(set(rounds)) > 3  # the order is drawn anew


def test_stages_keep_their_order():
    assert runner.merged([["e", "d1", "p"], ["e", "d1", "d5", "p", "x"], ["w"]]) == ["w", "e", "d1", "d5", "p", "x"]


def test_a_time_budget_ends_the_rounds(monkeypatch):
    clock = iter(range(10_000))
    monkeypatch.setattr(runner.time, "perf_counter", lambda: float(next(clock)))  # a second passes at every look
    monkeypatch.setattr(runner.time, "process_time", lambda: 0.0)
    assert len(runner.interleave({"a": int}, warmup=0, runs=99, seconds=30)["a"]["wall"]) == 11
    assert len(runner.interleave({"a": int}, warmup=0, runs=99, seconds=0.1)["a"]["wall"]) == runner.LEAST_RUNS


def test_figures_of_known_times():
    row = runner.summary("s", 9.0, [4.0, 1.0, 2.0, 3.0, 5.0], [1.0, 3.0, 2.0])
    assert (row["first"], row["runs"], row["mean"], row["min"], row["max"], row["cpu"]) == (9.0, 5, 3.0, 1.0, 5.0, 2.0)
    assert (row["p50"], row["p90"]) == pytest.approx((3.0, 4.6))
    assert row["std"] == pytest.approx(2.5**0.5)
    assert runner.summary("s", 1.0, [2.0])["std"] == 0.0


# --------------------------------------------------------------------------------------------------------- stages


def test_each_stage_does_what_its_name_says(bundles):
    predictor, scene = open_artifact(bundles(points=3).path, threads=1), seeded_scene(1)
    found, skipped = stages(predictor, scene, Settings(points=(1, 2, 3), prompts=(1, 5), everything=(2,)))
    assert skipped == ["3 points: the artifact has 3 slots"]
    calls = {stage.name: stage for stage in found}
    assert calls["encoder"].call()["image_embeddings"].shape == (1, 64, 16, 16)
    assert calls["prompt encoding, 2 points"].call()[0].labels.tolist() == [[1, 1, -1]]
    assert calls["decoder, 5 prompts"].call().logits.shape == (5, 4, 64, 64)
    assert calls["decoder, 5 prompts"].prompts == 5
    assert calls["postprocess, 3 masks"].call().shape == (1, 3, *scene.shape[:2])
    assert calls["postprocess, 3 masks"].call().dtype == bool
    assert calls["click to masks"].call()[0].shape == (3, *scene.shape[:2])
    assert calls["everything, 2 x 2"].prompts == 4
    assert isinstance(calls["everything, 2 x 2"].call(), list)


def test_points_are_different_and_inside():
    scene = seeded_scene(3)
    points = grid(40, scene)
    assert len({tuple(p) for p in points.tolist()}) == 40
    assert (points >= 0).all()
    assert (points < [scene.shape[1], scene.shape[0]]).all()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "wanted"), [("cwsam", "segmenter"), ("edge_sam_dyt_hq", "postprocess, 1 mask")])
def test_the_rest_of_the_family(family, name, wanted):
    _, bundle = family(name)
    (found,) = measure([bundle.path], Settings(runs=1, warmup=0, points=(1,), prompts=(), cold=False))["bundles"]
    assert {wanted, "end to end"} <= named(found).keys()


# ---------------------------------------------------------------------------------------------------- several bundles


def test_bundles_take_turns_and_the_first_twice(result):
    few, many = result["bundles"]
    assert (few["name"].endswith("points 2"), many["name"].endswith("points 4")) == (True, True)
    assert named(few).keys() == named(many).keys()
    stages_of = [row["stage"] for row in few["stages"]]
    assert [row["stage"] for row in result["ratios"]] == [stage for stage in stages_of for _ in range(2)]
    for row in result["ratios"]:
        assert row["bundle"] in (many["name"], few["name"] + AGAIN)
        assert row["rounds"] == 2
        if row["bundle"] == many["name"]:
            pairs = zip(named(many)[row["stage"]]["times"], named(few)[row["stage"]]["times"], strict=True)
            assert row["median"] == pytest.approx(sum(b / a for b, a in pairs) / 2)


def test_no_verdict_where_the_second_copy_is_off():
    ratios = [{"stage": s, "bundle": "a" + AGAIN, "median": m} for s, m in (("x", 1.04), ("y", 1.06), ("z", 0.9))]
    assert [trusted({"ratios": ratios}, stage) for stage in "xyz"] == [True, False, False]
    assert not trusted({"ratios": []}, "x")


def test_one_bundle_named_twice(bundles):
    with pytest.raises(UsageError, match="named twice"):
        measure([bundles().path, bundles().path], QUICK)


# ---------------------------------------------------------------------------------------------------------- formats


def test_pytest_benchmark_reads_it(result, tmp_path):
    content = pytest_benchmark_json(result)
    assert len(content["benchmarks"]) == 2 * len(result["bundles"][0]["stages"])
    for entry in content["benchmarks"]:
        stats = entry["stats"]
        assert stats["min"] <= stats["q1"] <= stats["median"] <= stats["q3"] <= stats["max"]
        assert stats["total"] == pytest.approx(stats["mean"] * stats["rounds"])
    (tmp_path / "0001_result.json").write_text(json.dumps(content))
    command = [
        sys.executable,
        "-m",
        "pytest_benchmark",
        "compare",
        str(tmp_path / "0001_result.json"),
        "--csv=table.csv",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = (tmp_path / "table.csv").read_text().splitlines()
    assert len(rows) == 1 + len(content["benchmarks"])
    assert any("click to masks" in row for row in rows)


def test_google_benchmark_json(result):
    content = google_benchmark_json(result)
    assert {"date", "num_cpus", "mhz_per_cpu", "cpu_scaling_enabled", "load_avg"} <= content["context"].keys()
    medians = [entry for entry in content["benchmarks"] if entry["aggregate_name"] == "median"]
    assert len(medians) == len(content["benchmarks"]) / 3
    stage = result["bundles"][1]["stages"][1]
    entry = next(e for e in medians if e["run_name"].endswith("points_4/encoder"))
    assert (entry["real_time"], entry["cpu_time"], entry["time_unit"]) == (stage["p50"], stage["cpu"], "ms")


def test_markdown_has_figures_and_circumstances(result):
    text = markdown(result)
    assert result["cpu"] in text
    assert result["date"] in text
    assert f"onnxruntime {result['versions']['onnxruntime']}" in text
    for bundle in result["bundles"]:
        assert f"## {bundle['name']}" in text
        assert f"| encoder | 2 | {named(bundle)['encoder']['first']:.2f} |" in text
    assert text.count("| no verdict |") == sum(not trusted(result, row["stage"]) for row in result["ratios"])
    assert "**Not complete**: gone" in markdown({**result, "complete": False, "incomplete_because": "gone"})


def test_a_state_in_words():
    state = {
        "load": 0.25,
        "memory_available_mb": 2048,
        "governors": {"powersave": 4},
        "celsius": {"a": 40.0, "b": 61.2},
    }
    assert state_line(state) == "load 0.2, 2.0 GiB free, governor powersave, 61 degrees (b)"
    assert state_line({}) == "the machine does not say"


# ---------------------------------------------------------------------------------------------------------- compare


def scaled(result, factor):
    copy = json.loads(json.dumps(result))
    for bundle in copy["bundles"]:
        for row in bundle["stages"]:
            row["p50"] *= factor
    return copy


def test_what_is_slower(result):
    new = scaled(result, 1.0)
    new["bundles"][1]["stages"][1]["p50"] = result["bundles"][1]["stages"][1]["p50"] * 1.2 + 1
    slower = [change for change in changes(new, result) if change.slower_than(0.1)]
    assert [(change.bundle, change.stage) for change in slower] == [(result["bundles"][1]["name"], "encoder")]
    assert not any(change.slower_than(0.1) for change in changes(scaled(result, 0.5), result))
    tiny = json.loads(json.dumps(result))
    tiny["bundles"][0]["stages"][0]["p50"] = 0.010
    new["bundles"][0]["stages"][0]["p50"] = 0.020  # twice as long, and less than any clock's noise
    assert not next(iter(changes(new, tiny))).slower_than(0.1)


def test_one_bundle_is_compared_whatever_its_name(result):
    one = {**result, "bundles": result["bundles"][:1]}
    moved = {**result, "bundles": [{**result["bundles"][0], "name": "elsewhere"}]}
    assert len(changes(moved, one)) == len(one["bundles"][0]["stages"])
    with pytest.raises(UsageError, match="none of these bundles and stages"):
        changes(moved, result)


def test_what_was_not_measured_is_named(result):
    assert unmeasured(result, result) == []
    less = json.loads(json.dumps(result))
    gone = less["bundles"][1]["stages"].pop()["stage"]
    name = less["bundles"][1]["name"]
    assert unmeasured(less, result) == [f"{name}: {gone} was not measured now"]
    assert unmeasured(result, less) == []  # more than before
    broken = {**result, "complete": False, "incomplete_because": "the connection broke"}
    assert unmeasured(broken, result) == ["the run is not complete: the connection broke"]
    alone = {**result, "bundles": result["bundles"][:1]}
    assert unmeasured(result, alone) == []
    assert unmeasured(alone, result) == [f"{name} was not measured now"]
    moved = {**alone, "bundles": [{**alone["bundles"][0], "name": "elsewhere"}]}
    assert unmeasured(moved, alone) == []  # the only one of either


def test_the_mean_where_a_tool_gives_no_median(result):
    old = json.loads(json.dumps(result))
    old["bundles"][0]["stages"][0]["p50"] = None
    change = next(iter(changes(result, old)))
    assert change.now == result["bundles"][0]["stages"][0]["mean"]


def test_other_circumstances_are_told(result):
    assert differences(result, result) == []
    other = {**result, "cpu": "another", "settings": {**result["settings"], "threads": 7}}
    assert differences(other, result) == [f"cpu: {result['cpu']} before, another now", "--threads: 1 before, 7 now"]


@pytest.mark.parametrize(("text", "share"), [("10%", 0.1), ("0.25", 0.25), (" 2.5% ", 0.025), ("0", 0.0)])
def test_limits(text, share):
    assert parse_limit(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["ten", "-1%", "10 %", ""])
def test_limits_that_are_none(text):
    with pytest.raises(UsageError, match="must be a share such as 10%"):
        parse_limit(text)


def test_files_that_are_no_result(tmp_path):
    for name, content, words in (
        ("old.json", '{"schema": 1, "stages": []}', "measure it again"),
        ("list.json", "[]", "not a result"),
        ("text.json", "hello", "not a JSON file"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(UsageError, match=words):
            read_result(tmp_path / name)
