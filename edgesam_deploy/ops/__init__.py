"""The operator-support report: what in a file the targets' runtimes run, offline, from their rule tables.

    report(path, ["onnx", "qnn"])   any .onnx file, its weights unread; one row per operator, target and verdict
    parts_report(target, files)     the same for every part of a bundle: the content of its ops.json
    save_subgraphs(path, found, folder)     what does not run, cut out of the file node by node

Targets are the names of the rule tables (targets/rules: REPORTS): those that can be built for, and more.
"""

from edgesam_deploy.ops.judge import ALL, READERS, FailOn, OpsReport, OpsRow, debris, parts_report, report
from edgesam_deploy.ops.onnx_graph import Graph
from edgesam_deploy.ops.page import html_page
from edgesam_deploy.ops.show import render
from edgesam_deploy.ops.subgraph import Saved, save_subgraphs

__all__ = [
    "ALL",
    "READERS",
    "FailOn",
    "Graph",
    "OpsReport",
    "OpsRow",
    "Saved",
    "debris",
    "html_page",
    "parts_report",
    "render",
    "report",
    "save_subgraphs",
]
