"""The page, as a browser and as a program sees it, with a tiny model."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image
from playwright import sync_api

import app
from r2id import Latent
from r2id.image import read_parameters

ROOT = Path(__file__).parents[1]
ARGUMENTS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update"]
CHROMIUM = "/usr/bin/chromium"


@contextmanager
def served(weights):
    """`python app.py` on a free port, until it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "app.py", "--port", str(port), "--weights", str(weights), "--device", "cpu"]
    server = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    try:
        for _ in range(600):
            assert server.poll() is None, "app.py ended instead of serving"
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/").close()
                break
            except OSError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.terminate()
        server.wait(10)


@pytest.fixture(scope="module")
def url(tiny_weights, tmp_path_factory):
    weights = tmp_path_factory.mktemp("page")
    shutil.copytree(tiny_weights, weights / "tiny")
    (weights / "spoilt").mkdir()
    (weights / "spoilt" / "config.json").write_text("{")
    with served(weights) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    if not Path(CHROMIUM).exists():
        absent = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        absent("no browser here: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)


def size_of(png) -> tuple[int, int]:
    with Image.open(png) as image:
        return image.size


class Visit:
    """One visitor's page."""

    def __init__(self, browser, url, **options):
        self.hosts, self.page = set(), browser.new_page(**options)
        self.page.set_default_timeout(20_000)
        self.page.on("request", lambda request: self.hosts.add(request.url.split("/")[2]))
        self.page.goto(url)

    def shows(self, pattern: str) -> str:
        """Waits until the facts match; returns them in one line."""
        self.page.wait_for_function(
            "pattern => RegExp(pattern).test(document.querySelector('dl')?.innerText.replace(/\\s+/g, ' '))",
            arg=pattern,
        )
        return re.sub(r"\s+", " ", self.page.inner_text("dl"))

    def natural(self, width: int, height: int) -> None:
        """Waits until the picture has this size in its own pixels."""
        image = "document.querySelector('#picture img')"
        script = f"size => {image}?.naturalWidth === size[0] && {image}.naturalHeight === size[1]"
        self.page.wait_for_function(script, arg=[width, height])

    def type(self, label: str, text: str) -> None:
        box = self.page.get_by_label(label, exact=True)
        box.fill(text)
        box.press("Enter")


@pytest.fixture
def visit(browser, url):
    visit = Visit(browser, url)
    yield visit
    visit.page.close()


def test_the_page_opens_with_a_picture_and_asks_no_other_host(visit, url):
    visit.natural(256, 256)
    facts = visit.shows("256 × 256 pixels, contain, resampled in [0-9]+ ms")
    assert "label 3, 4 × 4 cells, seed 0" in facts and "tiny on cpu" in facts
    assert "256 by 256 pixels" in visit.page.get_attribute("#picture img", "alt")
    assert "spoilt cannot be used: " in visit.page.inner_text(".notice")
    assert visit.hosts == {url.split("/")[2]}


def test_one_diffusion_serves_every_size(visit):
    visit.shows("resampled 1 ×")
    visit.page.get_by_role("button", name="Diffuse").click()
    before = visit.shows(r"seed [1-9].*diffused 1 × \(4 steps.*resampled 1 ×")
    visit.page.get_by_label("range slider for Resolution").focus()
    for _ in range(3):
        visit.page.keyboard.press("ArrowLeft")
    visit.natural(232, 232)
    after = visit.shows("232 × 232 pixels.*diffused 1 ×")
    seed = re.search("seed [0-9]+", before)[0]
    assert seed in after and "resampled 1 ×" not in after


def test_visitors_do_not_share_a_latent(visit, browser, url):
    visit.shows("seed 0 .*resampled 1 ×")
    other = Visit(browser, url)
    other.shows("seed 0 .*resampled 1 ×")
    other.page.get_by_role("button", name="Diffuse").click()
    other.shows(r"seed [1-9].*resampled 1 ×")
    other.page.close()
    visit.page.get_by_label("cover").check()
    visit.shows("cover, .*seed 0 .*resampled 2 ×")


def test_sizes_and_ratios_can_be_typed_and_the_last_one_wins(visit):
    visit.shows("resampled 1 ×")
    number = visit.page.get_by_label("number input for Resolution")
    number.fill("")
    number.press_sequentially("120", delay=30)
    visit.natural(120, 120)
    visit.type("Picture ratio (w : h)", "9:16")
    visit.natural(68, 120)
    visit.page.get_by_label("range slider for Picture ratio").focus()
    for _ in range(9):
        visit.page.keyboard.press("ArrowRight")
    visit.natural(76, 120)
    assert visit.page.get_by_role("combobox", name="Picture ratio").input_value() == "0.63"
    number.fill("64")
    visit.page.get_by_label("stretch").check()
    visit.shows("40 × 64 pixels, stretch")
    visit.type("Picture ratio (w : h)", "7:1")
    assert "7:1: must be 1:4 … 4:1" in visit.page.inner_text(".toast-body")
    visit.type("Picture ratio (w : h)", "2")
    visit.natural(64, 32)


def test_a_running_diffusion_can_be_stopped_and_its_latent_stays(visit):
    visit.shows("resampled 1 ×")
    stop = visit.page.get_by_role("button", name="Stop")
    assert stop.is_disabled()
    visit.type("number input for Steps (denoiser runs)", "100")
    visit.page.get_by_role("button", name="Diffuse").click()
    visit.shows("preview, 96 × 96 pixels")
    stop.click()
    stopped = visit.shows(r"256 × 256 pixels, .*\([0-9]+ of 100 steps.*resampled 1 ×")
    visit.type("number input for Resolution, long side (pixels)", "40")
    visit.natural(40, 40)
    resampled = visit.shows("40 × 40 pixels")
    assert re.search("seed.*steps", stopped)[0] == re.search("seed.*steps", resampled)[0]
    visit.page.wait_for_function("[...document.querySelectorAll('button')].find(b => b.innerText === 'Stop').disabled")


def test_the_downloaded_png_carries_its_parameters(visit, tmp_path):
    visit.shows("resampled 1 ×")
    with visit.page.expect_download() as download:
        visit.page.get_by_text("Download PNG").click()
    download.value.save_as(tmp_path / "picture.png")
    about = read_parameters(tmp_path / "picture.png")
    assert about["model"] == "tiny" and about["label"] == "3" and about["seed"] == 0 and about["size"] == [256, 256]
    assert size_of(tmp_path / "picture.png") == (256, 256)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_phone_shows_everything_without_scrolling_sideways(browser, url, theme):
    visit = Visit(browser, f"{url}?__theme={theme}", viewport={"width": 390, "height": 844})
    visit.natural(256, 256)
    assert visit.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    visit.page.evaluate("scrollTo(0, 500)")  # the picture stays in view while its sliders move
    assert visit.page.locator("#picture img").bounding_box()["y"] >= 0
    visit.page.close()


def test_without_weights_the_page_says_what_to_do(browser, tmp_path):
    with served(tmp_path) as url:
        visit = Visit(browser, url)
        assert "python train/train_resampler.py" in visit.page.inner_text(".notice")
        assert visit.page.get_by_role("button", name="Diffuse").is_disabled()
        visit.page.close()


@pytest.fixture(scope="module")
def client(url, tmp_path_factory):
    return Client(url, verbose=False, download_files=tmp_path_factory.mktemp("downloads"))


GOOD = dict(label="3", latent_height=4, latent_width=6, steps=3, guidance=1.5, seed=7, model="tiny")


def test_programs_diffuse_once_and_resample_the_file(client):
    picture, file = client.predict(**GOOD, api_name="/diffuse")
    latent = Latent.load(file)
    assert latent.size == (4, 6) and latent.seeds == (7,) and latent.labels == ("3",)
    assert size_of(picture) == (256, 171) and read_parameters(picture)["seed"] == 7
    again = client.predict(
        latent=handle_file(file), height=20, width=33, fit="cover", model="tiny", api_name="/resample"
    )
    assert size_of(again) == (33, 20) and read_parameters(again)["labels"] == ["3"]


@pytest.mark.parametrize(
    "bad",
    [
        dict(label="eleven"),
        dict(latent_height=0),
        dict(latent_width="wide"),
        dict(steps=10**6),
        dict(guidance="much"),
        dict(seed=-1),
        dict(model="absent"),
    ],
    ids=str,
)
def test_bad_requests_to_diffuse_are_answered_in_one_line(client, bad):
    with pytest.raises(AppError) as told:
        client.predict(**{**GOOD, **bad}, api_name="/diffuse")
    (value,) = bad.values()
    assert str(value) in str(told.value) and "\n" not in str(told.value)


def test_bad_requests_to_resample_are_answered_in_one_line(client, tmp_path):
    file = handle_file(client.predict(**GOOD, api_name="/diffuse")[1])
    (tmp_path / "other.safetensors").write_bytes(b"not a latent")
    good = dict(latent=file, height=8, width=8, fit="contain", model="tiny")
    for bad, words in [
        (dict(latent=handle_file(tmp_path / "other.safetensors")), "other.safetensors"),
        (dict(latent="/etc/hostname"), "must be a file"),
        (dict(latent={"path": "/etc/hostname"}), "must be a file"),
        (dict(height=9000), "9000"),
        (dict(width=0.5), "0.5"),
        (dict(fit="squash"), "squash"),
    ]:
        with pytest.raises(AppError) as told:
            client.predict(**{**good, **bad}, api_name="/resample")
        assert words in str(told.value) and "\n" not in str(told.value)


def test_bad_options_end_in_one_line(monkeypatch, capsys, tmp_path):
    for bad in [["--port", "x"], ["--weights", "absent"], ["--device", "abacus"], ["--colour"]]:
        monkeypatch.setattr(sys, "argv", ["app.py", "--weights", str(tmp_path), *bad])
        with pytest.raises(SystemExit) as ended:
            app.main()
        told = capsys.readouterr().err
        assert ended.value.code == 2 and told.startswith("app.py: ") and told.count("\n") == 1, told


def test_a_port_in_use_ends_in_one_line(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command = [sys.executable, "app.py", "--weights", str(tmp_path), "--port", port]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1 and port in ended.stderr, ended.stderr


@pytest.mark.parametrize("ratio, size", [("1:1", (64, 64)), ("16:9", (36, 64)), ("9:16", (64, 36)), ("0.25", (64, 16))])
def test_a_ratio_is_width_to_height_and_the_long_side_stays(ratio, size):
    assert app.sides(64, ratio)[0] == size
    assert app.sides(1, ratio)[0] == (1, 1)


@pytest.mark.parametrize("ratio", ["5:1", "0.2", "-1", "inf", "wide"])
def test_other_ratios_are_refused(ratio):
    with pytest.raises(ValueError):
        app.sides(64, ratio)
