"""A page that diffuses a latent once and resamples it to any size and shape."""

import argparse  # annotations are not postponed in this file: gr.api reads the return types as they are
import contextlib
import html
import os
import time
from pathlib import Path

if ZERO_GPU := "SPACES_ZERO_GPU" in os.environ:  # lends its GPU for diffusing only, and to another process
    import spaces  # has to come before torch
import gradio as gr
import torch
from gradio.utils import get_upload_folder
from gradio_client.utils import is_file_obj_with_meta

from r2id import Latent, Pipeline
from r2id.image import save_png, to_pil

SIDE, PREVIEW_SIDE, MAX_SIDE, MAX_STEPS = 256, 96, 2048, 100  # pixels, denoiser runs
RATIOS = ["1:1", "2:3", "3:2", "3:4", "4:3", "4:5", "5:4", "9:16", "16:9"]
MODELS: dict[str, Pipeline] = {}  # by name of the weights folder
FAULTS: list[str] = []  # why other folders cannot be used, as HTML
OPENING: dict[str, Latent] = {}  # what a visitor finds on the page, diffused once for all of them
on_gpu = spaces.GPU(duration=60) if ZERO_GPU else lambda function: function
TITLE = "<h1>r2id</h1>Diffuse a picture once, in a small latent; then resample that to any resolution and aspect ratio."
NO_WEIGHTS = """<b>There are no weights yet.</b> Drop a folder of them into weights/, or train some; then start again.
<pre>python train/train_resampler.py --config train/configs/mnist_resampler.toml
python train/train_denoiser.py --config train/configs/mnist_r2id.toml
python train/export.py runs/mnist weights/mnist</pre>"""
THEME = gr.themes.Default(primary_hue="indigo", spacing_size="sm", font=["system-ui", "sans-serif"])
CSS = """.gradio-container {width: min(100%, 1560px) !important; margin: 0 auto !important; overflow: clip !important}
h1 {margin: 0 !important} h2 {margin: .2rem 0 -.3rem; font-size: 1.15rem} small, dt {opacity: .65; font-weight: 400}
dl {display: grid; grid-template-columns: max-content 1fr; gap: .1rem .9rem} dd {margin: 0} .head input {width: 4.2rem}
.notice {border-left: 4px solid var(--color-accent); padding-left: .9rem; margin: .5rem 0} #columns {align-items: start}
.drawn :is(.head, span) {display: none} .typed {padding-bottom: 0} .hard {image-rendering: pixelated}
.typed > .container {display: grid; grid-template-columns: 1fr 6.2rem} .typed .wrap {grid-area: 1 / 2 / span 2}
#picture :is(.image-container, button:has(img), .image-frame, img) {width: 100%; height: 100%; object-fit: contain}
#picture {border: 0; background: #8883} #picture .image-container {height: auto; aspect-ratio: 1; max-height: 72vh}
@media (max-width: 700px) { #picture .image-container {max-height: 32vh} dl {font-size: .8rem} #resample {order: -1}
  #show {order: -2; position: sticky; top: 0; z-index: 99; background: var(--body-background-fill)} }"""
LOG = "Math.log2(t.split(':').reduce((w, h) => w / h))"  # of '16:9' or '1.78'
TO_TEXT = f"v => {RATIOS}.find(t => Math.abs(v - {LOG}) < 0.01) ?? (2 ** v).toFixed(2)"


class Slider(gr.Slider):
    def preprocess(self, payload):  # a number being typed is no mistake: the 5 of 512 is brought into range
        return self.value if payload is None else min(max(payload, self.minimum), self.maximum)


@contextlib.contextmanager
def using(model: str | None):
    """The pipeline; what it or anything else objects to is told in one line."""
    try:
        if model not in MODELS:
            raise ValueError(f"model {model!r}: must be one of {', '.join(MODELS)}")
        yield MODELS[model]
    except (ValueError, ZeroDivisionError) as error:
        raise gr.Error(html.escape(str(error), quote=False), print_exception=False) from None


def sides(long: int, ratio: str) -> tuple[tuple[int, int], float]:
    """A long side and '16:9' or '1.78' → (height, width), and the exact ratio. Raises ValueError outside 1:4…4:1."""
    width, _, height = str(ratio).partition(":")
    if not 1 / 4 <= (aspect := float(width) / float(height or 1)) <= 4:
        raise ValueError(f"aspect ratio {ratio}: must be 1:4 … 4:1")
    return (max(1, round(long * min(1, 1 / aspect))), max(1, round(long * min(1, aspect)))), aspect


@on_gpu
def denoise(model: str, label: str, cells: tuple[int, int], **how):
    """The steps of one diffusion; how: aspect, steps, guidance, seed."""
    yield from MODELS[model].diffuse_steps([label or None], latent_size=cells, **how)


def show_diffusion(drawing, model, label, cells, shape, steps, guidance, seed, fresh, side, ratio, fit):
    """Every step as it comes: drawing, preview, facts, seed, Stop button."""
    with using(model) as pipe:
        cells, aspect = sides(cells, shape)  # of the frame: whole cells may only come near it
        made = dict(model=model, label=label, cells=cells, aspect=aspect, steps=steps, guidance=guidance)
        (height, width), _ = sides(min(side, PREVIEW_SIDE), ratio)
        for step in denoise(**made, seed=None if fresh else seed):
            made["seed"] = step.latent.seeds[0]
            drawing.update(latent=step.latent, made=made, step=step.index, resampled=0, asked=None)
            preview = to_pil(pipe.resample(step.latent, size=(height, width), fit=fit)[0])
            text = facts(drawing, f"preview, {width} × {height} pixels")
            yield drawing, gr.Image(preview, elem_classes="hard"), text, made["seed"], gr.Button(interactive=True)


def show_resampled(drawing, side, ratio, fit):
    """The latent at hand at any size: picture, file, facts. Requests share `drawing`, so older ones see newer ones."""
    request, start, made = (drawing["step"], side, ratio, fit), time.perf_counter(), drawing.get("made")
    if drawing["latent"] is None or drawing["asked"] == request:
        return (yield [gr.skip()] * 3)  # a generator that yields nothing would empty the picture
    with using(made["model"]) as pipe:
        ((height, width), _), drawing["asked"] = sides(side, ratio), request
        image_CHW = torch.empty(pipe.config.channels, height, width)
        for (left, top, right, bottom), tile in pipe.resample_tiles(drawing["latent"], size=(height, width), fit=fit):
            image_CHW[:, top:bottom, left:right] = tile[0]
            if drawing["asked"] is not request:
                return (yield [gr.skip()] * 3)
            if width * height > 2**18:  # takes long enough to read this
                text = f"{width} × {height} pixels, {bottom / height:.0%} resampled"
                yield gr.skip(), gr.skip(), facts(drawing, text)
        took, drawing["resampled"] = 1000 * (time.perf_counter() - start), drawing["resampled"] + 1
        file, alt = png(image_CHW, **made, fit=fit), f"label {made['label']}, {width} by {height} pixels"
        picture = gr.Image(file, alt_text=alt, elem_classes=["hard"] * (max(height, width) < 600))
        text = facts(drawing, f"<b>{width} × {height} pixels</b>, {fit}, resampled in <b>{took:.0f} ms</b>")
        yield picture, gr.DownloadButton(value=file, interactive=True), text


def facts(drawing: dict, picture: str) -> str:
    """Which latent is on the page and what was done with it, as HTML."""
    (height, width), made, times = drawing["made"]["cells"], drawing["made"], drawing["resampled"]
    steps = f"{drawing['step']} of " * (drawing["step"] < made["steps"]) + f"{made['steps']} steps"
    return f"""<dl><dt>Picture<dd>{picture}
        <dt>Latent<dd>label <b>{html.escape(made["label"] or "any")}</b>, {width} × {height} cells, seed {made["seed"]}
        <dt>Work<dd>diffused <b>1 ×</b> ({steps}, guidance {made["guidance"]:g}&nbsp;×), resampled <b>{times} ×</b>
        <dt>Model<dd>{html.escape(made["model"])} on {MODELS[made["model"]].device}</dl>"""


def png(image_CHW: torch.Tensor, **about) -> str:
    """A file that carries its parameters, where Gradio serves it and clears it away."""
    file = f"{get_upload_folder()}/r2id-{os.urandom(8).hex()}.png"
    save_png(image_CHW, file, {**about, "size": tuple(image_CHW.shape[1:])})
    return file


def opening(drawing, model):
    """A latent to begin with, and controls as its model says."""
    with using(model := model or next(iter(MODELS))) as pipe:
        config, how, label = pipe.config, pipe.config.defaults, (*pipe.labels[3:4], *pipe.labels, "")[0]
        made = dict(model=model, label=label, cells=how.latent_size, steps=how.steps, guidance=how.guidance, seed=0)
        OPENING[model] = OPENING.get(model) or [*denoise(**made)][-1].latent
    drawing.update(latent=OPENING[model], made=made, step=how.steps, resampled=0, asked=None)
    label = gr.Dropdown([*pipe.labels, ("any", "")], value=label)
    low, high = config.trained_cells
    cells = gr.Slider(low, max(high, low + 1), value=max(how.latent_size))  # a slider needs two positions
    shape = gr.Dropdown(value="1:1", info="trained from {:.2f} to {:.2f}".format(*config.trained_aspects))
    model, fit = gr.Dropdown([*MODELS], value=model), config.fit.replace("published", "cover")
    return drawing, model, label, cells, shape, how.steps, how.guidance, 0, fit


def diffuse(label: str, latent_height: int = 8, latent_width: int = 8, steps: int | None = None,
            guidance: float | None = None, seed: int | None = None, model: str = "mnist",
            ) -> tuple[gr.FileData, gr.FileData]:  # fmt: skip
    """Diffuse a latent of height x width cells: its picture (PNG), and the latent (safetensors) for /resample."""
    with using(model) as pipe:
        *_, last = denoise(model, label, (latent_height, latent_width), steps=steps, guidance=guidance, seed=seed)
        last.latent.save(file := f"{get_upload_folder()}/latent-{os.urandom(8).hex()}.safetensors")
        image_CHW = pipe.resample(last.latent, size=sides(SIDE, f"{latent_width}:{latent_height}")[0])[0]
        picture = png(image_CHW, model=model, label=label, steps=steps, guidance=guidance, seed=last.latent.seeds[0])
        return gr.FileData(path=picture), gr.FileData(path=file)


def resample(latent: gr.FileData, height: int, width: int, fit: str = "contain", model: str = "mnist") -> gr.FileData:
    """The picture (PNG), height x width pixels, of a latent that /diffuse returned; fit: contain, cover or stretch."""
    with using(model) as pipe:
        if not is_file_obj_with_meta(latent):  # those that are, Gradio has checked
            raise ValueError("latent: must be a file that /diffuse returned")
        drawn = Latent.load(latent["path"])
        image_BCHW = pipe.resample(drawn, size=(height, width), fit=fit)
        return gr.FileData(path=png(image_BCHW[0], model=model, labels=drawn.labels, seeds=drawn.seeds, fit=fit))


def ratio_control(title: str) -> gr.Dropdown:
    """An aspect ratio: chosen, typed, or drawn on a logarithmic slider. The text is what counts."""
    text = gr.Dropdown(RATIOS, value="1:1", allow_custom_value=True, label=title, elem_classes="typed")
    slider = gr.Slider(-2, 2, value=0, step=0.02, label=title, show_label=False, elem_classes="drawn")
    slider.input(None, slider, text, js=TO_TEXT)
    text.input(None, text, slider, js=f"t => {LOG} || 0")
    return text


def build() -> gr.Blocks:
    with gr.Blocks(title="r2id", analytics_enabled=False, delete_cache=(3600, 86400), fill_width=True) as page:
        gr.HTML(TITLE + "".join(f"<div class=notice>{line}</div>" for line in FAULTS + [NO_WEIGHTS] * (not MODELS)))
        drawing = gr.State({"latent": None, "asked": None, "step": 0})  # a visitor's; later also made, resampled
        with gr.Row(elem_id="columns"):
            with gr.Column(scale=3, min_width=260):
                gr.HTML("<h2>Draw <small>makes a latent</small></h2>")
                with gr.Row():
                    label, model = (gr.Dropdown(label=name, min_width=80) for name in ("Label", "Model"))
                cells = Slider(1, 64, value=8, step=1, precision=0, label="Latent size, long side (cells)")
                shape = ratio_control("Latent ratio (w : h)")
                steps = Slider(1, MAX_STEPS, value=20, step=1, precision=0, label="Steps (denoiser runs)")
                guidance = Slider(0, 8, value=1.5, step=0.1, label="Guidance (×, 1 is none)")
                with gr.Row():
                    seed = gr.Number(0, precision=0, minimum=0, maximum=2**32 - 1, label="Seed", min_width=100)
                    fresh = gr.Checkbox(True, label="new every time", min_width=100)
                with gr.Row():
                    draw = gr.Button("Diffuse", variant="primary", min_width=80, interactive=bool(MODELS))
                    stop = gr.Button("Stop", min_width=80, interactive=False)
            with gr.Column(scale=6, min_width=320, elem_id="show"):
                picture = gr.Image(format="png", show_label=False, buttons=[], elem_id="picture")
                text = gr.HTML()
            with gr.Column(scale=3, min_width=260, elem_id="resample"):
                gr.HTML("<h2>Resample <small>the same latent</small></h2>")
                side = Slider(8, MAX_SIDE, value=SIDE, step=8, precision=0, label="Resolution, long side (pixels)")
                ratio = ratio_control("Picture ratio (w : h)")
                fit = gr.Radio(["contain", "cover", "stretch"], label="Fit", info="go on beyond the edge, cut, or pull")
                file = gr.DownloadButton("Download PNG", interactive=False)
        controls = [model, label, cells, shape, steps, guidance, seed]
        quiet = dict(show_progress="hidden", api_visibility="private")
        inputs, outputs = [drawing, side, ratio, fit], [picture, file, text]
        again = dict(fn=show_resampled, inputs=inputs, outputs=outputs, concurrency_id="resample", **quiet)
        idle = dict(fn=lambda: gr.Button(interactive=False), outputs=stop, **quiet)
        inputs, outputs = [drawing, *controls, fresh, side, ratio, fit], [drawing, picture, text, seed, stop]
        run = draw.click(show_diffusion, inputs, outputs, concurrency_id="diffuse", concurrency_limit=1, **quiet)
        run.then(**again).then(**idle)
        stop.click(None, cancels=run).then(**again).then(**idle)
        gr.on([side.change, ratio.change, fit.change], trigger_mode="always_last", **again)
        start = [page.load, model.input] if MODELS else [model.input]
        gr.on(start, opening, [drawing, model], [drawing, *controls, fit], cancels=run, **quiet).then(**again)
        gr.api(diffuse, concurrency_id="diffuse", concurrency_limit=1)
        gr.api(resample, concurrency_id="resample")
    return page


def main() -> None:
    parser = argparse.ArgumentParser(prog="app.py", description=__doc__)
    parser.error = lambda message: parser.exit(2, f"app.py: {message}\n")
    parser.add_argument("--host", help="address to listen on, 0.0.0.0 for every network (default: this machine only)")
    parser.add_argument("--port", type=int, help="port to listen on (default: the first free one from 7860)")
    parser.add_argument("--weights", type=Path, default=Path(__file__).parent / "weights", help="folder of models")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: %(default)s)")
    parser.add_argument("--share", action="store_true", help="also make a public link, through gradio.live")
    args = parser.parse_args()
    if args.weights != parser.get_default("weights") and not args.weights.is_dir():
        parser.error(f"--weights {args.weights}: no such folder")
    weights, devices = args.weights.resolve(), dict(device=args.device, resampler_device="cpu" if ZERO_GPU else None)
    for folder in sorted({p.parent for p in [*weights.glob("config.json"), *weights.glob("[!.]*/*")]}):
        try:
            MODELS[folder.name] = Pipeline.from_pretrained(folder, **devices)
        except Exception as error:  # whatever is wrong with this folder, the others still work
            FAULTS.append(html.escape(f"{folder.name} cannot be used: {error}".splitlines()[0]))
    os.makedirs(get_upload_folder(), exist_ok=True)
    torch.set_num_threads(min(torch.get_num_threads(), 8))  # pictures are small: more threads wait for each other
    server = dict(server_name=args.host, server_port=args.port, share=args.share, max_file_size="16mb", ssr_mode=False)
    try:
        torch.empty(0, device="cpu" if args.device == "auto" else args.device)
        page = build().queue(max_size=1000, default_concurrency_limit=2)  # max_size: events, of all visitors
        page.launch(**server, theme=THEME, css=CSS, footer_links=["api"], run_history=False, enable_monitoring=False)
    except (AssertionError, OSError, OverflowError, RuntimeError, ValueError) as error:
        parser.error(str(error).splitlines()[0])


if __name__ == "__main__":
    main()
