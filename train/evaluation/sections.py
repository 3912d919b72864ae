"""The sections of a report: Evaluation → tables and sheets of images."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from r2id.condition import one_hot
from r2id.image import contact_sheet
from r2id.interpolation import resize
from r2id.limits import BATCH
from r2id.pipeline import Latent
from r2id.schedule import noisy, target
from train.engine.progress import progress_bar
from train.evaluation.classifier import accuracy
from train.evaluation.metrics import (
    bring_to,
    central_square,
    diversity,
    frame_size,
    frechet,
    judge_features,
    kernel_distance,
    margin_square,
    mean_square,
    ms_ssim,
    psnr,
)
from train.evaluation.protocol import FEW, LARGE, Evaluation
from train.evaluation.tables import Sheet, Table, name

LEVELS = 20  # of noise, in the loss against t
SHEET_LABELS, SHEET_SEEDS, SHEET_SIDE = 10, 6, 128  # columns, rows, pixels
SHEET_SIZES = (8, 12, 16, 24, 32, 48, 64, 96, 128)
SAMPLERS = ("ddim", "dpm++")
TILED = 128  # pixels a side of the output whose tiles are compared with the whole


def reconstruction(e: Evaluation) -> Iterator[Table]:
    rows, size, real = [], (e.size, e.size), (e.real.images + 1) / 2
    for cells in e.protocol.cells:
        mse, _ = e.reconstructed(cells)
        rows.append((name(cells), 4 * mse, psnr(mse)))
    columns = {"latent": "{}", "MSE on [-1, 1]": "{:.5f}", "PSNR (dB)": "{:.2f}"}
    yield Table(f"Encoded, then decoded at {name(size)}: {len(e.real):,} images", columns, rows)

    rows = []
    for factor in e.protocol.inputs:
        side = round(factor * e.size)
        given = resize(e.real.images, (side, side)).clamp(-1, 1)
        decoded = (e.pipe.resample(latent, size=size) for latent in e.encoded(given, e.base))
        mse = mean_square(zip(decoded, real.split(BATCH), strict=True))
        plain = mean_square([((resize(given, size).clamp(-1, 1) + 1) / 2, real)])
        rows.append((name((side, side)), 4 * mse, psnr(mse), psnr(plain)))
    columns = {"given at": "{}", "MSE on [-1, 1]": "{:.5f}", "PSNR (dB)": "{:.2f}", "interpolated (dB)": "{:.2f}"}
    yield Table(f"Given at other sizes, latent {name(e.base)}, decoded at {name(size)}", columns, rows)


def consistency(e: Evaluation) -> Iterator[Table]:
    real, rows = e.real.images[: e.protocol.consistency], []
    latents = list(e.encoded(real, e.base))
    decoded = torch.cat([e.pipe.resample(latent, size=(e.size, e.size)) for latent in latents])
    for side in (factor * e.size for factor in e.protocol.enlargements):
        part = e.fewer([latent[i] for latent in latents for i in range(len(latent.tensor))], side)
        larger = (e.pipe.resample(latent, size=(side, side)) for latent in progress_bar(part, f"resample {side}"))
        reduced = torch.cat([bring_to(image, e.size) for image in larger])
        whole = (real[: len(part)] + 1) / 2
        enlarged = torch.cat([bring_to(bring_to(image[None], side), e.size) for image in whole])
        figures = psnr(mean_square([(reduced, decoded[: len(part)])])), ms_ssim(reduced, decoded[: len(part)])
        rows.append((side, len(part), *figures, psnr(mean_square([(enlarged, whole)]))))
    columns = {"output": "{}", "images": "{:,}", "PSNR (dB)": "{:.2f}", "MS-SSIM": "{:.5f}"}
    title = f"Decoded larger and area-reduced, against decoded at {e.size}: latent {name(e.base)}"
    yield Table(title, columns | {"real images enlarged bicubically (dB)": "{:.2f}"}, rows)

    one, side = latents[0][0], TILED
    whole = e.pipe.resample(one, size=(side, side))
    parts = [e.pipe.resample(one, size=(side // 2, side // 2), region=region) for region in quarters()]
    tiles = torch.cat([torch.cat(parts[:2], dim=3), torch.cat(parts[2:], dim=3)], dim=2)
    columns = {"output": "{}", "largest difference": "{:.1e}"}
    yield Table("Four tiles against the whole", columns, [(name((side, side)), (tiles - whole).abs().max().item())])


def quarters() -> list[tuple[float, float, float, float]]:
    return [(x, y, x + 0.5, y + 0.5) for y in (0, 0.5) for x in (0, 0.5)]


def read_as_label(e: Evaluation) -> Iterator[Table]:
    outputs, rows, labels_N = e.protocol.outputs, [], e.labels_N
    for cells in e.protocol.generated_cells:
        seen = (e.judged(cells, side) for side in outputs)
        rows.append((name(cells), *(accuracy(e.judge, images, labels_N[: len(images)]) for images in seen)))
    real = []
    for side in outputs:
        shown = e.real.images if side <= LARGE else e.real.images[: -(-len(e.real) // FEW)]
        parts = progress_bar(shown.split(BATCH), f"real images at {side}")
        brought = torch.cat([e.seen((bring_to(part, side) + 1) / 2) for part in parts])
        real.append(accuracy(e.judge, brought, e.real.labels[: len(shown)]))
    rows.append((f"{len(e.real):,} real images", *real))
    columns = {"latent": "{}"} | {f"output {side}": "{:.2%}" for side in outputs}
    title = f"Read as their label: {e.protocol.generated:,} generated images, a tenth of them above {LARGE}"
    yield Table(title, columns, rows)
    yield plot(
        "accuracy",
        "Read as their label against the size of the output",
        {row[0]: (outputs, [100 * v for v in row[1:]]) for row in rows},
        {"xlabel": "output, pixels a side", "ylabel": "read as the label, %", "xscale": "log"},
    )


def aspects(e: Evaluation) -> Iterator[Table]:
    rows = []
    for ratio in e.protocol.ratios:
        wide = ratio[0] / ratio[1]
        methods = [("resampled", e.base, e.generated(e.base), frame_size(wide, e.size))]
        if wide != 1:
            methods += [("diffused", cells, e.generated(cells, wide), methods[0][3]) for cells in e.frames(ratio)]
        for method, cells, latents, size in methods:
            what = progress_bar(latents, f"resample {name(size)}")
            images = torch.cat([e.pipe.resample(latent, size=size, fit="contain") for latent in what])
            read = accuracy(e.judge, e.seen(central_square(images)), e.labels_N)
            margins = margin_square(images, e.background_C)
            rows.append((f"{ratio[0]}:{ratio[1]}", method, name(cells), latents[0].aspect, name(size), read, margins))
    columns = {"ratio": "{}", "method": "{}", "latent": "{}", "frame": "{:.3f}", "output": "{}"}
    columns |= {"accuracy of the central square": "{:.2%}", "margins, mean square": "{:.6f}"}
    yield Table("A square latent contained in another shape, and latents diffused at that shape", columns, rows)


def shape(e: Evaluation) -> Iterator[Table | Sheet]:
    """What an output of another shape does to the image: contained in it, and stretched to its shape."""
    latents, rows, images = e.generated(e.base)[:1], [], []
    fits = ("contain", "stretch") if e.pipe.resampler else ("contain",)
    square = torch.cat([e.pipe.resample(latent, size=(e.size, e.size)) for latent in latents])
    labels_N = e.labels_N[: len(square)]
    for ratio in e.protocol.ratios:
        size = frame_size(ratio[0] / ratio[1], e.size)
        figures = []
        for fit in fits:
            shown = torch.cat([e.pipe.resample(latent, size=size, fit=fit) for latent in latents])
            centre = central_square(shown)
            read = accuracy(e.judge, e.seen(centre), labels_N)
            figures += [(centre - square).abs().max().item(), margin_square(shown, e.background_C), read]
            images.append(F.pad(shown[3 % len(shown)], margins_to(size, 2 * e.size), value=0.5))
        rows.append((f"{ratio[0]}:{ratio[1]}", *figures))
    columns = {"ratio": "{}"}
    for fit in fits:
        columns |= {f"{fit}: centre, max |Δ|": "{:.1e}", f"{fit}: margins": "{:.6f}", f"{fit}: accuracy": "{:.1%}"}
    yield Table(f"The central square against the 1:1 image: {len(square)} images", columns, rows)
    below = [image for start in range(len(fits)) for image in images[start :: len(fits)]]
    yield Sheet("shape", f"{', then '.join(fits)}: a row each", contact_sheet(below, len(e.protocol.ratios)))


def margins_to(size: tuple[int, int], side: int) -> tuple[int, int, int, int]:
    """Pads (left, right, top, bottom) that centre an image on a square of `side`."""
    top, left = ((side - v) // 2 for v in size)
    return left, side - size[1] - left, top, side - size[0] - top


def fidelity(e: Evaluation) -> Iterator[Table]:
    count, rows = e.protocol.generated, []
    real, real_labels = judge_features(e.judge, e.seen((e.real.images + 1) / 2)), e.real.labels

    def measure(what: str, images_NCHW: Tensor, labels_N: Tensor) -> None:
        features = judge_features(e.judge, images_NCHW)
        figures = frechet(features, real), 1000 * kernel_distance(features, real)
        figures += diversity(features, labels_N, real, real_labels), accuracy(e.judge, images_NCHW, labels_N)
        rows.append((what, len(features), *figures))

    train = e.load("train", limit=count)  # as many as are generated: the distance falls with the count
    measure("training images (the floor)", e.seen((train.images + 1) / 2), train.labels)
    for cells in e.protocol.generated_cells:
        measure(f"{name(cells)}, real images reconstructed", e.reconstructed(cells)[1], real_labels[:count])
    for cells in e.protocol.generated_cells:
        measure(f"{name(cells)}, generated", e.judged(cells, e.size), e.labels_N)
    columns = {"images": "{}", "count": "{:,}", "Fréchet distance": "{:.2f}", "1000 · KID": "{:.2f}"}
    columns |= {"diversity": "{:.3f}", "accuracy": "{:.2%}"}
    size = name((e.size, e.size))
    yield Table(f"At {size} against {len(real):,} real images, in the classifier's features", columns, rows)


def sampler(e: Evaluation) -> Iterator[Table | Sheet]:
    """Steps and guidance of both samplers, one varied at a time, the other as the configuration has it."""
    defaults, size = e.pipe.config.defaults, (e.size, e.size)
    real, real_labels = judge_features(e.judge, e.seen((e.real.images + 1) / 2)), e.real.labels
    label, rows, curves = 0 if e.pipe.labels else None, [], {}
    settings = [(method, steps, defaults.guidance) for method in SAMPLERS for steps in e.protocol.steps]
    settings += [(defaults.sampler, defaults.steps, guidance) for guidance in e.protocol.guidances]
    for method, steps, guidance in settings:
        options = {"sampler": method, "steps": steps, "guidance": guidance}
        images = e.judged(e.base, e.size, **options)
        features = judge_features(e.judge, images)
        began = time.perf_counter()
        e.pipe.diffuse(label, latent_size=e.base, seed=0, **options)
        taken = 1000 * (time.perf_counter() - began)
        figures = accuracy(e.judge, images, e.labels_N), frechet(features, real)
        rows.append((method, steps, guidance, *figures, diversity(features, e.labels_N, real, real_labels), taken))
    columns = {"sampler": "{}", "steps": "{}", "guidance": "{:g}", "accuracy": "{:.2%}", "Fréchet distance": "{:.2f}"}
    columns |= {"diversity": "{:.3f}", "ms an image": "{:.0f}"}
    yield Table(f"Latent {name(e.base)}, decoded at {name(size)}: {len(e.labels_N):,} images a row", columns, rows)
    for method in SAMPLERS:
        curve = rows[: len(SAMPLERS) * len(e.protocol.steps)]
        curves[method] = e.protocol.steps, [row[4] for row in curve if row[0] == method]
    labels = {"xlabel": "steps", "ylabel": "Fréchet distance", "xscale": "log", "yscale": "log"}
    yield plot("steps", "Fréchet distance against steps", curves, labels)


def loss(e: Evaluation) -> Iterator[Table]:
    """The mean square error of what the denoiser predicts, at every noise level, with the real label and without; the
    second is its guide's where it has one."""
    pipe, prediction_type, device = e.pipe, e.pipe.config.denoiser.prediction_type, e.pipe.device
    count, rng = e.protocol.loss, torch.Generator().manual_seed(0)
    mean_C11, std_C11 = (torch.tensor(v).view(-1, 1, 1) for v in (pipe.config.latent_mean, pipe.config.latent_std))
    x0_NChw = torch.cat([latent.tensor for latent in e.encoded(e.real.images[:count], e.base)])
    x0_NChw = ((x0_NChw - mean_C11) / std_C11).to(device)
    weights_NL = one_hot(e.real.labels[:count], len(pipe.labels)).to(device)
    positions, rows = pipe.positions(e.base, 1.0).to(device), []
    for t in progress_bar((torch.arange(LEVELS, dtype=torch.float64) + 0.5) / LEVELS, "loss", unit="level"):
        alpha_bar_B, squares_K = pipe.config.schedule.alpha_bar(t[None], cells=e.base), torch.zeros(2)
        for x0_BChw, weights_BL in zip(x0_NChw.split(BATCH), weights_NL.split(BATCH), strict=True):
            noise_BChw = torch.randn(x0_BChw.shape, generator=rng).to(device)
            inputs = noisy(x0_BChw, noise_BChw, alpha_bar_B), alpha_bar_B.float().expand(len(x0_BChw)).to(device)
            with torch.no_grad():
                tokens_BND = pipe.denoiser.condition(weights_BL)
                prediction_KBChw = pipe.denoiser(*inputs, positions, (tokens_BND, None)).prediction
            error_KBChw = prediction_KBChw - target(prediction_type, x0_BChw, noise_BChw, alpha_bar_B)
            squares_K += error_KBChw.square().flatten(1).sum(dim=1).cpu()
        rows.append((t.item(), *(squares_K / x0_NChw.numel()).tolist()))
    title = f"Mean square error of {prediction_type} against t: {len(x0_NChw)} images, latent {name(e.base)}"
    yield Table(title, {"t": "{:.3f}", "conditional": "{:.4f}", "null": "{:.4f}"}, rows)
    t_N, conditional_N, null_N = zip(*rows, strict=True)
    curves = {"with the label": (t_N, conditional_N), "without": (t_N, null_N)}
    labels = {
        "xlabel": "t (0 is clean, 1 is noise)",
        "ylabel": f"mean square error of {prediction_type}",
        "ylim": (0, None),
    }
    yield plot("loss", title, curves, labels)


def plot(file_name: str, title: str, curves: dict[str, tuple], labels: dict) -> Sheet:
    """Lines, name → (x, y)."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for what, (x_N, y_N) in curves.items():
        axes.plot(x_N, y_N, marker="." if len(x_N) < LEVELS else None, label=what)
    axes.set(**labels)
    figure.legend(loc="outside right upper")
    figure.savefig(file := io.BytesIO(), dpi=120)
    return Sheet(file_name, title, Image.open(file))


def sheets(e: Evaluation) -> Iterator[Sheet]:
    pipe, side = e.pipe, SHEET_SIDE
    labels = list(range(min(SHEET_LABELS, len(pipe.labels))))
    one = pipe.diffuse(labels[len(labels) // 3], latent_size=e.base, seed=0)
    sizes = [(s, s) for s in SHEET_SIZES]
    sizes += [tuple(max(1, round(side * min(1, v))) for v in (h / w, w / h)) for w, h in e.protocol.ratios]
    images = [pipe.resample(one, size=size)[0] for size in progress_bar(sizes, "sheets")]
    square = len(SHEET_SIZES)  # shown equally large, with hard pixels
    images[:square] = [F.interpolate(p[None], size=side, mode="nearest-exact")[0] for p in images[:square]]
    yield Sheet("one_latent", "One latent at many sizes and aspect ratios", contact_sheet(images, len(SHEET_SIZES)))

    def rows_of(title: str, sheet: str, latents: list[Latent], size: tuple[int, int], fit: str | None = None) -> Sheet:
        images = [p for latent in progress_bar(latents, sheet) for p in pipe.resample(latent, size=size, fit=fit)]
        return Sheet(sheet, title, contact_sheet(images, len(labels)))

    many = pipe.diffuse(labels * SHEET_SEEDS, latent_size=e.base, seed=0)
    yield rows_of(f"Every label, seeds down, latent {name(e.base)}", "labels", [many], (side, side))
    latents = [pipe.diffuse(labels, latent_size=cells, aspect=1.0, seed=0) for cells in e.protocol.cells]
    title = f"Square frames from latents {', '.join(map(name, e.protocol.cells))}, a row each"
    yield rows_of(title, "latents", latents, (side, side))

    for ratio in (e.protocol.ratios[0], e.protocol.ratios[-1]):
        wide = ratio[0] / ratio[1]
        own = [pipe.diffuse(labels, latent_size=cells, aspect=wide, seed=0) for cells in e.frames(ratio)]
        latents = [pipe.diffuse(labels, latent_size=e.base, seed=0), *own]
        rows = ", ".join(map(name, e.frames(ratio)))
        title = f"{ratio[0]}:{ratio[1]}: resampled from {name(e.base)}, then diffused at {rows}"
        yield rows_of(title, f"aspect_{ratio[0]}x{ratio[1]}", latents, frame_size(wide, side // 2), "contain")
