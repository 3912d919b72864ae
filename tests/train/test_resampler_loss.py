"""What R2IR's loss compares with what: a lattice of the plane, read from images that may be denser than the encoder
sees them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from digits import digits
from torch import Tensor, nn

from r2id import R2IR, R2IRConfig
from r2id.position import Positions
from train.data.buckets import NativeAspect, Shape, pad_to
from train.losses.adversarial import AdversarialLoss
from train.losses.resampler import ResamplerLoss, read_lattice, targets_of

TINY = R2IRConfig(
    latent_channels=3, width=16, heads=2, encoder_harmonics=2, decoder_harmonics=2, features=4, pixel_width=8
)
COLOURS = torch.tensor([0.25, -0.5, 0.75])
SIZES = ((8, 8), (8, 12), (12, 8), (6, 9), (8, 8), (8, 11))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(*size: int, count: int = 2, channels: int = 3, seed: int = 0) -> Tensor:
    return torch.rand(count, channels, *size, generator=rng(seed)) * 2 - 1


def centres(pixels: int) -> Tensor:
    return (torch.arange(pixels, dtype=torch.float64) + 0.5) / pixels - 0.5


def loss_of(*, lattice: int = 12, outside_fraction: float = 0.25, seed: int = 0, **settings) -> ResamplerLoss:
    torch.manual_seed(seed)
    model = R2IR(TINY)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return ResamplerLoss(model, background=(0.0,), lattice=lattice, outside_fraction=outside_fraction, **settings)


# reading images


@pytest.mark.parametrize("size", [(8, 8), (7, 12)])
def test_colours_at_the_centres_of_pixels_are_the_image(size):
    source = images(*size)
    read = read_lattice(source, centres(size[1]), centres(size[0]), frame=size[1] / size[0], background_C=COLOURS)
    torch.testing.assert_close(read, source)


@pytest.mark.parametrize("frame", [1.0, 1.6, 0.5])
def test_around_an_image_is_the_background(frame):
    """The image lies centred in its frame, as large as the frame holds."""
    source, line = images(8, 8), torch.linspace(-0.99, 0.99, 67, dtype=torch.float64)
    read = read_lattice(source, line, line, frame=frame, background_C=COLOURS)
    across, down = line.abs() <= 0.5 * min(1, 1 / frame), line.abs() <= 0.5 * min(1, frame)
    inside = down[:, None] & across
    assert 0.05 < inside.float().mean() < 0.5
    assert torch.equal(read[:, :, ~inside], COLOURS[:, None].expand(2, 3, int((~inside).sum())))
    assert (read[:, :, inside] - COLOURS[:, None]).abs().mean() > 0.3


@pytest.mark.parametrize("canvas", [(8, 8), (8, 14), (14, 8)])
def test_a_lattice_in_a_wide_frame_reads_the_padded_image_enlarged(canvas):
    """Bicubic, but for the image's edge, over which padding would be interpolated."""
    source, fine = images(8, 8), [4 * side for side in canvas]
    enlarged = F.interpolate(pad_to(source, canvas, COLOURS), size=fine, mode="bicubic", antialias=True).clamp(-1, 1)
    frame = canvas[1] / canvas[0]
    read = read_lattice(source, centres(fine[1]), centres(fine[0]), frame=frame, background_C=COLOURS)
    top, left = ((side - 32) // 2 + 8 for side in fine)
    inner = (slice(None), slice(None), slice(top, top + 16), slice(left, left + 16))
    torch.testing.assert_close(read[inner], enlarged[inner], atol=1e-5, rtol=0)


def test_a_mirrored_image_reads_mirrored():
    source, x, y = images(8, 12), centres(12) + 0.013, centres(8) - 0.02
    x, y = x[1:-1], y[1:-1]
    read = read_lattice(source, x, y, frame=2.0, background_C=COLOURS)
    mirrored = read_lattice(source.flip(2, 3), -x.flip(0), -y.flip(0), frame=2.0, background_C=COLOURS)
    torch.testing.assert_close(mirrored.flip(2, 3), read)
    assert read.std() > 0.3


def test_a_ramp_is_read_exactly_between_its_pixels():
    """Cubic interpolation reproduces straight lines, on both axes and whatever the frame's shape."""
    across = centres(12).float().expand(1, 1, 8, 12)
    x, y = torch.linspace(-0.3, 0.3, 11, dtype=torch.float64), torch.linspace(-0.1, 0.1, 5, dtype=torch.float64)
    for frame, scale in ((1.5, 1.0), (3.0, 2.0)):
        read = read_lattice(across, x / scale, y, frame=frame, background_C=torch.zeros(1))
        torch.testing.assert_close(read[0, 0], x.float().expand(5, 11), atol=1e-6, rtol=0)


# where it is read


def test_the_lattice_covers_the_frame_and_what_is_around_it():
    loss = loss_of(lattice=32, outside_fraction=0.25)
    for seed in range(20):
        values = loss.coordinates(32, 4, rng(seed))
        assert len(values) == 32 and (values.diff() >= 0).all()
        inside = values[values.abs() < 0.5]
        assert len(inside) == 24
        assert torch.equal(((inside + 0.5) * 24).floor(), torch.arange(24, dtype=torch.float64))  # one in every stratum
        assert values.abs().max() <= 0.5 + TINY.border_rings / 4
    assert not torch.equal(values, loss.coordinates(32, 4, rng(0)))
    assert loss_of(outside_fraction=0.0).coordinates(12, 4, rng()).abs().max() < 0.5


def test_targets_belong_to_the_images_of_their_bucket():
    mixed = [images(*size, count=1, seed=number)[0] for number, size in enumerate(SIZES)]
    buckets = NativeAspect(side=3.4, longest=6.9).buckets(mixed, COLOURS)
    assert len(buckets) > 2 and max(len(bucket.canvases) for bucket in buckets) > 1
    for bucket, sources in zip(buckets, targets_of(buckets, mixed), strict=True):
        assert all(map(torch.equal, sources, bucket.canvases))
    dense = images(32, 32)
    (bucket,) = Shape((8, 14), (4, 7)).buckets(images(8, 8), COLOURS)
    ((source,),) = targets_of([bucket], dense)
    assert source is dense  # not padded: what is around is known


# the loss


@pytest.mark.parametrize("shape", [Shape((8, 8), (4, 4)), Shape((8, 14), (3, 5))])
def test_the_loss_is_the_error_of_what_is_decoded_at_the_lattice(shape):
    """By the definition of the decoder, point by point, against targets denser than what is encoded."""
    loss, seen, dense = loss_of(), images(8, 8, channels=1), images(32, 32, channels=1, seed=1)
    buckets = shape.buckets(seen, loss.background)
    total, parts = loss(buckets, targets_of(buckets, dense), rng())
    generator = rng()
    x, y = (loss.coordinates(12, cells, generator) for cells in reversed(shape.cells))
    latent = loss.model.encode_image(buckets[0].canvases[0], shape.cells)
    context = loss.model.prepare(latent, shape.aspect)
    points = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).flatten(0, 1)
    decoded = loss.model.decode(context, Positions(points, points)).transpose(1, 2).unflatten(2, (12, 12))
    wanted = read_lattice(dense, x, y, frame=shape.aspect, background_C=loss.background)
    assert total.item() == pytest.approx(F.mse_loss(decoded, wanted).item(), rel=1e-4)
    assert total.item() == parts["mse"].item() and total.requires_grad and not parts["mse"].requires_grad


class Perceptual(nn.Module):
    """Stands for the network: half of the mean absolute difference, and keeps what it compared."""

    def forward(self, decoded: Tensor, wanted: Tensor) -> Tensor:
        self.compared = decoded, wanted
        return (decoded - wanted).abs().mean() / 2


def test_the_perceptual_distance_is_of_a_window_of_whole_pixels():
    loss, image = loss_of(perceptual=Perceptual()), images(16, 16, channels=1)
    buckets, seen = Shape((16, 16), (4, 4)).buckets(image, loss.background), set()
    own = loss.model.encode_image(image, (4, 4))
    whole = loss.model.decode_image(own, size=(16, 16))
    for seed in range(12):
        total, parts = loss(buckets, targets_of(buckets, image), rng(seed), perceptual_weight=0.1, lattice=12)
        decoded, wanted = loss.perceptual.compared
        windows = [(y, x) for y in range(5) for x in range(5)]
        (place,) = (p for p in windows if torch.allclose(wanted, cut(image, p), atol=1e-5))
        seen.add(place)
        torch.testing.assert_close(decoded, cut(whole, place), atol=1e-5, rtol=1e-4)
        mse, distance = F.mse_loss(decoded, wanted).item(), (decoded - wanted).abs().mean().item() / 2
        assert (parts["mse"].item(), parts["perceptual"].item()) == pytest.approx((mse, distance))
        assert total.item() == pytest.approx(mse + 0.1 * distance)
    assert len(seen) > 6


def test_the_decoder_learns_from_the_critic_by_the_weight_and_the_critic_from_its_own_loss():
    torch.manual_seed(0)
    loss, decoded, real = AdversarialLoss(3), images(32, 32).requires_grad_(), images(32, 32, seed=1)
    towards, hinge = loss(decoded, real, 0.5)
    (from_critic,) = torch.autograd.grad(towards, decoded, retain_graph=True)
    (from_error,) = torch.autograd.grad(F.mse_loss(decoded, real), decoded)
    assert (from_critic.norm() / from_error.norm()).item() == pytest.approx(0.5, rel=1e-4) and towards.item() == 0
    before = loss.network(decoded.detach()).mean()
    moved = decoded.detach() - 20 * from_critic / from_critic.norm()  # a step downhill
    assert loss.network(moved).mean() > before
    (towards + hinge).backward()
    weights = [parameter for parameter in loss.parameters() if parameter.ndim > 1]
    assert all(weight.grad.abs().max() > 0 for weight in weights)
    loss.zero_grad()
    loss(decoded, real, 0.5)[0].backward()
    assert all(parameter.grad is None for parameter in loss.parameters())


def test_a_critic_learns_to_tell_blurred_images_from_sharp_ones():
    torch.manual_seed(0)
    loss = AdversarialLoss(1)
    optimiser = torch.optim.AdamW(loss.parameters(), 1e-3)
    sharp = images(32, 32, count=8, channels=1).sign()
    blurred = F.avg_pool2d(F.pad(sharp, (1, 1, 1, 1)), 3, stride=1).requires_grad_()
    for _ in range(12):
        hinge = loss(blurred, sharp, 0.5)[1]
        optimiser.zero_grad()
        hinge.backward()
        optimiser.step()
    assert hinge.item() < 0.5 < 2 < loss(sharp.clone().requires_grad_(), sharp, 0.5)[1].item() + 0.1


def cut(image: Tensor, place: tuple[int, int], side: int = 12) -> Tensor:
    return image[:, :, place[0] : place[0] + side, place[1] : place[1] + side]


def test_denser_targets_are_another_loss():
    loss, dense = loss_of(), images(64, 64, channels=1)
    seen = F.avg_pool2d(dense, 8)
    buckets = Shape((8, 8), (4, 4)).buckets(seen, loss.background)
    errors = [loss(buckets, targets_of(buckets, targets), rng())[0].item() for targets in (seen, dense)]
    assert errors[0] != pytest.approx(errors[1], rel=0.05)


def test_a_mixed_batch_counts_as_its_images_alone():
    loss, sampler = loss_of(), NativeAspect(side=3.4, longest=6.9)
    mixed = [images(*size, count=1, channels=1, seed=number)[0] for number, size in enumerate(SIZES)]
    buckets = sampler.buckets(mixed, loss.background)
    for bucket in buckets:
        together = loss([bucket], targets_of([bucket], mixed), rng())[0]
        alone = [loss([one], targets_of([one], mixed), rng())[0] * len(one) for one in bucket.sizes()]
        assert together.item() == pytest.approx(sum(alone).item() / len(bucket), rel=1e-4)
    assert max(len(bucket.canvases) for bucket in buckets) > 1
    generator = rng()
    total = sum(loss([bucket], targets_of([bucket], mixed), generator)[0] * len(bucket) for bucket in buckets)
    assert loss(buckets, targets_of(buckets, mixed), rng())[0].item() == pytest.approx(
        total.item() / len(mixed), rel=1e-4
    )


def test_the_encoder_learns_nothing_where_only_the_decoder_does():
    for decoder_only in (False, True):
        loss = loss_of()
        buckets = Shape((8, 8), (4, 4)).buckets(images(8, 8, channels=1), loss.background)
        loss(buckets, targets_of(buckets, images(16, 16, channels=1)), rng(), decoder_only=decoder_only)[0].backward()
        learns = {name: parameter.grad is not None for name, parameter in loss.model.named_parameters()}
        encoder = {
            name for name in learns if name.startswith(("encoder", "coefficients_in", "latent_out", "linear_encoder"))
        }
        assert all(learns[name] != decoder_only for name in encoder)
        assert all(learns[name] for name in learns.keys() - encoder) and 10 < len(encoder) < len(learns) - 10


def test_noise_on_latents_is_another_amount_for_every_image():
    loss, seen = loss_of(), []
    prepare = loss.model.prepare
    loss.model.prepare = lambda latent, aspect: seen.append(latent) or prepare(latent, aspect)
    image = images(8, 8, count=64, channels=1)
    buckets = Shape((8, 8), (6, 6)).buckets(image, loss.background)
    for latent_noise in (0.0, 0.4):
        loss(buckets, targets_of(buckets, image), rng(), latent_noise=latent_noise)
    own = loss.model.encode_image(image, (6, 6))
    torch.testing.assert_close(seen[0], own)
    amount_B = (seen[1] - own).flatten(1).std(dim=1) / own.square().mean().sqrt()  # relative to the latents
    assert amount_B.min() < 0.05 and 0.3 < amount_B.max() < 0.5 and 0.15 < amount_B.mean() < 0.25
    assert seen[1].abs().max() <= 1


def training(loss: ResamplerLoss, steps: int) -> list[dict[str, float]]:
    seen = digits(16)[0][:8]
    optimiser = torch.optim.AdamW([p for p in loss.model.parameters() if p.requires_grad], lr=1e-2)
    logged = []
    for step in range(steps):
        buckets = Shape((16, 16), (4, 4)).buckets(seen, loss.background)
        total, parts = loss(buckets, targets_of(buckets, seen), rng(step))
        total.backward()
        optimiser.step()
        optimiser.zero_grad()
        logged.append({key: value.item() for key, value in parts.items()})
    return logged


def test_the_error_falls():
    errors = [parts["mse"] for parts in training(loss_of(), 20)]
    assert sum(errors[-5:]) < 0.5 * sum(errors[:5])


def test_the_latents_of_a_teacher_are_learned():
    loss = loss_of(teacher=loss_of(seed=1).model)
    before = {name: value.clone() for name, value in loss.teacher.state_dict().items()}
    distances = [parts["latent mse"] for parts in training(loss, 20)]
    assert sum(distances[-5:]) < 0.5 * sum(distances[:5])
    assert all(torch.equal(value, before[name]) for name, value in loss.teacher.state_dict().items())


def test_half_of_what_is_decoded_are_the_teachers_latents():
    loss = loss_of(teacher=loss_of(seed=1).model)
    prepare, seen = loss.model.prepare, []
    loss.model.prepare = lambda latent, aspect: seen.append(latent) or prepare(latent, aspect)
    image = images(8, 8, count=4, channels=1)
    buckets = Shape((8, 8), (4, 4)).buckets(image, loss.background)
    total, parts = loss(buckets, targets_of(buckets, image), rng())
    own, taught = (model.encode_image(image, (4, 4)) for model in (loss.model, loss.teacher))
    torch.testing.assert_close(seen[0][::2], taught[::2])
    torch.testing.assert_close(seen[0][1::2], own[1::2])
    assert total.item() == pytest.approx(parts["mse"].item() + F.mse_loss(own, taught).item(), rel=1e-4)
