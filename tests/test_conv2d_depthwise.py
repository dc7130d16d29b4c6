"""Gradients of depthwise convolutions: both in one sweep, and of several filters a channel."""

import pytest
import torch
import torch.nn.functional as F

import tilewright.functional as TF

from .conv2d_cases import CASES, FORMATS, draw, make, run


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_filters_of_a_channel_are_summed_before_rounding(isa, memory_format, dtype):
    x, weight, _, options = draw(((2, 20, 13, 14), (80, 1, 3, 3), {"groups": 20}), dtype, FORMATS[memory_format])
    (_, dx, _), dy = run(TF.conv2d, [x, weight], None, **options)
    (_, exact, _), _ = run(F.conv2d, [x.double(), weight.double()], dy, **options)
    # At most a unit in the last place from the rounded sum, which a sum in float32 may round to the other side.
    torch.testing.assert_close(dx, exact.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("case", [name for name in CASES if name.startswith("depthwise")])
def test_both_depthwise_gradients_are_those_of_each_alone(isa, case, memory_format, dtype):
    # They are one sweep over the images.
    x, weight, _, options = make(case, dtype, FORMATS[memory_format])
    leaves = [x.requires_grad_(), weight.requires_grad_()]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more threads than half the items take a sweep for each
    try:
        out = TF.conv2d(*leaves, **options)
        dy = torch.randn_like(out)
        both = torch.autograd.grad(out, leaves, dy, retain_graph=True)
        alone = [torch.autograd.grad(out, leaf, dy, retain_graph=True)[0] for leaf in leaves]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) and a.stride() == b.stride() for a, b in zip(both, alone, strict=True))
