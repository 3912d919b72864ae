"""Trains the classifier that judges generated images, or measures the saved one on the test set:

python -m train.train_judge [--data PATH] [--out FILE] [--epochs N] [--mirror]
python -m train.train_judge --evaluate [--data PATH] [--out FILE]
"""

from __future__ import annotations

import argparse

import torch

from r2id.checkpoint import save_module
from train.data.images import load_images
from train.engine.cli import script
from train.evaluation.classifier import SIZE, accuracy, fit, load_classifier


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="ylecun/mnist", help="Hub id, folder of shards or of images")
    parser.add_argument("--out", default="train/classifiers/mnist.safetensors", help="the weights")
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--mirror", action="store_true", help="left and right do not matter: photographs, not digits")
    parser.add_argument("--evaluate", action="store_true", help="only measure the saved weights")
    arguments = parser.parse_args(argv)
    if not arguments.evaluate:
        train = load_images(arguments.data, "train", size=SIZE)
        validation = load_images(arguments.data, "validation", size=SIZE, channels=train.images.shape[1])
        device = "cuda" if torch.cuda.is_available() else "cpu"
        made = fit(train, validation, epochs=arguments.epochs, device=device, mirror=arguments.mirror)
        save_module(made, arguments.out)
    classifier = load_classifier(arguments.out)
    test = load_images(arguments.data, "test", size=SIZE, channels=classifier.channels)
    print(f"test accuracy {accuracy(classifier, test.images, test.labels):.2%}")


if __name__ == "__main__":
    script(main)
