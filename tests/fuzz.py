"""Random input to every entry point for untrusted data: a valid result or a ValueError of one line, never another
exception. A few examples are part of the default run (test_fuzz.py); for many:

python tests/fuzz.py [--cases 100000] [--only NAME ...]
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

sys.path.insert(0, str(Path(__file__).parents[1]))

from r2id import Latent, Pipeline  # noqa: E402
from r2id.checkpoint import CheckpointError, load_tensors  # noqa: E402
from r2id.demo.request import GenerateRequest, ViewRequest, from_dict, from_query, to_dict  # noqa: E402
from r2id.image import read_parameters  # noqa: E402

SOON = 10.0  # seconds for one case on a busy machine; a run by hand fails beyond
LONGEST = 1000  # characters of an error

# Values: whole numbers are either small, so that what is valid is soon done, or far beyond all limits.
WHOLE = st.integers(-2, 12) | st.sampled_from([61, 8193, 10**9, 2**32, 2**63, -(2**63), 10**30, 10**400])
PLAIN = WHOLE | st.floats() | st.booleans() | st.none() | st.text(max_size=9) | st.binary(max_size=4)
WORDS = st.sampled_from(["3", "7", "", "ddim", "dpm++", "contain", "cover", "stretch", "published", "64", "nan", "1:2"])
VALUES = st.recursive(
    PLAIN | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.tuples(inner, inner) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
JSON = st.recursive(
    WHOLE | st.floats() | st.booleans() | st.none() | WORDS | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
SIDES = st.tuples(st.integers(1, 12), st.integers(1, 12))
UNIT = st.floats(0, 1)
GOOD = {  # argument → values that may be right together
    "labels": st.lists(st.sampled_from(["3", 7, None, {"3": 1, "7": 2.5}]), min_size=1, max_size=3),
    "latent_size": SIDES,
    "aspect": st.none() | st.floats(1 / 64, 64),
    "steps": st.integers(1, 4),
    "guidance": st.floats(-100, 100),
    "guidance_interval": st.tuples(UNIT, UNIT),
    "sampler": st.sampled_from(["ddim", "dpm++"]),
    "eta": st.just(0.0) | st.floats(0, 10),
    "seed": st.none() | st.integers(0, 2**32 - 1),
    "size": SIDES,
    "fit": st.sampled_from(["contain", "cover", "stretch"]),
    "region": st.tuples(UNIT, UNIT, UNIT, UNIT) | st.just((0.0, 0.0, 1.0, 1.0)),
}
LOOKED = ("size", "fit", "region")


@st.composite
def arguments(draw) -> dict[str, Any]:
    """Arguments of a diffusion and of a resample: good ones, up to three of them replaced by anything."""
    spoilt = draw(st.lists(st.sampled_from(sorted(GOOD)), max_size=3))
    return {name: draw(VALUES if name in spoilt else good) for name, good in GOOD.items()}


@st.composite
def mutated(draw, data: bytes) -> bytes:
    """The same with bytes changed, left out, repeated or put in."""
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        stop = min(len(data), start + draw(st.sampled_from([0, 1, 1, 2, 8, 99, len(data)])))
        more = draw(st.binary(max_size=9) | st.just(data[start:stop] * 2))
        data = data[:start] + more + data[stop:]
    return data


@st.composite
def edited(draw, values: dict) -> bytes:
    """JSON of the same object with one value, however deep, replaced, or with one key more."""
    values = json.loads(json.dumps(values))
    inside, key = values, draw(st.sampled_from(sorted(values)))
    while isinstance(inside[key], dict) and inside[key] and draw(st.booleans()):
        inside = inside[key]
        key = draw(st.sampled_from(sorted(inside)))
    inside[draw(st.just(key) | st.text(max_size=5))] = draw(JSON)
    return json.dumps(values).encode()


class Fuzz:
    """The entry points, each with a strategy for its input. folder: for files; weights: a model's."""

    def __init__(self, weights: Path, folder: Path):
        self.folder, self.pipe = folder, Pipeline.from_pretrained(weights, device="cpu")
        self.files = {file.name: file.read_bytes() for file in weights.iterdir() if file.is_file()}
        self.outcomes: Counter[str] = Counter()
        self.slowest = 0.0
        config = json.loads(self.files["config.json"])
        latent = folder / "latent.safetensors"
        self.pipe.diffuse(["3", None], latent_size=(2, 3), seed=1).save(latent)
        record, text = to_dict(GenerateRequest("tiny", "3"), ViewRequest()), PngImagePlugin.PngInfo()
        text.add_text("r2id", json.dumps(record))
        Image.new("L", (4, 4)).save(png := io.BytesIO(), "PNG", pnginfo=text)
        words = st.text(max_size=9) | WORDS | WHOLE.filter(lambda n: abs(n) < 10**30).map(str)
        self.entry_points: dict[str, tuple[st.SearchStrategy, Callable[[Any], Any]]] = {
            "arguments": (arguments(), self.draw),
            "config": (edited(config) | mutated(self.files["config.json"]), self.load("config.json")),
            "weights": (mutated(self.files["denoiser.safetensors"]), self.load("denoiser.safetensors")),
            "latent": (mutated(latent.read_bytes()), self.open_latent),
            "png": (mutated(png.getvalue()), self.read_png),
            "record": (edited(record) | mutated(json.dumps(record).encode()), self.read_record),
            "link": (st.dictionaries(st.sampled_from(sorted(record)), words), from_query),
        }

    def draw(self, values: dict[str, Any]) -> None:
        look = {name: values[name] for name in LOOKED}
        how = {name: value for name, value in values.items() if name not in (*LOOKED, "labels")}
        latent = self.pipe.diffuse(values["labels"], **how)
        image_BCHW = self.pipe.resample(latent, **look)
        assert image_BCHW.isfinite().all() and image_BCHW.shape[2:] == tuple(look["size"])

    def load(self, name: str) -> Callable[[bytes], None]:
        (folder := self.folder / f"of {name}").mkdir()
        for other, data in self.files.items():
            (folder / other).write_bytes(data)

        def load(data: bytes) -> None:
            (folder / name).write_bytes(data)
            Pipeline.from_pretrained(folder, device="cpu")

        return load

    def open_latent(self, data: bytes) -> None:
        (file := self.folder / "changed.safetensors").write_bytes(data)
        try:
            load_tensors(file)
        finally:
            self.pipe.resample(Latent.load(file), size=(3, 4))

    def read_png(self, data: bytes) -> None:
        from_dict(read_parameters(io.BytesIO(data)))

    def read_record(self, text: bytes) -> None:
        """The text as a PNG carries it."""
        info = PngImagePlugin.PngInfo()
        info.add_text("r2id", text.decode("latin-1").replace("\0", " "))
        Image.new("L", (1, 1)).save(file := io.BytesIO(), "PNG", pnginfo=info)
        self.read_png(file.getvalue())

    def run(self, name: str, cases: int, *, derandomize: bool = False) -> int:
        """That many cases, or fewer where there are no more; how many. Raises what is no ValueError of one line."""
        strategy, act = self.entry_points[name]
        count = 0

        def one(value) -> None:
            nonlocal count
            count, start, outcome = count + 1, time.monotonic(), "valid"
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of decoders
                    act(value)
            except ValueError as error:
                assert "\n" not in str(error) and 0 < len(str(error)) < LONGEST, repr(str(error))
                assert type(error) in (ValueError, CheckpointError), repr(error)
                outcome = "refused"
            spent = time.monotonic() - start
            self.slowest = max(self.slowest, spent)
            self.outcomes[outcome] += 1

        how = dict(deadline=None, database=None, derandomize=derandomize, suppress_health_check=list(HealthCheck))
        settings(max_examples=cases, **how)(given(strategy)(one))()
        return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100_000, help="of all entry points (default: %(default)s)")
    parser.add_argument("--weights", type=Path, help="a model of few parameters; default: one at random")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="entry points, such as png")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if not (weights := args.weights):
            from conftest import tiny

            tiny.__wrapped__().save(weights := Path(folder) / "tiny")
        fuzz = Fuzz(weights, Path(folder))
        names, total, start = args.only or list(fuzz.entry_points), 0, time.monotonic()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for name in names:
            total += (count := fuzz.run(name, -(-args.cases // len(names))))
            print(f"{name}: {count:,} cases", flush=True)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    counted = ", ".join(f"{count:,} {outcome}" for outcome, count in fuzz.outcomes.items())
    print(f"{total:,} cases in {time.monotonic() - start:.0f} s: {counted}, nothing else;")
    print(f"the slowest took {fuzz.slowest:.2f} s, memory grew by {grown:.0f} MB at most")
    sys.exit(fuzz.slowest > SOON)


if __name__ == "__main__":
    main()
