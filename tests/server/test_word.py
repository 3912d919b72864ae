"""Words: letters side by side, from one latent each."""

import pytest
import torch
import torch.nn.functional as F

from r2id.demo.word import MAX_LETTERS, can_spell, resample_row, row_size, seeds_of, small_row, spell

LETTERS = list("ABCDEFGHIJKLMNOPQRSTUVWXYZ")


@pytest.fixture(scope="module")
def word(tiny):
    return tiny.diffuse(
        spell("2026", tiny.labels), latent_size=(4, 3), aspect=0.7, guidance=30, seed=seeds_of(5, 4, one_seed=True)
    )


def test_letters_become_labels_whatever_their_case():
    assert spell(" Hello ", LETTERS) == list("HELLO")
    assert spell("aA", [*LETTERS, "a"]) == ["a", "A"]
    assert can_spell(LETTERS) and not can_spell(["smiling"]) and not can_spell([])


@pytest.mark.parametrize(
    "text, labels, fault",
    [
        ("A" * (MAX_LETTERS + 1), LETTERS, "word of 13 letters: type 1 to 12"),
        ("  ", LETTERS, "word of no letters"),
        (None, LETTERS, "word of no letters"),
        ("A-B", LETTERS, "'-' cannot be written: this model knows ABC"),
        ("AB", ["smiling"], "not single letters"),
    ],
)
def test_words_that_cannot_be_written_are_refused_in_one_line(text, labels, fault):
    with pytest.raises(ValueError, match=fault) as caught:
        spell(text, labels)
    assert "\n" not in str(caught.value)


def test_one_seed_for_all_or_one_for_each():
    assert seeds_of(7, 3, one_seed=True) == [7, 7, 7]
    assert seeds_of(2**32 - 1, 3, one_seed=False) == [2**32 - 1, 0, 1]


def test_equal_letters_of_one_seed_are_equal_and_others_are_not(tiny, word):
    row_CHW = resample_row(tiny, word, height=20)
    assert row_CHW.shape == (1, *row_size(word, 20)) == (1, 20, 56)
    letters = row_CHW.split(14, dim=-1)
    torch.testing.assert_close(letters[0], letters[2])
    assert (letters[0] - letters[1]).abs().max() > 0.05


def test_a_part_of_the_row_is_what_the_row_shows_there(tiny, word):
    """At twice the height, so that the part's pixels are the row's."""
    row_CHW = resample_row(tiny, word, height=40)
    part_CHW = resample_row(tiny, word, height=20, region=(0.25, 0.5, 0.75, 1))
    assert part_CHW.shape == (1, 20, 56)
    torch.testing.assert_close(part_CHW, row_CHW[:, 20:, 28:84], atol=1e-4, rtol=0)


def test_a_part_within_one_letter_has_that_letter_only(tiny, word):
    part_CHW = resample_row(tiny, word, height=20, region=(0.3, 0.1, 0.45, 0.25))
    alone_BCHW = tiny.resample(word[1], size=(20, 56), fit="stretch", region=(0.2, 0.1, 0.8, 0.25))
    torch.testing.assert_close(part_CHW, alone_BCHW[0], atol=1e-4, rtol=0)


def test_small_letters_hold_as_many_numbers_as_their_latents(tiny, word):
    small_CHW = small_row(tiny, word)
    (height, width), count = small_CHW.shape[1:], len(word)
    assert abs(height * width - word.tensor.numel()) < count * (height + width // count)  # whole pixels
    row_CHW = resample_row(tiny, word, height=height * 8)
    coarse_CHW = F.adaptive_avg_pool2d(row_CHW, small_CHW.shape[1:])
    assert (small_CHW - coarse_CHW).abs().mean() < 0.5 * (small_CHW.flip(2) - coarse_CHW).abs().mean()
