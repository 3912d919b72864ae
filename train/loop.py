"""One training loop for every model, under `accelerate`: it yields, callers display; stopped, it resumes where it was.

Everything random in a step follows from (seed, step), so a resumed run equals one that was never stopped.
"""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from train.state import State, load_state, save_state

COUNTED = 20  # steps: of so many, the operations of one are counted, which slows it


@dataclass(frozen=True)
class Phase:
    """A stretch of training: the rate falls along a cosine from rate[0] to rate[1]. Cells, where given, take the place
    of the law's. Pixels (0: all) and consistency are R2IR's: see `ResamplerLoss`."""

    steps: int
    rate: tuple[float, float]
    cells: tuple[int, int] | None = None
    pixels_in: int = 0
    pixels_out: int = 0
    consistency: float = 0.0


@dataclass(frozen=True)
class Optimisation:
    """How any model is trained."""

    phases: tuple[Phase, ...]
    batch: int = 48
    seed: int = 0
    warmup: int = 100  # steps over which the rate rises from 0
    weight_decay: float = 0.01
    beta2: float = 0.99
    clip: float = 1.0  # of the gradient's norm
    ema: float = 0.999  # decay of the averaged weights
    evaluate_every: int = 500  # steps
    save_every: float = 120.0  # seconds

    def __post_init__(self):
        if not self.phases or min(phase.steps for phase in self.phases) < 1:
            raise ValueError("phases: there must be at least one, each of 1 step or more")
        if self.batch < 1:
            raise ValueError(f"batch {self.batch}: must be 1 or more")

    @property
    def steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    def at(self, step: int) -> tuple[Phase, float]:
        """The phase of a step (from 0) and its learning rate."""
        start = 0
        for phase in self.phases:
            if step < start + phase.steps:
                break
            start += phase.steps
        high, low = phase.rate
        rate = low + (high - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - start) / phase.steps)))
        return phase, rate * min(1.0, (step + 1) / max(1, self.warmup))


@dataclass(frozen=True)
class Progress:
    """What the loop yields after every step."""

    step: int  # steps done
    steps: int
    metrics: dict[str, float]  # empty but for steps at which they are read
    evaluation: bool  # whether this is the moment to evaluate
    stopped: bool = False  # by SIGTERM or SIGINT; the state is saved


class Run:
    """A model in training: its loss module, optimiser, averaged weights and place on disk."""

    def __init__(self, loss: nn.Module, optimisation: Optimisation, *, count: int, folder: Path, about: dict):
        """loss: module with `.model`; count: training images; folder: of the states; about: JSON kept with them."""
        self.accelerator = Accelerator(log_with="tensorboard", project_dir=folder)
        self.accelerator.init_trackers("tensorboard")
        self.optimisation, self.count, self.folder = optimisation, count, folder
        self.about = json.loads(json.dumps(about))  # as it reads back
        model = loss.model
        optimiser = torch.optim.AdamW(
            model.parameters(), betas=(0.9, optimisation.beta2), weight_decay=optimisation.weight_decay
        )
        self.loss, self.optimiser = self.accelerator.prepare(loss, optimiser)
        self.model = self.accelerator.unwrap_model(self.loss).model
        self.ema = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        self.step = 0
        self.spent: dict[str, float] | None = {"images": 0, "steps": 0, "operations": 0.0, "seconds": 0.0}
        self.resume()

    def batch(self, step: int) -> Tensor:
        """Indices of a step's images: a new order each epoch, this process's share."""
        size = self.optimisation.batch
        per_epoch = max(1, self.count // size)
        epoch, place = divmod(step, per_epoch)
        order = torch.randperm(self.count, generator=generator(self.optimisation.seed, -1 - epoch))
        indices = order[place * size : (place + 1) * size]
        return indices[self.accelerator.process_index :: self.accelerator.num_processes]

    def train(self, compute: Callable[[nn.Module, Tensor, Phase, int], tuple[Tensor, dict]]) -> Iterator[Progress]:
        """compute(loss module, indices, phase, step) → loss, metrics, of all indices or the first `metrics["images"]`.
        Yields after every step.

        Raises FloatingPointError for a loss that is not finite.
        """
        saved, seen, began = time.monotonic(), 0, time.monotonic()
        with StopSignal() as stop:
            while self.step < self.optimisation.steps:
                phase, rate = self.optimisation.at(self.step)
                for group in self.optimiser.param_groups:
                    group["lr"] = rate
                torch.manual_seed(mix(self.optimisation.seed, self.step))  # dropout
                indices, started = self.batch(self.step), time.monotonic()
                with operations() if self.step % COUNTED == 0 else nullcontext() as counter:
                    loss, metrics = compute(self.loss, indices, phase, self.step)
                    if not math.isfinite(loss.item()):
                        remedy = "the last state on disk is good, go on from it with a lower rate"
                        raise FloatingPointError(f"step {self.step}: the loss is {loss.item()}; {remedy}")
                    self.accelerator.backward(loss)
                images = metrics.pop("images", len(indices)) * self.accelerator.num_processes
                seen += images
                norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.optimisation.clip)
                self.optimiser.step()
                self.optimiser.zero_grad()
                self.spend(images, counter, time.monotonic() - started)
                self.step += 1
                self.average()
                shown = {}
                if self.step % 25 == 0:
                    speed = seen / (time.monotonic() - began)
                    seen, began = 0, time.monotonic()
                    shown = {key: value.item() for key, value in metrics.items()}
                    shown |= {"rate": rate, "gradient": float(norm), "images/s": round(speed, 1)}
                    self.accelerator.log(shown, step=self.step)
                last = self.step == self.optimisation.steps
                stopped = stop.asked  # read once: who is asked later, while the caller evaluates, saves a step later
                if last or stopped or time.monotonic() - saved > self.optimisation.save_every:
                    self.save()
                    saved = time.monotonic()
                evaluation = last or self.step % self.optimisation.evaluate_every == 0
                yield Progress(self.step, self.optimisation.steps, shown, evaluation, stopped)
                if evaluation:
                    seen, began = 0, time.monotonic()
                if stopped:
                    return

    def spend(self, images: int, counter: FlopCounterMode | None, seconds: float) -> None:
        """Adds a step to what the run has cost; operations of a counted step stand for those up to the next one."""
        if self.spent is None:
            return
        self.spent["images"] += images
        self.spent["steps"] += 1
        self.spent["seconds"] += seconds
        if counter is not None:
            steps = min(COUNTED, self.optimisation.steps - self.step) * self.accelerator.num_processes
            self.spent["operations"] += float(counter.get_total_flops()) * steps

    @torch.no_grad()
    def average(self) -> None:
        decay = min(self.optimisation.ema, (1 + self.step) / (10 + self.step))  # a short memory at first
        current = self.model.state_dict()
        torch._foreach_lerp_(list(self.ema.values()), [current[name] for name in self.ema], 1 - decay)

    def log(self, metrics: dict[str, float]) -> None:
        """One line of `metrics.jsonl`, and the trackers."""
        if self.accelerator.is_main_process:
            with open(self.folder / "metrics.jsonl", "a") as file:
                file.write(json.dumps({"step": self.step, **metrics}) + "\n")
        self.accelerator.log(metrics, step=self.step)

    def save(self) -> None:
        if not self.accelerator.is_main_process:
            return
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"ema.{name}": value for name, value in self.ema.items()}
        for index, values in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{index}.{key}": torch.as_tensor(value) for key, value in values.items()}
        save_state(self.folder, State(tensors, {"step": self.step, "spent": self.spent, **self.about}))

    def resume(self) -> None:
        state = load_state(self.folder)
        if state is None:
            return
        if state.about["model"] != self.about["model"]:
            raise ValueError(f"{self.folder} holds another model: {state.about['model']}; give another --out")
        self.step = state.about["step"]
        self.spent = state.about.get("spent")  # unknown for a run that began without counting
        self.model.load_state_dict(state.part("model"))
        self.ema = {name: value.to(self.ema[name].device) for name, value in state.part("ema").items()}
        wanted = self.optimiser.state_dict()
        wanted["state"] = {}
        for key, value in state.part("optimiser").items():
            index, name = key.split(".")
            wanted["state"].setdefault(int(index), {})[name] = value
        self.optimiser.load_state_dict(wanted)


@contextmanager
def operations() -> Iterator[FlopCounterMode]:
    """Counts floating-point operations, forward and backward: `get_total_flops()`. Attention runs as plain products
    meanwhile, since fused kernels go uncounted on a CPU."""
    mapping = {torch.ops.aten.convolution_backward: convolution_backward_operations}
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        yield counter


def convolution_backward_operations(grad, x, weight, *rest, out_shape=None, **_) -> int:
    """Of the shapes' gradients asked for; the counter's own rule takes grouped convolutions for dense ones."""
    asked = rest[-1]  # for x, weight and bias, which is a sum
    return 2 * math.prod(weight) * grad[0] * math.prod(grad[2:]) * sum(asked[:2])


class StopSignal:
    """Asked to stop (SIGTERM, SIGINT): the loop saves and ends at the end of its step. Handlers hold within `with`."""

    def __init__(self):
        self.asked = False

    def __enter__(self) -> StopSignal:
        self.previous = {number: signal.signal(number, self.ask) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def ask(self, *_) -> None:
        self.asked = True


def mix(seed: int, step: int) -> int:
    """One 63-bit seed of two numbers, different for each pair in use."""
    return (seed * 1_000_003 + step * 7_919 + 12_345) % (2**63 - 1)


def generator(seed: int, step: int) -> torch.Generator:
    return torch.Generator().manual_seed(mix(seed, step))
