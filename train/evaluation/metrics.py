"""Figures of images, as pure functions: errors, distances of feature sets, shapes."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor, nn
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

SSIM_WINDOW = 11  # pixels, of a Gaussian of 1.5
SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the scales, each half as fine as the one before


def mean_square(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Batches (a, b) of one shape each → the mean over all their values of (a - b)²."""
    total, count = 0.0, 0
    for a, b in pairs:
        total += (a.double() - b.double()).square().sum().item()
        count += a.numel()
    return total / count


def psnr(mse: float) -> float:
    """Mean square error of values in [0, 1] → dB; at most 120, where float32 ends."""
    return -10 * math.log10(max(mse, 1e-12))


def frechet(features_ND: Tensor, others_MD: Tensor) -> float:
    """Squared Fréchet distance of the Gaussians with the mean and covariance of each set (Heusel et al. 2017)."""
    if min(len(features_ND), len(others_MD)) < 2:
        raise ValueError(f"{len(features_ND)} and {len(others_MD)} images: a covariance needs at least 2 of each")
    a_ND, b_MD = features_ND.double(), others_MD.double()
    a_DD, b_DD = a_ND.T.cov(), b_MD.T.cov()
    values_D, vectors_DD = torch.linalg.eigh(a_DD)
    root_DD = vectors_DD * values_D.clamp(min=0).sqrt() @ vectors_DD.T
    # tr((AB)^½) of the symmetric A^½BA^½, whose eigenvalues are those of AB
    cross = torch.linalg.eigvalsh(root_DD @ b_DD @ root_DD).clamp(min=0).sqrt().sum()
    apart = (a_ND.mean(dim=0) - b_MD.mean(dim=0)).square().sum()
    return max(0.0, (apart + a_DD.trace() + b_DD.trace() - 2 * cross).item())


def kernel_distance(features_ND: Tensor, others_MD: Tensor) -> float:
    """Squared maximum mean discrepancy under (x·y / D + 1)³, unbiased (KID, Bińkowski et al. 2018): 0 or a little less
    for sets of one distribution. In chunks, so that tens of thousands of images fit."""
    a_ND, b_MD = features_ND.double(), others_MD.double()

    def kernels(x_ND: Tensor, y_MD: Tensor) -> float:
        return sum(((part @ y_MD.T) / x_ND.shape[1] + 1).pow(3).sum().item() for part in x_ND.split(1000))

    def within(x_ND: Tensor) -> float:
        same = (x_ND.square().sum(dim=1) / x_ND.shape[1] + 1).pow(3).sum().item()
        return (kernels(x_ND, x_ND) - same) / (len(x_ND) * (len(x_ND) - 1))

    return within(a_ND) + within(b_MD) - 2 * kernels(a_ND, b_MD) / (len(a_ND) * len(b_MD))


def ms_ssim(images_BCHW: Tensor, others_BCHW: Tensor) -> float:
    """Multi-scale structural similarity of images in [0, 1], 1 at most (Wang et al. 2003), of as many of its scales as
    the side allows; of one latent at two sizes, area-reduced to the smaller, it is SelfSSIM."""
    short = min(images_BCHW.shape[2:])
    scales = 1 + sum(short > (SSIM_WINDOW - 1) * 2**k for k in range(1, len(SSIM_WEIGHTS)))
    weights = tuple(weight / sum(SSIM_WEIGHTS[:scales]) for weight in SSIM_WEIGHTS[:scales])
    window = min(SSIM_WINDOW, short - 1 + short % 2)  # odd, and no wider than a tiny image, which gets a flat one
    options = {"kernel_size": window, "gaussian_kernel": window == SSIM_WINDOW}
    return multiscale_structural_similarity_index_measure(
        images_BCHW, others_BCHW, data_range=1.0, betas=weights, normalize="relu", **options
    ).item()


def within_class_variance(features_ND: Tensor, labels_N: Tensor) -> float:
    """Variance summed over the features, averaged over the classes that have two images or more."""
    classes = [features_ND[labels_N == label].double() for label in labels_N.unique() if label >= 0]
    variances = [rows.var(dim=0).sum().item() for rows in classes if len(rows) > 1]
    if not variances:
        raise ValueError(f"{len(labels_N)} images: no class has 2 of them; take more")
    return sum(variances) / len(variances)


def diversity(features_ND: Tensor, labels_N: Tensor, real_MD: Tensor, real_labels_M: Tensor) -> float:
    """Within-class variance against that of real images: 1 is ideal, less is sameness."""
    return within_class_variance(features_ND, labels_N) / within_class_variance(real_MD, real_labels_M)


@torch.no_grad()
def judge_features(judge: nn.Module, images_NCHW: Tensor) -> Tensor:
    """Images as the judge takes them → `judge.features` (N, D), on the CPU."""
    device = next(judge.parameters()).device
    return torch.cat([judge.features(part.to(device)).cpu() for part in images_NCHW.split(1000)])


def central_square(images_BCHW: Tensor) -> Tensor:
    """The middle of each image, its short side wide."""
    height, width = images_BCHW.shape[2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return images_BCHW[:, :, top : top + side, left : left + side]


def margin_square(images_BCHW: Tensor, background_C: Tensor) -> float:
    """Mean square against the background of what lies beside the central square; 0 for square images."""
    square_BCHW = (images_BCHW - background_C.view(-1, 1, 1)).double().square()
    inner_BCHW = central_square(square_BCHW)
    beside = square_BCHW.numel() - inner_BCHW.numel()
    return (square_BCHW.sum() - inner_BCHW.sum()).clamp(min=0).item() / max(1, beside)


def bring_to(images_BCHW: Tensor, side: int) -> Tensor:
    """Images with a short side of `side` as a resampler would make them: area-reduced, or enlarged bicubically."""
    short = min(images_BCHW.shape[2:])
    size = tuple(round(side * v / short) for v in images_BCHW.shape[2:])
    if side <= short:
        return F.interpolate(images_BCHW, size=size, mode="area")
    low, high = images_BCHW.aminmax()
    return F.interpolate(images_BCHW, size=size, mode="bicubic").clamp(low, high)


def frame_size(aspect: float, short: int) -> tuple[int, int]:
    """(height, width) that holds a frame of this aspect and has a central square of `short` whole pixels."""
    long = short + 2 * math.ceil(short * (max(aspect, 1 / aspect) - 1) / 2 - 1e-6)
    return (short, long) if aspect >= 1 else (long, short)


def to_multiple(side: float, size_multiple: int) -> int:
    """The multiple nearest to a side, at least one."""
    return max(1, round(side / size_multiple)) * size_multiple


def ink(images_BCHW: Tensor, background_C: Tensor) -> Tensor:
    """How far each pixel is from the background, (B, H, W): the largest difference of its channels."""
    return (images_BCHW - background_C.view(-1, 1, 1)).abs().amax(dim=1)


def parts(ink_BHW: Tensor, *, threshold: float = 0.3, pixels: int = 8) -> Tensor:
    """Number of things drawn, (B,): regions of ink above the threshold that touch, at corners too, of `pixels` each."""
    counts = []
    for drawn_HW in (ink_BHW > threshold).cpu().numpy():
        regions_HW, _ = ndimage.label(drawn_HW, structure=np.ones((3, 3)))
        counts.append(int((np.bincount(regions_HW.ravel())[1:] >= pixels).sum()))  # without the ground, region 0
    return torch.tensor(counts)


def extent(ink_BHW: Tensor, *, faint: float = 0.1) -> Tensor:
    """Standard deviation of where the ink is, across and down, (B, 2), in short sides; 0 where there is none. Faint ink
    does not count: a little of it over wide margins would outweigh what is drawn."""
    height, width = ink_BHW.shape[1:]
    ink_BHW = ink_BHW * (ink_BHW > faint)
    deviations = []
    for axis, side in ((1, width), (2, height)):
        weight_BN = ink_BHW.double().sum(dim=axis)
        weight_BN = weight_BN / weight_BN.sum(dim=1, keepdim=True).clamp(min=1e-9)
        place_N = (torch.arange(side, dtype=torch.float64) + 0.5) / min(height, width)
        mean_B1 = (weight_BN * place_N).sum(dim=1, keepdim=True)
        deviations.append((weight_BN * (place_N - mean_B1).square()).sum(dim=1).sqrt())
    return torch.stack(deviations, dim=1)
