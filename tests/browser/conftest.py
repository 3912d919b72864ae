"""Tests of the page in headless Chromium."""

import base64
import io
import os
import re
import time
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import served
from PIL import Image
from playwright import sync_api

from r2id.image import read_parameters

ARGUMENTS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update"]
SERVER_DECODES = ["--disable-3d-apis"]  # no WebGL
SOFTWARE_GL = ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--js-flags=--expose-gc"]
CHROMIUM = "/usr/bin/chromium"
PATIENCE = 90_000  # milliseconds: a busy machine is slow, not wrong
HERE = "decoded here in [0-9]+ ms"
WIDE, PHONE = {"width": 1400, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="session")
def browser():
    """A browser for which the server decodes."""
    if not Path(CHROMIUM).exists():
        absent = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        absent("no browser here: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=[*ARGUMENTS, *SERVER_DECODES])


@pytest.fixture(scope="session")
def software(browser):
    """A browser that decodes by itself, without a GPU."""
    return browser.browser_type.launch(executable_path=CHROMIUM, args=[*ARGUMENTS, *SOFTWARE_GL])


serve, url, weights = served.serve, served.url, served.weights  # fixtures


def until(page: sync_api.Page, script: str, arg=None) -> None:
    """Waits until the script is true. It looks by the clock, since a page at rest may draw no frames, and evaluates
    anew each time, which a page's content security policy lets pass."""
    deadline = time.monotonic() + PATIENCE / 1000
    while not page.evaluate(script, arg):
        assert time.monotonic() < deadline, script
        page.wait_for_timeout(50)  # milliseconds


class UserPage:
    """The page of one user."""

    def __init__(self, page: sync_api.Page, url: str):
        self.hosts, self.page, self.requests = set(), page, []
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))
        page.on("request", lambda request: self.requests.append(request.url))
        page.goto(url)

    def part(self, name: str) -> sync_api.Locator:
        """A part of the big image's component: image, thumbs, said, caption, save, …"""
        return self.page.locator(f'#show [data-part="{name}"]')

    def shows(self, pattern: str, part: str = "caption") -> str:
        """Waits until the page is live and this text matches; returns it in one line."""
        script = """([part, pattern]) => document.querySelector('[data-live=true]') && RegExp(pattern).test(
            document.querySelector(`[data-part=${part}]`)?.innerText.replace(/\\s+/g, ' '))"""
        until(self.page, script, arg=[part, pattern])
        return re.sub(r"\s+", " ", self.part(part).inner_text())

    def says(self, component: str, pattern: str) -> None:
        """Waits until the caption of another component, ".walk" or ".row", matches."""
        script = "([where, pattern]) => RegExp(pattern).test(document.querySelector(where)?.innerText)"
        until(self.page, script, arg=[f"{component} [data-part=caption]", pattern])

    def natural(self, width: int, height: int) -> None:
        """Waits until the image has this size in its own pixels."""
        script = """([width, height]) => { const image = document.querySelector('[data-part=image]');
            return image?.dataset.live === 'true' && image.width === width && image.height === height }"""
        until(self.page, script, arg=[width, height])

    def type(self, label: str, text: str) -> None:
        box = self.page.get_by_label(label, exact=True).first
        box.fill(text)
        box.press("Enter")

    def keep_seed(self) -> None:
        self.page.locator("#seed").get_by_label("keep this seed").check()

    def slide(self, label: str, key: str, times: int = 1) -> None:
        self.page.get_by_label(f"range slider for {label}").focus()
        for _ in range(times):
            self.page.keyboard.press(key)

    def drawer(self, name: str) -> None:
        """Opens a drawer, "Image" or "Latent"."""
        self.page.locator("#drawers button", has_text=f"{name}:").click()
        self._settle()

    def tab(self, name: str) -> None:
        """Opens a tab."""
        self.page.get_by_role("tab", name=name).click()
        self._settle()

    def _settle(self) -> None:
        """Waits for ten frames: Gradio sets the values of what it has just shown again in one of the next, and what a
        test has typed by then would be lost."""
        self.page.evaluate("async () => { for (let i = 0; i < 10; i++) await new Promise(requestAnimationFrame) }")

    def press(self, name: str) -> None:
        self.page.get_by_role("button", name=name, exact=True).click()

    def asked(self) -> list[str]:
        """The requests since the last call, but for Gradio's signs of life."""
        requests = [url for url in self.requests if not re.search("heartbeat|queue/data|^blob:|^data:", url)]
        self.requests.clear()
        return requests

    def file(self) -> bytes:
        """What Download PNG gives."""
        script = """link => fetch(link.href).then(r => r.blob()).then(blob => new Promise(done => {
            const reader = new FileReader();
            reader.onload = () => done(reader.result.split(',')[1]);
            reader.readAsDataURL(blob) }))"""
        return base64.b64decode(self.part("save").evaluate(script))

    def parameters(self) -> dict:
        """What that file says of itself."""
        return read_parameters(io.BytesIO(self.file()))

    def pixels(self) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(self.file())), int)


@pytest.fixture
def open_page(browser):
    """`open_page(url, viewport=PHONE, **options of a browser context)` → UserPage, closed after the test."""
    contexts = []

    def opened(url: str, **options) -> UserPage:
        contexts.append(browser.new_context(**{"viewport": WIDE, **options}))
        return UserPage(contexts[-1].new_page(), url)

    yield opened
    for context in contexts:
        context.close()


@pytest.fixture
def user(open_page, url):
    """A user with a wide window."""
    return open_page(url)


@pytest.fixture
def decoding(software, url):
    """`decoding()` → the page of a user whose browser decodes, however slow it is."""
    contexts = []

    def opened(viewport=WIDE, **options) -> UserPage:
        contexts.append(software.new_context(viewport=viewport, **options))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: pytest.fail(str(error)))
        page.add_init_script("globalThis.R2ID = { budget: Infinity }")
        user = UserPage(page, f"{url}?model=tiny&label=3&seed=0&cells=4&steps=4&side=64")
        user.shows(f"64 × 64 pixels {HERE}")
        page.wait_for_timeout(500)  # what the opening still sends
        user.requests.clear()
        return user

    yield opened
    for context in contexts:
        context.close()


@pytest.fixture
def gallery() -> Path:
    """Where screenshots are kept."""
    (folder := Path(__file__).parents[1] / "artefacts").mkdir(exist_ok=True)
    return folder


@pytest.fixture
def phone(open_page, url):
    """A user with a phone, in the given theme: `phone("dark")`."""
    return lambda theme: open_page(f"{url}?__theme={theme}", viewport=PHONE)
