"""Against the outline: letters whose truth is known at every size, encoded once and decoded at many.

Beside the PSNR of decoded letters stand bicubic enlargements of what holds as many numbers as the latent, and of the
true image that was encoded. Contours and edges are measured in pixels of that image.

S in tensor names: samples across an edge.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from r2id.latent import Latent
from train.evaluation.metrics import bring_to, psnr

SIZES = (512, 1024, 2048)
STEP = 0.25  # encoded pixels between the points of a contour where edges are measured
STRAIGHT, WAVE = 2.0, 0.03  # encoded pixels along the contour each way; off the chord, of what is straight
REACH, SAMPLE, CLEAN = 1.5, 0.05, 0.15  # encoded pixels across an edge; between samples; no grey beyond, in the truth
LOW, HIGH = 0.1, 0.9  # of an edge's rise


class Codec(Protocol):
    """What is measured: a `Pipeline`, or the like."""

    def encode(self, image: Tensor, *, latent_size: tuple[int, int]) -> Latent: ...

    def resample(self, latent: Latent, *, size: tuple[int, int]) -> Tensor: ...


class Outlines(Protocol):
    """Vector images, such as a `FontSet`."""

    def images(self, indices: Sequence[int], size: int, *, master: int) -> Tensor:
        """uint8 (B, 1, size, size): area means of what is drawn at `master` pixels."""


def against_outline(
    codec: Codec,
    outlines: Outlines,
    indices: Sequence[int],
    *,
    latent_size: tuple[int, int],
    encoder_size: int,
    sizes: Sequence[int] = SIZES,
    batch: int = 4,
) -> list[dict[str, float]]:
    """For each size the PSNR in dB over all letters: of `decoded`; of `as_many_numbers`, an image of as many numbers as
    the latent holds, and of `encoded_image`, the true one of encoder_size pixels, both enlarged bicubically; and how
    much better the decoded is than each. sizes: the largest is a multiple of the others and of encoder_size."""
    errors = {size: dict.fromkeys(("decoded", "as_many_numbers", "encoded_image"), 0.0) for size in sizes}
    for part, image_BCHW, latent in encoded(codec, outlines, indices, latent_size, encoder_size, max(sizes), batch):
        finest_BCHW = rasterised(outlines, part, max(sizes), max(sizes))
        few_BCHW = bring_to(finest_BCHW, numbers_side(latent, image_BCHW.shape[1]))
        for size, sums in errors.items():
            truth_BCHW = rasterised(outlines, part, size, max(sizes))
            sums["decoded"] += square(codec.resample(latent, size=(size, size)), truth_BCHW)
            sums["as_many_numbers"] += square(bring_to(few_BCHW, size), truth_BCHW)
            sums["encoded_image"] += square(bring_to(image_BCHW, size), truth_BCHW)
    rows = []
    for size, sums in errors.items():
        row = {name: psnr(total / len(indices)) for name, total in sums.items()}
        gains = {f"over_{name}": row["decoded"] - value for name, value in row.items() if name != "decoded"}
        rows.append({"size": size} | row | gains)
    return rows


def numbers_side(latent: Latent, channels: int) -> int:
    """The side of the square image of so many channels that holds as many numbers as a latent."""
    return round(math.sqrt(latent.tensor[0].numel() / channels))


def edges_against_outline(
    codec: Codec,
    outlines: Outlines,
    indices: Sequence[int],
    *,
    latent_size: tuple[int, int],
    encoder_size: int,
    finer: int = 8,
    batch: int = 4,
) -> dict[str, float]:
    """Means over all points, in pixels of the encoded image: `contour`, how far the contour at one half of decoded
    letters is from the outline, and the outline from it, so that specks and missing strokes count alike, as much as the
    outline spans where there is no contour; `edge_width`, 10 to 90 %, where the outline is straight.

    finer: decoded pixels per encoded one; the outline is drawn at twice as many.
    """
    distances, widths = [], []
    master = 2 * finer * encoder_size
    for part, _, latent in encoded(codec, outlines, indices, latent_size, encoder_size, master, batch):
        decoded_BCHW = codec.resample(latent, size=(finer * encoder_size,) * 2)
        for image_HW, truth_HW in zip(
            decoded_BCHW[:, 0], rasterised(outlines, part, master, master)[:, 0], strict=True
        ):
            lines, found = contours(truth_HW, encoder_size), contours(image_HW, encoder_size)
            distances.append(contour_distances(found, lines))
            widths.append(edge_widths(image_HW, truth_HW, lines, encoder_size))
    distance_N, width_N = np.concatenate(distances), np.concatenate(widths)
    mean_width = width_N.mean().item() if len(width_N) else float("nan")
    return {"contour": distance_N.mean().item(), "edge_width": mean_width, "edges": len(width_N)}


def encoded(
    codec: Codec,
    outlines: Outlines,
    indices: Sequence[int],
    latent_size: tuple[int, int],
    encoder_size: int,
    master: int,
    batch: int,
) -> Iterator[tuple[Sequence[int], Tensor, Latent]]:
    """Indices of a batch, its images of encoder_size pixels, and their latents."""
    for start in range(0, len(indices), batch):
        part = indices[start : start + batch]
        image_BCHW = rasterised(outlines, part, encoder_size, master)
        yield part, image_BCHW, codec.encode(image_BCHW, latent_size=latent_size)


def rasterised(outlines: Outlines, indices: Sequence[int], size: int, master: int) -> Tensor:
    return outlines.images(indices, size, master=master).float() / 255


def square(images_BCHW: Tensor, truth_BCHW: Tensor) -> float:
    """Mean square error of each image, summed over the batch."""
    return (images_BCHW.double() - truth_BCHW).square().mean(dim=(1, 2, 3)).sum().item()


def contours(image_HW: Tensor, encoder_size: int) -> list[np.ndarray]:
    """Closed lines (N, 2) of where an image is one half, x and y in encoded pixels from the left and top."""
    try:
        from skimage.measure import find_contours
    except ImportError as error:
        raise ValueError(f"scikit-image: not installed ({error}); pip install -r train/requirements.txt") from error
    framed_HW = F.pad(image_HW, (1, 1, 1, 1)).numpy()  # so that lines close at the border too
    scale = encoder_size / image_HW.shape[0]
    return [(line[:, ::-1] - 0.5) * scale for line in find_contours(framed_HW, 0.5)]


def evenly(line_N2: np.ndarray, step: float) -> np.ndarray:
    """Points of a closed line about `step` apart, without the last, which is the first again."""
    lengths = np.linalg.norm(np.diff(line_N2, axis=0), axis=1)
    along = np.concatenate([[0.0], lengths.cumsum()])
    at = np.arange(max(1, round(along[-1] / step))) * (along[-1] / max(1, round(along[-1] / step)))
    return np.stack([np.interp(at, along, line_N2[:, axis]) for axis in (0, 1)], axis=1)


def contour_distances(found: list[np.ndarray], truth: list[np.ndarray]) -> np.ndarray:
    """From points of each line to the nearest of the others, both ways, with equal weight for equal length."""
    from scipy.spatial import cKDTree

    a_N2, b_M2 = (
        np.concatenate([evenly(line, STEP / 8) for line in lines] or [np.empty((0, 2))]) for lines in (found, truth)
    )
    if not len(a_N2) or not len(b_M2):
        other_N2 = a_N2 if len(a_N2) else b_M2
        return np.full(len(other_N2), np.ptp(other_N2, axis=0).max() if len(other_N2) else 0.0)
    return np.concatenate([cKDTree(b_M2).query(a_N2)[0], cKDTree(a_N2).query(b_M2)[0]])


def edge_widths(image_HW: Tensor, truth_HW: Tensor, lines: list[np.ndarray], encoder_size: int) -> np.ndarray:
    """10 to 90 % widths, (N,), across straight stretches of an outline that have nothing else within REACH: where the
    image does not rise so far within it, twice REACH."""
    places, normals = [], []
    each_way = round(STRAIGHT / STEP)
    for line in lines:
        points_N2 = evenly(line, STEP)
        near = (np.arange(len(points_N2))[:, None] + np.arange(-each_way, each_way + 1)) % len(points_N2)
        from_first_NS2 = points_N2[near] - points_N2[near[:, :1]]
        chord_N2 = from_first_NS2[:, -1]
        normal_N2 = chord_N2[:, ::-1] * (1, -1) / np.linalg.norm(chord_N2, axis=1, keepdims=True).clip(min=1e-9)
        straight = np.abs((from_first_NS2 * normal_N2[:, None]).sum(axis=2)).max(axis=1) < WAVE
        places.append(points_N2[straight])
        normals.append(normal_N2[straight])
    if not any(map(len, places)):
        return np.empty(0)
    place_N2, normal_N2 = np.concatenate(places), np.concatenate(normals)
    at_S = np.arange(-round(REACH / SAMPLE), round(REACH / SAMPLE) + 1) * SAMPLE
    points_NS2 = place_N2[:, None] + at_S[:, None] * normal_N2[:, None]
    truth_NS = sampled(truth_HW, points_NS2, encoder_size)
    falls = truth_NS[:, 0] > truth_NS[:, -1]  # the normal shows to the dark side
    truth_NS[falls] = truth_NS[falls, ::-1]
    clean = (truth_NS[:, at_S < -CLEAN] < 0.05).all(axis=1) & (truth_NS[:, at_S > CLEAN] > 0.95).all(axis=1)
    rise_NS = sampled(image_HW, points_NS2, encoder_size)
    rise_NS[falls] = rise_NS[falls, ::-1]
    return np.array([rise_width(rise_S, at_S) for rise_S in rise_NS[clean]])


def sampled(image_HW: Tensor, points_NS2: np.ndarray, encoder_size: int) -> np.ndarray:
    """An image's values at points (x, y) in encoded pixels, bilinear, (N, S); 0 beyond the frame."""
    grid_1NS2 = torch.from_numpy(points_NS2 * 2 / encoder_size - 1).float()[None]
    return F.grid_sample(image_HW[None, None], grid_1NS2, align_corners=False)[0, 0].numpy().copy()


def rise_width(rise_S: np.ndarray, at_S: np.ndarray) -> float:
    """How far apart an edge is LOW and HIGH, on each side of where it is one half."""
    crossings = np.flatnonzero((rise_S[:-1] < 0.5) & (rise_S[1:] >= 0.5))
    if not len(crossings):
        return at_S[-1] - at_S[0]
    middle = crossings[np.abs(at_S[crossings]).argmin()]
    low = np.flatnonzero(rise_S[: middle + 1] < LOW)
    high = np.flatnonzero(rise_S[middle + 1 :] > HIGH)
    if not len(low) or not len(high):
        return at_S[-1] - at_S[0]
    return between(rise_S, at_S, middle + high[0], HIGH) - between(rise_S, at_S, low[-1], LOW)


def between(rise_S: np.ndarray, at_S: np.ndarray, place: int, level: float) -> float:
    """Where the straight line from a sample to the next is at a level."""
    return np.interp(level, rise_S[place : place + 2], at_S[place : place + 2]).item()
