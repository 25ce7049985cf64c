"""The comparison of the QNN table with the compiler counts what it says it counts."""

from __future__ import annotations

import onnx
from onnx import parser

from benchmarks.qnn_rules import compare, markdown, totals
from edgesam_deploy.targets.rules import load_table
from edgesam_deploy.targets.rules.qnn_compiler import PROVIDER, Assignment

TEXT = """<ir_version: 9, opset_import: ["": 17, "acme": 1]>
net (float[2,3] x) => (float[2,3] y) {
  a = Sin (x)  b = Erf (a)  c = Cos (b)  d = NonZero (c)  e = acme.Magic (c)  f = Relu (c)  y = Neg (f)
}"""
NPU, CPU = PROVIDER, "CPUExecutionProvider"


def outcome(tmp_path, answer):
    onnx.save(parser.parse_model(TEXT), tmp_path / "net.onnx")
    return compare("net", tmp_path / "net.onnx", answer, load_table("qnn_htp"))


def test_each_kind_is_counted(tmp_path):
    nodes = {
        "a": ("Sin", NPU), "b": ("Erf", CPU), "c": ("Cos", CPU), "d": ("NonZero", NPU), "e": ("Magic", CPU),
        "f": ("Relu", NPU),
    }  # fmt: skip
    found = outcome(tmp_path, Assignment(nodes))
    assert (found.right_on, found.right_off, found.missed, found.false_alarms) == (2, 1, 1, 1)
    assert (found.unknown, found.unasked) == (1, 1)
    assert found.wrong == ("Cos does not run: 1", "NonZero runs: 1")
    sums = totals([found, found])
    assert (sums["precision"], sums["recall"], sums["accuracy"]) == (0.5, 0.5, 0.6)


def test_a_crash_is_not_counted_as_nodes(tmp_path):
    found = outcome(tmp_path, Assignment({}, refused="it crashed", crashed=True))
    assert (found.crashed, found.crash_predicted, found.unasked) == (True, False, 7)
    assert totals([found])["precision"] is None


def test_the_report_names_what_went_wrong(tmp_path):
    found = outcome(tmp_path, Assignment({"c": ("Cos", CPU)}))
    content = {
        "date": "today", "machine": "m", "versions": {"onnx": "1"}, "table": "t", "totals": totals([found]),
        "graphs": [vars(found)],
    }  # fmt: skip
    text = markdown(content)
    assert "Cos does not run: 1" in text
    assert "precision not defined, recall 0.0 %" in text
