"""Archives of images: read in place by the rules of folders, within bounds, whatever their members say."""

from __future__ import annotations

import io
import tarfile
import tempfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_sources import classes, image, noted, put, read, refused, sizes

from train.data import archives
from train.data.images import load_images


def as_zip(path: Path, members: dict[str, bytes]) -> str:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return str(path)


def as_tar(path: Path, members: dict[str, bytes]) -> str:
    mode = {".tar": "w", ".gz": "w:gz", ".tgz": "w:gz", ".bz2": "w:bz2", ".xz": "w:xz"}[path.suffix]
    with tarfile.open(path, mode) as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return str(path)


MEMBERS = {f"pets/{split}/{name}/{n}.png": image(n) for split in ("Train", "Test") for name in "ab" for n in range(6)}


@pytest.mark.parametrize("suffix", ["zip", "tar", "tar.gz", "tgz", "tar.bz2", "tar.xz"])
@pytest.mark.parametrize("given", ["itself", "alone in a folder"])
def test_an_archive_is_read_by_the_rules_of_folders(tmp_path, suffix, given):
    path = (as_zip if suffix == "zip" else as_tar)(tmp_path / f"set.{suffix}", MEMBERS | {"__MACOSX/x.png": b""})
    (tmp_path / "readme.txt").write_text("mine")
    data = path if given == "itself" else str(tmp_path)
    found = read(data)
    assert found.sizes == {"train": 12, "test": 12} and found.names == ("a", "b")
    test = load_images(data, "test", size=4)
    grey = ((test.images[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()
    assert sorted(zip(grey, test.labels.tolist(), strict=True)) == [(n, label) for n in range(6) for label in (0, 1)]


def test_an_archive_is_decoded_on_demand_too(tmp_path, monkeypatch):
    data = as_zip(tmp_path / "set.zip", MEMBERS)
    whole = load_images(data, "train", size=4)
    monkeypatch.setattr("train.data.images.IN_MEMORY", 0)
    asked = load_images(data, "train", size=4)
    assert not isinstance(asked.images, torch.Tensor) and torch.equal(asked.images[:], whole.images)
    assert torch.equal(asked.labels[:], whole.labels)


def test_a_stray_archive_is_named_and_left_alone(tmp_path):
    put(tmp_path, "cat/1.png", "dog/1.png")
    as_zip(tmp_path / "old.zip", MEMBERS)
    (tmp_path / "broken.tar.gz").write_bytes(b"no archive")
    assert sizes(tmp_path) == {"train": 2}
    assert "2 × archive beside images (unpack it, or give it itself): broken.tar.gz, old.zip" in noted(tmp_path)


def test_archives_of_which_one_must_be_chosen_or_that_are_broken(tmp_path):
    as_zip(tmp_path / "a.zip", MEMBERS)
    as_tar(tmp_path / "b.tar.gz", MEMBERS)
    assert "holds 2 archives (a.zip, b.tar.gz); unpack those that you mean, or give one" in refused(tmp_path)
    whole = (tmp_path / "b.tar.gz").read_bytes()
    for name, data in {"cut.tar.gz": whole[:200], "x.zip": b"PK\3\4, or so", "y.tar": b"text" * 999}.items():
        (tmp_path / name).write_bytes(data)
        assert "cannot be read as an archive (" in refused(tmp_path / name)
    assert "this kind of archive is not read; unpack it" in refused(put(tmp_path, "z.7z") + "/z.7z")


def test_no_member_of_an_archive_leads_out_of_it(tmp_path):
    bad = ["../out.png", "/abs.png", "a/../../out.png", "C:\\out.png", "..\\out.png"]
    inner = tmp_path / "in" / "deep"
    inner.mkdir(parents=True)
    for data in (as_zip(inner / "a.zip", dict.fromkeys([*bad, "ok.png"], image())),):
        assert sizes(data) == {"train": 1} and "5 × archive member whose name leads out" in noted(data)
    with tarfile.open(inner / "b.tar", "w") as file:
        for name, kind in (("link.png", tarfile.SYMTYPE), ("hard.png", tarfile.LNKTYPE), ("dev.png", tarfile.CHRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            file.addfile(info)
        info = tarfile.TarInfo("ok.png")
        info.size = len(image())
        file.addfile(info, io.BytesIO(image()))
    assert classes(inner / "b.tar") == {"ok.png": None}
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["a.zip", "b.tar"]


def test_archives_unpack_to_bounded_sizes(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "SMALL", 2**10)
    bomb = {"bomb.png": bytes(2**20), "ok.png": image()}
    assert classes(as_zip(tmp_path / "a.zip", bomb)) == {"ok.png": None}
    assert "packed more than 100 times" in noted(tmp_path / "a.zip")
    assert "MB unpacked" in refused(as_tar(tmp_path / "a.tar.gz", bomb))
    fine = as_tar(tmp_path / "b.tar.gz", {"ok.png": image()})
    with monkeypatch.context() as patch:
        patch.setattr(archives.shutil, "disk_usage", lambda _: SimpleNamespace(free=9))
        assert "are too few to unpack it; set TMPDIR to a larger folder" in refused(fine)
        patch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
        assert "no temporary folder to unpack it in (No such file or directory); set TMPDIR to one" in refused(fine)
    assert classes(fine) == {"ok.png": None}
    monkeypatch.setattr(archives, "MAX_MEMBER", 2**10)
    assert classes(as_tar(tmp_path / "a.tar", bomb)) == {"ok.png": None}


def test_a_broken_member_is_counted_like_a_broken_file(tmp_path):
    path = Path(as_zip(tmp_path / "a.zip", {f"{n}.png": image(n) for n in range(6)}))
    data = bytearray(path.read_bytes())
    data[data.index(b"0.png") + 12] ^= 0xFF
    path.write_bytes(data)
    with pytest.warns(UserWarning, match=r"1 of 5 images cannot be read .*0.png"):
        found = load_images(str(path), "train", size=4)
    assert len(found) == 4 and "left out: 1 × image that cannot be read: " in found.describe()
