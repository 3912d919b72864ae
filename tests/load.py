"""Many clients at once against a server of its own; not part of the default run. Prints a Markdown table of what came
of it, and ends with 1 where a figure is out of its bound.

python tests/load.py [--weights weights] [--clients 32] [--minutes 5]
"""

from __future__ import annotations

import argparse
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from r2id import Latent, Pipeline  # noqa: E402
from r2id.image import read_parameters  # noqa: E402

PATIENCE = 180  # seconds for a server to answer; a busy machine is slow, not wrong
SIZES = ((64, 64), (96, 170), (256, 144), (256, 256))  # pixels
THOUGHT = 1.0  # seconds between two calls of one client
DIFFUSED = 0.2  # of the calls
WARM = 60.0  # seconds before the figures count
CHEAP = dict(verbose=False, ssl_verify=False)  # clients that read no certificates, 90 ms of a core a call
NEAR = 3 / 255  # of a pixel, from the reference: threads may round otherwise


class App:
    """`python app.py`, with what the system says of its process."""

    def __init__(self, weights: Path, port: int = 0, **environment: str):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = port or free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/"
        command = [sys.executable, "app.py", "--port", str(self.port), "--weights", str(weights), "--device", "cpu"]
        self.log, how = tempfile.TemporaryFile(), dict(cwd=ROOT, stderr=subprocess.STDOUT)
        environment = os.environ | environment | {"PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(command, env=environment, stdout=self.log, **how)
        until = time.monotonic() + PATIENCE
        while "public link" not in self.said():  # the last thing it says; it answers a little earlier
            if self.process.poll() is not None or time.monotonic() > until:
                said = self.said()
                self.stop()
                raise AssertionError(f"the server did not start: {said}")
            time.sleep(0.1)

    def said(self) -> str:
        return os.pread(self.log.fileno(), 2**20, 0).decode(errors="replace")

    def stop(self) -> None:
        self.process.kill()
        self.process.wait(10)
        self.log.close()

    def status(self, name: str) -> int:
        """A number of /proc/PID/status: VmRSS and VmSize in KiB, Threads."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(text.split(f"{name}:")[1].split()[0])

    def figures(self) -> dict[str, float]:
        files = len(os.listdir(f"/proc/{self.process.pid}/fd"))
        return {"memory": self.status("VmRSS") / 1024, "threads": self.status("Threads"), "files": files}


class User(threading.Thread):
    """One client with its own seed: it thinks, asks, and checks what it gets against the reference."""

    def __init__(self, url: str, pipe: Pipeline, number: int, folder: Path):
        super().__init__(daemon=True)
        self.number, self.draw, self.calls, self.wrong = number, random.Random(number), [], []
        self.client = Client(url, **CHEAP, download_files=folder / str(number))
        self.asked = dict(label=pipe.labels[number % len(pipe.labels)], seed=1000 + number, steps=10)
        how = dict(latent_size=(8, 8), steps=10, seed=1000 + number)
        self.expected = pipe.diffuse([self.asked["label"]], **how)
        self.images = {size: pipe.resample(self.expected, size=size)[0, 0].numpy() for size in SIZES}
        self.file, self.running = None, True

    def run(self) -> None:
        time.sleep(self.draw.random() * THOUGHT)
        while self.running:
            if self.file is None or self.draw.random() < DIFFUSED:
                self.call("diffuse", self.diffuse)
            else:
                self.call("resample", self.resample)
            time.sleep(THOUGHT)

    def call(self, kind: str, act) -> None:
        start, outcome = time.monotonic(), "right"
        try:
            if not act():
                outcome = "wrong"
        except AppError as error:
            outcome = "busy" if str(error).startswith("busy") else str(error)
        except Exception as error:  # a client may fail in many ways, each one counts
            outcome = f"{type(error).__name__}: {error}"
        self.calls.append((kind, outcome, time.monotonic() - start))

    def diffuse(self) -> bool:
        _, file = self.client.predict(**self.asked, api_name="/diffuse")
        latent, self.file = Latent.load(file), file
        same = latent.seeds == (self.asked["seed"],) and latent.labels == (self.asked["label"],)
        return same and float((latent.tensor - self.expected.tensor).abs().max()) < 1e-3

    def resample(self) -> bool:
        height, width = size = self.draw.choice(SIZES)
        file = self.client.predict(handle_file(self.file), height, width, api_name="/resample")
        with Image.open(file) as image:
            image_HW = np.asarray(image.convert("L"), np.float32) / 255
        seeds = read_parameters(file)["seeds"]
        return seeds == [self.asked["seed"]] and bool(np.abs(image_HW - self.images[size]).max() < NEAR)


def fairness(url: str, folder: Path) -> float:
    """One client sends twenty diffusions, then another one its first: by how many of its own time it comes later."""
    many, one = (Client(url, **CHEAP, download_files=folder) for _ in range(2))
    asked = dict(label="3", steps=20, seed=1, api_name="/diffuse")
    start = time.monotonic()
    one.predict(**asked)
    alone = time.monotonic() - start
    jobs = [many.submit(**asked) for _ in range(20)]
    jobs[0].result()  # the others wait
    start = time.monotonic()
    one.predict(**asked)
    together = time.monotonic() - start
    for job in jobs:
        job.result()
    return (together - alone) / alone


def mixed(app: App, pipe: Pipeline, clients: int, seconds: float, folder: Path) -> tuple[list, dict, dict]:
    """All calls, and the server's figures after a minute before that time, in which all get their latents, and at the
    end."""
    users = [User(app.url, pipe, number, folder) for number in range(clients)]
    for user in users:
        user.start()
    time.sleep(WARM)
    before = app.figures() | {"calls": sum(len(user.calls) for user in users)}
    time.sleep(seconds)
    for user in users:
        user.running = False
    for user in users:
        user.join(PATIENCE)
    calls = [call for user in users for call in user.calls]
    time.sleep(2)  # connections close
    return calls, before, app.figures() | {"calls": len(calls)}


def row(name: str, value: float, unit: str, most: float) -> tuple[str, bool]:
    return f"| {name} | {value:.4g} {unit} | {most:g} {unit} |", value <= most


def table(calls: list, before: dict, after: dict, delay: float) -> list[tuple[str, bool]]:
    """Lines of the table, and whether each is within its bound."""
    outcomes = Counter(outcome for _, outcome, _ in calls)
    resamples = sorted(spent for kind, outcome, spent in calls if kind == "resample" and outcome == "right")
    diffusions = [spent for kind, outcome, spent in calls if kind == "diffuse" and outcome == "right"]
    slow = resamples[int(0.95 * (len(resamples) - 1))] if resamples else float("inf")
    counted, busy = after["calls"] - before["calls"], outcomes.pop("busy", 0)
    failed = {outcome: count for outcome, count in outcomes.items() if outcome not in ("right", "wrong")}
    for outcome, count in failed.items():
        print(f"{count} x {outcome}", file=sys.stderr)
    share = max(1, counted / 2000)  # of the calls that the bound on memory is for
    middle = statistics.median(diffusions) if diffusions else float("inf")
    return [
        (f"| calls, all right | {outcomes['right']} of {len(calls)} | |", outcomes["right"] > 0),
        row("errors", sum(failed.values()), "calls", 0),
        row("answers of another user, or wrong ones", outcomes["wrong"], "calls", 0),
        row('"busy, try again"', 100 * busy / max(1, len(calls)), "%", 5),
        row("resample, 95th percentile", slow, "s", 1),
        (f"| diffuse, median | {middle:.3g} s | |", True),
        row("one diffusion behind another client's twenty comes later by", delay, "of its time", 3),
        row(f"memory growth over {counted} calls", after["memory"] - before["memory"], "MB", round(50 * share)),
        row("threads more than after the first minute", after["threads"] - before["threads"], "threads", 8),
        row("open files more than after the first minute", after["files"] - before["files"], "files", 8),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=ROOT / "weights")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--minutes", type=float, default=5.0)
    args = parser.parse_args()
    app = App(args.weights.resolve())
    try:
        with tempfile.TemporaryDirectory() as folder:
            name = Client(app.url, **CHEAP).predict(api_name="/models")[0]["name"]
            pipe = Pipeline.from_pretrained(args.weights / name, device="cpu")
            figures = mixed(app, pipe, args.clients, 60 * args.minutes, Path(folder))
            lines = table(*figures, fairness(app.url, Path(folder)))
    finally:
        app.stop()
    print(
        f"{args.clients} clients, {args.minutes:g} minutes, {THOUGHT:g} s of thought, {os.cpu_count()} cores, {name}\n"
    )
    print("| | measured | at most |\n|---|---|---|")
    for line, within in lines:
        print(line if within else f"{line} **too much**")
    sys.exit(not all(within for _, within in lines))


if __name__ == "__main__":
    main()
