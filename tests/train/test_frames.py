"""Images of different sizes and aspect ratios in one batch: nothing is resized to a common square, and each counts as
it would alone."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from scripts import DENOISER, RESAMPLER
from test_data import save_parquet
from torch import nn

from r2id import R2ID, CrossAttentionR2IR, CrossAttentionR2IRConfig, Pipeline, R2IDConfig
from r2id.condition import LabelCondition
from r2id.denoisers.output import DenoiserOutput
from r2id.image import from_pil
from r2id.position import batched, grid_positions
from r2id.resamplers import architecture_of
from r2id.schedule import Schedule
from train import export, train_denoiser, train_resampler
from train.data import images as data
from train.data.buckets import NativeAspect, Shape, ShapeSampler
from train.data.decode import own_frame, square
from train.data.images import load_images, stream_images
from train.losses.cross_attention import CrossAttentionLoss
from train.losses.denoiser import DenoiserLoss
from train.losses.latent_space import LatentSpace

WIDEST = 16 / 9
TINY = CrossAttentionR2IRConfig(latent_channels=3, width=16, heads=2, octaves=(-2, 3))
SIZES = ((8, 8), (8, 12), (12, 8), (6, 9), (8, 8), (5, 9), (8, 11))  # 8 × 12, 6 × 9 and 8 × 11 have the same cells
OWN = NativeAspect(side=3.4, longest=6.9)
CROSS_ATTENTION = """
name = "small"
architecture = "r2ir-cross-attention"
training_size = 16
linear_codec_steps = 3

[shape_sampler]
cells = [3, 5]

[model]
latent_channels = 3
width = 16
heads = 2
encoder_blocks = 1

[optimisation]
batch = 6
warmup = 5

[[optimisation.phases]]
steps = 4
rate = [3e-3, 3e-3]
pixels_in = 24
pixels_out = 24
consistency = 0.1

[[optimisation.phases]]
steps = 2
rate = [3e-3, 1e-4]
"""


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_images() -> list[torch.Tensor]:
    return [torch.rand(1, *size, generator=rng(number)) * 2 - 1 for number, size in enumerate(SIZES)]


def resampler_loss(jitter: str = "none", **settings) -> CrossAttentionLoss:
    torch.manual_seed(0)
    model = CrossAttentionR2IR(TINY)
    for parameter in model.parameters():  # zero-initialised layers would say nothing of positions
        nn.init.normal_(parameter, std=0.2)
    return CrossAttentionLoss(
        model, background=(0.0,), jitter=jitter, pre_tanh_l2=0.1, **{"outside_fraction": 0.0, **settings}
    )


# the images


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((16, 16), (16, 16)),
        ((48, 64), (16, 21)),  # reduced
        ((64, 48), (21, 16)),
        ((10, 12), (10, 12)),  # small ones are left as they are
        ((16, 24), (16, 24)),
        ((9, 40), (9, 16)),  # cropped to 16:9
        ((90, 400), (16, 28)),
        ((400, 90), (28, 16)),
        ((1, 5), (1, 1)),
    ],
)
def test_an_image_keeps_its_frame_up_to_the_widest(size, expected):
    pixels = torch.rand(3, *size, generator=rng())
    frame = own_frame(pixels, 16, WIDEST)
    assert frame.shape == (3, *expected) and 0 <= frame.min() <= frame.max() <= 1
    assert max(expected) / min(expected) <= WIDEST
    if min(size) <= 16:
        top, left = ((side - kept) // 2 for side, kept in zip(size, expected, strict=True))
        assert torch.equal(frame, pixels[:, top : top + expected[0], left : left + expected[1]])


def test_a_frame_of_its_own_is_not_squashed():
    """A square is reduced as ever; a ramp across a wide image stays one, as steep in pixels on both axes."""
    pixels = torch.rand(1, 40, 40, generator=rng())
    assert torch.equal(own_frame(pixels, 16, WIDEST), square(pixels, 16))
    across, down = torch.linspace(0, 1, 96).expand(1, 64, 96), torch.linspace(0, 2 / 3, 64)[:, None].expand(1, 64, 96)
    steep = [own_frame(ramp, 16, WIDEST).diff(dim=axis).mean() for ramp, axis in ((across, 2), (down, 1))]
    assert steep[0] == pytest.approx(steep[1].item(), rel=0.02)


def box_of(number: int) -> Image.Image:
    """A bright box on black, of a size, shape and label of its number."""
    size = ((24, 24), (30, 20), (20, 32), (12, 14), (60, 20), (16, 18))[number % 6]
    image = Image.new("L", size)
    (width, height), half = size, min(size) // 4
    image.paste(100 + 5 * number, (width // 2 - half, height // 2 - half, width // 2 + half, height // 2 + half))
    return image


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mixed")
    for number in range(30):
        path = folder / ("even", "odd")[number % 2] / f"{number:02}.png"
        path.parent.mkdir(exist_ok=True)
        box_of(number).save(path)
    return folder


def test_a_folder_of_mixed_images_gives_lists_in_memory_on_demand_and_streamed(mixed, tmp_path, monkeypatch):
    stored = load_images(str(mixed), "train", size=16, max_aspect=WIDEST)
    assert stored.images.shape[1] == 1 and len(stored) == 27 and stored.background == (0.0,)
    sizes = [tuple(image.shape[1:]) for image in stored.images[:]]
    assert set(sizes) == {(16, 16), (16, 24), (26, 16), (14, 12), (16, 28), (18, 16)}
    batch = stored.images[torch.tensor([4, 0])]
    assert [tuple(image.shape) for image in batch] == [(1, *sizes[4]), (1, *sizes[0])]
    assert all(-1 <= image.min() < image.max() <= 1 for image in batch)

    with monkeypatch.context() as patch:
        patch.setattr(data, "IN_MEMORY", 0)
        asked = load_images(str(mixed), "train", size=16, max_aspect=WIDEST)
    assert asked.images.shape == (27, 1, None, None) and asked.background == stored.background
    assert all(map(torch.equal, asked.images[torch.arange(27)], stored.images[:]))
    assert torch.equal(asked.labels[:27], stored.labels)

    save_parquet(
        tmp_path / "shards", "train", [from_pil(box_of(n), 1, 0.0)[0].mul(255).byte().numpy() for n in range(8)]
    )
    with monkeypatch.context() as patch:
        patch.setattr(data, "VALIDATION", 2)
        streamed = stream_images(str(tmp_path / "shards"), "train", size=16, max_aspect=WIDEST)
    sizes = {tuple(image.shape) for image in streamed.images[:99]}  # epochs are mixed
    assert sizes == {(1, 26, 16), (1, 14, 12), (1, 16, 28), (1, 18, 16), (1, 16, 16), (1, 16, 24)}
    held = load_images(str(mixed), "validation", size=16)
    assert held.images.shape == (3, 1, 16, 16)  # what is evaluated stays square
    with pytest.raises(ValueError, match=r"max_aspect 0.5: must be 1 or more"):
        load_images(str(mixed), "train", max_aspect=0.5)


# shapes and their buckets


def test_images_of_any_size_get_the_cells_of_a_padded_frame():
    for seed, size_multiple in itertools.product(range(200), (1, 4)):
        shape_sampler = ShapeSampler(cells=(4, 16))
        shape, own = (shape_sampler.draw(size, generator=rng(seed), size_multiple=size_multiple) for size in (32, None))
        assert own.cells(shape.aspect) == shape.cells
        for aspect in (1 / WIDEST, 0.8, 1.0, 1.5, WIDEST):
            height, width = own.cells(aspect)
            assert height % size_multiple == width % size_multiple == 0 and max(height, width) <= 16 + size_multiple - 1
            assert size_multiple > 1 or 1 / 2.3 < width / height / aspect < 2.3
        assert own.area == own.cells(1.0)[0] * own.cells(1.0)[1]


def test_buckets_hold_every_image_as_it_is():
    images = some_images()
    buckets = OWN.buckets(images, torch.zeros(1))
    assert len(buckets) == 4 and len({bucket.cells for bucket in buckets}) == 4
    assert sorted(place for bucket in buckets for place in bucket.places) == list(range(len(images)))
    for bucket in buckets:
        held = [image for canvas_BCHW in bucket.canvases for image in canvas_BCHW]
        assert len(held) == len(bucket) and all(map(torch.equal, held, (images[place] for place in bucket.places)))
        assert {OWN.cells(image.shape[2] / image.shape[1]) for image in held} == {bucket.cells}
        alone = bucket.sizes()
        assert [place for part in alone for place in part.places] == bucket.places
        assert all(len(part.canvases) == 1 and part.cells == bucket.cells for part in alone)
    assert max(len(bucket.canvases) for bucket in buckets) == 3


# what frames of different aspects in one call give


def test_cells_of_frames_of_different_aspects_are_read_as_each_alone():
    cells, aspects = (3, 4), (1.2, 1.5, 1.4)
    grids = [grid_positions(cells, aspect) for aspect in aspects]
    together = batched(grids, [1, 1, 1])
    model, pixels = resampler_loss().model, grid_positions((6, 9), 1.5, sigma=0.5)
    colour_BNC = torch.rand(3, 54, 1, generator=rng())
    latent_BChw = model.encode(colour_BNC, pixels, together)
    decoded_BNC = model.decode(model.context(latent_BChw.tanh(), together), pixels)
    torch.manual_seed(1)
    denoiser = R2ID(R2IDConfig(latent_channels=3, width=16, heads=2, encoder_blocks=1, decoder_blocks=1, noise_width=8))
    for parameter in denoiser.parameters():
        nn.init.normal_(parameter, std=0.2)
    alpha_bar_B = torch.tensor([0.2, 0.5, 0.9])
    denoised_BChw = denoiser(latent_BChw, alpha_bar_B, together, (None,)).prediction[0]
    for row, grid in enumerate(grids):
        one = slice(row, row + 1)
        latent = model.encode(colour_BNC[one], pixels, grid)
        torch.testing.assert_close(latent, latent_BChw[one], atol=1e-5, rtol=1e-4)
        decoded = model.decode(model.context(latent.tanh(), grid), pixels)
        torch.testing.assert_close(decoded, decoded_BNC[one], atol=1e-5, rtol=1e-4)
        denoised = denoiser(latent_BChw[one], alpha_bar_B[one], grid, (None,)).prediction[0]
        torch.testing.assert_close(denoised, denoised_BChw[one], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(model.encode(colour_BNC, pixels, grids[0])[1], latent_BChw[1], atol=1e-3)


# the losses


def test_the_loss_of_a_mixed_batch_is_the_mean_of_its_images():
    loss, images = resampler_loss(), some_images()
    together, parts = loss(images, OWN, 0, 0, rng())
    alone = []
    for image in images:
        size = tuple(image.shape[1:])
        alone.append(loss(image[None], Shape(size, OWN.cells(size[1] / size[0])), 0, 0, rng()))
    assert together.item() == pytest.approx(sum(total.item() for total, _ in alone) / len(images), rel=1e-4)
    assert parts["mse"].item() == pytest.approx(sum(part["mse"].item() for _, part in alone) / len(images), rel=1e-4)
    turned = [images[place] for place in torch.randperm(len(images), generator=rng(1))]
    assert loss(turned, OWN, 0, 0, rng())[0].item() == pytest.approx(together.item(), rel=1e-5)


def test_random_points_are_as_many_of_every_image_and_of_its_own_colours(monkeypatch):
    loss, images = resampler_loss("true", outside_fraction=0.125), some_images()
    encoded, decoded = [], []
    for name, seen in (("encode", encoded), ("decode", decoded)):
        called = getattr(loss.model, name)
        monkeypatch.setattr(
            loss.model, name, lambda *given, called=called, seen=seen: seen.append(given) or called(*given)
        )
    total, parts = loss(images, OWN, 60, 70, rng(), consistency=0.1)
    assert total.isfinite() and parts["inconsistency"] > 0
    buckets = OWN.buckets(images, loss.background)
    assert len(encoded) == len(decoded) == len(buckets)  # one call a group
    for bucket, (colour_BNC, pixels, cells), (_, points) in zip(buckets, encoded, decoded, strict=True):
        most = max(image[0].numel() for image in bucket.canvases for image in image)
        assert colour_BNC.shape[:2] == pixels.absolute.shape[:2] == (len(bucket), min(60, most))
        assert points.absolute.shape == (len(bucket), min(70, most) + 5 * 32, 2)
        assert cells.grid == bucket.cells
        for row, place in enumerate(bucket.places):
            aspect = images[place].shape[2] / images[place].shape[1]
            scale = torch.tensor([min(1, aspect), min(1, 1 / aspect)])
            for positions in (pixels, points):
                torch.testing.assert_close(positions.relative[row], positions.absolute[row] * scale)
            if cells.relative.ndim == 3:
                torch.testing.assert_close(cells.relative[row], grid_positions(bucket.cells, aspect).relative)
    total.backward()
    assert loss.model.latent_out.weight.grad.abs().sum() > 0


class Zero(nn.Module):
    """Predicts that x0 is 0, so its error is the mean square of the latents; keeps what it was called with."""

    def __init__(self, jitter: float):
        super().__init__()
        self.config = SimpleNamespace(prediction_type="x0", jitter=jitter)
        self.condition = LabelCondition(10, tokens=1, width=2)
        self.seen = []

    def forward(self, noisy_BChw, alpha_bar_B, positions, conditions, recurrent_state=None):
        self.seen.append((positions, alpha_bar_B, conditions[0]))
        return DenoiserOutput(torch.zeros_like(noisy_BChw)[None])


@pytest.mark.parametrize("jitter", [0.0, 0.5])
def test_latents_times_and_labels_stay_with_their_image(jitter):
    images, labels = some_images(), torch.arange(len(SIZES))
    schedule = Schedule(shift_power=0.0)
    space = LatentSpace(resampler_loss().model, mean=(0.1, 0.0, -0.1), std=(0.5, 0.25, 2.0), schedule=schedule)
    loss = DenoiserLoss(Zero(jitter), schedule, label_dropout=0.0, jitter_grid=5)
    buckets = OWN.buckets(images, torch.tensor([-1.0]))
    total, parts = loss([space.encode_bucket(bucket) for bucket in buckets], labels, rng())
    alone = [space.encode(image[None], OWN.cells(image.shape[2] / image.shape[1])) for image in images]
    squares = [latent.square().mean().item() for latent in alone]
    assert total.item() == parts["mse"].item() == pytest.approx(sum(squares) / len(images), rel=1e-4)

    assert len(loss.model.seen) == len(buckets)  # one call a group
    edges = schedule.alpha_bar(torch.arange(8, dtype=torch.float64) / 7, cells=(1, 1))
    for bucket, (positions, alpha_bar_B, tokens_BND) in zip(buckets, loss.model.seen, strict=True):
        assert torch.equal(tokens_BND, loss.model.condition.table[labels[bucket.places]])
        for row, place in enumerate(bucket.places):
            assert edges[place + 1] <= alpha_bar_B[row] <= edges[place]  # one time a seventh, over all groups
            aspect = images[place].shape[2] / images[place].shape[1]
            grid = grid_positions(bucket.cells, aspect)
            one = len(bucket.canvases) == 1 and not jitter  # one frame is of all rows
            absolute, relative = (p if one else p[row] for p in (positions.absolute, positions.relative))
            torch.testing.assert_close(relative, absolute * torch.tensor([min(1, aspect), min(1, 1 / aspect)]))
            assert torch.equal(absolute, grid.absolute) == (jitter == 0) == (positions.grid is not None)


@pytest.mark.parametrize("architecture", ["r2ir", "r2ir-cross-attention"])
def test_mixed_images_train_both_stages_and_are_exported(architecture, mixed, tmp_path):
    resampler = RESAMPLER if architecture == "r2ir" else CROSS_ATTENTION
    for name, text in (("resampler", resampler), ("denoiser", DENOISER)):
        (tmp_path / f"{name}.toml").write_text(text)
    shared = ["--data", str(mixed), "--out", str(tmp_path / "run"), "--track", "none"]
    settings = ["--set", "native_aspect=true", "--set", "optimisation.phases.0.steps=4"]
    train_resampler.main(["--config", str(tmp_path / "resampler.toml"), *shared, *settings])
    rollout = "rollout.phases=[{steps = 1, rate = [1e-4, 1e-4]}]"
    with pytest.raises(ValueError, match="rollout.phases: need .*all in one size and"):
        train_denoiser.main(["--config", str(tmp_path / "denoiser.toml"), *shared, "--set", rollout])
    train_denoiser.main(["--config", str(tmp_path / "denoiser.toml"), *shared])
    export.main([str(tmp_path / "run"), str(tmp_path / "weights")])
    pipe = Pipeline.from_pretrained(tmp_path / "weights", device="cpu")
    assert architecture_of(pipe.config.resampler) == architecture
    assert pipe.config.trained_aspects == pytest.approx((9 / 16, 16 / 9)) and pipe.config.fit == "contain"
    assert pipe.config.encoder_size == 16 and pipe.labels == ["even", "odd"]
    assert pipe.resample(pipe.diffuse(["odd"], seed=0), size=(18, 32)).isfinite().all()
