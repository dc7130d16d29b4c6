"""Activations behind a product, on float32 accumulators; the formulas are those of csrc/cpu/kernels/activation.h.

The code is a runtime scalar: a branch taken once a tile costs nothing beside the product, and one compiled kernel
serves all activations.
"""

import triton
import triton.language as tl

# The codes kernels take, in the order of csrc's enum Activation.
CODES = {"none": 0, "relu": 1, "relu6": 2, "gelu": 3, "gelu_tanh": 4, "silu": 5}


@triton.jit
def activate(x, code):
    """act(x) for a float32 block, with a scalar code of CODES; NaN stays NaN."""
    if code == 1:
        x = tl.where(x < 0, 0.0, x)  # not a maximum: that would lose NaN
    elif code == 2:
        x = tl.where(x < 0, 0.0, tl.where(x > 6, 6.0, x))
    elif code == 3:
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif code == 4:
        u = 1.5957691216057308 * (x + 0.044715 * x * x * x)  # 2 sqrt(2 / pi) (...)
        x = x / (1.0 + tl.exp(-u))  # x sigmoid(2 u): tanh without cancellation
    elif code == 5:
        x = x / (1.0 + tl.exp(-x))
    return x


@triton.jit
def sigmoid_and_slope(x):
    """sigmoid(x) and its derivative, without the cancellation of 1 - sigmoid(x), which a large x would multiply."""
    decay = tl.exp(-tl.abs(x))
    inverse = 1.0 / (1.0 + decay)
    return tl.where(x < 0, decay, 1.0) * inverse, decay * inverse * inverse


@triton.jit
def activation_gradient(saved, code):
    """act'(x) for a float32 block; `saved` is x, or act(x) for relu and relu6, whose slope at NaN is 1 as native's."""
    slope = tl.full(saved.shape, 1.0, tl.float32)
    if code == 1:
        slope = tl.where(saved <= 0, 0.0, 1.0)
    elif code == 2:
        slope = tl.where((saved <= 0) | (saved >= 6), 0.0, 1.0)
    elif code == 3:
        density = 0.3989422804014327 * tl.exp(-0.5 * saved * saved)
        slope = 0.5 * (1.0 + tl.erf(saved * 0.7071067811865476)) + saved * density
    elif code == 4:
        sigmoid, steepness = sigmoid_and_slope(1.5957691216057308 * (saved + 0.044715 * saved * saved * saved))
        inner = 1.5957691216057308 * (1.0 + 0.134145 * saved * saved)
        slope = sigmoid + saved * steepness * inner
    elif code == 5:
        sigmoid, steepness = sigmoid_and_slope(saved)
        slope = sigmoid + saved * steepness
    return slope
