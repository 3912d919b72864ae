"""Floating-point operations, counted while they run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


@contextmanager
def count_flops() -> Iterator[FlopCounterMode]:
    """Counts floating-point operations, forward and backward: `get_total_flops()`. Attention runs as plain products
    meanwhile, and nothing compiled, since fused kernels go uncounted on a CPU."""
    mapping = {torch.ops.aten.convolution_backward: convolution_backward_flops}
    counter = FlopCounterMode(display=False, custom_mapping=mapping)
    with torch.compiler.set_stance("force_eager"), sdpa_kernel(SDPBackend.MATH), counter:
        yield counter


def convolution_backward_flops(grad, x, weight, *rest, out_shape=None, **_) -> int:
    """Of the shapes' gradients asked for; the counter's own rule takes grouped convolutions for dense ones."""
    asked = rest[-1]  # for x, weight and bias, which is a sum
    return 2 * math.prod(weight) * grad[0] * math.prod(grad[2:]) * sum(asked[:2])
