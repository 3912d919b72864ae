"""One training loop for every model, under `accelerate`: it yields, callers display; stopped, it resumes where it was.

Everything random in a step follows from (seed, step, part), so the step is also the place in the data and the state of
the generators, and a resumed run equals one that was never stopped. A step's batch falls into equal parts, `accumulate`
for each process: two processes do what one does with twice the parts.
"""

from __future__ import annotations

import importlib.util
import json
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from r2id.layers import AdaLN
from train.engine.flops import count_flops
from train.engine.machine import faster_precision
from train.engine.recipe import Optimisation, Phase
from train.engine.state import State, load_state, save_state

if TYPE_CHECKING:
    from train.data.sources import Stream

Muon = getattr(torch.optim, "Muon", None)  # from torch 2.9 on
MOMENTS = {"AdamW": {"step", "exp_avg", "exp_avg_sq"}, "Muon": {"momentum_buffer"}}  # what each knows of a parameter
COUNTED = 200  # steps: of so many, the operations of one are counted, which slows it
SHOWN = 25  # steps between those whose metrics are read
TRACKERS = ("tensorboard", "wandb", "none")

# (loss module, indices, phase, step, part) → loss, metrics, of all indices or the first `metrics["images"]`
Compute = Callable[[nn.Module, Tensor, Phase, int, int], tuple[Tensor, dict]]


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

    def __init__(
        self,
        loss: nn.Module,
        optimisation: Optimisation,
        *,
        count: int | None,
        folder: Path | None,
        metadata: dict,
        track: str = "tensorboard",
        stream: Stream | None = None,
    ):
        """loss: module with `.model`, and with `.critic` where a network learns beside it for the loss alone; count:
        training images, None for a stream; folder: of the states, None to read and write nothing; metadata: JSON kept
        with them; track: one of TRACKERS."""
        if track != "none" and importlib.util.find_spec(track) is None:
            raise ValueError(f"track {track}: it is not installed; pip install {track}, or --track none")
        tracker = track if folder and track != "none" else None
        model, critic = loss.model, getattr(loss, "critic", None)
        partial = critic is not None or any(phase.partial for phase in optimisation.phases)
        unused = DistributedDataParallelKwargs(find_unused_parameters=partial)
        options = {"log_with": tracker, "project_dir": folder, "kwargs_handlers": [unused]}
        self.accelerator = Accelerator(mixed_precision="no", **options)  # `autocast` does what it is asked to
        self.optimisation, self.count, self.stream, self.folder = optimisation, count, stream, folder
        if self.accelerator.device.type == "cuda":
            torch.set_float32_matmul_precision("high")  # TF32, where mixed precision leaves float32
            torch.backends.cuda.enable_cudnn_sdp(False)  # makes a plan for every new shape, and steps differ by theirs
        self.precision = self.chosen_precision()
        if optimisation.batch % self.parts or (count is not None and count < self.parts):
            parts = f"{self.accelerator.num_processes} processes x accumulate {optimisation.accumulate}"
            raise ValueError(f"batch {optimisation.batch}, {count} images: must fill {parts} parts of equal size")
        if tracker:
            options = {"wandb": {"dir": str(folder), "group": str(folder), "config": metadata}}
            self.accelerator.init_trackers("tensorboard" if track == "tensorboard" else "r2id", init_kwargs=options)
        self.metadata = json.loads(json.dumps(metadata))  # as it reads back
        if optimisation.compile:
            for block in blocks_of(model):
                block.compile(dynamic=True)
        self.learning = [*model.parameters(), *(critic.parameters() if critic else ())]
        self.loss, *self.optimisers = self.accelerator.prepare(loss, *optimisers_of(optimisation, model, self.learning))
        self.model, self.critic = self.accelerator.unwrap_model(self.loss).model, critic
        self.ema = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        self.before: dict[str, Tensor] = {}  # averaged weights with which a phase began that keeps some of them
        self.step = 0
        self.order: tuple[int | None, Tensor | None] = None, None  # of an epoch's images
        self.last: tuple[Tensor, Tensor] | None = None  # loss and gradient norm of the last step
        self.cost: dict[str, float] | None = {"images": 0, "steps": 0, "operations": 0.0, "seconds": 0.0}
        self.changed: list[str] = []  # what differs from the state that was resumed: "key: old → new"
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
            self.resume()

    def chosen_precision(self) -> str:
        """What the recipe asks for; for "auto" what this machine multiplies faster in, the same in every process."""
        if self.optimisation.precision != "auto":
            return self.optimisation.precision
        chosen, why = [None], ""
        if self.accelerator.is_main_process:
            chosen[0], why = faster_precision(self.accelerator.device)
        broadcast_object_list(chosen)
        self.accelerator.print(f"precision: {chosen[0]}, {why}")
        return chosen[0]

    def autocast(self) -> torch.autocast:
        """In which the forward pass of a step runs; weights and averages are float32 whatever the precision."""
        enabled = self.precision == "bfloat16"
        return torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=enabled)

    @property
    def parts(self) -> int:
        """How many equal parts a step's batch falls into, over all processes."""
        return self.accelerator.num_processes * self.optimisation.accumulate

    def batch(self, step: int) -> Tensor:
        """Indices of a step's images, of all processes: a new order each epoch, or the places of a stream."""
        if self.count is None:
            return torch.arange(self.optimisation.batch) + step * self.optimisation.batch
        size = min(self.optimisation.batch, self.count) // self.parts * self.parts
        epoch, place = divmod(step, self.count // size)
        if epoch != self.order[0]:
            self.order = epoch, torch.randperm(self.count, generator=generator(self.optimisation.seed, -1 - epoch))
        return self.order[1][place * size : (place + 1) * size]

    def train(self, compute: Compute) -> Iterator[Progress]:
        """Yields after every step.

        Raises FloatingPointError for a loss or gradient that is not finite, OSError where the last state cannot be
        written; one before it is tried again later, with a warning.
        """
        saved, seen, began = time.monotonic(), 0, time.monotonic()
        with StopSignal() as stop:
            while self.step < self.optimisation.steps:
                started = time.monotonic()
                with count_flops() if self.step % COUNTED == 0 else nullcontext() as counter:
                    images, metrics = self.update(compute)
                seen += images
                self.add_cost(images, counter, time.monotonic() - started)
                last = self.step == self.optimisation.steps
                evaluation = last or self.step % self.optimisation.evaluate_every == 0
                shown = {}
                if self.step % SHOWN == 0 or evaluation:
                    speed = seen / (time.monotonic() - began)
                    seen, began = 0, time.monotonic()
                    shown = {key: self.accelerator.reduce(value, "mean").item() for key, value in metrics.items()}
                    shown |= {"rate": next(self.groups())["lr"], "images/s": round(speed, 1)}
                    self.accelerator.log(shown, step=self.step)
                stopped = self.anywhere(stop.asked)  # once: who is asked later, while the caller evaluates, saves later
                if last or stopped or time.monotonic() - saved > self.optimisation.save_every:
                    self.save(final=last or stopped)
                    saved = time.monotonic()
                yield Progress(self.step, self.optimisation.steps, shown, evaluation, stopped)
                if evaluation:
                    seen, began = 0, time.monotonic()
                if stopped:
                    return

    def update(self, compute: Compute) -> tuple[int, dict[str, Tensor]]:
        """One step of the optimiser and of the averages. → images it took, of all processes, and this one's metrics."""
        phase, rate = self.optimisation.at(self.step)
        if phase.from_average and self.step and self.first(self.step):
            self.model.load_state_dict(self.ema)
        if phase.kept and self.first(self.step):
            self.before = {name: value.clone() for name, value in self.ema.items()}
        for group in self.groups():
            group["lr"] = rate * group["times"]
        indices, accumulate = self.batch(self.step), self.optimisation.accumulate
        images, total = 0, {}
        first = self.accelerator.process_index * accumulate
        for part in range(first, first + accumulate):
            torch.manual_seed(derive_seed(self.optimisation.seed, self.step, part))  # dropout
            more = part + 1 < first + accumulate  # gradients are averaged over the processes with the last part
            with self.accelerator.no_sync(self.loss) if more else nullcontext():
                with self.autocast():
                    loss, metrics = compute(self.loss, indices[part :: self.parts], phase, self.step, part)
                self.accelerator.backward(loss / accumulate)
            images += metrics.pop("images", len(indices) // self.parts) * self.accelerator.num_processes
            for key, value in {"loss": loss.detach(), **metrics}.items():
                total[key] = total.get(key, 0) + value / accumulate
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.optimisation.clip)
        self.last = total["loss"], norm
        if self.accelerator.device.type == "cpu" or self.step % SHOWN == 0:  # elsewhere reading means waiting
            self.check()
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad()
        self.step += 1
        self.average(phase.ema or self.optimisation.ema)
        if phase.kept and (self.step == self.optimisation.steps or self.first(self.step)):
            torch._foreach_lerp_(list(self.ema.values()), [self.before[name] for name in self.ema], phase.kept)
        return images, total | {"gradient": norm}

    def first(self, step: int) -> bool:
        """Whether a phase begins with this step."""
        return step == 0 or self.optimisation.at(step)[0] is not self.optimisation.at(step - 1)[0]

    def check(self) -> None:
        """Raises FloatingPointError where the loss or gradient of the last step is not finite; once it is not, that of
        later steps is not either."""
        if self.last is None:
            return
        loss, norm = self.last
        if not (loss.isfinite() and norm.isfinite()):
            fault = f"the loss is {loss.item()}, the gradient's norm {norm.item()}"
            remedy = "the last state on disk is good, go on from it with a lower rate"
            raise FloatingPointError(f"step {self.step}: {fault}; {remedy}")

    def anywhere(self, flag: bool) -> bool:
        """Whether it holds in any of the processes, which agree on it here."""
        if self.accelerator.num_processes == 1:  # without waiting for the device
            return flag
        return self.accelerator.reduce(torch.tensor(float(flag), device=self.accelerator.device)).item() > 0

    def groups(self) -> Iterator[dict]:
        """The parameter groups of all optimisers, AdamW's first."""
        return (group for optimiser in self.optimisers for group in optimiser.param_groups)

    def add_cost(self, images: int, counter: FlopCounterMode | None, seconds: float) -> None:
        """Adds a step to what the run has cost; operations of a counted step stand for those up to the next one."""
        if self.cost is None:
            return
        self.cost["images"] += images
        self.cost["steps"] += 1
        self.cost["seconds"] += seconds
        if counter is not None:
            steps = min(COUNTED, self.optimisation.steps - self.step + 1) * self.accelerator.num_processes
            self.cost["operations"] += float(counter.get_total_flops()) * steps

    @torch.no_grad()
    def average(self, decay: float) -> None:
        decay = min(decay, (1 + self.step) / (10 + self.step))  # a short memory at first
        current = self.model.state_dict()
        torch._foreach_lerp_(list(self.ema.values()), [current[name] for name in self.ema], 1 - decay)

    def log(self, metrics: dict[str, float]) -> None:
        """One line of `metrics.jsonl`, and the trackers."""
        if self.accelerator.is_main_process:
            with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": self.step, **metrics}) + "\n")
        self.accelerator.log(metrics, step=self.step)

    def save(self, *, final: bool = True) -> None:
        """Raises FloatingPointError as `check` does, and OSError where it cannot be written; unless final that is a
        warning."""
        self.check()
        if not self.accelerator.is_main_process:
            return
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"ema.{name}": value for name, value in self.ema.items()}
        tensors |= {f"before.{name}": value for name, value in self.before.items()}
        if self.critic:
            tensors |= {f"critic.{name}": value for name, value in self.critic.state_dict().items()}
        for index, parameter in enumerate(self.learning):
            for optimiser in self.optimisers:
                values = optimiser.state.get(parameter, {})
                tensors |= {f"optimiser.{index}.{key}": torch.as_tensor(value) for key, value in values.items()}
        place = self.stream and self.stream.position(self.step * self.optimisation.batch)
        metadata = {"step": self.step, "cost": self.cost, "stream": place, **self.metadata}
        try:
            save_state(self.folder, State(tensors, metadata))
        except OSError as error:
            fault = f"{self.folder}: step {self.step} could not be saved ({error.strerror}); make room"
            if final:
                raise OSError(f"{fault}, then the same command goes on from the state before") from error
            warnings.warn(f"{fault}, training goes on and tries again", stacklevel=2)

    def resume(self) -> None:
        """Goes on from the newest state. Raises ValueError where it is of another model."""
        state = load_state(self.folder)
        step = torch.tensor([state.metadata["step"] if state else 0], device=self.accelerator.device)
        if self.accelerator.gather(step).unique().numel() > 1:
            raise ValueError(f"{self.folder}: processes found different states; give an --out that all of them share")
        if state is None:
            return
        if other := differences(state.metadata["model"], self.metadata["model"]):
            raise ValueError(f"{self.folder} holds another model: {listed(other)}; give another --out")
        before = {key: state.metadata.get(key) for key in self.metadata.keys() - {"model"}}
        self.changed = differences(before, {key: self.metadata[key] for key in before})
        self.step = state.metadata["step"]
        self.cost = state.metadata.get("cost")  # unknown for a run that began without counting
        if self.stream and state.metadata.get("stream") and state.metadata.get("data") == self.metadata.get("data"):
            self.stream.seek(*state.metadata["stream"])
        self.model.load_state_dict(state.part("model"))
        if self.critic and state.part("critic"):  # a run may go on with a phase that needs one
            self.critic.load_state_dict(state.part("critic"))
        self.ema = {name: value.to(self.ema[name].device) for name, value in state.part("ema").items()}
        self.before = {name: value.to(self.ema[name].device) for name, value in state.part("before").items()}
        self.load_optimisers(state)

    def load_optimisers(self, state: State) -> None:
        """What each parameter's optimiser knew of it; one that has another optimiser now begins afresh."""
        known: dict[int, dict[str, Tensor]] = {}
        for key, value in state.part("optimiser").items():
            index, name = key.split(".")
            known.setdefault(int(index), {})[name] = value
        place = {id(parameter): index for index, parameter in enumerate(self.learning)}
        for optimiser in self.optimisers:
            wanted = optimiser.state_dict()
            indices = [place[id(parameter)] for group in optimiser.param_groups for parameter in group["params"]]
            fits = MOMENTS[type(optimiser.optimizer).__name__]
            values = {local: known.get(index, {}) for local, index in enumerate(indices)}
            wanted["state"] = {local: value for local, value in values.items() if value.keys() == fits}
            optimiser.load_state_dict(wanted)


def optimisers_of(optimisation: Optimisation, model: nn.Module, learning: list[nn.Parameter]) -> list:
    """AdamW, and Muon for the matrices of the model's blocks where the recipe wants it. Parameter groups say how many
    `times` the phase's rate they learn at."""
    matrices = {id(matrix): matrix for matrix in block_matrices(model)} if optimisation.muon else {}
    rest = [{"params": [parameter for parameter in learning if id(parameter) not in matrices], "times": 1.0}]
    options = {"weight_decay": optimisation.weight_decay}
    optimisers = [torch.optim.AdamW(rest, betas=(0.9, optimisation.beta2), fused=True, **options)]
    if matrices:
        if Muon is None:
            raise ValueError(
                f"muon {optimisation.muon:g}: needs torch 2.9, this is {torch.__version__}; pip install -U torch"
            )
        groups = [{"params": list(matrices.values()), "times": optimisation.muon}]
        optimisers.append(Muon(groups, adjust_lr_fn="match_rms_adamw", **options))
    return optimisers


def blocks_of(model: nn.Module) -> list[nn.Module]:
    return [block for blocks in model.modules() if isinstance(blocks, nn.ModuleList) for block in blocks]


def block_matrices(model: nn.Module) -> list[nn.Parameter]:
    """Of the linear maps from tokens to tokens in the model's blocks, which Muon is made for."""
    modulating = {id(p) for module in model.modules() if isinstance(module, AdaLN) for p in module.parameters()}
    return [p for block in blocks_of(model) for p in block.parameters() if p.ndim == 2 and id(p) not in modulating]


def differences(old, new, key: str = "") -> list[str]:
    """Two JSON values → "key: old → new" of every part that differs, keys dotted, items of lists by number."""
    if type(old) is type(new) and isinstance(old, (dict, list)):
        olds, news = (value if isinstance(value, dict) else dict(enumerate(value)) for value in (old, new))
        pairs = [(f"{key}.{name}" if key else str(name), olds.get(name), news.get(name)) for name in {**olds, **news}]
        return [line for name, a, b in pairs for line in differences(a, b, name)]
    return [] if old == new else [f"{key}: {old} → {new}"]


def listed(lines: list[str], most: int = 6) -> str:
    return ", ".join(lines[:most]) + (f" and {len(lines) - most} more" if lines[most:] else "")


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


def derive_seed(seed: int, step: int, part: int = 0) -> int:
    """One 63-bit seed of three numbers. Generators on the CPU take its lower 32 bits, so those must differ too."""
    return (seed * 1_000_003 + step * 7_919 + part * 2_654_435_761 + 12_345) % (2**63 - 1)


def generator(seed: int, step: int, part: int = 0, device: torch.device | str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(derive_seed(seed, step, part))
