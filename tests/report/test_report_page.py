"""The report as one HTML file: complete, honest about gaps, and shown by a browser without a word in its console."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from edgesam_deploy.bench import Settings, measure
from edgesam_deploy.bundle import open_bundle
from edgesam_deploy.report.gaps import not_verified
from edgesam_deploy.report.page import report_page
from edgesam_deploy.report.pictures import MASK, Panels, _jpeg, parity_panels
from edgesam_deploy.report.plots import bars, boxes

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
VOID = {"meta", "link", "img", "br", "line", "rect"}


class Tags(HTMLParser):
    """Every element and its attributes; raises where they do not nest."""

    def __init__(self, page):
        super().__init__()
        self.open, self.found, self.words = [], [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)


@pytest.fixture(scope="module")
def measured(bundles, tmp_path_factory):
    """Two bundles of the tiny model, timed in one run, the second with a name that HTML would take for a tag."""
    folder = tmp_path_factory.mktemp("report")
    paths = [shutil.copytree(bundles(points=n).path, folder / name) for n, name in ((4, "four"), (6, "<six> & more"))]
    settings = Settings(runs=3, warmup=0, points=(1, 5), prompts=(2,), threads=1)
    found = measure(paths, settings)
    for path, row in zip(paths, found["bundles"], strict=True):
        open_bundle(path).write_json("bench.json", {**found, "bundles": [row], "ratios": []})
    return [open_bundle(path) for path in paths]


@pytest.fixture(scope="module")
def page(measured):
    return report_page(measured, [parity_panels(bundle) for bundle in measured])


def test_everything_is_in_it(page, measured):
    text = " ".join(Tags(page).words)
    for bundle in measured:
        manifest = bundle.manifest
        assert str(bundle.path) in text
        assert manifest["manifest_sha256"] in text
        for part in manifest["parts"].values():
            for step in part["passes"]:
                assert step["name"] in text
        for stage in bundle.read_json("bench.json")["bundles"][0]["stages"]:
            assert stage["stage"] in text
            assert f"{stage['p50']:.2f}" in text
        for gap in not_verified(bundle):
            assert gap in text
        parity = bundle.read_json("parity.json")
        assert parity["executed"] in text
        assert f"{parity['summary']['mask_iou']:.6f}" in text
    for runtime in ("qnn", "onnx", "tensorrt10", "rknn"):
        assert re.search(rf"\b{runtime}", text), runtime


def test_it_is_one_file_and_needs_no_network(page):
    tags = Tags(page).found
    links = [value for _, attrs in tags for key, value in attrs.items() if key in ("src", "href", "srcset", "data")]
    assert links
    assert all(link.startswith(("#", "data:")) for link in links)
    assert "@import" not in page
    assert "url(" not in page
    targets = {attrs["id"] for _, attrs in tags if "id" in attrs}
    assert {link[1:] for link in links if link.startswith("#")} <= targets


def test_the_pictures_show_the_masks(measured, bundles):
    panels = parity_panels(measured[0])
    assert isinstance(panels, Panels)
    assert list(panels.files)[:2] == ["reference", "artifact"]
    assert float(panels.said.rpartition(" ")[2]) > 0.99
    picture = np.full((40, 60, 3), 200, np.uint8)
    mask = np.zeros((40, 60), bool)
    mask[:, 30:] = True

    shown = np.asarray(Image.open(io.BytesIO(_jpeg(picture, [(mask, MASK)]))), float)
    assert np.abs(shown[20, 10] - 200).max() < 8
    assert np.abs(shown[20, 50] - (0.35 * 200 + 0.65 * np.array(MASK))).max() < 8


def test_why_there_are_no_pictures(family, measured, tmp_path):
    copy = shutil.copytree(measured[0].path, tmp_path / "copy")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["weights"] = {**manifest["weights"], "source": "checkpoint", "checkpoint": "mine.pth"}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert parity_panels(open_bundle(copy)) == "the reference needs the weights: --checkpoint mine.pth"
    manifest["target"] = "qnn"
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert "takes minutes" in parity_panels(open_bundle(copy))
    _, semantic = family("cwsam")
    panels = parity_panels(semantic)
    assert isinstance(panels, Panels)
    assert "of all pixels agree" in panels.said


def test_gaps_of_a_bare_bundle(measured, tmp_path):
    copy = shutil.copytree(measured[0].path, tmp_path / "copy")
    (copy / "bench.json").unlink()
    (copy / "parity.json").unlink()
    gaps = not_verified(open_bundle(copy))
    assert "Parity with PyTorch was not measured." in gaps
    assert "Latency was not measured." in gaps
    assert any(gap.startswith("Passes whose effect was not proved: ") for gap in gaps)  # built with proof off
    assert any(gap.startswith("The weights are random") for gap in gaps)
    text = " ".join(Tags(report_page([open_bundle(copy)], ["none"])).words)
    assert "edgesam-deploy check" in text
    assert "edgesam-deploy bench" in text


def test_gaps_that_the_files_tell(measured, tmp_path):
    copy = shutil.copytree(measured[0].path, tmp_path / "copy")
    bundle = open_bundle(copy)
    parity = {**bundle.read_json("parity.json"), "executed": "emulated: an interpreter", "verdict": "fail"}
    bundle.write_json("parity.json", {**parity, "reasons": ["too far"]})
    bench = bundle.read_json("bench.json")
    bench["bundles"][0]["executed"] = "emulated: an interpreter"
    bundle.write_json("bench.json", {**bench, "complete": False, "incomplete_because": "the cable"})
    gaps = not_verified(bundle)
    assert "Parity with PyTorch: fail (too far)." in gaps
    assert "The benchmark did not finish: the cable." in gaps
    assert sum("stand-in for the device" in gap for gap in gaps) == 2
    assert "Left out of the benchmark: 5 points: the artifact has 4 slots." in gaps


def test_plots_draw_what_they_are_given():
    root = ElementTree.fromstring(boxes({"a < b": {"x": [1.0, 2.0, 4.0], "y": [8.0]}, "c": {"x": [0.5, 0.7]}}))
    assert [rect.get("width") for rect in root.iter("rect")].count("2.0") == 1  # a single time has no spread
    places = [float(line.get("x1")) for line in root.iter("line") if line.get("stroke-width") == "2"]
    assert places[1] > places[0] > places[2]  # medians 8, 2 and 0.6
    assert [t.text for t in root.iter("text") if t.get("text-anchor") == "end"] == ["a < b", "c"]
    widths = [float(rect.get("width")) for rect in ElementTree.fromstring(bars({"p": 1.0, "q": 4.0}, "s")).iter("rect")]
    assert widths[1] == pytest.approx(4 * widths[0], abs=0.2)
    assert boxes({}) == bars({}, "s") == boxes({"s": {"x": []}}) == ""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
def test_in_a_browser(page, tmp_path):
    """Rendered whole, with and without JavaScript, and its console stays empty. Keeps the screenshot in tmp_path."""
    common = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr",
        "--hide-scrollbars", "--window-size=1280,3600",
    ]  # fmt: skip
    blocked = '<meta http-equiv="Content-Security-Policy" content="script-src \'none\'">'
    shots = {}
    for name, text in (("with", page), ("without", page.replace("<head>", f"<head>{blocked}"))):
        file, shot = tmp_path / f"{name}.html", tmp_path / f"{name}.png"
        file.write_text(text)
        words = [*common, f"--user-data-dir={tmp_path / name}", f"--screenshot={shot}", file.as_uri()]
        done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=300)
        assert ("CONSOLE" in done.stderr) == (name == "without"), done.stderr  # which says that a script was blocked
        shots[name] = np.asarray(Image.open(shot).convert("RGB"), int)
    assert np.abs(shots["with"] - shots["without"]).mean() < 0.5  # all that is to be seen is there without scripts
    assert len(np.unique(shots["with"].reshape(-1, 3), axis=0)) > 1000  # the pictures are drawn
