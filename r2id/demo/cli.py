"""The page's command line: `r2id-demo` where the package is installed, `python app.py` in a clone and on Spaces."""

import argparse
import errno
import importlib.util
import os
import socket
import sys
import tempfile
from pathlib import Path

try:
    tempfile.gettempdir()  # Gradio asks for it as soon as it is imported
except FileNotFoundError:
    sys.exit("r2id-demo: no temporary folder can be written, set TMPDIR to a folder that can")
# After every event Gradio would tabulate the last 10,000, for a monitoring page that is closed here.
os.environ |= {"GRADIO_ANALYTICS_CACHE_FREQUENCY": str(10**9), "GRADIO_ANALYTICS_MAX_EVENTS": "1"}
import gradio as gr
import torch
from gradio.utils import get_upload_folder

from r2id.allocator import raise_mmap_threshold
from r2id.demo.api import endpoints
from r2id.demo.assets import WEB
from r2id.demo.models import Models
from r2id.demo.page import build
from r2id.demo.serving.fair_queue import MAX_WAITING
from r2id.demo.serving.worker import worker
from r2id.demo.tabs import TABS
from r2id.hub import HUB_ID
from r2id.precision import DTYPES

FONTS = dict(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
FAINT = dict(body_text_color_subdued="*neutral_600", input_placeholder_color="*neutral_500")  # Gradio's are too faint
FAINT["input_placeholder_color_dark"] = "*neutral_400"
THEME = gr.themes.Default(primary_hue="indigo", spacing_size="sm", **FONTS).set(**FAINT)


def main(weights: Path = Path("weights")) -> None:
    """Serves the page until it is stopped. weights: the folder of models where `--weights` is not given.

    Bad arguments end the process with status 2 and one line.
    """
    parser = argparse.ArgumentParser(description="Generate a latent once and resample it to any size and shape.")
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: {message}\n")
    parser.add_argument("--host", help="address to listen on, 0.0.0.0 for every network (default: this machine only)")
    parser.add_argument("--port", type=int, help="port to listen on (default: the first free one from 7860)")
    parser.add_argument("--weights", help="a folder of models, one model's folder, or a Hub id (default: weights/)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: %(default)s)")
    decoder_help = "numbers that the pixels of an image are multiplied in (default: auto, the faster one here)"
    parser.add_argument("--decoder-dtype", default="auto", choices=("auto", *DTYPES), help=decoder_help)
    parser.add_argument("--share", action="store_true", help="also make a public link, through gradio.live")
    args = parser.parse_args()
    folder, hub_id = Path(args.weights or weights), None
    if args.weights is not None and not folder.is_dir():
        if not HUB_ID.fullmatch(args.weights):
            parser.error(f"--weights {args.weights}: no such folder, and not a Hub id of the form owner/name")
        hub_id = args.weights
    if args.port is not None and not 0 < args.port < 2**16:
        parser.error(f"--port {args.port}: must be 1…65535")
    try:
        check_folder(get_upload_folder())
        if args.port is not None:
            check_port(args.host, args.port)
    except ValueError as error:
        parser.error(str(error))
    raise_mmap_threshold()
    worker()
    zero_gpu = "SPACES_ZERO_GPU" in os.environ  # lends its GPU for diffusing only, and to another process
    server = dict(server_name=args.host, server_port=args.port, share=args.share, max_file_size="48mb")
    server["max_threads"] = 2 * MAX_WAITING  # as many as may wait, and as many again for what need not
    server |= dict(ssr_mode=False, mcp_server=importlib.util.find_spec("mcp") is not None)
    look = dict(theme=THEME, css_paths=[WEB / "page.css", WEB / "tabs.css"], footer_links=["api"])
    try:
        torch.empty(0, device="cpu" if args.device == "auto" else args.device)
        devices = dict(device=args.device, resampler_device="cpu" if zero_gpu else None)
        devices["decoder_dtype"] = args.decoder_dtype
        models = Models(folder, **devices, hub=hub_id or os.environ.get("R2ID_MODEL"))
        if hub_id in models.faults:
            parser.error(f"--weights {hub_id}: {models.faults[hub_id]}")
        for dtype in sorted({str(pipe.decoder_dtype) for pipe in map(models.get, models.names) if pipe.resampler}):
            print(f"Pixels are decoded in {dtype.removeprefix('torch.')} (--decoder-dtype {args.decoder_dtype}).")
        page = build(models, TABS, endpoints).queue(max_size=1000)  # events, of all users
        page.launch(**server, **look, run_history=False, enable_monitoring=False, state_session_capacity=500)
    except (AssertionError, OSError, OverflowError, RuntimeError, ValueError) as error:
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        if message.startswith("Cannot find empty port"):
            message = "no free port from 7860 on: end another server, or give a free one with --port"
        parser.error(message)


def check_folder(folder: str) -> None:
    """Raises ValueError, one line, for a folder of uploads and results that cannot be written."""
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        remedy = "set GRADIO_TEMP_DIR to a folder that can be written"
        raise ValueError(f"{folder}: uploads and results cannot be written ({error.strerror}); {remedy}") from None


def check_port(host: str | None, port: int) -> None:
    """Raises ValueError, one line, for a port that is in use or may not be listened on."""
    try:
        address = (host or "127.0.0.1").strip("[]")
        socket.create_server((address, port), family=socket.AF_INET6 if ":" in address else socket.AF_INET).close()
    except OSError as error:
        where = f"--host {host} --port {port}" if host else f"--port {port}"
        if error.errno == errno.EADDRINUSE:
            raise ValueError(f"{where}: in use by another program; give another port, or none for a free one") from None
        reason = str(error.strerror or error).split(" (while")[0]
        raise ValueError(f"{where}: {reason}; give an address of this machine, and a port from 1024 on") from None
