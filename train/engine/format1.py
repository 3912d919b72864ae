"""Weights of format 1 → format 2: keys of `config.json` and names of tensors that have changed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from r2id.checkpoint import CheckpointError, load_config, load_tensors
from r2id.config import FORMAT, PipelineConfig
from r2id.denoisers import DENOISERS
from r2id.pipeline import Pipeline
from r2id.resamplers import RESAMPLERS

RESAMPLER = "r2ir-cross-attention"  # the only one of format 1
RESAMPLER_KEYS = {
    "cell_expansion": "cell_mlp_ratio",
    "pixel_expansion": "pixel_mlp_ratio",
    "turn": "base_frequency",
    "direct": "linear_codec",
    "footprint": "ipe_sigma",
}
DENOISER_KEYS = {
    "labels": "num_classes",
    "expansion": "mlp_ratio",
    "gated_expansion": "gated_mlp_ratio",
    "objective": "prediction_type",
    "latents": "num_latents",
}
KEYS = {"system": "architecture", "stride": "size_multiple", "training_size": "encoder_size"}
EVERYWHERE = {r"\bcross\.": "cross_attention.", r"\bfeed_norm\.": "mlp_norm.", r"\bfeed\.": "mlp."}
TENSORS = {
    "resampler": {r"^direct\.": "linear_codec."},
    "r2id": {r"^cell_in\.": "token_in.", r"^cell_position\.": "position."},
    "s2id": {
        r"^pixel_in\.": "token_in.",
        r"^pixel_position\.": "position.",
        r"\baxial\.": "self_attention.",
        r"\baxial_norm\.": "self_norm.",
    },
    "rin": {
        r"^warm\.": "self_conditioning.",
        r"^warm_norm\.": "self_conditioning_norm.",
        r"\bmix\.": "interface_attention.",
    },
    "dimr": {},
}


def upgrade(folder: str | Path, dtype: torch.dtype | None = None) -> None:
    """Converts a folder in place; dtype: of the tensors in its files, None for theirs. Stopped on its way, it may be
    called again. Raises ValueError, one line, for a folder of another format or one that is not whole."""
    folder = Path(folder)
    values = load_config(folder)
    if values.get("format") != 1:
        raise ValueError(f"{folder / 'config.json'}: format {values.get('format')}, only format 1 is converted")
    config = PipelineConfig.from_json(upgraded(values), folder / "config.json")
    denoiser = DENOISERS[config.architecture][1](config.denoiser)
    resampler = config.resampler and RESAMPLERS[RESAMPLER][1](config.resampler)
    found = _load(denoiser, folder / "denoiser.safetensors", config.architecture)
    if resampler:
        _load(resampler, folder / "resampler.safetensors", "resampler")
    Pipeline(config, resampler, denoiser, device="cpu").save(folder, dtype=dtype or found)


def upgraded(values: dict[str, Any]) -> dict[str, Any]:
    """What a `config.json` of format 1 holds, as format 2."""
    values = renamed(values, KEYS) | {"format": FORMAT}
    values["decoder_size"] = values.get("encoder_size")
    if isinstance(resampler := values.get("resampler"), dict):
        values["resampler"] = {"architecture": RESAMPLER, **renamed(resampler, RESAMPLER_KEYS)}
    if isinstance(denoiser := values.get("denoiser"), dict):
        values["denoiser"] = renamed(denoiser, DENOISER_KEYS)
    return values


def renamed(values: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    return {names.get(key, key): value for key, value in values.items()}


def renamed_tensors(tensors: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    """Tensors of format 1 under their names now; kind: "resampler" or the denoiser's architecture."""
    found = {}
    for name, tensor in tensors.items():
        for pattern, new in {**EVERYWHERE, **TENSORS[kind]}.items():
            name = re.sub(pattern, new, name)
        found[name] = tensor
    if kind == "r2id" and "token_in.bias" in found:  # the position's bias is added beside it
        found["position.x.bias"] = found["position.x.bias"] + found.pop("token_in.bias")
    return found


def _load(model: nn.Module, path: Path, kind: str) -> torch.dtype:
    """Loads a file of format 1 into the model. → the dtype of its tensors."""
    tensors = load_tensors(path)
    try:
        model.load_state_dict(renamed_tensors(tensors, kind))
    except RuntimeError as error:
        raise CheckpointError(f"{path}: does not fit its configuration: {error}") from None
    return next(iter(tensors.values())).dtype
