"""`app.py` from outside: its endpoints for programs, how it serves, its command line; with tiny models."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from gradio_client import Client, handle_file
from PIL import Image

import app
from r2id import Latent
from r2id.image import read_parameters, to_pil


def size_of(png) -> tuple[int, int]:
    with Image.open(png) as image:
        return image.size


@pytest.fixture(scope="module")
def client(url, tmp_path_factory):
    return Client(url, verbose=False, download_files=tmp_path_factory.mktemp("downloads"))


GOOD = dict(label="3", latent_height=4, latent_width=6, steps=3, guidance=1.5, seed=7, model="tiny")


def test_programs_diffuse_once_and_resample_the_file(client, tiny):
    png, file = client.predict(**GOOD, api_name="/diffuse")
    latent = Latent.load(file)
    assert latent.size == (4, 6) and latent.seeds == (7,) and latent.labels == ("3",)
    assert size_of(png) == (256, 171) and read_parameters(png)["seed"] == 7
    how = dict(height=20, width=33, fit="cover", region=[0.25, 0.0, 0.75, 0.5])
    again = client.predict(latent=handle_file(file), model="tiny", **how, api_name="/resample")
    assert size_of(again) == (33, 20) and read_parameters(again)["labels"] == ["3"]
    region = tiny.resample(latent, size=(20, 33), fit="cover", region=(0.25, 0.0, 0.75, 0.5))
    with Image.open(again) as image:
        difference = np.asarray(image, int) - np.asarray(to_pil(region[0]), int)
    assert np.abs(difference).max() <= 3  # the server may decode in bfloat16


def test_programs_choose_how_a_latent_is_diffused(client, tiny):
    more = dict(aspect=1.0, sampler="ddim", eta=0.5, other_label="7", blend=0.25)
    latent = Latent.load(client.predict(**GOOD, **more, api_name="/diffuse")[1])
    assert latent.aspect == 1 and latent.labels == ({"3": 0.75, "7": 0.25},)
    how = dict(latent_size=(4, 6), aspect=1.0, steps=3, guidance=1.5, seed=7, sampler="ddim", eta=0.5)
    torch.testing.assert_close(latent.tensor, tiny.diffuse([{"3": 0.75, "7": 0.25}], **how).tensor)


def test_programs_encode_images_and_list_models(client, tiny, tmp_path):
    Image.linear_gradient("L").resize((24, 16)).save(tmp_path / "mine.png")
    file = client.predict(handle_file(tmp_path / "mine.png"), 5, 7, api_name="/encode")
    assert Latent.load(file).size == (5, 7) and Latent.load(file).aspect == 1.5
    models = client.predict(api_name="/models")
    assert [model["name"] for model in models] == ["tiny", "twin"]
    assert models[0]["labels"] == tiny.labels and models[0]["defaults"]["steps"] == 4


def test_programs_write_a_word_and_take_its_outline(client, tiny):
    how = dict(latent_height=4, latent_width=3, steps=2, seed=7, model="tiny")
    png, file = client.predict("2026", 32, **how, api_name="/word")
    latent = Latent.load(file)
    assert size_of(png) == (4 * 24, 32) and read_parameters(png)["word"] == "2026"
    assert latent.labels == ("2", "0", "2", "6") and latent.seeds == (7,) * 4 and latent.aspect == 0.75
    outline = Path(client.predict(handle_file(file), model="tiny", api_name="/svg")).read_text(encoding="utf-8")
    assert outline.startswith("<svg ") and outline.count("<path ") == 4
    each = client.predict("12", one_seed=False, **how, api_name="/word")[1]
    assert Latent.load(each).seeds == (7, 8)


def test_programs_take_a_walk(client):
    how = dict(positions=3, side=24, seconds=1.0, cells=4, ratio="2:3", steps=2, model="tiny")
    with Image.open(client.predict("3", "7", 1, 2, kind="webp", **how, api_name="/walk")) as file:
        assert (file.format, file.size, file.n_frames) == ("WEBP", (16, 24), 4)
    with pytest.raises(Exception, match="a label for both ends"):
        client.predict("3", "", 1, 2, **how, api_name="/walk")


def test_programs_get_what_they_need_to_decode_by_themselves(client):
    latent = client.predict(**GOOD, api_name="/diffuse")[1]
    files = client.predict(api_name="/decoder"), client.predict(handle_file(latent), "tiny", api_name="/decoder")
    assert [Path(file).name for file in files] == ["decoder.safetensors.gz", "tokens.safetensors.gz"]
    assert all(Path(file).read_bytes()[:2] == b"\x1f\x8b" for file in files)


def test_the_endpoints_say_what_they_take(client):
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    by_name = {parameter["parameter_name"]: parameter for parameter in endpoints["/diffuse"]["parameters"]}
    assert by_name["label"]["python_type"]["type"] == "str" and by_name["latent_width"]["python_type"]["type"] == "int"
    assert (
        all("latent" in endpoints[name]["description"] for name in endpoints if name != "/walk") and len(endpoints) > 3
    )


def test_a_resample_does_not_wait_for_a_diffusion(client):
    file = handle_file(client.predict(**GOOD, api_name="/diffuse")[1])
    long = client.submit(**{**GOOD, "steps": 1000, "latent_height": 16, "latent_width": 16}, api_name="/diffuse")
    while long.status().code.name != "PROCESSING":
        time.sleep(0.01)
    client.predict(file, 64, 64, api_name="/resample")
    assert not long.done()
    long.cancel()


UNTABULATED = """
import app, gradio
queue = gradio.Blocks(analytics_enabled=False).queue()._queue
queue.events_recorded, queue._get_df = 10**6, None  # what would make the table cannot be called
assert queue.compute_analytics_summary([{"function": "diffuse"}]) == {"functions": {}}
"""


def test_nothing_is_tabulated_after_an_event():
    """Gradio would make a table of the last 10,000 after each, which costs memory and time."""
    folder = Path(app.__file__).parent
    subprocess.run([sys.executable, "-c", UNTABULATED], cwd=folder, check=True, timeout=120)
