"""A page that diffuses a latent once and resamples it to any size and shape."""

import argparse
import importlib.util
import os
from pathlib import Path

if ZERO_GPU := "SPACES_ZERO_GPU" in os.environ:  # lends its GPU for diffusing only, and to another process
    import spaces  # noqa: F401  has to come before torch
# After every event Gradio would tabulate the last 10,000, for a monitoring page that is closed here.
os.environ |= {"GRADIO_ANALYTICS_CACHE_FREQUENCY": str(10**9), "GRADIO_ANALYTICS_MAX_EVENTS": "1"}
import gradio as gr
import torch
from gradio.utils import get_upload_folder

from r2id.demo.api import endpoints
from r2id.demo.models import Models
from r2id.demo.page import HERE, build
from r2id.demo.serving.fair_queue import ALL
from r2id.demo.serving.worker import worker
from r2id.demo.tabs import TABS
from r2id.memory import keep_freed

THEME = gr.themes.Default(primary_hue="indigo", spacing_size="sm", font=["system-ui", "sans-serif"])


def main() -> None:
    parser = argparse.ArgumentParser(prog="app.py", description=__doc__)
    parser.error = lambda message: parser.exit(2, f"app.py: {message}\n")
    parser.add_argument("--host", help="address to listen on, 0.0.0.0 for every network (default: this machine only)")
    parser.add_argument("--port", type=int, help="port to listen on (default: the first free one from 7860)")
    parser.add_argument("--weights", type=Path, default=Path(__file__).parent / "weights", help="folder of models")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: %(default)s)")
    parser.add_argument("--share", action="store_true", help="also make a public link, through gradio.live")
    args = parser.parse_args()
    if args.weights != parser.get_default("weights") and not args.weights.is_dir():
        parser.error(f"--weights {args.weights}: no such folder")
    if args.port is not None and not 0 < args.port < 2**16:
        parser.error(f"--port {args.port}: must be 1…65535")
    os.makedirs(get_upload_folder(), exist_ok=True)
    keep_freed()
    worker()
    server = dict(server_name=args.host, server_port=args.port, share=args.share, max_file_size="16mb")
    server["max_threads"] = 2 * ALL  # as many as may wait, and as many again for what need not
    server |= dict(ssr_mode=False, mcp_server=importlib.util.find_spec("mcp") is not None)
    look = dict(theme=THEME, css_paths=HERE / "page.css", footer_links=["api"])
    try:
        torch.empty(0, device="cpu" if args.device == "auto" else args.device)
        devices = dict(device=args.device, resampler_device="cpu" if ZERO_GPU else None)
        models = Models(args.weights, **devices, hub=os.environ.get("R2ID_MODEL"))
        page = build(models, TABS, endpoints).queue(max_size=1000)  # events, of all visitors
        page.launch(**server, **look, run_history=False, enable_monitoring=False, state_session_capacity=500)
    except (AssertionError, OSError, OverflowError, RuntimeError, ValueError) as error:
        parser.error(str(error).splitlines()[0])


if __name__ == "__main__":
    main()
