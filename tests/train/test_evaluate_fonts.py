"""Letters: a whole report from a tiny model and three fonts, whose truth is known at every size."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from test_font_families import family_in
from test_fonts import alphabet, save_font

from r2id import R2ID, Pipeline
from r2id.checkpoint import save_module
from train.data import images as data
from train.data.images import SPLITS, Glyphs
from train.evaluate import load_for, main
from train.evaluation import detail
from train.evaluation.classifier import Classifier
from train.evaluation.metrics import bring_to
from train.evaluation.protocol import Evaluation, Protocol, in_cells

LETTERS, ENCODER, DECODER = "ABC", 8, 32
PROTOCOL = Protocol(
    generated=6,
    cells=((4, 4),),
    inputs=(0.5,),
    generated_cells=((4, 4),),
    outputs=(4, 8, 16, 300),
    enlargements=(2, 4, 16),
    outline=2,
    outline_cells=((4, 4), (5, 5)),
    outline_sizes=(16, 32),
    patch_densities=(2,),
)


@pytest.fixture(scope="module")
def letters(tiny) -> Pipeline:
    """The tiny model, for three letters and targets four times as dense as its images."""
    torch.manual_seed(0)
    denoiser = replace(tiny.config.denoiser, num_classes=len(LETTERS))
    sizes = {"encoder_size": ENCODER, "decoder_size": DECODER}
    config = replace(tiny.config, labels=tuple(LETTERS), denoiser=denoiser, **sizes)
    return Pipeline(config, tiny.resampler, R2ID(denoiser), device="cpu", decoder_dtype="float32")


@pytest.fixture
def fonts(tmp_path, monkeypatch) -> str:
    """A font of each split."""
    monkeypatch.setattr(data, "HF_HOME", tmp_path)
    for seed, split in enumerate(SPLITS):
        save_font(tmp_path / "fonts" / f"{split}.ttf", family_in(split), alphabet(seed, LETTERS))
    return str(tmp_path / "fonts")


@pytest.fixture
def evaluation(letters, fonts) -> Evaluation:
    def load(split, limit=None):
        return load_for(letters.config, fonts, split, limit=limit)

    torch.manual_seed(0)
    judge = Classifier(1, len(LETTERS), side=16).eval()
    return Evaluation(letters, load("test"), load, judge, in_cells(PROTOCOL, letters.config))


def test_outputs_that_are_means_of_the_same_points_are_not_decoded_again(evaluation, monkeypatch):
    assert evaluation.protocol.outputs == (4, 8, 300) and evaluation.protocol.enlargements == (2, 4)
    sizes, resample = [], Pipeline.resample

    def counted(self, latent, *, size, **options):
        sizes.append((size, len(latent)))
        return resample(self, latent, size=size, **options)

    monkeypatch.setattr(Pipeline, "resample", counted)
    whole, half, large = (evaluation.judged((4, 4), side) for side in (8, 4, 300))
    assert sizes == [((8, 8), 6), ((300, 300), 1)]  # of a large output a tenth
    assert whole.shape == half.shape == (6, 1, 16, 16) and large.shape == (1, 1, 16, 16)
    direct = resample(evaluation.pipe, evaluation.generated((4, 4))[0], size=(4, 4))
    assert torch.allclose(bring_to(evaluation.at_training_size((4, 4)), 4), direct, atol=1e-5)


def test_a_patch_is_that_part_of_the_whole_image(evaluation):
    real, side = evaluation.real, 100
    assert isinstance(real.targets, Glyphs) and real.targets.shape == (3, 1, DECODER, DECODER)
    left, top = detail.places(side, count=3, seed=5)[2]
    *_, drawn = detail.true_patches(real, side, count=3, seed=5)
    glyphs = replace(real.targets, size=side, density=side)
    assert torch.equal(drawn * 2 - 1, glyphs[2:3][..., top : top + detail.PATCH, left : left + detail.PATCH])
    latents = [evaluation.generated((4, 4))[0][i] for i in range(3)]
    *_, patch = detail.decoded_patches(evaluation, latents, side, seed=5)
    whole = evaluation.pipe.resample(latents[2], size=(side, side))
    assert torch.allclose(patch, whole[..., top : top + detail.PATCH, left : left + detail.PATCH], atol=1e-5)


def test_both_judges_see_the_same_images(evaluation, monkeypatch):
    seen = []

    def read_letters(images_NCHW, names):
        seen.append(images_NCHW)
        return ["A", None, "C"] * (len(images_NCHW) // 3)

    monkeypatch.setattr(detail, "read_letters", read_letters)
    (table,) = detail.reader(evaluation)
    real, generated = table.plain()["rows"]
    assert [len(images) for images in seen] == [3, 6] and torch.equal(seen[1], evaluation.at_training_size((4, 4)))
    assert generated["unrelated reader"] == pytest.approx(2 / 3)
    assert generated["it reads nothing"] == pytest.approx(1 / 3)
    assert generated["± (1 s.e.) "] == pytest.approx((2 / 9 / 6) ** 0.5)
    labels = [LETTERS[label] for label in evaluation.real.labels]
    assert real["unrelated reader"] == pytest.approx(((labels[0] == "A") + (labels[2] == "C")) / 3)


def test_a_copy_has_no_distance_to_the_closest_training_image(evaluation):
    training = evaluation.load("train")
    evaluation.images[4, 4] = (training.images[torch.arange(6) % 3] + 1) / 2
    table, sheet = detail.closest(evaluation)
    (row,) = table.plain()["rows"]
    assert row["generated"] == pytest.approx(0, abs=1e-4) and row["real images"] > 1e-3 and sheet.name == "closest"


def test_a_region_enlarged_is_that_part_of_the_image_enlarged():
    image = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    whole = detail.enlarged(image, (0, 0, 1, 1), 64)
    inner = slice(16, 48)  # padding differs at the border
    bicubic = F.interpolate(image, size=(64, 64), mode="bicubic").clamp(*image.aminmax())
    assert torch.allclose(whole[..., inner, inner], bicubic[..., inner, inner], atol=1e-5)
    part = detail.enlarged(image, (0.25, 0.5, 0.75, 1), 32)
    assert torch.allclose(part, whole[..., 32:, 16:48], atol=1e-5)
    assert torch.equal(detail.enlarged(image, (0.5, 0, 1, 0.5), 4), image[..., :4, 4:])
    edge = torch.zeros(1, 1, 8, 8)
    edge[..., 5:] = 1
    assert detail.sharpest(edge)[0] == 5 / 8


def test_a_report_of_letters(letters, fonts, tmp_path, monkeypatch):
    for constant, value in (("SIZES", (4, 16)), ("ZOOMS", (1, 8)), ("SHOWN", 16), ("DRAWN", 64)):
        monkeypatch.setattr(detail, constant, value)
    monkeypatch.setattr(detail, "mobilenet_features", lambda images_BCHW: images_BCHW.flatten(1)[:, ::512])
    letters.save(tmp_path / "letters")
    save_module(Classifier(1, len(LETTERS), side=16), tmp_path / "judge.safetensors")
    options = ["--data", fonts, "--classifier", str(tmp_path / "judge.safetensors"), "--generated", "6"]
    options += ["--only", "reconstruction,accuracy,outline,patches", "--out", str(tmp_path / "out")]
    main([str(tmp_path / "letters"), *options], PROTOCOL)
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))

    assert report["setting"]["real images"] == 3
    outline, edges = (table["rows"] for table in report["outline"])
    assert [(row["latent"], row["output"]) for row in outline] == [
        (cells, side) for cells in ("4×4", "5×5") for side in (16, 32)
    ]
    for row in outline:
        best = row["decoded (dB)"] - row["image of as many numbers (dB)"]
        assert row["better than the first by"] == pytest.approx(best)
    assert all(row["contour to outline, mean"] > 0 for row in edges)
    (patches,) = report["patches"]
    assert [row["count"] for row in patches["rows"]] == [3, 3, 3]
    floor, *others = [row["Fréchet distance, ImageNet"] for row in patches["rows"]]
    assert all(0 <= floor < other for other in others)
    assert list(report["accuracy"][0]["rows"][0]) == ["latent", "output 4", "output 8", "output 300"]

    e = Evaluation(letters, load_for(letters.config, fonts, "test"), None, Classifier(1, 3, side=16), PROTOCOL)
    sizes, zoom = detail.detail_sheets(e)
    assert sizes.image.size == (4 + 4 + 16, 16) and zoom.name == "zoom"
