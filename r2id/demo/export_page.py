"""A page without a server: `python -m r2id.demo.export_page weights/letters out.html --labels R,I,D --seeds 0-24`.

Writes one HTML file with their latents and the decoder, which opens from disk and decodes in the reader's browser."""

from __future__ import annotations

import argparse
import base64
import json
from collections.abc import Sequence
from pathlib import Path

from r2id.demo.assets import text
from r2id.demo.web_decoder import can_decode, pack_latent, pack_model, script
from r2id.limits import SEEDS, check_int
from r2id.pipeline import Pipeline

MAX_LATENTS = 1000


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: {message}\n")
    parser.add_argument("weights", help="a model's folder, or a Hub id")
    parser.add_argument("out", type=Path, help="the HTML file to write")
    parser.add_argument("--labels", help="separated by commas (default: the model's first three)")
    parser.add_argument("--seeds", default="0-24", help="numbers and ranges, as in 0-9,42 (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps (default: %(default)s)")
    args = parser.parse_args(argv)
    try:
        pipe = Pipeline.from_pretrained(args.weights, device=args.device)
        labels = args.labels.split(",") if args.labels else pipe.labels[:3]
        page = export_page(pipe, labels=labels, seeds=parse_seeds(args.seeds), title=Path(args.weights).name)
        args.out.write_text(page, encoding="utf-8")
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(f"{args.out}: {len(page) / 1e6:.1f} MB, labels {', '.join(labels)}, seeds {args.seeds}")


def export_page(pipe: Pipeline, *, labels: Sequence[str], seeds: Sequence[int], title: str) -> str:
    """The HTML of a page with a latent for every label and seed, generated with the model's defaults.

    Raises ValueError for unknown labels, for more than MAX_LATENTS latents and for models that browsers cannot decode.
    """
    if not can_decode(pipe):
        raise ValueError("this model cannot be exported: its resampler is not R2IR, which browsers decode")
    count = len(labels) * len(seeds)
    if not 1 <= count <= MAX_LATENTS:
        raise ValueError(f"{count} latents, {len(seeds)} for each label: must be 1…{MAX_LATENTS}; give fewer seeds")
    latents = [pipe.diffuse([label] * len(seeds), seed=list(seeds)) for label in labels]
    data = {
        "title": title,
        "model": _base64(pack_model(pipe)),
        "latents": [_base64(pack_latent(pipe, latent)) for latent in latents],
    }
    content = {"style": text("export.css"), "script": script() + text("export.js")}
    content["data"] = json.dumps(data).replace("<", "\\u003c")  # no end of the script element
    html = text("export.html")
    for name, value in content.items():
        html = html.replace(f"{{{{{name}}}}}", value)
    return html


def parse_seeds(value: str) -> list[int]:
    """ "0-9,42" → numbers. Raises ValueError for anything else."""
    seeds = []
    for part in value.split(","):
        low, _, high = part.partition("-")
        try:
            low, high = int(low), int(high or low)
        except ValueError:
            raise ValueError(f"seeds {value}: must be numbers and ranges, as in 0-9,42") from None
        check_int(low, "seed", 0, SEEDS - 1)
        check_int(high, "seed", low, min(SEEDS, low + MAX_LATENTS) - 1)
        seeds += range(low, high + 1)
    return seeds


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


if __name__ == "__main__":
    main()
