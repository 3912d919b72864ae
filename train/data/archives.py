"""Archives of images, read in place: no member is ever written to disk under its own name, and sizes are bounded."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import re
import shutil
import stat
import tarfile
import tempfile
import weakref
import zipfile
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
UNREAD = (".7z", ".rar", ".tar.zst", ".tar.lz4")
MAX_MEMBER = 2**28  # bytes of an unpacked file
MAX_UNPACKED = 2**36  # bytes of a compressed tar, which is unpacked, as one file, where temporary files go
MAX_RATIO = 100  # of unpacked to packed size: images are packed already
SMALL = 2**24  # bytes that may be packed as tightly as they are
COPIED = 2**20  # bytes at once
OPENERS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}  # by how a compressed file begins

UNSAFE = "archive member whose name leads out of the archive"
LARGE = f"archive member above {MAX_MEMBER >> 20} MB, or packed more than {MAX_RATIO} times (unpack the archive)"
LOCKED = "archive member with a password (unpack the archive)"


def is_archive(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


class NoRoom(ValueError):
    """No place to unpack an archive in, which is no fault of its own."""


class Archive:
    """The regular files of a zip or a tar (compressed or not).

    members: path parts of each → where it is, in the archive's order. left_out: (reason, name) of other members.
    Raises ValueError, one line, for a file that cannot be read as an archive.
    """

    def __init__(self, path: str):
        self.path, self.lock = path, Lock()
        self.members: dict[tuple[str, ...], Any] = {}
        self.left_out: list[tuple[str, str]] = []
        try:
            if zipfile.is_zipfile(path):
                self.list_zip()
            else:
                self.list_tar()
        except NoRoom:
            raise
        except Exception as error:  # Libraries raise whatever a broken archive leads them into.
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"{path}: cannot be read as an archive ({reason}); fix it, or unpack it") from error

    def __reduce__(self):
        return open_archive, (self.path,)  # in another process

    def list_zip(self) -> None:
        self.zip, self.pid = zipfile.ZipFile(self.path), os.getpid()
        weakref.finalize(self, self.zip.close)
        for info in self.zip.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if info.is_dir() or kind not in (0, stat.S_IFREG):
                continue
            tight = info.file_size > max(SMALL, MAX_RATIO * info.compress_size)
            reason = LOCKED if info.flag_bits & 1 else LARGE if tight or info.file_size > MAX_MEMBER else None
            self.add(info.filename, info, reason)

    def list_tar(self) -> None:
        self.zip, self.tar = None, self.path
        with open(self.path, "rb") as file:
            begin = file.read(8)
        for magic, opener in OPENERS.items():
            if begin.startswith(magic):
                self.tar = self.unpacked(opener)
        with tarfile.open(self.tar, "r:") as tar:
            for info in tar:
                if info.isreg() and not info.issparse():
                    where = info.offset_data, info.size
                    self.add(info.name, where, LARGE if info.size > MAX_MEMBER else None)
                tar.members = []  # else it keeps them all

    def unpacked(self, opener) -> str:
        """The tar without its compression, in a temporary folder that goes with this object."""
        try:
            folder = tempfile.mkdtemp(prefix="r2id-")
        except OSError as error:
            fault = f"no temporary folder to unpack it in ({error.strerror})"
            raise NoRoom(f"{self.path}: {fault}; set TMPDIR to one") from error
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        packed, room = os.path.getsize(self.path), shutil.disk_usage(folder).free * 9 // 10
        limit, size = min(MAX_UNPACKED, max(SMALL, MAX_RATIO * packed), room), 0
        path = os.path.join(folder, "unpacked.tar")
        with opener(self.path, "rb") as source, open(path, "wb") as target:
            while block := source.read(COPIED):
                size += len(block)
                if size > limit:
                    if limit == room:
                        fault = f"{room >> 20:,} MB in {Path(folder).parent} are too few to unpack it"
                        raise NoRoom(f"{self.path}: {fault}; set TMPDIR to a larger folder, or unpack it yourself")
                    raise ValueError(f"more than {limit >> 20:,} MB unpacked")
                target.write(block)
        return path

    def add(self, name: str, where: Any, reason: str | None) -> None:
        parts = safe_parts(name)
        if parts is None:
            self.left_out.append((UNSAFE, name))
        elif reason:
            self.left_out.append((reason, name))
        elif parts:
            self.members[parts] = where  # of several with one name the last, as when it is unpacked

    def read(self, parts: tuple[str, ...], limit: int = MAX_MEMBER) -> bytes:
        """The first bytes of a member; safe in threads and in forked processes. Raises ValueError if it is broken."""
        where = self.members[parts]
        if self.zip is None:
            with open(self.tar, "rb") as file:
                file.seek(where[0])
                return file.read(min(where[1], limit))
        with self.lock:
            if self.pid != os.getpid():
                self.zip, self.pid = zipfile.ZipFile(self.path), os.getpid()
        try:
            with self.zip.open(where) as file:
                return file.read(limit)
        except Exception as error:  # as above
            raise ValueError(f"{self.path}: {'/'.join(parts)} cannot be unpacked: {error}") from error

    def is_shard(self) -> bool:
        """Whether it holds samples of WebDataset: images with a `.cls` or `.json` of the same name beside them."""
        if self.zip is not None:
            return False
        stems: dict[tuple, set[str]] = {}
        for *folder, name in self.members:
            stem, _, extension = name.partition(".")
            stems.setdefault((*folder, stem), set()).add(extension.lower())
        return any(len(found) > 1 and found & {"cls", "json"} for found in stems.values())


def safe_parts(name: str) -> tuple[str, ...] | None:
    """The parts of a member's path; None for one that leads out of the archive."""
    path = name.replace("\\", "/")
    parts = tuple(part for part in path.split("/") if part not in ("", "."))
    return None if path.startswith("/") or ".." in parts or re.match("[A-Za-z]:", path) else parts


def open_archive(path: str) -> Archive:
    """An archive, listed once as long as its file stays the same."""
    status = os.stat(path)
    return _opened(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=2)
def _opened(path: str, changed: int, size: int) -> Archive:
    return Archive(path)
