"""A name is a folder, or an id of the Hub that is asked once, within limits; whatever fails is one line."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from hub import hub_for

from r2id import hub as r2id_hub
from r2id.checkpoint import CheckpointError
from r2id.hub import fetch

FILES = {"config.json": b"{}", "denoiser.safetensors": 99 * b"w", "README.md": b"# One", "state.pt": b"no"}


@pytest.fixture
def hub(tmp_path):
    with hub_for(tmp_path / "cache") as hub:
        yield hub


def message(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert "\n" not in text and len(text) <= 500
    return text


def test_an_existing_folder_is_local(tmp_path, monkeypatch, hub):
    assert fetch(tmp_path) == fetch(str(tmp_path)) == tmp_path
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert fetch("owner/name") == Path("owner/name")
    assert not hub.requests


@pytest.mark.parametrize(
    "name",
    ["", "name", "weights/none", "./owner/name", "../owner/name", "/owner/name", ".owner/name", "owner/", "/name"]
    + ["a/b/c", "owner/name\n", "owner/na me", "https://host/owner", "owner\\name", "öwner/name", "a\0/b", "~/name"]
    + ["a" * 9999],
)
def test_what_is_neither_folder_nor_id_never_reaches_the_hub(hub, name):
    with pytest.raises(CheckpointError, match="no such folder, and not a Hub id of the form owner/name") as error:
        fetch(name)
    assert message(error) and not hub.requests


def test_an_id_is_downloaded_at_its_revision(hub):
    first = hub.put("owner/name-1.0_b", FILES)
    hub.put("owner/name-1.0_b", FILES | {"config.json": b"[]"})
    folder = fetch("owner/name-1.0_b", revision=first)
    assert {path.name for path in folder.iterdir()} == FILES.keys() - {"state.pt"}
    assert all((folder / path.name).read_bytes() == FILES[path.name] for path in folder.iterdir())
    assert (fetch("owner/name-1.0_b") / "config.json").read_bytes() == b"[]"


@pytest.mark.parametrize(("sized", "text"), [(True, "106 bytes on the Hub: at most 105"), (False, "inf bytes")])
def test_a_large_or_unsized_repository_is_not_downloaded(hub, monkeypatch, sized, text):
    hub.put("owner/name", FILES)
    hub.sized = sized
    monkeypatch.setattr(r2id_hub, "MAX_HUB_BYTES", 105)
    with pytest.raises(CheckpointError, match=text) as error:
        fetch("owner/name")
    assert message(error) and hub.requests == ["GET /api/models/owner/name"]


def test_without_an_answer_the_cache_will_do(hub):
    hub.put("owner/name", FILES)
    folder = fetch("owner/name")
    with hub.unreachable():
        assert fetch("owner/name") == folder
    assert (folder / "config.json").read_bytes() == FILES["config.json"]


def test_without_answer_and_cache_the_answer_is_one_line(hub):
    for name in ("owner/absent", "owner/other"):
        with pytest.raises(CheckpointError, match=f"{name}: not a local folder, .*Repository [Nn]ot [Ff]ound") as error:
            fetch(name)
        assert message(error)
    with hub.unreachable(), pytest.raises(CheckpointError, match="owner/name: not a local folder, .*refused") as error:
        fetch("owner/name")
    assert message(error)


def test_a_failed_download_is_one_line(hub):
    hub.put("owner/name", FILES)
    hub.failing = "/revision/"  # which is asked before the files
    with pytest.raises(CheckpointError, match="owner/name: the download from the Hub failed, try again: ") as error:
        fetch("owner/name")
    assert message(error)


def test_a_cache_that_cannot_be_written_is_named(hub, monkeypatch):
    def closed(**_):
        raise PermissionError(errno.EACCES, "Permission denied", "/cache")

    hub.put("owner/name", FILES)
    monkeypatch.setattr(r2id_hub.huggingface_hub, "snapshot_download", closed)
    with pytest.raises(CheckpointError, match="set HF_HOME to a folder that can be written: .*/cache") as error:
        fetch("owner/name")
    assert message(error)
