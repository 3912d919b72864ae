"""Faces at 128 × 128 pixels with the pose of the head as label, from the public files of CelebA (Liu et al. 2015).

python -m train.data.celeba FOLDER [--out DIR]     writes train-00000-of-00001.parquet and test-00000-of-00001.parquet

FOLDER holds img_align_celeba/*.jpg and list_landmarks_align_celeba.txt; with list_eval_partition.txt, test is the
official one. CelebA is for non-commercial research, and its images may not be passed on.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import ClassLabel, Features, Image
from PIL import Image as PILImage
from PIL import ImageOps
from torch import Tensor
from tqdm import tqdm

IMAGES, LANDMARKS, PARTITION = "img_align_celeba", "list_landmarks_align_celeba.txt", "list_eval_partition.txt"
POSES = ("left", "half left", "ahead", "half right", "right")  # as the viewer sees it
SIZE, QUALITY = 128, 90  # pixels, of WebP
CENTRE = (0.5, 0.51)  # of the crop, from its left and top: the middle between eyes and mouth
ACROSS, DOWN = 3.1, 2.9  # side of the crop at least, in distances between the eyes, and from eyes to mouth
PART = 10  # the last 1 / PART of the images are the test set where there is no official one
ROWS = 1_000  # that are decoded, and written, together


@dataclass(frozen=True)
class Landmarks:
    """names: of N files; points_N52: pixels (x, y) of left eye, right eye, nose, left and right corner of the mouth, as
    the viewer sees them."""

    names: list[str]
    points_N52: Tensor


def pose_of(left_eye_N2: Tensor, right_eye_N2: Tensor, nose_N2: Tensor) -> Tensor:
    """How far a head is turned, (N,): where the nose lies along the line between the eyes, from their middle, in
    distances between them. 0 is ahead, about ±0.4 a half profile; positive is to the viewer's right."""
    between_N2 = right_eye_N2 - left_eye_N2
    along_N = ((nose_N2 - (left_eye_N2 + right_eye_N2) / 2) * between_N2).sum(dim=1)
    return along_N / between_N2.square().sum(dim=1).clamp(min=1e-9)


def crop_box(points_52: Tensor, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Landmarks → (left, top, right, bottom) of the square around the face, in pixels of an image of size (width,
    height), inside it: moved, and reduced where the image is smaller."""
    left_eye, right_eye, _, *corners = points_52.double()
    eyes, mouth = (left_eye + right_eye) / 2, (corners[0] + corners[1]) / 2
    across, down = (right_eye - left_eye).norm().item(), (mouth - eyes).norm().item()
    side = min(max(ACROSS * across, DOWN * down, 1.0), *size)
    middle = ((eyes + mouth) / 2).tolist()
    starts = (point - part * side for point, part in zip(middle, CENTRE, strict=True))
    left, top = (min(max(start, 0.0), whole - side) for start, whole in zip(starts, size, strict=True))
    return left, top, left + side, top + side


def face(path: Path, points_52: Tensor) -> bytes:
    """The square around the face of an image, as a WebP file of SIZE × SIZE pixels. Raises ValueError for an image that
    cannot be read."""
    try:
        with PILImage.open(path) as image:
            image = ImageOps.exif_transpose(image).convert("RGB")
    except Exception as error:  # Decoders raise whatever a broken file leads them into.
        raise ValueError(f"{path}: cannot be read ({' '.join(str(error).split())}); fetch it again") from error
    box = crop_box(points_52, image.size)
    file = io.BytesIO()
    image.resize((SIZE, SIZE), PILImage.Resampling.LANCZOS, box=box).save(file, "WEBP", quality=QUALITY)
    return file.getvalue()


def read_landmarks(file: Path) -> Landmarks:
    """list_landmarks_align_celeba.txt: a line with the count, one with the names of the points, then a file name and 10
    numbers a line. Raises ValueError for any other file."""
    lines = [line.split() for line in lines_of(file)[2:]]
    names = [line[0] for line in lines]
    try:
        points_N52 = torch.tensor([[float(value) for value in line[1:]] for line in lines]).reshape(-1, 5, 2)
        if len(names) != len(points_N52) or not len(names) or not points_N52.isfinite().all():
            raise ValueError
    except (ValueError, RuntimeError):
        fault = "not a file name and 10 numbers a line, below two lines of heading"
        raise ValueError(f"{file}: {fault}; take the one of aligned images") from None
    return Landmarks(names, points_N52)


def read_partition(file: Path, names: list[str]) -> Tensor:
    """list_eval_partition.txt, a name and 0 (train), 1 (validation) or 2 (test) a line → numbers in the order of the
    names, (N,). Raises ValueError for a line of another form, and for names that it lacks."""
    lines = [line.split() for line in lines_of(file)]
    if any(len(line) != 2 or line[1] not in ("0", "1", "2") for line in lines):
        raise ValueError(f"{file}: not a file name and 0, 1 or 2 a line; take CelebA's own")
    known = {name: int(part) for name, part in lines}
    missing = [name for name in names if name not in known]
    if missing:
        raise ValueError(f"{file}: {len(missing):,} of {len(names):,} images are not in it, {missing[0]} the first")
    return torch.tensor([known[name] for name in names])


def lines_of(file: Path) -> list[str]:
    """Those of a text file that are not empty."""
    if not file.is_file():
        raise ValueError(f"{file}: no such file; give the folder of CelebA's {LANDMARKS} and {IMAGES}/")
    try:
        return [line for line in file.read_text("utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise ValueError(f"{file}: not a text file; fetch it again") from None


def split(folder: Path, names: list[str]) -> tuple[Tensor, Tensor]:
    """Places of the training and of the test images. The official validation images come last in training, where
    `load_images` takes its validation split from: nobody in them is in the others."""
    if (folder / PARTITION).is_file():
        part_N = read_partition(folder / PARTITION, names)
        train, test = part_N.argsort(stable=True)[: int((part_N < 2).sum())], (part_N == 2).nonzero().flatten()
    else:  # CelebA numbers its images so that neighbours may show one person
        train, test = torch.arange(len(names)).tensor_split([len(names) - len(names) // PART])
    for name, places in (("training", train), ("test", test)):
        if len(places) < len(POSES):
            raise ValueError(f"{folder}: {len(places)} {name} images; at least {len(POSES)} are needed, one a pose")
    return train, test


def build(folder: Path, out: Path) -> dict[str, int]:
    """Writes both splits into `out`, each complete or not at all → the number of rows of each. Labels are the quintiles
    of the training images' poses. Raises ValueError, one line, for files that are missing or broken."""
    found = read_landmarks(folder / LANDMARKS)
    missing = [name for name in found.names if not (folder / IMAGES / name).is_file()]
    if missing:
        fault = f"{len(missing):,} of {len(found.names):,} images of {LANDMARKS} are missing"
        raise ValueError(f"{folder / IMAGES}: {fault}, {missing[0]} the first; unpack all of them")
    train, test = split(folder, found.names)
    left_eye_N2, right_eye_N2, nose_N2 = found.points_N52[:, :3].double().unbind(dim=1)
    pose_N = pose_of(left_eye_N2, right_eye_N2, nose_N2)
    inner = np.quantile(pose_N[train].numpy(), [n / len(POSES) for n in range(1, len(POSES))])
    labels_N = torch.bucketize(pose_N, torch.from_numpy(inner), right=True)
    out.mkdir(parents=True, exist_ok=True)
    for name, places in (("train", train), ("test", test)):
        write(out / f"{name}-00000-of-00001.parquet", folder, found, labels_N, places.tolist())
    return {"train": len(train), "test": len(test)}


def write(file: Path, folder: Path, found: Landmarks, labels_N: Tensor, places: list[int]) -> None:
    """The images at these places as a parquet file, with the features that `datasets` reads from its schema."""
    schema = Features(image=Image(), label=ClassLabel(names=list(POSES))).arrow_schema
    partial = file.with_suffix(".partial")
    try:
        with pq.ParquetWriter(partial, schema) as writer, ThreadPoolExecutor() as pool:
            for part in parts(places, file.name):
                names = [found.names[place] for place in part]
                files = pool.map(face, [folder / IMAGES / name for name in names], found.points_N52[part])
                paths = [f"{Path(name).stem}.webp" for name in names]
                images = [{"bytes": data, "path": path} for data, path in zip(files, paths, strict=True)]
                columns = {"image": images, "label": labels_N[part].tolist()}
                writer.write_table(pa.Table.from_pydict(columns, schema=schema))
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def parts(places: list[int], title: str) -> Iterator[list[int]]:
    with tqdm(total=len(places), desc=title, unit="image", disable=None) as bar:
        for start in range(0, len(places), ROWS):
            yield places[start : start + ROWS]
            bar.update(len(places[start : start + ROWS]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of CelebA's files")
    parser.add_argument("--out", type=Path, default=Path("data/faces"), help="where the two files go")
    arguments = parser.parse_args()
    for name, count in build(arguments.folder, arguments.out).items():
        print(f"{arguments.out}: {count:,} {name} images of {SIZE} × {SIZE} pixels, {len(POSES)} poses")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
