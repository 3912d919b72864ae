"""A set of faces from CelebA's files: framed alike, labelled by pose, split as officially; faults are named."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, ImageDraw

from train.data.celeba import IMAGES, LANDMARKS, PARTITION, POSES, build, crop_box, main, pose_of
from train.data.images import load_images

COUNT, SIZE = 50, (178, 218)  # images, and the pixels of CelebA's aligned ones
EYES, MOUTH = ((69, 111), (109, 111)), ((75, 152), (103, 152))
HEADING = "lefteye_x lefteye_y righteye_x righteye_y nose_x nose_y leftmouth_x leftmouth_y rightmouth_x rightmouth_y"


def nose(number: int) -> tuple[int, int]:
    """Further right from image to image, in an order that mixes them."""
    return 64 + number * 23 % COUNT, 135


def celeba(folder: Path, partition: bool = False) -> Path:
    """Grey images with a white eye at the left and a red nose, and their lists."""
    (folder / IMAGES).mkdir(parents=True)
    lines = [str(COUNT), HEADING]
    for number in range(COUNT):
        image = Image.new("RGB", SIZE, (128, 128, 128))
        for (x, y), colour in ((EYES[0], "white"), (nose(number), "red")):
            ImageDraw.Draw(image).ellipse((x - 4, y - 4, x + 4, y + 4), fill=colour)
        image.save(folder / IMAGES / f"{number:06d}.jpg", quality=95)
        points = (*EYES, nose(number), *MOUTH)
        lines.append(f"{number:06d}.jpg  " + " ".join(f"{x:3d} {y:3d}" for x, y in points))
    (folder / LANDMARKS).write_text("\n".join(lines) + "\n")
    if partition:  # validation first, so that order tells
        parts = [1] * 10 + [0] * 30 + [2] * 10
        (folder / PARTITION).write_text("".join(f"{n:06d}.jpg {part}\n" for n, part in enumerate(parts)))
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return celeba(tmp_path_factory.mktemp("celeba"))


def rows(folder: Path, split: str) -> list[dict]:
    return pq.read_table(folder / f"{split}-00000-of-00001.parquet").to_pylist()


def test_the_set_is_read_with_its_labels_and_their_names(files, tmp_path):
    assert build(files, tmp_path / "out") == {"train": 45, "test": 5}
    found = load_images(str(tmp_path / "out"), "test", size=128)
    assert found.names == POSES and found.images.shape == (5, 3, 128, 128)
    assert found.labels.tolist() == [row["label"] for row in rows(tmp_path / "out", "test")]


def test_labels_are_quintiles_of_the_training_poses_and_rise_with_the_nose(files, tmp_path):
    build(files, tmp_path)
    train, test = rows(tmp_path, "train"), rows(tmp_path, "test")
    labels = torch.tensor([row["label"] for row in train])
    assert labels.bincount().tolist() == [9] * 5
    across = [nose(int(Path(row["image"]["path"]).stem))[0] for row in train]
    assert labels[torch.tensor(across).argsort()].diff().min() == 0
    limits = {label: [x for x, row in zip(across, train, strict=True) if row["label"] == label] for label in range(5)}
    for row in test:  # where a test image lies between training images of one label, it has that label
        x = nose(int(Path(row["image"]["path"]).stem))[0]
        assert [label for label, seen in limits.items() if min(seen) <= x <= max(seen)] in ([], [row["label"]])


def test_images_are_square_webp_of_128_pixels_around_the_face(files, tmp_path):
    build(files, tmp_path)
    left, top, right, bottom = crop_box(torch.tensor([*EYES, nose(0), *MOUTH]), SIZE)
    for row in rows(tmp_path, "test"):
        image = Image.open(io.BytesIO(row["image"]["bytes"]))
        assert image.format == "WEBP" and image.size == (128, 128) and image.mode == "RGB"
        (x, y), scale = EYES[0], 128 / (right - left)
        eye = image.getpixel((round((x - left) * scale), round((y - top) * scale)))
        x, y = nose(int(Path(row["image"]["path"]).stem))
        red, green, blue = image.getpixel((round((x - left) * scale), round((y - top) * scale)))
        assert min(eye) > 200 and red > 180 and max(green, blue) < 100


def test_the_official_partition_puts_its_validation_images_last_in_training(tmp_path):
    build(celeba(tmp_path / "in", partition=True), tmp_path)
    order = [int(Path(row["image"]["path"]).stem) for row in rows(tmp_path, "train")]
    assert order == [*range(10, 40), *range(10)]
    assert [int(Path(row["image"]["path"]).stem) for row in rows(tmp_path, "test")] == [*range(40, 50)]


@pytest.mark.parametrize("turn", [0.0, 0.5])
def test_pose_is_the_nose_between_the_eyes_whatever_size_place_and_tilt(turn):
    turn, scale = torch.tensor(turn), 3.0
    matrix = scale * torch.stack([turn.cos(), -turn.sin(), turn.sin(), turn.cos()]).view(2, 2)
    left, right, ahead, aside = (
        torch.tensor([point]) @ matrix.T + 7 for point in ((-1.0, 0), (1.0, 0), (0, 2.0), (1.0, 2))
    )
    assert pose_of(left, right, ahead).item() == pytest.approx(0, abs=1e-6)
    assert pose_of(left, right, aside).item() == pytest.approx(0.5, abs=1e-6)
    mirror = torch.tensor([-1.0, 1.0])
    assert pose_of(right * mirror, left * mirror, aside * mirror).item() == pytest.approx(-0.5, abs=1e-6)


@pytest.mark.parametrize("shift", [(-60, 0), (60, 0), (0, -100), (0, 60)])
def test_a_crop_stays_a_square_inside_the_image(shift):
    points = torch.tensor([*EYES, (89, 135), *MOUTH]) + torch.tensor(shift)
    for size in (SIZE, (100, 90)):
        left, top, right, bottom = crop_box(points, size)
        assert right - left == pytest.approx(bottom - top) and right - left > 80
        assert left >= 0 and top >= 0 and right <= size[0] + 1e-6 and bottom <= size[1] + 1e-6


def without(name):
    return lambda folder: (folder / name).unlink()


FAULTS = {
    "no landmarks": (without(LANDMARKS), f"{LANDMARKS}: no such file"),
    "no image": (without(f"{IMAGES}/000003.jpg"), "1 of 50 images .* 000003.jpg the first"),
    "broken image": (lambda f: (f / IMAGES / "000003.jpg").write_bytes(b"no image"), "000003.jpg: cannot be read"),
    "other landmarks": (lambda f: (f / LANDMARKS).write_text("1\nx y\n000000.jpg 1 2\n"), "10 numbers a line"),
    "binary landmarks": (lambda f: (f / LANDMARKS).write_bytes(b"\xff\xfe\x00"), "not a text file"),
    "other partition": (lambda f: (f / PARTITION).write_text("000000.jpg 7\n"), "0, 1 or 2"),
    "short partition": (lambda f: (f / PARTITION).write_text("000000.jpg 0\n"), "49 of 50 images"),
    "no test images": (
        lambda f: (f / PARTITION).write_text("".join(f"{n:06d}.jpg 0\n" for n in range(COUNT))),
        "0 test",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_one_line_and_leave_no_file(fault, tmp_path):
    folder = celeba(tmp_path / "in")
    damage, message = FAULTS[fault]
    damage(folder)
    with pytest.raises(ValueError, match=message) as caught:
        build(folder, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not [*tmp_path.glob("out/train*"), *tmp_path.glob("out/*.partial")]


def test_the_command_builds_and_says_what_it_built(files, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["celeba", str(files), "--out", str(tmp_path)])
    main()
    assert "45 train images of 128 × 128 pixels, 5 poses" in capsys.readouterr().out
    assert len(rows(tmp_path, "test")) == 5
