"""What each stage minimises."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from r2id.condition import one_hot
from r2id.interpolation import resize
from r2id.position import (
    Positions,
    batched,
    grid_positions,
    jitter,
    points,
    read_colours,
    relative_scale,
    training_pitch,
)
from r2id.resampler import R2IR
from r2id.schedule import MIN_NOISE, Schedule, noise_from, noisy, target
from train.data.buckets import Group, OwnFrames, Shape, aspect_of
from train.losses.rollout import Drawn

MARGIN_REACH = 2.0  # relative units from the centre that margin points cover: outputs of 1:4 to 4:1
ENCODED = 500  # pictures at once, where latents of all are kept
WHOLE = 32  # pixels whose centre is compared with their mean, each step and picture
JITTERS = ("true", "published", "none")


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Batches one after another; one alone keeps its memory layout."""
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def stacked(read: list[tuple[Tensor, Positions]]) -> tuple[Tensor, Positions]:
    """Colours (B, N, C) and positions of every size → of all."""
    colours, positions = zip(*read, strict=True)
    return joined(colours), batched(positions, [len(colour_BNC) for colour_BNC in colours])


def mean_of(
    groups: list[Group], losses: Iterable[tuple[Tensor, dict[str, Tensor]]]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and parts of it of each group → of all pictures."""
    total, pictures = {}, sum(len(group) for group in groups)
    for group, (loss, parts) in zip(groups, losses, strict=True):
        for key, value in {"loss": loss, **parts}.items():
            total[key] = total.get(key, 0) + value * (len(group) / pictures)
    return total.pop("loss"), total


class ResamplerLoss(nn.Module):
    """Reconstruction at random points of the plane, from random pixels of the frame."""

    def __init__(
        self,
        model: R2IR,
        *,
        background: tuple[float, ...],
        jitter: str,
        penalty: float,
        margin: float,
    ):
        """jitter: "true" moves a point and reads the colour there, "published" keeps the old colour, "none".
        penalty: weight of the mean square before tanh. margin: share of the points out drawn around the frame."""
        super().__init__()
        if jitter not in JITTERS:
            raise ValueError(f"jitter {jitter!r}: must be one of {', '.join(JITTERS)}")
        if margin and jitter == "published":
            raise ValueError(f"margin {margin}: must be 0 with the published jitter, which keeps a pixel's old colour")
        self.model, self.jitter, self.penalty, self.margin = model, jitter, penalty, margin
        self.register_buffer("background", torch.tensor(background) * 2 - 1, persistent=False)

    def forward(
        self,
        images: Tensor | list[Tensor],
        shape: Shape | OwnFrames,
        pixels_in: int,
        pixels_out: int,
        generator: torch.Generator,
        *,
        consistency: float = 0.0,
        decoder_only: bool = False,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Pictures in [-1, 1] → loss, parts of it. pixels_in and pixels_out: how many random pixels, 0 for all.

        consistency: weight of the mean square between a pixel's centre and the mean over the pixel, which is what
        outputs of different sizes disagree by. decoder_only: the encoder learns nothing.
        """
        groups = shape.groups(images, self.background)
        if pixels_out == 0:  # all of a picture are another number for every size
            groups = [alone for group in groups for alone in group.sizes()]
        how = pixels_in, pixels_out, generator, consistency, decoder_only
        return mean_of(groups, (self.of(group, *how) for group in groups))

    def of(
        self,
        group: Group,
        pixels_in: int,
        pixels_out: int,
        generator: torch.Generator,
        consistency: float,
        decoder_only: bool,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        most = max(math.prod(canvas_BCHW.shape[2:]) for canvas_BCHW in group.canvases)
        as_used = self.jitter == "true"  # the encoder gets all pixels where they are

        def encode(part: Group) -> Tensor:
            count = min(pixels_in, most)
            read = [self.pixels(canvas_BCHW, count, generator, exact=as_used) for canvas_BCHW in part.canvases]
            return self.model.encode(*stacked(read), part.positions)

        with torch.set_grad_enabled(torch.is_grad_enabled() and not decoder_only):
            latent_BChw = joined([encode(part) for part in ([group] if pixels_in else group.sizes())])
        count, whole = min(pixels_out, most), consistency > 0
        read = [self.targets(canvas_BCHW, count, generator, whole=whole) for canvas_BCHW in group.canvases]
        colour_BNC, pixels = stacked(read)
        decoded_BNC = self.model.decode(self.model.memory(torch.tanh(latent_BChw), group.positions), pixels)
        error = F.mse_loss(decoded_BNC, colour_BNC)
        loss, metrics = error + self.penalty * latent_BChw.square().mean(), {"mse": error.detach()}
        if consistency:
            disagreement = inconsistency(decoded_BNC[:, -5 * WHOLE :])
            loss, metrics["inconsistency"] = loss + consistency * disagreement, disagreement.detach()
        return loss, metrics

    def targets(
        self, canvas_BCHW: Tensor, count: int, generator: torch.Generator, *, whole: bool
    ) -> tuple[Tensor, Positions]:
        """What is decoded: `pixels`, then, if asked for, the points of `whole_pixels`."""
        colour_BNC, pixels = self.pixels(canvas_BCHW, count, generator, self.margin)
        if whole:
            whole_BN2 = self.whole_pixels(canvas_BCHW, generator)
            whole_BNC = read_colours(canvas_BCHW, whole_BN2, self.background)
            colour_BNC = torch.cat((colour_BNC, whole_BNC), dim=1)
            absolute_BN2 = pixels.absolute.expand(len(canvas_BCHW), -1, -1)
            pixels = points(torch.cat((absolute_BN2, whole_BN2), dim=1), aspect_of(canvas_BCHW))
        return colour_BNC, pixels

    def pixels(
        self,
        canvas_BCHW: Tensor,
        count: int,
        generator: torch.Generator,
        margin: float = 0.0,
        *,
        exact: bool = False,
    ) -> tuple[Tensor, Positions]:
        """Colours (B, N, C) at `count` random pixels each (0: at all; of more than there are, some again), jittered
        unless all are taken exactly; the last `margin` of them anywhere in the plane that an output from 1:4 to 4:1 can
        show."""
        batch, channels, height, width = canvas_BCHW.shape
        aspect, device, every = aspect_of(canvas_BCHW), canvas_BCHW.device, height * width
        grid = grid_positions((height, width), aspect, sigma=self.model.config.footprint)
        colour_BNC = canvas_BCHW.flatten(2).transpose(1, 2)
        if (exact or self.jitter == "none") and count == 0 and not margin:
            return colour_BNC, grid.to(device)
        drawn_on = generator.device
        absolute_BN2 = grid.absolute.to(drawn_on).expand(batch, -1, -1)  # stays there until all is drawn
        if count not in (0, every):
            copies = -(-count // every)
            order_BN = torch.rand(batch, copies * every, generator=generator, device=drawn_on)
            drawn_BN = order_BN.topk(count, dim=1).indices % every
            absolute_BN2 = absolute_BN2.gather(1, drawn_BN[..., None].expand(-1, -1, 2))
            colour_BNC = colour_BNC.gather(1, drawn_BN[..., None].to(device).expand(-1, -1, channels))
        if self.jitter != "none":
            absolute_BN2 = jitter(absolute_BN2, (1 / width, 1 / height), 0.5, generator)
        if margin:
            around_BN2 = self.around(batch, round(margin * absolute_BN2.shape[1]), aspect, generator)
            kept = absolute_BN2.shape[1] - around_BN2.shape[1]
            absolute_BN2 = torch.cat((absolute_BN2[:, :kept], around_BN2), dim=1)
        absolute_BN2 = absolute_BN2.to(device)
        if self.jitter == "true" or margin:
            colour_BNC = read_colours(canvas_BCHW, absolute_BN2, self.background)
        return colour_BNC, points(absolute_BN2, aspect)

    @staticmethod
    def whole_pixels(canvas_BCHW: Tensor, generator: torch.Generator) -> Tensor:
        """Points (B, 5·WHOLE, 2): of each of WHOLE random pixels its centre, then its four Gauss points, whose mean is
        the mean over the pixel of anything up to a cubic."""
        device = generator.device
        sides = torch.tensor((canvas_BCHW.shape[3], canvas_BCHW.shape[2]), device=device)
        corner_BW12 = (torch.rand(len(canvas_BCHW), WHOLE, 1, 2, generator=generator, device=device) * sides).floor()
        gauss = 0.5 / math.sqrt(3)
        offsets = torch.tensor([(0.0, 0.0), *((x, y) for x in (-gauss, gauss) for y in (-gauss, gauss))], device=device)
        return ((corner_BW12 + 0.5 + offsets) / sides - 0.5).flatten(1, 2).to(canvas_BCHW.device)

    @staticmethod
    def around(batch: int, count: int, aspect: float, generator: torch.Generator) -> Tensor:
        """Points (B, N, 2) of the cross that wide and tall outputs show of the frame's plane."""
        device = generator.device
        absolute_BN2 = torch.rand(batch, count, 2, generator=generator, device=device) - 0.5
        reach = 2 * MARGIN_REACH / absolute_BN2.new_tensor(relative_scale(aspect))
        wide = torch.rand(batch, count, 1, generator=generator, device=device) < 0.5
        return absolute_BN2 * torch.where(torch.cat((wide, ~wide), dim=-1), reach, 1.0)


def inconsistency(decoded_BNC: Tensor) -> Tensor:
    """Colours at `whole_pixels` → mean square between centre and mean of a pixel."""
    centre, *gauss = decoded_BNC.unflatten(1, (-1, 5)).unbind(2)
    return F.mse_loss(sum(gauss) / len(gauss), centre)


def encode(resampler: R2IR, canvas_BCHW: Tensor, cells: tuple[int, int]) -> Tensor:
    """Pictures in [-1, 1] that fill the frame → latents (B, c, h, w), from all their pixels."""
    height, width = canvas_BCHW.shape[2:]
    pixels = grid_positions((height, width), width / height, sigma=resampler.config.footprint)
    colour_BNC = canvas_BCHW.flatten(2).transpose(1, 2)
    device = canvas_BCHW.device
    cells = grid_positions(cells, width / height).to(device)
    return torch.tanh(resampler.encode(colour_BNC, pixels.to(device), cells))


class DenoiserLoss(nn.Module):
    """Mean square of the objective at every scale the model predicts, on latents of whole pictures: encoded by a frozen
    resampler, or without one (pixel space) the pictures themselves at the latent's size."""

    def __init__(
        self,
        model: nn.Module,
        resampler: R2IR | None,
        *,
        schedule: Schedule,
        background: tuple[float, ...],
        latent_mean: tuple[float, ...],
        latent_std: tuple[float, ...],
        label_dropout: float,
        finest: int,
        warm_start: float = 0.0,
        draws: int = 1,
        logit_normal: tuple[float, float] | None = None,
        stable: tuple[Tensor, Tensor] | None = None,
        stable_cells: int = 0,
        drawn: Drawn | None = None,
    ):
        """finest: cells on the short side of the training grid whose pitch the model's jitter is measured in.
        warm_start: share of the steps that begin from the carry of a pass without gradient.
        draws: of time and noise for each picture of a step, which is encoded once.
        logit_normal: mean and deviation of logit t (Esser et al. 2024); None: t is uniform.
        stable: all training pictures (N, C, H, W), square ones, and their labels. Where frame and latent are square
        and have at most `stable_cells` on a side, what is wanted is what `posterior_mean` makes of all their latents,
        which are encoded when first asked for and kept: 4·N·c·h·w bytes. drawn: what drawn phases minimise."""
        super().__init__()
        self.model, self.schedule, self.label_dropout = model, schedule, label_dropout
        self.finest, self.warm_start, self.draws, self.logit_normal = finest, warm_start, draws, logit_normal
        self.stable, self.stable_cells, self.kept, self.drawn = stable, stable_cells, {}, drawn
        self.resampler = resampler and resampler.requires_grad_(False).eval()
        self.register_buffer("background", torch.tensor(background) * 2 - 1, persistent=False)
        self.register_buffer("mean", torch.tensor(latent_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(latent_std).view(-1, 1, 1), persistent=False)

    def forward(
        self,
        images: Tensor | list[Tensor],
        label_B: Tensor,
        shape: Shape | OwnFrames,
        generator: torch.Generator,
        place_B: Tensor | None = None,
        drawn: int = 0,
        teacher: nn.Module | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Pictures in [-1, 1], labels (-1: none) → loss, parts of it. Times are stratified over all draws, and
        those of one picture lie far apart. place_B: of the pictures among the `stable` ones. drawn: as many pictures
        are drawn instead, and judged. teacher: another such model, whose prediction is what is wanted."""
        if drawn:
            return self.drawn(self, shape, generator, drawn)
        count, groups = self.draws * len(images), shape.groups(images, self.background)
        within = torch.rand(count, generator=generator, device=generator.device)
        within = within.to("cpu" if within.device.type == "mps" else within.device, torch.float64)  # which MPS lacks
        t_RB = ((torch.arange(count, device=within.device) + within) / count).view(self.draws, -1)
        if self.logit_normal:
            mean, deviation = self.logit_normal
            t_RB = torch.sigmoid(mean + deviation * torch.special.ndtri(t_RB))
        parts = (self.of(g, label_B[g.places], t_RB[:, g.places], generator, place_B, teacher) for g in groups)
        return mean_of(groups, parts)

    def of(
        self,
        group: Group,
        label_B: Tensor,
        t_RB: Tensor,
        generator: torch.Generator,
        place_B: Tensor | None,
        teacher: nn.Module | None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Of the pictures of a group, which have one shape of latents; rows are their first draws, then the second."""
        t_B, label_B, device, drawn_on = t_RB.flatten(), label_B.repeat(self.draws), label_B.device, generator.device
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            every_NChw = self.every(group)
            if every_NChw is None:
                x0_BChw = joined([self.latents(canvas_BCHW, group.cells) for canvas_BCHW in group.canvases])
            else:
                x0_BChw = every_NChw[place_B.to(device)]
            x0_BChw = x0_BChw.repeat(self.draws, 1, 1, 1)
        alpha_bar_B = self.schedule.alpha_bar(t_B, cells=group.cells)
        noise_BChw = torch.randn(x0_BChw.shape, generator=generator, device=drawn_on).to(device)
        dropped_B = (torch.rand(len(t_B), generator=generator, device=drawn_on) < self.label_dropout).to(device)
        tokens_BND = self.model.condition(one_hot(label_B, self.model.condition.labels, dropped_B=dropped_B))
        positions = self.positions(group, generator).repeat(self.draws)
        noisy_BChw = noisy(x0_BChw, noise_BChw, alpha_bar_B)
        inputs = noisy_BChw, alpha_bar_B.to(device), positions, (tokens_BND,)
        carry = None
        if self.warm_start and torch.rand((), generator=generator, device=drawn_on) < self.warm_start:
            with torch.no_grad():
                carry = self.model(*inputs).carry
        output = self.model(*inputs, carry)
        if every_NChw is not None:
            with torch.no_grad(), torch.autocast(device.type, enabled=False):
                unlabelled_B = dropped_B | (label_B < 0)
                allowed_BN = unlabelled_B[:, None] | (label_B[:, None] == self.stable[1].to(device))
                x0_BChw = posterior_mean(noisy_BChw, alpha_bar_B, every_NChw, allowed_BN)
                noise_BChw = noise_from(x0_BChw, noisy_BChw, alpha_bar_B)
        wanted_BChw = target(self.model.config.objective, x0_BChw, noise_BChw, alpha_bar_B)
        if teacher:
            with torch.no_grad():
                wanted_BChw = teacher(*inputs, carry).prediction[0]
        error = F.mse_loss(output.prediction[0], wanted_BChw)
        coarser = (coarse_error(prediction_KBChw[0], wanted_BChw) for prediction_KBChw in output.pyramid)
        return error + sum(coarser), {"mse": error.detach()}

    def latents(self, canvas_BCHW: Tensor, cells: tuple[int, int]) -> Tensor:
        """Pictures that fill the frame → latents (B, C, h, w) as the model sees them, clean."""
        latent_BChw = encode(self.resampler, canvas_BCHW, cells) if self.resampler else resize(canvas_BCHW, cells)
        return (latent_BChw - self.mean) / self.std

    def every(self, group: Group) -> Tensor | None:
        """Clean latents (N, C, h, w) of all training pictures, where those of the group have stable targets."""
        (height, width), frames = group.cells, group.canvases
        if height != width or height > self.stable_cells or len(frames) > 1 or aspect_of(frames[0]) != 1:
            return None
        if group.cells not in self.kept:
            parts = (part.to(frames[0].device) for part in self.stable[0].split(ENCODED))
            self.kept[group.cells] = torch.cat([self.latents(part, group.cells) for part in parts])
        return self.kept[group.cells]

    def positions(self, group: Group, generator: torch.Generator) -> Positions:
        """The cells' centres, each moved by the model's jitter; as published, what is in a cell stays the same."""
        sigma = self.model.config.jitter
        if not sigma:
            return group.positions
        moved = []
        for aspect, count in zip(group.aspects, group.counts, strict=True):
            absolute_BM2 = grid_positions(group.cells, aspect).absolute.to(generator.device).expand(count, -1, -1)
            moved.append(points(jitter(absolute_BM2, training_pitch(aspect, self.finest), sigma, generator), aspect))
        return batched(moved, group.counts).to(group.canvases[0].device)


def posterior_mean(noisy_BChw: Tensor, alpha_bar_B: Tensor, latent_NChw: Tensor, allowed_BN: Tensor) -> Tensor:
    """Noisy latents (B, C, h, w) at ᾱ (B,) → the mean of the latents (N, C, h, w) that may (B, N) be behind each, by
    how likely they are: the stable target field (Xu, Tong & Jaakkola 2023). Over a whole training set its minimiser is
    that of the plain target, without the variance, which at much noise hides what pictures have in common."""
    noisy_BD, latent_ND = noisy_BChw.flatten(1), latent_NChw.flatten(1)
    signal_B1, noise_B1 = (v[:, None].to(noisy_BD) for v in (alpha_bar_B, (1 - alpha_bar_B).clamp(min=MIN_NOISE)))
    likely_BN = signal_B1.sqrt() * (noisy_BD @ latent_ND.T) - signal_B1 / 2 * latent_ND.square().sum(dim=1)
    share_BN = (likely_BN / noise_B1).masked_fill(~allowed_BN, -math.inf).softmax(dim=1)
    (most_B1, place_B1), mean_BD = share_BN.max(dim=1, keepdim=True), share_BN @ latent_ND
    return torch.where(most_B1 > 0.9999, latent_ND[place_B1[:, 0]], mean_BD).view_as(noisy_BChw)  # exact in TF32 too


def coarse_error(coarse_BChw: Tensor, wanted_BCHW: Tensor) -> Tensor:
    """Mean square at a scale coarser by k, times 1 / k². The target is summed over k × k and divided by k: so noise
    keeps unit variance (Liu et al. 2024)."""
    k = wanted_BCHW.shape[-1] // coarse_BChw.shape[-1]
    return F.mse_loss(coarse_BChw, F.avg_pool2d(wanted_BCHW, k) * k) / k**2
