"""A cache of data sets for these tests alone, and what the scripts trained once, for all tests that read it."""

from __future__ import annotations

from pathlib import Path

import pytest
from digits import digit_bytes
from PIL import Image
from scripts import PIXELS, train, write

from train import export, train_denoiser


@pytest.fixture(scope="session", autouse=True)
def cache_of_data_sets(tmp_path_factory):
    import datasets  # takes seconds

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        datasets.disable_progress_bars()
        yield


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> str:
    """The 64 digits as an image folder, 20 of them once more as the test set."""
    folder = tmp_path_factory.mktemp("images")
    for split, count in (("train", 64), ("test", 20)):
        for number, pixels in enumerate(digit_bytes()[:count]):
            (folder / split / str(number % 10)).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / split / str(number % 10) / f"{number:02}.png")
    return str(folder)


@pytest.fixture(scope="session")
def trained(tmp_path_factory, images) -> Path:
    return train(tmp_path_factory.mktemp("trained"), images)


@pytest.fixture(scope="session")
def trained_on_pixels(tmp_path_factory, images) -> Path:
    folder = tmp_path_factory.mktemp("pixels")
    train_denoiser.main(["--config", write(folder, PIXELS), "--data", images, "--out", str(folder / "run")])
    export.main([str(folder / "run"), str(folder / "weights")])
    return folder / "weights"
