"""The systems: each file holds one, under one signature.

`output = denoiser(noisy_BCHW, alpha_bar_B, positions, conditions, recurrent_state)`: `conditions` is a sequence of K
token tensors (B, N, D), or None for null; `output.prediction` is (K, B, C, H, W). A configuration has
`latent_channels`, `num_classes`, `prediction_type` and `size_multiple`, which sizes are multiples of, and may have
`jitter`, by which training moves the positions (standard deviation, in cells of the finest training grid).
"""

from r2id.denoisers.dimr import DiMR, DiMRConfig
from r2id.denoisers.r2id import R2ID, R2IDConfig
from r2id.denoisers.rin import RIN, RINConfig
from r2id.denoisers.s2id import S2ID, S2IDConfig

DENOISERS = {
    "r2id": (R2IDConfig, R2ID),
    "s2id": (S2IDConfig, S2ID),
    "rin": (RINConfig, RIN),
    "dimr": (DiMRConfig, DiMR),
}
