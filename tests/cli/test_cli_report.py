"""report: the command around the page."""

from __future__ import annotations

import shutil

from command_line import DONE, ERROR, USAGE, edgesam_deploy


def test_where_the_page_goes(bundles, tmp_path):
    paths = [shutil.copytree(bundles(points=n).path, tmp_path / f"{n}") for n in (2, 4)]
    found = edgesam_deploy("report", *paths)
    assert found.code == DONE
    assert found.out.strip() == str(paths[0] / "report.html")
    page = (paths[0] / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 6  # the reference, the artifact and their difference, of each
    assert edgesam_deploy("verify", paths[0]).code == DONE
    assert not (paths[1] / "report.html").exists()
    elsewhere = tmp_path / "x.html"
    assert edgesam_deploy("report", paths[1], "-o", elsewhere, "--no-pictures").code == DONE
    assert "they were not asked for" in elsewhere.read_text()


def test_where_it_cannot_go(bundles, tmp_path):
    refused = edgesam_deploy("report", bundles().path, "-o", tmp_path / "none" / "x.html", "--no-pictures")
    assert (refused.code, "cannot write" in refused.err) == (USAGE, True)
    assert edgesam_deploy("report", tmp_path, "-o", tmp_path / "x.html").code == ERROR
    assert list(tmp_path.iterdir()) == []
