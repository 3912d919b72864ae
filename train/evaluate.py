"""Measures weights by one protocol; prints tables and writes report.json, report.md and sheets of images:

python -m train.evaluate weights/mnist --data PATH [--split validation] [--only accuracy,sheets]
python -m train.evaluate --compare weights/mnist-r2id weights/mnist-s2id … --data PATH     systems side by side
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

from r2id.config import PipelineConfig
from r2id.pipeline import Pipeline
from train.data.images import ImageSet, load_images
from train.engine.cli import chosen_sections, data_arguments, report_arguments, script
from train.evaluation.classifier import judge_of, load_classifier
from train.evaluation.comparison import compare
from train.evaluation.protocol import PROTOCOL, Evaluation, Protocol, in_cells, in_pixels
from train.evaluation.report import SECTIONS, evaluate, present_split


def main(argv: list[str] | None = None, protocol: Protocol = PROTOCOL) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", nargs="+", help="folder such as weights/mnist, or a Hub id; several with --compare")
    parser.add_argument("--compare", action="store_true", help="systems side by side; the first is the reference")
    data_arguments(parser)
    parser.add_argument("--split", default="test", choices=("validation", "test"))
    parser.add_argument("--count", type=int, help="real images to measure on (default: all of the split)")
    parser.add_argument("--generated", type=int, default=protocol.generated, help="images (default: %(default)s)")
    parser.add_argument("--classifier", help="the judge's weights (default: of the weights' name, or the digits')")
    report_arguments(parser, SECTIONS)
    args = parser.parse_args(argv)
    chosen = chosen_sections(args.only, SECTIONS)

    judge_path = Path(args.classifier or judge_of(args.weights[0]))
    judge = load_classifier(judge_path)
    load = partial(load_images, args.data, label_column=args.label_column)
    split = present_split(load, args.split)
    if args.compare:
        limits = {"limit": args.count, "generated": args.generated}
        compare(args.weights, judge, load, split, args.out or Path("runs/comparison"), device=args.device, **limits)
        return
    if len(args.weights) > 1:
        raise ValueError(f"{len(args.weights)} weights: one report is of one; add --compare to put them side by side")
    (weights,) = args.weights
    pipe = Pipeline.from_pretrained(weights, device=args.device)
    load = partial(load_for, pipe.config, args.data, label_column=args.label_column)
    real = load(split, limit=args.count)
    protocol = (in_cells if pipe.config.resampler else in_pixels)(protocol, pipe.config)
    e = Evaluation(pipe, real, load, judge.to(pipe.device), replace(protocol, generated=args.generated))
    setting = {"weights": Path(weights).name, "split": split, "real images": len(real), "judge": judge_path.name}
    setting |= {"generated": args.generated, "seeds": f"0…{args.generated - 1}", "device": str(pipe.device)}
    setting |= {
        key: getattr(pipe.config.defaults, key) for key in ("steps", "guidance", "guidance_interval", "sampler")
    }
    evaluate(e, chosen, args.out or Path("runs/evaluation") / setting["weights"], setting)


def load_for(
    config: PipelineConfig, data: str, split: str, *, limit: int | None = None, label_column: str | None = None
) -> ImageSet:
    """Images at the densities that the weights were trained at, in memory but for a whole training set; of fonts, the
    glyphs that are the weights' labels."""
    options = {"size": config.encoder_size, "density": config.decoder_size, "channels": config.channels}
    options["label_column"] = label_column
    if config.labels and all(len(label) == 1 for label in config.labels):
        options["glyphs"] = "".join(config.labels)
    found = load_images(data, split, limit=limit, **options)
    return found if split == "train" and limit is None else replace(found, images=found.images[:])


if __name__ == "__main__":
    script(main)
