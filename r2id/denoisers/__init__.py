"""The systems: each file holds one, under one signature.

`output = denoiser(noisy_BCHW, alpha_bar_B, positions, conditions, carry=None)`: `conditions` is a sequence of K token
tensors (B, N, D), or None for null; `output.prediction` is (K, B, C, H, W).
"""

from r2id.denoisers.r2id import R2ID, R2IDConfig

SYSTEMS = {"r2id": (R2IDConfig, R2ID)}
