"""What the entry points share: a run with its progress bar, what a run would cost, and errors of one line."""

from __future__ import annotations

import argparse
import errno
import sys
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean, median

import torch
from torch import Generator, nn

from r2id.allocator import raise_mmap_threshold
from r2id.checkpoint import load_tensors
from train.data.buckets import NativeAspect, Shape, ShapeSampler
from train.data.images import ImageSet
from train.engine.flops import count_flops
from train.engine.loop import TRACKERS, Compute, Progress, Run, generator, listed
from train.engine.machine import machine, peak_memory, reset_peak
from train.engine.progress import progress_bar
from train.engine.recipe import CrossAttentionRecipe, DenoiserRecipe

MEASURED = 3  # steps of each phase, spread over it


def arguments(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", required=True, help="recipe, a file of train/configs/")
    data_arguments(parser, None)
    parser.add_argument("--glyphs", help="characters of fonts that are images; default: the recipe's, A to Z")
    parser.add_argument("--from", dest="start", metavar="WEIGHTS", help="exported weights that a new run begins with")
    parser.add_argument("--stream", action="store_true", help="read shards while training: sets larger than the disk")
    parser.add_argument("--out", help="folder of the run; default: runs/NAME. Give the same one to resume")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="in place of the recipe's, as TOML: model.width=128, optimisation.phases.0.steps=100. Repeatable",
    )
    parser.add_argument("--track", default="tensorboard", choices=TRACKERS, help="where metrics go (%(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="measure a few steps, print the cost, write nothing")
    return parser


def data_arguments(parser: argparse.ArgumentParser, default: str | None = "ylecun/mnist") -> None:
    """What all scripts that read images take. default: None where a recipe has it."""
    said = f"default: {default or 'that of the recipe'}"
    parser.add_argument("--data", default=default, help=f"Hub id, folder of images, shards or fonts, archive; {said}")
    parser.add_argument("--label-column", metavar="NAME", help="of shards, or of a table beside images: their classes")


def report_arguments(parser: argparse.ArgumentParser, sections: Collection[str]) -> None:
    """What scripts that write a report of weights take."""
    parser.add_argument("--only", default=",".join(sections), help="sections, with commas (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    parser.add_argument("--out", type=Path, help="folder of the report (default: one of its name below runs/)")


def chosen_sections(only: str, sections: Collection[str]) -> list[str]:
    """What --only names. Raises ValueError for a section that there is not."""
    chosen = only.split(",")
    if unknown := [section for section in chosen if section not in sections]:
        raise ValueError(f"--only {','.join(unknown)}: must be of {', '.join(sections)}")
    return chosen


def run_of(
    args: argparse.Namespace,
    recipe: CrossAttentionRecipe | DenoiserRecipe,
    loss: nn.Module,
    train: ImageSet,
    folder: Path,
    **metadata,
) -> Run:
    """The run of a recipe, which writes nothing if it is dry. metadata: what its states keep beside recipe and data."""
    metadata |= {"recipe": asdict(recipe), "labels": train.names, "background": train.background, "images": train.count}
    phases = recipe.phases if isinstance(recipe, DenoiserRecipe) else recipe.optimisation.phases
    return Run(
        loss,
        replace(recipe.optimisation, phases=phases),
        count=train.count,
        folder=None if args.dry_run else folder,
        metadata=metadata,
        track=args.track,
        stream=train.stream,
    )


def start_from(training: Run, weights: str, stage: str) -> None:
    """Gives a new run, model and averages, the tensors of exported weights that have its names and shapes, and prints
    which others begin anew. Raises ValueError where there are none of the stage, or none that fit."""
    path = Path(weights) / f"{stage}.safetensors"
    if not path.is_file():
        raise ValueError(f"--from {weights}: no {path.name} there; give a folder such as weights/mnist")
    own = training.model.state_dict()
    found = {name: t for name, t in load_tensors(path).items() if name in own and t.shape == own[name].shape}
    if not found:
        raise ValueError(f"--from {weights}: no tensor of {path.name} has a name and shape of this recipe's model")
    training.model.load_state_dict(own | found)
    for name in found:
        training.ema[name].copy_(found[name])
    anew = sorted(own.keys() - found.keys())
    training.accelerator.print(f"{path}: {len(found)} tensors are taken; anew: {listed(anew) or 'none'}")


def draw(
    shape_sampler: ShapeSampler,
    seed: int,
    step: int,
    part: int = 0,
    *,
    size: int | None,
    device: torch.device,
    size_multiple: int = 1,
) -> tuple[Shape | NativeAspect, Generator]:
    """A step's shape, for images of size × size pixels or (None) of any sizes, and the generator of all else that its
    part draws, on the device: parts have one shape, each its own draws."""
    rng = generator(seed, step)
    shape = shape_sampler.draw(size, generator=rng, size_multiple=size_multiple)
    return shape, rng if part == 0 and device.type == "cpu" else generator(seed, step, part, device)


def run(training: Run, compute: Compute, evaluate: Callable[[Progress], str], *, dry: bool) -> None:
    """Trains to the end, or prints what that would cost."""
    if dry:
        for line in dry_run(training, compute):
            training.accelerator.print(line, flush=True)
    else:
        train_with_progress(training, compute, evaluate)


def train_with_progress(training: Run, compute: Compute, evaluate: Callable[[Progress], str]) -> None:
    """Trains to the end. evaluate, in the main process: draws and logs what the caller wants, → a line to print."""
    main, steps = training.accelerator.is_main_process, training.optimisation.steps
    with progress_bar(total=steps, initial=training.step, unit="step", leave=True, disable=not main) as bar:
        if training.changed and main:
            bar.write(f"changed since step {training.step}, from here on as it is now: {listed(training.changed)}")
        if training.step >= steps and main:
            bar.write(f"{training.folder}: all {steps} steps are done; more steps or another --out go on")
        for progress in training.train(compute):
            if shown := progress.metrics:
                loss, gradient, speed = shown["loss"], shown["gradient"], shown["images/s"]
                bar.set_postfix(
                    {"loss": f"{loss:.4f}", "gradient": f"{gradient:.3g}", "images": f"{speed}/s"}, refresh=False
                )
            bar.update()
            if progress.evaluation and main:
                bar.write(f"{progress.step}: {evaluate(progress)}")
            if progress.stopped and main:
                bar.write(f"stopped at step {progress.step}, state saved; the same command goes on")
    training.accelerator.end_training()


def dry_run(training: Run, compute: Compute) -> Iterator[str]:
    """Lines: the size of the model, and of every phase the operations, memory and time, from a few steps of it. The
    weights are not those of the run afterwards."""
    device, parts, phases = training.accelerator.device, training.parts, training.optimisation.phases
    count = sum(parameter.numel() for parameter in training.model.parameters())
    yield f"{machine()}, device {device}, precision {training.precision}"
    yield f"{count:,} parameters; {training.optimisation.batch} images a step in {parts} parts"
    training.update(compute)  # libraries set themselves up
    seconds, counted, start = 0.0, 0.0, 0
    for number, phase in enumerate(phases):
        measured = min(MEASURED, phase.steps)
        steps = [start + i * phase.steps // measured for i in range(measured)]
        reset_peak(device)
        durations = [timed(training, compute, step) for step in steps]
        peak = peak_memory(device)
        flops = [flops_of(training, compute, step) for step in steps]
        # Steps differ by their shapes, and a shared machine by the minute: so the median time of an operation.
        taken = mean(flops) * median(one / count for one, count in zip(durations, flops, strict=True))
        seconds += taken * phase.steps
        counted += mean(flops) * phase.steps
        start += phase.steps
        cost_text = f"{mean(flops) / 1e9:,.1f} GFLOP and {taken:.3g} s a step, {peak / 1e6:,.0f} MB at most"
        yield f"phase {number}: {phase.steps:,} steps, {cost_text}, {clock(taken * phase.steps)}"
    yield f"in all: {start:,} steps, {counted / 1e12:,.1f} TFLOP, {clock(seconds)} without evaluations"


def timed(training: Run, compute: Compute, step: int) -> float:
    """Seconds of a step."""
    training.step, began = step, time.perf_counter()
    training.update(compute)
    if training.accelerator.device.type == "cuda":
        torch.cuda.synchronize(training.accelerator.device)
    return time.perf_counter() - began


def flops_of(training: Run, compute: Compute, step: int) -> int:
    """Floating-point operations of a step, of all processes."""
    training.step = step
    with count_flops() as counter:
        training.update(compute)
    return counter.get_total_flops() * training.accelerator.num_processes


def clock(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes else f"{seconds:.0f} s"


def script(main: Callable[[], None]) -> None:
    """Runs an entry point: what its user can fix ends it with one line and exit status 1, Ctrl-C with 130."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # where an output lacks a character, that must not end a run
    raise_mmap_threshold()
    try:
        main()
    except KeyboardInterrupt:
        print("\nstopped; what is saved is whole, the same command goes on from there or starts again", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if (line := explained(error)) is None:
            raise
        sys.exit(f"error: {line}")


def explained(error: Exception) -> str | None:
    """One line that names the cause and the remedy; None for what is a fault of the program."""
    lines = str(error).splitlines() or [type(error).__name__]
    first = lines[-1].partition(": ")[2] if lines[0].startswith("Caught ") else lines[0]  # in a worker that loads
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "not enough memory" in first:
        return f"{first}; raise optimisation.accumulate or lower optimisation.batch, with --set or in the recipe"
    if any(kind.__module__.startswith(("torch._dynamo", "torch._inductor")) for kind in type(error).__mro__):
        remedy = "install a C++ compiler, name it in CXX, or --set optimisation.compile=false"
        return f"optimisation.compile: {first}; {remedy}"
    if isinstance(error, NotImplementedError) and "MPS" in first:
        return f"{first.rstrip('.')}; set PYTORCH_ENABLE_MPS_FALLBACK=1, or ACCELERATE_USE_CPU=true"
    if isinstance(error, OSError):
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"{error}; make room, then the same command goes on"
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) or "temporary directory" in str(error):
            where = "give another --out, or set HF_HOME (data sets) or TMPDIR (temporary files)"
            return f"{error}; {where} to a folder that can be written"
        return str(error)
    return first if isinstance(error, (ValueError, FloatingPointError)) else None
