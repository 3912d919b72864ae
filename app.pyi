"""A page that diffuses a latent once and resamples it to any size and shape: python app.py --help"""

from __future__ import annotations

import argparse
import contextlib
import html
import os
import secrets
import time
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

with contextlib.suppress(ImportError):
    import spaces  # ZeroGPU: has to come before torch
import gradio as gr
import torch
from gradio.utils import get_upload_folder
from gradio_client.utils import is_file_obj_with_meta

from r2id import Latent, Pipeline
from r2id.image import save_png, to_pil

SIDE, PREVIEW_SIDE, MAX_SIDE, MAX_STEPS = 256, 96, 2048, 100  # pixels, denoiser runs
RATIOS = ["1:1", "2:3", "3:2", "3:4", "4:3", "4:5", "5:4", "9:16", "16:9"]
FITS = ["contain", "cover", "stretch"]
MODELS: dict[str, Pipeline] = {}  # by name of the weights folder
FAULTS: dict[str, str] = {}  # why the other folders cannot be used
OPENING: dict[str, Latent] = {}  # what a visitor finds on the page, diffused once for all of them
ZERO_GPU = "SPACES_ZERO_GPU" in os.environ  # lends its GPU for diffusing only, and to another process
on_gpu = spaces.GPU(duration=60) if ZERO_GPU else lambda function: function
TITLE = "<h1>r2id</h1>Diffuse a picture once, in a small latent; then resample that to any resolution and aspect ratio."
NO_WEIGHTS = """<b>There are no weights yet.</b> Drop a folder of them into <code>weights/</code>, or train some:<pre>
python train/train_resampler.py --config train/configs/mnist_resampler.toml
python train/train_denoiser.py --config train/configs/mnist_r2id.toml
python train/export.py DIR weights/mnist</pre>Then start this page again."""
CSS = """.gradio-container {max-width: 1560px !important; margin: 0 auto !important} #columns {align-items: flex-start}
h1 {margin: 0 !important} h2 {margin: .2rem 0 -.3rem; font-size: 1.15rem} small, dt {opacity: .65; font-weight: 400}
dl {display: grid; grid-template-columns: max-content 1fr; gap: .1rem .9rem} dd {margin: 0} .typed .info {order: 1}
.notice {border-left: 4px solid var(--color-accent); padding-left: .9rem} .head input[type=number] {width: 4.2rem}
.typed {padding-bottom: 0 !important} .typed .wrap {flex: 0 0 6.2rem} .drawn :is(.head, span) {display: none !important}
.typed > .container {display: flex; flex-wrap: wrap; justify-content: space-between} .hard {image-rendering: pixelated}
#picture {border: 0; background: none} #picture .image-container {height: auto; aspect-ratio: 1; max-height: 72vh}
#picture :is(.image-container, button:has(img), .image-frame, img) {width: 100%; object-fit: contain}
#picture :is(button:has(img), .image-frame, img) {height: 100%}
@media (max-width: 700px) { #picture .image-container {max-height: 42vh} dl {font-size: .85rem} #resample {order: -1}
  #show {order: -2; position: sticky; top: 0; z-index: 5; background: var(--body-background-fill)} }"""
TO_TEXT = f"v => {RATIOS}.find(t => Math.abs(v - Math.log2(eval(t.replace(':', '/')))) < 0.01) ?? (2 ** v).toFixed(2)"
TO_SLIDER = """t => { const [w, h] = String(t).split(":"); return Math.log2(w / (h ?? 1)) || 0; }"""

from gradio.events import Dependency

class Slider(gr.Slider):
    def preprocess(self, payload):  # a number being typed is no mistake: the 5 of 512 is brought into range
        return self.value if payload is None else min(max(payload, self.minimum), self.maximum)
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block
    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component


@contextlib.contextmanager
def using(model: str | None):
    """A pipeline; what it or anything else objects to is told in one line."""
    try:
        if model not in MODELS:
            raise ValueError(f"model {model!r}: must be one of {', '.join(MODELS)}")
        yield MODELS[model]
    except (ValueError, ZeroDivisionError) as error:
        raise gr.Error(html.escape(str(error), quote=False), print_exception=False) from None


def sides(long: int, ratio: str) -> tuple[int, int]:
    """A long side and an aspect ratio, '16:9' or '1.78' → (height, width). Raises ValueError outside 1:4…4:1."""
    if not 1 / 4 <= (number := Fraction(str(ratio).replace(":", "/"))) <= 4:
        raise ValueError(f"aspect ratio {ratio}: must be 1:4 … 4:1")
    return max(1, round(long * min(1, 1 / number))), max(1, round(long * min(1, number)))


@on_gpu
def denoise(model: str, label: str, cells: tuple[int, int], **how):
    """The steps of one diffusion; how: steps, guidance, seed."""
    yield from MODELS[model].diffuse_steps([label or None], latent_size=cells, **how)


def show_diffusion(drawing, model, label, cells, shape, steps, guidance, seed, fresh, side, ratio, fit):
    """Every step as it comes: drawing, preview, facts, seed, Stop button."""
    with using(model) as pipe:
        made = dict(label=label, cells=sides(cells, shape), steps=steps, guidance=guidance)
        height, width = sides(min(side, PREVIEW_SIDE), ratio)
        for step in denoise(model, **made, seed=None if fresh else seed):
            made["seed"] = step.latent.seeds[0]
            vars(drawing).update(model=model, latent=step.latent, made=made, step=step.index, resampled=0, asked=None)
            preview = to_pil(pipe.resample(step.latent, size=(height, width), fit=fit)[0])
            text = facts(drawing, f"preview, {width} × {height} pixels")
            yield drawing, gr.Image(preview, elem_classes="hard"), text, made["seed"], gr.Button(interactive=True)


def show_resampled(drawing, side, ratio, fit):
    """The latent at hand at any size: picture, file to download, facts. Of several requests the newest wins."""
    request, start, told = (drawing.step, side, ratio, fit), time.perf_counter(), time.perf_counter()
    if drawing.latent is None or drawing.asked == request:
        return (yield [gr.skip()] * 3)  # a generator that yields nothing would empty the picture
    with using(drawing.model) as pipe:
        (height, width), drawing.asked = sides(side, ratio), request
        image_CHW = torch.empty(pipe.config.channels, height, width)
        for (left, top, right, bottom), tile in pipe.resample_tiles(drawing.latent, size=(height, width), fit=fit):
            image_CHW[:, top:bottom, left:right] = tile[0]
            if drawing.asked is not request:
                return (yield [gr.skip()] * 3)
            if time.perf_counter() - told > 0.5:
                text, told = f"{width} × {height} pixels: {bottom / height:.0%} resampled", time.perf_counter()
                yield gr.skip(), gr.skip(), facts(drawing, text)
        took, drawing.resampled = 1000 * (time.perf_counter() - start), drawing.resampled + 1
        file, alt = png(image_CHW, model=drawing.model, **drawing.made, fit=fit), f"{width} by {height} pixels"
        picture = gr.Image(file, alt_text=alt, elem_classes="hard" if max(height, width) < 600 else "")
        text = facts(drawing, f"<b>{width} × {height} pixels</b>, {fit}, resampled in <b>{took:.0f} ms</b>")
        yield picture, gr.DownloadButton(value=file, interactive=True), text


def facts(drawing: SimpleNamespace, picture: str) -> str:
    """Which latent is on the page and what was done with it, as HTML."""
    model, made, (height, width) = drawing.model, drawing.made, drawing.made["cells"]
    steps = f"{drawing.step} of " * (drawing.step < made["steps"]) + f"{made['steps']} steps"
    return f"""<dl><dt>Picture<dd>{picture}
        <dt>Latent<dd>label <b>{html.escape(made["label"] or "any")}</b>, {width} × {height} cells, seed {made["seed"]}
        <dt>Work<dd>diffused <b>1 ×</b> ({steps}, guidance {made["guidance"]:g}), resampled <b>{drawing.resampled} ×</b>
        <dt>Model<dd>{html.escape(model)} on {MODELS[model].device}</dl>"""


def png(image_CHW: torch.Tensor, **about) -> str:
    """A file that carries its parameters, where Gradio serves it and clears it away."""
    file = f"{get_upload_folder()}/{secrets.token_hex(16)}.png"
    save_png(image_CHW, file, {**about, "size": tuple(image_CHW.shape[1:])})
    return file


def opening(drawing, model):
    """A latent to begin with, and controls as its model says."""
    if not MODELS:
        return [gr.skip()] * 9
    with using(model := model or next(iter(MODELS))) as pipe:
        config, start, label = pipe.config, pipe.config.defaults, (*pipe.labels[3:4], *pipe.labels, "")[0]
        made = dict(label=label, cells=start.latent_size, steps=start.steps, guidance=start.guidance, seed=0)
        OPENING[model] = OPENING.get(model) or [*denoise(model, **made)][-1].latent
    vars(drawing).update(model=model, latent=OPENING[model], made=made, step=start.steps, resampled=0, asked=None)
    label = gr.Dropdown([*pipe.labels, ("any", "")], value=label)
    cells = gr.Slider(*config.trained_cells, value=max(start.latent_size))
    shape = gr.Dropdown(value="1:1", info="trained from {:.2f} to {:.2f}".format(*config.trained_aspects))
    model, fit = gr.Dropdown([*MODELS], value=model), config.fit if config.fit in FITS else "cover"
    return drawing, model, label, cells, shape, start.steps, start.guidance, 0, fit


def diffuse(
    label: str, latent_height: int, latent_width: int, steps: int, guidance: float, seed: int, model: str
) -> tuple[gr.FileData, gr.FileData]:
    """Diffuse a latent of height x width cells: its picture (PNG), and the latent (safetensors) for /resample."""
    with using(model):
        cells, how = (latent_height, latent_width), dict(steps=steps, guidance=guidance, seed=seed)
        *_, last = denoise(model, label, cells, **how)
        last.latent.save(file := f"{get_upload_folder()}/{secrets.token_hex(16)}.safetensors")
        picture = resample(
            latent := gr.FileData(path=file), *sides(SIDE, f"{latent_width}:{latent_height}"), None, model
        )
        return picture, latent


def resample(latent: gr.FileData, height: int, width: int, fit: str, model: str) -> gr.FileData:
    """The picture (PNG), height x width pixels, of a latent that /diffuse returned; fit: contain, cover or stretch."""
    with using(model) as pipe:
        if not is_file_obj_with_meta(latent):  # those that are, Gradio has checked
            raise ValueError("latent: must be a file that /diffuse returned")
        drawn = Latent.load(latent["path"])
        image_CHW = pipe.resample(drawn, size=(height, width), fit=fit)[0]
        return gr.FileData(path=png(image_CHW, model=model, labels=drawn.labels, seeds=drawn.seeds, fit=fit))


def ratio_control(title: str) -> gr.Dropdown:
    """An aspect ratio: chosen, typed, or drawn on a logarithmic slider. The text is what counts."""
    text = gr.Dropdown(RATIOS, value="1:1", allow_custom_value=True, label=title, elem_classes="typed")
    slider = gr.Slider(-2, 2, value=0, step=0.02, label=title, show_label=False, elem_classes="drawn")
    slider.input(None, slider, text, js=TO_TEXT)
    text.change(None, text, slider, js=TO_SLIDER)
    return text


def build() -> gr.Blocks:
    with gr.Blocks(title="r2id", analytics_enabled=False, delete_cache=(3600, 86400), fill_width=True) as page:
        lines = [html.escape(f"{name} cannot be used: {reason}") for name, reason in FAULTS.items()]
        gr.HTML(TITLE + "".join(f"<p class=notice>{line}" for line in (lines if MODELS else [*lines, NO_WEIGHTS])))
        # What a visitor has; later also model, made (how), step, resampled (times). Changed in place.
        drawing = gr.State(SimpleNamespace(latent=None, asked=None))
        with gr.Row(elem_id="columns"):
            with gr.Column(scale=3, min_width=260):
                gr.HTML("<h2>Draw <small>makes a latent</small></h2>")
                with gr.Row():
                    label, model = (gr.Dropdown(label=name, min_width=80) for name in ("Label", "Model"))
                cells = Slider(1, 64, value=8, step=1, precision=0, label="Latent size, long side (cells)")
                shape = ratio_control("Latent aspect ratio (width : height)")
                steps = Slider(1, MAX_STEPS, value=20, step=1, precision=0, label="Steps (denoiser runs)")
                guidance = Slider(0, 8, value=1.5, step=0.1, label="Guidance (×, 1 is none)")
                with gr.Row():
                    seed = gr.Number(0, precision=0, minimum=0, maximum=2**32 - 1, label="Seed", min_width=100)
                    fresh = gr.Checkbox(True, label="new every time", min_width=100)
                with gr.Row():
                    draw = gr.Button("Diffuse", variant="primary", min_width=80)
                    stop = gr.Button("Stop", min_width=80, interactive=False)
            with gr.Column(scale=6, min_width=320, elem_id="show"):
                picture = gr.Image(format="png", show_label=False, buttons=["fullscreen"], elem_id="picture")
                text = gr.HTML()
            with gr.Column(scale=3, min_width=260, elem_id="resample"):
                gr.HTML("<h2>Resample <small>the same latent</small></h2>")
                side = Slider(8, MAX_SIDE, value=SIDE, step=8, precision=0, label="Resolution, long side (pixels)")
                ratio = ratio_control("Picture aspect ratio (width : height)")
                fit = gr.Radio(FITS, value="contain", label="Fit")
                file = gr.DownloadButton("Download PNG", interactive=False)
        quiet, controls = (
            dict(show_progress="hidden", api_visibility="private"),
            [model, label, cells, shape, steps, guidance, seed],
        )
        again = dict(fn=show_resampled, inputs=[drawing, side, ratio, fit], outputs=[picture, file, text], **quiet)
        idle = dict(fn=lambda: gr.Button(interactive=False), outputs=stop, **quiet)
        inputs, outputs = [drawing, *controls, fresh, side, ratio, fit], [drawing, picture, text, seed, stop]
        run = draw.click(show_diffusion, inputs, outputs, concurrency_id="diffuse", **quiet)
        run.then(**again).then(**idle)
        stop.click(None, cancels=run).then(**again).then(**idle)
        gr.on([side.change, ratio.change, fit.change], trigger_mode="always_last", **again)
        outputs = [drawing, *controls, fit]
        gr.on([page.load, model.input], opening, [drawing, model], outputs, cancels=run, **quiet).then(**again)
        gr.api(diffuse, concurrency_id="diffuse")
        gr.api(resample, concurrency_id="resample", concurrency_limit=2)
    return page


def main() -> None:
    parser = argparse.ArgumentParser(prog="app.py", description=__doc__)
    parser.error = lambda message: parser.exit(2, f"app.py: {message}\n")
    weights = Path(__file__).resolve().parent / "weights"
    parser.add_argument("--host", help="address to listen on, 0.0.0.0 for every network (default: this machine only)")
    parser.add_argument("--port", type=int, help="port to listen on (default: the first free one from 7860)")
    parser.add_argument(
        "--weights", type=Path, default=weights, help="folder of weights folders (default: %(default)s)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: %(default)s)")
    parser.add_argument("--share", action="store_true", help="also make a public link, through gradio.live")
    args = parser.parse_args()
    if args.weights != weights and not args.weights.is_dir():
        parser.error(f"--weights {args.weights}: no such folder")
    weights, resampler_device = args.weights.resolve(), "cpu" if ZERO_GPU else None
    for folder in [weights] if (weights / "config.json").exists() else sorted(weights.glob("[!.]*/")):
        try:
            pipe = Pipeline.from_pretrained(folder, device=args.device, resampler_device=resampler_device)
            MODELS[folder.name] = pipe
        except Exception as error:  # whatever is wrong with this folder, the others still work
            FAULTS[folder.name] = (str(error) or type(error).__name__).splitlines()[0]
    os.makedirs(get_upload_folder(), exist_ok=True)
    torch.set_num_threads(min(torch.get_num_threads(), 8))  # pictures are small: more threads wait for each other
    look = dict(css=CSS, theme=gr.themes.Default(primary_hue="indigo", spacing_size="sm", font="system-ui"))
    server = dict(server_name=args.host, server_port=args.port, share=args.share, max_file_size="16mb")
    try:
        page = build().queue(max_size=1000)  # events, of all visitors
        page.launch(**look, **server, footer_links=["api"], run_history=False, ssr_mode=False, enable_monitoring=False)
    except (OSError, ValueError, OverflowError) as error:
        parser.error(str(error).splitlines()[0])


if __name__ == "__main__":
    main()