"""Every op once, forward and backward, on small odd shapes: what compute-sanitizer watches.

``compute-sanitizer --tool memcheck python -m benchmarks.gpu.small_grid [op ...]``
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

import tilewright.functional as TF

_ROWS = ((3, 7), (33, 520), (2, 40001))
_IMAGES = ((3, 5, 7, 9), (2, 64, 8, 8))


def _tensor(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(*shape, device="cuda").to(dtype).requires_grad_()


def _images() -> Iterator[Tensor]:
    for shape in _IMAGES:
        x = _tensor(*shape)
        yield x
        yield x.contiguous(memory_format=torch.channels_last)


def _layer_norm() -> Iterator[Tensor]:
    for rows, cols in _ROWS:
        x, weight = _tensor(rows, cols), _tensor(cols)
        yield TF.layer_norm(x, (cols,), weight, weight)
        yield TF.dropout_add_layer_norm(x, x.detach(), (cols,), weight, p=0.3, prenorm=True)[0]


def _dropout() -> Iterator[Tensor]:
    for rows, cols in _ROWS:
        x, bias = _tensor(rows, cols), _tensor(cols)
        yield TF.dropout(x, 0.3)
        yield TF.dropout(x.t(), 0.3)
        yield TF.dropout_add(x, x.detach(), 0.3, bias=bias)
        yield TF.masked_scale(x, x > 0, 2.0)


def _batch_norm() -> Iterator[Tensor]:
    for x in _images():
        weight = _tensor(x.shape[1], dtype=torch.float32)
        for training in (True, False):
            mean, var = torch.zeros_like(weight).detach(), torch.ones_like(weight).detach()
            yield TF.batch_norm_act(x, mean, var, weight, weight, training, activation="gelu", residual=x.detach())


def _conv2d() -> Iterator[Tensor]:
    for x in _images():
        channels = x.shape[1]
        yield TF.conv2d(x, _tensor(33, channels, 3, 3), stride=2, padding=1)
        yield TF.conv2d(x, _tensor(channels, 1, 3, 3), padding=1, groups=channels)


def _matmul() -> Iterator[Tensor]:
    for m, k, n in ((1, 100, 65), (70, 33, 129), (64, 64, 64)):
        yield TF.matmul(_tensor(3, m, k), _tensor(3, k, n))


def _linear() -> Iterator[Tensor]:
    for m, k, n in ((1, 100, 65), (70, 33, 129), (64, 64, 64)):
        yield TF.linear_act(_tensor(m, k), _tensor(n, k), _tensor(n), activation="gelu")


def _attention() -> Iterator[Tensor]:
    for length, size in ((1, 16), (77, 40), (130, 64)):
        q = _tensor(2, 4, length, size)
        yield TF.scaled_dot_product_attention(q, q, q, is_causal=True, dropout_p=0.2)
        yield TF.scaled_dot_product_attention(q, q, q, _tensor(4, 1, length))


GRID: dict[str, Callable[[], Iterator[Tensor]]] = {
    "layer_norm": _layer_norm,
    "batch_norm": _batch_norm,
    "dropout": _dropout,
    "matmul": _matmul,
    "linear": _linear,
    "conv2d": _conv2d,
    "attention": _attention,
}


def main(ops: Sequence[str]) -> int:
    """Run the named ops (all)."""
    # An allocation of its own for each tensor: inside a block of torch's cache nothing lies out of bounds.
    os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    for op in ops or GRID:
        for output in GRID[op]():
            output.sum().backward()
    torch.cuda.synchronize()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
