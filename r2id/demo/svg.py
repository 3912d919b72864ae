"""Outlines of latents as SVG: where the decoded image crosses one half."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from r2id.latent import Latent
from r2id.limits import check_int
from r2id.pipeline import Pipeline

LEVEL = 0.5
LATTICE = 1024  # decoded points along a frame's short side; marching squares between them is off by 0.3 / 4,096
UNITS = 2**14  # of the SVG's coordinates along a frame's long side; rounding to them is off by 0.2 / 4,096
TOLERANCE = 1 / 2**14  # of the long side, by which straightening moves an outline at most
MAX_ROWS = 16  # of a latent


def outline(pipe: Pipeline, row: Latent, *, lattice: int = LATTICE) -> list[np.ndarray]:
    """The closed outlines of one latent, each (N, 2): x from 0 to the frame's width, y from 0 to its height, in units
    of its long side; the last point is the first.

    They enclose what is brighter than one half, darker on a bright background; a shape that crosses the frame ends
    there. Of several channels, their mean counts. Raises ValueError, one line, if contourpy is not installed.
    """
    try:
        from contourpy import contour_generator
    except ImportError:
        raise ValueError("SVG needs contourpy, which is not installed here: pip install contourpy") from None
    check_int(lattice, "lattice", 2, 4096)
    frame = min(1, 1 / row.aspect), min(1, row.aspect)  # height and width in units of the long side
    size = tuple(round(lattice * side / min(frame)) for side in frame)
    values_HW = pipe.resample(row, size=size, fit="stretch")[0].double().mean(0).numpy()
    outside = float(np.mean(pipe.config.background) > LEVEL)
    # Two rings lie on the frame's edge: the values there, and the outside.
    values_HW = np.pad(np.pad(values_HW, 1, "edge"), 1, constant_values=outside)
    y_H, x_W = (
        side * np.concatenate(([0, 0], (np.arange(n) + 0.5) / n, [1, 1])) for side, n in zip(frame, size, strict=True)
    )
    lines = contour_generator(x_W, y_H, values_HW, line_type="Separate").lines(LEVEL)
    return [line for line in lines if len(line) > 3]


def straightened(ring: np.ndarray, tolerance: float = TOLERANCE) -> np.ndarray:
    """A closed outline (N, 2) with fewer of its points, none of the others farther from it than tolerance (Douglas and
    Peucker 1973)."""
    farthest = int(((ring - ring[0]) ** 2).sum(1).argmax())
    keep = np.zeros(len(ring), bool)
    keep[[0, farthest, -1]] = True
    parts = [(0, farthest), (farthest, len(ring) - 1)]
    while parts:
        first, last = parts.pop()
        if last - first < 2:
            continue
        start, along = ring[first], ring[last] - ring[first]
        offset = ring[first + 1 : last] - start
        share = (offset @ along / max(along @ along, 1e-30)).clip(0, 1)
        distance = ((offset - share[:, None] * along) ** 2).sum(1)
        middle = int(distance.argmax())
        if distance[middle] > tolerance**2:
            middle += first + 1
            keep[middle] = True
            parts += [(first, middle), (middle, last)]
    return ring[keep]


def path_data(rings: Sequence[np.ndarray], shift: int = 0) -> str:
    """Closed outlines as the attribute `d` of an SVG path, moved to the right by `shift` units."""
    pieces = []
    for ring in rings:
        points = np.rint(straightened(ring) * UNITS).astype(int) + (shift, 0)
        steps = np.diff(points[:-1], axis=0)
        moves = [f"{x} {y}" for x, y in steps[steps.any(1)]]
        if len(moves) > 1:  # of fewer, nothing is enclosed
            pieces.append("M{} {}l{}z".format(*points[0], " ".join(moves)))
    return "".join(pieces)


def svg(pipe: Pipeline, latent: Latent, *, title: str = "") -> str:
    """All rows of a latent side by side as an SVG file: one path a row, filled even-odd, in frames `UNITS` long.

    Every point lies within 1/4,096 of the frame's long side of the decoded image's crossing of one half. Raises
    ValueError, one line, for more than 16 rows and where contourpy is not installed.
    """
    if not 1 <= len(latent) <= MAX_ROWS:
        raise ValueError(f"latent of {len(latent)} rows: an SVG holds 1 to {MAX_ROWS}; send latent[i:j]")
    height, width = (round(UNITS * min(1, side)) for side in (1 / latent.aspect, latent.aspect))
    names = latent.labels or [None] * len(latent)
    paths = []
    for i, name in enumerate(names):
        data = path_data(outline(pipe, latent[i]), i * width)
        label = f' aria-label="{escape(name)}"' if isinstance(name, str) else ""
        paths.append(f'<path fill-rule="evenodd"{label} d="{data}"/>\n')
    shown = f'width="{len(latent) * width / 64:g}" height="{height / 64:g}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {len(latent) * width} {height}" {shown}>\n'
    return f"{head}<title>{escape(title)}</title>\n{''.join(paths)}</svg>\n"
