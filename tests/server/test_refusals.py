"""Bad input at every entry point of the server and the scripts: refused in one line that names the value or the limit,
and what worked before works after it. Arguments of `Pipeline` are in tests/unit."""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import runpy
import shutil
import socket
import sys
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest
import torch
from PIL import Image
from refusals import Refused, bomb, call, check_line, fetch, file_of, post, refused, turned, upload
from safetensors.torch import load, save, save_file

from r2id import Latent, Pipeline
from r2id.demo import cli
from r2id.demo.events import Events
from r2id.demo.models import Models
from r2id.demo.request import LIMITS, GenerateRequest, ViewRequest, from_dict, from_query, sides, to_dict
from r2id.demo.serving.worker import QueuedPipeline, QuotaPipeline
from r2id.demo.tabs.upload import LONG_SIDE, open_upload

ROOT = Path(__file__).parents[2]


def rows(table: dict[str, list]) -> list[tuple]:
    return [(name, *case) for name, cases in table.items() for case in cases]


# the server


GOOD = {
    "diffuse": dict(label="3", latent_height=4, latent_width=6, steps=3, guidance=1.5, seed=7, model="tiny",
                    aspect=None, sampler=None, eta=0.0, other_label=None, blend=0.0),
}  # fmt: skip


@pytest.fixture(scope="module")
def latent(url) -> bytes:
    """A latent file that was made before all bad input."""
    return fetch(call(url, "diffuse", GOOD["diffuse"])[1])


@pytest.fixture(scope="module")
def good(url, latent) -> dict[str, dict]:
    """Valid arguments of every endpoint."""
    file = upload(url, latent)
    return GOOD | {"resample": dict(latent=file, height=20, width=33, fit=None, model="tiny", region=None)}


@pytest.fixture(scope="module")
def image_before(url, good) -> bytes:
    return fetch(call(url, "resample", good["resample"])[0])


@pytest.fixture
def healthy(url, good, image_before):
    """After the test the server answers as before."""
    yield
    assert fetch(call(url, "resample", good["resample"])[0]) == image_before


ENDPOINTS = {  # (argument, value, what the answer says)
    "diffuse": [
        *[("latent_height", v, w) for v, w in [(0, "1…4096"), (-1, "1…4096"), (1e9, "1…4096"), (4096, "at most 4,096"),
                                               ("64", "1…4096")]],
        *[("latent_width", v, "1…4096") for v in (None, True, [8], {"w": 8}, 64.5, "wide")],
        *[("seed", v, "0…4294967295") for v in (-1, 10**30, 1.5)],
        *[("steps", v, "1…1000") for v in (0, 10**9, [20])],
        *[("guidance", v, "-100…100") for v in (1e9, "NaN", "much")],
        *[("aspect", v, "0.015625…64") for v in (0, 1e6, -3)],
        *[("label", v, "one of 0, 1") for v in ("eleven", [3])],
        *[("label", v, "above 0") for v in ({"3": 0, "7": 0}, {})],
        *[("other_label", v, "one of 0, 1") for v in ([7], {"7": 1})],
        ("blend", 1.5, "0…1"), ("eta", -1, "0…10"), ("eta", 99, "0…10"),
        *[("sampler", v, "ddim, dpm++") for v in ("x" * 10**5, 7, "euler")],
        *[("model", v, "one of tiny, twin") for v in ("../../x", "/etc", "tiny/../twin", {"name": "tiny"}, ["tiny"])],
        ("model", "spoilt", "JSON"),
    ],
    "resample": [
        *[("height", v, "1…8192") for v in (0, -1, 1e9, "64", None, True, 9000)],
        *[("width", v, "1…8192") for v in ([8], {"w": 8}, 64.5, 0.5)],
        *[("region", v, "left") for v in ([0.5, 0, 0.4, 1], [0, 0, 0, 0], [-1, 0, 1, 1], [0, 0, 1, 2])],
        ("region", [0.5, 0.5, 0.5 + 1e-17, 1], "2^-20"),
        *[("region", v, "four numbers") for v in ([0, 0, 1], "0011")],
        *[("fit", v, "contain") for v in ("squash", 0)],
        *[("latent", v, "must be a file") for v in ("/etc/hostname", {"path": "/etc/hostname"}, None)],
        ("model", "absent", "one of tiny"),
    ],
}  # fmt: skip
LARGE = [  # more than one call may cost
    ("diffuse", dict(latent_height=64, latent_width=64, steps=1000), "at most 32 are served"),
    ("resample", dict(height=8192, width=8192), "at most 16,777,216 are served"),
]


@pytest.mark.parametrize(
    "name, change, words",
    [*((name, {argument: value}, words) for name, argument, value, words in rows(ENDPOINTS)), *LARGE],
    ids=lambda value: ascii(value)[:40],
)
def test_endpoints(url, good, healthy, name, change, words):
    with pytest.raises(Refused) as caught:
        call(url, name, good[name] | change)
    check_line(str(caught.value), words)


RAW = {
    "half an object": b'{"data"',
    "nothing": b"",
    "no data": b"{}",
    "data of another type": b'{"data": 5}',
    "no arguments": b'{"data": []}',
    "surplus arguments": json.dumps({"data": ["3", *range(40)]}).encode(),
    "NaN": b'{"data": ["3", 4, 4, 2, NaN]}',
    "infinity": b'{"data": ["3", 4, 4, 2, Infinity]}',
    "NaN for a size": b'{"data": ["3", NaN, 4]}',
    "a deep list": b'{"data":' + b"[" * 10**5,
}


@pytest.mark.parametrize("kind", RAW)
def test_malformed_json(url, healthy, kind):
    status, text = post(url, "call/diffuse", RAW[kind])
    assert 400 <= status < 500 or (status == 200 and text.startswith("event: error")), (status, text)
    assert "Traceback" not in text and "site-packages" not in text


def changed(**tensors):
    return lambda data: save({k: v for k, v in (load(data) | tensors).items() if v is not None})


NOTHING = torch.frombuffer(bytearray(b'{"seeds": null, "labels": null}'), dtype=torch.uint8)
LATENTS = {
    "of another model": (changed(latent=torch.zeros(1, 5, 4, 4)), "5 channels: this model's have 3"),
    "too large": (changed(latent=torch.zeros(1, 3, 65, 64)), "at most 4,096"),
    "of two rows": (changed(latent=torch.zeros(2, 3, 4, 4), about=NOTHING), "latent of 2 rows: one is decoded"),
    "of NaN": (changed(latent=torch.full((1, 3, 4, 4), math.nan)), "NaN or infinity"),
    "out of range": (changed(latent=torch.full((1, 3, 4, 4), 9.0)), "finite and in [-1, 1]"),
    "without a frame": (changed(aspect=None), "not a latent file"),
    "with another tensor": (changed(code=torch.zeros(3)), "not a latent file"),
    "truncated": (lambda data: data[:-9], "latent.safetensors"),
    "empty": (lambda _: b"", "latent.safetensors"),
    "a pickle": (lambda _: pickle.dumps([1]), "latent.safetensors"),
    "a header of petabytes": (lambda _: b"\xff" * 6 + b"\0\0{}", "latent.safetensors"),
    "text": (lambda _: b"not a latent", "latent.safetensors"),
}


@pytest.mark.parametrize("kind", LATENTS)
def test_latent_files(url, good, latent, healthy, kind):
    forge, words = LATENTS[kind]
    with pytest.raises(Refused) as caught:
        call(url, "resample", good["resample"] | {"latent": upload(url, forge(latent))})
    check_line(str(caught.value), words)


@pytest.mark.parametrize(
    ("shape", "aspect", "words"),
    [
        ((17, 3, 4, 4), 1.0, "mine.safetensors: 17 images of 4 x 4 cells; the page takes up to 16 of 64 x 64"),
        ((1, 3, 4, 65), 1.0, "1 images of 4 x 65 cells; the page takes up to 16 of 64 x 64"),
        ((1, 3, 4, 4), 5.0, "its frame is 5 : 1; the page shows 1 : 4 … 4 : 1"),
    ],
)
def test_latent_files_that_the_page_cannot_show(tmp_path, shape, aspect, words):
    Latent(torch.zeros(shape), aspect).save(file := tmp_path / "mine.safetensors")
    page = SimpleNamespace(models=None, service=None, generate_controls=())
    with pytest.raises(gr.Error) as caught:
        Events(page).load_latent(None, str(file))
    check_line(caught.value.message, words)


# image files: the endpoint and the page read them alike


GREY, FRAMES = Image.linear_gradient("L").resize((24, 16)), [Image.new("L", (9, 9), n) for n in (0, 99, 255)]
BROKEN = {
    "text": (b"no image at all", "mine.png: not an image that can be read"),
    "nothing": (b"", "mine.png: not an image that can be read"),
    "half a PNG": (file_of(Image.effect_noise((64, 64), 99))[:-999], "mine.png: not an image that can be read"),
    "a bomb": (bomb(), "mine.png: 100000 × 100000 pixels"),
}
READ = {  # file, width / height of the image
    "8192 × 8200": (file_of(Image.new("1", (2**13, 2**13 + 8))), 2**13 / (2**13 + 8)),
    "20,000 wide": (file_of(Image.new("L", (20_000, 400))), 50),
    "an 8:1 JPEG": (file_of(Image.new("RGB", (8000, 1000)), "JPEG"), 8),
    "a screenshot": (file_of(Image.new("RGB", (500, 2200))), 500 / 2200),
    "one pixel": (file_of(Image.new("L", (1, 1))), 1.0),
    "an animation": (file_of(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]), 1.0),
    "16 bits": (file_of(Image.new("I;16", (8, 4), 40_000)), 2.0),
    "CMYK": (file_of(GREY.convert("CMYK"), "JPEG"), 1.5),
    "alpha": (file_of(Image.new("RGBA", (4, 8), (255, 0, 0, 7))), 0.5),
    "turned by EXIF": (turned(GREY), 1 / 1.5),
}


def encode(url: str, data: bytes, folder: Path) -> Latent:
    values = dict(image=upload(url, data, "mine.png"), h=4, w=4, model=None)
    (file := folder / "latent.safetensors").write_bytes(fetch(call(url, "encode", values)[0]))
    return Latent.load(file)


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_images_are_refused_alike_by_the_page_and_the_endpoint(url, healthy, tmp_path, kind):
    data, words = BROKEN[kind]
    with pytest.raises(Refused) as caught:
        encode(url, data, tmp_path)
    check_line(str(caught.value), words)
    assert refused(lambda: open_upload(data, "mine", "mine.png")) == str(caught.value)


@pytest.mark.parametrize("kind", READ)
def test_images_of_every_kind_are_encoded_and_cropped_for_the_page(url, healthy, tmp_path, kind):
    data, aspect = READ[kind]
    latent = encode(url, data, tmp_path)
    assert latent.aspect == pytest.approx(aspect, rel=0.01) and latent.tensor.isfinite().all()
    given = open_upload(data, "mine", "mine.png")
    width, height = given.image.size
    assert width / height == pytest.approx(min(max(aspect, 1 / 4), 4), rel=0.01) and max(width, height) <= LONG_SIDE
    assert ("cropped to" in " ".join(given.notes)) == (not 1 / 4 <= aspect <= 4)


def test_frames_that_no_latent_has_are_refused(url, healthy, tmp_path):
    with pytest.raises(Refused) as caught:
        encode(url, file_of(Image.new("1", (20_000, 100))), tmp_path)
    check_line(str(caught.value), "0.015625…64")


# records: JSON, links, ratios

TEXTS = ("model", "label", "other", "shape", "sampler", "ratio", "fit")
FIELDS = [
    *[{name: low - 1} for name, (low, _) in LIMITS.items()],
    *[{name: high + 1} for name, (_, high) in LIMITS.items()],
    *[{name: bad} for name in LIMITS for bad in (True, None, "1", [1], math.nan, math.inf, 10**400)],
    *[{name: 1.5} for name, (low, _) in LIMITS.items() if isinstance(low, int)],
    *[{name: bad} for name in TEXTS for bad in (3, None, "a\nb", "\ud800", "\0", "x" * 256)],
    {"model": ""}, {"shape": "5:1"}, {"ratio": "x"}, {"sampler": "euler"}, {"fit": "squash"},
]  # fmt: skip
PLAIN = to_dict(GenerateRequest("tiny"), ViewRequest())


@pytest.mark.parametrize("wrong", FIELDS, ids=lambda wrong: ascii(wrong)[:40])
def test_fields_of_requests(wrong):
    refused(lambda: from_dict(PLAIN | wrong))
    kind = GenerateRequest if set(wrong) <= {field.name for field in fields(GenerateRequest)} else ViewRequest
    refused(lambda: kind(**({"model": "tiny"} if kind is GenerateRequest else {}) | wrong))


RECORDS = {
    "JSON": (from_dict, [(values, "parameters") for values in (None, [], "model", 3, {}, {"model": "tiny"})]
             + [(PLAIN | {"colour\n": 1}, "unknown 'colour\\n'"), (PLAIN | {3: 1, "x" * 9999: 1}, "unknown 3"),
                ({k: v for k, v in PLAIN.items() if k != "eta"}, "missing 'eta'")]),
    "link": (from_query, [({"model": "tiny", name: text}, "aspect" if name == "ratio" else name) for name, text in [
        ("seed", "x"), ("seed", "1.5"), ("seed", "-1"), ("seed", "9" * 9999), ("zoom", "nan"), ("zoom", "1,5"),
        ("x", ""), ("count", "17"), ("count", "True"), ("fit", "squash"), ("ratio", "9:0"), ("model", ""),
        ("label", "a\tb")]] + [({"side": "64"}, "model")]),
    "ratio": (lambda ratio: sides(64, ratio), [(ratio, "must be 1:4 … 4:1") for ratio in [
        "5:1", "0.2", "-1", "inf", "nan", "wide", "", ":", "1:0", "0:0", "1:2:3", "x\n" * 99]]),
    "row": (GenerateRequest("tiny", count=3).row, [(i, "image") for i in (-1, 3, True, None)]),
    "blend": (lambda blend: GenerateRequest("m", "", "7", blend), [(0.4, "needs a first label")]),
}  # fmt: skip


@pytest.mark.parametrize("kind", RECORDS)
def test_records(kind):
    read, cases = RECORDS[kind]
    for value, words in cases:
        refused(lambda value=value: read(value), words)


# models and weights


def test_models_are_names_never_paths(tiny_weights, tmp_path):
    shutil.copytree(tiny_weights, tmp_path / "weights" / "tiny")
    shutil.copytree(tiny_weights, tmp_path / "outside")
    os.symlink(tmp_path / "weights" / "loop", tmp_path / "weights" / "loop")
    os.symlink("/nowhere", tmp_path / "weights" / "gone")
    models = Models(tmp_path / "weights", device="cpu")
    assert models.names == ["tiny"]
    for name in ("../outside", "/etc", "loop", "gone", "tiny/", "./tiny", "tiny\0", None, ["tiny"], 3):
        refused(lambda name=name: models.get(name), "must be one of tiny")


@pytest.mark.parametrize("kind", [QuotaPipeline, QueuedPipeline])
def test_calls_beyond_the_quota_or_with_bad_arguments_are_refused_before_they_begin(tiny_weights, kind):
    pipe = kind.from_pretrained(tiny_weights, device="cpu")
    latent = Pipeline.diffuse(pipe, "3")
    refused(lambda: pipe.diffuse_steps("3", latent_size=(64, 64), steps=1000), "at most 32 are served")
    refused(lambda: pipe.resample_tiles(latent, size=(8192, 8192)), "at most 16,777,216 are served")
    refused(lambda: pipe.diffuse_steps("3", steps=0), "steps")
    refused(lambda: pipe.resample_tiles(latent, size=(0, 4)), "size")


def edit(folder: Path, **values) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


WEIGHTS = {
    "empty": (lambda f: (f / "denoiser.safetensors").write_bytes(b""), "empty, fetch it again"),
    "a pickle by another name": (lambda f: (f / "denoiser.safetensors").write_bytes(pickle.dumps({})), "a pickle"),
    "a pickle beside": (lambda f: (f / "denoiser.safetensors").rename(f / "denoiser.bin"), "no such file"),
    "of another model": (lambda f: save_file({"a": torch.zeros(9)}, f / "resampler.safetensors"), "does not fit R2IR"),
    "absurd sizes": (lambda f: edit(f, denoiser={"width": 10**9}), "1…16384"),
    "more than memory": (lambda f: edit(f, denoiser={"width": 2**14, "heads": 8, "latent_channels": 3}), "not fit"),
    "unknown keys": (lambda f: edit(f, surprise=1), "unknown keys 'surprise'"),
    "a config of NaN": (lambda f: edit(f, latent_mean=[math.nan] * 3), "NaN is not JSON"),
    "a config of megabytes": (lambda f: edit(f, fit="x" * 2**21), "at most 1,048,576"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_in_python_on_the_page_and_by_a_script(tiny_weights, tmp_path, monkeypatch, kind):
    spoil, words = WEIGHTS[kind]
    spoil(folder := shutil.copytree(tiny_weights, tmp_path / "weights" / "bad"))
    with pytest.raises(ValueError) as caught:
        Pipeline.from_pretrained(folder, device="cpu")
    check_line(str(caught.value).replace(str(folder), ""), words)
    check_line(Models(tmp_path / "weights", device="cpu").faults["bad"], words)
    (data := tmp_path / "data").mkdir()
    GREY.save(data / "grey.png")
    said = run_script(monkeypatch, "train.evaluate", str(folder), "--data", str(data))
    check_line(said.replace(str(folder), ""), words)


# the command line


def run_script(monkeypatch, module: str, *arguments: str) -> str:
    """The last line that a script says when it refuses to run."""
    said = io.StringIO()
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as caught:
        patch.setattr(sys, "argv", [module, *arguments])
        patch.setattr(sys, "stderr", said)
        patch.delitem(sys.modules, module, raising=False)  # else it would be there twice
        runpy.run_module(module, run_name="__main__")
    assert caught.value.code not in (0, None)
    return caught.value.code if isinstance(caught.value.code, str) else said.getvalue().splitlines()[-1]


RECIPE = ("train.train_denoiser", "--config", "train/configs/mnist_r2id.toml", "--dry-run", "--set")
COMMANDS = [
    (("train.train_resampler", "--config", "/dev/null"), "error"),
    (("train.train_resampler", "--config", "weights/mnist/denoiser.safetensors"), "denoiser.safetensors"),
    ((*RECIPE, "model.width=0"), "width"),
    ((*RECIPE, "model.width=1000000000"), "1…16384"),
    ((*RECIPE, "optimisation.batch=-1"), "batch"),
    ((*RECIPE, "nothing"), "nothing"),
    (("train.export", "nowhere", "nowhere"), "nowhere"),
    (("train.export", "weights/mnist", "weights"), "error"),
    (("train.evaluate", "../../x", "--data", "tests/data"), "no such folder"),
    (("train.benchmark", "/etc"), "config.json: no such file"),
    (("app", "--port=-1"), "1…65535"),
    (("app", "--port", "65536"), "1…65535"),
    (("app", "--port", "x"), "invalid int value"),
    (("app", "--weights", "README.md"), "no such folder"),
    (("app", "--weights", "absent"), "no such folder"),
    (("app", "--device", "abacus"), "abacus"),
    (("app", "--colour"), "--colour"),
]


@pytest.mark.parametrize("command, words", COMMANDS, ids=lambda value: " ".join(value)[-40:])
def test_scripts(monkeypatch, command, words):
    monkeypatch.chdir(ROOT)
    check_line(run_script(monkeypatch, *command), words)


def test_ports_and_folders_that_cannot_be_used(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused(lambda: cli.check_port(None, port), f"--port {port}: in use by another program; give another port")
        assert f"{port}: in use" in run_script(monkeypatch, "app", "--port", str(port))
    cli.check_port(None, port)
    refused(lambda: cli.check_port("192.0.2.1", port), "give an address of this machine")
    for folder in ("/proc/absent", "/dev/null/below"):
        refused(lambda folder=folder: cli.check_folder(folder), f"{folder}: uploads and results cannot be written")
        monkeypatch.setenv("GRADIO_TEMP_DIR", folder)
        assert "set GRADIO_TEMP_DIR" in run_script(monkeypatch, "app", "--weights", "weights")
