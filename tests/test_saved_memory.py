"""What autograd keeps between forward and backward: never more bytes than native keeps."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tilewright.functional as TF

# A handful of bytes for a dropout seed, which native does not have.
SEED_BYTES = 8


def _saved_bytes(call: Callable[..., Tensor], inputs: list[Tensor]) -> int:
    """Bytes kept alive by the graph. Vectors that are inputs (weight, bias of a norm) are parameters the model holds
    anyway: a reference to one costs nothing."""
    parameters = {t.data_ptr() for t in inputs if t.dim() == 1}
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = call(*inputs)
    assert output.requires_grad
    return sum(size for pointer, size in storages.items() if pointer not in parameters)


def _leaf(*shape: int) -> Tensor:
    return torch.randn(*shape, requires_grad=True)


def _cases() -> dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], list[Tensor]]]:
    attend = lambda f: lambda q, k, v: f(q, k, v, is_causal=True)  # noqa: E731
    normed = lambda f: lambda x, w, b: f(x, None, None, w, b, training=True)  # noqa: E731
    return {
        "layer_norm": (
            lambda x, w, b: TF.layer_norm(x, (64,), w, b),
            lambda x, w, b: F.layer_norm(x, (64,), w, b),
            [_leaf(32, 64), _leaf(64), _leaf(64)],
        ),
        "batch_norm": (normed(TF.batch_norm), normed(F.batch_norm), [_leaf(8, 16, 5, 5), _leaf(16), _leaf(16)]),
        "conv2d": (
            lambda x, w, b: TF.conv2d(x, w, b, padding=1),
            lambda x, w, b: F.conv2d(x, w, b, padding=1),
            [_leaf(2, 8, 9, 9), _leaf(4, 8, 3, 3), _leaf(4)],
        ),
        "linear": (TF.linear, F.linear, [_leaf(6, 10, 32), _leaf(24, 32), _leaf(24)]),
        "linear_act": (
            TF.linear_act,
            lambda x, w, b: F.gelu(F.linear(x, w, b)),
            [_leaf(6, 10, 32), _leaf(24, 32), _leaf(24)],
        ),
        "matmul": (TF.matmul, torch.matmul, [_leaf(4, 8, 16), _leaf(16, 12)]),
        "dropout": (lambda x: TF.dropout(x, 0.3), lambda x: F.dropout(x, 0.3), [_leaf(100, 100)]),
        "attention": (
            attend(TF.scaled_dot_product_attention),
            attend(F.scaled_dot_product_attention),
            [_leaf(2, 4, 64, 16) for _ in range(3)],
        ),
    }


@pytest.mark.parametrize("name", _cases())
def test_saved_bytes_are_at_most_natives(name):
    ours, native, inputs = _cases()[name]
    assert _saved_bytes(ours, inputs) <= _saved_bytes(native, inputs) + SEED_BYTES
