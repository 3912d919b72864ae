"""A run of a few small steps, with all kinds of randomness, for tests of the loop and of what drives it."""

from __future__ import annotations

import signal
from pathlib import Path

import torch
from torch import nn

from train.engine.loop import Progress, Run, generator
from train.engine.recipe import Optimisation, Phase
from train.engine.state import load_state

COUNT = 10  # rows of data: with a batch of 4 two batches an epoch
SMALL = Optimisation(
    phases=(Phase(steps=7, rate=(0.02, 0.01)), Phase(steps=5, rate=(0.01, 0.001))), batch=4, warmup=3, save_every=1e9
)


class Blocks(nn.ModuleList):
    """One after another, as models hold theirs."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        for block in self:
            rows = block(rows)
        return rows


class Layer(nn.Linear):
    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return super().forward(rows).tanh()


class SmallLoss(nn.Module):
    """Regression of a fixed function of noisy rows: dropout and noise as well, so all kinds of randomness occur."""

    def __init__(self, *, dropout: float = 0.3, noise: float = 0.01, width: int = 16):
        super().__init__()
        self.noise = noise
        self.model = Blocks((Layer(4, width), nn.Dropout(dropout), nn.Linear(width, 1)))

    def forward(self, rows: torch.Tensor, rng: torch.Generator) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        noisy = rows + self.noise * torch.randn(rows.shape, generator=rng)
        error = (self.model(noisy)[:, 0] - rows.sum(dim=1)).square().mean()
        return error, {"mse": error.detach()}


EXACT = {"dropout": 0.0, "noise": 0.0}  # without draws, so that only the images count


def small(folder: Path | None, optimisation: Optimisation = SMALL, loss_type: type = SmallLoss, **options) -> Run:
    torch.set_num_threads(1)
    torch.manual_seed(optimisation.seed)
    metadata = {"model": {"width": options.get("width", 16)}, "recipe": {"sizes": (1, 2), "accumulate": 1}}
    metadata["recipe"]["accumulate"] = optimisation.accumulate
    loss = loss_type(**options)
    return Run(loss, optimisation, count=COUNT, folder=folder, metadata=metadata, track="none")


def compute(loss, indices, phase, step, part):
    rows = torch.linspace(-1, 1, 4 * COUNT).view(COUNT, 4).cos()
    return loss(rows[indices], generator(SMALL.seed, step, part))


def train(run: Run, *, save_at: int = -1, send: int = 0, at: int = -1) -> list[Progress]:
    """Trains to the end, saves after a step, and sends this process a signal in the middle of another."""

    def computed(loss, indices, phase, step, part):
        if step == at:
            signal.raise_signal(send)
        return compute(loss, indices, phase, step, part)

    seen = []
    for progress in run.train(computed):
        seen.append(progress)
        if progress.step == save_at:
            run.save()
    return seen


class Judged(SmallLoss):
    """With a network that learns beside the model, and is averaged and exported nowhere."""

    def __init__(self, **options):
        super().__init__(**options)
        self.critic = nn.Linear(1, 1)

    def forward(self, rows: torch.Tensor, rng: torch.Generator) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        error, metrics = super().forward(rows, rng)
        return error + (self.critic(error.detach().view(1)) - 3).square().sum(), metrics


def same(first: Path, second: Path) -> bool:
    a, b = load_state(first), load_state(second)
    times = [state.metadata["cost"].pop("seconds") for state in (a, b)]
    assert min(times) > 0 and a.metadata == b.metadata and a.tensors.keys() == b.tensors.keys()
    return all(torch.equal(value, b.tensors[name]) for name, value in a.tensors.items())
