"""Which fonts are of one family, by name and by shape, and the split of each family."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence

import numpy as np

SPLITS = ("train", "validation", "test")
TEST, VALIDATION = 0.10, 0.15  # a family's hash in [0, 1): test below the first, validation below the second
SALT = "280"  # of the hash: among Debian's free fonts, no family is more than a seventh of the test fonts
SAME = 0.06  # fonts whose squared difference is a smaller share of their ink are of one family
NEAR = 0.10  # no font of validation or test is so near to one of training
COMMON = 5  # glyphs that two fonts must share to be compared
BLOCK = 1_024  # fonts compared with all others at once

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

Glyphs = dict[str, np.ndarray]  # small images of a font's glyphs, (side²,) in [0, 1], by character


def split_of(family: str) -> str:
    """The split of a family. It follows from the name alone, so families that are added change no other's."""
    place = int.from_bytes(hashlib.sha256(f"{SALT}{family}".encode()).digest()[:8], "big") / 2**64
    return "test" if place < TEST else "validation" if place < VALIDATION else "train"


def family_name(name: str) -> str:
    """A font's name without words of style, sizes and spaces, in small letters."""
    words = re.findall(r"[^\W\d_]+", re.sub(r"\d+ ?pt\b|(?<=[a-z])(?=[A-Z])", " ", name))
    kept = [word for word in map(str.lower, words) if not STYLE.fullmatch(word)]
    return "".join(kept) or "".join(words).lower() or name.lower()


def has_letters(name: str) -> bool:
    return re.search(r"[^\W\d_]", name) is not None


def find_families(names: Sequence[str], fonts: Sequence[Glyphs]) -> tuple[list[str], dict[int, str]]:
    """The family of each font, and the fonts that must not be in validation or test, with the reason.

    Fonts are of one family whose names are equal without words of style, or whose glyphs are nearly the same, and so
    are those that a chain of such fonts joins. A family is called as its first member in order.
    """
    parent = list(range(len(names)))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = number = parent[parent[number]]
        return number

    first: dict[str, int] = {}
    for number, name in enumerate(names):
        parent[root(number)] = root(first.setdefault(family_name(name), number))
    pairs = list(near_pairs(fonts))
    for a, b, difference in pairs:
        if difference < SAME:
            parent[root(a)] = root(b)

    called: dict[int, str] = {}
    for number, name in enumerate(map(family_name, names)):
        # A name without letters, as of a file, tells least.
        best = min(called.get(root(number), name), name, key=lambda name: (not has_letters(name), name))
        called[root(number)] = best
    families = [called[root(number)] for number in range(len(names))]
    splits = [split_of(family) for family in families]
    unfit = {number: "without a name" for number, name in enumerate(names) if not has_letters(name)}
    for a, b, _ in pairs:
        for number, other in ((a, b), (b, a)):
            if splits[number] != "train" and splits[other] == "train":
                unfit[number] = "near to a training font"
    return families, {number: reason for number, reason in unfit.items() if splits[number] != "train"}


def near_pairs(fonts: Sequence[Glyphs]) -> Iterator[tuple[int, int, float]]:
    """Pairs a < b of fonts that differ by less than NEAR, and by how much: the squared difference of the glyphs that
    both have, at least COMMON and half of each font's, as a share of their squares."""
    characters = sorted(set().union(*fonts))
    if not characters:
        return
    side = len(next(iter(next(font for font in fonts if font).values())))
    has = np.array([[character in font for character in characters] for font in fonts], np.float32)
    images = [np.stack([font.get(c, np.zeros(side, np.float32)) for font in fonts]) for c in characters]
    squares = np.stack([(rows**2).sum(1) for rows in images], 1)
    for start in range(0, len(fonts), BLOCK):
        block = slice(start, start + BLOCK)
        total = (squares[block] @ has.T + has[block] @ squares.T) / 2
        product = sum(rows[block] @ rows.T for rows in images)
        common = has[block] @ has.T
        enough = (common >= COMMON) & (2 * common >= np.maximum(has[block].sum(1)[:, None], has.sum(1)))
        difference = np.where(enough, 2 * (1 - product / np.maximum(total, 1e-6)), np.inf)
        for a, b in np.argwhere(difference < NEAR).tolist():
            if start + a < b:
                yield start + a, b, float(difference[a, b])
