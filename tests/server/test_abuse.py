"""Bad input by every door: the answer is one line with the limit, soon, and what worked before works after it.

What single functions refuse is in the tests of their modules; here whole calls are made, of Python, of the server's
endpoints, of raw HTTP and of the command line."""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import runpy
import shutil
import sys
import time
import urllib.error
import urllib.request
import zlib
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load, save, save_file

from r2id import Latent, Pipeline
from r2id.demo.models import Models

ROOT = Path(__file__).parents[2]
SOON = 30  # seconds, of a busy machine; on an idle one all answers come within one
DRAWN = dict(label="3", latent_height=4, latent_width=6, steps=3, guidance=1.5, seed=7, model="tiny", aspect=None,
             sampler=None, eta=0.0, other_label=None, blend=0.0)  # fmt: skip


def one_line(text: str, words: str) -> None:
    assert words in text and "\n" not in text and len(text) < 400 and "/tmp/" not in text, text


@pytest.fixture(autouse=True)
def soon():
    start = time.monotonic()
    yield
    assert time.monotonic() - start < SOON


# Python: what the tests of the pipeline do not have


def latent_of(rows: int = 1, size: tuple = (4, 4), aspect: float = 1.0) -> Latent:
    return Latent(torch.zeros(rows, 3, *size), aspect)


POINT = (0.5, 0.5, math.nextafter(0.5, 1), math.nextafter(0.5, 1))
PYTHON = {
    "a zoom past float precision": (lambda p: p.resample(latent_of(), size=(8, 8), region=POINT), "2^-20 or wider"),
    "a denormal zoom": (lambda p: p.resample(latent_of(), size=(8, 8), region=(0, 0, 5e-324, 5e-324)), "2^-20"),
    "a region of numerals": (lambda p: p.resample(latent_of(), size=(8, 8), region="0011"), "four numbers"),
    "a region of truths": (lambda p: p.resample(latent_of(), size=(8, 8), region=[False, 0, True, 1]), "four numbers"),
    "a region of words": (lambda p: p.resample(latent_of(), size=(8, 8), region=("a", "b", "c", "d")), "four numbers"),
    "a mixture of nothing": (lambda p: p.diffuse([{"3": 0.0, "7": 0}]), "above 0 and finite"),
    "a mixture past all floats": (lambda p: p.diffuse([{"3": 1e308, "7": 1.7e308}]), "above 0 and finite"),
    "a label of a million letters": (lambda p: p.diffuse(["3" * 10**6]), "must be an index 0…9 or one of"),
    "a seed of 30 digits": (lambda p: p.diffuse(["3"], seed=10**30), "0…4294967295"),
    "a billion steps": (lambda p: p.diffuse(["3"], steps=10**9), "1…1000"),
    "guidance of a billion": (lambda p: p.diffuse(["3"], guidance=1e9), "-100…100"),
    "an image 20,000 wide": (lambda p: p.encode(Image.new("L", (20_000, 1))), "0.015625…64"),
    "an image past the limit": (lambda p: p.encode(Image.new("1", (2**13, 2**13 + 1))), "67,108,864 pixels"),
}


@pytest.mark.parametrize("case", PYTHON)
def test_python_refuses_in_a_line(tiny, case):
    act, words = PYTHON[case]
    with pytest.raises(ValueError) as caught:
        act(tiny)
    one_line(str(caught.value), words)


def test_extremes_within_the_limits_work(tiny):
    line = tiny.diffuse(["3"], latent_size=(1, 4096), aspect=1.0, steps=1, guidance=-100.0, seed=2**32 - 1)
    assert tiny.resample(line, size=(61, 8192 // 64)).isfinite().all()
    assert tiny.resample(line, size=(1, 61), region=(0.5, 0.5, 0.5 + 2**-19, 0.5 + 2**-19)).isfinite().all()
    wild = tiny.diffuse([{"3": 5e-324, "7": 1.0}], steps=8, guidance=100.0, sampler="ddim", eta=10.0)
    assert tiny.resample(wild, size=(8, 61)).isfinite().all()


# the server


def posted(url: str, path: str, body: bytes, kind: str = "application/json") -> tuple[int, str]:
    """Status and answer; of a call that was accepted, its events."""
    request = urllib.request.Request(f"{url}gradio_api/{path}", body, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=SOON) as answer:
            text = answer.read().decode()
        if "event_id" in text:
            with urllib.request.urlopen(f"{url}gradio_api/{path}/{json.loads(text)['event_id']}", timeout=SOON) as more:
                text = more.read().decode()
        return answer.status, text
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def called(url: str, name: str, values: dict) -> list:
    """What the endpoint returns; its objection is raised."""
    status, text = posted(url, f"call/{name}", json.dumps({"data": list(values.values())}).encode())
    data = json.loads(text.rpartition("data: ")[2])
    if status != 200 or not text.startswith("event: complete"):
        raise Refused(data["error"])
    return data


class Refused(Exception):
    """What the server says."""


def uploaded(url: str, data: bytes, name: str = "latent.safetensors") -> dict:
    """A file as the endpoints take it."""
    head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
    status, text = posted(url, "upload", head.encode() + data + b"\r\n--x--\r\n", "multipart/form-data; boundary=x")
    assert status == 200, text
    return {"path": json.loads(text)[0], "meta": {"_type": "gradio.FileData"}}


def fetched(file: dict) -> bytes:
    with urllib.request.urlopen(file["url"], timeout=SOON) as answer:
        return answer.read()


@pytest.fixture(scope="module")
def latent(url) -> bytes:
    """A latent file made before all abuse."""
    return fetched(called(url, "diffuse", DRAWN)[1])


@pytest.fixture(scope="module")
def good(url, latent) -> dict:
    """The arguments of a resample."""
    return dict(latent=uploaded(url, latent), height=20, width=33, fit=None, model="tiny", region=None)


@pytest.fixture(scope="module")
def first(url, good) -> bytes:
    return fetched(called(url, "resample", good)[0])


@pytest.fixture
def healthy(url, good, first):
    """After the test the server answers as before, from a latent of before."""
    yield
    assert fetched(called(url, "resample", good)[0]) == first


DIFFUSE = {
    "latent_height": [(0, "1…4096"), (-1, "1…4096"), (1e9, "1…4096"), (4096, "at most 4,096"), ("64", "1…4096")],
    "latent_width": [(None, "1…4096"), (True, "1…4096"), ([8], "1…4096"), ({"w": 8}, "1…4096"), (64.5, "1…4096")],
    "seed": [(-1, "0…4294967295"), (10**30, "0…4294967295"), (1.5, "0…4294967295")],
    "steps": [(0, "1…1000"), (10**9, "1…1000"), ([20], "1…1000")],
    "guidance": [(1e9, "-100…100"), ("NaN", "-100…100")],
    "aspect": [(0, "0.015625…64"), (1e6, "0.015625…64")],
    "label": [("eleven", "one of 0, 1"), ({"3": 0, "7": 0}, "above 0"), ({}, "above 0"), ([3], "one of 0, 1")],
    "other_label": [([7], "one of 0, 1"), ({"7": 1}, "one of 0, 1")],
    "blend": [(1.5, "0…1")],
    "sampler": [("x" * 10**5, "ddim, dpm++"), (7, "ddim, dpm++")],
    "eta": [(-1, "0…10")],
    "model": [("../../x", "one of tiny, twin"), ("/etc", "one of tiny"), ("tiny/../twin", "one of"), ("spoilt", "JSON"),
              ({"name": "tiny"}, "one of tiny"), (["tiny"], "one of tiny")],
}  # fmt: skip


@pytest.mark.parametrize("name, value, words", [(name, *case) for name, cases in DIFFUSE.items() for case in cases])
def test_the_server_refuses_to_diffuse_in_a_line(url, healthy, name, value, words):
    with pytest.raises(Refused) as caught:
        called(url, "diffuse", DRAWN | {name: value})
    one_line(str(caught.value), words)
    assert any(word in str(caught.value) for word in (name, "latent_size", "label", "mixture"))


def test_what_would_take_all_day_is_not_begun(url, good, healthy):
    for name, many, words in [
        ("diffuse", DRAWN | dict(latent_height=64, latent_width=64, steps=1000), "at most 32 are served"),
        ("resample", good | dict(height=8192, width=8192), "at most 16,777,216 are served"),
    ]:
        with pytest.raises(Refused) as caught:
            called(url, name, many)
        one_line(str(caught.value), words)


RESAMPLE = {
    "height": [(0, "1…8192"), (-1, "1…8192"), (1e9, "1…8192"), ("64", "1…8192"), (None, "1…8192"), (True, "1…8192")],
    "width": [([8], "1…8192"), ({"w": 8}, "1…8192"), (64.5, "1…8192")],
    "region": [([0.5, 0, 0.4, 1], "left"), ([0, 0, 0, 0], "left"), ([-1, 0, 1, 1], "left"), ([0, 0, 1, 2], "left"),
               ([0.5, 0.5, 0.5 + 1e-17, 1], "2^-20"), ([0, 0, 1], "four numbers"), ("0011", "four numbers")],
    "fit": [("squash", "contain"), (0, "contain")],
    "latent": [("/etc/hostname", "must be a file"), ({"path": "/etc/hostname"}, "must be a file"), (None, "a file")],
}  # fmt: skip


@pytest.mark.parametrize("name, value, words", [(name, *case) for name, cases in RESAMPLE.items() for case in cases])
def test_the_server_refuses_to_resample_in_a_line(url, good, healthy, name, value, words):
    with pytest.raises(Refused) as caught:
        called(url, "resample", good | {name: value})
    one_line(str(caught.value), words)


def test_sizes_off_the_sliders_steps_work(url, good, healthy):
    (file,) = called(url, "resample", good | dict(height=61, width=1))
    with Image.open(io.BytesIO(fetched(file))) as image:
        assert image.size == (1, 61)


def forged(data: bytes, /, **changes) -> dict:
    return {name: tensor for name, tensor in (load(data) | changes).items() if tensor is not None}


LATENTS = {
    "of another model": (dict(latent=torch.zeros(1, 5, 4, 4)), "5 channels: this model's have 3"),
    "over-sized": (dict(latent=torch.zeros(1, 3, 65, 64)), "at most 4,096"),
    "of NaN": (dict(latent=torch.full((1, 3, 4, 4), math.nan)), "NaN or infinity"),
    "beyond its values": (dict(latent=torch.full((1, 3, 4, 4), 9.0)), "finite and in [-1, 1]"),
    "without a frame": (dict(aspect=None), "not a latent file"),
    "with a tail": (dict(code=torch.zeros(3)), "not a latent file"),
}


@pytest.mark.parametrize("kind", [*LATENTS, "truncated", "empty", "a pickle", "a header of petabytes"])
def test_forged_latents_are_refused_in_a_line(url, good, latent, healthy, kind):
    change, words = LATENTS.get(kind, (None, "latent.safetensors"))
    others = {"empty": b"", "a pickle": pickle.dumps([1]), "a header of petabytes": b"\xff" * 6 + b"\0\0{}"}
    data = save(forged(latent, **change)) if change else others.get(kind, latent[:-9])
    with pytest.raises(Refused) as caught:
        called(url, "resample", good | {"latent": uploaded(url, data)})
    one_line(str(caught.value), words)


def encoded(image: Image.Image, kind: str = "PNG", **how) -> bytes:
    image.save(file := io.BytesIO(), kind, **how)
    return file.getvalue()


def turned(image: Image.Image) -> bytes:
    (exif := Image.Exif())[0x0112] = 6
    return encoded(image, exif=exif)


def bomb() -> bytes:
    """A few kilobytes that say of themselves to be a grey image of 10^10 pixels."""
    data = bytearray(encoded(Image.new("L", (9, 9))))
    data[16:24] = (100_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


GREY, FRAMES = Image.linear_gradient("L").resize((24, 16)), [Image.new("L", (9, 9), n) for n in (0, 99, 255)]
UPLOADS = {  # what is sent → width / height of the frame, or what is said
    "text": (b"no image at all", "not an image"),
    "nothing": (b"", "not an image"),
    "half a PNG": (encoded(Image.effect_noise((64, 64), 99))[:-999], "image"),
    "a bomb": (bomb(), "image"),
    "many pixels": (encoded(Image.new("1", (2**13, 2**13 + 8))), "67,108,864 pixels"),
    "20,000 wide and thin": (encoded(Image.new("1", (20_000, 100))), "0.015625…64"),
    "20,000 wide": (encoded(Image.new("L", (20_000, 400))), 2048 / 41),
    "one pixel": (encoded(Image.new("L", (1, 1))), 1.0),
    "an animation": (encoded(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]), 1.0),
    "16 bits": (encoded(Image.new("I;16", (8, 4), 40_000)), 2.0),
    "CMYK": (encoded(GREY.convert("CMYK"), "JPEG"), 1.5),
    "alpha": (encoded(Image.new("RGBA", (4, 8), (255, 0, 0, 7))), 0.5),
    "turned by EXIF": (turned(GREY), 1 / 1.5),
}


@pytest.mark.parametrize("kind", UPLOADS)
def test_uploads_become_latents_or_one_line(url, healthy, tmp_path, kind):
    data, expected = UPLOADS[kind]
    (file := tmp_path / "latent.safetensors").touch()
    try:
        image = uploaded(url, data, "mine.png")
        file.write_bytes(fetched(called(url, "encode", dict(image=image, h=4, w=4, model=None))[0]))
    except Refused as error:
        one_line(str(error), str(expected))
    else:
        encoded = Latent.load(file)
        assert encoded.aspect == pytest.approx(expected) and encoded.tensor.isfinite().all()


# HTTP without arguments as they should be

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
def test_malformed_json_is_answered(url, healthy, kind):
    status, text = posted(url, "call/diffuse", RAW[kind])
    assert 400 <= status < 500 or (status == 200 and text.startswith("event: error")), (status, text)
    assert "Traceback" not in text and "site-packages" not in text


# files of weights


def test_models_are_names_never_paths(tiny_weights, tmp_path):
    shutil.copytree(tiny_weights, tmp_path / "weights" / "tiny")
    shutil.copytree(tiny_weights, tmp_path / "outside")
    os.symlink(tmp_path / "weights" / "loop", tmp_path / "weights" / "loop")
    os.symlink("/nowhere", tmp_path / "weights" / "gone")
    models = Models(tmp_path / "weights", device="cpu")
    assert models.names == ["tiny"]
    for name in ("../outside", "/etc", "loop", "gone", "tiny/", "./tiny", "tiny\0", None, ["tiny"], 3):
        with pytest.raises(ValueError) as caught:
            models.get(name)
        one_line(str(caught.value), "must be one of tiny")


def edited(folder: Path, **values) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


WEIGHTS = {
    "empty": (lambda f: (f / "denoiser.safetensors").write_bytes(b""), "empty, fetch it again"),
    "a pickle by another name": (lambda f: (f / "denoiser.safetensors").write_bytes(pickle.dumps({})), "a pickle"),
    "a pickle beside": (lambda f: (f / "denoiser.safetensors").rename(f / "denoiser.bin"), "no such file"),
    "a stranger's": (lambda f: save_file({"a": torch.zeros(9)}, f / "resampler.safetensors"), "does not fit R2IR"),
    "absurd sizes": (lambda f: edited(f, denoiser={"width": 10**9}), "1…16384"),
    "more than memory": (lambda f: edited(f, denoiser={"width": 2**14, "heads": 8, "latent_channels": 3}), "not fit"),
    "unknown keys": (lambda f: edited(f, surprise=1), "unknown keys 'surprise'"),
    "a config of NaN": (lambda f: edited(f, latent_mean=[math.nan] * 3), "NaN is not JSON"),
    "a config of megabytes": (lambda f: edited(f, fit="x" * 2**21), "at most 1,048,576"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WEIGHTS)
def test_bad_weights_are_one_line_by_every_door(tiny_weights, tmp_path, monkeypatch, kind):
    """Python, the list of the page, and a script."""
    act, words = WEIGHTS[kind]
    act(folder := shutil.copytree(tiny_weights, tmp_path / "weights" / "bad"))
    with pytest.raises(ValueError) as caught:
        Pipeline.from_pretrained(folder, device="cpu")
    one_line(str(caught.value).replace(str(folder), ""), words)
    one_line(Models(tmp_path / "weights", device="cpu").faults["bad"], words)
    one_line(ended(monkeypatch, "train/evaluate", str(folder), "--data", str(tmp_path)).replace(str(folder), ""), words)


# the command line


def ended(monkeypatch, script: str, *arguments: str) -> str:
    """What the script says at its end, by its own objection or by that of argparse."""
    said = io.StringIO()
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as caught:
        patch.setattr(sys, "argv", [f"{script}.py", *arguments])
        patch.setattr(sys, "stderr", said)
        runpy.run_path(str(ROOT / f"{script}.py"), run_name="__main__")
    assert caught.value.code not in (0, None)
    return caught.value.code if isinstance(caught.value.code, str) else said.getvalue().splitlines()[-1]


RECIPE = ("train/train_denoiser", "--config", "train/configs/mnist_r2id.toml", "--dry-run", "--set")
COMMANDS = [
    (("train/train_resampler", "--config", "/dev/null"), "error"),
    (("train/train_resampler", "--config", "weights/mnist/denoiser.safetensors"), "denoiser.safetensors"),
    ((*RECIPE, "model.width=0"), "width"),
    ((*RECIPE, "model.width=1000000000"), "1…16384"),
    ((*RECIPE, "optimisation.batch=-1"), "batch"),
    ((*RECIPE, "nothing"), "nothing"),
    (("train/export", "nowhere", "nowhere"), "nowhere"),
    (("train/export", "weights/mnist", "weights"), "error"),
    (("train/evaluate", "../../x"), "no such folder"),
    (("train/benchmark", "/etc"), "config.json: no such file"),
    (("train/classifier", "--epochs", "many"), "--epochs"),
    (("app", "--port=-1"), "1…65535"),
    (("app", "--port", "65536"), "1…65535"),
    (("app", "--weights", "README.md"), "no such folder"),
]


@pytest.mark.parametrize("command, words", COMMANDS, ids=lambda value: " ".join(value)[-40:])
def test_scripts_end_in_a_line(monkeypatch, command, words):
    monkeypatch.chdir(ROOT)
    one_line(ended(monkeypatch, *command), words)
