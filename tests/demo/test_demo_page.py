"""The demo's page in a browser: what a visitor does, and that nothing leaves the machine."""

from __future__ import annotations

import copy
import importlib.util
import io
import resource
import socket
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image
from scenes import picture

from benchmarks.chromium import Chromium, find_chromium
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


def test_dragging_draws_a_box(served, scene_file, tmp_path):
    """The box is where the mouse went, wherever the page put the picture, and the drag's end is no click."""
    pixels = "document.querySelector('#picture0 img').naturalWidth"
    with Chromium() as browser:
        visit(browser, served, scene_file)
        browser.drag("#picture0 img", 0.8, 0.75, 0.25, 0.25, let_go=False)
        browser.wait("!!document.querySelector('#band')")
        browser.screenshot(tmp_path / "dragging.png")
        before = browser.value(SOURCE)
        browser.drag("#picture0 img", 0.8, 0.75, 0.25, 0.25)
        browser.wait(SCORES)
        browser.wait(f"{SOURCE} != {before!r} && {pixels}")
        assert not browser.value("!!document.querySelector('#band')")
        browser.screenshot(tmp_path / "box.png")
        x0, y0, x1, y1 = yellow(browser.fetch(browser.value(SOURCE)))
        wanted = 0.25 * 320, 0.25 * 240, 0.8 * 320, 0.75 * 240
        assert np.abs(np.subtract((x0, y0, x1, y1), wanted)).max() < 6


def yellow(jpeg):
    """Where the box was drawn in a picture: x0, y0, x1, y1."""
    red, green, blue = np.asarray(Image.open(io.BytesIO(jpeg))).astype(int).transpose(2, 0, 1)
    down, across = np.nonzero((red > 200) & (green > 160) & (blue < 90))
    return across.min(), down.min(), across.max(), down.max()


def test_a_picture_of_12000_by_12000_is_refused_with_its_size(served, scene_file, tmp_path):
    Image.new("1", (12_000, 12_000)).save(tmp_path / "vast.png")
    with Chromium() as browser:
        visit(browser, served, scene_file)
        before = peak_memory()
        browser.upload("input[type=file]", tmp_path / "vast.png")
        browser.wait("/12000 x 12000 pixels; at most 40 million/.test(document.body.innerText)")
        assert peak_memory() - before < 100 << 20  # decoded it has 144 MB, as RGB 432 MB
        assert browser.value(SHOWN) == 320  # what was there is still there


def peak_memory():
    """Bytes of memory that this process, which serves the page, ever had."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


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


def test_a_state_that_was_lost_is_made_anew(bundles, scene_file):
    """gradio may call before its page has loaded, or forget a visitor: the handlers begin again."""
    from edgesam_deploy.demo.page import Page

    page = Page(shown_artifacts({"bundle": open_artifact(bundles().path, threads=1)}), Limits())
    states = [block for block in page.build().blocks.values() if getattr(block, "stateful", False)]
    assert [copy.deepcopy(state.value) for state in states] == [None]
    session, *_ = page._then(lambda s, path: s.load(path))(None, scene_file)
    assert session.picture.shape == (240, 320, 3)
    with pytest.raises(page.gradio.Error, match="no single mask yet"):
        page._saved("mask.png", lambda s: s.as_png())(None)


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
