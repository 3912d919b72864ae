"""Training state → weights: `python -m train.export runs/mnist weights/mnist` writes what `Pipeline.from_pretrained`
reads, from the averaged weights of the newest states, and a model card; `--push owner/name` uploads it to the Hub.
`python -m train.export --upgrade weights/mnist` converts weights of format 1."""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
from contextlib import suppress
from dataclasses import asdict
from itertools import accumulate
from pathlib import Path

import torch
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from r2id.checkpoint import CheckpointError
from r2id.config import FORMAT
from r2id.hub import HUB_ID, HUB_TIMEOUT_SECONDS
from train.engine.assemble import build_pipeline
from train.engine.cli import script
from train.engine.format1 import upgrade
from train.engine.recipe import DenoiserRecipe, read_recipe
from train.engine.state import State, load_state
from train.evaluation.card import Origin, model_card

DTYPES = ("float32", "float16", "bfloat16")
LICENCE = re.compile(r"[a-z0-9][a-z0-9.-]*")
REFUSED = {
    401: "the token is not valid; run `hf auth login`, or set HF_TOKEN to one that may write",
    403: "the token may not write there; use one that may, or a name of your own",
}


def main(argv: list[str] | None = None) -> None:
    args = arguments().parse_args(argv)
    dtype = args.dtype and getattr(torch, args.dtype)
    check(args)
    if args.upgrade:
        upgrade(args.upgrade, dtype)
        print(f"{args.upgrade}: now of format {FORMAT}")
        return
    denoiser = newest_state(args.run, "denoiser")
    resampler = resampler_of(args.run, denoiser.metadata)
    if args.config:
        denoiser.metadata["recipe"]["defaults"] = asdict(read_recipe(DenoiserRecipe, args.config).defaults)
    pipe = build_pipeline(resampler, denoiser.metadata, denoiser.part("ema"))
    folder, before = Path(args.weights), fingerprints(Path(args.weights))
    pipe.save(folder, dtype=dtype)
    steps = f"resampler step {resampler and resampler.metadata['step']}, denoiser {denoiser.metadata['step']}"
    print(f"{folder}: {steps}")
    card, report = folder / "README.md", folder / "report.json"
    same = fingerprints(folder) == before
    if report.exists() and not same:
        print(f"{report}: describes other weights and is left out; measure again, then export again with --card")
    if args.card or not card.exists():
        stages = ({"resampler": resampler.metadata} if resampler else {}) | {"denoiser": denoiser.metadata}
        figures = read_report(report) if same and report.exists() else None
        samples = copy_samples(Path(args.run) / "denoiser", folder, denoiser.metadata["step"])
        origin = Origin(folder, args.push, stages, args.license, samples, figures)
        partial = card.with_suffix(".partial")
        partial.write_text(model_card(pipe, origin), encoding="utf-8")
        partial.replace(card)
    else:
        print(f"{card}: kept as it is{'' if same else ', though the weights are new'}; --card writes it anew")
    if args.push:
        weights = ["denoiser.safetensors", *(["resampler.safetensors"] if resampler else [])]
        files = ["config.json", *weights, "README.md", *(["report.json"] if same else [])]
        commit = push(folder, args.push, files + images_of(card), private=args.private)
        print(f'{args.push}: Pipeline.from_pretrained("{args.push}", revision="{commit}")')


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("run", nargs="?", help="folder of the run, with denoiser/ and, except in pixel space, resampler/")
    add("weights", nargs="?", help="folder to write, such as weights/mnist")
    add("--upgrade", metavar="DIR", help="convert weights of format 1 in place, and nothing else")
    add("--dtype", choices=DTYPES, help="of the large tensors in the files (default: float32; with --upgrade: theirs)")
    add("--config", help="denoiser recipe whose [defaults] to write; default: the run's own")
    add("--license", help="for the card: an identifier of the Hub's list, such as mit or cc-by-4.0")
    add("--card", action="store_true", help="replace an existing README.md; its text is lost")
    add("--push", metavar="USER/NAME", help="upload the folder to this repository of the Hub")
    add("--private", action="store_true", help="with --push: a private repository")
    return parser


def check(args: argparse.Namespace) -> None:
    """Raises ValueError for arguments that are malformed or do not go together."""
    if args.upgrade and args.run:
        raise ValueError(f"--upgrade {args.upgrade}: goes without a run")
    if not args.upgrade and not args.weights:
        raise ValueError("run and weights: give the folder of a run and one to write, or --upgrade DIR")
    if args.license and not LICENCE.fullmatch(args.license):
        raise ValueError(f"--license {args.license}: must be an identifier of the Hub's list, such as mit or cc-by-4.0")
    if args.push and not HUB_ID.fullmatch(args.push):
        raise ValueError(f"--push {args.push}: must be USER/NAME")
    if args.private and not args.push:
        raise ValueError("--private: goes with --push only")


def resampler_of(run: str, metadata: dict) -> State | None:
    """The newest state of the resampler that a denoiser was trained on, None in pixel space. Raises ValueError where
    the resampler's latents have changed since."""
    if (trained_on := metadata["resampler_step"]) is None:
        return None
    resampler = newest_state(run, "resampler")
    step, phases = resampler.metadata["step"], resampler.metadata["recipe"]["optimisation"]["phases"]
    ends = accumulate(phase["steps"] for phase in phases)
    since = [p for p, end in zip(phases, ends, strict=True) if end > trained_on and end - p["steps"] < step]
    if trained_on != step and not (since and all(phase.get("decoder_only") for phase in since)):
        seen = f"the denoiser was trained on the resampler of step {trained_on}, the newest is {step}"
        raise ValueError(f"{run}: {seen}; train the denoiser again")
    return resampler


def fingerprints(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.safetensors")}


def read_report(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not usable as JSON ({error}); measure again with python -m train.evaluate") from None


def copy_samples(run: Path, folder: Path, step: int) -> int | None:
    """Copies the run's last sheet of samples up to a step to samples.png → its step, None for none."""
    sheets = {int(path.stem[8:]): path for path in run.glob("samples-*.png") if path.stem[8:].isdecimal()}
    last = max((made for made in sheets if made <= step), default=None)
    if last is not None:
        shutil.copyfile(sheets[last], folder / "samples.png")
    return last


def images_of(card: Path) -> list[str]:
    """The images beside a card that it shows."""
    text = card.read_text(encoding="utf-8")
    return sorted(path.name for path in card.parent.glob("*.png") if path.name in text)


def push(folder: Path, name: str, files: list[str], *, private: bool) -> str:
    """Uploads files of a folder to the Hub repository `owner/name`, which is created if needed → the commit.

    Raises ValueError, one line: without a token, network or permission, or if `private` and it is public already.
    """
    api, public = HfApi(), False
    try:
        if get_token() is None:
            raise ValueError("no token of the Hub; run `hf auth login`, or set HF_TOKEN")
        with suppress(RepositoryNotFoundError):
            public = not api.model_info(name, timeout=HUB_TIMEOUT_SECONDS).private
        if private and public:
            raise ValueError("the repository is public; make it private in its settings, or give another name")
        api.create_repo(name, private=private or None, exist_ok=True)
        return api.upload_folder(repo_id=name, folder_path=folder, allow_patterns=files).oid
    except HfHubHTTPError as error:
        raise CheckpointError(f"--push {name}: {REFUSED.get(error.response.status_code, error)}") from error
    except ValueError as error:
        raise CheckpointError(f"--push {name}: {error}") from error
    except Exception as error:  # The Hub's other errors have no base class in common.
        reason = error.__cause__ or error
        raise CheckpointError(f"--push {name}: no upload to {api.endpoint}: {reason}; try again") from error


def newest_state(run: str, stage: str) -> State:
    state = load_state(Path(run) / stage)
    if state is None:
        raise ValueError(f"{run}/{stage}: no state there; train it first with python -m train.train_{stage}")
    return state


if __name__ == "__main__":
    script(main)
