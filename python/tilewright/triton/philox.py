"""The dropout mask inside Triton kernels: bit for bit what csrc/common/philox.h defines.

Key and counter are written out rather than taken from ``tl.philox``, whose counter layout is another.
"""

import triton
import triton.language as tl

from ..testing.philox import dropout_threshold


def threshold_halves(p: float) -> tuple[int, int]:
    """The arguments ``threshold_high`` and ``threshold_low`` of :func:`keeps` for a dropout probability 0 < p < 1."""
    threshold = dropout_threshold(p)
    return threshold >> 16, threshold & 0xFFFF


@triton.jit
def _round(c0, c1, c2, c3, k0, k1):
    high0 = tl.umulhi(c0, tl.full(c0.shape, 0xD2511F53, tl.uint32))
    low0 = c0 * tl.full(c0.shape, 0xD2511F53, tl.uint32)
    high1 = tl.umulhi(c2, tl.full(c2.shape, 0xCD9E8D57, tl.uint32))
    low1 = c2 * tl.full(c2.shape, 0xCD9E8D57, tl.uint32)
    return high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0


@triton.jit
def _words(group, seed, domain):
    """The four words of each group: Philox4x32-10 with counter {group low, group high, domain, 0}."""
    c0 = group.to(tl.uint32)
    c1 = (group >> 32).to(tl.uint32)
    c2 = tl.full(c0.shape, 0, tl.uint32) + domain.to(tl.uint32)
    c3 = tl.full(c0.shape, 0, tl.uint32)
    k0 = seed.to(tl.uint32)
    k1 = (seed >> 32).to(tl.uint32)
    # A loop, not unrolled: ten rounds in line, inside kernels that hold tiles of products, cost registers and minutes.
    for _ in tl.range(0, 10, loop_unroll_factor=1):
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1)
        k0 = (k0 + 0x9E3779B9).to(tl.uint32)
        k1 = (k1 + 0xBB67AE85).to(tl.uint32)
    return c0, c1, c2, c3


@triton.jit
def _number(group, lane, seed, domain):
    """The 16-bit number of element 8 * group + lane."""
    w0, w1, w2, w3 = _words(group, seed, domain)
    pair = lane >> 1
    word = tl.where(pair == 0, w0, tl.where(pair == 1, w1, tl.where(pair == 2, w2, w3)))
    return (word >> (16 * (lane & 1)).to(tl.uint32)) & 0xFFFF


@triton.jit
def keeps(element, seed, threshold_high, threshold_low):
    """True where an element is kept.

    Args:
        element: int64 block of row-major logical element indices.
        seed: the int64 seed, a scalar loaded from the seed tensor.
        threshold_high, threshold_low: round(p * 2^32) in two halves of 16 bits (:func:`threshold_halves`), int32.
    """
    element = element.to(tl.int64)
    seed = seed.to(tl.int64)
    group, lane = element >> 3, (element & 7).to(tl.int32)
    high, low = threshold_high.to(tl.uint32), threshold_low.to(tl.uint32)
    zero = tl.full([], 0, tl.uint32)
    number = _number(group, lane, seed, zero)
    extra_needed = (number == high) & (low != 0)
    kept = number >= high
    # One element in 65536 is settled by a second number; a block without any of them skips the work.
    if tl.max(extra_needed.to(tl.int32)) != 0:
        extra = _number(group, lane, seed, zero + 1)
        kept = kept & ~(extra_needed & (extra < low))
    return kept
