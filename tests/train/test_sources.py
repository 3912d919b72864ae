"""Folders and archives of images: splits, classes and what is left out follow from one rule, and are said."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image

from train.data import files
from train.data.folders import Folder, in_order, read_folder
from train.data.images import load_images


def image(number: int = 0, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("L", (4, 4), number).save(file, kind)
    return file.getvalue()


def put(root: Path, *names: str, data: bytes | None = None) -> str:
    """Writes small images, each of its own grey, under these paths."""
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image(number) if data is None else data)
    return str(root)


def read(root: Path | str, column: str | None = None) -> Folder:
    found = read_folder(str(root), column)
    assert found is not None
    return found


def classes(root: Path | str, split: str = "train", column: str | None = None) -> dict[str, str | None]:
    """The class of every file of a split."""
    found = read(root, column)
    return {file.name: name for file, name in zip(found.files[split], found.classes[split], strict=True)}


def sizes(root: Path | str) -> dict[str, int]:
    return read(root).sizes


def noted(root: Path | str, column: str | None = None) -> str:
    return "\n".join(read(root, column).notes)


def refused(root: Path | str, column: str | None = None) -> str:
    with pytest.raises(ValueError) as error:
        read_folder(str(root), column)
    assert "\n" not in str(error.value)
    return str(error.value).replace(str(root), "DIR")


# what an image is


def test_every_usual_suffix_in_any_case_is_an_image_and_so_is_what_begins_as_one(tmp_path):
    put(tmp_path, "a.jpg", "b.JFIF", "c.Png", "d.tif", "e.webp", "f.jpe", "g.jpg_large", "h", "i.png.1")
    put(tmp_path, "notes.txt", "j", data=b"no image")
    found = read(tmp_path)
    assert len(found.files["train"]) == 9
    assert any("2 × file that is no image: j, notes.txt" in note for note in found.notes)


def test_jfif_files_are_read(tmp_path):
    put(tmp_path, "1.jpg", "2.jpg", *(f"{n}.jfif" for n in range(3, 9)), data=image(9, "JPEG"))
    found = [load_images(str(tmp_path), split, size=4) for split in ("train", "validation")]
    assert sum(map(len, found)) == 8


def test_what_cannot_be_read_is_counted_and_named_with_a_remedy(tmp_path, monkeypatch):
    put(tmp_path, "a.jpg", "b.HEIC", "c.heif", "d.nef", "e.rar", ".f.png", "._g.jpg")
    monkeypatch.setattr(files, "find_spec", lambda name: None)
    said = noted(tmp_path)
    assert "2 × HEIC image (install pillow-heif, or convert it to JPEG): b.HEIC, c.heif" in said
    assert "1 × image in a format that is not read (convert it to PNG or JPEG): d.nef" in said
    assert "1 × archive in a format that is not read (unpack it): e.rar" in said
    assert "2 × image file that begins with a dot: ._g.jpg, .f.png" in said
    assert sizes(tmp_path) == {"train": 1}
    monkeypatch.setattr(files, "find_spec", lambda name: name)
    assert sizes(tmp_path) == {"train": 3}


def test_folders_that_begin_with_an_underscore_or_a_dot_are_hidden_and_files_with_one_are_not(tmp_path):
    put(tmp_path, "cat/_MG_1.png", "dog/1.png", "_drafts/1.png", ".cache/1.png", "cat/_old/1.png")
    assert classes(tmp_path) == {"cat/_MG_1.png": "cat", "dog/1.png": "dog"}
    assert "3 × folder that begins with _ or a dot: .cache, _drafts, cat/_old" in noted(tmp_path)
    hidden = put(tmp_path / "_mine", "cat/1.png", "dog/1.png")  # given by name, so meant
    assert sizes(hidden) == {"train": 2}


@pytest.mark.parametrize("made", [(), ("notes.txt",), ("_all/1.png",)])
def test_without_an_image_what_is_there_is_said(tmp_path, made):
    put(tmp_path, *made)
    said = refused(tmp_path)
    assert said.startswith("DIR: without usable images or shards: ") and "it must hold images" in said
    assert all(Path(name).parts[0] in said for name in made)


# splits


@pytest.mark.parametrize(
    "names",
    [
        ("train", "val", "test"),
        ("Train", "Val", "Test"),
        ("TRAINING", "Validation", "Testing"),
        ("training", "dev", "eval"),
        ("trn", "valid", "tst"),
        (" train", "VALID ", "evaluation"),
    ],
)
@pytest.mark.parametrize("wrapper", ["", "data/", "photos/of pets/"])
def test_splits_by_their_usual_names_in_any_case_behind_any_wrapper(tmp_path, names, wrapper):
    train, validation, test = (wrapper + name for name in names)
    put(tmp_path, f"{train}/cat/1.png", f"{train}/dog/1.png", f"{train}/dog/2.png", f"{validation}/dog/1.png")
    put(tmp_path, f"{test}/cat/1.png")
    found = read(tmp_path)
    assert found.sizes == {"train": 3, "validation": 1, "test": 1} and found.names == ("cat", "dog")
    assert found.classes["train"] == ["cat", "dog", "dog"]
    assert found.classes["validation"] == ["dog"] and found.classes["test"] == ["cat"]
    assert [file.parts[-2] for file in found.files["test"]] == ["cat"]


def test_a_validation_folder_is_the_validation_split(tmp_path):
    put(tmp_path, *(f"train/{n}.png" for n in range(20)), *(f"val/{n}.png" for n in range(3)))
    train, held = (load_images(str(tmp_path), split, size=4) for split in ("train", "validation"))
    assert (len(train), len(held)) == (20, 3)
    assert train.describe().startswith(f"{tmp_path}: 20 images to train on, 3 to validate on")


def test_a_class_called_as_a_split_is_one_where_other_classes_lie_beside_it_or_below_train(tmp_path):
    beside = put(tmp_path / "beside", "train/1.png", "bus/1.png", "car/1.png")
    assert set(classes(beside).values()) == {"bus", "car", "train"} and sizes(beside) == {"train": 3}
    assert "train is a class, since classes without folders in them lie beside it" in noted(beside)
    below = put(tmp_path / "below", "train/train/1.png", "train/test/1.png", "train/bus/1.png", "test/train/9.png")
    assert set(classes(below).values()) == {"bus", "test", "train"}
    assert classes(below, "test") == {"test/train/9.png": "train"}


@pytest.mark.parametrize(
    "names, words",
    [
        (("train/cat/1.png", "train/dog/1.png", "extra/1.png"), "train/ could be a split with extra/ beside"),
        (("train/1.png", "test/1.png", "bus/1.png"), "test/ and train/ could be splits with bus/ beside"),
        (("train/1.png", "test/1.png", "9.png"), "9.png is beside test/ and train/; move it into one of them"),
        (("Train/1.png", "training/1.png"), "Train/ and training/ are all names of the train split; join them"),
        (("train2017/1.png", "val2017/1.png"), "train2017/ and val2017/ could be splits or classes; call them"),
        (("seg_train/a/1.png", "seg_test/a/1.png", "seg_pred/1.png"), "seg_test/ and seg_train/ could be splits"),
        (("cat/train/1.png", "cat/test/1.png", "dog/train/1.png"), "cat/test/ and cat/train/ could be splits or"),
        (("x/train/1.png", "x/test/1.png", "preview.png"), "x/test/ and x/train/ could be splits or classes"),
    ],
)
def test_where_two_readings_are_possible_none_is_taken(tmp_path, names, words):
    said = refused(put(tmp_path, *names))
    assert words in said and ("move" in said or "join" in said)
    if "move all below a folder train/" in said:  # the remedy helps
        for top in list(tmp_path.iterdir()):
            (tmp_path / "train").mkdir(exist_ok=True)
            top.rename(tmp_path / "train" / top.name)
        assert sizes(tmp_path) == {"train": len(names)}


def test_splits_are_never_guessed_from_file_names(tmp_path):
    put(tmp_path, "photo of a train.png", "test.png", "my_test_1.png", "val-2.png", "train-1.png")
    assert sizes(tmp_path) == {"train": 5} and read(tmp_path).names == ()


# classes


def test_classes_are_paths_below_the_split(tmp_path):
    put(tmp_path, "set/animals/cat/1.png", "set/animals/dog/1.png", "set/plants/rose/1.png", "set/plants/2.png")
    assert set(classes(tmp_path).values()) == {"animals/cat", "animals/dog", "plants/rose", "plants"}
    put(tmp_path, "set/loose.png")
    assert classes(tmp_path)["set/loose.png"] is None


def test_wrappers_say_nothing(tmp_path):
    assert read(put(tmp_path / "one", "cat/1.png", "cat/2.png")).names == ()
    yolo = put(tmp_path / "yolo", "images/train/1.png", "images/val/1.png", "labels/train/1.txt", "labels/val/1.txt")
    assert sizes(yolo) == {"train": 1, "validation": 1} and read(yolo).names == ()
    tiny = put(tmp_path / "tiny", "train/n01/images/1.png", "train/n02/images/1.png", "val/images/1.png")
    assert read(tiny).names == ("n01", "n02") and set(classes(tiny, "validation").values()) == {None}
    lone = put(tmp_path / "lone", "train/cat/1.png", "train/dog/1.png", "test/bird/1.png", "val/images/dog/1.png")
    assert set(classes(lone, "test").values()) == {"bird"} and set(classes(lone, "validation").values()) == {"dog"}
    assert "test: 1 image of classes that training lacks: bird" in noted(lone)
    named = put(tmp_path / "named", "test/train/a/1.png", "test/train/b/1.png", "test/test/a/1.png")
    assert sizes(named) == {"train": 2, "test": 1}


def test_numbers_are_in_their_order(tmp_path):
    put(tmp_path / "numbers", *(f"{n}/1.png" for n in (10, 2, 1, 33)))
    assert read(tmp_path / "numbers").names == ("1", "2", "10", "33")
    assert in_order(["c10", "c9", "b", "a 1"]) == ("a 1", "b", "c9", "c10")
    assert in_order(["-1", "0.5", "-10", "02", "1"]) == ("-10", "-1", "0.5", "1", "02")


def test_names_that_look_alike_are_one_class_with_a_note(tmp_path):
    put(tmp_path, "train/caf\u00e9/1.png", "train/bar/1.png", "train/bar /2.png", "test/cafe\u0301/1.png")
    found = read(tmp_path)
    assert found.names == ("bar", "caf\u00e9") and found.classes["test"] == ["caf\u00e9"]
    assert found.classes["train"] == ["bar", "bar", "caf\u00e9"]
    assert "ways that look alike (spaces, Unicode form): bar, caf\u00e9" in noted(tmp_path)
    put(tmp_path, "test/Bar/1.png", "test/zoo/1.png")
    assert "names differ by capitals alone: Bar, bar" in noted(tmp_path)
    assert "test: 2 images of classes that training lacks: Bar, zoo" in noted(tmp_path)
    assert load_images(str(tmp_path), "test", size=4).labels.tolist() == [-1, 1, -1]


def test_names_of_any_bytes_are_printable(tmp_path):
    root = os.fsencode(tmp_path)
    for folder in (b"a\xff", b"b\nc"):
        os.mkdir(os.path.join(root, folder))
        with open(os.path.join(root, folder, b"1.png"), "wb") as file:
            file.write(image())
    assert load_images(str(tmp_path), "train", size=4).describe().encode() and read(tmp_path).names == (
        "a\ufffd",
        "b c",
    )


# links


def test_a_link_multiplies_nothing(tmp_path):
    root = tmp_path / "set"
    put(root, *(f"{name}/{n}.png" for name in ("cat", "dog") for n in range(6)))
    for name, target in {"cat/up": root, "again": root / "cat", "out": tmp_path, "cat/self": root / "cat"}.items():
        (root / name).symlink_to(target, target_is_directory=True)
    (root / "loop").symlink_to("loop")
    (root / "gone.png").symlink_to("nowhere.png")
    os.mkfifo(root / "pipe.png")
    assert sizes(root) == {"train": 12}
    assert "4 × link to a folder that is read already or leads back up: again, cat/self, cat/up, …" in noted(root)
    assert "2 × link that leads nowhere: gone.png, loop" in noted(root)


def test_links_to_elsewhere_are_read(tmp_path):
    pool = put(tmp_path / "pool", "a/1.png", "b/1.png")
    root = tmp_path / "set"
    put(root, "cat/0.png")
    (root / "dog").symlink_to(Path(pool, "a"), target_is_directory=True)
    (root / "cat" / "1.png").symlink_to(Path(pool, "b", "1.png"))
    assert classes(root) == {"cat/0.png": "cat", "cat/1.png": "cat", "dog/1.png": "dog"}


# few images


@pytest.mark.parametrize("count", [1, 2])
def test_one_image_or_two_are_a_data_set(tmp_path, count):
    put(tmp_path / "set", *(f"{n}/{n}.png" for n in range(count)))
    train, held = (load_images(str(tmp_path / "set"), split, size=4) for split in ("train", "validation"))
    assert len(train) == len(held) == count and torch.equal(train.images, held.images)
    assert "to train on, and to validate on too" in train.describe()
    alone = load_images(str(tmp_path / "set" / "0" / "0.png"), "train", size=4)
    assert len(alone) == 1


# what is said


def test_a_description_has_at_most_ten_lines(tmp_path):
    put(tmp_path, *(f"train/c{n}/{m}.png" for n in range(40) for m in range(2)), "train/loose.png", "test/d/1.png")
    put(tmp_path, "a.heic", "b.nef", "c.txt", "d.zip", "_e/1.png", "train/.f.png", "g.rar", "h.csv", "train/C1/1.png")
    (tmp_path / "up").symlink_to("..")
    (tmp_path / "gone").symlink_to("nowhere")
    with warnings.catch_warnings(action="error"):
        lines = load_images(str(tmp_path), "train", size=4).describe().splitlines()
    assert lines[0] == f"{tmp_path}: 74 images to train on, 8 more to validate on, 1 to test on"
    assert lines[1].startswith("41 classes (train): C1 (1), c0 (") and "more with" in lines[1]
    assert len(lines) == 10 and lines[-1].startswith("and ") and all(len(line) < 600 for line in lines)


def test_images_beside_shards_are_refused_and_other_tables_left_alone(tmp_path):
    import datasets

    put(tmp_path, "cat/1.png", "dog/1.png")
    datasets.Dataset.from_dict({"score": [1.0]}).to_parquet(tmp_path / "scores.parquet")
    assert sizes(tmp_path) == {"train": 2} and "scores.parquet" in noted(tmp_path)
    rows = datasets.Dataset.from_dict({"image": [{"bytes": image(), "path": None}]})
    rows.cast_column("image", datasets.Image()).to_parquet(tmp_path / "train.parquet")
    assert "holds images (cat/1.png) and shards of images (train.parquet); keep one kind in it" in refused(tmp_path)
