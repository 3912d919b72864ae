"""The steps that a first visit shows."""

import base64
import io

import numpy as np
from PIL import Image

from r2id.demo.first_visit import SIDE, FirstSteps
from r2id.demo.models import Models
from r2id.demo.serving.generation import GenerationService


def pixels(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))), int)


def test_the_steps_end_with_the_first_image_and_are_generated_once(tiny_weights, tmp_path, monkeypatch):
    service = GenerationService(Models(tiny_weights.parent, device="cpu"))
    steps = FirstSteps(service)
    frames = steps()
    assert len(frames) == 4 and pixels(frames[0]).shape == (SIDE, SIDE)
    pipe, latent = service.first_latent(service.default_request("tiny"))
    image = pipe.resample(latent, size=(SIDE, SIDE))[0, 0].numpy() * 255
    assert np.abs(pixels(frames[-1]) - image).max() <= 3 < np.abs(pixels(frames[0]) - image).max()
    monkeypatch.setattr(service, "diffuse_steps", None)
    assert steps() is frames
    assert FirstSteps(GenerationService(Models(tmp_path)))() == []
