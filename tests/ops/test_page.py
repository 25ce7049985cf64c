"""The HTML page: well formed, whole in one file, and nothing of a model's names becomes markup."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import onnx
from onnx import parser

from edgesam_deploy.ops import html_page, report

VOID = {"meta"}
EVIL = "<script>alert(1)</script>\"'&"


class Checker(HTMLParser):
    """Every element closed in order; the text of table cells; addresses that the page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [
            value for name, value in attrs if name in ("src", "href") and value and not value.startswith("#")
        ]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "td" in self.open:
            self.cells[-1] += data


def page_of(tmp_path: Path, name: str = "node") -> tuple[str, Checker]:
    model = parser.parse_model("""<ir_version: 10, opset_import: ["": 11, "acme": 1]>
    net (float[2] x) => (float[2] y) { a = Sin (x)  b = acme.Magic (a)  y = Erf (x) }""")
    for index, node in enumerate(model.graph.node):
        node.name = f"{name}{index}"
    onnx.save(model, tmp_path / "net.onnx")
    text = html_page([report(tmp_path / "net.onnx", ["onnx", "qnn", "tv"])], remark=name)
    checker = Checker()
    checker.feed(text)
    checker.close()
    assert checker.open == []
    return text, checker


def test_one_file_with_everything_in_it(tmp_path: Path) -> None:
    text, checker = page_of(tmp_path)
    assert checker.loads == []
    for word in ("net.onnx", "Sin", "acme::Magic", "hoist_positional_encoding", "unsupported", "unknown", "node0"):
        assert word in text
    assert "refused by the compiler" in checker.cells
    assert "no rule for this operator" in checker.cells


def test_names_are_no_markup(tmp_path: Path) -> None:
    text, checker = page_of(tmp_path, EVIL)
    assert text.count("<script>") == 1, "the page's own"
    assert f"{EVIL}0" in checker.cells


def test_many_nodes_fold(tmp_path: Path) -> None:
    body = "  ".join(f"v{i} = Sin (x)" for i in range(9)) + "  y = Sin (x)"
    onnx.save(
        parser.parse_model(f'<ir_version: 10, opset_import: ["": 17]> net (float[2] x) => (float[2] y) {{ {body} }}'),
        tmp_path / "net.onnx",
    )
    text = html_page([report(tmp_path / "net.onnx", ["onnx"])])
    assert "<details><summary>v0, v1 and 8 more</summary>" in text
