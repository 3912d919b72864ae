"""Trains the classifier that judges generated images, or measures the saved one on the test set:

python -m train.train_judge [--data PATH] [--out FILE] [--epochs N] [--size 64] [--glyphs ABC] [--mirror]
python -m train.train_judge --evaluate [--data PATH] [--out FILE]
"""

from __future__ import annotations

import argparse
from functools import partial

import torch

from r2id.checkpoint import save_module
from train.data.fonts import CAPITALS
from train.data.images import load_images
from train.engine.cli import data_arguments, script
from train.evaluation.classifier import SIZE, accuracy, fit, load_classifier
from train.evaluation.report import present_split


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data_arguments(parser)
    parser.add_argument("--out", default="train/classifiers/mnist.safetensors", help="the weights")
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--size", type=int, default=SIZE, help="pixels a side that it judges (default: %(default)s)")
    parser.add_argument("--glyphs", default=CAPITALS, help="characters of fonts (default: %(default)s)")
    parser.add_argument("--mirror", action="store_true", help="left and right do not matter: photographs, not digits")
    parser.add_argument("--evaluate", action="store_true", help="only measure the saved weights")
    arguments = parser.parse_args(argv)
    load = partial(load_images, arguments.data, glyphs=arguments.glyphs, label_column=arguments.label_column)
    split = present_split(load, "test")
    if not arguments.evaluate:
        train = load("train", size=arguments.size)
        validation = load("validation", size=arguments.size, channels=train.images.shape[1])
        device = "cuda" if torch.cuda.is_available() else "cpu"
        options = {"epochs": arguments.epochs, "device": device, "mirror": arguments.mirror, "precision": "auto"}
        save_module(fit(train, validation, **options), arguments.out, torch.float16)
    classifier = load_classifier(arguments.out)
    test = load(split, size=classifier.side, channels=classifier.channels)
    print(f"{split} accuracy {accuracy(classifier, test.images, test.labels):.2%}")


if __name__ == "__main__":
    script(main)
