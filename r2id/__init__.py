"""r2id: resolution-invariant image diffusion. Generate a latent once, in any number of cells, and decode it at any size
and aspect ratio.

Tensor names end in their axes; a letter means the same in every file, and a file that needs another one declares it in
its first lines:

    B batch                 N tokens or points (queries)    K conditions (branches of guidance)
    C channels, c latent's  M context tokens                E width of an attention head
    H W pixels of an image  D width of a token              F basis functions along one axis
    h w cells of a latent   L labels

Sizes are (height, width), points (x, y).

A file imports from its own row and from rows further down:

    demo                                              the page
    pipeline                                          the public interface: labels → latent → images
    config                                            what `config.json` holds
    resamplers                                        their interface and their registry
    resampler, fast_decode                            R2IR, and its decoder of a grid
    cross_attention_resampler, cross_attention_basis  R2IR as published, and what it reads
    sampler                                           solvers, guidance, the loop over steps
    denoisers                                         one published system a file, and their registry
    condition, layers, local_basis, interpolation     what models are made of
    latent, dataclass_io, hub                         data on disk, and the Hub
    checkpoint, image, image_file, colour             files: weights, images
    position, schedule, precision, allocator          coordinates, noise, how this machine computes
    limits                                            checks of arguments
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
