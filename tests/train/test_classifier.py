"""The classifier reads digits, learns, and survives saving; the committed one is checked on real digits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from digits import digits
from test_font_families import family_in
from test_fonts import alphabet, save_font

from r2id.checkpoint import CheckpointError, save_module
from train import train_judge
from train.data import images as data
from train.data.images import SPLITS, ImageSet
from train.evaluation.classifier import (
    FEATURES,
    Classifier,
    accuracy,
    augment,
    fit,
    load_classifier,
    to_classifier_size,
)

COMMITTED = Path(__file__).parents[2] / "train" / "classifiers" / "mnist.safetensors"


def test_committed_classifier_reads_digits_at_any_size():
    classifier = load_classifier(COMMITTED)
    images, labels = digits()
    assert COMMITTED.stat().st_size < 2**20
    assert accuracy(classifier, images, labels) >= 63 / 64
    for size in (20, 64, 128):
        other = F.interpolate(images, size=(size, size), mode="bicubic", antialias=True)
        assert accuracy(classifier, to_classifier_size(other), labels) >= 62 / 64
    features_BD = classifier.features(images)
    assert features_BD.shape == (64, FEATURES)
    assert torch.allclose(classifier.head(features_BD), classifier(images))


def test_classifier_size():
    images, _ = digits()
    assert torch.equal(to_classifier_size(images), images)
    enlarged = images.repeat_interleave(4, dim=2).repeat_interleave(2, dim=3)
    assert torch.allclose(to_classifier_size(enlarged), images, atol=1e-6)
    constant = torch.full((1, 3, 7, 100), 0.25)
    assert torch.allclose(to_classifier_size(constant), torch.full((1, 3, 32, 32), 0.25))


def test_augmentation_is_small_and_drawn_from_the_generator():
    images, _ = digits()
    first, again = (augment(images, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again) and not torch.equal(first, images)
    assert first.shape == images.shape
    assert first.min() >= -1 and first.max() <= 1
    black = torch.full((8, 1, 32, 32), -1.0)
    assert torch.allclose(augment(black, torch.Generator().manual_seed(0)), black)  # no grey comes in at the sides


def test_fit_learns_and_saving_keeps_the_answers(tmp_path):
    images, labels = digits()
    few = ImageSet(images, labels, tuple("0123456789"), (0.0,))
    classifier = fit(few, few, epochs=20, device="cpu")
    assert accuracy(classifier, images, labels) > 0.5
    save_module(classifier, tmp_path / "classifier.safetensors")
    assert torch.allclose(load_classifier(tmp_path / "classifier.safetensors")(images), classifier(images), atol=1e-4)
    with pytest.raises(ValueError, match="no labels"):
        fit(replace(few, names=()), few, epochs=1, device="cpu")


@pytest.mark.parametrize("side", [16, 64])
def test_a_classifier_of_another_size_reads_what_is_brought_to_it(tmp_path, side):
    images, labels = digits()
    brought = to_classifier_size(images, side)
    few = ImageSet(brought, labels, tuple("0123456789"), (0.0,))
    classifier = fit(few, few, epochs=1, device="cpu", precision="bfloat16")
    assert brought.shape[2:] == (side, side) and classifier.side == side
    assert next(classifier.parameters()).dtype == torch.float32
    save_module(classifier, tmp_path / "classifier.safetensors", torch.float16)
    loaded = load_classifier(tmp_path / "classifier.safetensors")
    assert loaded.side == side and loaded.features(brought).shape == (64, FEATURES)
    assert torch.allclose(loaded(brought), classifier(brought), atol=0.02)
    first = augment(brought, torch.Generator().manual_seed(0))
    assert first.shape == brought.shape and -1 <= first.min() <= first.max() <= 1


def test_the_judge_of_letters_is_small():
    assert sum(parameter.numel() for parameter in Classifier(1, 26, side=64).parameters()) <= 700_000
    with pytest.raises(ValueError, match="side 60: must be a multiple of 8"):
        Classifier(1, 26, side=60)


def test_a_judge_is_trained_on_the_glyphs_that_are_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data, "HF_HOME", tmp_path)
    for seed, split in enumerate(SPLITS):
        save_font(tmp_path / "fonts" / f"{split}.ttf", family_in(split), alphabet(seed))
    out = tmp_path / "judge.safetensors"
    options = ["--data", str(tmp_path / "fonts"), "--size", "16", "--glyphs", "ABC", "--out", str(out)]
    train_judge.main([*options, "--epochs", "1"])
    first = capsys.readouterr().out.splitlines()[-1]
    judge = load_classifier(out)
    assert (judge.side, judge.channels, judge.head[-1].out_features) == (16, 1, 3)
    train_judge.main([*options, "--evaluate"])
    assert capsys.readouterr().out.splitlines() == [first] and first.startswith("test accuracy ")


def test_bad_files_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        load_classifier(tmp_path / "missing.safetensors")
    save_module(torch.nn.Linear(2, 2), tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="not a classifier; make one with"):
        load_classifier(tmp_path / "other.safetensors")
    save_module(Classifier(3, 4), tmp_path / "colour.safetensors")
    assert load_classifier(tmp_path / "colour.safetensors").channels == 3


def test_images_are_mirrored_only_where_they_may_be():
    half = torch.full((64, 3, 32, 32), -1.0)
    half[..., 16:] = 1
    rng = torch.Generator().manual_seed(0)
    for mirror, least in ((False, 0), (True, 20)):
        mirrored = int((augment(half, rng, mirror=mirror)[:, 0, :, 8].mean(dim=1) > 0).sum())
        assert least <= mirrored <= 2 * least
