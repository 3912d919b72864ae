"""The files of a folder or an archive, sorted by what they are; what is left out is counted and named."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor

from train.data.archives import UNREAD, Archive, is_archive, open_archive
from train.data.fonts import SUFFIXES as FONTS

HEIF = (".heic", ".heif", ".hif")
IMAGES = tuple(
    """.apng .avif .bmp .dds .dib .gif .ico .j2k .jfif .jp2 .jpe .jpeg .jpg .jpx .mpo .pbm .pcx .pgm .png .pnm .ppm .psd
    .qoi .sgi .tga .tif .tiff .webp""".split()
)
UNREAD_IMAGES = tuple(
    ".3fr .arw .cr2 .cr3 .dng .exr .hdr .jxl .nef .orf .pef .raf .raw .rw2 .srw .svg .svgz .xcf".split()
)
TABLES = (".csv", ".tsv", ".jsonl")
SHARDS = (".arrow", ".parquet")
PLAIN = tuple(
    """.db .doc .html .ini .json .log .mat .md .mp4 .npy .npz .pdf .pkl .pt .py .rst .txt .woff
    .xml .yaml .yml""".split()
)
BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ")
BRANDS = (b"avif", b"heic", b"heix", b"mif1")
NAMED = 3  # names of those that are left out for one reason

HIDDEN = "folder that begins with _ or a dot"
HIDDEN_FILES = "image file that begins with a dot"
LOOPS = "link to a folder that is read already or leads back up"
NOWHERE = "link that leads nowhere"
CLOSED = "folder that cannot be opened"
OTHER = "file that is no image"
RAW = "image in a format that is not read (convert it to PNG or JPEG)"
HEIC = "HEIC image (install pillow-heif, or convert it to JPEG)"
PACKED = "archive beside images (unpack it, or give it itself)"
NESTED = "archive in the archive (unpack it)"
UNREAD_ARCHIVES = "archive in a format that is not read (unpack it)"


@dataclass(frozen=True)
class File:
    """A file below the folder or archive that was given. parts: of its path from there; source: its own path, or the
    archive that holds it, under `key`."""

    parts: tuple[str, ...]
    source: str | Archive
    key: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """On one line, and printable wherever UTF-8 is."""
        return clean("/".join(self.parts))

    def content(self) -> bytes | str:
        """Its bytes from an archive, else its path."""
        return self.source if isinstance(self.source, str) else self.source.read(self.key)

    def read(self, count: int) -> bytes:
        """Its first bytes. Raises OSError, or ValueError in an archive."""
        if isinstance(self.source, Archive):
            return self.source.read(self.key, count)
        with open(self.source, "rb") as file:
            return file.read(count)


@dataclass(frozen=True)
class Row:
    """An image that is not decoded yet. file: its bytes or its path; label: its number, -1 without one."""

    name: str
    file: bytes | str | None
    label: int


class Files:
    """Rows of files, by place."""

    def __init__(self, files: Sequence[File], labels_N: Tensor):
        self.files, self.labels_N = files, labels_N

    def __len__(self) -> int:
        return len(self.files)

    def read(self, places: Sequence[int]) -> list[Row]:
        return [self.row(self.files[place], self.labels_N[place].item()) for place in places]

    def row(self, file: File, label: int) -> Row:
        try:
            content = file.content()
        except (OSError, ValueError):
            content = None  # counted and named where it is decoded
        return Row(content if isinstance(content, str) else file.name, content, label)

    def after(self, place: int) -> int:
        """The place to read instead of one whose image cannot be."""
        return (place + 1) % len(self)


@dataclass
class Listing:
    """Files by what they are, each kind in the order of its paths; left_out: reason → names."""

    images: list[File] = field(default_factory=list)
    tables: list[File] = field(default_factory=list)
    shards: list[File] = field(default_factory=list)
    fonts: list[File] = field(default_factory=list)
    archives: list[File] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def leave(self, reason: str, name: str) -> None:
        self.left_out.setdefault(reason, []).append(clean(name))

    def add(self, file: File) -> None:
        name = file.parts[-1].lower()
        suffix = os.path.splitext(name)[1]
        if name.startswith("."):
            if suffix in IMAGES + HEIF:
                self.leave(HIDDEN_FILES, file.name)
        elif suffix in TABLES:
            self.tables.append(file)
        elif suffix in SHARDS:
            self.shards.append(file)
        elif suffix in FONTS:
            self.fonts.append(file)
        elif is_archive(name):
            self.archives.append(file)
        elif name.endswith(UNREAD):
            self.leave(UNREAD_ARCHIVES, file.name)
        elif suffix in UNREAD_IMAGES:
            self.leave(RAW, file.name)
        elif suffix in HEIF:
            if find_spec("pillow_heif"):
                self.images.append(file)
            else:
                self.leave(HEIC, file.name)
        elif suffix in IMAGES or (suffix not in PLAIN and begins_as_image(file)):
            self.images.append(file)
        else:
            self.leave(OTHER, file.name)

    def sort(self) -> Listing:
        for files in (self.images, self.tables, self.shards, self.fonts, self.archives):
            files.sort(key=lambda file: file.parts)
        for names in self.left_out.values():
            names.sort()
        return self

    def join(self, other: Listing) -> None:
        self.images += other.images
        self.tables += other.tables
        self.shards += other.shards
        for reason, names in other.left_out.items():
            self.left_out.setdefault(reason, []).extend(names)

    def lines(self) -> list[str]:
        """One a reason, with the count and the first names."""
        return [f"left out: {len(names):,} × {reason}: {some(names)}" for reason, names in self.left_out.items()]


def some(names: list[str], count: int = NAMED) -> str:
    """The first names of many."""
    return ", ".join(names[:count] + ["…"] * (len(names) > count))


def begins_as_image(file: File) -> bool:
    """Whether a file of no known suffix is an image."""
    try:
        begin = file.read(12)
    except (OSError, ValueError):
        return False
    riff = begin[:4] == b"RIFF" and begin[8:] == b"WEBP"
    return begin.startswith(BEGINNINGS) or riff or (begin[4:8] == b"ftyp" and begin[8:] in BRANDS)


@lru_cache(maxsize=2**14)
def clean(name: str) -> str:
    """A name in one Unicode form (NFC), without spaces around it, on one line."""
    text = os.fsencode(name).decode("utf-8", "replace")
    return " ".join(unicodedata.normalize("NFC", text).split()) or repr(name)


def is_hidden(folder: str) -> bool:
    return folder.startswith(("_", "."))


def list_folder(root: Path) -> Listing:
    """The regular files of a folder at any depth. Links are followed last, and every folder is read once."""
    listing, seen = Listing(), set()
    home = Path(os.path.realpath(root))
    waiting: list[tuple[str, tuple[str, ...]]] = [(str(root), ())]
    links: list[tuple[str, tuple[str, ...]]] = []
    while waiting or links:
        linked = not waiting
        links.sort(reverse=True)
        path, parts = (links if linked else waiting).pop()
        real = os.path.realpath(path)
        if real in seen or (linked and Path(real) in home.parents):
            listing.leave(LOOPS, "/".join(parts))
            continue
        seen.add(real)
        try:
            entries = list(os.scandir(path))
        except OSError:
            if not parts:
                raise
            listing.leave(CLOSED, "/".join(parts))
            continue
        for entry in entries:
            below = (*parts, entry.name)
            kind = kind_of(entry)
            if kind in ("folder", "link") and is_hidden(entry.name):
                listing.leave(HIDDEN, "/".join(below))
            elif kind == "folder":
                waiting.append((entry.path, below))
            elif kind == "link":
                links.append((entry.path, below))
            elif kind == "file":
                listing.add(File(below, entry.path))
            elif kind == "nowhere" and not entry.name.startswith("."):
                listing.leave(NOWHERE, "/".join(below))
    return listing.sort()


def kind_of(entry: os.DirEntry) -> str:
    """ "folder", "link" (to a folder), "file" (or a link to one), "nowhere" (such a link) or "other"."""
    try:
        if entry.is_dir():
            junction = hasattr(entry, "is_junction") and entry.is_junction()
            return "link" if entry.is_symlink() or junction else "folder"
        if entry.is_file():
            return "file"
    except OSError:
        pass  # a link to itself
    return "nowhere" if entry.is_symlink() else "other"


def list_archive(path: str, above: tuple[str, ...] = ()) -> Listing:
    """The regular files of an archive. above: parts of the path of the folder that it lies in."""
    listing, archive = Listing(), open_archive(path)
    for parts in archive.members:
        hidden = next((depth for depth, part in enumerate(parts[:-1], 1) if is_hidden(part)), 0)
        if hidden:
            name = "/".join(above + parts[:hidden])
            if clean(name) not in listing.left_out.get(HIDDEN, ()):
                listing.leave(HIDDEN, name)
        else:
            listing.add(File(above + parts, archive, parts))
    for reason, name in archive.left_out:
        listing.leave(reason, name)
    for reason, found in ((NESTED, listing.archives), (OTHER, listing.fonts)):
        for file in found:
            listing.leave(reason, file.name)
    listing.archives, listing.fonts = [], []
    return listing.sort()
