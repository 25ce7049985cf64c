"""Names to files. No test opens a connection."""

from __future__ import annotations

import ast
import hashlib
import io
import socket
import sys
import types
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgesam_deploy.errors import CheckpointError, MissingToolkit, OutputError, UnknownName
from edgesam_deploy.model import fetch

BODY = bytes(range(256)) * 9000  # over two chunks


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, no network, and a Hugging Face client that knows nothing."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("EDGESAM_DEPLOY_CACHE", str(folder))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.chdir(tmp_path)

    def refuse(*args: object) -> None:
        raise AssertionError("a test opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    hub(monkeypatch)
    return folder


def hub(monkeypatch: pytest.MonkeyPatch, **functions: Any) -> None:
    """A stand-in for huggingface_hub."""
    module = types.ModuleType("huggingface_hub")
    functions.setdefault("try_to_load_from_cache", lambda *args, **kwargs: None)
    for name, function in functions.items():
        setattr(module, name, function)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)


class Body(io.BytesIO):
    """A response; ``fail`` is raised once ``after`` bytes are out."""

    def __init__(self, body: bytes, length: int | None = None, fail: BaseException | None = None, after: int = 0):
        super().__init__(body)
        self.length = length
        self.fail = fail
        self.after = after

    def read(self, amount: int | None = -1, /) -> bytes:
        if self.fail is not None and self.tell() >= self.after:
            raise self.fail
        return super().read(amount)


def opener(response: Body) -> fetch.Opener:
    @contextmanager
    def open_url(url: str) -> Iterator[Body]:
        assert url == "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_b_01ec64.pth"
        yield response

    return open_url


@pytest.fixture
def vit_b(monkeypatch: pytest.MonkeyPatch) -> fetch.Source:
    """The entry of ViT-B, with the hash of ``BODY``."""
    source = replace(fetch.SOURCES["vit_b"], sha256=hashlib.sha256(BODY).hexdigest())
    monkeypatch.setitem(fetch.SOURCES, "vit_b", source)
    return source


def left_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_an_existing_file_wins_over_a_name(tmp_path: Path) -> None:
    (tmp_path / "edge_sam").write_bytes(b"mine")
    assert fetch.resolve("edge_sam") == Path("edge_sam")
    assert fetch.resolve(tmp_path / "edge_sam") == tmp_path / "edge_sam"


def test_a_folder_called_like_a_model_does_not(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "edge_sam").mkdir()
    cache.mkdir()
    (cache / "edge_sam.pth").write_bytes(b"weights")
    assert fetch.resolve("edge_sam") == cache / "edge_sam.pth"
    assert fetch.resolve(tmp_path) == tmp_path  # any other folder is the reader's to refuse


@pytest.mark.parametrize("source", fetch.SOURCES.values(), ids=list(fetch.SOURCES))
def test_what_lies_in_the_cache_is_taken(source: fetch.Source, cache: Path) -> None:
    cache.mkdir()
    source.cached.write_bytes(b"by hand")
    assert source.cached.parent == cache
    assert fetch.resolve(source.name) == source.cached


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("EDGESAM_DEPLOY_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert fetch.cache_folder() == tmp_path / "edgesam-deploy"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert fetch.cache_folder() == Path.home() / ".cache" / "edgesam-deploy"


def test_download_is_checked_and_moved_into_place(vit_b: fetch.Source, cache: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    path = fetch.resolve(
        "vit_b", opener=opener(Body(BODY, len(BODY))), progress=lambda done, total: seen.append((done, total))
    )
    assert path == cache / "sam_vit_b_01ec64.pth"
    assert path.read_bytes() == BODY
    assert left_in(cache) == ["sam_vit_b_01ec64.pth"]
    assert seen == [(1 << 20, len(BODY)), (2 << 20, len(BODY)), (len(BODY), len(BODY))]
    # the second time nothing is opened
    assert fetch.resolve("vit_b", opener=opener(Body(b"", fail=AssertionError()))) == path


def test_the_client_is_urllib_with_a_timeout(vit_b: fetch.Source, monkeypatch: pytest.MonkeyPatch) -> None:
    def open_url(url: str, timeout: float) -> Body:
        assert (url, timeout > 0) == (vit_b.url, True)
        return Body(BODY, len(BODY))

    monkeypatch.setattr("urllib.request.urlopen", open_url)
    assert fetch.resolve("vit_b").read_bytes() == BODY


def test_download_without_a_length(vit_b: fetch.Source) -> None:
    assert fetch.resolve("vit_b", opener=opener(Body(BODY))).read_bytes() == BODY


def test_other_content_is_refused(vit_b: fetch.Source, cache: Path) -> None:
    with pytest.raises(CheckpointError, match=r"sha256 [0-9a-f]{64} instead of " + vit_b.sha256):
        fetch.resolve("vit_b", opener=opener(Body(BODY[:-1] + b"!")))
    assert left_in(cache) == []


@pytest.mark.parametrize(
    ("fail", "raised"),
    [
        (urllib.error.URLError("no route to host"), MissingToolkit),
        (TimeoutError("timed out"), MissingToolkit),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
    ids=["unreachable", "timeout", "interrupt"],
)
@pytest.mark.parametrize("after", [0, 1 << 20])
def test_nothing_half_written_stays(
    vit_b: fetch.Source, cache: Path, fail: BaseException, raised: type[BaseException], after: int
) -> None:
    with pytest.raises(raised) as caught:
        fetch.resolve("vit_b", opener=opener(Body(BODY, len(BODY), fail, after)))
    assert left_in(cache) == []
    if raised is MissingToolkit:
        assert vit_b.steps in str(caught.value)


def test_a_connection_that_ends_early_is_noticed(vit_b: fetch.Source, cache: Path) -> None:
    with pytest.raises(MissingToolkit, match=r"ended after 2,303,999 of 2,304,000 bytes"):
        fetch.resolve("vit_b", opener=opener(Body(BODY[:-1], len(BODY))))
    assert left_in(cache) == []


def test_interrupt_in_the_progress_callback(vit_b: fetch.Source, cache: Path) -> None:
    def stop(done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch.resolve("vit_b", opener=opener(Body(BODY)), progress=stop)
    assert left_in(cache) == []


def test_unwritable_cache(vit_b: fetch.Source, cache: Path) -> None:
    cache.write_bytes(b"a file where the folder should be")
    with pytest.raises(OutputError, match="EDGESAM_DEPLOY_CACHE"):
        fetch.resolve("vit_b", opener=opener(Body(BODY)))


@pytest.mark.parametrize(
    ("name", "repo", "repo_type", "path"),
    [
        ("edge_sam", "chongzhou/EdgeSAM", "space", "weights/edge_sam.pth"),
        ("edge_sam_3x", "chongzhou/EdgeSAM", "space", "weights/edge_sam_3x.pth"),
        ("sam_hq_vit_tiny", "lkeab/hq-sam", "model", "sam_hq_vit_tiny.pth"),
    ],
)
def test_hugging_face(
    monkeypatch: pytest.MonkeyPatch, cache: Path, name: str, repo: str, repo_type: str, path: str
) -> None:
    def download(repo_id: str, filename: str, *, repo_type: str, local_dir: Path) -> str:
        asked.append((repo_id, repo_type, filename))
        file = local_dir / filename
        file.parent.mkdir(parents=True, exist_ok=True)
        (local_dir / ".metadata").write_bytes(b"the client's own")
        file.write_bytes(BODY)
        return str(file)

    asked: list[tuple[str, str, str]] = []
    hub(monkeypatch, hf_hub_download=download)
    assert fetch.resolve(name).read_bytes() == BODY
    assert asked == [(repo, repo_type, path)]
    assert left_in(cache) == [f"{name}.pth"]


def test_hugging_face_fails(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    def download(*args: object, local_dir: Path, **kwargs: object) -> str:
        (local_dir / "half").write_bytes(b"...")
        raise RuntimeError("502 Bad Gateway\nand much more")

    hub(monkeypatch, hf_hub_download=download)
    with pytest.raises(MissingToolkit, match="RuntimeError: 502 Bad Gateway; by hand"):
        fetch.resolve("edge_sam")
    assert left_in(cache) == []


def test_hugging_faces_own_cache_is_used_even_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub(monkeypatch, try_to_load_from_cache=lambda repo, path, repo_type: str(tmp_path / "snapshot.pth"))
    assert fetch.resolve("edge_sam") == tmp_path / "snapshot.pth"


def test_without_huggingface_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingToolkit, match="pip install huggingface_hub"):
        fetch.resolve("edge_sam")


@pytest.mark.parametrize("name", ["edge_sam", "sam_hq_vit_h", "vit_l"])
def test_offline_prints_the_steps(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "true")
    with pytest.raises(MissingToolkit) as caught:
        fetch.resolve(name)
    source, message = fetch.SOURCES[name], str(caught.value)
    assert caught.value.exit_code == 3
    assert source.location in message
    assert str(source.cached) in message
    assert "--checkpoint PATH" in message


@pytest.mark.parametrize("name", [s.name for s in fetch.SOURCES.values() if s.kind in ("manual", "unpublished")])
def test_what_no_program_can_fetch(name: str) -> None:
    with pytest.raises(MissingToolkit) as caught:
        fetch.resolve(name)
    source, message = fetch.SOURCES[name], str(caught.value)
    assert caught.value.exit_code == 3
    assert str(source.cached) in message
    assert "--checkpoint PATH" in message
    assert source.licence in message
    assert ("https://drive.google.com/" in message) == (source.kind == "manual")


def test_unknown_name_and_missing_path() -> None:
    with pytest.raises(UnknownName, match=r"neither a file nor a published one.*'edge-sam'; did you mean edge_sam"):
        fetch.resolve("edge-sam")
    with pytest.raises(CheckpointError, match=r"weights/x: no such file, nor the name .*vit_b"):
        fetch.resolve("weights/x")
    with pytest.raises(CheckpointError, match=r"edge_sam\.pth: no such file"):
        fetch.resolve("edge_sam.pth")


def test_the_table_is_consistent() -> None:
    files = [source.cached.name for source in fetch.SOURCES.values()]
    assert len(set(files)) == len(files)
    for name, source in fetch.SOURCES.items():
        assert source.name == name
        assert source.location.startswith("https://") == (source.kind != "unpublished")
        assert bool(source.repo) == (source.kind == "huggingface")
        assert len(source.sha256) == (64 if source.kind == "url" else 0)
        assert source.licence == fetch.APACHE or not name.startswith(("vit_", "sam_hq"))
        assert "non-commercial" in source.licence or not name.startswith(("edge_sam", "repvit"))


def test_torch_is_not_imported() -> None:
    tree = ast.parse(Path(fetch.__file__).read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not [name for name in names if name.split(".")[0] == "torch"]
    assert {name for name in names if name.startswith("edgesam_deploy")} == {"edgesam_deploy.errors"}
