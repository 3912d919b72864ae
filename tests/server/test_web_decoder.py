"""What a browser gets to decode by itself: the packed model and latents, the endpoint's function, the exported page."""

import gzip
import json
import re
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import gradio as gr
import pytest
import safetensors.torch
import torch

from r2id import R2IR, Latent, R2IRConfig
from r2id.demo import export_page, web_decoder
from r2id.demo.assets import WEB
from r2id.pipeline import Pipeline


def unpack(content: bytes) -> tuple[dict[str, torch.Tensor], dict]:
    """Tensors and metadata of a packed file, read as decoder.js reads it."""
    data = gzip.decompress(content)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return safetensors.torch.load(data), json.loads(header["__metadata__"]["r2id"])


def latents(pipe: Pipeline, rows: int = 3) -> Latent:
    generator = torch.Generator().manual_seed(0)
    tensor = torch.rand(rows, pipe.config.latent_channels, 4, 6, generator=generator) * 2 - 1
    return Latent(tensor, 1.5, tuple(range(rows)), ("3",) * rows)


def test_tokens_of_the_inner_cells_travel_in_half_precision(tiny):
    latent = latents(tiny, 3 + web_decoder.ROWS)
    tensors, metadata = unpack(web_decoder.pack_latent(tiny, latent))
    rings = tiny.config.resampler.border_rings
    wanted = tiny.resampler.prepare(latent.tensor, 1.5).token_BhwD[:, rings:-rings, rings:-rings]
    assert tensors["token"].dtype == torch.float16 and tensors["token"].shape == (len(latent), 4, 6, 16 + 3)
    assert torch.allclose(tensors["token"].float(), wanted, rtol=1e-3, atol=1e-3)
    assert metadata == {"aspect": 1.5, "seeds": list(latent.seeds), "labels": list(latent.labels)}
    assert web_decoder.pack_latent(tiny, latent) == web_decoder.pack_latent(tiny, latent)


def test_a_model_travels_with_all_that_follows_its_last_block_and_nothing_else(tiny):
    tensors, metadata = unpack(web_decoder.pack_model(tiny))
    assert {name.split(".")[0] for name in tensors} == {"border_token", "coefficients_out", "pixel_mlp", "pixel_linear"}
    own = tiny.resampler.state_dict()
    assert all(torch.allclose(value.float(), own[name], rtol=1e-3, atol=1e-4) for name, value in tensors.items())
    assert {name for name, value in tensors.items() if value.dtype == torch.float16} == {
        "coefficients_out.weight",
        "coefficients_out.bias",
    }
    config = metadata["config"]
    assert (config["decoder_size"], config["fit"], config["background"]) == (8, "contain", [0.0])
    assert (config["features"], config["decoder_harmonics"], config["border_rings"]) == (4, 2, 2)


def test_files_of_the_largest_shipped_sizes_are_small(tiny):
    resampler = R2IRConfig(latent_channels=24, width=160, heads=5, decoder_blocks=0, encoder_blocks=0)
    denoiser = replace(tiny.config.denoiser, latent_channels=24)
    scale = dict(latent_mean=(0.0,) * 24, latent_std=(1.0,) * 24)
    config = replace(tiny.config, resampler=resampler, denoiser=denoiser, **scale)
    pipe = Pipeline(config, R2IR(resampler), type(tiny.denoiser)(denoiser), device="cpu")
    model = len(web_decoder.pack_model(pipe))
    latent = len(web_decoder.pack_latent(pipe, Latent(torch.rand(1, 24, 8, 8) * 2 - 1, 1.0)))
    assert 2**19 < model < 2e6 and latent < 25_000
    page = len(web_decoder.script()) + sum(len((WEB / f"export.{kind}").read_bytes()) for kind in ("html", "css", "js"))
    assert page + 4 / 3 * (model + 100 * latent) < 10e6


def test_models_that_browsers_cannot_decode_are_refused_with_one_line(tiny, tiny_pixels):
    assert web_decoder.can_decode(tiny) and not web_decoder.can_decode(tiny_pixels)
    for refused in (
        lambda: web_decoder.pack_model(tiny_pixels),
        lambda: web_decoder.pack_latent(tiny_pixels, latents(tiny_pixels)),
        lambda: export_page.export_page(tiny_pixels, labels=["3"], seeds=[0], title="pixels"),
    ):
        with pytest.raises(ValueError, match="its resampler is not R2IR"):
            refused()
    with pytest.raises(ValueError, match="4 channels: this model's have 3"):
        web_decoder.pack_latent(tiny, Latent(torch.zeros(1, 4, 4, 4), 1.0))


def test_the_endpoint_gives_the_model_or_the_tokens_as_files_named_by_their_content(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    latents(tiny).save(file := tmp_path / "latent.safetensors")
    endpoint = web_decoder.decoder_endpoint(lambda model: ("tiny", tiny), lambda file, name: file, lambda run: run())
    model, tokens = endpoint(), endpoint(file)
    assert unpack(Path(model.path).read_bytes())[1]["config"]["features"] == 4
    assert unpack(Path(tokens.path).read_bytes())[0]["token"].shape == (3, 4, 6, 19)
    assert (endpoint().path, endpoint(file).path) == (model.path, tokens.path) and model.path != tokens.path
    assert len(list(tmp_path.rglob("*"))) == 1 + 2 * 2, "no half-written file is left"
    with pytest.raises(gr.Error, match="not a safetensors file"):
        endpoint(model.path)
    Latent(torch.zeros(17, 3, 4, 4), 1.0).save(file)
    with pytest.raises(gr.Error, match="latent of 17 rows: at most 16"):
        endpoint(file)


@pytest.mark.parametrize(
    "text, seeds", [("0-3", [0, 1, 2, 3]), ("7", [7]), ("0-1,5", [0, 1, 5]), ("3-1", None), ("a", None), ("-1", None)]
)
def test_seeds_are_numbers_and_ranges(text, seeds):
    with nullcontext() if seeds else pytest.raises(ValueError, match="seed"):
        assert export_page.parse_seeds(text) == seeds


def test_the_exported_page_is_one_file_without_addresses_and_refuses_with_one_line(tiny_weights, tmp_path, capsys):
    export_page.main([str(tiny_weights), str(out := tmp_path / "out.html"), "--seeds", "0-1"])
    page = out.read_text()
    assert "labels 0, 1, 2, seeds 0-1" in capsys.readouterr().out
    assert (
        not re.search(r"\{\{ *\w+ *\}\}", page)
        and "http://" not in page
        and "https://" not in page
        and page.count("<script") == 2
    )
    for arguments, words in (
        (["--seeds", "x"], "seeds x: must be numbers and ranges"),
        (["--seeds", "0-999", "--labels", "1,2"], "2000 latents"),
        (["--labels", "1,Q"], "Q"),
    ):
        with pytest.raises(SystemExit):
            export_page.main([str(tiny_weights), str(tmp_path / "no.html"), *arguments])
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
    assert not (tmp_path / "no.html").exists()
