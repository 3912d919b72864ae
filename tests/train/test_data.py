"""Images and labels are the same from every kind of data, in memory, on demand and streamed; bad input is named."""

from __future__ import annotations

import errno
import io
import json
import tarfile

import datasets
import numpy as np
import pytest
import torch
from datasets.exceptions import DatasetGenerationError
from digits import digit_bytes, digits
from PIL import Image as PILImage
from test_font_families import family_in
from test_fonts import alphabet, save_font

from train.data import images as data
from train.data import sources
from train.data.decode import border_colour
from train.data.images import VALIDATION, load_images

NAMES = ("ant", "bee", "cat")
COUNT = 24


def file_of(number: int, mode: str = "L") -> bytes:
    """A PNG whose colour tells its number, and so its label, number mod 3."""
    file = io.BytesIO()
    PILImage.new(mode, (4, 4), number if mode == "L" else (number,) * 3).save(file, "PNG")
    return file.getvalue()


FILES = tuple(file_of(number) for number in range(COUNT))
LABELS = [number % 3 for number in range(COUNT)]


def numbers(images: torch.Tensor) -> list[int]:
    """Which files the images are."""
    assert (images == images[:, :1, :1, :1]).all()
    return ((images[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()


def holds(found, count: int) -> list[int]:
    """The numbers of the images of a set of `count`, whose labels are all right."""
    images, labels = found.images[:count], found.labels[:count]
    assert images.dtype == torch.float32 and labels.dtype == torch.int64 and len(images) == len(labels) == count
    assert labels.tolist() == [number % 3 for number in numbers(images)]
    return numbers(images)


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


def save_files(folder, files, labels=None):
    """An image folder; without labels a flat one."""
    for number, file in enumerate(files):
        path = folder / ("" if labels is None else NAMES[labels[number]]) / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file)


def save_shards(folder, files, labels=LABELS, shards=4, split="train"):
    """Parquet shards of rows in turn, with class labels."""
    folder.mkdir(exist_ok=True)
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=list(NAMES)))
    for shard in range(shards):
        cells = [file and {"bytes": file, "path": None} for file in files[shard::shards]]
        rows = datasets.Dataset.from_dict({"image": cells, "label": labels[shard::shards]}, features=features)
        rows.to_parquet(folder / f"{split}-{shard:05}-of-{shards:05}.parquet")


def save_tars(folder, files, label=None, shards=4, split="train"):
    """WebDataset shards of rows in turn; label: number → extension and content of its file."""
    folder.mkdir(exist_ok=True)
    for shard in range(shards):
        with tarfile.open(folder / f"{split}-{shard:05}.tar", "w") as tar:
            for number in range(shard, len(files), shards):
                for extension, content in [("png", files[number]), *([label(number)] if label else [])]:
                    member = tarfile.TarInfo(f"{number:05}.{extension}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def in_cls(number: int) -> tuple[str, bytes]:
    return "cls", str(number % 3).encode()


def in_json(number: int) -> tuple[str, bytes]:
    return "json", json.dumps({"label": NAMES[number % 3], "caption": "an insect"}).encode()


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
    assert train.count == 58 and train.stream is None
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


def test_every_kind_of_shard_holds_the_same(tmp_path):
    save_shards(tmp_path / "parquet", FILES)
    save_tars(tmp_path / "cls", FILES, in_cls)
    save_tars(tmp_path / "json", FILES, in_json)
    save_tars(tmp_path / "none", FILES)
    for kind, names in (("parquet", NAMES), ("cls", ("0", "1", "2")), ("json", NAMES)):
        train, held = (load_images(str(tmp_path / kind), split, size=4) for split in ("train", "validation"))
        assert sorted(holds(train, 22) + holds(held, 2)) == list(range(COUNT))
        assert train.names == held.names == names
    bare = load_images(str(tmp_path / "none"), "train", size=4)
    assert bare.names == () and bare.labels.tolist() == [-1] * 22 and len(set(numbers(bare.images))) == 22


@pytest.mark.parametrize("column", ["binary", {"bytes": "binary", "path": "string"}])
def test_parquet_of_other_programs(tmp_path, column):
    feature = {k: datasets.Value(v) for k, v in column.items()} if isinstance(column, dict) else datasets.Value(column)
    cells = [{"bytes": file, "path": None} if isinstance(column, dict) else file for file in FILES]
    features = datasets.Features(jpg=feature, label=datasets.Value("int64"))
    rows = datasets.Dataset.from_dict({"jpg": cells, "label": LABELS}, features=features)
    rows.to_parquet(tmp_path / "bytes.parquet")
    train = load_images(str(tmp_path), "train", size=4)
    assert holds(train, 22) == list(range(22)) and train.names == ("0", "1", "2")


def test_flat_folder_has_no_labels_whatever_its_files_are_called(tmp_path):
    save_files(tmp_path / "flat", FILES[:18])
    for number, name in enumerate(("train_1.png", "my-test.PNG", ".hidden.png", "notes.txt"), 18):
        (tmp_path / "flat" / name).write_bytes(FILES[number])
    train, held = (load_images(str(tmp_path / "flat"), split, size=4) for split in ("train", "validation"))
    assert train.names == () and (train.labels == -1).all()
    assert sorted(numbers(train.images) + numbers(held.images)) == list(range(20))
    save_files(tmp_path / "two" / "train", FILES[:10])
    save_files(tmp_path / "two" / "test", FILES[10:14])
    test = load_images(str(tmp_path / "two"), "test", size=4)
    assert test.names == () and numbers(test.images) == [10, 11, 12, 13] and test.labels.tolist() == [-1] * 4


def test_folder_names_are_labels_whatever_they_are_called(tmp_path):
    save_files(tmp_path / "set" / "train set", FILES[:4])
    save_files(tmp_path / "set" / "test tube" / "deeper", FILES[4:8])
    save_files(tmp_path / "set", [FILES[8]])
    train, held = (load_images(str(tmp_path / "set"), split, size=4) for split in ("train", "validation"))
    assert train.names == ("test tube/deeper", "train set")
    labels = dict(zip(numbers(train.images) + numbers(held.images), [*train.labels, *held.labels], strict=True))
    assert labels == {number: -1 if number == 8 else int(number < 4) for number in range(9)}  # one lies beside them


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


def test_one_colour_image_among_grey_ones_makes_all_of_them_colour(tmp_path):
    files = [file_of(number, "RGB" if number == 7 else "L") for number in range(COUNT)]
    save_files(tmp_path / "mixed", files, LABELS)
    found = load_images(str(tmp_path / "mixed"), "train", size=4)
    assert found.images.shape == (22, 3, 4, 4) and torch.equal(found.images[:, 0], found.images[:, 2])
    assert len(set(holds(found, 22))) == 22


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


BROKEN = {3: b"not an image", 8: FILES[8][:-20], 13: b"", 17: None}  # by number; the last has no file at all

SOME_BROKEN = [BROKEN.get(number, file) for number, file in enumerate(FILES)]


def test_images_that_cannot_be_read_are_left_out_counted_and_named(tmp_path):
    save_shards(tmp_path / "shards", SOME_BROKEN, shards=1)
    with pytest.warns(
        UserWarning, match=r"4 of 22 images .*: row 3 \(not an image.*\), row 8 \(.*\), row 13 \(.*\), …;"
    ):
        train = load_images(str(tmp_path / "shards"), "train", size=4)
    assert holds(train, 18) == [number for number in range(22) if number not in BROKEN]
    save_files(tmp_path / "flat", [file or b"" for file in SOME_BROKEN])
    with pytest.warns(UserWarning, match=r"1 of 5 images .*0003.png \(.*\); fix or remove them"):
        assert len(load_images(str(tmp_path / "flat"), "train", size=4, limit=5)) == 4


def test_more_than_half_that_cannot_be_read_is_an_error(tmp_path):
    save_files(tmp_path / "broken", [b""] * 6 + list(FILES[:5]))
    with pytest.raises(ValueError, match=r"6 of 10 images cannot be read, more than half: .*0000.png .*; fix them or"):
        load_images(str(tmp_path / "broken"), "train", size=4)


def test_a_large_set_is_decoded_on_demand_to_the_same_bits(parquet, monkeypatch):
    whole = load_images(parquet, "train", size=24)
    monkeypatch.setattr(data, "IN_MEMORY", 4 * 58 * 24**2 - 1)
    large = load_images(parquet, "train", size=24)
    assert not isinstance(large.images, torch.Tensor) and len(large) == large.count == 58
    assert large.images.shape == whole.images.shape
    assert (large.names, large.background) == (whole.names, whole.background)
    for key in (torch.tensor([57, 3, 3, 20]), slice(5, 9), slice(None)):
        assert torch.equal(large.images[key], whole.images[key])
        assert torch.equal(large.labels[key], whole.labels[key])
    assert isinstance(load_images(parquet, "train", size=24, limit=58).images, torch.Tensor)
    monkeypatch.setattr(data, "IN_MEMORY", 4 * 58 * 24**2)
    assert isinstance(load_images(parquet, "train", size=24).images, torch.Tensor)


@pytest.mark.parametrize("first", ["images", "labels"])
def test_on_demand_the_next_image_and_its_label_stand_for_one_that_cannot_be_read(tmp_path, monkeypatch, first):
    save_shards(tmp_path / "shards", SOME_BROKEN, shards=1)
    monkeypatch.setattr(data, "IN_MEMORY", 0)
    monkeypatch.setattr(data, "SAMPLE", 2)
    train = load_images(str(tmp_path / "shards"), "train", size=4)
    places = torch.tensor([2, 3, 4, 17, 0, 5, 6])
    with pytest.warns(UserWarning, match="2 of 9 images cannot be read and are left out: row 3 .*, row 17 "):
        found = {part: getattr(train, part)[places] for part in sorted(("images", "labels"), key=lambda p: p != first)}
    assert numbers(found["images"]) == [2, 4, 4, 18, 0, 5, 6]
    assert found["labels"].tolist() == [2, 1, 1, 0, 0, 2, 0]


def test_on_demand_more_than_half_is_an_error_too(tmp_path, monkeypatch):
    save_files(tmp_path / "flat", FILES)
    monkeypatch.setattr(data, "IN_MEMORY", 0)
    monkeypatch.setattr(data, "SAMPLE", 2)
    train = load_images(str(tmp_path / "flat"), "train", size=4)
    for file in (tmp_path / "flat").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match="more than half"):
        train.images[torch.arange(8)]


def test_bad_input_is_named(tmp_path, parquet):
    with pytest.raises(ValueError, match="no such folder; give a folder of images or shards, or a Hub id"):
        load_images(str(tmp_path / "nowhere"), "train")
    with pytest.raises(ValueError, match="split 'valid': must be one of train, validation, test"):
        load_images(parquet, "valid")
    with pytest.raises(ValueError, match="channels 2: must be 1"):
        load_images(parquet, "train", channels=2)
    with pytest.raises(ValueError, match="limit 0: must be at least 1"):
        load_images(parquet, "train", limit=0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        ValueError, match="empty: without usable images or shards: empty; it must hold images, .parquet or"
    ):
        load_images(str(tmp_path / "empty"), "train")
    (tmp_path / "empty" / "train.parquet").write_bytes(b"PAR1, or so it says")
    with pytest.raises(ValueError, match="folder without usable images or shards: .*[Pp]arquet"):
        load_images(str(tmp_path / "empty"), "train")
    datasets.Dataset.from_dict({"text": ["a"]}).to_parquet(tmp_path / "empty" / "train.parquet")
    with pytest.raises(ValueError, match="no image column among text; store one as datasets.Image"):
        load_images(str(tmp_path / "empty"), "train")


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_cache_that_cannot_be_written_is_no_fault_of_the_data(monkeypatch, wrapped):
    def closed(*_, **__):
        try:
            raise PermissionError(errno.EACCES, "Permission denied", "/cache")
        except PermissionError as error:
            if not wrapped:
                raise
            raise DatasetGenerationError("An error occurred") from error

    monkeypatch.setattr(sources, "load_dataset", closed)
    with pytest.raises(PermissionError, match="/cache"):
        load_images("owner/name", "train")


def test_a_folder_of_fonts_is_glyphs_in_memory_and_on_demand(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "HF_HOME", tmp_path / "cache")
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    folder = tmp_path / "fonts"
    save_font(folder / "one.ttf", family_in("train"), alphabet(1, letters))
    found = load_images(str(folder), "train", size=16)
    assert found.images.shape == (26, 1, 16, 16) and found.background == (0.0,) and found.names == tuple(letters)
    assert sorted(found.labels.tolist()) == list(range(26)) and "26 images of 1 font" in found.describe()
    assert -1 == found.images.min() < found.images.max() <= 1 and len(found.images.unique(dim=0)) == 26
    again = load_images(str(folder), "validation", size=16)
    assert torch.equal(again.images, found.images) and "training fonts are validated on too" in found.describe()
    monkeypatch.setattr(data, "IN_MEMORY", 0)
    asked = load_images(str(folder), "train", size=16)
    assert not isinstance(asked.images, torch.Tensor) and asked.images.shape == found.images.shape
    key = torch.tensor([25, 0, 3])
    assert torch.equal(asked.images[key], found.images[key]) and torch.equal(asked.labels, found.labels)
    assert torch.equal(asked.images[:4], found.images[:4])
    assert len(load_images(str(folder), "train", size=16, channels=3, limit=5).images.expand(5, 3, 16, 16)) == 5
    save_files(folder, FILES[:1])
    with pytest.raises(ValueError, match="holds images .0000.png. and fonts .one.ttf.; keep one kind in it"):
        load_images(str(folder), "train")
