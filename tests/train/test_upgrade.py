"""Weights and training states of format 1: converted in place, or refused with the way on."""

from __future__ import annotations

import json
import re

import pytest
import torch
from runs import finished_run
from safetensors.torch import load_file, save_file

from r2id import CrossAttentionR2IR, CrossAttentionR2IRConfig, Pipeline
from r2id.checkpoint import CheckpointError
from r2id.denoisers import DENOISERS
from train import export
from train.engine.format1 import DENOISER_KEYS, EVERYWHERE, KEYS, RESAMPLER_KEYS, TENSORS
from train.engine.state import load_state

SMALL = {
    "r2id": {"width": 16, "heads": 2, "encoder_blocks": 1, "decoder_blocks": 1, "noise_width": 8},
    "s2id": {"width": 16, "heads": 2, "encoder_blocks": 1, "decoder_blocks": 1, "noise_width": 8},
    "rin": {"patch": 2, "interface_width": 16, "latent_width": 16, "num_latents": 4, "blocks": 1},
    "dimr": {"patches": (4, 2), "widths": (16, 8), "blocks": (2, 2)},
}


def pipeline_of(tiny_pixels, architecture: str) -> Pipeline:
    """A pipeline of format 2 whose weights are random; R2ID has the resampler of format 1."""
    torch.manual_seed(0)
    config_type, model_type = DENOISERS[architecture]
    denoiser = config_type(latent_channels=3, **SMALL[architecture])
    resampler = CrossAttentionR2IRConfig(channels=3, latent_channels=3, width=16, heads=2)
    values = {"architecture": architecture, "denoiser": denoiser, "size_multiple": denoiser.size_multiple}
    if architecture == "r2id":
        values["resampler"] = resampler
    config = type(tiny_pixels.config)(**vars(tiny_pixels.config) | values)
    model = model_type(denoiser)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return Pipeline(config, CrossAttentionR2IR(resampler) if config.resampler else None, model, device="cpu")


def to_format_1(folder) -> None:
    """Undoes what the conversion does, with names only."""
    values = json.loads((folder / "config.json").read_text())

    def back(values: dict, names: dict) -> dict:
        old = {new: name for name, new in names.items()}
        return {old.get(key, key): value for key, value in values.items()}

    values["denoiser"] = back(values["denoiser"], DENOISER_KEYS)
    if values["resampler"]:
        del values["resampler"]["architecture"]
        values["resampler"] = back(values["resampler"], RESAMPLER_KEYS)
    values = back(values, KEYS) | {"format": 1}
    del values["version"], values["decoder_size"]
    (folder / "config.json").write_text(json.dumps(values))
    for path in folder.glob("*.safetensors"):
        kind = "resampler" if path.stem == "resampler" else values["system"]
        tensors = {}
        for name, tensor in load_file(path).items():
            for pattern, new in {**EVERYWHERE, **TENSORS[kind]}.items():
                anchor = "^" if pattern.startswith("^") else r"\b"
                old = pattern.removeprefix("^").removeprefix(r"\b").replace(r"\.", ".")
                name = re.sub(anchor + re.escape(new), old, name)
            tensors[name] = tensor
        if kind == "r2id":  # the one thing that is more than a name
            tensors["cell_in.bias"] = torch.randn_like(tensors["cell_position.x.bias"])
            tensors["cell_position.x.bias"] = tensors["cell_position.x.bias"] - tensors["cell_in.bias"]
        save_file(tensors, path)


@pytest.mark.parametrize("architecture", DENOISERS)
def test_a_folder_is_converted_in_place(tiny_pixels, tmp_path, architecture, capsys):
    pipe = pipeline_of(tiny_pixels, architecture)
    pipe.save(tmp_path)
    to_format_1(tmp_path)
    with pytest.raises(CheckpointError, match=rf"config.json: format 1, .*--upgrade {re.escape(str(tmp_path))}`$"):
        Pipeline.from_pretrained(tmp_path, device="cpu")
    export.main(["--upgrade", str(tmp_path)])
    assert "now of format 2" in capsys.readouterr().out
    converted = Pipeline.from_pretrained(tmp_path, device="cpu")
    assert converted.config == pipe.config
    before, after = (p.diffuse([3, None], seed=0) for p in (pipe, converted))
    torch.testing.assert_close(after.tensor, before.tensor, atol=1e-5, rtol=0)
    sizes = {"size": (9, 12)}
    torch.testing.assert_close(converted.resample(after, **sizes), pipe.resample(before, **sizes), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="config.json: format 2, only format 1 is converted"):
        export.main(["--upgrade", str(tmp_path)])


def test_what_is_not_whole_is_refused_and_stays(tiny_pixels, tmp_path):
    pipeline_of(tiny_pixels, "r2id").save(tmp_path)
    to_format_1(tmp_path)
    (tmp_path / "resampler.safetensors").unlink()
    with pytest.raises(ValueError, match="resampler.safetensors: no such file"):
        export.main(["--upgrade", str(tmp_path)])
    assert json.loads((tmp_path / "config.json").read_text())["format"] == 1
    with pytest.raises(ValueError, match="goes without a run"):
        export.main(["runs/mnist", "weights/mnist", "--upgrade", str(tmp_path)])
    with pytest.raises(ValueError, match="give the folder of a run and one to write"):
        export.main([])


def test_a_training_state_of_format_1_is_refused_with_the_way_on(tiny_pixels, tmp_path):
    run = finished_run(tmp_path / "run", tiny_pixels)
    (path,) = (run / "denoiser").glob("state-*/state.json")
    metadata = json.loads(path.read_text())
    assert metadata.pop("format") == 2
    path.write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match="state of format 1.*start anew.*--from.*exported weights"):
        load_state(run / "denoiser")
