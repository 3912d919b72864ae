"""Tables of how fast weights diffuse and resample on this machine, beside what its matrix products allow."""

from __future__ import annotations

from functools import partial

import torch
from matplotlib.figure import Figure

from r2id.layers import ATTENTIONS, Attention
from r2id.pipeline import Latent, Pipeline
from train.engine.machine import (
    Shapes,
    bandwidth,
    beside_products,
    median_seconds,
    memory_of,
    product_rate,
    products_of,
    square_rate,
)
from train.evaluation.comparison_tables import crossing
from train.evaluation.tables import Table

MOST = 2**14  # cells of a batch that is diffused
STRIP_SIDE = 2**8
STRIP = STRIP_SIDE**2  # pixels whose operations are counted
TWICE = 64  # side to which a latent is resampled twice
SHARES = {"GFLOP/s": "{:.1f}", "of the square product": "{:.0%}", "of its own products": "{:.0%}"}


def latent_of(pipe: Pipeline, side: int, batch: int = 1) -> Latent:
    return Latent(torch.randn(batch, pipe.config.latent_channels, side, side).tanh(), 1.0)


def limits(pipe: Pipeline) -> Table:
    cells = pipe.config.defaults.latent_size
    products = {
        f"all products of {STRIP:,} pixels": products_of_pixels(pipe, latent_of(pipe, max(cells)), STRIP_SIDE)[0],
        "all products of a guided step": products_of(lambda: diffuse(pipe, cells, guided(pipe), steps=1))[0],
    }
    rows = [("a large square product", f"{square_rate(pipe.device) / 1e9:.1f} GFLOP/s")]
    rows += [(what, f"{product_rate(shapes, pipe.device) / 1e9:.1f} GFLOP/s") for what, shapes in products.items()]
    rows.append(("a large copy, read and written", f"{bandwidth(pipe.device) / 1e9:.1f} GB/s"))
    return Table("Limits of the machine", dict.fromkeys(("what", "rate"), "{}"), rows)


def products_of_pixels(pipe: Pipeline, latent: Latent, side: int) -> tuple[Shapes, float]:
    """Matrix products of a strip of whole rows of an image of side × side, and all operations of a pixel, both without
    what its latent costs once."""
    rows = min(side, max(1, STRIP // side))
    pipe.resample(latent, size=(8, 8))
    shapes, count = products_of(lambda: pipe.resample(latent, size=(rows, side), region=(0, 0, 1, rows / side)))
    return shapes, count / (rows * side)


def resampling(pipe: Pipeline, sizes: tuple[int, ...]) -> Table:
    latent = latent_of(pipe, max(pipe.config.defaults.latent_size))
    device, rows = pipe.resampler_device, []
    for side in sizes:

        def run(side=side):
            return pipe.resample(latent, size=(side, side))

        pipe.resample(latent, size=(8, 8))  # what is made once and kept is not the image's
        output = 4 * pipe.config.channels * side**2 if device.type == "cpu" else 0
        memory = max(0, memory_of(run, device) - output)
        shapes, count = products_of_pixels(pipe, latent, side)
        timed = beside_products(run, shapes, device)
        pace, rate = timed.seconds / side**2, count * side**2 / timed.seconds
        shares = (rate / 1e9, rate / timed.square, rate / timed.own)
        counts = count / 1e3, pace * timed.square / 1e3
        rows.append((side, 1e3 * timed.seconds, 1e-6 / pace, 1e6 * pace, memory / 1e6, *counts, *shares))
    columns = {"side": "{}", "ms": "{:.1f}", "Mpixel/s": "{:.3f}", "µs a pixel": "{:.2f}"}
    columns |= {"MB above model and output": "{:.0f}", "kFLOP a pixel": "{:.2f}"}
    columns |= {"kFLOP of float32 products in its time": "{:.1f}", **SHARES}
    dtype = str(pipe.decoder_dtype).removeprefix("torch.")
    size = f"{latent.size[0]} × {latent.size[1]}"
    return Table(f"Resampling one {size} latent to side × side, pixels in {dtype}", columns, rows)


def resampling_twice(pipe: Pipeline, cells: tuple[int, ...]) -> Table:
    """Keys, values and coefficients are made with a latent's first image."""
    rows = []
    for side in cells:
        latent = latent_of(pipe, side)

        def first(latent=latent):  # a new tensor is a new latent
            return pipe.resample(Latent(latent.tensor.clone(), 1.0), size=(TWICE, TWICE))

        def second(latent=latent):
            return pipe.resample(latent, size=(TWICE, TWICE))

        seconds = [median_seconds(run, pipe.resampler_device) for run in (first, second)]
        rows.append((f"{side} × {side}", *(1e3 * s for s in seconds), seconds[0] / seconds[1]))
    columns = {"latent": "{}", "first, ms": "{:.2f}", "second, ms": "{:.2f}", "ratio": "{:.2f}"}
    return Table(f"One latent resampled to {TWICE} × {TWICE}, first and second time", columns, rows)


def guided(pipe: Pipeline) -> float:
    """Guidance that evaluates two conditions."""
    guidance = pipe.config.defaults.guidance
    return 1.5 if guidance in (0, 1) else guidance


def diffuse(pipe: Pipeline, size: tuple[int, int], guidance: float, *, steps: int, batch: int = 1) -> Latent:
    labels = [0 if pipe.labels else None] * batch
    how = dict(latent_size=size, steps=steps, guidance=guidance, guidance_interval=(0.0, 1.0))
    return pipe.diffuse(labels, seed=0, **how)


def diffusing(pipe: Pipeline, cells: tuple[int, ...], batches: tuple[int, ...]) -> Table:
    rows, two = [], guided(pipe)
    for side in cells:
        for batch in batches:
            if side % pipe.config.size_multiple or batch * side**2 > MOST:
                continue

            def run(guidance=two, side=side, batch=batch):  # the second step and all later ones are alike
                return diffuse(pipe, (side, side), guidance, steps=2, batch=batch)

            shapes, count = products_of(run)
            timed = beside_products(run, shapes, pipe.device)
            alone = median_seconds(partial(run, 1.0), pipe.device)
            rate = count / timed.seconds
            shares = (rate / 1e9, rate / timed.square, rate / timed.own)
            step = timed.seconds / 2
            pace = step / (batch * side**2)
            rows.append((side, batch, 1e3 * step, 1e6 * pace, count / 2e9, *shares, timed.seconds / alone))
    columns = {"cells on a side": "{}", "batch": "{}", "ms a step": "{:.2f}", "µs a cell": "{:.2f}"}
    columns |= {"GFLOP a step": "{:.3f}", **SHARES, "against one condition": "{:.2f}"}
    return Table("Diffusing with guidance, both conditions in one pass", columns, rows)


def attentions(pipe: Pipeline, cells: tuple[int, ...]) -> Table:
    """One self-attention of the denoiser's width, of both kinds."""
    config, curves = pipe.config.denoiser, {kind: {} for kind in ATTENTIONS}
    layers = {kind: Attention(config.width, heads=config.heads, attention=kind).to(pipe.device) for kind in ATTENTIONS}
    for side in cells:
        tokens_BMD = torch.randn(1, side**2, config.width, device=pipe.device)
        for kind, layer in layers.items():
            with torch.no_grad():
                seconds = median_seconds(
                    lambda layer=layer, x=tokens_BMD: layer(x, layer.keys_values(x)),
                    pipe.device,
                )
            curves[kind][side**2] = 1e3 * seconds
    softmax, linear = curves["softmax"], curves["linear"]
    found = crossing(linear, softmax)
    where = f"faster from about {found:.0f} cells on" if found else f"not faster up to {max(linear)} cells"
    rows = [(round(n**0.5), n, softmax[n], linear[n], softmax[n] / linear[n]) for n in softmax]
    columns = {"cells on a side": "{}", "cells": "{}", "softmax, ms": "{:.3f}", "linear, ms": "{:.3f}"}
    return Table(
        f"One attention of width {config.width}: linear is {where}", columns | {"softmax / linear": "{:.2f}"}, rows
    )


def one_image(pipe: Pipeline, side: int) -> Table:
    """The defaults in float32 and, on CUDA, under bfloat16 autocast."""
    defaults, label = pipe.config.defaults, 0 if pipe.labels else None
    latent, rows = latent_of(pipe, max(defaults.latent_size)), []
    for kind in (torch.float32, torch.bfloat16) if pipe.device.type == "cuda" else (torch.float32,):
        with torch.autocast(pipe.device.type, kind, enabled=kind != torch.float32):
            diffused = median_seconds(lambda: pipe.diffuse(label, guidance=guided(pipe), seed=0), pipe.device)
            resampled = median_seconds(lambda: pipe.resample(latent, size=(side, side)), pipe.device)
        rows.append((str(kind).removeprefix("torch."), 1e3 * diffused, 1e3 * resampled))
    shape = "{} × {}".format(*defaults.latent_size)
    columns = {"numbers": "{}", "diffused, ms": "{:.1f}", f"resampled to {side} × {side}, ms": "{:.1f}"}
    return Table(f"One image: {shape} cells, {defaults.steps} guided steps", columns, rows)


def plot(tables: dict[str, Table]) -> Figure:
    """The curves of what was measured, axes logarithmic."""
    panels = (
        ("resample", "side", "µs a pixel", None),
        ("resample", "side", "MB above model and output", None),
        ("diffuse", "cells on a side", "µs a cell", "batch"),
        ("attention", "cells on a side", "softmax / linear", None),
    )
    panels = [panel for panel in panels if panel[0] in tables]
    figure = Figure(figsize=(4.5 * len(panels), 3.6), layout="constrained")
    for axes, (name, x, y, by) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        rows = tables[name].plain()["rows"]
        for value in dict.fromkeys(row.get(by) for row in rows):
            line = [(row[x], max(row[y], 1e-3)) for row in rows if row.get(by) == value]
            axes.loglog(*zip(*line, strict=True), marker="o", label=f"{by} {value}" if by else None)
        axes.set(xlabel=x, ylabel=y, title=name)
        axes.grid(alpha=0.3)
        if by:
            axes.legend()
    return figure
