"""Measures weights by one protocol; prints tables and writes report.json, report.md and sheets of pictures:

python train/evaluate.py weights/mnist --data PATH [--split validation] [--only accuracy,sheets]
python train/evaluate.py --compare weights/mnist-r2id weights/mnist-s2id … --data PATH     systems side by side

One setting for a whole report: generated picture i has label i mod K and seed i, under the configuration's default
steps, guidance and sampler. The validation split is for choices, the test split for reports.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from r2id.condition import one_hot
from r2id.config import PipelineConfig
from r2id.image import contact_sheet
from r2id.limits import MAX_BATCH
from r2id.pipeline import Latent, Pipeline
from r2id.schedule import noisy, target
from train.classifier import Classifier, accuracy, load_classifier, to_classifier_size
from train.comparison import compare
from train.data import ImageSet, load_images
from train.metrics import (
    bring_to,
    central_square,
    diversity,
    frame_size,
    frechet,
    judge_features,
    margin_square,
    mean_square,
    psnr,
    to_stride,
)
from train.report import Sheet, Table, check_match, name, progress

CLASSIFIER = Path(__file__).parent / "classifiers" / "mnist.safetensors"
LEVELS = 20  # of noise, in the loss against t
SHEET_LABELS, SHEET_SEEDS, SHEET_SIDE = 10, 6, 128  # columns, rows, pixels
SHEET_SIZES = (8, 12, 16, 24, 32, 48, 64, 96, 128)
SHEET_RATIOS = ((9, 16), (2, 3), (3, 4), (4, 5), (1, 1), (5, 4), (4, 3), (3, 2), (16, 9))

# what is measured


@dataclass(frozen=True)
class Protocol:
    """Counts and sizes of a report. Cells are (height, width), ratios width : height."""

    generated: int = 1000
    cells: tuple[tuple[int, int], ...] = ((4, 4), (6, 6), (8, 8), (10, 10), (12, 12), (16, 16), (6, 9), (9, 6))
    generated_cells: tuple[tuple[int, int], ...] = ((4, 4), (8, 8), (10, 10))
    outputs: tuple[int, ...] = (16, 32, 128)
    ratios: tuple[tuple[int, int], ...] = ((9, 16), (16, 9))
    enlargements: tuple[int, ...] = (2, 4, 8)  # of the training size
    consistency: int = 200  # images
    loss: int = 512  # images


PROTOCOL = Protocol()


def in_pixels(protocol: Protocol, config: PipelineConfig) -> Protocol:
    """The protocol for pixel space, where the latent is the picture: half, once and twice the training size."""
    cells = tuple((to_stride(config.training_size * factor, config.stride),) * 2 for factor in (0.5, 1, 2))
    return replace(protocol, cells=cells, generated_cells=cells)


@dataclass
class Evaluation:
    """A pipeline, real images, a judge, and the latents diffused so far: each is diffused once for all sections."""

    pipe: Pipeline
    real: ImageSet
    load: Callable[..., ImageSet]  # (split, limit=) → other real images of the same size
    judge: Classifier
    protocol: Protocol

    def __post_init__(self):
        config, names = self.pipe.config, self.real.names
        self.size, self.base, self.latents = config.training_size, config.defaults.latent_size, {}
        self.background_C = torch.tensor(config.background)
        check_match(config, names, self.judge)
        if self.protocol.generated < 2 * len(names):
            raise ValueError(f"generated {self.protocol.generated}: must be {2 * len(names)} or more, 2 a label")

    @property
    def labels_N(self) -> Tensor:
        return torch.arange(self.protocol.generated) % len(self.pipe.labels)

    def generated(self, cells: tuple[int, int], aspect: float | None = None) -> list[Latent]:
        """Batches of latents by the protocol; aspect: frame width / height, that of the cells where None."""
        if (cells, aspect) not in self.latents:
            batches = self.labels_N.split(MAX_BATCH)
            self.latents[cells, aspect] = [
                self.pipe.diffuse(labels.tolist(), latent_size=cells, aspect=aspect, seed=index * MAX_BATCH)
                for index, labels in enumerate(progress(batches, f"diffuse {name(cells)}"))
            ]
        return self.latents[cells, aspect]

    def encoded(self, images_NCHW: Tensor, cells: tuple[int, int]) -> Iterator[Latent]:
        for part in progress(images_NCHW.split(MAX_BATCH), f"encode {name(cells)}"):
            yield self.pipe.encode((part + 1) / 2, latent_size=cells)

    def judged(self, latents: Iterable[Latent], size: tuple[int, int]) -> Tensor:
        """Latents → their pictures of `size`, as the judge takes them, in [-1, 1]."""
        pictures = (self.pipe.resample(latent, size=size) for latent in progress(latents, f"resample {name(size)}"))
        return torch.cat([to_classifier_size(picture * 2 - 1) for picture in pictures])

    def frames(self, ratio: tuple[int, int]) -> list[tuple[int, int]]:
        """The cells that are diffused at a ratio: the default's number on the short side, and on the long side."""
        stride, wide, side = self.pipe.config.stride, ratio[0] / ratio[1], max(self.base)
        return [tuple(to_stride(side * bound(1, v), stride) for v in (1 / wide, wide)) for bound in (max, min)]


# sections: Evaluation → tables and sheets


def reconstruction(e: Evaluation) -> Iterator[Table]:
    rows, size = [], (e.size, e.size)
    for cells in e.protocol.cells:
        decoded = (e.pipe.resample(latent, size=size) for latent in e.encoded(e.real.images, cells))
        mse = mean_square(zip(decoded, ((e.real.images + 1) / 2).split(MAX_BATCH), strict=True))
        rows.append((name(cells), 4 * mse, psnr(mse)))
    columns = {"latent": "{}", "MSE on [-1, 1]": "{:.5f}", "PSNR (dB)": "{:.2f}"}
    yield Table(f"Encoded, then decoded at {name(size)}: {len(e.real):,} images", columns, rows)


def consistency(e: Evaluation) -> Iterator[Table]:
    real = e.real.images[: e.protocol.consistency]
    latents = list(e.encoded(real, e.base))
    decoded = [e.pipe.resample(latent, size=(e.size, e.size)) for latent in latents]
    rows = []
    for side in (factor * e.size for factor in e.protocol.enlargements):
        larger = (e.pipe.resample(latent, size=(side, side)) for latent in progress(latents, f"resample {side}"))
        figure = psnr(mean_square(zip((bring_to(image, e.size) for image in larger), decoded, strict=True)))
        parts = ((real + 1) / 2).split(MAX_BATCH)
        ceiling = psnr(mean_square((bring_to(bring_to(part, side), e.size), part) for part in parts))
        rows.append((side, figure, ceiling))
    columns = {"output": "{}", "PSNR (dB)": "{:.2f}", "real images enlarged bicubically": "{:.2f}"}
    title = f"Decoded larger and area-reduced, against decoded at {e.size}: {len(real)} images, latent {name(e.base)}"
    yield Table(title, columns, rows)


def digit_accuracy(e: Evaluation) -> Iterator[Table]:
    outputs, rows = e.protocol.outputs, []
    for cells in e.protocol.generated_cells:
        pictures = (e.judged(e.generated(cells), (side, side)) for side in outputs)
        rows.append((name(cells), *(accuracy(e.judge, picture, e.labels_N) for picture in pictures)))
    real = []
    for side in outputs:
        parts = progress(e.real.images.split(MAX_BATCH), f"real images at {side}")
        brought = torch.cat([to_classifier_size(bring_to(part, side)) for part in parts])
        real.append(accuracy(e.judge, brought, e.real.labels))
    rows.append((f"{len(e.real):,} real images", *real))
    columns = {"latent": "{}"} | {f"output {side}": "{:.2%}" for side in outputs}
    yield Table(f"Read as their label: {e.protocol.generated:,} generated pictures", columns, rows)


def aspects(e: Evaluation) -> Iterator[Table]:
    rows = []
    for ratio in e.protocol.ratios:
        wide = ratio[0] / ratio[1]
        ways = [("resampled", e.base, e.generated(e.base), frame_size(wide, e.size))]
        ways += [("diffused", cells, e.generated(cells, wide), ways[0][3]) for cells in e.frames(ratio)]
        for way, cells, latents, size in ways:
            what = progress(latents, f"resample {name(size)}")
            pictures = torch.cat([e.pipe.resample(latent, size=size, fit="contain") for latent in what])
            read = accuracy(e.judge, to_classifier_size(central_square(pictures) * 2 - 1), e.labels_N)
            margins = margin_square(pictures, e.background_C)
            rows.append((f"{ratio[0]}:{ratio[1]}", way, name(cells), latents[0].aspect, name(size), read, margins))
    columns = {"ratio": "{}", "way": "{}", "latent": "{}", "frame": "{:.3f}", "output": "{}"}
    columns |= {"accuracy of the central square": "{:.2%}", "margins, mean square": "{:.6f}"}
    yield Table("A square latent contained in another shape, and latents diffused at that shape", columns, rows)


def fidelity(e: Evaluation) -> Iterator[Table]:
    count, size, rows = e.protocol.generated, (e.size, e.size), []
    real, real_labels = judge_features(e.judge, to_classifier_size(e.real.images)), e.real.labels

    def measure(what: str, images_NCHW: Tensor, labels_N: Tensor) -> None:
        features = judge_features(e.judge, images_NCHW)
        figures = frechet(features, real), diversity(features, labels_N, real, real_labels)
        rows.append((what, len(features), *figures, accuracy(e.judge, images_NCHW, labels_N)))

    train = e.load("train", limit=count)  # as many as are generated: the distance falls with the count
    measure("training images (the floor)", to_classifier_size(train.images), train.labels)
    for cells in e.protocol.generated_cells:
        images = e.judged(list(e.encoded(e.real.images[:count], cells)), size)
        measure(f"{name(cells)}, real images reconstructed", images, real_labels[:count])
    for cells in e.protocol.generated_cells:
        measure(f"{name(cells)}, generated", e.judged(e.generated(cells), size), e.labels_N)
    columns = {"pictures": "{}", "count": "{:,}", "Fréchet distance": "{:.2f}", "diversity": "{:.3f}"}
    title = f"At {name(size)} against {len(real):,} real images, in the classifier's features"
    yield Table(title, columns | {"accuracy": "{:.2%}"}, rows)


def loss(e: Evaluation) -> Iterator[Table]:
    """The mean square error of what the denoiser predicts, at every noise level, with the real label and without."""
    pipe, objective, device = e.pipe, e.pipe.config.denoiser.objective, e.pipe.device
    count, rng = e.protocol.loss, torch.Generator().manual_seed(0)
    mean_C11, std_C11 = (torch.tensor(v).view(-1, 1, 1) for v in (pipe.config.latent_mean, pipe.config.latent_std))
    x0_NChw = torch.cat([latent.tensor for latent in e.encoded(e.real.images[:count], e.base)])
    x0_NChw = ((x0_NChw - mean_C11) / std_C11).to(device)
    weights_NL = one_hot(e.real.labels[:count], len(pipe.labels)).to(device)
    positions, rows = pipe.positions(e.base, 1.0).to(device), []
    for t in progress((torch.arange(LEVELS, dtype=torch.float64) + 0.5) / LEVELS, "loss", "level"):
        alpha_bar_B, squares_K = pipe.config.schedule.alpha_bar(t[None], cells=e.base), torch.zeros(2)
        for x0_BChw, weights_BL in zip(x0_NChw.split(MAX_BATCH), weights_NL.split(MAX_BATCH), strict=True):
            noise_BChw = torch.randn(x0_BChw.shape, generator=rng).to(device)
            inputs = noisy(x0_BChw, noise_BChw, alpha_bar_B), alpha_bar_B.float().expand(len(x0_BChw)).to(device)
            with torch.no_grad():
                tokens_BND = pipe.denoiser.condition(weights_BL)
                prediction_KBChw = pipe.denoiser(*inputs, positions, (tokens_BND, None)).prediction
            error_KBChw = prediction_KBChw - target(objective, x0_BChw, noise_BChw, alpha_bar_B)
            squares_K += error_KBChw.square().flatten(1).sum(dim=1).cpu()
        rows.append((t.item(), *(squares_K / x0_NChw.numel()).tolist()))
    columns = {"t": "{:.3f}", "conditional": "{:.4f}", "null": "{:.4f}"}
    title = f"Mean square error of {objective} against t: {len(x0_NChw)} images, latent {name(e.base)}"
    yield Table(title, columns, rows)
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    t_N, conditional_N, null_N = zip(*rows, strict=True)
    axes.plot(t_N, conditional_N, label="with the label")
    axes.plot(t_N, null_N, label="without")
    axes.set(xlabel="t (0 is clean, 1 is noise)", ylabel=f"mean square error of {objective}", ylim=(0, None))
    axes.legend()
    figure.savefig(file := io.BytesIO(), dpi=120)
    yield Sheet("loss", title, Image.open(file))


def sheets(e: Evaluation) -> Iterator[Sheet]:
    pipe, side = e.pipe, SHEET_SIDE
    labels = list(range(min(SHEET_LABELS, len(pipe.labels))))
    one = pipe.diffuse(labels[len(labels) // 3], latent_size=e.base, seed=0)
    shapes = [(s, s) for s in SHEET_SIZES]
    shapes += [tuple(max(1, round(side * min(1, v))) for v in (h / w, w / h)) for w, h in SHEET_RATIOS]
    pictures = [pipe.resample(one, size=shape)[0] for shape in progress(shapes, "sheets")]
    square = len(SHEET_SIZES)  # shown equally large, with hard pixels
    pictures[:square] = [F.interpolate(p[None], size=side, mode="nearest-exact")[0] for p in pictures[:square]]
    yield Sheet("one_latent", "One latent at many sizes and aspect ratios", contact_sheet(pictures, len(SHEET_SIZES)))

    many = pipe.diffuse(labels * SHEET_SEEDS, latent_size=e.base, seed=0)
    pictures = list(pipe.resample(many, size=(side, side)))
    yield Sheet("labels", f"Every label, seeds down, latent {name(e.base)}", contact_sheet(pictures, len(labels)))

    pictures = []
    for cells in progress(e.protocol.cells, "sheets"):
        pictures += pipe.resample(pipe.diffuse(labels, latent_size=cells, aspect=1.0, seed=0), size=(side, side))
    title = f"Square frames from latents {', '.join(map(name, e.protocol.cells))}, a row each"
    yield Sheet("latents", title, contact_sheet(pictures, len(labels)))

    for ratio in e.protocol.ratios:
        wide = ratio[0] / ratio[1]
        size = frame_size(wide, side // 2)
        pictures = []
        for cells, aspect in [(e.base, None), *((cells, wide) for cells in e.frames(ratio))]:
            latent = pipe.diffuse(labels, latent_size=cells, aspect=aspect, seed=0)
            pictures += pipe.resample(latent, size=size, fit="contain")
        rows = ", ".join(map(name, e.frames(ratio)))
        title = f"{ratio[0]}:{ratio[1]}: resampled from {name(e.base)}, then diffused at {rows}"
        yield Sheet(f"aspect_{ratio[0]}x{ratio[1]}", title, contact_sheet(pictures, len(labels)))


SECTIONS: dict[str, Callable[[Evaluation], Iterator[Table | Sheet]]] = {
    "reconstruction": reconstruction,
    "consistency": consistency,
    "accuracy": digit_accuracy,
    "aspects": aspects,
    "fidelity": fidelity,
    "loss": loss,
    "sheets": sheets,
}


def evaluate(e: Evaluation, sections: Sequence[str], folder: Path, setting: dict) -> None:
    """Runs the sections; prints every table at once and rewrites the report after each section."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = ", ".join(f"{key} {value}" for key, value in setting.items())
    report, lines = {"setting": setting, "protocol": asdict(e.protocol)}, [f"# Evaluation\n\n{settings}\n"]
    print(lines[0])
    for section in sections:
        report[section] = []
        lines.append(f"## {section.capitalize()}\n")
        for item in SECTIONS[section](e):
            if isinstance(item, Sheet):
                item.picture.save(folder / f"{item.name}.png")
            report[section].append(item.plain())
            lines.append(item.markdown() + "\n")
            print(lines[-1], flush=True)
        (folder / "report.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
        (folder / "report.md").write_text("\n".join(lines))


def main(argv: list[str] | None = None, protocol: Protocol = PROTOCOL) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", nargs="+", help="folder such as weights/mnist, or a Hub id; several with --compare")
    parser.add_argument("--compare", action="store_true", help="systems side by side; the first is the reference")
    parser.add_argument("--data", default="ylecun/mnist", help="Hub id, folder of parquet files or image folder")
    parser.add_argument("--split", default="test", choices=("validation", "test"))
    parser.add_argument("--count", type=int, help="real images to measure on (default: all of the split)")
    parser.add_argument("--generated", type=int, default=protocol.generated, help="pictures (default: %(default)s)")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, with commas (default: %(default)s)")
    parser.add_argument("--classifier", default=CLASSIFIER, help="the judge's weights (default: the digits')")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    parser.add_argument("--out", type=Path, help="folder of the report (default: one of its name below runs/)")
    args = parser.parse_args(argv)
    sections = args.only.split(",")
    if unknown := [section for section in sections if section not in SECTIONS]:
        raise ValueError(f"--only {','.join(unknown)}: must be of {', '.join(SECTIONS)}")

    judge = load_classifier(args.classifier)
    if args.compare:
        load, folder = partial(load_images, args.data), args.out or Path("runs/comparison")
        limits = {"limit": args.count, "generated": args.generated}
        compare(args.weights, judge, load, args.split, folder, device=args.device, **limits)
        return
    if len(args.weights) > 1:
        raise ValueError(f"{len(args.weights)} weights: one report is of one; add --compare to put them side by side")
    (weights,) = args.weights
    pipe = Pipeline.from_pretrained(weights, device=args.device)
    load = partial(load_images, args.data, size=pipe.config.training_size, channels=pipe.config.channels)
    real = load(args.split, limit=args.count)
    protocol = protocol if pipe.config.resampler else in_pixels(protocol, pipe.config)
    e = Evaluation(pipe, real, load, judge.to(pipe.device), replace(protocol, generated=args.generated))
    setting = {"weights": Path(weights).name, "split": args.split, "real images": len(real)}
    setting |= {"generated": args.generated, "seeds": f"0…{args.generated - 1}", "device": str(pipe.device)}
    setting |= {key: getattr(pipe.config.defaults, key) for key in ("steps", "guidance", "sampler")}
    evaluate(e, sections, args.out or Path("runs/evaluation") / setting["weights"], setting)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
