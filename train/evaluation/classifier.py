"""A small classifier that judges generated images: it reads their labels, and its features give Fréchet distances."""

from __future__ import annotations

import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from r2id.checkpoint import CheckpointError, load_into, load_tensors
from r2id.precision import decoder_dtype
from train.data.images import ImageSet

JUDGES = Path(__file__).parents[1] / "classifiers"
SIZE = 32  # pixels on a side of the images that it judges, unless it was made for others
REDUCTION, DEEPEST = 8, 64  # of the side by the convolutions; their channels at the end
FEATURES = 128
BATCH = 128
RATE, DECAY, SMOOTHING, DROPOUT = 4e-3, 0.02, 0.05, 0.3
SHIFT, TURN, SCALE = 1 / 16, math.radians(10), 0.1  # the largest augmentation: fraction of the side, radians, ratio


class Classifier(nn.Module):
    """Images (B, channels, side, side) in [-1, 1] → logits (B, classes); 0.2 M parameters at 32, 0.6 M at 64."""

    def __init__(self, channels: int, classes: int, *, side: int = SIZE) -> None:
        """side: a multiple of REDUCTION."""
        super().__init__()
        if side < REDUCTION or side % REDUCTION:
            raise ValueError(f"side {side}: must be a multiple of {REDUCTION}")
        self.channels, self.side = channels, side
        self.convolutions = nn.Sequential(
            *_convolution(channels, 24, width=5, stride=2),
            *_convolution(24, 48),
            nn.MaxPool2d(2),
            *_convolution(48, DEEPEST),
            *_convolution(DEEPEST, DEEPEST),
            nn.MaxPool2d(2),
        )
        values = DEEPEST * (side // REDUCTION) ** 2
        self.hidden = nn.Sequential(nn.Dropout(DROPOUT), nn.Linear(values, FEATURES), nn.ReLU())
        self.head = nn.Sequential(nn.Dropout(DROPOUT), nn.Linear(FEATURES, classes))

    def features(self, images_BCHW: Tensor) -> Tensor:
        """The last hidden layer, (B, 128)."""
        return self.hidden(self.convolutions(images_BCHW).flatten(1))

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return self.head(self.features(images_BCHW))


def _convolution(inputs: int, outputs: int, *, width: int = 3, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, width, stride=stride, padding=width // 2, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]


def to_classifier_size(images_BCHW: Tensor, side: int = SIZE) -> Tensor:
    """Any size → side × side, `Classifier.side`: each side area-reduced from above, bilinear from below."""
    height, width = images_BCHW.shape[-2:]
    reduced = F.interpolate(images_BCHW, size=(min(height, side), min(width, side)), mode="area")
    return F.interpolate(reduced, size=(side, side), mode="bilinear", align_corners=False)


def judge_of(weights: str) -> Path:
    """The judge of weights by their name, cifar10's for weights/cifar10-b; where they have none, that of digits."""
    own = JUDGES / f"{Path(weights).name.split('-')[0]}.safetensors"
    return own if own.exists() else JUDGES / "mnist.safetensors"


def load_classifier(path: str | Path) -> Classifier:
    """The saved classifier, ready to judge; its channels, classes and side are those of its weights. Raises
    CheckpointError."""
    tensors = load_tensors(path)
    if not {"convolutions.0.weight", "hidden.1.weight", "head.1.bias"} <= tensors.keys():
        raise CheckpointError(f"{path}: not a classifier; make one with python -m train.train_judge --out {path}")
    side = REDUCTION * max(1, math.isqrt(tensors["hidden.1.weight"].shape[-1] // DEEPEST))
    classifier = Classifier(tensors["convolutions.0.weight"].shape[1], len(tensors["head.1.bias"]), side=side)
    load_into(classifier, path)
    return classifier.eval()


@torch.no_grad()
def accuracy(classifier: Classifier, images_BCHW: Tensor, labels_B: Tensor) -> float:
    """The share of images read as their label. Leaves the classifier in evaluation mode."""
    device = next(classifier.parameters()).device
    classifier.eval()
    guesses = [classifier(part.to(device)).argmax(dim=1).cpu() for part in images_BCHW.split(1000)]
    return (torch.cat(guesses) == labels_B).double().mean().item()


def augment(images_BCHW: Tensor, generator: Generator, *, mirror: bool = False) -> Tensor:
    """Small shifts, turns and changes of scale, one draw an image, and mirrored or not where `mirror` allows it; in
    half the calls also a loss of resolution."""
    count = len(images_BCHW)
    draw = torch.rand(4, count, generator=generator) * 2 - 1
    across, down, turn, scale = draw[0] * SHIFT * 2, draw[1] * SHIFT * 2, draw[2] * TURN, 1 + draw[3] * SCALE
    cos, sin = scale * turn.cos(), scale * turn.sin()
    sign = torch.randint(2, (count,), generator=generator) * 2 - 1 if mirror else 1
    maps_B23 = torch.stack([sign * cos, -sin, across, sign * sin, cos, down], dim=1).reshape(count, 2, 3)
    grid_BHW2 = F.affine_grid(maps_B23, list(images_BCHW.shape), align_corners=False)
    moved = F.grid_sample(images_BCHW, grid_BHW2, padding_mode="border", align_corners=False)
    whole = images_BCHW.shape[-1]
    side = int(torch.randint(whole * 3 // 8, whole * 3 // 2, (), generator=generator))
    if side >= whole:
        return moved
    return to_classifier_size(F.interpolate(moved, size=(side, side), mode="area"), whole)


def fit(
    train: ImageSet,
    validation: ImageSet,
    *,
    epochs: int,
    device: str,
    mirror: bool = False,
    seed: int = 0,
    precision: str = "float32",
) -> Classifier:
    """AdamW, one cycle; prints a line an epoch. The weights are those of the last step. precision: of products, see
    `decoder_dtype`."""
    if not train.names:
        raise ValueError("the images have no labels; a classifier needs a ClassLabel column or one sub-folder a class")
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    _, channels, side, _ = train.images.shape
    classifier = Classifier(channels, len(train.names), side=side).to(device, memory_format=torch.channels_last)
    dtype = decoder_dtype(precision, torch.device(device))
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=RATE, weight_decay=DECAY)
    batches = math.ceil(len(train) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=epochs * batches, pct_start=0.2)
    start = time.monotonic()
    for epoch in range(1, epochs + 1):
        classifier.train()
        total = 0.0
        for rows in torch.randperm(len(train), generator=generator).split(BATCH):
            inputs = augment(train.images[rows], generator, mirror=mirror).to(device)
            labels = train.labels[rows].to(device)
            with torch.autocast(device, dtype, enabled=dtype != torch.float32):
                logits = classifier(inputs)
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(rows)
        held_out, seconds = accuracy(classifier, validation.images, validation.labels), time.monotonic() - start
        loss_mean = total / len(train)
        print(f"epoch {epoch}/{epochs}: loss {loss_mean:.4f}, validation {held_out:.2%}, {seconds:.0f} s", flush=True)
    return classifier.eval()
