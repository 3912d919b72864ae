"""r2id: draw an image once, in a small latent of any size, and resample it to any resolution and aspect ratio.

Axes in tensor names: B batch, K conditions, C channels (c of a latent), H W pixels, h w latent cells, N tokens or
points, M cells or context tokens, D width, F features, L labels. Sizes are (height, width).
"""

__version__ = "0.2.0"  # before the imports: `config.json` names it

from r2id.config import PipelineConfig
from r2id.cross_attention_resampler import CrossAttentionR2IR, CrossAttentionR2IRConfig
from r2id.denoisers.r2id import R2ID, R2IDConfig
from r2id.latent import Latent
from r2id.pipeline import DiffusionStep, Pipeline
from r2id.resampler import R2IR, R2IRConfig

__all__ = [
    "R2ID",
    "R2IR",
    "CrossAttentionR2IR",
    "DiffusionStep",
    "Latent",
    "Pipeline",
    "PipelineConfig",
    "R2IDConfig",
    "R2IRConfig",
    "CrossAttentionR2IRConfig",
]
