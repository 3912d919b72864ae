"""Another denoiser is one file and one line: what `Denoiser` asks for is enough for pipelines, files and recipes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from r2id import Pipeline
from r2id.condition import LabelCondition
from r2id.denoisers import DENOISERS
from r2id.denoisers.output import DenoiserOutput
from r2id.limits import check_model, ranged


@dataclass(frozen=True)
class ToyConfig:
    latent_channels: int = ranged(3, 1, 64)
    num_classes: int = ranged(10, 0, 100)
    kernel: int = ranged(3, 1, 9)
    prediction_type: str = "v"
    jitter: float = 0.0
    size_multiple: int = 1

    def __post_init__(self):
        check_model(self)


class Toy(nn.Module):
    """One convolution, shifted by the condition."""

    def __init__(self, config: ToyConfig):
        super().__init__()
        self.config = config
        self.condition = LabelCondition(config.num_classes, tokens=1, width=config.latent_channels)
        self.mix = nn.Conv2d(config.latent_channels, config.latent_channels, config.kernel, padding="same")

    def forward(
        self, noisy_BCHW: Tensor, alpha_bar_B: Tensor, positions, conditions: Sequence, recurrent_state=None
    ) -> DenoiserOutput:
        shift_RC = self.condition.rows(conditions, len(noisy_BCHW)).mean(dim=1)
        shift_KBC11 = shift_RC.unflatten(0, (len(conditions), -1))[..., None, None]
        return DenoiserOutput(self.mix(noisy_BCHW) + shift_KBC11)


@pytest.fixture
def toy(tiny, monkeypatch) -> Pipeline:
    monkeypatch.setitem(DENOISERS, "toy", (ToyConfig, Toy))
    torch.manual_seed(0)
    config = replace(tiny.config, architecture="toy", denoiser=ToyConfig())
    return Pipeline(config, tiny.resampler, Toy(config.denoiser), device="cpu", decoder_dtype="float32")


def test_a_new_denoiser_diffuses_and_survives_its_files(toy, tmp_path):
    latent = toy.diffuse([3, None], guidance=2.0, steps=3, seed=0)
    toy.save(tmp_path)
    loaded = Pipeline.from_pretrained(tmp_path, device="cpu")
    assert loaded.config == toy.config and isinstance(loaded.denoiser, Toy)
    assert torch.equal(loaded.diffuse([3, None], guidance=2.0, steps=3, seed=0).tensor, latent.tensor)
    assert not torch.allclose(latent.tensor[0], latent.tensor[1])
    assert toy.resample(latent, size=(9, 7)).shape == (2, 1, 9, 7)


def test_its_configuration_is_checked_and_belongs_to_its_name(toy, tiny):
    with pytest.raises(ValueError, match="kernel 10: must be a whole number, 1…9"):
        ToyConfig(kernel=10)
    with pytest.raises(ValueError, match="denoiser: must be the configuration of toy"):
        replace(toy.config, denoiser=tiny.config.denoiser)


@pytest.mark.parametrize("architecture", DENOISERS)
def test_every_denoiser_is_what_the_protocol_says(architecture):
    config_type, model_type = DENOISERS[architecture]
    config = config_type()
    for name in ("latent_channels", "num_classes", "prediction_type", "size_multiple", "jitter"):
        assert hasattr(config, name), name
    model = model_type(config)
    assert model.config is config and model.condition.num_classes == config.num_classes
