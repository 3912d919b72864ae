"""Configurations from strangers: a field out of its range is refused in one line, before anything is built."""

from __future__ import annotations

import typing
from dataclasses import fields

import pytest

from r2id.checkpoint import MAX_FILE_BYTES, CheckpointError, sketch
from r2id.dataclass_io import from_dict
from r2id.denoisers import DENOISERS
from r2id.denoisers.dimr import DiMR, DiMRConfig
from r2id.denoisers.rin import RINConfig
from r2id.limits import MAX_BLOCKS
from r2id.resamplers import RESAMPLERS

MODELS = {**RESAMPLERS, **DENOISERS}
CONFIGS = {name: config_type for name, (config_type, _) in MODELS.items()}
NO_NUMBER = [True, "3", None, [], [3], {}, [[[]]]]
BAD = {  # type of a field → values that none of that type may have
    int: [-1, 2**31, 2**63, 10**30, 1.0, float("nan"), *NO_NUMBER],
    int | None: [-1, 0, 2**31, 1.0, float("nan"), *(value for value in NO_NUMBER if value is not None)],
    float: [-0.5, 1e9, 10**400, float("nan"), float("inf"), -float("inf"), *NO_NUMBER],
    str: ["", "other", "x\n" * 99, 3, True, None, ["v"]],
    bool: [0, 1, 0.5, "true", None, [True]],
    tuple[int, int]: [[1, 0], [0, 10**9], [-(10**9), 0], [0], [0, 1, 2], [0, 1.5], [False, True], "01", 3, None, {}],
    tuple[int, ...]: [[4, 0], [4, -2], [10**9, 2], [4, 1.0], [True, True], ["4", "2"], [], [4], 4, "42", None, {}],
}


def refusal(config_type: type, **values) -> str:
    with pytest.raises(CheckpointError) as error:
        from_dict(config_type, values, "config.json")
    text = str(error.value)
    assert text.startswith("config.json: ") and "\n" not in text and len(text) <= 500
    return text


@pytest.mark.parametrize("name", CONFIGS)
def test_every_field_refuses_what_is_out_of_its_range_and_says_so(name):
    config_type = CONFIGS[name]
    hints = typing.get_type_hints(config_type)
    assert from_dict(config_type, {}, "config.json") == config_type()
    for field in fields(config_type):
        for value in BAD[hints[field.name]]:
            text = refusal(config_type, **{field.name: value})
            assert field.name in text and "must" in text, (field.name, value, text)
        if hints[field.name] is int:
            low, high = field.metadata["range"]
            assert f"{low}…{high}" in refusal(config_type, **{field.name: high + 1})


def test_blocks_are_limited_together():
    assert f"blocks x compute_layers 256: must be a whole number, 1…{MAX_BLOCKS}" in refusal(
        RINConfig, blocks=MAX_BLOCKS, compute_layers=2
    )
    assert "blocks together 160: must be" in refusal(DiMRConfig, blocks=[100, 60])


@pytest.mark.parametrize("name", CONFIGS)
def test_heads_must_divide_every_width_they_are_taken_from(name):
    values = {
        **dict.fromkeys(("r2ir", "r2ir-cross-attention", "r2id", "s2id"), [{"width": 100}]),
        "rin": [{"interface_width": 100}, {"latent_width": 100}],
        "dimr": [{"widths": [100, 60]}],
    }
    for options in values[name]:
        assert f"{next(iter(options))} 100: must be a multiple of the 8 heads" in refusal(
            CONFIGS[name], heads=8, **options
        )


LARGEST = {
    "r2ir": {"width": 2**14, "mlp_ratio": 64, "encoder_blocks": 16},
    "r2ir-cross-attention": {"width": 2**14, "cell_mlp_ratio": 64, "encoder_blocks": 16},
    "r2id": {"width": 2**14, "noise_width": 2**14, "label_tokens": 4096, "num_classes": 2**17},
    "s2id": {"width": 2**14, "noise_width": 2**14, "encoder_blocks": 16},
    "rin": {"interface_width": 2**14, "latent_width": 2**14, "blocks": 8, "patch": 256},
    "dimr": {"patches": [256, 1], "widths": [2**14, 2**14], "blocks": [8, MAX_BLOCKS - 8], "gated_mlp_ratio": 64},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_largest_configurations_are_sketched_in_little_memory(name):
    config = from_dict(CONFIGS[name], LARGEST[name] | {"heads": 1024, "latent_channels": 4096}, "config.json")
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
