"""The papers of a release agree with each other and with the project."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

import edgesam_deploy
from edgesam_deploy.bundle import dump_json
from edgesam_deploy.toolkits import EXTRAS
from release import sbom
from release.check_package import MODULES

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_version_is_one():
    assert PROJECT["version"] == edgesam_deploy.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+([ab]\d+|rc\d+)?", PROJECT["version"])
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["cff-version"], citation["version"]) == ("1.2.0", PROJECT["version"])
    assert {"title", "message", "type", "authors", "license"} <= citation.keys()
    newest = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)[1]
    assert newest in ("Unreleased", PROJECT["version"])


def test_the_wheels_bill_of_materials_is_current():
    assert sbom.FILE.read_text() == dump_json(sbom.document()), "run: python -m release.sbom"
    found = {c["name"]: c for c in sbom.document()["components"]}
    assert found["numpy"]["scope"] == "required"
    assert found["torch"]["scope"] == "optional"
    assert found["torch"]["version"].startswith("2.")
    assert found["gradio"]["purl"].startswith("pkg:pypi/gradio@")


def test_every_extra_is_checked_and_every_hint_is_an_extra():
    extras = set(PROJECT["optional-dependencies"])
    assert extras == MODULES.keys(), "release/check_package.py imports what an extra brings"
    assert set(EXTRAS.values()) <= extras


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda p: p.name)
def test_github_files_are_yaml_of_their_kind(path):
    content = yaml.safe_load(path.read_text())
    if path.parent.name == "workflows":
        assert content["jobs"]
        for job in content["jobs"].values():
            assert job["runs-on"]
            assert all("uses" in step or "run" in step for step in job["steps"])
            makes = [word for step in job["steps"] for word in re.findall(r"make ([\w-]+)", step.get("run", ""))]
            rules = (ROOT / "Makefile").read_text()
            assert all(re.search(rf"^{word}:", rules, re.M) for word in makes)
    elif path.name != "config.yml":
        assert {"name", "description", "body"} <= content.keys()


def test_the_image_installs_what_it_copies():
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    copied = [word for line in lines if re.match(r"COPY [^-]", line) for word in line.split()[1:-1]]
    assert all((ROOT / name).exists() for name in copied)


@pytest.mark.parametrize("file", ["constraints.txt", "constraints-demo.txt", "constraints-all.txt"])
def test_versions_are_those_of_any_index(file):
    """A local version such as 2.13.0+cpu is on the index alone that it comes from."""
    lines = [line for line in (ROOT / file).read_text().splitlines() if not line.startswith("#")]
    if not lines:
        pytest.skip(f"{file} was emptied, to try the newest versions")
    for line in lines:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9.a-z]*", line), line
