"""A folder of fonts as a data set: every glyph of every font is an image, drawn from its outline at any size."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from r2id.limits import check_choice
from train.data.describe import MissingSplit, plural
from train.data.font_families import SPLITS, find_families, has_letters, split_of

CAPITALS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SUFFIXES = (".otf", ".ttc", ".ttf", ".woff2")
EM, FIT = 4 / 5, 0.82  # of the frame: the em square; the most that ink may span
INK = (0.01, 0.60)  # least and most share of ink in the frame: a solid square of the size FIT has 0.67
SCAN, THUMBNAIL = 240, 24  # side of the frame of the scan; of the images that are compared, cut to the ink
LARGEST = 4  # em: a glyph of more is not drawn
SECONDS = 5.0  # to scan a font
# Pillow always hints: it moves edges by up to half a pixel of the size drawn (29 to 40 dB from the outline's exact
# coverage at 1,024 pixels, 21 to 31 at 128). So nothing is drawn smaller than this, and less is its area means, whose
# edges are within 1/16 pixel at 128. Bitmaps that some fonts hold for small sizes are never used either.
DRAWN = 1_024
RECENT = 2**27  # bytes of images that are kept for the next call
VERSION = 2  # of the cache
NOTHING = "\U0010ffff"  # not a character, so every font draws its placeholder for it


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
        self.recent: dict[tuple[int, int], np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.glyphs)

    def has(self, split: str) -> bool:
        """Whether any glyph is of a split."""
        return any(face.scales and split_of(face.family) == split for face in self.faces)

    def render(self, index: int, size: int) -> np.ndarray:
        """A glyph drawn from its outline: uint8 (size, size), white on black, read only.

        Takes about 1 ms at 1,024, and time as the number of pixels; Pillow holds the interpreter's lock meanwhile, so
        only processes draw in parallel. Raises ValueError where the file has changed and cannot be drawn."""
        image = self.recent.get((index, size))
        if image is None:
            glyph, whole = self.glyphs[index], size * -(-DRAWN // size)
            try:
                font = open_font(glyph.path, whole * EM * self.scales[index], glyph.index)
                image = reduced(centred(ink(font, glyph.character), whole), whole // size)
            except OSError as error:
                raise ValueError(f"{glyph.path}: cannot be drawn: {error}; start again") from error
            image.flags.writeable = False
            self.recent[index, size] = image
            for key in list(self.recent)[: -max(1, RECENT // size**2)]:
                self.recent.pop(key, None)
        return image

    def images(self, indices: Sequence[int], size: int, *, master: int) -> Tensor:
        """Glyphs drawn at `master`, a multiple of `size`, as area means: uint8 (B, 1, size, size). Images of several
        sizes agree where they have one master."""
        if size < 1 or master < 1 or master % size:
            raise ValueError(f"master {master}: must be a multiple of the size, {size}")
        images = np.empty((len(indices), 1, size, size), np.uint8)
        for image, index in zip(images, indices, strict=True):
            image[0] = reduced(Image.fromarray(self.render(int(index), master)), master // size)
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
        lines = [f"{self.folder}: {plural(len(self.faces), 'font')}, glyphs {''.join(self.names)}"]
        for split, count in counts.items():
            fonts = f"{plural(count['fonts'], 'font')} in {plural(len(families[split]), 'family')}"
            lines.append(f"  {split}: {plural(count['images'])} of {fonts}")
        named = ", ".join(f"{number:,} {reason}" for reason, number in reasons.most_common())
        lines += [f"  left out: {named}"] if named else []
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


def load_fonts(folder: str | Path, split: str, *, glyphs: str = CAPITALS, cache: Path | None = None) -> FontSet:
    """The glyphs of a folder's fonts; 85, 5 and 10 % of the families are the train, validation and test splits.

    A family is all fonts of a name without its words of style, and all whose shapes are nearly the same. Its split
    follows from its name alone, so other fonts that are added do not change it. Left out: fonts that cannot be read or
    repeat another; those of validation and test that have no name or are near to one of training; glyphs that are
    missing, placeholders, (nearly) empty or full; fonts whose glyphs are all alike.
    cache: a file that keeps the scan until a font changes. Raises ValueError for a folder without usable fonts, and
    MissingSplit for a split without any.
    """
    check_choice(split, "split", SPLITS)
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
        counted = "; ".join(line.strip() for line in fonts.report().splitlines()[1 : len(SPLITS) + 3])
        raise MissingSplit(f"{folder}: the {split} split is empty ({counted}); add fonts of other families")
    return fonts


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
    partial.write_text(json.dumps(stored), "utf-8")
    partial.replace(cache)


# drawing


def open_font(path: Path, size: float, index: int) -> ImageFont.FreeTypeFont:
    """Not `ImageFont.truetype`, which takes a system's font of the same name in place of a broken file."""
    return ImageFont.FreeTypeFont(str(path), size, index, layout_engine=ImageFont.Layout.BASIC)


def ink(font: ImageFont.FreeTypeFont, character: str) -> Image.Image | None:
    """A glyph's coverage, cut to its ink; None without any, or for one of more than LARGEST."""
    left, top, right, bottom = font.getbbox(character)
    if max(-left, -top, right, bottom) > LARGEST * font.size or right <= left or bottom <= top:
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


def reduced(image: Image.Image, factor: int) -> np.ndarray:
    """Means of squares of `factor` pixels."""
    return np.asarray(image.reduce(factor) if factor > 1 else image)


# the scan


def scan(root: Path, files: Sequence[Path], glyphs: str) -> list[Face]:
    faces, fonts = [], []
    for file in files:
        for index in range(face_count(file)):
            faces.append(Face(file.relative_to(root).as_posix(), index, clean(file.stem)))
            fonts.append(scan_face(faces[-1], file, glyphs))
    families, unfit = find_families([face.name for face in faces], fonts)
    seen = set()
    for number, face in enumerate(faces):
        face.family = families[number]
        if face.scales and (face.digest in seen or number in unfit):
            face.left_out = {"": "repeated" if face.digest in seen else unfit[number]}
            face.scales = {}
        seen.add(face.digest)
    return faces


def face_count(file: Path) -> int:
    try:
        with file.open("rb") as stream:
            head = stream.read(12)
    except OSError:
        return 1
    return max(1, min(256, int.from_bytes(head[8:12], "big"))) if head[:4] == b"ttcf" else 1


def scan_face(face: Face, file: Path, glyphs: str) -> dict[str, np.ndarray]:
    """Fills in a face and returns its glyphs as small images, float32 (THUMBNAIL²,) in [0, 1], by character."""
    try:
        images = scan_glyphs(face, file, glyphs)
    except Exception as error:  # whatever a broken font raises
        face.scales, face.left_out = {}, {"": f"unreadable: {clean(str(error)) or type(error).__name__}"}
        return {}
    digests = {character: digest(image) for character, image in images.items()}
    shared = Counter(digests.values())
    if len(images) > 2 and len(shared) <= len(images) / 2:
        face.scales, face.left_out = {}, {"": "all alike"}
        return {}
    for character in images:
        if shared[digests[character]] > 2:
            face.left_out[character] = "placeholder"
            del face.scales[character]
    face.digest = digest("".join(f"{character}{digests[character]}" for character in face.scales))
    return {character: thumbnail(images[character]) for character in face.scales}


def scan_glyphs(face: Face, file: Path, glyphs: str) -> dict[str, Image.Image]:
    """Sets a face's name, and the scale or the reason of each glyph. Returns the ink of those that are drawn."""
    start, images = time.monotonic(), {}
    font = open_font(file, SCAN * EM, face.index)
    name = clean(font.getname()[0])
    face.name = name if has_letters(name) else face.name
    nothing = ink(font, NOTHING)
    for character in glyphs:
        image, scale = ink(font, character), 1.0
        fitted = image
        if image and max(image.size) > FIT * SCAN:
            scale = FIT * SCAN / max(image.size)
            fitted = ink(open_font(file, SCAN * EM * scale, face.index), character)
        share = np.asarray(centred(fitted, SCAN)).mean() / 255
        if same_image(image, nothing):
            face.left_out[character] = "missing"
        elif not INK[0] <= share <= INK[1]:
            face.left_out[character] = "empty" if share < INK[0] else "over-full"
        else:
            face.scales[character], images[character] = scale, image
        if time.monotonic() - start > SECONDS:
            raise TimeoutError(f"takes more than {SECONDS:g} s")
    return images


def same_image(image: Image.Image | None, other: Image.Image | None) -> bool:
    """Whether two glyphs are the same but for hinting, which may differ between a placeholder and a letter."""
    if image is None or other is None:
        return image is other
    if abs(image.width - other.width) > 1 or abs(image.height - other.height) > 1:
        return False
    a, b = (np.asarray(centred(each, SCAN), np.float32) / 255 for each in (image, other))
    return float(np.abs(a - b).sum()) <= 0.02 * float(a.sum() + b.sum())


def digest(content: Image.Image | str | None) -> str:
    if isinstance(content, Image.Image):
        content = f"{content.size}".encode() + content.tobytes()
    return hashlib.sha256(content.encode() if isinstance(content, str) else content or b"").hexdigest()[:16]


def clean(text: str | None) -> str:
    """One short line without control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text or "").split())[:100]


def thumbnail(image: Image.Image) -> np.ndarray:
    square = centred(image, max(image.size))
    return np.asarray(square.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX), np.float32).ravel() / 255
