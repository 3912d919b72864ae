"""Animations of one latent: sweeps of size, aspect ratio or zoom; files of animations as GIF, WebP and MP4."""

from __future__ import annotations

import io
import math
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image, ImageDraw

from r2id.demo.illustrations import INK, decode_view, font, resize_box
from r2id.demo.request import ViewRequest
from r2id.latent import Latent
from r2id.limits import check_choice, check_int
from r2id.pipeline import Pipeline

SWEEPS = ("size", "ratio", "zoom")
KINDS = ("gif", "webp", "mp4")
SMALLEST, LARGEST = 8, 512  # long sides in a sweep of sizes, pixels
NARROWEST = 9 / 16  # width / height at the start of a sweep of ratios; it ends at the inverse
MAGNIFICATION = 8.0  # at the end of a sweep of zooms, if the view is not zoomed
MAX_FRAMES = 240
SURROUND = "#464c58"  # lighter than black, so that the edges of dark images show
SHORTEST = 0.02  # seconds per frame: browsers slow down faster animations


def sweep(
    pipe: Pipeline, latent: Latent, kind: str, view: ViewRequest, *, frames: int = 48, side: int = 320
) -> Iterator[Image.Image]:
    """Frames of side × (side + 40) pixels, each decoded from the first row, with a caption. They go there and back.

    kind: "size", 8 to 512 pixels in this view, shown equally large; "ratio", 9:16 to 16:9 with the view's fit and a
    constant short side; "zoom", 1 to the view's magnification (8 if it has none) about its centre. frames: even,
    4…240. Raises ValueError immediately for anything out of range.
    """
    if kind not in SWEEPS:
        raise ValueError(f"sweep {kind!r}: must be one of {', '.join(SWEEPS)}")
    check_int(side, "side", 64, 1024)
    if check_int(frames, "frames", 4, MAX_FRAMES) % 2:
        raise ValueError(f"frames {frames}: must be even, as they go there and back")
    # A cosine, so that the motion slows down where it turns.
    shots = [_shot(kind, view, side, (1 - math.cos(2 * math.pi * i / frames)) / 2) for i in range(frames // 2 + 1)]

    def there_and_back() -> Iterator[Image.Image]:
        row, there = latent[0], []
        for look, size, caption in shots:
            there.append(_framed(decode_view(pipe, row, look), size, caption, side))
            yield there[-1]
        yield from there[-2:0:-1]

    return there_and_back()


def _shot(kind: str, view: ViewRequest, side: int, at: float) -> tuple[ViewRequest, tuple[int, int], str]:
    """The sweep at 0…1: the view to decode, the (width, height) to show it at, and the caption."""
    if kind == "size":
        look = replace(view, side=round(SMALLEST * (LARGEST / SMALLEST) ** at))
        return look, replace(view, side=side).size[::-1], "{1} x {0} pixels".format(*look.size)
    if kind == "ratio":
        ratio, short = NARROWEST ** (1 - 2 * at), side * NARROWEST
        # Even sizes keep the margins of "contain" on whole pixels, so that the centre does not jitter.
        width, height = (2 * round(short * max(1, v) / 2) for v in (ratio, 1 / ratio))
        look = replace(view, side=max(width, height), ratio=f"{width}:{height}", zoom=1.0)
        return look, (width, height), f"{view.fit}, width : height {width / height:.2f}"
    look = replace(view, side=side, zoom=(view.zoom if view.zoom > 1 else MAGNIFICATION) ** at)
    return look, look.size[::-1], f"zoom {look.zoom:.1f}x"


def _framed(image: Image.Image, size: tuple[int, int], caption: str, side: int) -> Image.Image:
    canvas = Image.new(image.mode, (side, side + 40), SURROUND)
    canvas.paste(resize_box(image, size), ((side - size[0]) // 2, (side - size[1]) // 2))
    draw = ImageDraw.Draw(canvas)
    draw.text((side / 2, side + 20), caption, INK, font(20), "mm")
    return canvas


def encode(frames: Sequence[Image.Image], seconds: float, kind: str) -> bytes:
    """An animation file of a kind in KINDS that loops forever, `seconds` per round; MP4 loops where its player does.

    Raises ValueError for another kind, for what `gif` refuses, and for "mp4" where ffmpeg is not installed.
    """
    check_choice(kind, "kind", KINDS)
    return {"gif": gif, "webp": webp, "mp4": mp4}[kind](frames, seconds)


def webp(frames: Sequence[Image.Image], seconds: float) -> bytes:
    """An animated WebP, see `encode`: colours are nearly exact."""
    frames = [frame.convert("RGB") for frame in _checked(frames, seconds)]
    buffer, each = io.BytesIO(), round(1000 * seconds / len(frames))
    options = dict(save_all=True, append_images=frames[1:], duration=each, loop=0, quality=90, method=2)
    frames[0].save(buffer, "WEBP", **options)
    return buffer.getvalue()


def mp4(frames: Sequence[Image.Image], seconds: float) -> bytes:
    """An MP4 with H.264, see `encode`; odd sizes grow by a pixel."""
    frames = _checked(frames, seconds)
    width, height = frames[0].size
    given = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{len(frames) / seconds:.6f}"]
    coded = ["-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2", "-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "18"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "animation.mp4"
        command = [_ffmpeg(), "-v", "error", *given, "-i", "-", *coded, "-movflags", "+faststart", str(file)]
        pixels = b"".join(frame.convert("RGB").tobytes() for frame in frames)
        done = subprocess.run(command, input=pixels, capture_output=True, timeout=120)
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
            raise ValueError(f"MP4 could not be written ({said[-1][:100]}): choose GIF or WebP")
        return file.read_bytes()


def _ffmpeg() -> str:
    """The program. Raises ValueError, one line, if there is none."""
    if found := shutil.which("ffmpeg"):
        return found
    try:
        from imageio_ffmpeg import get_ffmpeg_exe

        return get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        remedy = "install ffmpeg or pip install imageio-ffmpeg, or choose GIF or WebP"
        raise ValueError(f"MP4 needs ffmpeg, which is not installed here: {remedy}") from None


def _checked(frames: Sequence[Image.Image], seconds: float) -> list[Image.Image]:
    frames = list(frames)
    if len({frame.size for frame in frames}) != 1:
        raise ValueError(f"{len(frames)} frames: must be at least 1, all of one size")
    if not seconds >= SHORTEST * len(frames):  # NaN is not
        raise ValueError(f"{seconds:g} seconds for {len(frames)} frames: must be {SHORTEST * len(frames):g} or more")
    return frames


def gif(frames: Sequence[Image.Image], seconds: float) -> bytes:
    """A GIF that loops forever, `seconds` per round. Grey images are exact, colours share one palette of 256.

    Raises ValueError for no frames, frames of different sizes, and less than 0.02 seconds per frame.
    """
    frames = _checked(frames, seconds)
    if any(frame.mode != "L" for frame in frames):
        frames = [frame.convert("RGB") for frame in frames]
        # One palette from some pixels of all frames: separate ones would make still parts flicker.
        few = Image.new("RGB", (12 * len(frames), 32))
        for index, frame in enumerate(frames):
            few.paste(frame.resize((12, 32), Image.Resampling.NEAREST), (12 * index, 0))
        palette = few.quantize(256, Image.Quantize.MAXCOVERAGE)
        frames = [frame.quantize(palette=palette) for frame in frames]
    ticks = [
        round(100 * seconds * i / len(frames)) for i in range(len(frames) + 1)
    ]  # the format counts hundredths of a second
    durations = [10 * (after - before) for before, after in zip(ticks, ticks[1:], strict=False)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0, optimize=False)
    return buffer.getvalue()
