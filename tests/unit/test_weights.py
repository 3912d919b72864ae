"""The shipped weights do what their model card says, on the few digits that the tests ship."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from digits import digits
from PIL import Image, ImageDraw, ImageFont

from r2id import Pipeline
from r2id.image import from_pil
from r2id.interpolation import resize
from train.evaluation.classifier import load_classifier, to_classifier_size

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def mnist() -> Pipeline:
    return Pipeline.from_pretrained(ROOT / "weights" / "mnist", device="cpu")


@pytest.mark.parametrize(("name", "most"), [("mnist", 2**24), ("letters", 10 * 2**20), ("faces", 20 * 2**20)])
def test_they_are_small(name, most):
    assert sum(f.stat().st_size for f in (ROOT / "weights" / name).glob("*.safetensors")) <= most


def test_more_cells_make_a_better_image_and_sizes_agree(mnist):
    images = (digits()[0] + 1) / 2
    errors = {}
    for cells in (4, 8, 10):
        latent = mnist.encode(images, latent_size=(cells, cells))
        decoded = mnist.resample(latent, size=(32, 32))
        errors[cells] = 4 * F.mse_loss(decoded, images).item()  # on [-1, 1]
        larger = F.avg_pool2d(mnist.resample(latent, size=(64, 64)), 2)
        assert F.mse_loss(larger, decoded) < 10**-3.7  # 37 dB
    assert errors[4] < 0.02 and errors[8] < 0.004 and errors[10] < 0.003
    assert errors[4] > errors[8] > errors[10]


@pytest.mark.parametrize("cells", [(4, 4), (8, 8)])
def test_digits_are_read_as_their_label_whatever_the_size(mnist, cells):
    labels = torch.arange(20) % 10
    judge = load_classifier(ROOT / "train" / "classifiers" / "mnist.safetensors")
    latent = mnist.diffuse(labels.tolist(), latent_size=cells, seed=0)
    for size in ((16, 16), (64, 64)):
        read = judge(to_classifier_size(mnist.resample(latent, size=size) * 2 - 1)).argmax(dim=1)
        assert (read == labels).sum() >= 18


@pytest.mark.parametrize("system", ["s2id", "rin", "dimr"])
def test_the_other_systems_are_small_and_generate_digits_too(system):
    folder, labels = ROOT / "weights" / f"mnist-{system}", torch.arange(10)
    assert (folder / "denoiser.safetensors").stat().st_size <= 2**23
    pipe = Pipeline.from_pretrained(folder, device="cpu")
    assert pipe.config.architecture == system and pipe.config.resampler is None
    judge = load_classifier(ROOT / "train" / "classifiers" / "mnist.safetensors")
    images = pipe.resample(pipe.diffuse(labels.tolist(), steps=12, seed=0), size=(32, 32))
    assert (judge(to_classifier_size(images * 2 - 1)).argmax(dim=1) == labels).sum() >= 8


def test_an_output_of_another_shape_shows_the_digit_whole(mnist):
    latent = mnist.diffuse([3], seed=0)
    square = mnist.resample(latent, size=(36, 36))
    for size in ((64, 36), (36, 64)):
        image = mnist.resample(latent, size=size)
        top, left = (size[0] - 36) // 2, (size[1] - 36) // 2
        torch.testing.assert_close(image[:, :, top : top + 36, left : left + 36], square, rtol=0, atol=1e-5)
        margins = image.clone()
        margins[:, :, top : top + 36, left : left + 36] = 0
        assert margins.max() < 0.1  # the background goes on


@pytest.fixture(scope="module")
def letters() -> Pipeline:
    return Pipeline.from_pretrained(ROOT / "weights" / "letters", device="cpu")


def drawn(character: str, side: int) -> torch.Tensor:
    """Pillow's own font, white on black: (1, 1, side, side) in [0, 1]."""
    image = Image.new("L", (1024, 1024))
    ImageDraw.Draw(image).text((512, 512), character, 255, ImageFont.load_default(640), "mm")
    return from_pil(image.resize((side, side), Image.Resampling.BOX), 1, 0.0)[None]


def test_a_letter_is_nearer_to_its_outline_than_an_enlarged_image_of_as_many_numbers(letters):
    for character in "RSA":
        latent = letters.encode(drawn(character, 128), latent_size=(12, 12))
        side = math.isqrt(latent.tensor.numel())
        enlarged = resize(drawn(character, side), (512, 512)).clamp(0, 1)
        decoded = letters.resample(latent, size=(512, 512))
        error, error_enlarged = (F.mse_loss(image, drawn(character, 512)) for image in (decoded, enlarged))
        assert error < error_enlarged / 2


def test_generated_letters_are_read_as_their_label_whatever_the_size(letters):
    judge, labels = load_classifier(ROOT / "train" / "classifiers" / "letters.safetensors"), torch.arange(26)
    latent = letters.diffuse(labels.tolist(), latent_size=(8, 8), seed=0)
    for size in ((64, 64), (160, 160)):
        images = letters.resample(latent, size=size) * 2 - 1
        assert (judge(to_classifier_size(images, judge.side)).argmax(dim=1) == labels).sum() >= 22


@pytest.fixture(scope="module")
def faces() -> Pipeline:
    return Pipeline.from_pretrained(ROOT / "weights" / "faces", device="cpu")


def test_faces_look_where_they_were_asked_to(faces):
    """Faces that look left, mirrored, are more like those that look right than like themselves."""
    left, right = (
        faces.resample(faces.diffuse([label] * 12, latent_size=(8, 8), steps=8, seed=0), size=(32, 32)).mean(dim=0)
        for label in ("left", "right")
    )
    assert F.mse_loss(left.flip(-1), right) < 0.7 * F.mse_loss(left, right)


def test_a_face_is_encoded_and_decoded_and_sizes_agree(faces):
    images = faces.resample(faces.diffuse(["ahead", "half left"], steps=8, seed=0), size=(128, 128))
    latent = faces.encode(images, latent_size=(12, 12))
    decoded = faces.resample(latent, size=(128, 128))
    assert F.mse_loss(decoded, images) < 10**-3.2  # 32 dB
    assert F.mse_loss(F.avg_pool2d(faces.resample(latent, size=(256, 256)), 2), decoded) < 10**-3.5
