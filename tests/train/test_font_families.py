"""Families of fonts: by name, and the split that follows from it."""

from __future__ import annotations

import numpy as np
import pytest

from train.data.font_families import find_families, split_of


def family_in(split: str, number: int = 0) -> str:
    """The name of a family that is in a split."""
    words = (f"{first}{second}" for first in "BCDFGJKLMNP" for second in ("aro", "elu", "iva", "omy", "ute"))
    return [word for word in words if split_of(word.lower()) == split][number]


@pytest.mark.parametrize(
    "names",
    [
        ("{} Bold", "{} Light Italic", "{}", "{} Semi-Condensed 600", "{}-BoldOblique", "{} 12pt Display"),
        ("{}ExtraBold", "{} Mono", "{} Pro"),
    ],
)
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_styles_of_a_name_are_one_family(names, split):
    images = [{} for _ in names]
    families, _ = find_families([name.format(family_in(split)) for name in names], images)
    assert set(families) == {family_in(split).lower()}


def test_other_names_are_other_families():
    families, _ = find_families(["Roman", "Roman Sans", "Boldini", "Condensed Bold"], [{}] * 4)
    assert families == ["roman", "romansans", "boldini", "condensedbold"]


def test_splits_have_their_shares_and_stay_when_fonts_are_added():
    names = [f"{first}{second}{third}" for first in "bdfgk" for second in "aeiou" for third in map(chr, range(98, 122))]
    families, unfit = find_families(names, [{}] * len(names))
    assert families == names and not unfit
    splits = [split_of(name) for name in names]
    shares = [splits.count(split) / len(names) for split in ("train", "validation", "test")]
    assert np.allclose(shares, (0.85, 0.05, 0.10), atol=0.03)
    more, _ = find_families(["other", *names, "another"], [{}] * (len(names) + 2))
    assert more[1:-1] == families
