"""bench from end to end: several bundles, the files it writes, and the exit code of a regression."""

from __future__ import annotations

import json
import shutil

import pytest
from command_line import DONE, ERROR, USAGE, edgesam_deploy

REGRESSED = 6
QUICK = ["--runs", "2", "--warmup", "0", "--points", "1", "--prompts", "0", "--no-cold", "--threads", "1"]


@pytest.fixture
def pair(bundles, tmp_path):
    return [shutil.copytree(bundles(points=n).path, tmp_path / f"bundle {n}") for n in (2, 4)]


def test_two_bundles_and_every_file(pair, tmp_path):
    files = {
        flag: tmp_path / f"result.{flag[2:]}" for flag in ("--out", "--markdown", "--pytest-json", "--google-json")
    }
    options = [word for pair_ in files.items() for word in map(str, pair_)]
    found = edgesam_deploy("bench", *pair, *QUICK, *options)
    assert found.code == DONE
    assert "ratios to" in found.out
    assert "again (A/A)" in found.out
    whole = json.loads(files["--out"].read_text())
    assert [row["name"] for row in whole["bundles"]] == [str(path) for path in pair]
    assert files["--markdown"].read_text().count("## ") == 3
    assert json.loads(files["--pytest-json"].read_text())["benchmarks"]
    assert json.loads(files["--google-json"].read_text())["benchmarks"]
    for path, row in zip(pair, whole["bundles"], strict=True):
        assert json.loads((path / "bench.json").read_text()) == {**whole, "bundles": [row], "ratios": []}
        assert edgesam_deploy("verify", path).code == DONE


def test_a_regression_ends_with_six(pair, tmp_path):
    one = pair[0]
    assert edgesam_deploy("bench", one, *QUICK).code == DONE
    old = json.loads((one / "bench.json").read_text())
    for factor, code in ((1e-3, REGRESSED), (1e9, DONE)):
        for row in old["bundles"][0]["stages"]:
            row["p50"] = row["p50"] * factor
        (tmp_path / "old.json").write_text(json.dumps(old))
        found = edgesam_deploy("bench", one, *QUICK, "--compare", tmp_path / "old.json", "--fail-on", "10%", "--json")
        assert found.code == code
        json.loads(found.out)  # the figures are alone on stdout
        assert "medians against the older result" in found.err
        assert ("stages are slower than allowed" in found.err) == (code == REGRESSED)
    without = edgesam_deploy("bench", one, *QUICK, "--compare", tmp_path / "old.json")
    assert without.code == DONE
    old["bundles"][0]["stages"].append({**old["bundles"][0]["stages"][0], "stage": "decoder, 9 points"})
    (tmp_path / "old.json").write_text(json.dumps(old))
    lacking = edgesam_deploy("bench", one, *QUICK, "--compare", tmp_path / "old.json", "--fail-on", "10%")
    assert lacking.code == ERROR
    assert "decoder, 9 points was not measured now" in " ".join(lacking.err.split())


def test_the_older_figures_of_the_bundle_itself(pair):
    """Read before they are replaced."""
    assert edgesam_deploy("bench", pair[0], *QUICK).code == DONE
    old = json.loads((pair[0] / "bench.json").read_text())
    for row in old["bundles"][0]["stages"]:
        row["p50"] = 1e9
    (pair[0] / "bench.json").write_text(json.dumps(old))
    found = edgesam_deploy("bench", pair[0], *QUICK, "--compare", pair[0], "--fail-on", "1%")
    assert (found.code, "1000000000.00" in found.out) == (DONE, True)
    assert json.loads((pair[0] / "bench.json").read_text()) != old


def test_a_file_that_cannot_be_written(pair, tmp_path):
    found = edgesam_deploy("bench", pair[0], *QUICK, "--markdown", tmp_path / "none" / "x.md")
    assert found.code == USAGE
    assert "cannot write" in found.err
