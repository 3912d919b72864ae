"""Drawn phases: what is drawn, what it is compared with, and who learns from it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from digits import digits

from r2id import R2ID
from r2id.denoisers.rin import RIN, RINConfig
from r2id.sampler import sample
from train.data.buckets import Shape
from train.data.images import ImageSet
from train.evaluation.classifier import Classifier, to_classifier_size
from train.losses.denoiser import DenoiserLoss
from train.losses.rollout import Rollout, RolloutConfig, decode, energy_distance, trained_critics

SHAPES = Shape((8, 8), (4, 4)), Shape((8, 14), (4, 6))


def loss_of(pipe, *, model=None, **rollout) -> DenoiserLoss:
    config, (images, labels) = pipe.config, digits(8)
    torch.manual_seed(0)
    critic = Classifier(1, 10)
    if model is None:
        model = R2ID(config.denoiser)
        model.load_state_dict(pipe.denoiser.state_dict())
    return DenoiserLoss(
        model,
        pipe.resampler,
        schedule=config.schedule,
        background=config.background,
        latent_mean=config.latent_mean,
        latent_std=config.latent_std,
        label_dropout=0.0,
        jitter_grid=config.trained_cells[1],
        rollout=Rollout(RolloutConfig(real=4, **rollout), [critic], images, labels, config.defaults),
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_drawn_is_what_the_sampler_draws(tiny, shape):
    loss = loss_of(tiny, steps=(5, 5), guidance=(1.6, 1.6), learned=(0.3, 0.7))
    labels = torch.arange(20) % 10
    drawn = loss.rollout.draw(loss, labels, shape, torch.Generator().manual_seed(3))
    assert drawn.requires_grad and drawn.abs().max() <= 1
    noise = torch.Generator().manual_seed(3)
    torch.randint(5, 6, (), generator=noise)
    torch.empty(()).uniform_(1.6, 1.6, generator=noise)
    config, times = tiny.config, torch.linspace(1, 0, 6, dtype=torch.float64)
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (config.latent_mean, config.latent_std))
    same = partial(config.schedule.time_at_equal_noise, cells=config.defaults.latent_size, at=shape.cells)
    *_, last = sample(
        tiny.denoiser,
        torch.randn(20, 3, *shape.cells, generator=noise),
        positions=tiny.positions(shape.cells, shape.aspect),
        tokens=tiny.denoiser.condition(torch.eye(10)[labels]),
        times=times,
        alpha_bars=config.schedule.alpha_bar(times, cells=shape.cells),
        prediction_type="v",
        guidance=1.6,
        guidance_interval=tuple(map(same, config.defaults.guidance_interval)),
        clip=lambda x0: ((x0 * std + mean).clamp(-1, 1) - mean) / std,
    )
    torch.testing.assert_close(drawn, last.x0 * std + mean)


@pytest.mark.parametrize("shape", SHAPES)
def test_judged_is_the_central_square_as_it_is_served(tiny, shape):
    latent = tiny.diffuse([1, 2], latent_size=shape.cells, aspect=shape.aspect, seed=0)
    served = tiny.resample(latent, size=(8, 8), fit="cover")
    torch.testing.assert_close((decode(tiny.resampler, latent.tensor, shape.aspect, 8) + 1) / 2, served)


def test_only_the_denoiser_learns_and_it_comes_nearer(tiny):
    loss = loss_of(tiny, steps=(3, 3), guidance=(1.5, 1.5), learned=(0.0, 1.0))
    optimiser, energies = torch.optim.Adam(loss.model.parameters(), 3e-3), []
    for _ in range(12):
        energy, parts = loss(None, None, SHAPES[0], torch.Generator().manual_seed(0), rollout=20)
        optimiser.zero_grad()
        energy.backward()
        optimiser.step()
        energies.append(parts["energy"].item())
    assert energies[-1] < energies[0] - 0.05 and 0 <= parts["read"] <= 1 and parts["images"] == 20
    others = [*loss.resampler.parameters(), *loss.rollout.critics.parameters()]
    assert all(parameter.grad is None for parameter in others)


def test_calls_outside_the_learned_times_leave_no_gradient(tiny):
    loss = loss_of(tiny, steps=(3, 3), learned=(1.5, 2.0))
    assert not loss(None, None, SHAPES[0], torch.Generator().manual_seed(0), rollout=20)[0].requires_grad


def test_a_step_holds_as_many_of_each_label_as_its_cells_allow(tiny):
    drawn = loss_of(tiny, pictures=60, cells=1024).rollout
    counts = {cells: drawn.count((cells, cells)) for cells in (4, 5, 16)}
    assert counts == {4: 60, 5: 40, 16: 20}  # never fewer than two of each
    assert drawn.count((4, 4), parts=2) == 30


def test_pixels_and_models_that_carry_are_drawn_too(tiny_pixels):
    torch.manual_seed(0)
    config = RINConfig(
        latent_channels=1, num_classes=10, patch=2, interface_width=16, latent_width=16, num_latents=4, blocks=1
    )
    own = dict(vars(tiny_pixels.config), latent_mean=(0.0,), latent_std=(1.0,), background=(0.0,))
    pipe = SimpleNamespace(config=SimpleNamespace(**own), resampler=None)
    loss = loss_of(pipe, model=RIN(config), steps=(4, 4), learned=(0.3, 0.8))
    energy, _ = loss(None, None, Shape((8, 8), (8, 8)), torch.Generator().manual_seed(0), rollout=20)
    energy.backward()
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in loss.model.parameters())


def test_the_energy_distance_is_zero_for_one_distribution_only():
    a, b = torch.randn(2, 800, 4, generator=torch.Generator().manual_seed(0))
    assert abs(energy_distance(a, b).item()) < 0.02
    for other in (a + 1, a * 0.5, a * 2):
        assert energy_distance(other, b) > 0.1


def test_critics_are_trained_once_and_differ(tmp_path, capsys):
    images, labels = digits(8)
    small = ImageSet(images, labels, tuple("0123456789"), (0.0,))
    first = trained_critics(RolloutConfig(epochs=1), tmp_path / "critics", small, small)
    assert "1.safetensors: a critic" in capsys.readouterr().out
    again = trained_critics(RolloutConfig(epochs=1), tmp_path / "critics", small, small)
    assert not capsys.readouterr().out
    pictures = to_classifier_size(images)
    assert torch.equal(first[0](pictures), again[0](pictures)) and not torch.equal(
        first[0](pictures), first[1](pictures)
    )
    with pytest.raises(ValueError, match="the images have no labels; a classifier needs"):
        trained_critics(RolloutConfig(), tmp_path / "none", replace(small, names=()), small)
