"""A name is a folder, or an id of the Hub that is asked once, within limits; whatever fails is one line."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest

from r2id import checkpoint
from r2id.checkpoint import CheckpointError, fetch


def message(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert "\n" not in text and len(text) <= 500
    return text


class Hub:
    """Stands for the two functions of huggingface_hub that are used, and remembers how they were called."""

    def __init__(self, monkeypatch, folder: Path, sizes: dict, error: Exception | None = None, cached: bool = False):
        self.folder, self.sizes, self.error, self.cached, self.calls = folder, sizes, error, cached, []
        monkeypatch.setattr(huggingface_hub, "model_info", self.model_info)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.snapshot_download)

    def model_info(self, repo_id, *, revision, timeout, files_metadata):
        assert files_metadata and timeout == checkpoint.HUB_TIMEOUT_SECONDS
        self.calls.append(("info", repo_id, revision))
        if self.error:
            raise self.error
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=n, size=s) for n, s in self.sizes.items()])

    def snapshot_download(self, repo_id, *, revision, allow_patterns, etag_timeout, local_files_only=False):
        assert allow_patterns == ["config.json", "*.safetensors", "*.safetensors.index.json", "README.md", "report.json"]
        assert etag_timeout == checkpoint.HUB_TIMEOUT_SECONDS
        self.calls.append(("cache" if local_files_only else "download", repo_id, revision))
        if local_files_only and not self.cached:
            raise FileNotFoundError("not in the cache")
        return str(self.folder)


def test_an_existing_folder_is_local(tmp_path, monkeypatch):
    hub = Hub(monkeypatch, tmp_path, {})
    assert fetch(tmp_path) == fetch(str(tmp_path)) == tmp_path
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert fetch("owner/name") == Path("owner/name")
    assert not hub.calls


@pytest.mark.parametrize(
    "name",
    [
        "",
        "name",
        "weights/none",
        "./owner/name",
        "../owner/name",
        "/owner/name",
        ".owner/name",
        "owner/",
        "/name",
        "a/b/c",
    ]
    + ["owner/name\n", "owner/na me", "https://host/owner", "owner\\name", "öwner/name", "a\0/b", "~/name", "a" * 9999],
)
def test_what_is_neither_folder_nor_id_never_reaches_the_hub(tmp_path, monkeypatch, name):
    hub = Hub(monkeypatch, tmp_path, {})
    with pytest.raises(CheckpointError, match="no such folder, and not a Hub id of the form owner/name") as error:
        fetch(name)
    assert message(error) and not hub.calls


def test_an_id_is_downloaded_at_its_revision(tmp_path, monkeypatch):
    hub = Hub(monkeypatch, tmp_path, {"config.json": 9, "denoiser.safetensors": 99, "state.pt": 2**50})
    assert fetch("owner/name-1.0_b", revision="v1") == tmp_path
    assert hub.calls == [("info", "owner/name-1.0_b", "v1"), ("download", "owner/name-1.0_b", "v1")]


@pytest.mark.parametrize(("size", "text"), [(2**33, "8,589,934,601 bytes on the Hub: at most"), (None, "inf bytes")])
def test_a_large_or_unsized_repository_is_not_downloaded(tmp_path, monkeypatch, size, text):
    hub = Hub(monkeypatch, tmp_path, {"config.json": 9, "denoiser.safetensors": size})
    with pytest.raises(CheckpointError, match=text):
        fetch("owner/name")
    assert [call[0] for call in hub.calls] == ["info"]


def test_without_an_answer_the_cache_will_do(tmp_path, monkeypatch):
    hub = Hub(monkeypatch, tmp_path, {}, error=TimeoutError("no answer"), cached=True)
    assert fetch("owner/name") == tmp_path
    assert [call[0] for call in hub.calls] == ["info", "cache"]


def test_without_answer_and_cache_the_answer_is_one_line(tmp_path, monkeypatch):
    Hub(
        monkeypatch,
        tmp_path,
        {},
        error=OSError("404 Client Error.\n\nRepository not found.\nIf it is private, log in."),
    )
    with pytest.raises(CheckpointError, match="owner/name: .*404 Client Error. Repository not found.") as error:
        fetch("owner/name")
    assert message(error)


def test_a_failed_download_is_one_line(tmp_path, monkeypatch):
    Hub(monkeypatch, tmp_path, {"config.json": 9})
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda **_: (_ for _ in ()).throw(OSError("reset\nby peer"))
    )
    with pytest.raises(CheckpointError, match="owner/name: the download from the Hub failed, try again: reset by peer"):
        fetch("owner/name")
