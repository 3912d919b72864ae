"""What is measured of faces, where no judge is needed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from train.evaluate_faces import main, upper_octave


def wave(frequency: float, across: bool = True) -> Tensor:
    """An image (1, 1, 64, 64) in [0, 1] with so many cycles a pixel."""
    line = 0.5 + 0.5 * torch.sin(2 * torch.pi * frequency * torch.arange(64))
    return (line.expand(64, 64) if across else line[:, None].expand(64, 64))[None, None]


@pytest.mark.parametrize("across", [True, False])
def test_the_upper_octave_begins_at_a_quarter_of_the_sampling_rate(across):
    low, high = (upper_octave(wave(frequency, across)) for frequency in (0.2, 0.3))
    assert high > 1e-3 and low < 1e-3 * high


def test_an_images_edges_and_its_brightness_have_no_energy():
    """A ramp's opposite edges differ, which without a window would be detail."""
    ramp = torch.linspace(0, 1, 64).expand(1, 1, 64, 64)
    assert upper_octave(ramp) < 1e-5 * upper_octave(wave(0.3))
    noise = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert upper_octave(noise + 5) == pytest.approx(upper_octave(noise), rel=1e-3)
    assert upper_octave(0.5 * noise) == pytest.approx(0.25 * upper_octave(noise))


def test_an_unknown_section_is_named_before_anything_is_loaded():
    with pytest.raises(
        ValueError, match="--only hair: must be of reconstruction, likeness, pose, closest, cost, sheets"
    ):
        main(["nowhere", "--only", "cost,hair"])
