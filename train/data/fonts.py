"""A folder of fonts as a data set: every glyph of every font is an image, drawn from its outline at any size."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

SUFFIXES = (".otf", ".ttc", ".ttf", ".woff2")
SPLITS = ("train", "validation", "test")
TEST, VALIDATION = 0.10, 0.15  # a family's hash in [0, 1) below the first: test; below the second: validation
EM, FIT = 4 / 5, 0.82  # of the frame: the em square; the most that ink may span
INK = (0.01, 0.75)  # least and most share of ink in the frame
SCAN, THUMB = 240, 24  # frame of the scan; side of the images that are compared, cut to the ink
SALT = "280"  # of that hash: with Debian's free fonts, no family is more than a seventh of the test fonts
SAME = 0.06  # fonts whose squared difference is a smaller share of their ink are of one family
LARGEST = 16  # em: a glyph of more is not drawn
SECONDS = 5.0  # to scan a font
RECENT = 2**27  # bytes of images that are kept for the next call
VERSION = 1  # of the cache
NOTHING = "\U0010ffff"  # not a character, so every font draws its placeholder for it

# Words of a name that tell styles of a family apart, or name a format.
STYLES = """
    thin hairline extralight ultralight light semilight demilight lt book regular normal rg reg plain standard
    medium demi semi semibold demibold bold bd extrabold ultrabold heavy black extrablack ultrablack ultra extra fat
    italic it ital oblique obl slanted slant inclined upright backslant cursive kursiv
    condensed cond cn narrow compressed compact extended expanded wide semicondensed semiexpanded extracondensed
    ultracondensed extraexpanded nonextended mono monospace monospaced
    outline outlined inline shadow solid caps sc smallcaps allsc titling display caption text subhead small big
    std pro otf ttf ot tt ttc web variable vf
""".split()
STYLE = re.compile(rf"({'|'.join(sorted(STYLES, key=len, reverse=True))})+")


@dataclass(frozen=True)
class Glyph:
    """A character of a font. index: the face's in a collection, else 0; label: the character's place in `names`."""

    path: Path
    index: int
    family: str
    character: str
    label: int


@dataclass
class Face:
    """What a scan keeps of a face. scales: of the glyphs that are drawn, by character: 1, or less where the ink would
    not fit; left_out: the reason, by character, or by "" for the whole face."""

    path: str
    index: int
    name: str
    scales: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    digest: str = ""
    family: str = ""


class FontSet:
    """One split: glyphs, drawn when they are asked for.

    names: the characters. glyphs: of this split. labels: int64 (N,), indices into `names`. background: black.
    """

    background = (0.0,)

    def __init__(self, folder: Path, split: str, names: Sequence[str], faces: Sequence[Face]):
        self.folder, self.split, self.names, self.faces = folder, split, tuple(names), faces
        self.glyphs: list[Glyph] = []
        self.scales: list[float] = []
        for face in faces:
            if face.scales and split_of(face.family) == split:
                for character, scale in face.scales.items():
                    path, label = folder / face.path, self.names.index(character)
                    self.glyphs.append(Glyph(path, face.index, face.family, character, label))
                    self.scales.append(scale)
        self.labels = torch.tensor([glyph.label for glyph in self.glyphs], dtype=torch.int64)
        self.recent: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()

    def __len__(self) -> int:
        return len(self.glyphs)

    def render(self, index: int, size: int) -> np.ndarray:
        """A glyph drawn from its outline: uint8 (size, size), white on black. Do not write into it: it is kept."""
        key = index, size
        if key in self.recent:
            self.recent.move_to_end(key)
            return self.recent[key]
        glyph = self.glyphs[index]
        font = ImageFont.FreeTypeFont(
            str(glyph.path), size * EM * self.scales[index], glyph.index, layout_engine=ImageFont.Layout.BASIC
        )
        image = np.asarray(centred(ink(font, glyph.character), size))
        self.recent[key] = image
        while len(self.recent) > max(1, RECENT // size**2):
            self.recent.popitem(last=False)
        return image

    def images(self, indices: Sequence[int], size: int, *, master: int) -> Tensor:
        """Glyphs drawn at `master`, a multiple of `size`, as area means: uint8 (B, 1, size, size)."""
        if size < 1 or master % size:
            raise ValueError(f"master {master}: must be a multiple of the size, {size}")
        images = np.empty((len(indices), 1, size, size), np.uint8)
        for image, index in zip(images, indices, strict=True):
            drawn = self.render(int(index), master)
            image[0] = drawn if size == master else np.asarray(Image.fromarray(drawn).reduce(master // size))
        return torch.from_numpy(images)

    def report(self) -> str:
        """What is in the folder and what is left out, in at most ten lines."""
        counts = {split: Counter() for split in SPLITS}
        families = {split: set() for split in SPLITS}
        reasons, unread = Counter(), []
        for face in self.faces:
            split = split_of(face.family)
            for reason in face.left_out.values():
                reasons[reason.split(":")[0]] += 1
            if face.left_out.get("", "").startswith("unreadable"):
                unread.append(f"{face.path} ({face.left_out[''].partition(': ')[2]})")
            if face.scales:
                families[split].add(face.family)
                counts[split].update(images=len(face.scales), fonts=1)
        lines = [f"{self.folder}: {len(self.faces):,} fonts, glyphs {''.join(self.names)}"]
        for split, count in counts.items():
            parts = f"{count['images']:,} images of {count['fonts']:,} fonts in {len(families[split]):,} families"
            lines.append(f"  {split}: {parts}")
        lines += (
            [f"  left out: {', '.join(f'{n:,} {reason}' for reason, n in reasons.most_common())}"] if reasons else []
        )
        lines += [f"  unreadable: {text}" for text in unread[:3]]
        lines += [f"  and {len(unread) - 3:,} more that are unreadable"] if len(unread) > 3 else []
        return "\n".join(lines)


def is_font_folder(folder: str | Path) -> bool:
    """Whether a folder holds fonts."""
    return Path(folder).expanduser().is_dir() and bool(find_fonts(folder))


def find_fonts(folder: str | Path) -> list[Path]:
    """The font files of a folder at any depth, sorted, without hidden ones. Links are followed, none of them twice."""
    root, found, seen = Path(folder).expanduser(), [], set()
    for path, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(path)
        folders[:] = [] if real in seen else [name for name in folders if not name.startswith(".")]
        if real not in seen:
            found += [Path(path, n) for n in files if n.lower().endswith(SUFFIXES) and not n.startswith(".")]
        seen.add(real)
    return sorted((file for file in found if file.is_file()), key=lambda file: file.relative_to(root).as_posix())


def load_fonts(
    folder: str | Path, split: str, *, glyphs: str = "ABCDEFGHIJKLMNOPQRSTUVWXYZ", cache: Path | None = None
) -> FontSet:
    """The glyphs of a folder's fonts; 85, 5 and 10 % of the families are the train, validation and test splits.

    A family is all fonts of a name without its words of style, and all whose shapes are nearly the same. Its split
    follows from its name alone, so other fonts that are added do not change it. Left out: fonts that cannot be read or
    repeat another, glyphs that are missing, placeholders, (nearly) empty or full, fonts whose glyphs are all alike.
    cache: a file that keeps the scan until a font changes. Raises ValueError for a folder without usable fonts.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r}: must be one of {', '.join(SPLITS)}")
    if not glyphs or len(set(glyphs)) < len(glyphs):
        raise ValueError(f"glyphs {glyphs!r}: must be one or more characters, each once")
    root = Path(folder).expanduser()
    files = find_fonts(root) if root.is_dir() else []
    if not files:
        raise ValueError(f"{folder}: no fonts; it must hold {', '.join(SUFFIXES)} files")
    stamps = {}
    for file in files:
        status = file.stat()
        stamps[file.relative_to(root).as_posix()] = [status.st_size, status.st_mtime_ns]
    faces = read_cache(cache, glyphs, stamps)
    if faces is None:
        faces = scan(root, files, glyphs)
        if cache:
            write_cache(cache, glyphs, stamps, faces)
    fonts = FontSet(root, split, glyphs, faces)
    if not fonts.glyphs:
        raise ValueError(f"{folder}: the {split} split is empty; add fonts\n{fonts.report()}")
    return fonts


def split_of(family: str) -> str:
    place = int.from_bytes(hashlib.sha256(f"{SALT}{family}".encode()).digest()[:8], "big") / 2**64
    return "test" if place < TEST else "validation" if place < VALIDATION else "train"


def read_cache(cache: Path | None, glyphs: str, stamps: dict) -> list[Face] | None:
    try:
        stored = json.loads(cache.read_text("utf-8")) if cache else {}
        if (stored.get("version"), stored.get("glyphs"), stored.get("files")) == (VERSION, glyphs, stamps):
            return [Face(**face) for face in stored["faces"]]
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        pass  # none yet, or not ours: the folder is scanned
    return None


def write_cache(cache: Path, glyphs: str, stamps: dict, faces: list[Face]) -> None:
    cache.parent.mkdir(parents=True, exist_ok=True)
    partial = cache.with_name(f"{cache.name}.{os.getpid()}")
    stored = {"version": VERSION, "glyphs": glyphs, "files": stamps, "faces": [asdict(face) for face in faces]}
    partial.write_text(json.dumps(stored, ensure_ascii=False), "utf-8")
    partial.replace(cache)


# drawing


def ink(font: ImageFont.FreeTypeFont, character: str) -> Image.Image | None:
    """A glyph's coverage, cut to its ink; None without any. Raises ValueError for one too large to draw."""
    left, top, right, bottom = font.getbbox(character)
    if max(abs(left), abs(top), abs(right), abs(bottom)) > LARGEST * font.size:
        raise ValueError("oversized")
    if right <= left or bottom <= top:
        return None
    image = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(image).text((-left, -top), character, fill=255, font=font)
    box = image.getbbox()
    return image.crop(box) if box else None


def centred(glyph: Image.Image | None, size: int) -> Image.Image:
    frame = Image.new("L", (size, size))
    if glyph:
        frame.paste(glyph, ((size - glyph.width) // 2, (size - glyph.height) // 2))
    return frame


# the scan


def scan(root: Path, files: Sequence[Path], glyphs: str) -> list[Face]:
    faces, thumbs = [], []
    for file in files:
        for index in range(face_count(file)):
            face = Face(file.relative_to(root).as_posix(), index, file.stem)
            faces.append(face)
            thumbs.append(scan_face(face, file, glyphs))
    first: dict[str, int] = {}
    for number, face in enumerate(faces):
        if face.scales and first.setdefault(face.digest, number) != number:
            face.left_out, face.scales = {"": "repeated"}, {}
    set_families(faces, thumbs, first)
    return faces


def face_count(file: Path) -> int:
    try:
        with file.open("rb") as stream:
            head = stream.read(12)
    except OSError:
        return 1
    return max(1, min(256, int.from_bytes(head[8:12], "big"))) if head[:4] == b"ttcf" else 1


def scan_face(face: Face, file: Path, glyphs: str) -> dict[str, np.ndarray]:
    """Fills in a face and returns its glyphs' thumbnails, cut to the ink, float32 (THUMB²) in [0, 1]."""
    start, images = time.monotonic(), {}
    try:
        font = ImageFont.FreeTypeFont(str(file), SCAN * EM, face.index, layout_engine=ImageFont.Layout.BASIC)
        name = clean(font.getname()[0])
        face.name = name if re.search(r"[^\W\d_]", name) else file.stem
        nothing = digest(ink(font, NOTHING))
        for character in glyphs:
            scale, image = 1.0, None
            try:
                image = ink(font, character)
                if image and max(image.size) > FIT * SCAN:
                    scale = FIT * SCAN / max(image.size)
                    small = ImageFont.FreeTypeFont(
                        str(file), SCAN * EM * scale, face.index, layout_engine=ImageFont.Layout.BASIC
                    )
                    reduced = ink(small, character)
                else:
                    reduced = image
            except ValueError:
                face.left_out[character] = "oversized"
                continue
            share = np.asarray(centred(reduced, SCAN)).mean() / 255
            if image and digest(image) == nothing:
                face.left_out[character] = "missing"
            elif not INK[0] <= share <= INK[1]:
                face.left_out[character] = "empty" if share < INK[0] else "over-full"
            else:
                face.scales[character], images[character] = scale, image
            if time.monotonic() - start > SECONDS:
                raise TimeoutError(f"takes more than {SECONDS:g} s")
    except Exception as error:  # noqa: BLE001 - whatever a broken font raises
        lines = clean(str(error)) or type(error).__name__
        face.scales, face.left_out = {}, {"": f"unreadable: {lines}"}
        return {}
    digests = {character: digest(image) for character, image in images.items()}
    shared = Counter(digests.values())
    if len(images) > 2 and len(shared) <= len(images) / 2:
        face.scales, face.left_out = {}, {"": "all alike"}
    for character in images:
        if face.scales and shared[digests[character]] > 2:
            face.left_out[character] = "placeholder"
            del face.scales[character]
    if not face.scales:
        face.left_out.setdefault("", "without these glyphs")
        return {}
    face.digest = digest("".join(f"{character}{digests[character]}" for character in face.scales))
    return {character: thumbnail(images[character]) for character in face.scales}


def digest(content: Image.Image | str | None) -> str:
    if isinstance(content, Image.Image):
        content = f"{content.size}".encode() + content.tobytes()
    return hashlib.sha256(content.encode() if isinstance(content, str) else content or b"").hexdigest()[:16]


def clean(text: str | None) -> str:
    """One short line without control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text or "").split())[:100]


def thumbnail(image: Image.Image) -> np.ndarray:
    square = centred(image, max(image.size))
    return np.asarray(square.resize((THUMB, THUMB), Image.Resampling.BOX), np.float32).ravel() / 255


# families


def set_families(faces: list[Face], thumbs: list[dict[str, np.ndarray]], first: dict[str, int]) -> None:
    """Families: of one name without words of style, or alike. Each is called as its first member in order."""
    parent = list(range(len(faces)))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = number = parent[parent[number]]
        return number

    keys: dict[str, int] = {}
    for number, face in enumerate(faces):
        parent[root(number)] = root(keys.setdefault(family_name(face.name), number))
        parent[root(number)] = root(first.get(face.digest, number))
    drawn = [number for number, face in enumerate(faces) if face.scales]
    for a, b in alike([thumbs[number] for number in drawn]):
        parent[root(drawn[a])] = root(drawn[b])
    called: dict[int, str] = {}
    for number, face in enumerate(faces):
        name = family_name(face.name)
        # A name of digits alone, a file's, tells least.
        called[root(number)] = min(called.get(root(number), name), name, key=lambda name: (name.isdecimal(), name))
    for number, face in enumerate(faces):
        face.family = called[root(number)]


def family_name(name: str) -> str:
    """A font's name without words of style, sizes and spaces, in small letters."""
    words = re.findall(r"[^\W\d_]+", re.sub(r"\d+ ?pt\b|(?<=[a-z])(?=[A-Z])", " ", name))
    kept = [word for word in map(str.lower, words) if not STYLE.fullmatch(word)]
    return "".join(kept) or "".join(words).lower() or name.lower()


def alike(thumbs: list[dict[str, np.ndarray]]) -> list[tuple[int, int]]:
    """Pairs of fonts whose glyphs, those that both have and at least half of each, are nearly the same."""
    if len(thumbs) < 2:
        return []
    characters = sorted(set().union(*thumbs))
    has = np.array([[character in font for character in characters] for font in thumbs], np.float32)
    difference = np.zeros((len(thumbs), len(thumbs)), np.float32)
    total = np.zeros_like(difference)
    for number, character in enumerate(characters):
        rows = np.stack([font.get(character, np.zeros(THUMB**2, np.float32)) for font in thumbs])
        squares = (rows**2).sum(1)
        both = np.outer(has[:, number], has[:, number])
        energy = (squares[:, None] + squares[None]) * both / 2
        total += energy
        difference += 2 * (energy - rows @ rows.T * both)
    common, own = has @ has.T, has.sum(1)
    close = (difference < SAME * total) & (2 * common >= np.maximum(own[:, None], own[None]))
    return [(a, b) for a, b in np.argwhere(np.triu(close, 1)).tolist()]
