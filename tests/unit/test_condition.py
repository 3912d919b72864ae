from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from r2id.condition import LabelCondition, index_of, mixture, one_hot

NAMES = ("cat", "dog", "7")


@pytest.fixture
def condition() -> LabelCondition:
    torch.manual_seed(0)
    return LabelCondition(3, tokens=2, width=4)


def test_a_label_is_its_row_and_null_is_the_last(condition):
    tokens_BND = condition(one_hot(torch.tensor([2, 0, -1]), 3))
    torch.testing.assert_close(tokens_BND, condition.table[[2, 0, 3]])
    torch.testing.assert_close(condition.null(2), condition.table[[3, 3]])
    assert condition.num_classes == 3


def test_a_mixture_is_the_mean_of_its_labels(condition):
    tokens_BND = condition(torch.tensor([mixture({"cat": 1, 2: 3}, NAMES)]))
    torch.testing.assert_close(tokens_BND[0], 0.25 * condition.table[0] + 0.75 * condition.table[2])


def test_a_condition_without_labels_is_null():
    condition = LabelCondition(0, tokens=1, width=4)
    assert torch.equal(condition(torch.zeros(2, 0)), condition.null(2))


def test_dropped_rows_are_null():
    dropped = torch.tensor([False, True, False])
    weights_BL = one_hot(torch.tensor([1, 1, -1]), 3, dropped_B=dropped)
    assert weights_BL.tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert weights_BL.dtype == torch.float32


@pytest.mark.parametrize(
    "label, weights",
    [
        (None, [0, 0, 0]),
        (0, [1, 0, 0]),
        ("dog", [0, 1, 0]),
        ("7", [0, 0, 1]),  # a name, not an index
        ({"cat": 2}, [1, 0, 0]),
        ({0: 1, "cat": 1, "dog": 2}, [0.5, 0.5, 0]),  # the same label twice adds up
        ({"cat": 0, "dog": 1e-300}, [0, 1, 0]),
        ({0: 1, 1: 1, 2: 2.0}, [0.25, 0.25, 0.5]),
        (" Cat\n", [1, 0, 0]),
        ("DOG", [0, 1, 0]),
        (np.int64(1), [0, 1, 0]),
        (torch.tensor(2), [0, 0, 1]),
        ({"CAT": np.float32(1), np.uint8(1): 1}, [0.5, 0.5, 0]),
    ],
)
def test_labels_become_weights(label, weights):
    assert mixture(label, NAMES) == weights


@pytest.mark.parametrize(
    "label, message",
    [
        (3, "index 0…2 or one of cat, dog, 7"),
        (-1, "index 0…2"),
        (True, "index 0…2"),
        (1.0, "index 0…2"),
        ("bird", "'bird'"),
        ("", "index"),
        ([0], "index"),
        (math.nan, "index"),
        ({}, "sum to 0"),
        ({"cat": 0}, "sum to 0"),
        ({"cat": -1, "dog": 2}, "weight -1 of label 'cat'"),
        ({"cat": math.nan}, "finite number"),
        ({"cat": math.inf}, "finite number"),
        ({"cat": 10**400}, "finite"),
        ({"cat": 1e308, "dog": 1e308}, "finite"),
        ({"cat": "1"}, "finite number"),
        ({"cat": True}, "finite number"),
        ({"cat": None}, "finite number"),
        ({"bird": 1}, "'bird'"),
        ({None: 1}, "None"),
    ],
)
def test_bad_labels_are_refused(label, message):
    with pytest.raises(ValueError) as caught:
        mixture(label, NAMES)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_name_that_fits_two_labels_has_to_be_exact():
    names = ("a", "A", " a ")
    assert [index_of(name, names) for name in names] == [0, 1, 2]
    with pytest.raises(ValueError, match="label 'a ': may be 'a', 'A', ' a '; give one exactly"):
        index_of("a  ", names)


def test_a_model_without_labels_says_so():
    assert mixture(None, ()) == []
    with pytest.raises(ValueError, match="this model has no labels"):
        index_of(0, ())
