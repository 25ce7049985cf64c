"""The demo's page in a browser: what a visitor does, and that nothing leaves the machine."""

from __future__ import annotations

import importlib.util
import socket
from urllib.parse import urlsplit

import numpy as np
import pytest
from chromium import Chromium, find_chromium
from PIL import Image
from scenes import picture

from edgesam_deploy.demo.session import Limits, shown_artifacts
from edgesam_deploy.model.predictor import SamPredictor
from edgesam_deploy.runtime import open_artifact

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_chromium() is None, reason="chromium is not installed (Debian: apt install chromium)"),
    pytest.mark.skipif(
        importlib.util.find_spec("gradio") is None,
        reason="gradio is not installed: pip install -c constraints-demo.txt 'edgesam-deploy[demo]'",
    ),
]
SHOWN = "document.querySelector('#picture0 img') && document.querySelector('#picture0 img').naturalWidth"
SCORES = "/\\d\\.\\d{3}/.test(document.querySelector('#scores').innerText)"
SOURCE = "document.querySelector('#picture0 img').src"


@pytest.fixture(scope="module")
def served(bundles, tiny_model):
    from edgesam_deploy.demo.page import Page

    shown = shown_artifacts({"bundle": open_artifact(bundles().path, threads=1), "PyTorch": SamPredictor(tiny_model)})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app, url = Page(shown, Limits(), "a remark").serve("127.0.0.1", port)
    yield url
    app.close()


@pytest.fixture
def scene_file(tmp_path):
    Image.fromarray(picture(240, 320, 3)).save(tmp_path / "scene.png")
    return tmp_path / "scene.png"


def visit(browser, url, path):
    browser.open(url)
    browser.wait("!!document.querySelector('input[type=file]')")
    browser.upload("input[type=file]", path)
    browser.wait(SHOWN)


def test_a_click_shows_a_mask(served, scene_file, tmp_path):
    with Chromium() as browser:
        visit(browser, served, scene_file)
        before = browser.value(SOURCE)
        browser.click("#picture0 img", 0.4, 0.6)
        browser.wait(SCORES)
        browser.wait(f"{SOURCE} != {before!r}")
        browser.wait("document.querySelector('#difference').innerText.includes('IoU')")
        browser.wait("document.querySelectorAll('#picture2 img').length")
        browser.screenshot(tmp_path / "page.png")
        assert np.asarray(Image.open(tmp_path / "page.png")).std() > 10
        browser.click("#png")
        browser.wait("document.querySelector('#file').innerText.includes('mask')")
        browser.click("#clear")
        browser.wait(f"!({SCORES})")
        hosts = {urlsplit(url).hostname for url in browser.requests if url.startswith(("http", "ws"))}
        assert hosts == {"127.0.0.1"}


def test_a_broken_upload_is_said_and_survived(served, scene_file, tmp_path):
    (tmp_path / "broken.png").write_bytes(scene_file.read_bytes()[:200])
    with Chromium() as browser:
        browser.open(served)
        browser.wait("!!document.querySelector('input[type=file]')")
        browser.upload("input[type=file]", tmp_path / "broken.png")
        browser.wait("/truncated|cannot decode|not a picture/.test(document.body.innerText)")
        browser.upload("input[type=file]", scene_file)
        browser.wait(SHOWN)
        browser.click("#picture0 img", 0.4, 0.6)
        browser.wait(SCORES)


def test_two_visitors_at_once(served, scene_file, tmp_path):
    Image.fromarray(picture(200, 200, 8)).save(tmp_path / "other.png")
    with Chromium() as one, Chromium() as two:
        visit(one, served, scene_file)
        visit(two, served, tmp_path / "other.png")
        for browser in (one, two):
            browser.click("#picture0 img")
        for browser in (one, two):
            browser.wait(SCORES)
        assert (one.value(SHOWN), two.value(SHOWN)) == (320, 200)
