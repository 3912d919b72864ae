"""R2IR, the resolution-invariant image resampler: an image of any size ↔ a latent of any size → any point of the plane.

The cells of the latent are the only tokens. Encoding, each cell takes lapped local Fourier coefficients of the pixels
around it; attention works among cells. Decoding, attention works among cells again, and each cell gives the
coefficients of a few features that vary smoothly over the plane; a small MLP makes a pixel's colour of them. A decoded
value depends on the latent and on its own point alone, so any tile equals that part of the whole, and the cost is
linear in pixels. Related: LIIF's local ensemble (Chen et al. 2021), LTE (Lee & Jin 2022), lapped transforms.

Decoding is written here as one would write it in a paper; `fast_decode.py` has the separable path that is used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from r2id import fast_decode
from r2id.layers import ATTENTIONS, Block
from r2id.limits import HEADS, MAX_BLOCKS, OCTAVES, RATIOS, WIDTHS, check_choice, check_heads, check_model, ranged
from r2id.local_basis import MIN_WEIGHT, LocalBasis
from r2id.position import PositionEmbedding, Positions, Window, cell_positions, cell_sides, flat, window_of

MAX_FEATURES = 28  # of a pixel: what a browser's shader holds in seven texels
SIZE_WIDTH = 16  # of the hidden layer between the size of a cell and its token


@dataclass(frozen=True)
class R2IRConfig:
    """Sizes of an R2IR. The shipped values are in `train/configs/letters_resampler.toml`."""

    channels: int = ranged(1, 1, 64)  # of the image
    latent_channels: int = ranged(16, 1, 4096)
    width: int = ranged(128, *WIDTHS)  # of a cell's token
    heads: int = ranged(4, *HEADS)
    encoder_blocks: int = ranged(2, 0, MAX_BLOCKS)  # self-attention among cells
    decoder_blocks: int = ranged(2, 0, MAX_BLOCKS)
    mlp_ratio: int = ranged(4, *RATIOS)
    encoder_harmonics: int = ranged(8, 1, 64)  # of the local basis along one axis
    decoder_harmonics: int = ranged(4, 1, 64)
    base_frequency: float = ranged(0.5, 0.0, 16.0)  # of the first harmonic, in cycles per cell
    features: int = ranged(28, 1, MAX_FEATURES)  # of a pixel, at most 28
    pixel_width: int = ranged(64, *WIDTHS)  # of the MLP that makes a colour of them
    linear_codec: bool = True  # a linear map beside each stack of blocks
    border_rings: int = ranged(2, 0, 8)  # of border cells around the frame; 0 where the data have no known background
    octaves: tuple[int, int] = ranged((-2, 3), *OCTAVES)  # of the cells' position features
    attention: str = "softmax"
    dropout: float = ranged(0.0, 0.0, 0.99)

    def __post_init__(self):
        check_model(self)
        check_heads(self.heads, width=self.width)
        check_choice(self.attention, "attention", ATTENTIONS)


@dataclass(frozen=True)
class DecoderContext:
    """What decoding needs of some latents, computed once for every tile and output size.

    `token_BhwD`: the cells' tokens after the last block, with the latent itself behind them where there is a linear
    codec; border rings included. `coefficient_BhwFFD`: what the last linear map makes of them, the basis in y first.
    """

    token_BhwD: Tensor
    coefficient_BhwFFD: Tensor
    cells: tuple[int, int]  # without the border


class R2IR(nn.Module):
    """See `resamplers.Resampler`. `decode` is the definition, `grid_decoder` what is used."""

    def __init__(self, config: R2IRConfig):
        super().__init__()
        self.config = config
        width, features, linear = config.width, config.features, config.latent_channels * config.linear_codec
        block = {"heads": config.heads, "mlp_ratio": config.mlp_ratio, "attention": config.attention}
        block |= {"dropout": config.dropout, "cross_attention": False, "self_attention": True}

        # encode: pixels → coefficients of each cell → latent
        self.encoder_basis = LocalBasis(config.encoder_harmonics, config.base_frequency)
        coefficients = self.encoder_basis.size**2 * config.channels
        self.coefficients_in = nn.Linear(coefficients, width)
        self.encoder_position = CellPosition(width, config.octaves)
        self.encoder = nn.ModuleList(Block(width, **block) for _ in range(config.encoder_blocks))
        self.encoder_norm = nn.LayerNorm(width)
        self.latent_out = nn.Linear(width, config.latent_channels)
        self.linear_encoder = nn.Linear(coefficients, linear, bias=False) if linear else None

        # decode: latent → coefficients of features → colour of a pixel
        self.latent_in = nn.Linear(config.latent_channels, width)
        self.decoder_position = CellPosition(width, config.octaves)
        self.decoder = nn.ModuleList(Block(width, **block) for _ in range(config.decoder_blocks))
        self.decoder_norm = nn.LayerNorm(width)
        self.decoder_basis = LocalBasis(config.decoder_harmonics, config.base_frequency)
        if config.border_rings:
            self.border_token = nn.Parameter(torch.zeros(width + linear))
        self.coefficients_out = nn.Linear(width + linear, self.decoder_basis.size**2 * features)
        self.pixel_mlp = nn.Sequential(
            nn.Linear(features, config.pixel_width),
            nn.SiLU(),
            nn.Linear(config.pixel_width, config.pixel_width),
            nn.SiLU(),
            nn.Linear(config.pixel_width, config.channels),
        )
        self.pixel_linear = nn.Linear(features, config.channels, bias=False)

    def encode_image(self, image_BCHW: Tensor, size: tuple[int, int], aspect: float | Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] that fill their frames → latents (B, c, h, w) in [-1, 1], size = (h, w).

        aspect: width / height of the frame, one or (B,); None: that of the image.
        """
        height, width = image_BCHW.shape[2:]
        return self.encode(self.coefficients(image_BCHW, size), size, width / height if aspect is None else aspect)

    def coefficients(self, image_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
        """Lapped Fourier coefficients (B, M, F²·C) of images around each of h × w cells: Σ w·colour·b / Σ w."""
        y_HhF, x_WwF = (
            self.encoder_basis.dense(pixel_centres(pixels), cells).to(image_BCHW.device)
            for pixels, cells in zip(image_BCHW.shape[2:], size, strict=True)
        )
        weight_hw = torch.outer(y_HhF[..., 0].sum(dim=0), x_WwF[..., 0].sum(dim=0)).clamp(min=MIN_WEIGHT)
        sum_BChFwF = (y_HhF.flatten(1).T @ image_BCHW @ x_WwF.flatten(1)).unflatten(2, (size[0], -1))
        sum_BhwFFC = sum_BChFwF.unflatten(4, (size[1], -1)).permute(0, 2, 4, 3, 5, 1)
        return (sum_BhwFFC / weight_hw[:, :, None, None, None]).flatten(3).flatten(1, 2)

    def encode(self, coefficient_BMF: Tensor, size: tuple[int, int], aspect: float | Tensor) -> Tensor:
        """What `coefficients` gave → latents (B, c, h, w) in [-1, 1]."""
        token_BMD = self.coefficients_in(coefficient_BMF) + self.encoder_position(size, aspect, coefficient_BMF.device)
        for block in self.encoder:
            token_BMD = block(token_BMD)
        latent_BMc = self.latent_out(self.encoder_norm(token_BMD))
        if self.linear_encoder is not None:
            latent_BMc = latent_BMc + self.linear_encoder(coefficient_BMF)
        return torch.tanh(latent_BMc).transpose(1, 2).unflatten(2, size)

    def prepare(self, latent_BChw: Tensor, aspect: float | Tensor) -> DecoderContext:
        """Latents (B, c, h, w) in [-1, 1] and the aspect of their frames, one or (B,) → what decoding needs of them."""
        size = tuple(latent_BChw.shape[2:])
        latent_BMc = latent_BChw.flatten(2).transpose(1, 2)
        token_BMD = self.latent_in(latent_BMc) + self.decoder_position(size, aspect, latent_BChw.device)
        for block in self.decoder:
            token_BMD = block(token_BMD)
        token_BMD = self.decoder_norm(token_BMD)
        if self.config.linear_codec:
            token_BMD = torch.cat((token_BMD, latent_BMc.to(token_BMD.dtype)), dim=-1)
        token_BhwD = token_BMD.unflatten(1, size)
        if rings := self.config.border_rings:
            token_BhwD = with_border(token_BhwD, self.border_token, rings)
        basis = self.decoder_basis.size
        coefficient_BhwFFD = self.coefficients_out(token_BhwD).unflatten(-1, (basis, basis, -1))
        return DecoderContext(token_BhwD, coefficient_BhwFFD, size)

    def decode(self, context: DecoderContext, positions: Positions) -> Tensor:
        """Colours (B, N, C), about [-1, 1], at any points (N, 2): the definition, and slow."""
        x_NwF, y_NhF = (
            self.decoder_basis.dense(
                positions.absolute[:, axis].double(), context.cells[1 - axis], self.config.border_rings
            )
            for axis in (0, 1)
        )
        return self.colour(torch.einsum("nhi,nwj,bhwijd->bnd", y_NhF, x_NwF, context.coefficient_BhwFFD))

    def colour(self, feature_ND: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Features of points (…, D) → colours (…, C). dtype: to compute in; None: that of the weights."""
        if dtype is None:
            return self.pixel_mlp(feature_ND) + self.pixel_linear(feature_ND)
        feature_ND = hidden_ND = feature_ND.to(dtype)
        for layer in self.pixel_mlp:
            hidden_ND = cast(layer, dtype, hidden_ND)
        return (hidden_ND + cast(self.pixel_linear, dtype, feature_ND)).float()

    def grid_decoder(
        self, context: DecoderContext, window: Window, size: tuple[int, int], dtype: torch.dtype | None = None
    ) -> Callable[[range, range], Tensor]:
        """`decode` of the pixels of a window, size = (H, W): a function of ranges of rows and of columns → colours
        (B, C, rows, columns). dtype: see `fast_decode.GridDecoder`."""
        rows, columns = (self.axis(window.coordinates(axis, range(size[1 - axis])), context, axis) for axis in (1, 0))
        grid = fast_decode.GridDecoder(self, context, dtype)
        return lambda down, across: grid(rows[down.start : down.stop], columns[across.start : across.stop])

    def axis(self, values_N: Tensor, context: DecoderContext, axis: int) -> fast_decode.AxisFeatures:
        """Rising absolute x (axis 0) or y (1), float64 (N,) → what `fast_decode` needs of them."""
        device, cells = context.token_BhwD.device, context.cells[1 - axis]
        return fast_decode.axis_features(self.decoder_basis, values_N, cells, self.config.border_rings, device)

    def reach(self, cells: tuple[int, int]) -> tuple[float, float]:
        """How far from the frame's centre (x, y) the decoder speaks of the plane, in absolute units: the outermost ring
        of border cells, or without one the frame. Beyond lies the background."""
        rings = self.config.border_rings
        return tuple(0.5 + max(0.0, rings - 0.5) / count for count in reversed(cells))

    def decode_image(
        self, latent_BChw: Tensor, *, size: tuple[int, int], aspect: float = 1.0, fit: str = "stretch"
    ) -> Tensor:
        """Latents (B, c, h, w) in [-1, 1] → images (B, C, H, W), about [-1, 1], a point a pixel, with gradients.

        aspect: of the frame. fit: which window of its plane, as in `position.window_of`; size = (H, W).
        """
        context = self.prepare(latent_BChw, aspect)
        decode = self.grid_decoder(context, window_of(size, aspect=aspect, fit=fit), size)
        return decode(range(size[0]), range(size[1]))


class CellPosition(nn.Module):
    """Where a cell lies, in both coordinate systems, and how large it is → (M, D) or (B, M, D)."""

    def __init__(self, width: int, octaves: tuple[int, int]):
        super().__init__()
        self.position = PositionEmbedding(width, octaves)
        self.size = nn.Sequential(nn.Linear(2, SIZE_WIDTH), nn.Tanh(), nn.Linear(SIZE_WIDTH, width))

    def forward(self, size: tuple[int, int], aspect: float | Tensor, device: torch.device) -> Tensor:
        positions = cell_positions(size, aspect).to(device)
        return flat(self.position(positions), positions) + self.size(cell_sides(size, aspect).log2().to(device))


def with_border(token_BhwD: Tensor, border_D: Tensor, rings: int) -> Tensor:
    """The lattice of cells with so many rings of the border token around it."""
    batch, h, w, _ = token_BhwD.shape
    side_BhND = border_D.to(token_BhwD.dtype).expand(batch, h, rings, -1)
    token_BhwD = torch.cat((side_BhND, token_BhwD, side_BhND), dim=2)
    end_BNwD = border_D.to(token_BhwD.dtype).expand(batch, rings, w + 2 * rings, -1)
    return torch.cat((end_BNwD, token_BhwD, end_BNwD), dim=1)


def pixel_centres(pixels: int) -> Tensor:
    """Absolute coordinates of the centres of so many pixels that fill an axis of the frame, float64 (N,)."""
    return (torch.arange(pixels, dtype=torch.float64) + 0.5) / pixels - 0.5


def cast(layer: nn.Module, dtype: torch.dtype, tokens: Tensor) -> Tensor:
    """A layer's result in another dtype than that of its weights."""
    if not isinstance(layer, nn.Linear):
        return layer(tokens)
    return F.linear(tokens, layer.weight.to(dtype), None if layer.bias is None else layer.bias.to(dtype))
