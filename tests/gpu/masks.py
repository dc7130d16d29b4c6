"""The masks of the dropout family's GPU tests, from numpy, and what the plain formulas make of them."""

import torch
from torch import Tensor

from tilewright.testing import philox

SEED = -0x1234567_89ABCDEF  # its bits fill both words of the key


def seed_on(device: torch.device, seed: int = SEED) -> Tensor:
    return torch.tensor([seed], device=device)


def mask_of(x: Tensor, p: float, seed: int = SEED) -> Tensor:
    """Which elements of x a call with this seed keeps."""
    return philox.keep_mask(seed, p, x.numel()).view(x.shape).to(x.device)


def drawn_mask(x: Tensor, p: float) -> Tensor:
    """The mask that the next dropout call on x's device will use."""
    is_cuda = x.device.type == "cuda"
    state = torch.cuda.get_rng_state(x.device) if is_cuda else torch.get_rng_state()
    seed = torch.ops.tilewright.dropout_seed(x).item()
    if is_cuda:
        torch.cuda.set_rng_state(state, x.device)
    else:
        torch.set_rng_state(state)
    return mask_of(x, p, int(seed))


def layouts(device: torch.device) -> dict[str, Tensor]:
    """Every way in which a tensor may lie in memory."""
    image, volume = torch.randn(2, 20, 9, 11, device=device), torch.randn(2, 3, 4, 5, 6, device=device)
    seven = torch.randn(2, 130, 7, 7, device=device)
    last = torch.channels_last
    return {
        "contiguous": torch.randn(3, 41, 13, device=device),
        "transposed": torch.randn(37, 53, device=device).t(),
        "transposed, whole accesses": torch.randn(40, 64, device=device).t(),
        "batch of transposed": torch.randn(4, 37, 53, device=device).transpose(1, 2),
        "heads": torch.randn(2, 7, 5, 16, device=device).transpose(1, 2),
        "heads, no whole groups": torch.randn(2, 7, 5, 12, device=device).transpose(1, 2),
        "permuted": torch.randn(5, 6, 7, 8, device=device).permute(3, 1, 0, 2),
        "channels_last": image.contiguous(memory_format=last),
        "channels_last, 7x7": seven.contiguous(memory_format=last),
        "channels_last, 1 channel": torch.randn(2, 1, 9, 8, device=device).contiguous(memory_format=last),
        # More pixels than one tile: 3 channels leave 1024 positions to a tile.
        "channels_last, large": torch.randn(1, 3, 41, 43, device=device).contiguous(memory_format=last),
        "channels_last_3d": volume.contiguous(memory_format=torch.channels_last_3d),
        "nine dimensions": torch.randn([2] * 9, device=device).permute(8, 6, 4, 2, 0, 1, 3, 5, 7),
        "ten dimensions": torch.randn([2] * 10, device=device).permute(8, 6, 9, 4, 2, 0, 3, 1, 5, 7),
        "last dimension strided": torch.randn(6, 5, 40, device=device)[..., ::2],
        "rows skipped": torch.randn(6, 5, 40, device=device)[:, ::2],
        "expanded": torch.randn(1, 1, 40, device=device).expand(6, 5, 40),
        "misaligned": torch.randn(6 * 5 * 40 + 1, device=device)[1:].view(6, 5, 40),
        "misaligned, transposed": torch.randn(48 * 40 + 1, device=device)[1:].view(40, 48).t(),
        "size one": torch.randn(6, 1, 5, device=device).transpose(0, 2),
    }


LAYOUTS = tuple(layouts(torch.device("cpu")))
