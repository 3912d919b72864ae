"""Rollout phases: what is generated, what it is compared with, and what learns from it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from digits import digits

from r2id import R2ID
from r2id.denoisers.rin import RIN, RINConfig
from r2id.sampler import sample
from train.data.buckets import Shape
from train.data.images import ImageSet
from train.engine.recipe import RolloutConfig
from train.evaluation.classifier import Classifier, to_classifier_size
from train.losses import rollout
from train.losses.latent_space import LatentSpace
from train.losses.rollout import RolloutLoss, energy_distance, frozen_copy, trained_critics

SHAPES = Shape((8, 8), (4, 4)), Shape((8, 14), (4, 6))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def loss_of(pipe, *, model=None, pixels=False, **settings) -> RolloutLoss:
    config, (images, labels) = pipe.config, digits(8)
    torch.manual_seed(0)
    critic = Classifier(1, 10)
    if model is None:
        model = R2ID(config.denoiser)
        model.load_state_dict(pipe.denoiser.state_dict())
    moments = {"mean": (0.0,), "std": (1.0,)} if pixels else {"mean": config.latent_mean, "std": config.latent_std}
    space = LatentSpace(None if pixels else pipe.resampler, **moments, schedule=config.schedule)
    how = {"defaults": config.defaults, "jitter_grid": config.trained_cells[1]}
    return RolloutLoss(model, space, RolloutConfig(real=4, **settings), [critic], images, labels, **how)


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_generated_is_what_a_pipeline_generates(tiny, shape, monkeypatch):
    seen = {}

    def sampled(denoiser, noise, **options):
        seen["noise"], seen["steps"] = noise, len(options["times"]) - 1
        return sample(denoiser, noise, **options)

    monkeypatch.setattr(rollout, "sample", sampled)
    loss = loss_of(tiny, steps=(5, 5), guidance=(1.6, 1.6), learned=(0.3, 0.7))
    labels = torch.arange(20) % 10
    generated = loss.space.restore(loss.generate(labels, shape, rng(3)))
    assert generated.requires_grad and generated.abs().max() <= 1 + 1e-6 and seen["steps"] == 5
    config, times = tiny.config, torch.linspace(1, 0, 6, dtype=torch.float64)
    same = partial(config.schedule.time_at_equal_noise, cells=config.defaults.latent_size, at=shape.cells)
    *_, last = sample(
        tiny.denoiser,
        seen["noise"],
        positions=tiny.positions(shape.cells, shape.aspect),
        tokens=tiny.denoiser.condition(torch.eye(10)[labels]),
        times=times,
        alpha_bars=config.schedule.alpha_bar(times, cells=shape.cells),
        prediction_type=config.denoiser.prediction_type,
        guidance=1.6,
        guidance_interval=tuple(map(same, config.defaults.guidance_interval)),
        clip=loss.space.clip,
    )
    torch.testing.assert_close(generated, loss.space.restore(last.x0))


def test_steps_and_guidance_vary_within_their_ranges(tiny, monkeypatch):
    seen = []
    monkeypatch.setattr(rollout, "sample", lambda *_, **how: seen.append(how) or sample(*_, **how))
    loss = loss_of(tiny, steps=(2, 4), guidance=(1.2, 1.8))
    for seed in range(20):
        loss.generate(torch.arange(2), SHAPES[0], rng(seed))
    assert {len(how["times"]) - 1 for how in seen} == {2, 3, 4}
    guidances = [how["guidance"] for how in seen]
    assert 1.2 <= min(guidances) < 1.35 and 1.65 < max(guidances) <= 1.8


def test_only_the_denoiser_learns_and_it_comes_nearer(tiny):
    loss = loss_of(tiny, steps=(3, 3), guidance=(1.5, 1.5), learned=(0.0, 1.0))
    optimiser, energies = torch.optim.Adam(loss.model.parameters(), 3e-3), []
    for _ in range(12):
        energy, parts = loss(SHAPES[0], rng(), 20)
        optimiser.zero_grad()
        energy.backward()
        optimiser.step()
        energies.append(parts["energy"].item())
    assert energies[-1] < energies[0] - 0.05 and 0 <= parts["read by critics"] <= 1 and parts["images"] == 20
    others = [*loss.space.parameters(), *loss.critics.parameters()]
    assert all(parameter.grad is None for parameter in others)


def test_images_in_bfloat16_are_compared_too(tiny):
    loss, energies = loss_of(tiny, steps=(3, 3), guidance=(1.5, 1.5)), []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            energies.append(loss(SHAPES[0], rng(), 20)[0].item())
    assert energies[0] == pytest.approx(energies[1], rel=0.2)


def test_calls_outside_the_learned_times_leave_no_gradient(tiny):
    labels, learns = torch.arange(10), {}
    for learned in ((0.0, 1.0), (0.3, 0.7), (0.6, 0.7)):
        loss, enabled = loss_of(tiny, steps=(4, 4), guidance=(1.0, 1.0), learned=learned), []
        loss.model.register_forward_pre_hook(lambda *_, to=enabled: to.append(torch.is_grad_enabled()))
        assert loss.generate(labels, SHAPES[0], rng()).requires_grad == any(enabled)
        learns[learned] = enabled
    assert learns[0.0, 1.0] == [True] * 4 and learns[0.3, 0.7] == [False, False, True, False]  # t is 1, ¾, ½, ¼
    assert learns[0.6, 0.7] == [False] * 4


def test_a_step_holds_as_many_of_each_label_as_its_cells_allow(tiny):
    loss = loss_of(tiny, images=60, cells=1024)
    counts = {cells: loss.count((cells, cells)) for cells in (4, 5, 16)}
    assert counts == {4: 60, 5: 40, 16: 20}  # never fewer than two of each
    assert loss.count((4, 4), parts=2) == 30


def test_models_with_a_state_learn_in_pixel_space_too(tiny_pixels):
    torch.manual_seed(0)
    widths = {"interface_width": 16, "latent_width": 16, "num_latents": 4, "blocks": 1}
    model = RIN(RINConfig(latent_channels=1, num_classes=10, patch=2, **widths))
    loss = loss_of(tiny_pixels, model=model, pixels=True, steps=(4, 4), learned=(0.3, 0.8))
    energy, _ = loss(Shape((8, 8), (8, 8)), rng(), 20)
    energy.backward()
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in loss.model.parameters())


def test_the_energy_distance_is_zero_for_one_distribution_only():
    a, b = torch.randn(2, 800, 4, generator=rng())
    assert abs(energy_distance(a, b).item()) < 0.02
    for other in (a + 1, a * 0.5, a * 2):
        assert energy_distance(other, b) > 0.1


def test_a_teacher_is_as_the_model_was_even_after_a_stop(tmp_path):
    model = torch.nn.Linear(2, 2)
    first = frozen_copy(model, tmp_path / "teacher.safetensors")
    before = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.add_(1)
    again = frozen_copy(model, tmp_path / "teacher.safetensors")
    assert torch.equal(first.weight, before) and torch.equal(again.weight, before)
    assert torch.equal(frozen_copy(model, None).weight, before + 1) and not again.weight.requires_grad


def test_critics_are_trained_once_and_differ(tmp_path, capsys):
    images, labels = digits(8)
    small = ImageSet(images, labels, tuple("0123456789"), (0.0,))
    first = trained_critics(RolloutConfig(epochs=1), tmp_path / "critics", small, small)
    assert "1.safetensors: a critic" in capsys.readouterr().out
    again = trained_critics(RolloutConfig(epochs=1), tmp_path / "critics", small, small)
    assert not capsys.readouterr().out
    seen = to_classifier_size(images)
    assert torch.equal(first[0](seen), again[0](seen)) and not torch.equal(first[0](seen), first[1](seen))
    with pytest.raises(ValueError, match="the images have no labels; a classifier needs"):
        trained_critics(RolloutConfig(), tmp_path / "none", replace(small, names=()), small)
