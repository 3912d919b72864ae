"""What the page exposes: its endpoints are those listed here, and of files only those of its own folders."""

from __future__ import annotations

import os
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

import gradio as gr
import pytest
from gradio_client import Client

ENDPOINTS = {"/decoder", "/diffuse", "/encode", "/models", "/resample", "/svg", "/walk", "/word"}
SECRET = "nobody is to read this"


def asked(url: str, path: str, body: bytes | None = None) -> tuple[int, str]:
    """Status and text; a redirection is not followed, and neither is the path made shorter."""

    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_):
            return None

    request = urllib.request.Request(url + path, body, {"Content-Type": "application/json"} if body else {})
    try:
        with urllib.request.build_opener(Stay).open(request, timeout=60) as answer:
            return answer.status, answer.read(10_000).decode(errors="replace")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(10_000).decode(errors="replace")


def test_programs_see_the_listed_endpoints_only(url):
    assert set(Client(url, verbose=False).view_api(return_format="dict")["named_endpoints"]) == ENDPOINTS


CLOSED = ["monitoring", "monitoring/summary", "docs", "redoc", "gradio_api/vibe-code", "gradio_api/runs"]


@pytest.mark.parametrize("path", CLOSED)
def test_what_tells_of_the_server_is_closed(url, path):
    status, text = asked(url, path)
    assert status in (403, 404, 405, 501) and SECRET not in text, (status, text)


@pytest.mark.parametrize("name", ["run/diffuse", "api/diffuse", "vibe-edit", "run-history/connect"])
def test_there_is_no_way_round_the_queue_and_no_way_to_change_the_code(url, name):
    status, text = asked(url, f"gradio_api/{name}", b'{"data": ["3", 4, 4, 2], "prompt": "x"}')
    assert status >= 400 and "Traceback" not in text, (status, text)


@pytest.fixture(scope="module")
def links():
    """Paths that lead to a file outside the folders of the app, one of them from within."""
    with tempfile.TemporaryDirectory(dir=Path.home()) as outside:
        (file := Path(outside) / "secret.txt").write_text(SECRET)
        folder = Path(gr.utils.get_upload_folder())
        folder.mkdir(parents=True, exist_ok=True)
        link = folder / f"link-{os.getpid()}.txt"
        link.symlink_to(file)
        yield [str(file), str(link), f"{folder}/../../{file}", f"{folder}/%2e%2e/%2e%2e{file}"]
        link.unlink()


def test_files_outside_the_apps_folders_are_refused(url, links, weights):
    inside = [str(weights / "tiny" / "config.json"), "app.py", "r2id/limits.py", ".git/config"]
    others = ["/etc/passwd", "../../../etc/passwd", "..%2f..%2fetc/passwd", "/proc/self/environ", "C:/x", "\\\\x"]
    for path in [*links, *inside, *others]:
        for route in (f"gradio_api/file={path}", f"gradio_api/file/{path}", f"static/{path}", f"assets/{path}"):
            status, text = asked(url, route.replace("\\", "%5c"))
            assert status >= 400 and SECRET not in text and "root:" not in text, (route, status, text)


def test_other_hosts_are_not_asked(url):
    for route in ("gradio_api/proxy=http://127.0.0.1:9/", "gradio_api/proxy=https://example.org/"):
        assert asked(url, route)[0] >= 400
