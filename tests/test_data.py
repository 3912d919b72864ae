"""Images and labels come out the same from parquet files and image folders, and bad input is named."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
import torch
from digits import digit_bytes, digits
from PIL import Image as PILImage

from train.data import VALIDATION, border_colour, load_images


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def save_parquet(folder, split, images, labels=None, image="image", names="0123456789"):
    features = {image: datasets.Image()}
    columns = {image: [PILImage.fromarray(pixels) for pixels in images]}
    if labels is not None:
        features["label"] = datasets.ClassLabel(names=list(names))
        columns["label"] = labels
    rows = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    folder.mkdir(exist_ok=True)
    rows.to_parquet(folder / f"{split}-00000-of-00001.parquet")


def save_folder(folder, images, labels):
    for number, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        PILImage.fromarray(pixels).save(folder / str(label) / f"{number:04}.png")


@pytest.fixture
def parquet(tmp_path):
    labels = [number % 10 for number in range(64)]
    save_parquet(tmp_path / "parquet", "train", digit_bytes(), labels)
    save_parquet(tmp_path / "parquet", "test", digit_bytes()[:20], labels[:20])
    return str(tmp_path / "parquet")


def test_parquet_holds_the_digits_in_order(parquet):
    images, labels = digits()
    train, validation = load_images(parquet, "train"), load_images(parquet, "validation")
    assert (len(train), len(validation)) == (58, 6)
    assert torch.allclose(torch.cat([train.images, validation.images]), images, atol=1e-5)
    assert torch.equal(torch.cat([train.labels, validation.labels]), labels)
    assert train.names == tuple("0123456789")
    assert train.background == (0.0,)
    test = load_images(parquet, "test", size=16, limit=3)
    assert test.images.shape == (3, 1, 16, 16)
    assert test.images.min() >= -1 and test.images.max() <= 1
    assert VALIDATION == 5_000


def test_image_folder_equals_parquet(tmp_path, parquet):
    for split, count in (("train", 64), ("test", 20)):
        save_folder(tmp_path / "folder" / split, digit_bytes()[:count], [number % 10 for number in range(count)])
    test, same = load_images(str(tmp_path / "folder"), "test"), load_images(parquet, "test")
    assert test.names == same.names
    assert torch.equal(test.labels.sort().values, same.labels.sort().values)
    distances = torch.cdist(test.images.flatten(1), same.images.flatten(1))
    assert torch.equal(same.labels[distances.argmin(dim=1)], test.labels)
    assert distances.min(dim=1).values.max() < 1e-3


def test_folder_stored_class_by_class_is_mixed_the_same_way_every_time(tmp_path):
    save_folder(tmp_path / "folder", np.zeros((100, 4, 4), np.uint8), ["a"] * 50 + ["b"] * 50)
    validation = load_images(str(tmp_path / "folder"), "validation", size=4)
    assert len(validation) == 10 and validation.names == ("a", "b")
    assert len(validation.labels.unique()) == 2
    assert torch.equal(validation.labels, load_images(str(tmp_path / "folder"), "validation", size=4).labels)
    with pytest.raises(ValueError, match="no test split, only train; add test-"):
        load_images(str(tmp_path / "folder"), "test")


def test_colour_shape_and_background(tmp_path):
    wide = np.zeros((6, 8, 16, 3), np.uint8)
    wide[:, :, :4], wide[:, :, 4:12], wide[:, :, 12:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    save_parquet(tmp_path / "wide", "train", wide, image="img")
    found = load_images(str(tmp_path / "wide"), "train", size=8)
    assert found.images.shape == (5, 3, 8, 8)
    assert torch.equal(found.images.unique(), torch.tensor([-1.0, 1.0]))  # the sides are cut off, green is left
    assert found.background == (0.0, 1.0, 0.0)
    assert found.names == () and (found.labels == -1).all()
    assert load_images(str(tmp_path / "wide"), "train", size=8, channels=1).images.shape == (5, 1, 8, 8)


def test_border_colour_needs_agreement():
    images = torch.zeros(4, 1, 8, 8)
    images[..., 2:6, 2:6] = 1
    assert border_colour(images) == (0.0,)
    images[0] = 1
    assert border_colour(images) is None


def test_string_labels_follow_the_training_set(tmp_path):
    folder = tmp_path / "strings"
    folder.mkdir()
    for split, labels in (("train", ["cat", "ant", "cat", "bee"]), ("test", ["cat", "cat", "dog"])):
        images = [PILImage.new("L", (4, 4))] * len(labels)
        features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
        rows = datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
        rows.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    test = load_images(str(folder), "test", size=4)
    assert test.names == ("ant", "bee", "cat")
    assert sorted(test.labels.tolist()) == [-1, 2, 2]  # a dog was not in the training set


def test_bad_input_is_named(tmp_path, parquet):
    with pytest.raises(ValueError, match="no such folder; give a folder of parquet files or images, or a Hub id"):
        load_images(str(tmp_path / "nowhere"), "train")
    with pytest.raises(ValueError, match="split 'valid': must be one of train, validation, test"):
        load_images(parquet, "valid")
    with pytest.raises(ValueError, match="channels 2: must be 1"):
        load_images(parquet, "train", channels=2)
    with pytest.raises(ValueError, match="limit 0: must be at least 1"):
        load_images(parquet, "train", limit=0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="folder without usable parquet files or images"):
        load_images(str(tmp_path / "empty"), "train")
    save_folder(tmp_path / "broken", np.zeros((4, 4, 4), np.uint8), ["a", "b", "a", "b"])
    (tmp_path / "broken" / "a" / "0000.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"cannot read .*0000.png: .*; mend or remove it"):
        load_images(str(tmp_path / "broken"), "train")
