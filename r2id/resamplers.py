"""The resamplers, by the name that `resampler.architecture` has in `config.json`. Another one is one line here."""

from r2id.cross_attention_resampler import CrossAttentionR2IR, CrossAttentionR2IRConfig
from r2id.resampler import R2IR, R2IRConfig

RESAMPLERS = {
    "r2ir": (R2IRConfig, R2IR),
    "r2ir-cross-attention": (CrossAttentionR2IRConfig, CrossAttentionR2IR),
}


def architecture_of(config) -> str:
    """The name of a resampler's configuration."""
    return next(name for name, (config_type, _) in RESAMPLERS.items() if type(config) is config_type)
