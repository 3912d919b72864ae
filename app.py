"""A page that diffuses a latent once and resamples it to any size and shape: python app.py --help"""

from __future__ import annotations

import argparse
import contextlib
import functools
import html
import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

with contextlib.suppress(ImportError):
    import spaces  # ZeroGPU: has to come before torch
import gradio as gr
import torch
from gradio.utils import get_upload_folder

from r2id import Latent, Pipeline
from r2id.image import save_png, to_pil

MAX_SIDE, MAX_CELLS, MAX_STEPS = 2048, 32, 100  # what a visitor may ask for; the package itself goes further
OPENING_SIDE, PREVIEW_SIDE = 256, 96  # pixels
RATIOS = ["1:1", "2:3", "3:2", "3:4", "4:3", "4:5", "5:4", "9:16", "16:9"]
FITS = ["contain", "cover", "stretch"]
RESAMPLER_DEVICE = "cpu" if os.environ.get("SPACES_ZERO_GPU") else None  # ZeroGPU lends its GPU for diffusing only
WEIGHTS, DEVICE = Path(__file__).parent / "weights", "auto"  # main() may set others
IDEA = """<h1>r2id</h1>Diffuse a picture once, in a small latent of any size.
Then resample that latent to any resolution and aspect ratio, without diffusing again."""
TRAIN = """<b>There are no weights yet.</b> Drop a folder with <code>config.json</code> and its <code>.safetensors</code>
files into <code>%s</code> and load this page again, or train:<pre>
python train/train_resampler.py --config train/configs/mnist_resampler.toml
python train/train_denoiser.py --config train/configs/mnist_r2id.toml
python train/export.py DIR weights/mnist</pre>"""
CSS = """.gradio-container {max-width: 1560px !important; margin: 0 auto !important} #columns {align-items: flex-start}
h1 {margin: 0 !important} h2 {margin: .2rem 0 -.3rem; font-size: 1.15rem} small {opacity: .65; font-weight: 400}
.head input[type=number] {width: 4.2rem} .notice p {border-left: 4px solid var(--color-accent); padding-left: .9rem}
.typed {padding-bottom: 0 !important} .typed .wrap {flex: 0 0 6.2rem} .typed .info-text {order: 3; width: 100%}
.typed > .container {display: flex; flex-wrap: wrap; align-items: center; justify-content: space-between}
.drawn .head {display: none !important} .drawn :is(.min_value, .max_value) {font-size: 0}
.drawn span::after {font-size: .75rem; content: "1:4"} .drawn .max_value::after {content: "4:1"}
#picture {border: 0; background: none; box-shadow: none} #show .wrap.default {display: none}
#picture .image-container {container-type: size; width: 100%; height: auto; aspect-ratio: 1; max-height: 72vh}
#picture.fullscreen .image-container {height: 100%; max-height: none} #picture .image-frame {width: auto; height: auto}
#picture button:has(.image-frame) {display: grid; place-items: center; width: 100%; height: 100%}
#picture img {width: min(100cqw, 100cqh * var(--ratio, 1)); height: auto; object-fit: fill; border-radius: 3px}
dl {display: grid; grid-template-columns: max-content 1fr; gap: .1rem .9rem} dt {opacity: .65} dd {margin: 0}
@media (max-width: 700px) { #picture .image-container {max-height: 42vh} dl {font-size: .85rem} #resample {order: -1}
  #show {order: -2; position: sticky; top: 0; z-index: 5; background: var(--body-background-fill)} }"""
HEAD = """<script>addEventListener("load", ({target: img}) => { if (!img.closest?.("#picture")) return;
  img.style.setProperty("--ratio", img.naturalWidth / img.naturalHeight);  // and hard pixels when enlarged:
  img.style.imageRendering = img.clientWidth * devicePixelRatio < img.naturalWidth ? "auto" : "pixelated"; }, true);
</script>"""
TO_TEXT = f"""v => {{ const r = (2 ** Math.abs(v)).toFixed(2), log = t => Math.log2(t.split(":")[0] / t.split(":")[1]);
  return {RATIOS}.find(t => Math.abs(log(t) - v) < 0.01) ?? (v < 0 ? "1:" + r : r + ":1"); }}"""
TO_SLIDER = """t => { const [w, h] = String(t).split(":"); return Math.log2(w / (h ?? 1)) || 0; }"""
# The bold weight by name: the semi-bold file that Gradio comes with lacks most letters.
FONT = [gr.themes.LocalFont("Source Sans Pro", weights=(400, 700)), "system-ui", "sans-serif"]


class Slider(gr.Slider):
    def preprocess(self, payload):  # a number being typed is no mistake: the 5 of 512 is brought into range
        return self.value if payload is None else min(max(payload, self.minimum), self.maximum)


@dataclass
class Drawing:
    """What one visitor has on the page. Changed in place, so that whoever works on an older request notices."""

    model: str = ""
    latent: Latent | None = None
    made: dict = field(default_factory=dict)  # label, cells, steps, guidance, seed
    step: int = 0  # of made["steps"]
    resampled: int = 0  # times
    asked: tuple = ()  # the newest request for a picture


@functools.lru_cache(maxsize=16)
def load(folder: Path, files: tuple) -> Pipeline | str:
    """The pipeline in a folder, or one line that says why there is none. Changed `files` are loaded again."""
    try:
        return Pipeline.from_pretrained(folder, device=DEVICE, resampler_device=RESAMPLER_DEVICE)
    except Exception as error:  # whatever is wrong with this folder, the others still work
        return (str(error) or type(error).__name__).splitlines()[0]


def shelf() -> dict[str, Pipeline | str]:
    """Name → pipeline or reason, for the folders in the weights folder, or for that one if it is a model itself."""
    folders = [WEIGHTS] if (WEIGHTS / "config.json").exists() else sorted(WEIGHTS.glob("[!.]*/"))
    return {f.name: load(f, tuple(sorted((p.name, p.lstat().st_ctime_ns) for p in f.glob("*")))) for f in folders}


def pipeline(model: str) -> Pipeline:
    if isinstance(found := shelf().get(model, "there is no such weights folder"), str):
        raise ValueError(f"model {model!r}: {found}")
    return found


@contextlib.contextmanager
def told_in_one_line() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise gr.Error(html.escape(str(error), quote=False), print_exception=False) from None


def sides(long: int, ratio: str) -> tuple[int, int]:
    """A long side and an aspect ratio, '16:9' or '1.78' → (height, width). Raises ValueError outside 1:4…4:1."""
    width, _, height = str(ratio).partition(":")
    with contextlib.suppress(ValueError, ZeroDivisionError):
        if 1 / 4 <= (number := float(width) / float(height or 1)) <= 4:
            return tuple(max(1, round(long * part)) for part in (min(1, 1 / number), min(1, number)))
    raise ValueError(f"aspect ratio {ratio}: must be width:height from 1:4 to 4:1, like 16:9 or 1.78")


def within(name: str, value: int | None, most: int) -> int | None:
    """What is wrong in other ways, the package says."""
    if isinstance(value, (int, float)) and value > most:
        raise ValueError(f"{name} {value}: at most {most} here")
    return value


def denoise(model: str, label: str, cells: tuple[int, int], steps: int, guidance: float, seed: int) -> Iterator:
    """The steps of one diffusion. Under ZeroGPU this runs in another process; its latents are on the CPU."""
    options = dict(latent_size=cells, steps=within("steps", steps, MAX_STEPS), guidance=guidance, seed=seed)
    yield from pipeline(model).diffuse_steps([label or None], **options)


if "spaces" in globals():
    denoise = spaces.GPU(duration=60)(denoise)


def save(suffix: str, write) -> str:
    """A file that `write` fills, where Gradio serves it and clears it away."""
    os.makedirs(get_upload_folder(), exist_ok=True)
    with tempfile.NamedTemporaryFile(prefix="r2id-", suffix=suffix, dir=get_upload_folder(), delete=False) as file:
        write(file.name)
    return file.name


def show_diffusion(drawing, model, label, cells, shape, steps, guidance, seed, fresh, side, ratio, fit):
    """Every step as it comes: drawing, preview, facts, seed, Stop button."""
    with told_in_one_line():
        seed = secrets.randbelow(2**32) if fresh or seed is None else seed
        made = dict(label=label, cells=sides(cells, shape), steps=steps, guidance=guidance, seed=seed)
        height, width = sides(min(side, PREVIEW_SIDE), ratio)
        for step in denoise(model, **made):
            vars(drawing).update(model=model, latent=step.latent, made=made, step=step.index, resampled=0, asked=())
            preview = pipeline(model).resample(step.latent, size=(height, width), fit=fit)[0]
            text = facts(drawing, f"preview, {width} × {height} pixels")
            yield drawing, to_pil(preview), text, seed, gr.Button(interactive=True)


def show_resampled(drawing, side, ratio, fit):
    """The latent at hand at any size: picture, file to download, facts. Of several requests the newest wins."""
    request = (drawing.step, side, ratio, fit)
    if drawing.latent is None or drawing.asked == request:
        yield [gr.skip()] * 3  # a generator that yields nothing would empty the picture
        return
    with told_in_one_line():
        (height, width), pipe, start = sides(side, ratio), pipeline(drawing.model), time.perf_counter()
        image_CHW, told, drawing.asked = torch.empty(pipe.config.channels, height, width), start, request
        for (left, top, right, bottom), tile in pipe.resample_tiles(drawing.latent, size=(height, width), fit=fit):
            image_CHW[:, top:bottom, left:right] = tile[0]
            if drawing.asked is not request:
                yield [gr.skip()] * 3
                return
            if time.perf_counter() - told > 0.5:
                told, text = time.perf_counter(), f"{width} × {height} pixels, {bottom / height:.0%} resampled"
                yield gr.skip(), gr.skip(), facts(drawing, text)
        text = f"<b>{width} × {height} pixels</b>, {fit}, resampled in <b>{1000 * (time.perf_counter() - start):.0f} ms</b>"
        drawing.resampled += 1
        about = {"model": drawing.model, **drawing.made, "size": (height, width), "fit": fit}
        file = save(f"-{width}x{height}.png", lambda path: save_png(image_CHW, path, about))
        picture = gr.Image(file, alt_text=f"label {drawing.made['label'] or 'any'}, {width} by {height} pixels")
        yield picture, gr.DownloadButton(value=file, interactive=True), facts(drawing, text)


def facts(drawing: Drawing, picture: str) -> str:
    """Which latent is on the page and what was done with it, as HTML."""
    made, model, (height, width) = drawing.made, html.escape(drawing.model), drawing.made["cells"]
    label, done = html.escape(made["label"] or "any"), "" if drawing.step == made["steps"] else f"{drawing.step} of "
    return f"""<dl><dt>Picture<dd>{picture}
        <dt>Latent<dd>label <b>{label}</b>, {width} × {height} cells, seed {made["seed"]}
        <dt>Work<dd>diffused <b>1 ×</b> ({done}{made["steps"]} steps, guidance {made["guidance"]:g}), resampled
        <b>{drawing.resampled} ×</b><dt>Model<dd>{model} on {pipeline(drawing.model).device}</dl>"""


def notice() -> str:
    """What is wrong in the weights folder and what to do, as HTML."""
    faults = {name: reason for name, reason in shelf().items() if isinstance(reason, str)}
    lines = [f"<b>{html.escape(name)}</b> cannot be used: {html.escape(reason)}" for name, reason in faults.items()]
    return "".join(f"<p>{line}" for line in lines + [TRAIN % html.escape(str(WEIGHTS))] * (len(faults) == len(shelf())))


@functools.lru_cache(maxsize=16)
def opening_latent(model: str, pipe: Pipeline) -> tuple[Latent, dict]:
    """What a visitor finds, and how it was made: diffused once for all visitors."""
    start, label = pipe.config.defaults, (*pipe.labels[3:4], *pipe.labels, "")[0]
    made = dict(label=label, cells=start.latent_size, steps=start.steps, guidance=start.guidance, seed=0)
    *_, last = denoise(model, **made)
    return last.latent, made


def opening(drawing, model):
    """A latent to begin with, and controls as the model says. Finds folders that were dropped in meanwhile."""
    models = [name for name, pipe in shelf().items() if isinstance(pipe, Pipeline)]
    if not models:
        return [drawing, notice(), *[gr.skip()] * 8]
    model = model if model in models else models[0]
    with told_in_one_line():
        latent, made = opening_latent(model, pipe := pipeline(model))
    vars(drawing).update(model=model, latent=latent, made=made, step=made["steps"], resampled=0, asked=())
    low, high = pipe.config.trained_cells
    cells = gr.Slider(low, min(max(high, low + 1), MAX_CELLS), value=max(made["cells"]))
    label = gr.Dropdown([*pipe.labels, ("any", "")], value=made["label"])
    shape = gr.Dropdown(
        value="1:1", info="width : height, trained from {:.2f} to {:.2f}".format(*pipe.config.trained_aspects)
    )
    fit = pipe.config.fit if pipe.config.fit in FITS else "cover"
    return (
        drawing,
        notice(),
        gr.Dropdown(models, value=model),
        label,
        cells,
        shape,
        made["steps"],
        made["guidance"],
        0,
        fit,
    )


def diffuse(
    label: str = "",
    latent_height: int = 8,
    latent_width: int = 8,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int | None = None,
    model: str = "",
) -> tuple[gr.FileData, gr.FileData]:
    """Diffuse one latent. Returns a picture of it (PNG) and the latent itself (safetensors), which /resample takes.

    label: a label of the model, empty for any. Latent sides in cells. None is the model's default, and a new seed.
    """
