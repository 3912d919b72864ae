"""The page's command line: `r2id-demo` where the package is installed, `python app.py` in a clone and on Spaces."""

import argparse
import importlib.util
import os
from pathlib import Path

# After every event Gradio would tabulate the last 10,000, for a monitoring page that is closed here.
os.environ |= {"GRADIO_ANALYTICS_CACHE_FREQUENCY": str(10**9), "GRADIO_ANALYTICS_MAX_EVENTS": "1"}
import gradio as gr
import torch
from gradio.utils import get_upload_folder

from r2id.allocator import raise_mmap_threshold
from r2id.checkpoint import HUB_ID
from r2id.demo.api import endpoints
from r2id.demo.assets import WEB
from r2id.demo.models import Models
from r2id.demo.page import build
from r2id.demo.serving.fair_queue import MAX_WAITING
from r2id.demo.serving.worker import worker
from r2id.demo.tabs import TABS

THEME = gr.themes.Default(primary_hue="indigo", spacing_size="sm", font=["system-ui", "sans-serif"])


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
    parser.add_argument("--share", action="store_true", help="also make a public link, through gradio.live")
    args = parser.parse_args()
    folder, hub_id = Path(args.weights or weights), None
    if args.weights is not None and not folder.is_dir():
        if not HUB_ID.fullmatch(args.weights):
            parser.error(f"--weights {args.weights}: no such folder, and not a Hub id of the form owner/name")
        hub_id = args.weights
    if args.port is not None and not 0 < args.port < 2**16:
        parser.error(f"--port {args.port}: must be 1…65535")
    os.makedirs(get_upload_folder(), exist_ok=True)
    raise_mmap_threshold()
    worker()
    zero_gpu = "SPACES_ZERO_GPU" in os.environ  # lends its GPU for diffusing only, and to another process
    server = dict(server_name=args.host, server_port=args.port, share=args.share, max_file_size="16mb")
    server["max_threads"] = 2 * MAX_WAITING  # as many as may wait, and as many again for what need not
    server |= dict(ssr_mode=False, mcp_server=importlib.util.find_spec("mcp") is not None)
    look = dict(theme=THEME, css_paths=WEB / "page.css", footer_links=["api"])
    try:
        torch.empty(0, device="cpu" if args.device == "auto" else args.device)
        devices = dict(device=args.device, resampler_device="cpu" if zero_gpu else None)
        models = Models(folder, **devices, hub=hub_id or os.environ.get("R2ID_MODEL"))
        if hub_id in models.faults:
            parser.error(f"--weights {hub_id}: {models.faults[hub_id]}")
        page = build(models, TABS, endpoints).queue(max_size=1000)  # events, of all users
        page.launch(**server, **look, run_history=False, enable_monitoring=False, state_session_capacity=500)
    except (AssertionError, OSError, OverflowError, RuntimeError, ValueError) as error:
        parser.error(str(error).splitlines()[0])
