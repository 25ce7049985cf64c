"""Plug-ins: the example is installed as a package and used; broken ones are told and harm nobody."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint

import pytest
from command_line import COFFEE, DONE, ERROR, USAGE, edgesam_deploy
from conftest import TINY

from edgesam_deploy import detectors, plugins, targets
from edgesam_deploy.detectors import make_detector
from edgesam_deploy.errors import EdgeSamDeployError
from edgesam_deploy.ops import report
from edgesam_deploy.targets import target_class, target_names
from edgesam_deploy.targets.rules import report_names, report_table


@pytest.fixture
def declared(monkeypatch):
    """``declared(group, name, value)``: an entry point that some package is said to have."""

    def declare(group, name, value):
        entries = {**plugins.plugins(group), name: EntryPoint(name, value, group)}
        real = plugins.plugins
        monkeypatch.setattr(plugins, "plugins", lambda asked: entries if asked == group else real(asked))

    return declare


def test_the_example_is_found_and_used(installed_plugin, bundles, tmp_path):
    assert target_names()[-1] == "example-fp32"
    assert report_names()[-1] == "example-npu"
    listed = json.loads(edgesam_deploy("targets", "--json").out)
    assert listed["example-fp32"]["missing"] == []
    assert "remark" in listed["example-fp32"]["options"]
    decoder = bundles().part("mask_decoder")
    verdicts = {row.operator: row.status for row in report(decoder, ["example-npu"]).rows}
    assert (verdicts["Softmax"], verdicts["MatMul"]) == ("partial", "unknown")
    out = tmp_path / "centre"
    found = edgesam_deploy("run", bundles().path, COFFEE, "--boxes-from", "centre", "-o", out, "--json")
    assert (found.code, json.loads(found.out)["prompts"]) == (DONE, 1)


def test_the_examples_target_builds_and_is_measured(installed_plugin, tmp_path):
    from scenes import picture

    from edgesam_deploy.builder import build
    from edgesam_deploy.model.registry import load
    from edgesam_deploy.runtime import open_artifact

    model = load("edge_sam", seed=0, config=TINY)
    pictures = {"scene": picture(150, 225, 10)}
    bundle = build(model, "example-fp32", tmp_path / "out", proof="off", pictures=pictures, remark="hello")
    assert bundle.manifest["options"]["remark"] == "hello"
    assert bundle.part("mask_decoder").name == "example_decoder.onnx"
    assert bundle.read_json("parity.json")["verdict"] == "pass"
    assert open_artifact(tmp_path / "out").has_decoder


def test_a_broken_plugin_is_told_and_harms_nobody(declared):
    declared(plugins.TARGETS, "broken", "json:no_such_name")
    with pytest.raises(EdgeSamDeployError, match=r"the plug-in broken .* cannot be loaded: AttributeError"):
        target_class("broken")
    found = edgesam_deploy("targets")
    assert found.code == DONE
    assert "cannot be loaded" in " ".join(found.out.replace("│", " ").split())
    assert edgesam_deploy("doctor", "--quick").code == DONE
    assert edgesam_deploy("build", "edge_sam", "--target", "broken", "--dry-run").code == ERROR


def test_what_is_no_target_detector_or_table_is_refused(declared):
    declared(plugins.TARGETS, "fake", "json:dumps")
    with pytest.raises(EdgeSamDeployError, match="is not a Target"):
        target_class("fake")
    declared(plugins.DETECTORS, "fake", "sys:path")
    with pytest.raises(EdgeSamDeployError, match="not a detector"):
        make_detector("fake")
    declared(plugins.RULES, "fake-npu", "json:dumps")
    with pytest.raises(EdgeSamDeployError, match="not a rule table"):
        report_table("fake-npu")


def test_own_names_cannot_be_taken(declared):
    declared(plugins.TARGETS, "onnx", "json:dumps")
    assert target_class("onnx").name == "onnx"
    assert target_names() == list(targets.TARGETS)
    declared(plugins.DETECTORS, "regions", "json:dumps")
    assert isinstance(make_detector("regions"), detectors.Regions)
    assert edgesam_deploy("ops", COFFEE, "--target", "no-such").code == USAGE
