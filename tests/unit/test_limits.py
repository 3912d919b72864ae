"""Limits of configurations: low enough to be sketched in little memory, and above the largest published model."""

from __future__ import annotations

import pytest

from r2id.checkpoint import MAX_FILE_BYTES, sketch
from r2id.dataclass_io import from_dict
from r2id.denoisers import DENOISERS
from r2id.denoisers.dimr import DiMR, DiMRConfig
from r2id.limits import MAX_BLOCKS
from r2id.resamplers import RESAMPLERS

MODELS = {**RESAMPLERS, **DENOISERS}
LARGEST = {
    "r2ir": {"width": 2**14, "mlp_ratio": 64, "encoder_blocks": 16},
    "r2ir-cross-attention": {"width": 2**14, "cell_mlp_ratio": 64, "encoder_blocks": 16},
    "r2id": {"width": 2**14, "noise_width": 2**14, "label_tokens": 4096, "num_classes": 2**17},
    "s2id": {"width": 2**14, "noise_width": 2**14, "encoder_blocks": 16},
    "rin": {"interface_width": 2**14, "latent_width": 2**14, "blocks": 8, "patch": 256},
    "dimr": {"patches": [256, 1], "widths": [2**14, 2**14], "blocks": [8, MAX_BLOCKS - 8], "gated_mlp_ratio": 64},
}


@pytest.mark.parametrize("name", MODELS)
def test_the_largest_configurations_are_sketched_in_little_memory(name):
    config = from_dict(MODELS[name][0], LARGEST[name] | {"heads": 1024, "latent_channels": 4096}, "config.json")
    tensors = [*(module := sketch(lambda: MODELS[name][1](config))).parameters(), *module.buffers()]
    assert sum(tensor.numel() for tensor in tensors) > 2**36
    assert sum(tensor.nbytes for tensor in tensors if tensor.device.type != "meta") < 2**28


def test_the_largest_published_model_is_within_the_limits():
    """DiMR-G/2R has 1.06 billion parameters; these sizes, like those of its smaller brother, give as many."""
    config = DiMRConfig(
        latent_channels=4,
        num_classes=1000,
        patches=(2, 1),
        widths=(1232, 616),
        blocks=(50, 26),
        heads=16,
        label_tokens=1,
    )
    count = sum(parameter.numel() for parameter in sketch(lambda: DiMR(config)).parameters())
    assert 1.06e9 < count < MAX_FILE_BYTES / 4
