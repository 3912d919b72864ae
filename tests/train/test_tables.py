"""Tables beside images name their classes; what does not fit together is counted and named, and nothing is guessed."""

from __future__ import annotations

import json

import pytest
from test_archives import as_zip
from test_sources import classes, image, noted, put, read, refused

from train.data.images import load_images

FLAT = tuple(f"{n}.png" for n in range(4))
LABELS = {"0.png": "cat", "1.png": "dog", "2.png": "cat", "3.png": "dog"}


def write(path, text: str, encoding: str = "utf-8") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding)


TEXTS = {
    "metadata.csv": "file_name,label\n0.png,cat\n1.png,dog\n2.png,cat\n3.png,dog\n",
    "Metadata.CSV": '"label";"image"\r\n"cat";"0.png"\r\n"dog";"1.png"\r\n"cat";"2.png"\r\n"dog";"3.png"\r\n',
    "labels.tsv": "id\tClass\n0\tcat\n1\tdog\n2\tcat \n3\tdog\n",
    "labels.csv": "author,path,category\nme,./0.png,cat\nme,1.PNG,dog\nyou,2.png,cat\nyou,3.png,dog\n",
    "annotations.csv": "image,target\n/content/drive/0.png,cat\n/content/drive/1.png,dog\n"
    "/content/drive/2.png,cat\n/content/drive/3.png,dog\n",
    "metadata.jsonl": "\n".join(
        json.dumps({"file_name": f"{n}.png", "text": "a\u2028b", "label": ("cat", "dog")[n % 2]}) for n in range(4)
    ),
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_usual_tables_name_the_classes(tmp_path, name, encoding):
    put(tmp_path, *FLAT)
    write(tmp_path / name, TEXTS[name], encoding)
    assert classes(tmp_path) == LABELS and read(tmp_path).names == ("cat", "dog")
    assert f"of {name}" in noted(tmp_path)


def test_tables_are_read_in_splits_above_them_and_in_archives(tmp_path):
    for split in ("train", "test"):
        put(tmp_path / "in" / split, *FLAT)
        write(tmp_path / "in" / split / "metadata.csv", TEXTS["metadata.csv"])
    assert classes(tmp_path / "in", "test") == {f"test/{name}": label for name, label in LABELS.items()}
    put(tmp_path / "above" / "train" / "images", *FLAT)
    write(tmp_path / "above" / "labels.csv", TEXTS["labels.csv"])
    assert list(classes(tmp_path / "above").values()) == list(LABELS.values())
    members = {f"x/{name}": image() for name in FLAT} | {"x/metadata.csv": TEXTS["metadata.csv"].encode()}
    (tmp_path / "packed").mkdir()
    packed = as_zip(tmp_path / "packed" / "a.zip", members)
    assert list(classes(packed).values()) == list(LABELS.values())
    beside = as_zip(tmp_path / "packed" / "a.zip", {f"x/{name}": image() for name in FLAT})
    write(tmp_path / "packed" / "labels.csv", TEXTS["labels.csv"])
    assert set(classes(beside).values()) == {None}
    assert list(classes(tmp_path / "packed").values()) == list(LABELS.values())


def test_rows_without_an_image_and_images_without_a_row_are_counted_and_named(tmp_path):
    put(tmp_path, *FLAT, "new.png", "a/x.png", "b/x.png")
    rows = "gone.png,cat\n../0.png,cat\nx.png,dog\n,dog\n"
    write(tmp_path / "metadata.csv", TEXTS["metadata.csv"].replace("3.png,dog\n", "3.png,\n") + rows)
    said = noted(tmp_path, "label")
    assert "metadata.csv: 4 rows without an image, or with several: gone.png, " in said
    assert "3 images without a row, so without a class: a/x.png, b/x.png, new.png" in said
    found = classes(tmp_path, column="label")
    assert found["0.png"] == "cat" and found["3.png"] is found["new.png"] is found["a/x.png"] is None
    labels = [
        load_images(str(tmp_path), split, size=4, label_column="label").labels for split in ("train", "validation")
    ]
    assert sorted(label for part in labels for label in part.tolist()) == [-1] * 4 + [0, 0, 1]


def test_the_label_column_can_be_given(tmp_path):
    put(tmp_path, *FLAT)
    write(tmp_path / "dogs.csv", "id,breed,age\n0,pug,1\n1,beagle,2\n2,pug,10\n3,beagle,1\n")
    assert set(classes(tmp_path).values()) == {None}
    assert "table of another name than metadata or labels (--label-column NAME reads it): dogs.csv" in noted(tmp_path)
    assert read(tmp_path, "Breed").names == ("beagle", "pug") and read(tmp_path, "age").names == ("1", "2", "10")
    assert "--label-column kind: no table that names images has it; dogs.csv has id, breed, age" in refused(
        tmp_path, "kind"
    )
    write(tmp_path / "log.jsonl", "{")  # of another purpose
    assert read(tmp_path, "breed").names == ("beagle", "pug")
    write(tmp_path / "labels.csv", "0.png,cat\n1.png,dog\n2.png,cat\n3.png,dog\n")  # without a header
    assert "labels.csv is not used: no column of labels among 1, 2; see --label-column" in noted(tmp_path)
    assert classes(tmp_path, column="2") == LABELS
    assert "--label-column x: no table that names images has it; there is no table" in refused(
        put(tmp_path / "bare", *FLAT), "x"
    )


def test_a_table_of_another_purpose_beside_class_folders_stops_nothing(tmp_path):
    put(tmp_path, *(f"{kind}/{n}.png" for kind in ("cat", "dog") for n in range(3)))
    for text in (
        "name,price\napple,3\n",
        "id,label\n0,cat\n1,dog\n",
        "file_name,author\ncat/0.png,me\n",
        "file_name,label\ncat/0.png,odd\n",
        '"broken',
        "file_name,label\ncat/0.png,a\ncat/0.png,b\n",
        "",
    ):
        write(tmp_path / "metadata.csv", text)
        write(tmp_path / "prices.csv", text)
        assert read(tmp_path).names == ("cat", "dog")
        assert "metadata.csv" in noted(tmp_path) and "prices.csv" in noted(tmp_path)
    write(tmp_path / "metadata.jsonl", "{")
    assert "not used: metadata.jsonl: cannot be read as a table (line 1 is not JSON)" in noted(tmp_path)


def test_folders_and_a_table_that_disagree_are_two_readings(tmp_path):
    put(tmp_path, *(f"{kind}/{kind}{n}.png" for kind in ("cat", "dog") for n in range(2)))
    rows = [f"{kind}{n}.png,{{}}" for kind in ("cat", "dog") for n in range(2)]
    same = "\n".join(["file_name,label", *rows]).format(7, 7, 3, 3)  # other names for the same classes
    write(tmp_path / "metadata.csv", same)
    assert read(tmp_path).names == ("cat", "dog")
    write(tmp_path / "metadata.csv", "\n".join(["file_name,label", *rows]).format(*"good bad good bad".split()))
    assert "classes could be the folders or the column label of metadata.csv; --label-column label" in refused(tmp_path)
    assert read(tmp_path, "label").names == ("bad", "good")


@pytest.mark.parametrize(
    "name, text, words",
    [
        ("metadata.csv", "file_name,label\n0.png,cat\n0.png,dog\n", "0.png is both 'cat' and 'dog'; give every image"),
        ("metadata.jsonl", '{"file_name": "0.png", "label": ["a", "b"]}', 'label ["a", "b"]: must be one name or'),
        ("metadata.jsonl", '{"file_name": "0.png"}\n[]', "line 2 is no JSON object); fix or remove it"),
    ],
)
def test_what_a_table_cannot_mean_is_one_line(tmp_path, name, text, words):
    put(tmp_path, *FLAT)
    write(tmp_path / name, text)
    assert words in refused(tmp_path)


def test_tables_that_contradict_each_other_and_columns_of_splits(tmp_path):
    put(tmp_path, *FLAT)
    write(tmp_path / "metadata.csv", "file_name,split,label\n0.png,test,cat\n1.png,train,dog\n")
    assert "metadata.csv: column split is not used; folders train/ and test/ make splits" in noted(tmp_path)
    write(tmp_path / "labels.csv", "file_name,label\n0.png,dog\n")
    assert "0.png is both 'dog' and 'cat' in metadata.csv and another table; keep one" in refused(tmp_path)


def test_labels_of_other_types(tmp_path):
    put(tmp_path, *FLAT)
    values = [3, 3.0, None, 10]
    lines = [json.dumps({"file_name": name, "label": value}) for name, value in zip(FLAT, values, strict=True)]
    write(tmp_path / "metadata.jsonl", "\n".join(lines))
    assert list(classes(tmp_path).values()) == ["3", "3", None, "10"] and read(tmp_path).names == ("3", "10")
