"""What a call costs before its work counts: every function on a few elements, forward and forward+backward."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

import tilewright.functional as TF

from .cases import FORWARD, TRAIN, Case, Function, Problem, Work, randn

MODEL = (
    "Tiny sizes: the time is the call's own (dispatch, autograd, allocation), so nothing is held against a roofline."
)

_P = 1e-9  # random, and yet nothing is dropped: the results of both sides can be compared


def _case(
    form: str, shapes: Sequence[tuple[int, ...]], native: Function, ours: Function, mutable: tuple[int, ...] = ()
) -> Case:
    def build() -> Problem:
        inputs = [randn(*shape, seed=seed) for seed, shape in enumerate(shapes)]
        for position in mutable:
            inputs[position] = torch.ones_like(inputs[position])
        nbytes = 4.0 * sum(t.numel() for t in inputs)
        work = {FORWARD: Work(0, nbytes), TRAIN: Work(0, 2 * nbytes)}
        return Problem(inputs, native, ours, work, mutable=mutable)

    name = ", ".join("x".join(map(str, shape)) for shape in shapes[: 1 if mutable else 2])
    return Case("overhead", form, name, build, accuracy=8, quick=True)


_NORM = [(4, 8), (8,), (8,)]
_BATCH = [(4, 8, 2, 2), (8,), (8,), (8,), (8,)]
_CONV = [(1, 4, 4, 4), (4, 4, 3, 3), (4,)]
_HEADS = [(1, 2, 4, 8)] * 3

CASES = [
    _case(
        "layer_norm", _NORM, lambda x, w, b: F.layer_norm(x, (8,), w, b), lambda x, w, b: TF.layer_norm(x, (8,), w, b)
    ),
    _case(
        "batch_norm",
        _BATCH,
        lambda x, w, b, m, v: F.batch_norm(x, m, v, w, b, True),
        lambda x, w, b, m, v: TF.batch_norm(x, m, v, w, b, True),
        mutable=(3, 4),
    ),
    _case("conv2d", _CONV, lambda x, w, b: F.conv2d(x, w, b), lambda x, w, b: TF.conv2d(x, w, b)),
    _case("conv2d_act", _CONV, lambda x, w, b: F.conv2d(x, w, b).relu(), lambda x, w, b: TF.conv2d_act(x, w, b)),
    _case("linear", [(4, 8), (8, 8), (8,)], lambda x, w, b: F.linear(x, w, b), lambda x, w, b: TF.linear(x, w, b)),
    _case(
        "linear_act",
        [(4, 8), (8, 8), (8,)],
        lambda x, w, b: F.gelu(F.linear(x, w, b)),
        lambda x, w, b: TF.linear_act(x, w, b),
    ),
    _case("matmul", [(4, 8), (8, 4)], torch.matmul, lambda a, b: TF.matmul(a, b)),
    _case("bmm", [(2, 4, 8), (2, 8, 4)], torch.bmm, lambda a, b: TF.bmm(a, b)),
    _case("dropout", [(4, 8)], lambda x: F.dropout(x, _P, True), lambda x: TF.dropout(x, _P, True)),
    _case(
        "dropout_add",
        [(4, 8), (4, 8)],
        lambda x, r: r + F.dropout(x, _P, True),
        lambda x, r: TF.dropout_add(x, r, _P, True),
    ),
    _case("sdpa", _HEADS, F.scaled_dot_product_attention, lambda q, k, v: TF.scaled_dot_product_attention(q, k, v)),
]
