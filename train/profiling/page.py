"""How long the app takes from its start to a page that answers."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from train.evaluation.tables import Table

ROOT = Path(__file__).resolve().parents[2]
PAGE_LIMIT = 120.0  # seconds
IMPORTS = """
import time
start = time.perf_counter()
import torch
middle = time.perf_counter()
import gradio
print(middle - start, time.perf_counter() - middle)
"""


def page_seconds(weights: str) -> float:
    """From starting the app to a page that answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(ROOT / "app.py"), "--host", "127.0.0.1", "--port", str(port), "--weights", weights]
    start = time.perf_counter()
    app = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while (seconds := time.perf_counter() - start) < PAGE_LIMIT and app.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=PAGE_LIMIT):
                    return time.perf_counter() - start
            except OSError:
                time.sleep(0.1)
    finally:
        app.terminate()
        app.wait()
    raise ValueError(f"app.py: no page after {seconds:.0f} s; run it by hand to see why: {' '.join(command[1:])}")


def page(weights: str) -> Table:
    """Seconds from starting the app to its page, and how many of them Python's own imports take, in a process alone."""
    whole_seconds = page_seconds(weights)
    printed = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True).stdout
    libraries = dict(zip(("import torch", "import gradio"), map(float, printed.split()), strict=True))
    rows = [*libraries.items(), ("all else", whole_seconds - sum(libraries.values())), ("together", whole_seconds)]
    return Table("Start of app.py to a page that answers", {"what": "{}", "seconds": "{:.1f}"}, rows)
