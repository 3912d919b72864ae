"""A folder of fonts: what is an image and what is left out, how it is drawn, and that families are never torn apart."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from fontTools.ttLib import TTCollection, TTFont
from test_font_families import family_in

from train.data import fonts
from train.data.describe import MissingSplit
from train.data.font_families import split_of
from train.data.fonts import find_fonts, is_font_folder, load_fonts

LETTERS = "ABCDEF"
Box = tuple[int, int, int, int]  # left, bottom, right, top, in thousandths of the em


def pattern(seed: int, letter: str) -> list[Box]:
    """Boxes of a 5 x 7 grid, 500 wide and 700 high, at random but for two corners that make every glyph as large."""
    cells = np.random.default_rng((seed, ord(letter))).random((5, 7)) < 0.4
    cells[0, 0] = cells[4, 6] = True
    return [(100 * x, 100 * y, 100 * x + 100, 100 * y + 100) for x, y in np.argwhere(cells).tolist()]


def save_font(path: Path, name: str, glyphs: dict[str, list[Box]]) -> Path:
    names = [".notdef", *(f"uni{ord(c):04X}" for c in glyphs)]
    drawn = {}
    for glyph, boxes in zip(names, [[(50, 0, 450, 600)], *glyphs.values()], strict=True):
        pen = TTGlyphPen(None)
        for left, bottom, right, top in boxes:
            pen.moveTo((left, bottom))
            for point in ((left, top), (right, top), (right, bottom)):
                pen.lineTo(point)
            pen.closePath()
        drawn[glyph] = pen.glyph()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(c): glyph for c, glyph in zip(glyphs, names[1:], strict=True)})
    builder.setupGlyf(drawn)
    lefts = [drawn[glyph].xMin if drawn[glyph].numberOfContours else 0 for glyph in names]
    builder.setupHorizontalMetrics({glyph: (600, left) for glyph, left in zip(names, lefts, strict=True)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": name, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    path.parent.mkdir(parents=True, exist_ok=True)
    builder.save(path)
    return path


def alphabet(seed: int, letters: str = LETTERS, **other: list[Box]) -> dict[str, list[Box]]:
    return {letter: pattern(seed, letter) for letter in letters} | other


def everything(folder: Path, letters: str = LETTERS) -> dict[str, fonts.FontSet]:
    """The splits that have images."""
    sets = {}
    for split in ("train", "validation", "test"):
        try:
            sets[split] = load_fonts(folder, split, glyphs=letters)
        except ValueError as error:
            assert "is empty" in str(error)
    return sets


def only(folder: Path, letters: str = LETTERS) -> fonts.FontSet:
    """The one split that has images."""
    (found,) = everything(folder, letters).values()
    return found


def test_every_glyph_of_every_font_is_an_image_and_its_label(tmp_path):
    train, test = family_in("train"), family_in("test")
    save_font(tmp_path / "a.ttf", train, alphabet(1))
    save_font(tmp_path / "deep" / "er" / "b.TTF", test, alphabet(2, "ACE"))
    sets = everything(tmp_path)
    assert set(sets) == {"train", "test"}
    assert [(g.path.name, g.family, g.character, g.label) for g in sets["test"].glyphs] == [
        ("b.TTF", test.lower(), letter, LETTERS.index(letter)) for letter in "ACE"
    ]
    assert [glyph.character for glyph in sets["train"].glyphs] == list(LETTERS)
    assert sets["test"].labels.tolist() == [0, 2, 4] and sets["test"].labels.dtype == torch.int64
    assert sets["test"].names == tuple(LETTERS) and sets["test"].background == (0.0,)
    assert len(sets["train"]) == 6


def test_a_glyph_is_its_outline_white_on_black_in_the_middle_on_an_em_of_four_fifths(tmp_path):
    save_font(tmp_path / "a.ttf", "Font", alphabet(1, "BCDEF", A=[(0, 0, 500, 700), (0, 0, 100, 100)]))
    font = only(tmp_path)
    drawn = font.render(0, 1250)
    rows, columns = np.nonzero(drawn.any(1))[0], np.nonzero(drawn.any(0))[0]
    assert (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1) == (275, 975, 375, 875)  # 1,000 pixels an em
    assert (drawn[275:975, 375:875] == 255).all() and drawn.dtype == np.uint8
    other = font.render(1, 1250)
    expected = np.zeros((7, 5))
    for left, bottom, *_ in pattern(1, "B"):
        expected[6 - bottom // 100, left // 100] = 255
    np.testing.assert_array_equal(other[325:975:100, 425:875:100], expected)


@pytest.mark.parametrize("size", [8, 32, 128])
def test_coarser_images_are_area_means_of_the_master(tmp_path, size):
    save_font(tmp_path / "a.ttf", "Font", alphabet(1))
    font = only(tmp_path)
    masters = font.images([3, 0], 512, master=512).float()
    images = font.images(torch.tensor([3, 0]), size, master=512)
    assert images.shape == (2, 1, size, size) and images.dtype == torch.uint8 and images.amax() > 100
    means = torch.nn.functional.avg_pool2d(masters, 512 // size)
    assert (images - means).abs().max() <= 0.51  # rounded


def test_an_image_drawn_small_is_what_a_large_one_becomes(tmp_path):
    save_font(tmp_path / "a.ttf", "Font", alphabet(1))
    font = only(tmp_path)
    small = font.images([0], 16, master=16)
    assert (small.int() - font.images([0], 16, master=1024).int()).abs().max() <= 1


def test_what_is_drawn_again_is_the_same_whatever_came_between(tmp_path, monkeypatch):
    monkeypatch.setattr(fonts, "RECENT", 2 * 64**2)
    save_font(tmp_path / "a.ttf", "Font", alphabet(1))
    font = only(tmp_path)
    first = [font.render(index, 64).copy() for index in range(6)]
    assert len(font.recent) == 2
    assert all((font.render(index, 64) == first[index]).all() for index in (0, 5, 1, 1))
    with pytest.raises(ValueError, match="read-only"):
        font.render(0, 64)[0, 0] = 1


@pytest.mark.parametrize("box", [(0, 0, 3000, 300), (0, 0, 300, 1900), (-2000, 0, 500, 300)])
def test_a_glyph_too_wide_or_tall_is_reduced_to_fit(tmp_path, box):
    save_font(tmp_path / "a.ttf", "Font", alphabet(1, "BCDEF") | {"A": [box]})
    font = only(tmp_path)
    index = [glyph.character for glyph in font.glyphs].index("A")
    drawn = font.render(index, 1000)
    rows, columns = np.nonzero(drawn.any(1))[0], np.nonzero(drawn.any(0))[0]
    width, height = columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]
    assert 810 <= max(width, height) <= 821
    assert width / height == pytest.approx((box[2] - box[0]) / (box[3] - box[1]), rel=0.02)
    assert abs(rows[0] + rows[-1] + 1 - 1000) <= 1 and abs(columns[0] + columns[-1] + 1 - 1000) <= 1


def test_what_is_left_out_is_counted_by_its_reason(tmp_path):
    full, specks = [(-300, -300, 1300, 1300)], [(0, 0, 20, 20)]
    glyphs = alphabet(1, "ABCDEF", G=[], H=specks, I=full, K=[(50, 0, 450, 600)], L=[(0, 0, 9000, 300)])
    same = [(0, 0, 400, 400)]
    save_font(tmp_path / "a.ttf", "Font", glyphs | dict.fromkeys("MNO", same))
    save_font(tmp_path / "b.ttf", "Copy", glyphs | dict.fromkeys("MNO", same))
    save_font(tmp_path / "c.ttf", "Boxes", dict.fromkeys("ABCDEFGH", same))
    save_font(tmp_path / "d.ttf", "Numbers", alphabet(2, "0123"))
    (tmp_path / "e.otf").write_bytes(b"no font")
    font = only(tmp_path, "ABCDEFGHIJKLMNO")
    assert "".join(glyph.character for glyph in font.glyphs) == "ABCDEF"
    faces = {face.path: face.left_out for face in font.faces}
    assert faces["a.ttf"] == {
        **dict.fromkeys("GHL", "empty"),
        "I": "over-full",
        **dict.fromkeys("JK", "missing"),
        **dict.fromkeys("MNO", "placeholder"),
    }
    assert faces["b.ttf"] == {"": "repeated"} and faces["c.ttf"] == {"": "all alike"}
    assert set(faces["d.ttf"].values()) == {"missing"} and faces["e.otf"][""].startswith("unreadable: ")
    report = font.report()
    for part in ("1 repeated", "1 all alike", "3 placeholder", "3 empty", "1 over-full", "e.otf ("):
        assert part in report


def test_the_report_is_short_however_many_fonts_are_broken(tmp_path):
    save_font(tmp_path / "a.ttf", "Font", alphabet(1))
    for number in range(30):
        (tmp_path / f"broken {number}.ttf").write_bytes(b"x" * number)
    report = only(tmp_path).report()
    assert len(report.splitlines()) <= 10 and "30 unreadable" in report


def test_a_broken_font_is_not_replaced_by_one_of_the_system(tmp_path, monkeypatch):
    home = tmp_path / "home"
    save_font(home / "fonts" / "a.ttf", "System", alphabet(2))
    monkeypatch.setenv("XDG_DATA_HOME", str(home))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.ttf").write_bytes(b"no font")
    with pytest.raises(ValueError, match="1 unreadable"):
        load_fonts(tmp_path / "mine", "train")


def test_faces_of_a_collection_are_fonts(tmp_path):
    collection = TTCollection()
    for number in (1, 2):
        collection.fonts.append(TTFont(save_font(tmp_path / "parts" / f"{number}.ttf", "Font", alphabet(number))))
    (tmp_path / "all").mkdir()
    collection.save(tmp_path / "all" / "both.ttc")
    font = only(tmp_path / "all")
    assert [glyph.index for glyph in font.glyphs] == [0] * 6 + [1] * 6
    parts = only(tmp_path / "parts")
    assert all((font.render(index, 64) == parts.render(index, 64)).all() for index in range(12))


def test_compressed_fonts_are_read(tmp_path):
    font = TTFont(save_font(tmp_path / "a.ttf", "Font", alphabet(1)))
    font.flavor = "woff2"
    (tmp_path / "web").mkdir()
    font.save(tmp_path / "web" / "a.woff2")
    assert (only(tmp_path / "web").render(0, 64) == only(tmp_path).render(0, 64)).all()


# families


def family_sets(folder: Path) -> dict[str, str]:
    """The split of every font that is in one."""
    return {glyph.path.name: split for split, font in everything(folder).items() for glyph in font.glyphs}


def test_fonts_of_nearly_the_same_shape_are_one_family_whatever_their_names_and_sizes(tmp_path):
    names = family_in("train"), family_in("test"), family_in("validation")
    larger = {c: [tuple(round(1.3 * side) for side in box) for box in boxes] for c, boxes in alphabet(1).items()}
    larger["A"] = larger["A"][:-1] + [(520, 780, 650, 910)]
    save_font(tmp_path / "a.ttf", names[0], alphabet(1))
    save_font(tmp_path / "b.ttf", names[1], larger)
    save_font(tmp_path / "c.ttf", names[2], alphabet(3))
    found = family_sets(tmp_path)
    assert found["a.ttf"] == found["b.ttf"] == split_of(min(names[:2]).lower()) and found["c.ttf"] == "validation"


def test_a_font_between_one_and_another_family_is_not_used_to_judge(tmp_path):
    """Near to a training font, but not so near as to be of its family."""
    train, test = family_in("train"), family_in("test")
    close = alphabet(1)
    for letter in "ABCD":  # a box moves
        free = [(x, y, x + 100, y + 100) for x in range(100, 400, 100) for y in range(100, 600, 100)]
        close[letter][1] = next(box for box in free if box not in close[letter])
    save_font(tmp_path / "a.ttf", train, alphabet(1))
    save_font(tmp_path / "b.ttf", test, close)
    save_font(tmp_path / "c.ttf", test, alphabet(5))
    images = {face.path: face for face in load_fonts(tmp_path, "train", glyphs=LETTERS).faces}
    assert images["b.ttf"].family == test.lower() and images["b.ttf"].left_out == {"": "near to a training font"}
    assert family_sets(tmp_path) == {"a.ttf": "train", "c.ttf": "test"}


def test_a_font_without_a_name_is_called_by_its_file_and_used_to_train_at_most(tmp_path):
    numbers = [next(str(n) for n in range(9999) if split_of(str(n)) == split) for split in ("train", "test")]
    for number, seed in zip(numbers, (1, 2), strict=True):
        save_font(tmp_path / f"{number}.ttf", ".", alphabet(seed))
    save_font(tmp_path / f"{family_in('test')}-Bold.ttf", ".", alphabet(3))
    assert family_sets(tmp_path) == {f"{numbers[0]}.ttf": "train", f"{family_in('test')}-Bold.ttf": "test"}


# what comes from outside


def test_damaged_fonts_are_read_or_left_out_with_a_reason(tmp_path):
    """Cut short or with flipped bits: no exception, no crash, nothing drawn that is no image."""
    rng = np.random.default_rng(0)
    save_font(tmp_path / "a.ttf", "Font", alphabet(1))
    whole = (tmp_path / "a.ttf").read_bytes()
    for number in range(120):
        damaged = bytearray(whole)
        if number % 3 == 0:
            damaged = damaged[: rng.integers(len(whole))]
        for place in rng.integers(len(damaged), size=number % 3 * 8) if damaged else ():
            damaged[place] ^= 1 << rng.integers(8)
        (tmp_path / f"b{number}.ttf").write_bytes(damaged)
    sets = everything(tmp_path)
    faces = next(iter(sets.values())).faces
    assert len(faces) >= 121
    assert all(face.scales or face.left_out for face in faces)
    reasons = [face.left_out.get("", "") for face in faces]
    assert sum(reason.startswith("unreadable") for reason in reasons) > 20
    assert all("\n" not in reason and len(reason) < 130 for reason in reasons)
    for font in sets.values():
        images = font.images(range(len(font)), 16, master=64)
        assert (images.flatten(1).amax(1) > 0).all()


def test_a_hostile_collection_is_bounded(tmp_path):
    save_font(tmp_path / "a.ttf", "Font", alphabet(1))
    (tmp_path / "b.ttc").write_bytes(b"ttcf" + b"\x00\x01\x00\x00" + b"\xff" * 64)
    assert len(only(tmp_path).faces) <= 257


def test_a_font_that_takes_too_long_is_left_out(tmp_path, monkeypatch):
    save_font(tmp_path / "a.ttf", "Font", alphabet(1))
    monkeypatch.setattr(fonts, "SECONDS", 0.0)
    with pytest.raises(ValueError, match=r"a\.ttf \(takes more than 0 s\)"):
        load_fonts(tmp_path, "train", glyphs=LETTERS)


def test_links_that_lead_back_up_are_followed_once(tmp_path):
    inner = tmp_path / "one" / "two"
    save_font(inner / "a.ttf", "Font", alphabet(1))
    save_font(tmp_path / "elsewhere" / "b.ttf", "Font", alphabet(2))
    save_font(tmp_path / "one" / ".hidden" / "c.ttf", "Font", alphabet(2))
    for name in (".d.ttf", "e.txt"):
        (inner / name).write_bytes(b"")
    (inner / "f.ttf").mkdir()
    try:
        (inner / "back").symlink_to(tmp_path / "one")
        (inner / "there").symlink_to(tmp_path / "elsewhere")
    except OSError:
        pytest.skip("this file system has no symbolic links")
    found = [path.relative_to(tmp_path / "one").as_posix() for path in find_fonts(tmp_path / "one")]
    assert found == ["two/a.ttf", "two/there/b.ttf"]


def test_only_a_folder_that_holds_fonts_is_a_font_folder(tmp_path):
    assert not is_font_folder(tmp_path) and not is_font_folder(tmp_path / "none")
    path = save_font(tmp_path / "in" / "a.ttf", "Font", alphabet(1))
    assert is_font_folder(tmp_path) and is_font_folder(str(tmp_path)) and not is_font_folder(path)


@pytest.mark.parametrize(
    ("split", "glyphs", "match"),
    [
        ("valid", "AB", "must be one of train, validation, test"),
        ("train", "", "one or more characters"),
        ("train", "ABA", "each once"),
        ("train", "AB", "no fonts; it must hold .otf"),
    ],
)
def test_refusals(tmp_path, split, glyphs, match):
    with pytest.raises(ValueError, match=match):
        load_fonts(tmp_path, split, glyphs=glyphs)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_an_empty_split_is_one_line_with_the_counts_of_all(tmp_path, split):
    save_font(tmp_path / "a.ttf", family_in("train"), alphabet(1))
    (tmp_path / "b.ttf").write_bytes(b"no font")
    with pytest.raises(MissingSplit) as caught:
        load_fonts(tmp_path, split, glyphs=LETTERS)
    line = str(caught.value)
    assert len(line.splitlines()) == 1 and f"the {split} split is empty" in line
    assert "train: 6 images of 1 font in 1 family; validation: 0 images" in line and "1 unreadable" in line


@pytest.mark.parametrize(("size", "master"), [(0, 64), (48, 64), (128, 64), (16, 0)])
def test_the_master_is_a_multiple_of_the_size(tmp_path, size, master):
    save_font(tmp_path / "a.ttf", "Font", alphabet(1))
    with pytest.raises(ValueError, match="must be a multiple"):
        only(tmp_path).images([0], size, master=master)


def test_a_font_that_is_gone_is_named(tmp_path):
    path = save_font(tmp_path / "a.ttf", "Font", alphabet(1))
    font = only(tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match=r"a\.ttf: cannot be drawn"):
        font.render(0, 64)


# the cache


def test_the_scan_is_kept_until_a_font_changes(tmp_path, monkeypatch):
    path = save_font(tmp_path / "fonts" / "a.ttf", family_in("train"), alphabet(1))
    cache = tmp_path / "new" / "scan.json"
    first = load_fonts(tmp_path / "fonts", "train", glyphs=LETTERS, cache=cache)
    scans = []
    scan = fonts.scan
    monkeypatch.setattr(fonts, "scan", lambda *args: scans.append(1) or scan(*args))
    again = load_fonts(tmp_path / "fonts", "train", glyphs=LETTERS, cache=cache)
    assert not scans and again.glyphs == first.glyphs and again.report() == first.report()
    assert (again.images([2], 64, master=64) == first.images([2], 64, master=64)).all()

    assert len(load_fonts(tmp_path / "fonts", "train", glyphs="ABC", cache=cache)) == 3
    os.utime(path, ns=(1, 1))
    load_fonts(tmp_path / "fonts", "train", glyphs="ABC", cache=cache)
    save_font(tmp_path / "fonts" / "b.ttf", family_in("train", 1), alphabet(2))
    assert len(load_fonts(tmp_path / "fonts", "train", glyphs="ABC", cache=cache)) == 6
    assert len(scans) == 3


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b'{"version": 2}', None])
def test_a_damaged_cache_is_made_again(tmp_path, content):
    save_font(tmp_path / "a.ttf", family_in("train"), alphabet(1))
    cache = tmp_path / "scan.json"
    load_fonts(tmp_path, "train", glyphs=LETTERS, cache=cache)
    good = cache.read_text("utf-8")
    if content is None:
        content = json.dumps(json.loads(good) | {"faces": [{"nothing": 1}]}).encode()
    cache.write_bytes(content)
    assert len(load_fonts(tmp_path, "train", glyphs=LETTERS, cache=cache)) == 6
    assert cache.read_text("utf-8") == good
