"""What the report finds in a reference-style export has a remedy, and optimize with that target leaves none of it."""

from __future__ import annotations

import pytest

from benchmarks.reference_export import export_reference
from edgesam_deploy.model.registry import load
from edgesam_deploy.ops import report
from edgesam_deploy.optimizer import optimize

# what no rewrite of a file can do, by target: positions are encoded by the host, which the model must be built for
LEFT = {"tv": {"Sin", "Cos"}, "generic": {"Sin", "Cos"}}
TARGETS = ("qnn", "onnx", "tv", "mediatek", "rknn", "generic")
MODEL_LEVEL = {"hoist_positional_encoding"}


@pytest.fixture(scope="module")
def decoder(tiny_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("reference") / "decoder.onnx"
    return export_reference(tiny_model, "decoder", path, check=False)


def remedied(path, target):
    rows = [row for row in report(path, [target]).rows if row.status == "unsupported"]
    assert rows or target == "onnx", "the reference's file has what this target does not run"
    for row in rows:
        assert row.fixed_by, f"{target}: {row.operator}, {row.reason}"


@pytest.mark.parametrize("target", TARGETS)
def test_each_unsupported_row_names_its_pass_and_optimize_leaves_none(decoder, target):
    remedied(decoder, target)
    out = decoder.with_name(f"{target}.onnx")
    optimize(decoder, out, target, points=5, proof="fast")
    left = report(out, [target]).failures()
    assert {row.operator for row in left} == LEFT.get(target, set())
    assert {row.fixed_by for row in left} <= MODEL_LEVEL


@pytest.mark.slow
@pytest.mark.parametrize("part", ["decoder", "encoder"])
def test_at_the_real_size(part, tmp_path):
    path = export_reference(load("edge_sam", seed=0), part, tmp_path / f"{part}.onnx")
    if part == "decoder":
        assert 1030 <= sum(row.count for row in report(path, ["qnn"]).rows) <= 1040
        remedied(path, "qnn")
    out = tmp_path / "optimized.onnx"
    optimize(path, out, "qnn", points=5 if part == "decoder" else None)
    assert report(out, ["qnn"]).failures("partial") == ()
