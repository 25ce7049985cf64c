"""README and docs say what is so: their Python runs, their commands exist, their links lead somewhere."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys

import pytest
import typer
from blocks import NOT_HERE, PAGES, ROOT, blocks, commands, reason

import edgesam_deploy
from edgesam_deploy.cli import app
from edgesam_deploy.targets import TARGETS, target_class
from edgesam_deploy.targets.base import Target
from release import catalogue, options

PYTHON = [block for block in blocks() if block.language == "python"]
HEAVY = {"README.md": "builds edge_sam at its full size", "docs/integration.md": "needs a bundle of the full size"}


def run_python(page, tmp_path):
    """A page's Python blocks, one after the other, as a reader would: from the repository, into folders of its own."""
    texts = [block.text for block in PYTHON if block.page == page]
    (tmp_path / "edgesam_deploy").symlink_to(ROOT / "edgesam_deploy")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", "\n".join(texts)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def with_python(heavy):
    pages = sorted({block.page for block in PYTHON})
    names = [page for page in pages if (page.relative_to(ROOT).as_posix() in HEAVY) == heavy]
    return pytest.mark.parametrize("page", names, ids=lambda page: page.stem)


@with_python(heavy=False)
def test_python_blocks_run(page, tmp_path):
    run_python(page, tmp_path)


@pytest.mark.slow
@with_python(heavy=True)
def test_heavy_python_blocks_run(page, tmp_path):
    run_python(page, tmp_path)


def command_of(words):
    """The command that words name, and the words that are left for it."""
    command, rest = typer.main.get_command(app), words[1:]
    while rest and rest[0] in getattr(command, "commands", {}):
        command, rest = command.commands[rest[0]], rest[1:]
    return command, rest


def fault(words):
    """What is wrong with a command and its options; "" where nothing is."""
    command, rest = command_of(words)
    if hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        return f"no command {rest[0]}"
    known = {o for p in command.params if p.param_type_name == "option" for o in (*p.opts, *p.secondary_opts)}
    asked = {word.split("=")[0] for word in rest if re.match(r"-{1,2}[a-z]", word)}
    unknown = asked - known - {"--help", "-h", "--version", "--install-completion"}
    return f"{' '.join(words)} has no {unknown}" if unknown else ""


def test_commands_exist_with_their_options():
    ours = [(block.name, words) for block, words in commands() if words[0] == "edgesam-deploy"]
    lines = [(page.name, words) for page, words in inline_commands()]
    assert [f"{where}: {fault(words)}" for where, words in ours + lines if fault(words)] == []
    for where, words in ours:  # those within a line may stop at the command's name
        command, rest = command_of(words)
        arguments = [p for p in command.params if p.param_type_name == "argument" and p.required]
        assert len(rest) >= len(arguments) or "--help" in rest, f"{where}: {' '.join(words)} lacks an argument"


def inline_commands():
    """(page, words) of every `edgesam-deploy ...` within a line."""
    for page in PAGES:
        for text in re.findall(r"`(edgesam-deploy [^`]+)`", page.read_text("utf-8")):
            yield page, shlex.split(text)


def test_every_command_is_accounted_for():
    others = [
        (block, words) for block, words in commands() if words[0] != "edgesam-deploy"
    ]  # test_commands.py runs ours
    unknown = [f"{block.name}: {' '.join(words)}" for block, words in others if reason(words) is None]
    assert unknown == [], "run it in a test, or say in tests/docs/blocks.py why it cannot"
    assert all(NOT_HERE.values())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), target


def test_the_catalogue_is_current():
    assert catalogue.FILE.read_text("utf-8") == catalogue.text(), "run: python -m release.catalogue"


def test_the_page_of_options_is_current():
    assert options.FILE.read_text("utf-8") == options.text(), "run: python -m release.options"


@pytest.mark.parametrize("target", TARGETS)
def test_a_targets_page_says_what_it_has_to(target):
    """Options of its own, what is verified and how, and what fails or was not tried."""
    page = (ROOT / "docs" / "targets" / f"{target}.md").read_text("utf-8")
    cls = target_class(target)
    shared = {f.name for base in cls.__mro__[1:] if issubclass(base, Target) for f in base.option_fields()}
    own = {f"--{f.name.replace('_', '-')}" for f in cls.option_fields() if f.name not in shared}
    assert {option for option in own if option not in page} == set()
    assert "](options.md)" in page
    headings = re.findall(r"^## (.+)$", page, re.M)
    assert {"What is verified, and how", "Known failures"} <= set(headings)


def test_the_api_page_speaks_of_every_public_name():
    page = (ROOT / "docs" / "api.md").read_text()
    renamed = {
        "open": "open_artifact",
        "Cwsam": "",
        "Sam": "",
        "EdgeSamDeployError": "errors",
        "sam_model_registry": "",
    }
    for name in edgesam_deploy.__all__:
        assert renamed.get(name, name) in page


@pytest.mark.slow
def test_the_site_builds_strictly(tmp_path):
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install 'edgesam-deploy[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "set_image" in (tmp_path / "api.html").read_text()
    for page in tmp_path.rglob("*.html"):
        loaded = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?://[^"]+)', page.read_text("utf-8"))
        assert loaded == [], f"{page.name} loads {loaded}"
