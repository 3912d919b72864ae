"""What a browser needs to decode latents by itself (web/decoder.js): a model's decoder, and the tokens of latents.

Both travel as safetensors within gzip; the same content gives the same bytes, so files are cached by their content.
Tokens and `coefficients_out` are half floats, which moves 8-bit images by at most 1/255.
"""

# Annotations are not postponed here: gr.api reads them as they are. Only the endpoint needs Gradio.
import gzip
import hashlib
import json
import secrets
from collections.abc import Callable
from functools import partial
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from r2id.demo.assets import text
from r2id.demo.illustrations import equal_numbers_pixels
from r2id.latent import Latent, check_latent
from r2id.limits import MAX_CELLS
from r2id.pipeline import Pipeline
from r2id.resampler import R2IR

SCRIPTS = ("decoder_axes.js", "decoder_shaders.js", "decoder_program.js", "decoder.js")
ROWS = 16  # of a batch that are computed at once: bounds memory
SUFFIX = ".safetensors.gz"
RESAMPLER_FIELDS = """channels latent_channels width features decoder_harmonics base_frequency border_rings pixel_width
linear_codec""".split()
PIPELINE_FIELDS = ("background", "decoder_size", "fit")


def can_decode(pipe: Pipeline) -> bool:
    """Whether the browser can decode for this model; one in pixel space or with other resamplers needs the server."""
    return isinstance(pipe.resampler, R2IR) and pipe.config.channels in (1, 3)


def latent_value(pipe: Pipeline, latent: Latent, latent_id: str) -> dict:
    """What web/pane.js has to know of the rows of a latent, which it shows side by side."""
    (h, w), count, (height, width) = latent.size, len(latent), equal_numbers_pixels(latent, pipe.config.channels)
    ground = [round(255 * c) for c in (pipe.config.background * 3)[:3]]
    return dict(
        id=latent_id,
        count=count,
        cells=(h, count * w),
        aspect=count * latent.aspect,
        numbers=latent.tensor.shape[1],
        small=(height, count * width),
        background="rgb({}, {}, {})".format(*ground),
        reach=cell_reach(pipe),
    )


def cell_reach(pipe: Pipeline) -> dict | None:
    """How far from its centre, in cells, a cell acts on the image, and whether beyond the frame; None: everywhere."""
    if pipe.resampler is None:
        return dict(cells=2, beyond=False)  # of bicubic interpolation
    return dict(cells=1, beyond=pipe.resampler.config.border_rings > 0) if isinstance(pipe.resampler, R2IR) else None


def script() -> str:
    """The JavaScript that decodes, as one text."""
    return "\n".join(text(name) for name in SCRIPTS)


def pack_model(pipe: Pipeline) -> bytes:
    """The part of a model that follows its decoder's last block. Raises ValueError unless `can_decode`."""
    resampler, config = _resampler(pipe), pipe.config
    kept = ("border_token", "coefficients_out.", "pixel_mlp.", "pixel_linear.")
    tensors = {name: value for name, value in resampler.state_dict().items() if name.startswith(kept)}
    tensors = {name: v.half() if name.startswith("coefficients_out.") else v for name, v in tensors.items()}
    known = {name: getattr(resampler.config, name) for name in RESAMPLER_FIELDS}
    known |= {name: getattr(config, name) for name in PIPELINE_FIELDS}
    return _pack(tensors, {"config": known})


@torch.no_grad()
def pack_latent(pipe: Pipeline, latent: Latent) -> bytes:
    """The cells' tokens (B, h, w, D) of latents after the decoder's last block, without the border: `token`, half."""
    resampler, latent = _resampler(pipe), check_latent(latent, pipe.config.latent_channels, MAX_CELLS)
    parts = latent.tensor.to(pipe.resampler_device).split(ROWS)
    token_BhwD = torch.cat([resampler.prepare(part, latent.aspect).token_BhwD for part in parts])
    if rings := resampler.config.border_rings:
        token_BhwD = token_BhwD[:, rings:-rings, rings:-rings]
    metadata = {"aspect": latent.aspect, "seeds": latent.seeds, "labels": latent.labels}
    return _pack({"token": token_BhwD.half()}, metadata)


def decoder_file(pipe: Pipeline, latent: Latent | None = None) -> Path:
    """`pack_latent` of a latent, or `pack_model` without one, as a file that Gradio serves, named by its content."""
    from gradio.utils import get_upload_folder

    content = pack_model(pipe) if latent is None else pack_latent(pipe, latent)
    folder = Path(get_upload_folder()) / hashlib.sha256(content).hexdigest()[:32]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{'decoder' if latent is None else 'tokens'}{SUFFIX}"
    (part := path.with_suffix(f".{secrets.token_hex(4)}")).write_bytes(content)
    return part.replace(path)  # a new date: Gradio deletes old files


def decoder_endpoint(chosen: Callable, uploaded: Callable, worker: Callable) -> Callable:
    """The function of the endpoint `decoder`. chosen(model) → name and pipeline, uploaded(file, name) → path and
    worker(function) → its result, computed where the server computes, are those of the other endpoints."""
    import gradio as gr

    from r2id.demo.request import LIMITS
    from r2id.demo.wiring import gradio_errors

    most = LIMITS["count"][1]

    def decoder(latent: gr.FileData | None = None, model: str | None = None) -> gr.FileData:
        """What a program needs to decode by itself: of a latent its tokens, without one the model's decoder. Both are
        gzipped safetensors; r2id/demo/web/decoder.js reads them.

        Args:
            latent: a file that diffuse or encode returned; without it, the model's decoder is returned
            model: the one that made the latent, by default the first
        """
        with gradio_errors():
            _, pipe = chosen(model)
            read = None if latent is None else Latent.load(uploaded(latent, "latent"))
            if read is not None and len(read) > most:
                raise ValueError(f"latent of {len(read)} rows: at most {most}; send the rest, latent[i:j].save(file)")
            return gr.FileData(path=str(worker(partial(decoder_file, pipe, read))))

    return decoder


def _resampler(pipe: Pipeline) -> R2IR:
    if not can_decode(pipe):
        raise ValueError("this model is decoded by the server alone: its resampler is not R2IR, use resample")
    return pipe.resampler


def _pack(tensors: dict[str, Tensor], metadata: dict) -> bytes:
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    return gzip.compress(safetensors.torch.save(tensors, {"r2id": json.dumps(metadata)}), mtime=0)
