"""Illustrations of latents and of the images made from them, drawn with PIL.

All are opaque and dark, so that they suit a light and a dark page, and twice as large as they are shown, so that they
are crisp on dense screens. PIL's default font has no "×", "−" or "½": captions say x, - and 0.5.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from r2id.demo.request import ViewRequest
from r2id.image import to_pil
from r2id.latent import Latent
from r2id.limits import short_repr
from r2id.pipeline import Pipeline
from r2id.position import FULL, Window, window_of

PAPER, PANEL, MUTED, INK = "#16181d", "#2b303a", "#a3abba", "#eceef2"
BLUE, ORANGE = "#4f93ff", "#ff9838"
TEXT, GAP = 26, 12  # font size and space between images, pixels
SIZES = (8, 16, 32, 64, 128, 256, 512, 1024)  # long sides, pixels
MAX_STEPS_SHOWN = 20

# layout


@cache
def font(size: int = TEXT) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def fit_inside(box: tuple[float, float], aspect: float) -> tuple[int, int]:
    """The largest (width, height) in pixels with this width / height that fits in a box (width, height)."""
    width = min(box[0], box[1] * aspect)
    return max(1, round(width)), max(1, round(width / aspect))


def resize_box(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resizes to (width, height): nearest when enlarging, the mean when reducing."""
    return image.resize(size, Image.Resampling.BOX)


def sheet(images: Sequence[tuple[str, Image.Image]], columns: int) -> Image.Image:
    """Lays out (caption, image) in reading order without resizing, each image above its caption."""
    if not images:
        raise ValueError("0 images: a sheet needs at least 1")
    columns = min(columns, len(images))
    width = max(image.width for _, image in images) + GAP
    height = max(image.height for _, image in images) + 2 * GAP + TEXT
    paper = Image.new("RGB", (columns * width + GAP, math.ceil(len(images) / columns) * height + GAP), PAPER)
    draw = ImageDraw.Draw(paper)
    for index, (caption, image) in enumerate(images):
        row, column = divmod(index, columns)
        middle, bottom = GAP + column * width + (width - GAP) // 2, (row + 1) * height - TEXT - GAP
        paper.paste(image, (middle - image.width // 2, bottom - image.height))
        draw.text((middle, bottom + GAP // 2), caption, INK, font(), "mt")
    return paper


def strip(images: Sequence[tuple[str, Image.Image]], *, side: int = 256, columns: int = 4) -> Image.Image:
    """Lays out (caption, image) equally large, with a long side of `side` pixels."""
    equal = [
        (caption, resize_box(image, fit_inside((side, side), image.width / image.height))) for caption, image in images
    ]
    return sheet(equal, columns)


# latents


def draw_cells(size: tuple[int, int], aspect: float) -> Image.Image:
    """The grid of size = (h, w) cells in a frame with this width / height, 480 × 320 pixels."""
    image = Image.new("RGB", (480, 320), PAPER)
    draw = ImageDraw.Draw(image)
    width, height = fit_inside((432, 272), aspect)
    left, top = (480 - width) // 2, (320 - height) // 2
    right, bottom = left + width - 1, top + height - 1
    draw.rectangle((left - 8, top - 8, right + 8, bottom + 8), outline=ORANGE, width=4)
    draw.rectangle((left, top, right, bottom), BLUE)
    rows, columns = size
    for index in range(1, columns) if width >= 3 * columns else ():  # of narrower cells only lines would be left
        x = left + round(width * index / columns)
        draw.line((x, top, x, bottom), PAPER, 2 if width > 12 * columns else 1)
    for index in range(1, rows) if height >= 3 * rows else ():
        y = top + round(height * index / rows)
        draw.line((left, y, right, y), PAPER, 2 if height > 12 * rows else 1)
    return image


def channel_maps(latent: Latent, *, side: int = 144, columns: int = 6) -> Image.Image:
    """Every channel of the first row as a map of its cells, numbered from 1, long side about `side` pixels.

    All share a scale from minus to plus the largest magnitude; the bar below shows it.
    """
    values_Chw = latent.tensor[0]
    limit = max(0.1, math.ceil(10 * values_Chw.abs().max().item() - 1e-5) / 10)  # float32 0.3 exceeds 0.3
    frame = fit_inside((side, side), latent.aspect)
    size = tuple(n * round(length / n) or length for n, length in zip(latent.size[::-1], frame, strict=True))
    colours_C3hw = diverging(values_Chw / limit).permute(0, 3, 1, 2)
    maps = sheet([(str(i), resize_box(to_pil(c), size)) for i, c in enumerate(colours_C3hw, start=1)], columns)
    width = max(maps.width, 400)
    image = Image.new("RGB", (width, maps.height + 80), PAPER)
    image.paste(maps, ((width - maps.width) // 2, 0))
    left, top = width // 2 - 128, maps.height + 8
    image.paste(to_pil(diverging(torch.linspace(-1, 1, 256)).T[:, None]).resize((256, 20)), (left, top))
    for x, value in ((left, -limit), (left + 128, 0), (left + 256, limit)):
        ImageDraw.Draw(image).text((x, top + 28), f"{value:g}", INK, font(), "mt")
    return image


def diverging(values: Tensor) -> Tensor:
    """Values (…) in [-1, 1] → colours (…, 3) in [0, 1]: blue below 0, white at 0, orange above."""
    low, high = torch.tensor([0.05, 0.30, 0.85]), torch.tensor([0.95, 0.45, 0.0])
    colours = torch.where(values[..., None] < 0, low, high)
    return torch.lerp(torch.ones(3), colours, values[..., None].abs())


def trajectory(images: Sequence[Image.Image], *, side: int = 128, columns: int = 5) -> Image.Image:
    """Lays out the images of steps 1, 2, …; of more than 20, evenly spaced ones including the last."""
    count = min(len(images), MAX_STEPS_SHOWN)
    steps = [round(1 + i * (len(images) - 1) / max(1, count - 1)) for i in range(count)]
    return strip([(f"step {step}", images[step - 1]) for step in steps], side=side, columns=columns)


# coordinates


def coordinate_systems(view: ViewRequest, aspect: float) -> tuple[Image.Image, Image.Image]:
    """Absolute and relative coordinates of the image in this view, for a latent with this aspect; 640 pixels wide.

    The image is coloured by its coordinates, darker beyond the frame, with a white outline. The frame's outline and
    coordinates are orange, the outline of a zoomed part is blue.
    """
    window = window_of(view.size, aspect=aspect, fit=view.fit)
    absolute = _coordinates("Absolute: the frame is 1 wide and 1 high", view, window, (1.0, 1.0))
    return absolute, _coordinates("Relative: the frame's long side is 1", view, window, window.relative_scale)


def _coordinates(title: str, view: ViewRequest, window: Window, scale: tuple[float, float]) -> Image.Image:
    """scale: coordinates of this system / absolute coordinates, in x and y."""
    # Ranges (low, high) in x and y in absolute units; `place` maps them to pixels.
    sizes = list(zip(view.size[::-1], window.origin, window.pitch, strict=True))
    output = [(o * p, (n + o) * p) for n, o, p in sizes]
    frame = [(-0.5, 0.5)] * 2
    union = [(min(low, -0.5), max(high, 0.5)) for low, high in output]
    extent = [high - low for low, high in union]
    width, height = fit_inside((460, 460), extent[0] / window.pitch[0] / (extent[1] / window.pitch[1]))
    corner, zoom = ((640 - width) // 2, 100), (width / extent[0], height / extent[1])

    def place(value: float, axis: int) -> int:
        return corner[axis] + round((value - union[axis][0]) * zoom[axis])

    def box(ranges) -> tuple[int, ...]:
        return tuple(place(ranges[axis][end], axis) for end in (0, 1) for axis in (0, 1))

    image = Image.new("RGB", (640, height + 200), PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((320, 16), title, INK, font(), "mt")
    draw.rectangle(box(union), PANEL)
    left, top, right, bottom = box(output)
    x_W, y_H = (
        low + (high - low) * (torch.arange(n) + 0.5) / n
        for (low, high), n in zip(output, (right - left, bottom - top), strict=True)
    )
    y_HW, x_HW = torch.meshgrid(y_H, x_W, indexing="ij")
    red_HW, green_HW = (0.1 + 0.7 * (0.5 + v * s).clamp(0, 1) for v, s in zip((x_HW, y_HW), scale, strict=True))
    colour_CHW = torch.stack((red_HW, 0.9 * green_HW, torch.full_like(x_HW, 0.5)))
    beyond_HW = torch.maximum(x_HW.abs(), y_HW.abs()) > 0.5
    image.paste(to_pil(colour_CHW * torch.where(beyond_HW, 0.35, 1.0)), (left, top))

    for axis in (0, 1):
        step = 0.25 * 2 ** max(0, math.ceil(math.log2(60 * scale[axis] / (0.25 * zoom[axis]))))  # 60 pixels or more
        first, last = (edge * scale[axis] / step for edge in output[axis])
        for k in range(math.ceil(first - 1e-9), math.floor(last + 1e-9) + 1):
            at = place(k * step / scale[axis], axis)
            ends = (at, top, at, bottom) if axis == 0 else (left, at, right, at)
            draw.line(ends, MUTED if k else INK, 1 if k else 3)
            where, anchor = ((at, corner[1] - 16), "mb") if axis == 0 else ((corner[0] - 12, at), "rm")
            draw.text(where, f"{k * step:g}", MUTED, font(), anchor)
        anchors = (("mt", "mt"), ("lt", "lb")) if zoom[axis] > 120 else (("rt", "lt"), ("lb", "lt"))
        for edge, anchor in zip((-0.5, 0.5), anchors[axis], strict=True):
            at = place(edge, axis)
            where = (at, corner[1] + height + 16) if axis == 0 else (corner[0] + width + 12, at)
            draw.text(where, f"{edge * scale[axis]:.3g}", ORANGE, font(), anchor)
    keys = [("image", INK, output, 3), ("frame", ORANGE, frame, 4)]
    if view.zoom > 1:
        ends = zip(output, view.region[:2], view.region[2:], strict=True)
        part = [(low + start * (high - low), low + stop * (high - low)) for (low, high), start, stop in ends]
        keys.append(("zoomed part", BLUE, part, 3))
    for index, (name, colour, ranges, line) in enumerate(keys):
        draw.rectangle(box(ranges), outline=colour, width=line)
        x = 236 + 90 * (2 * index - len(keys) + 1)
        draw.rectangle((x, height + 156, x + 24, height + 180), outline=colour, width=4)
        draw.text((x + 34, height + 168), name, INK, font(), "lm")
    return image


# measurements


def loss_against_t(report: dict | None) -> Image.Image | None:
    """Plots the mean squared error at every noise level t, with and without the label; 960 × 600 pixels.

    report: what `train.evaluate --only loss` writes. None if it holds no losses; raises ValueError, one line, if they
    are malformed.
    """
    section = (report or {}).get("loss")
    if section is None:
        return None
    names = {"conditional": ("with the label", BLUE), "null": ("without", ORANGE)}
    try:
        t_N, *curves = (np.array([row[key] for row in section[0]["rows"]], dtype=float) for key in ("t", *names))
        alike = t_N.ndim == 1 and len(t_N) > 1 and all(c.shape == t_N.shape for c in curves)
        if not alike or t_N.max() > 1 or not all((c >= 0).all() and np.isfinite(c).all() for c in (t_N, *curves)):
            raise ValueError
    except (IndexError, KeyError, TypeError, ValueError):
        raise ValueError("loss: must hold rows of t in 0…1, conditional and null, each a number") from None
    highest = max(c.max() for c in curves) or 1.0
    decade = 10.0 ** math.floor(math.log10(highest / 5))
    step = next(n * decade for n in (1, 2, 5, 10) if highest <= 5 * n * decade)  # 5 lines at most
    top = step * math.ceil(highest / step - 1e-9)
    left, right, upper, lower = 110, 930, 90, 500

    def at(t: float, loss: float) -> tuple[float, float]:
        return left + (right - left) * t, lower - (lower - upper) * loss / top

    image = Image.new("RGB", (960, 600), PAPER)
    draw = ImageDraw.Draw(image)
    for k in range(round(top / step) + 1):
        draw.line((at(0, k * step), at(1, k * step)), MUTED if k == 0 else PANEL, 2)
        draw.text((left - 14, at(0, k * step)[1]), f"{k * step:g}", MUTED, font(), "rm")
    for t in (0, 0.25, 0.5, 0.75, 1):
        draw.line((at(t, 0), at(t, top)), MUTED if t == 0 else PANEL, 2)
        draw.text((at(t, 0)[0], lower + 14), f"{t:g}", MUTED, font(), "mt")
    draw.text(((left + right) / 2, lower + 56), "t (0 is the image, 1 is noise)", INK, font(), "mt")
    draw.text((left, 36), "mean squared error", INK, font(), "lm")
    for index, ((name, colour), loss_N) in enumerate(zip(names.values(), curves, strict=True)):
        draw.line([at(t, loss) for t, loss in sorted(zip(t_N, loss_N, strict=True))], colour, 5, joint="curve")
        x = 480 + 240 * index
        draw.line((x, 36, x + 40, 36), colour, 5)
        draw.text((x + 54, 36), name, INK, font(), "lm")
    return image


# views of one latent


def at_sizes(
    pipe: Pipeline, latent: Latent, view: ViewRequest, sizes: Sequence[int] = SIZES
) -> Iterator[tuple[str, Image.Image]]:
    """Decodes the first row at every long side in `sizes`: (caption, image), for `strip`."""
    for side in sizes:
        look = replace(view, side=side)
        yield "{1} x {0}".format(*look.size), decode_view(pipe, latent, look)


def decode_view(pipe: Pipeline, latent: Latent, view: ViewRequest) -> Image.Image:
    """The first row in this view."""
    return to_pil(pipe.resample(latent[0], **view.resample_options)[0])


def equal_numbers_size(latent: Latent, channels: int) -> tuple[float, float]:
    """Height and width, in pixels, of an image of the latent's frame that holds as many numbers as a row of it."""
    pixels = math.prod(latent.tensor.shape[1:]) / channels
    return math.sqrt(pixels / latent.aspect), math.sqrt(pixels * latent.aspect)


def equal_numbers_pixels(latent: Latent, channels: int) -> tuple[int, int]:
    """`equal_numbers_size` in whole pixels, 1 or more."""
    height, width = equal_numbers_size(latent, channels)
    return max(1, round(height)), max(1, round(width))


def enlarge_bicubic(pipe: Pipeline, latent: Latent, view: ViewRequest) -> Image.Image:
    """Decodes the first row to an image of as many numbers as the latent holds and enlarges it bicubically to the view.

    Every point lies where `Pipeline.resample` has it.
    """
    whole, part = (window_of(view.size, aspect=latent.aspect, fit=view.fit, region=r) for r in (FULL, view.region))
    extents = [n * p for n, p in zip(view.size[::-1], whole.pitch, strict=True)]  # absolute, x and y
    height, width = equal_numbers_size(latent, pipe.config.channels)  # of the frame
    width, height = (math.ceil(e * n - 1e-9) for e, n in zip(extents, (width, height), strict=True))
    base = window_of((height, width), aspect=latent.aspect, fit=view.fit)
    image_BCHW = pipe.resample(latent[0], size=(height, width), fit=view.fit)
    image_BCHW = F.pad(image_BCHW, (1, 1, 1, 1), mode="replicate")  # whole pixels may end just short of the view
    box = [
        (part.origin[axis] + edge) * part.pitch[axis] / base.pitch[axis] - base.origin[axis] + 1
        for edges in ((0, 0), view.size[::-1])
        for axis, edge in enumerate(edges)
    ]
    return to_pil(image_BCHW[0]).resize(view.size[::-1], Image.Resampling.BICUBIC, box)


def zip_of(files: Sequence[tuple[str, bytes]]) -> bytes:
    """A zip file of (name, content). Raises ValueError for a name that occurs twice."""
    names = [name for name, _ in files]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(
            f"{short_repr(twice[0])}: occurs {names.count(twice[0])} times, give every file a name of its own"
        )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:  # not compressed: PNG files already are
        for name, content in files:
            archive.writestr(name, content)
    return buffer.getvalue()
