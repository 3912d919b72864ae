"""Weights are exported with a card that says what the run says, and nothing that a person wrote is lost."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from runs import COST, STEPS, finished_run

from r2id import R2ID, Pipeline
from r2id.config import Training
from train.engine.recipe import DenoiserRecipe, ResamplerRecipe, read_recipe, read_resampler_recipe
from train.engine.state import State, load_state, save_state
from train.evaluation.card import CONFIGS, to_toml
from train.export import main


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory) -> Path:
    return finished_run(tmp_path_factory.mktemp("run"), tiny)


def export(run: Path, folder: Path, *options: str) -> str:
    """→ the card."""
    main([str(run), str(folder), *options])
    return (folder / "README.md").read_text()


def size_of(file: Path) -> tuple[int, int]:
    with Image.open(file) as image:
        return image.size


def write_report(folder: Path, **sections) -> None:
    setting = {"weights": "old", "split": "test", "generated": 20, "seeds": "0…19"}
    (folder / "report.json").write_text(json.dumps({"setting": setting, "protocol": {}} | sections))


def test_the_front_matter_is_the_hubs(run, tmp_path):
    metadata = ModelCard(export(run, tmp_path / "small", "--license", "cc-by-4.0")).data
    assert (metadata.license, metadata.library_name, metadata.datasets) == ("cc-by-4.0", "r2id", ["owner/images"])
    assert metadata.pipeline_tag == "unconditional-image-generation"
    assert {"diffusion", "r2id", "resolution-invariant"} <= set(metadata.tags)
    assert ModelCard(export(run, tmp_path / "other")).data.license is None


def test_the_card_says_what_the_run_says(run, tiny, tmp_path):
    text = export(run, tmp_path / "small")
    counts = {name: sum(p.numel() for p in getattr(tiny, name).parameters()) for name in ("denoiser", "resampler")}
    for expected in (
        "# small\n",
        "R2ID, the resolution-invariant image diffuser",
        "R2IR, the resolution-invariant image resampler",
        f"| parameters | {counts['denoiser']:,} (denoiser), {counts['resampler']:,} (resampler) |",
        "| images | grey, 8 pixels on the short side |",
        "| latents | 3 channels, 4 to 16 cells a side |",
        "| labels | 10: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 |",
        "| sampling | 4 steps of dpm++, guidance 1.5, latent 4 × 4 |",
        f"| training | {2 * COST['images']:,} images in 60 steps, 10 TFLOP forward and backward, 3.0 minutes |",
        "`owner/images`: 64 training images at 8 × 8",
        "1. R2IR: 30 steps of up to 6 images, in 2 phases; AdamW, learning rate 0.002 to 1e-05",
        "2. R2ID: 30 steps of up to 6 images",
        "predicts v, cosine schedule",
        "python -m train.export runs/small weights/small",
    ):
        assert expected in text
    assert text.count("`owner/images`") == 1


def test_the_samples_are_the_runs_last_before_the_export(tiny, run, tmp_path):
    assert "![Samples](samples.png)\n\n*Generated while training, after step 30 of 30.*" in export(run, tmp_path / "a")
    early = finished_run(tmp_path / "run", tiny, step=29)
    text = export(early, tmp_path / "b")
    assert "after step 20 of 29" in text and "29 of 30 steps of up to 6 images" in text
    assert [size_of(tmp_path / name / "samples.png")[0] for name in "ab"] == [STEPS, 20]
    for sheet in (early / "denoiser").glob("*.png"):
        sheet.unlink()
    assert "samples.png" not in export(early, tmp_path / "c") and not (tmp_path / "c" / "samples.png").exists()


@pytest.mark.parametrize("names", [tuple("0123456789"), ('"quoted" | piped\nlined', *"bcdefghij"), ()])
def test_the_python_of_the_card_runs(tiny, tmp_path, monkeypatch, names):
    denoiser = R2ID(replace(tiny.config.denoiser, num_classes=len(names)))
    config = replace(tiny.config, labels=names, denoiser=denoiser.config)
    run = finished_run(tmp_path / "run", Pipeline(config, tiny.resampler, denoiser, device="cpu"))
    text = export(run, tmp_path / "weights" / "small")
    rows = [line for line in text.splitlines() if line.startswith("| labels |")]
    assert len(rows) == 1 and len(re.split(r"(?<!\\)\|", rows[0])) == 4
    (code,) = re.findall("```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert {size_of(path) for path in tmp_path.glob("*.png")} == {(64, 64), (256, 256), (320, 180)}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_recipe_survives_being_written(path, tmp_path):
    recipe = read_resampler_recipe(path) if "resampler" in path.stem else read_recipe(DenoiserRecipe, path)
    (tmp_path / "again.toml").write_text(to_toml(asdict(recipe)), encoding="utf-8")
    assert read_recipe(type(recipe), tmp_path / "again.toml") == recipe


def test_a_recipe_of_ones_own_is_in_the_card(run, tmp_path):
    text = export(run, tmp_path / "small")
    for stage, kind in (("resampler", ResamplerRecipe), ("denoiser", DenoiserRecipe)):
        assert f"python -m train.train_{stage} --config {stage}.toml\n" in text
        (toml,) = re.findall(f"## {stage}.toml\n\n```toml\n(.*?)```", text, re.DOTALL)
        (tmp_path / f"{stage}.toml").write_text(toml)
        recipe = json.loads(json.dumps(asdict(read_recipe(kind, tmp_path / f"{stage}.toml"))))
        assert recipe == load_state(run / stage).metadata["recipe"]


def test_a_shipped_recipe_is_named_instead(run, tmp_path):
    resamplers = {path: read_resampler_recipe(path) for path in sorted(CONFIGS.glob("*_resampler*.toml"))}
    path = next(path for path, recipe in resamplers.items() if isinstance(recipe, ResamplerRecipe))
    recipes = {
        "resampler": replace(resamplers[path], data="owner/other"),
        "denoiser": replace(read_recipe(DenoiserRecipe, CONFIGS / "mnist_r2id.toml"), data="owner/images"),
    }
    for stage, recipe in recipes.items():
        state = load_state(run / stage)
        save_state(tmp_path / "run" / stage, State(state.tensors, state.metadata | {"recipe": asdict(recipe)}))
    text = export(tmp_path / "run", tmp_path / "small")
    assert f"python -m train.train_resampler --config train/configs/{path.name} --data owner/other\n" in text
    assert "--config train/configs/mnist_r2id.toml --data owner/images\n" in text
    assert "toml\n\n" not in text and "at the end of this card" not in text
    assert ModelCard(text).data.datasets == ["owner/other", "owner/images"]


def test_where_local_data_are_is_not_told(tiny, tmp_path):
    run = finished_run(tmp_path / "run", tiny, data="/home/someone/secret/photos")
    text = export(run, tmp_path / "small")
    assert "the local folder `photos`: 64 training images" in text and 'data = "photos"' in text
    assert "--config denoiser.toml --data PATH\n" in text
    assert "secret" not in text and str(tmp_path) not in text and ModelCard(text).data.datasets is None


def test_a_persons_card_is_kept_until_it_is_asked_for(run, tmp_path, capsys):
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / "README.md").write_bytes("Mine, naïve.\r\n".encode())
    export(run, folder, "--license", "mit")
    assert (folder / "README.md").read_bytes() == "Mine, naïve.\r\n".encode()
    assert not (folder / "samples.png").exists()
    assert "README.md: kept as it is, though the weights are new; --card writes it anew" in capsys.readouterr().out
    export(run, folder)
    assert "README.md: kept as it is; --card writes it anew" in capsys.readouterr().out
    assert "# small" in export(run, folder, "--card")


def test_figures_are_those_of_these_weights_or_none(run, tiny, tmp_path, capsys):
    folder = tmp_path / "small"
    rows = [{"latent": "4×4", "PSNR | dB": 24.061234, "count": 10000}]
    sections = {
        "reconstruction": [{"title": "Encoded, decoded", "rows": rows}],
        "loss": [{"title": "Loss", "rows": [{"t": 0.1}] * 20}, {"title": "Curve", "file": "loss.png"}],
        "sheets": [{"title": "Elsewhere", "file": "absent.png"}],
    }
    export(run, folder)
    write_report(folder, **sections)
    Image.new("L", (2, 2)).save(folder / "loss.png")
    text = export(run, folder, "--card")
    for expected in (
        "By `train.evaluate`: split test, generated 20, seeds 0…19.",
        "Encoded, decoded:\n\n| latent | PSNR \\| dB | count |\n| --- | --- | --- |\n| 4×4 | 24.06 | 10,000 |",
        "Loss: 20 rows in `report.json`.",
        "![Curve](loss.png)",
    ):
        assert expected in text
    assert "absent.png" not in text

    other = Pipeline(tiny.config, tiny.resampler, R2ID(tiny.config.denoiser), device="cpu")
    capsys.readouterr()
    assert "Figures" not in export(finished_run(tmp_path / "run", other), folder, "--card")
    assert "report.json: describes other weights and is left out; measure again" in capsys.readouterr().out
    assert (folder / "report.json").exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"setting": {}, "x": [1]}', '{"setting": {}, "x": [{"rows": 3}]}'])
def test_a_report_that_is_none_is_one_line(run, tmp_path, text):
    export(run, tmp_path / "small")
    (tmp_path / "small" / "report.json").write_text(text)
    with pytest.raises(ValueError, match="report.json: .*measure again") as error:
        export(run, tmp_path / "small", "--card")
    assert "\n" not in str(error.value)
    assert "# small" in (tmp_path / "small" / "README.md").read_text()


def test_pixel_space_has_one_stage_and_a_card_too(tiny_pixels, tmp_path):
    text = export(finished_run(tmp_path / "run", tiny_pixels), tmp_path / "small")
    assert "| latents | the images themselves, 8 pixels a side |" in text and "| frames | square |" in text
    assert "| images | colour, 8 pixels on the short side |" in text
    assert "resampler" not in text and "arbitrary-scale" not in ModelCard(text).data.tags
    pipe = Pipeline.from_pretrained(tmp_path / "small", device="cpu")
    assert pipe.config.training == Training(**COST)
    assert torch.equal(pipe.denoiser.out.weight, tiny_pixels.denoiser.out.weight)


def test_a_cost_that_was_not_counted_is_not_made_up(tiny, tmp_path):
    run = finished_run(tmp_path / "run", tiny)
    state = load_state(run / "denoiser")
    save_state(run / "denoiser", State(state.tensors, state.metadata | {"cost": None}))
    text = export(run, tmp_path / "small")
    assert "| training | its cost was not counted |" in text and text.count("TFLOP") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--license", "MIT License"], "--license MIT License: must be an identifier of the Hub's list, such as mit"),
        (["--push", "name"], "--push name: must be USER/NAME"),
        (["--push", "weights/mnist"], "--push weights/mnist: must be USER/NAME"),
        (["--private"], "--private: goes with --push only"),
    ],
)
def test_options_are_checked_before_anything_is_written(run, tmp_path, options, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        export(run, tmp_path / "small", *options)
    assert not (tmp_path / "small").exists()
