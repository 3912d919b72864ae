"""Shared fixtures: a tiny model with random weights, as a pipeline and as a folder."""

from pathlib import Path

import pytest
import torch

from r2id import R2ID, R2IR, Pipeline, PipelineConfig, R2IDConfig, R2IRConfig
from r2id.config import Defaults
from r2id.schedule import Schedule

torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """Every test has its folder as a marker: unit, train, server or browser."""
    for item in items:
        item.add_marker(item.path.relative_to(Path(__file__).parent).parts[0])


@pytest.fixture(scope="session")
def tiny() -> Pipeline:
    """A whole pipeline that answers in milliseconds: the shipped systems, a few channels wide, weights at random."""
    torch.manual_seed(0)
    resampler = R2IRConfig(
        latent_channels=3, width=16, heads=2, encoder_harmonics=2, decoder_harmonics=2, features=4, pixel_width=8
    )
    denoiser = R2IDConfig(latent_channels=3, width=16, heads=2, encoder_blocks=1, decoder_blocks=1, noise_width=8)
    config = PipelineConfig(
        architecture="r2id",
        labels=tuple("0123456789"),
        channels=1,
        background=(0.0,),
        encoder_size=8,
        decoder_size=8,
        trained_cells=(4, 16),
        trained_aspects=(9 / 16, 16 / 9),
        size_multiple=1,
        fit="contain",
        latent_mean=(0.0, 0.1, -0.1),
        latent_std=(0.5, 0.4, 0.3),
        schedule=Schedule(),
        defaults=Defaults(steps=4, latent_size=(4, 4)),
        resampler=resampler,
        denoiser=denoiser,
    )
    model = R2ID(denoiser)
    for parameter in model.parameters():  # zero-initialised layers would make every image the same
        torch.nn.init.normal_(parameter, std=0.2)
    return Pipeline(config, R2IR(resampler), model, device="cpu", decoder_dtype="float32")


@pytest.fixture(scope="session")
def tiny_pixels() -> Pipeline:
    """The same in pixel space, in colour: without a resampler, on a background that is not black."""
    torch.manual_seed(0)
    denoiser = R2IDConfig(latent_channels=3, width=16, heads=2, encoder_blocks=1, decoder_blocks=1, noise_width=8)
    config = PipelineConfig(
        architecture="r2id",
        labels=tuple("0123456789"),
        channels=3,
        background=(0.25, 0.5, 1.0),
        encoder_size=8,
        decoder_size=8,
        trained_cells=(8, 8),
        trained_aspects=(1.0, 1.0),
        size_multiple=1,
        fit="contain",
        latent_mean=(0.0, 0.0, 0.0),
        latent_std=(1.0, 1.0, 1.0),
        schedule=Schedule(shift_power=0.0),
        defaults=Defaults(steps=2, latent_size=(8, 8)),
        denoiser=denoiser,
    )
    model = R2ID(denoiser)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return Pipeline(config, None, model, device="cpu")


@pytest.fixture(scope="session")
def tiny_weights(tiny, tmp_path_factory):
    """That pipeline saved as a folder, `weights/tiny`."""
    folder = tmp_path_factory.mktemp("weights") / "tiny"
    tiny.save(folder)
    return folder
