"""The loss of a resampler's recipe, and what a step of its training computes; for both kinds of resampler."""

from __future__ import annotations

from torch import nn

from r2id.pipeline import Pipeline
from train.data.images import ImageSet
from train.engine.cli import draw
from train.engine.loop import Compute, Run
from train.engine.recipe import CrossAttentionRecipe, ResamplerRecipe, shape_sampler_of
from train.losses.adversarial import AdversarialLoss
from train.losses.cross_attention import CrossAttentionLoss
from train.losses.perceptual import PerceptualLoss
from train.losses.resampler import ResamplerLoss, targets_of


def resampler_loss(recipe: ResamplerRecipe, model: nn.Module, train: ImageSet, teacher: str | None) -> nn.Module:
    phases = recipe.optimisation.phases
    return ResamplerLoss(
        model,
        background=train.background or (0.0,) * recipe.model.channels,
        lattice=recipe.lattice,
        outside_fraction=recipe.outside_fraction,
        teacher=teacher and teacher_of(teacher, recipe),
        perceptual=PerceptualLoss() if any(phase.perceptual for phase in phases) else None,
        adversarial=AdversarialLoss(recipe.model.channels) if any(phase.adversarial for phase in phases) else None,
    )


def teacher_of(weights: str, recipe: ResamplerRecipe) -> nn.Module:
    """The resampler of exported weights. Raises ValueError for one whose latents are others than the recipe's."""
    pipe = Pipeline.from_pretrained(weights, device="cpu")
    has = (pipe.config.latent_channels, pipe.config.channels, pipe.config.encoder_size)
    needed = (recipe.model.latent_channels, recipe.model.channels, recipe.encoder_size)
    if pipe.resampler is None or has != needed:
        raise ValueError(
            f"--teacher {weights}: has {has[0]} latent channels, {has[1]} channels, encoder_size {has[2]}; "
            f"the recipe has {needed[0]}, {needed[1]} and {needed[2]}"
        )
    return pipe.resampler


def resampler_step(recipe: ResamplerRecipe, training: Run, train: ImageSet) -> Compute:
    seed, device = recipe.optimisation.seed, training.accelerator.device
    frame = None if recipe.native_aspect else recipe.encoder_size

    def compute(loss, indices, phase, step, part):
        shape, rng = draw(shape_sampler_of(recipe, phase), seed, step, part, size=frame, device=device)
        images = train.images[indices]
        targets = images if train.targets is None else train.targets[indices]
        buckets = shape.buckets(images, background_C)
        how = {"decoder_only": phase.decoder_only, "latent_noise": phase.latent_noise}
        how |= {"perceptual_weight": phase.perceptual, "adversarial_weight": phase.adversarial}
        how |= {"lattice": phase.lattice}
        return loss(buckets, targets_of(buckets, targets), rng, **how)

    background_C = training.accelerator.unwrap_model(training.loss).background
    return compute


def cross_attention_loss(recipe: CrossAttentionRecipe, model: nn.Module, train: ImageSet) -> nn.Module:
    return CrossAttentionLoss(
        model,
        background=train.background or (0.0,) * recipe.model.channels,
        jitter=recipe.jitter,
        pre_tanh_l2=recipe.pre_tanh_l2,
        outside_fraction=recipe.outside_fraction,
    )


def cross_attention_step(recipe: CrossAttentionRecipe, training: Run, train: ImageSet) -> Compute:
    seed, device = recipe.optimisation.seed, training.accelerator.device
    frame = None if recipe.native_aspect else recipe.training_size

    def compute(loss, indices, phase, step, part):
        shape, rng = draw(shape_sampler_of(recipe, phase), seed, step, part, size=frame, device=device)
        how = {"consistency": phase.consistency, "decoder_only": phase.decoder_only}
        return loss(train.images[indices], shape, phase.pixels_in, phase.pixels_out, rng, **how)

    return compute
