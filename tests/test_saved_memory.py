"""What autograd keeps between forward and backward: never more bytes than native keeps."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tilewright.functional as TF

DENSE, LAST = torch.contiguous_format, torch.channels_last
# A handful of bytes for a dropout seed, which native does not have, and those behind keep bits (ops/dropout.h).
SEED_BYTES, SPARE_BYTES = 8, 8


def _saved_bytes(call: Callable[..., Tensor | tuple[Tensor, ...]], inputs: list[Tensor]) -> int:
    """Bytes kept alive by the graph. Vectors that are inputs (weight, bias of a norm) are parameters the model holds
    anyway: a reference to one costs nothing."""
    parameters = {t.data_ptr() for t in inputs if t.dim() == 1}
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = call(*inputs)
    assert all(y.requires_grad for y in (output if isinstance(output, tuple) else (output,)))
    return sum(size for pointer, size in storages.items() if pointer not in parameters)


def _leaf(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


def _wider_statistics(populations: int, dtype: torch.dtype) -> int:
    """What mean and rstd of so many rows or channels take more than native's: ours are float32 (docs/layer_norm.md),
    native's have the type of 16-bit parameters."""
    return populations * 2 * (4 - dtype.itemsize)


def _cases() -> dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], list[Tensor]]]:
    def attend(f):
        return lambda q, k, v: f(q, k, v, is_causal=True)

    def normed(f):
        return lambda x, w, b: f(x, None, None, w, b, training=True)

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


NORMS = {
    "layer_norm": ((96, 257), DENSE),
    "batch_norm": ((4, 24, 13, 15), DENSE),
    "batch_norm, NHWC": ((4, 24, 13, 15), LAST),
    "batch_norm, NC": ((60, 24), DENSE),
    "batch_norm_act": ((4, 24, 13, 15), DENSE),
    "batch_norm_act, NHWC": ((4, 24, 13, 15), LAST),
    "batch_norm_act, residual": ((4, 24, 13, 15), DENSE),
    "batch_norm_act, residual, NHWC": ((4, 24, 13, 15), LAST),
}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NORMS)
def test_norms_save_at_most_what_native_saves(name, dtype, training):
    shape, memory_format = NORMS[name]

    def make():
        return torch.randn(shape).to(dtype).contiguous(memory_format=memory_format).requires_grad_()

    size = shape[-1] if name == "layer_norm" else shape[1]
    inputs = [make(), _leaf(size, dtype=dtype), _leaf(size, dtype=dtype)]
    if "residual" in name:
        inputs.append(make())
    statistics = torch.zeros(size, dtype=dtype), torch.ones(size, dtype=dtype)

    def ours(x: Tensor, w: Tensor, b: Tensor, *residual: Tensor) -> Tensor:
        if name == "layer_norm":
            return TF.layer_norm(x, (size,), w, b)
        if "act" not in name:
            return TF.batch_norm(x, *statistics, w, b, training)
        return TF.batch_norm_act(x, *statistics, w, b, training, residual=residual[0] if residual else None)

    def native(x: Tensor, w: Tensor, b: Tensor, *residual: Tensor) -> Tensor:
        if name == "layer_norm":
            return F.layer_norm(x, (size,), w, b)
        y = F.batch_norm(x, *statistics, w, b, training)
        for r in residual:
            y = y + r
        return F.relu(y) if "act" in name else y

    saved = _saved_bytes(ours, inputs)
    populations = inputs[0].numel() // size if name == "layer_norm" else size
    assert inputs[0].nbytes < saved <= _saved_bytes(native, inputs) + _wider_statistics(populations, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("shape", "memory_format"),
    [((7, 33), DENSE), ((160, 257), DENSE), ((4, 48, 30, 31), DENSE), ((4, 48, 30, 31), LAST)],
    ids=["few", "rows", "NCHW", "NHWC"],
)
@pytest.mark.parametrize("name", ["dropout", "dropout_add", "dropout_add, bias", "dropout_add_layer_norm", "prenorm"])
def test_dropout_saves_an_eighth_of_a_mask_of_bytes(name, memory_format, shape, dtype):
    """What is kept for the mask beside the tensors that the norm needs (native's norm keeps the same)."""

    def make():
        return torch.randn(shape).to(dtype).contiguous(memory_format=memory_format).requires_grad_()

    size = shape[-1]
    inputs = [make(), make(), _leaf(size, dtype=dtype), _leaf(size, dtype=dtype)]
    function = {
        "dropout": lambda x, r, w, b: TF.dropout(x, 0.3),
        "dropout_add": lambda x, r, w, b: TF.dropout_add(x, r, 0.3),
        "dropout_add, bias": lambda x, r, w, b: TF.dropout_add(x, r, 0.3, bias=b),
        "dropout_add_layer_norm": lambda x, r, w, b: TF.dropout_add_layer_norm(x, r, (size,), w, b, p=0.3),
        "prenorm": lambda x, r, w, b: TF.dropout_add_layer_norm(x, r, (size,), w, b, p=0.3, prenorm=True),
    }[name]
    elements, norm = inputs[0].numel(), 0
    if name in ("dropout_add_layer_norm", "prenorm"):
        norm = _saved_bytes(lambda x, r, w, b: F.layer_norm(x + r, (size,), w, b), inputs)
        norm += _wider_statistics(elements // size, dtype)
    assert _saved_bytes(function, inputs) - norm <= elements // 8 + SEED_BYTES + SPARE_BYTES
    native = _saved_bytes(lambda x, r, w, b: F.dropout(x, 0.3), inputs)
    assert native >= elements, "native keeps less than a mask of bytes: raise the bar"
