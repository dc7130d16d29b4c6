"""The dropout mask in numpy, bit for bit what csrc/common/philox.h defines; read that file for the words used here."""

import numpy as np
import torch
from torch import Tensor

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_GROUP = 8


def philox4x32_10(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Philox4x32-10 of counters [..., 4] (uint32) under one key of two 32-bit words; returns [..., 4] (uint32)."""
    c = [counter[..., i].astype(np.uint64) for i in range(4)]
    k0, k1 = key
    for _ in range(10):
        product0, product1 = _MULTIPLIERS[0] * c[0], _MULTIPLIERS[1] * c[2]
        c = [
            (product1 >> np.uint64(32)) ^ c[1] ^ np.uint64(k0),
            product1 & _LOW,
            (product0 >> np.uint64(32)) ^ c[3] ^ np.uint64(k1),
            product0 & _LOW,
        ]
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack(c, axis=-1).astype(np.uint32)


def _numbers(seed: int, groups: np.ndarray, domain: int) -> np.ndarray:
    """The 16-bit numbers of each group, [groups, 8]."""
    seed &= 0xFFFFFFFFFFFFFFFF
    counter = np.zeros((groups.size, 4), dtype=np.uint32)
    counter[:, 0] = groups & _LOW
    counter[:, 1] = groups >> np.uint64(32)
    counter[:, 2] = domain
    words = philox4x32_10(counter, (seed & 0xFFFFFFFF, seed >> 32))
    return np.stack([words & 0xFFFF, words >> 16], axis=-1).reshape(groups.size, _GROUP)


def dropout_threshold(p: float) -> int:
    """An element is dropped with probability threshold / 2^32."""
    if p in (0.0, 1.0):
        return int(p) << 32
    return min(max(int(p * 2**32 + 0.5), 1), 2**32 - 1)


def keep_mask(seed: int, p: float, count: int, first: int = 0) -> Tensor:
    """Which of the logical elements first ... first + count - 1 are kept: bool, [count]."""
    threshold = dropout_threshold(p)
    high, low = threshold >> 16, threshold & 0xFFFF
    groups = np.arange(first // _GROUP, -(-(first + count) // _GROUP), dtype=np.uint64)
    numbers, extras = _numbers(seed, groups, 0), _numbers(seed, groups, 1)
    dropped = (numbers < high) | ((numbers == high) & (extras < low))
    start = first % _GROUP
    return torch.from_numpy(~dropped.reshape(-1)[start : start + count])


def drawn_seed() -> int:
    """The seed that the next dropout call will draw; torch's default generator is left as it was."""
    state = torch.get_rng_state()
    seed = torch.ops.tilewright.dropout_seed(torch.empty(0)).item()
    torch.set_rng_state(state)
    return int(seed)
