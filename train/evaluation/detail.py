"""Sections about what is finer than the training images, and about judges other than this project's: letters against
their outlines, patches of large outputs, an unrelated reader, distances to the closest training image."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Generator, Tensor

from r2id.image import to_pil
from r2id.limits import BATCH
from r2id.pipeline import Latent
from r2id.position import FULL
from train.data.images import ImageSet
from train.engine.progress import progress_bar
from train.evaluation.classifier import accuracy
from train.evaluation.judges import mobilenet_features, read_letters
from train.evaluation.metrics import bring_to, judge_features
from train.evaluation.nearest import nearest, novelty
from train.evaluation.outline import against_outline, edges_against_outline, numbers_side
from train.evaluation.patches import PATCH, patch_frechet
from train.evaluation.protocol import Evaluation
from train.evaluation.tables import GAP, Note, Sheet, Table, name, titled_sheet

CLOSEST = 12  # generated images on the sheet of closest training images
SIZES = (16, 32, 64, 128, 256, 512, 1024)  # of one image, side by side
ZOOMS = (1, 8, 16, 32, 64)
SHOWN = 256  # pixels a side of what is zoomed
DRAWN = 4096  # at most, pixels a side of an outline that is zoomed


# letters against their outlines


def outline(e: Evaluation) -> Iterator[Table | Note]:
    if e.glyphs is None or e.pipe.resampler is None:
        yield Note(
            "Against the outline: left out, it needs a folder of fonts and weights trained with decoder_size above"
        )
        return
    fonts, letters, size = e.glyphs.fonts, e.glyphs.order[: e.protocol.outline], name((e.size, e.size))
    options = {"encoder_size": e.size, "sizes": e.protocol.outline_sizes}
    rows, edges = [], []
    for cells in progress_bar(e.protocol.outline_cells, "outline", unit="latent"):
        for row in against_outline(e.pipe, fonts, letters, latent_size=cells, **options):
            rows.append((name(cells), *row.values()))
        found = edges_against_outline(e.pipe, fonts, letters, latent_size=cells, encoder_size=e.size)
        edges.append((name(cells), *found.values()))
    columns = {"latent": "{}", "output": "{}", "decoded (dB)": "{:.2f}", "image of as many numbers (dB)": "{:.2f}"}
    columns |= {f"true image of {e.size}² (dB)": "{:.2f}", "better than the first by": "{:.2f}"}
    columns |= {"than the second by": "{:.2f}"}
    title = f"Against the outline: {len(letters):,} letters encoded at {size}; both images are enlarged bicubically"
    yield Table(title, columns, rows)
    columns = {"latent": "{}", "contour to outline, mean": "{:.3f}", "edge, 10 to 90 %": "{:.3f}", "edges": "{:,}"}
    yield Table(f"Contours and straight edges of the same letters, in pixels of {size}", columns, edges)


# patches of large outputs


def patches(e: Evaluation) -> Iterator[Table | Note]:
    if e.pipe.resampler is None:
        yield Note("Patches: left out, in pixel space large outputs are interpolated")
        return
    count, rows = min(e.protocol.generated, len(e.real)), []
    train = e.load("train", limit=count)
    features = {"judge": lambda images_BCHW: judge_features(e.judge, e.seen(images_BCHW))}
    try:
        mobilenet_features(torch.zeros(1, 1, PATCH, PATCH))
        features["ImageNet"] = mobilenet_features
    except ValueError as error:
        yield Note(f"Features of ImageNet: left out; {error}")
    encoded = [latent[i] for latent in e.encoded(e.real.images[:count], e.base) for i in range(len(latent))]
    generated = [latent[i] for latent in e.generated(e.base) for i in range(len(latent))][:count]
    for side in (density * e.pipe.config.decoder_size for density in e.protocol.patch_densities):
        if side < PATCH:
            continue
        real = torch.cat(list(true_patches(e.real, side, count=count, seed=0)))
        compared = {
            "training images (the floor)": true_patches(train, side, count=count, seed=1),
            f"{name(e.base)}, real images reconstructed": decoded_patches(e, encoded, side, seed=2),
            f"{name(e.base)}, generated": decoded_patches(e, generated, side, seed=3),
        }
        for what, batches in compared.items():
            found = torch.cat(list(batches))
            figures = (patch_frechet([found], [real], judge) for judge in features.values())
            rows.append((name((side, side)), what, len(found), *figures))
    columns = {"output": "{}", "patches of": "{}", "count": "{:,}"}
    columns |= {f"Fréchet distance, {judge}": "{:.3f}" for judge in features}
    truth = "drawn at that size" if e.glyphs else "enlarged bicubically where the data are coarser"
    title = f"Patches of {name((PATCH, PATCH))} at random places against real images {truth}, by features of each judge"
    yield Table(title, columns, rows)


def places(side: int, *, count: int, seed: int) -> list[tuple[int, int]]:
    """Left and top of a random patch in each of `count` images."""
    return torch.randint(side - PATCH + 1, (count, 2), generator=Generator().manual_seed(seed)).tolist()


def decoded_patches(e: Evaluation, latents: list[Latent], side: int, *, seed: int) -> Iterator[Tensor]:
    """A patch of each latent's image of side × side pixels; no more of it is decoded."""
    corners = places(side, count=len(latents), seed=seed)
    for latent, (left, top) in zip(progress_bar(latents, f"patches at {side}"), corners, strict=True):
        region = (left / side, top / side, (left + PATCH) / side, (top + PATCH) / side)
        yield e.pipe.resample(latent, size=(PATCH, PATCH), region=region)


def true_patches(images: ImageSet, side: int, *, count: int, seed: int) -> Iterator[Tensor]:
    """A patch of each of the first images, brought to side × side pixels: drawn at that size where they are glyphs."""
    for place, (left, top) in enumerate(progress_bar(places(side, count=count, seed=seed), f"real patches at {side}")):
        image_BCHW = true_image(images, place, side)
        yield image_BCHW[:, :, top : top + PATCH, left : left + PATCH]


def true_image(images: ImageSet, place: int, side: int) -> Tensor:
    """A real image (1, C, side, side) in [0, 1]."""
    finest = images.images if images.targets is None else images.targets
    if hasattr(finest, "fonts"):
        finest = replace(finest, size=side, density=side)
    return (bring_to(finest[place : place + 1], side) + 1) / 2


# an unrelated reader


def reader(e: Evaluation) -> Iterator[Table | Note]:
    """Both judges on the same images. Each share has its standard error, that of a difference is the root of the sum of
    both squares."""
    rows = []

    def measure(what: str, images_NCHW: Tensor, labels_N: Tensor) -> None:
        letters = [e.pipe.labels[label] for label in labels_N.tolist()]
        read = read_letters(images_NCHW, e.pipe.labels)
        right = sum(found == letter for found, letter in zip(read, letters, strict=True)) / len(letters)
        seen = torch.cat([e.seen(part) for part in images_NCHW.split(BATCH)])
        shares = accuracy(e.judge, seen, labels_N), right
        errors = [math.sqrt(share * (1 - share) / len(letters)) for share in shares]
        rows.append((what, len(letters), shares[0], errors[0], shares[1], errors[1], read.count(None) / len(letters)))

    try:
        measure("real images", (e.real.images + 1) / 2, e.real.labels)
    except ValueError as error:  # it is not installed, or does not read such labels
        yield Note(f"Read by an unrelated reader: left out; {error}")
        return
    for cells in e.protocol.generated_cells:
        measure(f"{name(cells)}, generated", e.at_training_size(cells), e.labels_N)
    columns = {"images": "{}", "count": "{:,}", "judge": "{:.2%}", "± (1 s.e.)": "{:.2%}"}
    columns |= {"unrelated reader": "{:.2%}", "± (1 s.e.) ": "{:.2%}", "it reads nothing": "{:.2%}"}
    yield Table(f"Read as their label, at {name((e.size, e.size))}", columns, rows)


# not a copy machine


def closest(e: Evaluation) -> Iterator[Table | Sheet]:
    train, rows = e.load("train"), []
    parts = torch.arange(len(train)).split(BATCH)
    seen = (e.seen((train.images[part] + 1) / 2) for part in progress_bar(parts, "training images"))
    training_ND = torch.cat([judge_features(e.judge, images_BCHW) for images_BCHW in seen])
    real_ND = judge_features(e.judge, e.seen((e.real.images + 1) / 2))
    for cells in e.protocol.generated_cells:
        found = novelty(judge_features(e.judge, e.judged(cells, e.size)), real_ND, training_ND)
        rows.append((name(cells), *found.values()))
    columns = {"latent": "{}", "generated": "{:.3f}", "real images": "{:.3f}", "ratio": "{:.3f}"}
    title = f"Median distance to the closest of {len(train):,} training images, in the classifier's features"
    yield Table(title, columns, rows)
    images_NCHW, seen_NCHW = e.at_training_size(e.base)[:CLOSEST], e.judged(e.base, e.size)[:CLOSEST]
    _, places_N = nearest(judge_features(e.judge, seen_NCHW), training_ND)
    shown = {
        "generated": [to_pil(image_CHW) for image_CHW in images_NCHW],
        "closest": [to_pil(image_CHW) for image_CHW in (train.images[places_N] + 1) / 2],
    }
    columns = {f"seed {seed}": 1.0 for seed in range(len(images_NCHW))}
    yield Sheet(
        "closest", "Generated images above the closest training images", titled_sheet(shown, columns, height=96)
    )


# sheets


def detail_sheets(e: Evaluation) -> Iterator[Sheet]:
    label = len(e.pipe.labels) // 3 if e.pipe.labels else None
    one = e.pipe.diffuse(label, latent_size=e.base, seed=0)
    images = [to_pil(e.pipe.resample(one, size=(side, side))[0]) for side in progress_bar(SIZES, "sizes")]
    yield Sheet("sizes", f"One latent of {name(e.base)} at {', '.join(map(str, SIZES))} pixels", in_a_row(images))
    if e.pipe.resampler:
        yield Sheet("zoom", f"An edge of a real image, from a latent of {name(e.base)} and from others", zoomed(e))


def in_a_row(images: list[Image.Image]) -> Image.Image:
    """Side by side on mid-grey, pixel for pixel, their lower sides on one line."""
    height = max(image.height for image in images)
    row = Image.new("RGB", (sum(image.width + GAP for image in images) - GAP, height), "gray")
    left = 0
    for image in images:
        row.paste(image, (left, height - image.height))
        left += image.width + GAP
    return row


def zoomed(e: Evaluation) -> Image.Image:
    """A real image around its sharpest edge: decoded, beside an image of as many numbers as the latent holds, enlarged
    bicubically; and the outline, or else the training image enlarged."""
    image_BCHW = (e.real.images[:1] + 1) / 2
    latent = e.pipe.encode(image_BCHW, latent_size=e.base)
    few_BCHW = bring_to(image_BCHW, numbers_side(latent, image_BCHW.shape[1]))
    finest_BCHW = true_image(e.real, 0, DRAWN) if e.glyphs else image_BCHW
    x, y = sharpest(image_BCHW)
    rows = {"decoded": [], f"{few_BCHW.shape[-1]}² enlarged": [], "outline" if e.glyphs else f"{e.size}² enlarged": []}
    for zoom in ZOOMS:
        left, top = (min(max(at - 0.5 / zoom, 0), 1 - 1 / zoom) for at in (x, y))
        region = (left, top, left + 1 / zoom, top + 1 / zoom) if zoom > 1 else FULL
        parts = [e.pipe.resample(latent, size=(SHOWN, SHOWN), region=region)]
        parts += [enlarged(image, region, SHOWN) for image in (few_BCHW, finest_BCHW)]
        for row, part_BCHW in zip(rows.values(), parts, strict=True):
            row.append(to_pil(part_BCHW[0]))
    return titled_sheet(rows, {f"{zoom} ×": 1.0 for zoom in ZOOMS}, height=SHOWN)


def sharpest(image_BCHW: Tensor) -> tuple[float, float]:
    """Where the first image changes most from one pixel to the next, (x, y) in fractions of its sides."""
    image_HW = image_BCHW[0].mean(dim=0)
    change_HW = (image_HW[:-1, 1:] - image_HW[:-1, :-1]).square() + (image_HW[1:, :-1] - image_HW[:-1, :-1]).square()
    row, column = divmod(int(change_HW.argmax()), change_HW.shape[1])
    return (column + 1) / image_HW.shape[1], (row + 1) / image_HW.shape[0]


def enlarged(image_BCHW: Tensor, region: tuple[float, float, float, float], side: int) -> Tensor:
    """A region (left, top, right, bottom) of images, in fractions, as side × side pixels: area-reduced where the images
    have as many or more, else bicubic, clipped to their range."""
    left, top, right, bottom = region
    pixels = round((right - left) * image_BCHW.shape[-1])
    if pixels >= side:
        row, column = (round(at * image_BCHW.shape[-1]) for at in (top, left))
        return F.interpolate(image_BCHW[..., row : row + pixels, column : column + pixels], (side, side), mode="area")
    along = (torch.arange(side) + 0.5) / side
    x, y = (2 * (low + (high - low) * along) - 1 for low, high in ((left, right), (top, bottom)))
    grid_1HW2 = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)[None]
    low, high = image_BCHW.aminmax()
    options = {"mode": "bicubic", "padding_mode": "border", "align_corners": False}
    return F.grid_sample(image_BCHW, grid_1HW2, **options).clamp(low, high)
