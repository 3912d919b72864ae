"""Floating-point operations are those of a count by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from train.engine.flops import count_flops


@pytest.mark.parametrize("groups", [1, 16])
def test_a_backward_pass_counts_twice_the_forward_pass(groups):
    convolution, x = nn.Conv2d(16, 16, 7, padding=3, groups=groups), torch.randn(2, 16, 8, 8, requires_grad=True)
    with count_flops() as forward:
        y = convolution(x)
    with count_flops() as backward:
        y.sum().backward()
    assert forward.get_total_flops() == 2 * y.numel() * 16 // groups * 49
    assert backward.get_total_flops() == 2 * forward.get_total_flops()
