"""What ``tilewright check`` runs: a few awkward shapes of every public function.

A case draws float64 inputs; the runner rounds them to each dtype. ``call(f, *inputs)`` is the call under test, made
with f = tilewright.functional, with f = NATIVE, and, on the same inputs in float64, with f = FORMULAS. Views taken
inside the call (slices, transposes) put strided operands before the kernels.

A new function needs an entry in CASES, and its name in _check_formulas.py.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ._check_formulas import SEED
from .nn._activation import ACTIVATIONS

# Times native's error.
ALLOWED = 2.0


@dataclass(frozen=True)
class Case:
    """One call: its label, float64 inputs (the last `buffers` of them take no gradient), the call, float32's bar."""

    label: str
    inputs: tuple[Tensor, ...]
    call: Callable[..., Tensor | tuple[Tensor, ...]] = field(repr=False)
    buffers: int = 0
    allowed: float = ALLOWED


def _draw(*shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(SEED)
    return tuple(torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes)


def _with_statistics(tensors: tuple[Tensor, ...], channels: int) -> tuple[Tensor, ...]:
    mean, var = _draw((channels,), (channels,))
    return (*tensors, mean, var.abs() + 0.5)


def _conv(
    label: str, x: tuple[int, ...], w: tuple[int, ...], *options: Any, last: bool = False, allowed: float = ALLOWED
) -> Case:
    layout = torch.channels_last if last else torch.contiguous_format
    return Case(
        label,
        _draw(x, w, (w[0],)),
        lambda f, x, w, b: f.conv2d(x.contiguous(memory_format=layout), w, b, *options),
        allowed=allowed,
    )


def _conv_act(activation: str) -> Case:
    return Case(
        f"3x3 {activation}, residual",
        _draw((2, 5, 9, 11), (7, 5, 3, 3), (7,), (2, 7, 9, 11)),
        lambda f, x, w, b, r: f.conv2d_act(x, w, b, 1, 1, 1, 1, activation=activation, residual=r),
    )


def _batch_norm(label: str, shape: tuple[int, ...], training: bool, last: bool = False) -> Case:
    layout = torch.channels_last if last else torch.preserve_format
    return Case(
        label,
        _with_statistics(_draw(shape, (shape[1],), (shape[1],)), shape[1]),
        lambda f, x, w, b, mean, var: (
            f.batch_norm(x.clone(memory_format=layout), mean, var, w, b, training, 0.1, 1e-5),
            mean,
            var,
        ),
        buffers=2,
    )


def _batch_norm_act(activation: str) -> Case:
    return Case(
        f"{activation}, residual",
        _with_statistics(_draw((3, 5, 7, 9), (5,), (5,), (3, 5, 7, 9)), 5),
        lambda f, x, w, b, r, mean, var: (
            f.batch_norm_act(x, mean, var, w, b, True, 0.1, 1e-5, activation=activation, residual=r),
            mean,
            var,
        ),
        buffers=2,
    )


def _linear_act(activation: str) -> Case:
    return Case(
        activation,
        _draw((13, 37), (19, 37), (19,)),
        lambda f, x, w, b: f.linear_act(x, w, b, activation=activation),
    )


def _seeded(call: Callable[..., Any]) -> Callable[..., Any]:
    """The call with the generator at SEED, so that it draws the mask that dropout_mask draws."""

    def seeded(*args: Any) -> Any:
        torch.manual_seed(SEED)
        return call(*args)

    return seeded


_QKV = ((2, 3, 17, 20), (2, 3, 29, 20), (2, 3, 29, 24))


def _bool_mask() -> Tensor:
    mask = _draw((17, 29))[0] > 0
    mask[:, 0] = True
    return mask


CASES: dict[str, Callable[[], list[Case]]] = {
    "conv2d": lambda: [
        _conv("3x3, padding 1", (2, 5, 9, 11), (7, 5, 3, 3), 1, 1, 1, 1),
        _conv("7x7, stride 2", (2, 3, 23, 23), (8, 3, 7, 7), 2, 3, 1, 1),
        _conv("1x1, channels_last", (2, 16, 7, 5), (33, 16, 1, 1), 1, 0, 1, 1, last=True),
        _conv("3x3, channels_last", (2, 16, 7, 5), (17, 16, 3, 3), 1, 1, 1, 1, last=True),
        _conv("minimal filtering", (4, 32, 13, 15), (35, 32, 3, 3), 1, 1, 1, 1, allowed=8.0),
        _conv("same, dilation 2", (1, 4, 12, 10), (6, 4, 3, 3), 1, "same", 2, 1),
        _conv("groups 2", (2, 6, 8, 8), (10, 3, 3, 3), 1, 0, 1, 2),
        _conv("depthwise", (2, 19, 10, 9), (19, 1, 3, 3), 1, 1, 1, 19),
        _conv("depthwise, wide", (2, 19, 10, 53), (19, 1, 3, 3), 1, 1, 1, 19),
        _conv("depthwise 5x5, stride 2", (2, 5, 14, 84), (5, 1, 5, 5), 2, 2, 1, 5),
        _conv("depthwise 7x7", (1, 5, 9, 70), (5, 1, 7, 7), 1, 3, 1, 5),
        _conv("depthwise, channels_last", (2, 35, 9, 11), (35, 1, 3, 3), 1, 1, 1, 35, last=True),
        _conv("depthwise 5x5, stride 2, channels_last", (2, 35, 9, 14), (35, 1, 5, 5), 2, 2, 1, 35, last=True),
    ],
    "linear": lambda: [
        Case("13x37 -> 19", _draw((13, 37), (19, 37), (19,)), lambda f, x, w, b: f.linear(x, w, b)),
        Case("[4, 5, 64] -> 1", _draw((4, 5, 64), (1, 64), (1,)), lambda f, x, w, b: f.linear(x, w, b)),
        Case("strided", _draw((9, 60), (17, 30), (17,)), lambda f, x, w, b: f.linear(x[:, ::2], w, b)),
    ],
    "matmul": lambda: [
        Case("65x33 @ 33x47", _draw((65, 33), (33, 47)), lambda f, a, b: f.matmul(a, b)),
        Case("broadcast batch", _draw((3, 1, 7, 9), (4, 9, 5)), lambda f, a, b: f.matmul(a, b)),
        Case("vector @ matrix", _draw((31,), (31, 17)), lambda f, a, b: f.matmul(a, b)),
        Case("both transposed", _draw((33, 18), (21, 33)), lambda f, a, b: f.matmul(a.T, b.T)),
    ],
    "bmm": lambda: [
        Case("5x[17, 33] @ [33, 9]", _draw((5, 17, 33), (5, 33, 9)), lambda f, a, b: f.bmm(a, b)),
        Case("right transposed", _draw((3, 20, 16), (3, 31, 16)), lambda f, a, b: f.bmm(a, b.transpose(1, 2))),
        Case("one row", _draw((4, 1, 65), (4, 65, 40)), lambda f, a, b: f.bmm(a, b)),
    ],
    "baddbmm": lambda: [
        Case(
            "beta 0.5, alpha 2",
            _draw((5, 17, 9), (5, 17, 33), (5, 33, 9)),
            lambda f, c, a, b: f.baddbmm(c, a, b, beta=0.5, alpha=2.0),
        ),
        Case(
            "broadcast input",
            _draw((9,), (2, 7, 11), (2, 11, 9)),
            lambda f, c, a, b: f.baddbmm(c, a, b, beta=1.0, alpha=1.0),
        ),
    ],
    "layer_norm": lambda: (
        [
            Case(
                f"{shape}", _draw((rows, *shape), shape, shape), lambda f, x, w, b: f.layer_norm(x, w.shape, w, b, 1e-5)
            )
            for rows, shape in ((7, (33,)), (3, (1000,)), (5, (3, 17)))
        ]
        + [
            Case(
                "strided",
                _draw((6, 5, 80), (40,), (40,)),
                lambda f, x, w, b: f.layer_norm(x.transpose(0, 1)[..., ::2], (40,), w, b, 1e-5),
            )
        ]
    ),
    "batch_norm": lambda: [
        _batch_norm("[N, C, H, W], training", (3, 5, 7, 9), True),
        _batch_norm("channels_last, training", (3, 37, 7, 5), True, last=True),
        _batch_norm("[N, C], training", (13, 17), True),
        _batch_norm("[N, C, L], eval", (3, 5, 33), False),
        _batch_norm("channels_last, eval", (2, 21, 5, 5), False, last=True),
    ],
    "dropout": lambda: [
        Case("p 0.5", _draw((33, 1001)), _seeded(lambda f, x: f.dropout(x, 0.5))),
        Case("p 0.1", _draw((7, 1013)), _seeded(lambda f, x: f.dropout(x, 0.1))),
    ],
    "scaled_dot_product_attention": lambda: [
        Case("17x29, heads 20 and 24", _draw(*_QKV), lambda f, q, k, v: f.scaled_dot_product_attention(q, k, v)),
        Case(
            "causal",
            _draw(*[(2, 3, 33, 16)] * 3),
            lambda f, q, k, v: f.scaled_dot_product_attention(q, k, v, is_causal=True),
        ),
        Case(
            "float mask",
            _draw(*_QKV, (17, 29)),
            lambda f, q, k, v, m: f.scaled_dot_product_attention(q, k, v, m),
        ),
        Case(
            "bool mask",
            (*_draw(*_QKV), _bool_mask()),
            lambda f, q, k, v, m: f.scaled_dot_product_attention(q, k, v, m),
            buffers=1,
        ),
    ],
    "linear_act": lambda: [_linear_act(name) for name in ACTIVATIONS],
    "conv2d_act": lambda: [_conv_act(name) for name in ACTIVATIONS],
    "batch_norm_act": lambda: [_batch_norm_act(name) for name in ACTIVATIONS],
    "dropout_add": lambda: [
        Case(
            "p 0.5",
            _draw((33, 101), (33, 101), (101,)),
            _seeded(lambda f, x, r, b: f.dropout_add(x, r, 0.5, bias=b)),
        ),
    ],
    "dropout_add_layer_norm": lambda: [
        Case(
            f"{rows}x{cols}",
            _draw((rows, cols), (rows, cols), (cols,), (cols,)),
            _seeded(lambda f, x, r, w, b: f.dropout_add_layer_norm(x, r, w.shape, w, b, 1e-5, 0.5, prenorm=True)),
        )
        for rows, cols in ((33, 101), (7, 1000))
    ],
    "masked_scale": lambda: [
        Case(
            "33x101",
            (_draw((33, 101))[0], _draw((33, 101))[0] > 0),
            lambda f, x, m: f.masked_scale(x, m, 1.25),
            buffers=1,
        ),
    ],
}
