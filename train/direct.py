"""Fits R2IR's direct path alone before all else is trained: a linear codec, which takes a minute and spares hours."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from tqdm import tqdm

from r2id.position import grid_positions
from r2id.resampler import local_coefficients, read_direct
from train.data import ImageSet
from train.loop import Run, generator
from train.losses import Law, ResamplerLoss, pad_to

RATE = 2e-2
POINTS = 256  # of each picture, that are compared


def fit_direct(run: Run, loss: ResamplerLoss, train: ImageSet, law: Law, *, size: int, steps: int) -> float:
    """Trains `loss.model.direct` in place, the same in every process. → mean square error of the last step."""
    model, device, seed = loss.model, run.accelerator.device, run.optimisation.seed
    optimiser = torch.optim.Adam(model.direct.parameters(), betas=(0.9, 0.95))
    bar = tqdm(range(steps), "direct path", dynamic_ncols=True, disable=not run.accelerator.is_main_process)
    for step in bar:
        optimiser.param_groups[0]["lr"] = RATE * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        rng = generator(seed, step)
        shape = law.draw(size, generator=rng)
        canvas_BCHW = pad_to(train.images[run.batch(step)].to(device), shape.canvas, loss.background)
        pixels, cells = (grid_positions(side, shape.aspect).to(device) for side in (shape.canvas, shape.cells))
        local_BMF = local_coefficients(canvas_BCHW.flatten(2).transpose(1, 2), pixels, shape.cells, model.basis)
        before_BMc = model.direct.encode(local_BMF, cells)
        colour_BNC, pixels = loss.pixels(canvas_BCHW, shape, POINTS, rng, loss.margin)
        decoded_BNC = read_direct(model.direct.memory(torch.tanh(before_BMc), cells), pixels, model.basis)
        error = F.mse_loss(decoded_BNC, colour_BNC)
        optimiser.zero_grad()
        (error + loss.penalty * before_BMc.square().mean()).backward()
        optimiser.step()
        bar.set_postfix({"mse": f"{error.item():.4f}"}, refresh=False)
    return error.item()
