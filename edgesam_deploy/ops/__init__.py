"""The operator-support report: what in a file the targets' runtimes run, offline, from their rule tables.

    report(path, ["onnx", "qnn"])   any .onnx, .tflite or .mlpackage; one row per operator, target and verdict
    parts_report(target, files)     the same for every part of a bundle: the content of its ops.json
    save_subgraphs(path, found, folder)     what does not run, cut out of an .onnx file node by node
    plan_report(read_plan(json), file, ..)  a compute plan that Core ML made on a Mac, against the static estimate

Targets are the names of the rule tables (targets/rules: REPORTS): those that can be built for, and more.
"""

from edgesam_deploy.ops.compute_plan import ComputePlan, PlanReport, plan_report, read_plan
from edgesam_deploy.ops.judge import ALL, READERS, FailOn, OpsReport, OpsRow, debris, parts_report, report
from edgesam_deploy.ops.onnx_graph import Graph
from edgesam_deploy.ops.page import html_page
from edgesam_deploy.ops.placement import Placement
from edgesam_deploy.ops.show import render, render_plan
from edgesam_deploy.ops.subgraph import Saved, save_subgraphs

__all__ = [
    "ALL",
    "READERS",
    "ComputePlan",
    "FailOn",
    "Graph",
    "OpsReport",
    "OpsRow",
    "Placement",
    "PlanReport",
    "Saved",
    "debris",
    "html_page",
    "parts_report",
    "plan_report",
    "read_plan",
    "render",
    "render_plan",
    "report",
    "save_subgraphs",
]
