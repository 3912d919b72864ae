"""From images to weights by the scripts themselves, with models of a few channels and a handful of steps."""

from __future__ import annotations

import re
import runpy
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from digits import digits
from PIL import Image
from scripts import DENOISER, RESAMPLER, metrics, train, write

from r2id import Pipeline
from train import export, train_denoiser, train_resampler
from train.engine import cli
from train.engine.state import load_state, save_state, states
from train.losses import latent_source, resampler_steps

ROOT = Path(__file__).parents[2]


def test_exported_weights_diffuse_resample_and_encode(trained):
    pipe = Pipeline.from_pretrained(trained, device="cpu")
    assert pipe.labels == list("0123456789")
    latent = pipe.diffuse([3, "7"], seed=1)
    assert latent.tensor.shape == (2, 3, 4, 5)
    for size in ((8, 8), (16, 9), (40, 24)):
        image = pipe.resample(latent, size=size)
        assert image.shape == (2, 1, *size) and image.isfinite().all() and 0 <= image.min() <= image.max() <= 1
    assert pipe.encode(image, latent_size=(3, 3)).tensor.shape == (2, 3, 3, 3)


def test_the_exported_configuration_says_what_was_trained(trained):
    config = Pipeline.from_pretrained(trained, device="cpu").config
    assert (config.architecture, config.channels, config.background, config.fit) == ("r2id", 1, (0.0,), "contain")
    assert (config.encoder_size, config.trained_cells) == (16, (3, 5))
    assert config.trained_aspects == pytest.approx((9 / 16, 16 / 9))
    assert (config.resampler.latent_channels, config.denoiser.latent_channels, config.denoiser.num_classes) == (
        3,
        3,
        10,
    )
    assert (config.defaults.steps, config.defaults.guidance, config.defaults.sampler) == (3, 2.5, "ddim")
    assert config.defaults.latent_size == (4, 5)


def test_the_exported_weights_are_the_averaged_ones(trained):
    pipe = Pipeline.from_pretrained(trained, device="cpu")
    for stage, model in (("resampler", pipe.resampler), ("denoiser", pipe.denoiser)):
        state = load_state(trained.parent / "run" / stage)
        averaged, last = state.part("ema"), state.part("model")
        assert all(torch.equal(value, averaged[name]) for name, value in model.state_dict().items())
        assert any(not torch.equal(value, last[name]) for name, value in averaged.items())


def test_evaluations_leave_sheets_and_metrics(trained):
    run = trained.parent / "run"
    lines = metrics(run / "resampler")
    assert [line["step"] for line in lines] == [25, 30]
    assert {"mse 4x4", "mse 16x16", "latent mean square", "latent dimensions"} <= lines[0].keys()
    assert lines[1]["mse 4x4"] < 1
    for stage, steps in (("resampler", (25, 30)), ("denoiser", (6,))):
        assert sorted(path.name for path in (run / stage).glob("*.png")) == [f"samples-{n:06d}.png" for n in steps]
        assert list((run / stage / "tensorboard").glob("events.*"))
        assert [path.name for path in states(run / stage)] == [f"state-{steps[-1]:08d}"]
    with Image.open(run / "denoiser" / "samples-000006.png") as sheet:
        assert sheet.width > 640 and sheet.height > 320  # ten digits at five latent sizes


def test_evaluations_are_at_the_density_of_the_encoder_and_at_half_of_the_targets(images, tmp_path):
    dense = ["--set", "decoder_size=64", "--set", "optimisation.phases.0.steps=2"]
    command = ["--config", write(tmp_path, RESAMPLER), "--data", images, "--out", str(tmp_path / "run")]
    train_resampler.main([*command, *dense])
    line = metrics(tmp_path / "run" / "resampler")[-1]
    pairs = [(line[f"mse {n}x{n}"], line[f"mse {n}x{n} at 32"]) for n in train_resampler.SIZES]
    assert all(0 < seen < 2 and 0 < finer < 2 and seen != finer for seen, finer in pairs)
    state = load_state(tmp_path / "run" / "resampler")
    assert (state.metadata["recipe"]["encoder_size"], state.metadata["recipe"]["decoder_size"]) == (16, 64)


def test_a_finished_run_stays_as_it_is(trained, images, tmp_path):
    run = trained.parent / "run"
    before = {path: path.stat().st_mtime_ns for path in run.rglob("state.safetensors")}
    train_resampler.main(["--config", write(tmp_path, RESAMPLER), "--data", images, "--out", str(run)])
    assert {path: path.stat().st_mtime_ns for path in run.rglob("state.safetensors")} == before


@pytest.mark.parametrize("script", [train_resampler, train_denoiser], ids=["resampler", "denoiser"])
def test_a_stopped_run_ends_as_one_that_was_not(trained, images, tmp_path, monkeypatch, script, capfd):
    whole, run, stage = trained.parent / "run", tmp_path / "run", script.__name__.split("_")[-1]
    if script is train_denoiser:
        save_state(run / "resampler", load_state(whole / "resampler"))
    recipe = write(tmp_path, RESAMPLER if script is train_resampler else DENOISER)
    command = ["--config", recipe, "--data", images, "--out", str(run)]

    def asked(shape_sampler, seed, step, *part, **how):
        if step == 3:
            signal.raise_signal(signal.SIGTERM)
        return cli.draw(shape_sampler, seed, step, *part, **how)

    with monkeypatch.context() as patch:
        patch.setattr(resampler_steps if script is train_resampler else latent_source, "draw", asked)
        script.main(command)
    assert load_state(run / stage).metadata["step"] == 4
    assert "stopped at step 4, state saved; the same command goes on" in "".join(capfd.readouterr())
    script.main(command)
    first, second = load_state(whole / stage), load_state(run / stage)
    times = [state.metadata["cost"].pop("seconds") for state in (first, second)]
    assert first.metadata == second.metadata and min(times) > 0
    assert all(torch.equal(value, second.tensors[name]) for name, value in first.tensors.items())


def test_the_published_recipes_train_by_the_same_scripts(images, tmp_path):
    smaller = {
        **{"training_size": 8, "width": 12, "heads": 2, "latent_channels": 6, "noise_width": 8},
        **{"encoder_blocks": 1, "decoder_blocks": 1, "batch": 4, "warmup": 1, "steps": 2},
    }
    recipes = []
    for name in ("resampler", "r2id"):
        text = (ROOT / "train" / "configs" / f"published_{name}.toml").read_text(encoding="utf-8")
        for key, value in smaller.items():
            text = re.sub(rf"^{key} = \d+", f"{key} = {value}", text, flags=re.MULTILINE)
        recipes.append(text)
    pipe = Pipeline.from_pretrained(train(tmp_path, images, *recipes), device="cpu")
    config = pipe.config
    assert (config.fit, config.trained_aspects, config.trained_cells) == ("cover", (1, 1), (4, 4))
    assert (config.resampler.attention, config.resampler.local, config.denoiser.prediction_type) == (
        "linear",
        False,
        "epsilon",
    )
    assert (config.defaults.sampler, config.defaults.guidance) == ("ddim", 4)
    image = pipe.resample(pipe.diffuse([1], seed=0, eta=2.0), size=(18, 32), fit="stretch")
    assert image.shape == (1, 1, 18, 32) and image.isfinite().all()


def test_export_takes_the_defaults_of_a_recipe(trained, tmp_path):
    recipe = write(tmp_path, DENOISER.replace("guidance = 2.5", "guidance = 1.25"))
    export.main([str(trained.parent / "run"), str(tmp_path / "weights"), "--config", recipe])
    assert Pipeline.from_pretrained(tmp_path / "weights", device="cpu").config.defaults.guidance == 1.25


def test_export_refuses_a_denoiser_of_another_resampler(trained, tmp_path):
    for stage in ("resampler", "denoiser"):
        state = load_state(trained.parent / "run" / stage)
        if stage == "resampler":
            state.metadata["step"] = 31
        save_state(tmp_path / stage, state)
    with pytest.raises(ValueError, match="trained on the resampler of step 30, the newest is 31; train the denoiser"):
        export.main([str(tmp_path), str(tmp_path / "weights")])


def test_a_phase_of_the_decoder_alone_leaves_latents_as_they_are(trained, images, tmp_path):
    run, weights = tmp_path / "run", tmp_path / "weights"
    shutil.copytree(trained.parent / "run", run)
    phase = "\n[[optimisation.phases]]\nsteps = 4\nrate = [3e-3, 3e-3]\ndecoder_only = true\n"
    train_resampler.main(["--config", write(tmp_path, RESAMPLER + phase), "--data", images, "--out", str(run)])
    export.main([str(run), str(weights)])  # the denoiser needs no training
    before, after = (Pipeline.from_pretrained(path, device="cpu") for path in (trained, weights))
    digit_BCHW = (digits(16)[0][:4] + 1) / 2
    latent, same = (pipe.encode(digit_BCHW, latent_size=(4, 4)) for pipe in (before, after))
    assert torch.equal(latent.tensor, same.tensor)
    assert (before.resample(latent, size=(16, 16)) - after.resample(latent, size=(16, 16))).abs().max() > 1e-3


def test_a_denoiser_trains_on_cached_mirrored_latents(trained, images, tmp_path, capfd):
    run = tmp_path / "run"
    save_state(run / "resampler", load_state(trained.parent / "run" / "resampler"))
    cache = '\n[cache_latents]\ncells = [[4, 4], [4, 5]]\n\n[mirror_labels]\n2 = "5"\n'
    recipe = write(tmp_path, DENOISER.replace('"small"', '"small"\nmirror = true') + cache)
    train_denoiser.main(["--config", recipe, "--data", images, "--out", str(run)])
    files = sorted(path.name for path in (run / "denoiser" / "latents").iterdir())
    assert files == ["4x4.bin", "4x4.json", "4x5.bin", "4x5.json", "labels.npy"]
    assert (run / "denoiser" / "latents" / "4x4.bin").stat().st_size == 2 * 58 * 3 * 16 * 2  # a tenth is held out
    assert load_state(run / "denoiser").metadata["step"] == 6
    export.main([str(run), str(tmp_path / "weights")])
    assert Pipeline.from_pretrained(tmp_path / "weights", device="cpu").diffuse(3, seed=0).tensor.isfinite().all()


def test_a_run_begins_with_the_exported_weights_that_fit_it(trained, images, tmp_path, capfd):
    start = ["--data", images, "--out", str(tmp_path / "run"), "--from", str(trained)]
    still = ["--set", "optimisation.phases=[{steps = 1, rate = [0.0, 0.0]}]"]
    narrow = ["--set", "model.pixel_width=4"]
    train_resampler.main(["--config", write(tmp_path, RESAMPLER), *start, *still, *narrow])
    square = ["shape_sampler.cells=[4,4]", "shape_sampler.p_square=1.0", "shape_sampler.p_anisotropic=0.0"]
    still += [part for setting in square for part in ("--set", setting)]
    train_denoiser.main(["--config", write(tmp_path, DENOISER), *start, *still])
    printed = capfd.readouterr().out
    assert re.search(r"resampler.safetensors: \d+ tensors are taken; anew: pixel_mlp.0", printed)
    assert re.search(r"denoiser.safetensors: \d+ tensors are taken; anew: none", printed)
    export.main([str(tmp_path / "run"), str(tmp_path / "weights")])
    before, after = (Pipeline.from_pretrained(path, device="cpu") for path in (trained, tmp_path / "weights"))
    digit_BCHW = (digits(16)[0][:4] + 1) / 2
    assert torch.equal(*(pipe.encode(digit_BCHW, latent_size=(4, 4)).tensor for pipe in (before, after)))
    assert after.config.resampler.pixel_width == 4
    assert all(
        torch.equal(a, b) for a, b in zip(before.denoiser.parameters(), after.denoiser.parameters(), strict=True)
    )


def test_weights_get_a_guide_and_stay_what_they_are_without_guidance(trained, images, tmp_path):
    run, weights = tmp_path / "run", tmp_path / "weights"
    save_state(run / "resampler", load_state(trained.parent / "run" / "resampler"))
    settings = (
        "model.guide={width = 8, heads = 2, encoder_blocks = 1, decoder_blocks = 1}",
        "optimisation.phases=[{steps = 4, rate = [3e-3, 3e-3], ema = 0.5, guide_only = true}]",
    )
    start = ["--data", images, "--out", str(run), "--from", str(trained)]
    start += [part for setting in settings for part in ("--set", setting)]
    train_denoiser.main(["--config", write(tmp_path, DENOISER), *start])
    export.main([str(run), str(weights)])
    before, after = (Pipeline.from_pretrained(path, device="cpu") for path in (trained, weights))

    def latents(guidance):
        return (pipe.diffuse([3, None], seed=0, guidance=guidance).tensor for pipe in (before, after))

    assert torch.equal(*latents(1.0)) and torch.equal(*latents(0.0))
    assert not torch.allclose(*latents(2.0), atol=1e-3)


def test_what_is_missing_is_said_in_one_line(images, tmp_path):
    run = str(tmp_path / "run")
    first, second = (["--config", write(tmp_path, text), "--out", run, "--data"] for text in (RESAMPLER, DENOISER))
    for call, arguments, message in (
        (train_resampler.main, [*first, str(tmp_path / "none")], "none: no such folder"),
        (
            train_denoiser.main,
            [*first, images],
            "resampler.toml: unknown keys 'decoder_size', 'encoder_size', 'lattice', known are name",
        ),
        (train_denoiser.main, [*second, images], "no trained resampler; run python -m train.train_resampler first"),
        (export.main, [run, run], "run/denoiser: no state there; train it first with python -m train.train_denoiser"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            call(arguments)
        assert "\n" not in str(caught.value)
    assert not Path(run).exists()
    with pytest.raises(ValueError, match=r"--from .*none: no resampler.safetensors there; give a folder such as"):
        train_resampler.main([*first, images, "--from", str(tmp_path / "none")])


@pytest.mark.parametrize("ordered, message", [(("1", "x"), "no label is 'x', only 0, 1, 2"), (("1", "1"), "twice")])
def test_labels_along_a_scale_are_those_of_the_data(ordered, message):
    assert train_denoiser.order_of(("2", "0"), ("0", "1", "2")) == [2, 0]
    with pytest.raises(ValueError, match=f"^ordered_labels: .*{message}"):
        train_denoiser.order_of(ordered, ("0", "1", "2"))


def test_frames_are_not_padded_without_a_known_background(tmp_path):
    noise = torch.randint(0, 256, (12, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()
    for number, pixels in enumerate(noise):
        (tmp_path / "images" / "train").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "images" / "train" / f"{number:02}.png")
    command = ["--data", str(tmp_path / "images"), "--out", str(tmp_path / "run")]
    resampler = ["--config", write(tmp_path, RESAMPLER.replace("steps = 25", "steps = 1")), *command]
    with pytest.raises(ValueError, match="no known background, so frames cannot be padded; give --set ") as caught:
        train_resampler.main(resampler)
    train_resampler.main([*resampler, *str(caught.value).partition("; give ")[2].split()])  # the remedy helps
    assert load_state(tmp_path / "run" / "resampler").metadata["background"] is None
    denoiser = DENOISER.replace("[shape_sampler]", "[shape_sampler]\np_square = 1").replace("steps = 6", "steps = 1")
    train_denoiser.main(["--config", write(tmp_path, denoiser), *command])  # nor have these images labels
    export.main([str(tmp_path / "run"), str(tmp_path / "weights")])
    pipe = Pipeline.from_pretrained(tmp_path / "weights", device="cpu")
    assert (pipe.labels, pipe.config.fit, pipe.config.trained_aspects) == ([], "cover", (1, 1))
    assert pipe.resample(pipe.diffuse(None, seed=0), size=(8, 8)).isfinite().all()


@pytest.mark.parametrize("name", ["train_resampler", "train_denoiser", "export"])
def test_a_script_ends_with_one_line(name, monkeypatch):
    arguments = ["no", "no"] if name == "export" else ["--config", "no.toml"]
    monkeypatch.setattr(sys, "argv", [f"train/{name}.py", *arguments])
    with pytest.raises(SystemExit, match=r"^error: no[./].*") as caught:
        runpy.run_path(str(ROOT / "train" / f"{name}.py"), run_name="__main__")
    assert "\n" not in caught.value.code


def test_a_script_runs_from_the_repository():
    command = [sys.executable, "-m", "train.train_denoiser", "--config", "no.toml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 1
    assert done.stderr == "error: no.toml: cannot be read (No such file or directory); train/configs/ has the recipes\n"
