"""Core ML's operators judged by chip family, the estimate of where they run, and a compute plan beside it."""

from __future__ import annotations

import json
import random
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgesam_deploy.errors import MissingToolkit, UsageError
from edgesam_deploy.ops import OpsReport, plan_report, read_plan, report
from edgesam_deploy.ops.placement import switches

pytest.importorskip("coremltools")
from targets.coreml.interpreter.mil_packages import built, mb

FAMILIES = ["coreml-ane-m1", "coreml-ane-m2", "coreml-ane-m3"]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """relu in fp16, sin in fp16, a sine in fp32 behind a cast, and a product that ends it."""
    import coremltools as ct

    half = ct.converters.mil.mil.types.fp16
    kernel = np.ones((4, 4, 3, 3), np.float16)

    @mb.program(input_specs=[mb.TensorSpec(shape=(1, 4, 8, 8), dtype=half)], opset_version=ct.target.iOS17)
    def program(x: Any) -> Any:
        a = mb.relu(x=mb.conv(x=x, weight=kernel, name="conv"), name="relu")
        b = mb.sin(x=a, name="sin")
        wide = mb.sin(x=mb.cast(x=b, dtype="fp32", name="widened"), name="wide_sin")
        return mb.mul(x=mb.cast(x=wide, dtype="fp16", name="narrowed"), y=np.float16(2), name="mul")

    return built(program, tmp_path_factory.mktemp("mil") / "p.mlpackage")


@pytest.fixture(scope="module")
def found(package: Path) -> OpsReport:
    return report(package, ["coreml", *FAMILIES])


def status(found: OpsReport, target: str) -> dict[str, str]:
    return {node: row.status for row in found.rows if row.target == target for node in row.nodes}


def test_every_operation_by_chip_family(found: OpsReport) -> None:
    known = {"conv": "supported", "relu": "supported", "mul": "supported"}
    unknown = {"widened": "unknown", "narrowed": "unknown"}
    for target, sine in zip(FAMILIES, ("unsupported", "unsupported", "supported"), strict=True):
        assert status(found, target) == {**known, **unknown, "sin": sine, "wide_sin": "unsupported"}
    assert set(status(found, "coreml").values()) == {"supported"}
    (wide,) = [row for row in found.rows if row.target == FAMILIES[2] and row.nodes == ("wide_sin",)]
    assert wide.reason == "input 0 is float32; allowed: float16"
    assert wide.operator == "sin"
    assert all(row.source for row in found.rows)


def test_the_estimate_says_that_it_is_one(found: OpsReport) -> None:
    m1, _, m3 = found.placements
    assert m1.places == ("unit", "unit", "elsewhere", "unknown", "elsewhere", "unknown", "unit")
    assert m3.places == ("unit", "unit", "unit", "unknown", "elsewhere", "unknown", "unit")
    assert (m1.switches, m3.switches) == ((2, 4), (2, 2))
    assert {placement.label for placement in found.placements} == {"static estimate"}
    assert "3 of 7 operators on the Neural Engine, 2 elsewhere, 2 unknown; switches: 2 to 4" in m1.sentence()
    assert found.to_json()["placements"][0]["source"].startswith("sbryngelson/ane-guide")


@pytest.mark.parametrize("seed", range(20))
def test_switches_are_those_of_the_best_and_the_worst_choice(seed: int) -> None:
    places: Any = random.Random(seed).choices(["unit", "elsewhere", "unknown"], k=7)
    options = [["unit", "elsewhere"] if place == "unknown" else [place] for place in places]
    counts = [sum(a != b for a, b in pairwise(choice)) for choice in product(*options)]
    assert switches(places) == (min(counts), max(counts))


def test_switches_of_nothing() -> None:
    assert switches([]) == (0, 0)


def test_what_is_no_package(tmp_path: Path) -> None:
    (tmp_path / "p.mlpackage").mkdir()
    with pytest.raises(UsageError, match=r"is no \.mlpackage"):
        report(tmp_path / "p.mlpackage", ["coreml"])


def test_without_coremltools_it_says_what_to_install(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise MissingToolkit("needs coremltools: pip install 'edgesam-deploy[coreml]'")

    monkeypatch.setattr("edgesam_deploy.targets.coreml.interpreter.package.schema", missing)
    with pytest.raises(MissingToolkit, match=r"edgesam-deploy\[coreml\]"):
        report(package, ["coreml"])


# ---------------------------------------------------------------------------------------------------- compute plans


def operation(operator: str, output: str, device: str | None, cost: float | None = 0.1) -> dict[str, Any]:
    return {"function": "main", "operator": operator, "output": output, "device": device, "cost": cost}


OPERATIONS = [
    operation("const", "kernel", None, None),
    operation("conv", "conv", "ANE", 0.6),
    operation("relu", "relu", "ANE"),
    operation("sin", "sin", "ANE"),
    operation("cast", "widened", "CPU"),
    operation("sin", "wide_sin", "CPU"),
    operation("mul", "another_name", "GPU", 0.0),
]


def plan(folder: Path, **changed: Any) -> Path:
    content = {"schema": 1, "machine": "Mac14,2", "packages": {"p.mlpackage": OPERATIONS}, **changed}
    (folder / "plan.json").write_text(json.dumps(content))
    return folder / "plan.json"


def test_a_plan_by_device_and_where_it_differs(found: OpsReport, tmp_path: Path) -> None:
    answer = plan_report(read_plan(plan(tmp_path)), "p.mlpackage", found.placements)
    assert [(row.device, row.operator, row.count) for row in answer.rows] == [
        ("ANE", "conv", 1), ("ANE", "relu", 1), ("ANE", "sin", 1),
        ("GPU", "mul", 1), ("CPU", "cast", 1), ("CPU", "sin", 1),
    ]  # fmt: skip
    assert answer.shares == {"ANE": 3 / 6, "GPU": 1 / 6, "CPU": 2 / 6}
    assert answer.costs == pytest.approx({"ANE": 0.8, "GPU": 0.0, "CPU": 0.2})
    assert (answer.switches, answer.unmatched) == (2, ("another_name",))
    differing = [(found.target, found.operation, found.device) for found in answer.disagreements]
    assert differing == [("coreml-ane-m1", "sin", "ANE"), ("coreml-ane-m2", "sin", "ANE")]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"schema": 2}, "schema: "),
        ({"machine": ""}, "machine: "),
        ({"packages": {}}, "packages: "),
        ({"packages": {"p": [{**OPERATIONS[1], "device": "NPU"}]}}, r"packages\.p\.0\.device: .*'ANE', 'GPU' or 'CPU'"),
        ({"packages": {"p": [{**OPERATIONS[1], "cost": -1}]}}, r"packages\.p\.0\.cost: "),
        ({"more": 1}, "more: Extra inputs"),
    ],
)
def test_a_plan_of_another_form_is_refused(tmp_path: Path, changed: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        read_plan(plan(tmp_path, **changed))


def test_a_plan_that_is_no_json_or_not_there(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(UsageError, match="the file: Invalid JSON"):
        read_plan(tmp_path / "plan.json")
    with pytest.raises(UsageError, match="No such file"):
        read_plan(tmp_path / "none.json")


def test_a_plan_of_something_else(found: OpsReport, tmp_path: Path) -> None:
    read = read_plan(plan(tmp_path))
    with pytest.raises(UsageError, match=r"it speaks of p\.mlpackage, not of q\.mlpackage"):
        plan_report(read, "q.mlpackage", found.placements)
    empty = read_plan(plan(tmp_path, packages={"p.mlpackage": OPERATIONS[:1]}))
    with pytest.raises(UsageError, match="names no device"):
        plan_report(empty, "p.mlpackage", found.placements)
