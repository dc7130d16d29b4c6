"""Attention on the GPU without running a kernel: what is launched, with which arguments, and how it is found."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import create_function_from_signature

from tilewright.triton import (
    attention,
    attention_launch,
    attention_launch_backward,
    attention_mask,
    attention_problem,
    variants,
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _specialization(variant: variants.Variant, arguments: dict[str, Any]) -> tuple[dict[str, str], dict[str, object]]:
    """(types, what they are specialised on) that Triton's launcher computes from the arguments, on sm_90."""
    kernel = variant.kernel
    binder = create_function_from_signature(kernel.signature, kernel.params, make_backend(GPUTarget("cuda", 90, 32)))
    _, found, _ = binder(**arguments, **dict(variant.constants))
    constants = dict(variant.constants)
    found = {p.name: each for p, each in zip(kernel.params, found, strict=True) if p.name not in constants}
    return {name: kind for name, (kind, _) in found.items()}, {name: its for name, (_, its) in found.items() if its}


@pytest.fixture
def launches(monkeypatch) -> list[tuple[variants.Variant, dict[str, Any]]]:
    """Launches are collected instead of made."""
    made: list[tuple[variants.Variant, dict[str, Any]]] = []
    for module in (attention_launch, attention_launch_backward):
        monkeypatch.setattr(module, "launch", lambda variant, grid, arguments: made.append((variant, arguments)))
    return made


def _run(make: Callable[..., Tensor], shape: tuple[int, ...], mask: Tensor | None, p: float) -> None:
    batch, heads, key_heads, queries, keys, size = shape
    query, key, value = (make(batch, h, n, size) for h, n in ((heads, queries), (key_heads, keys), (key_heads, keys)))
    seed = torch.zeros(1, dtype=torch.int64) if p > 0 else None
    output, logsumexp = attention.attention_forward(query, key, value, mask, seed, p, mask is None, None)
    wanted = [True, True, True, mask is not None and mask.dtype != torch.bool]
    attention.attention_backward(
        torch.ones_like(output), query, key, value, output, logsumexp, mask, seed, p, mask is None, None, wanted
    )


@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_launches_compile_nothing_unlisted(architecture, dtype, launches, monkeypatch):
    """The signature Triton computes at run time is the listed one, whatever sizes, strides and alignment say."""
    monkeypatch.setattr(variants, "INTERPRETED_ARCHITECTURE", architecture)
    # Sizes and strides that equal 1, are multiples of 16 and neither; few queries and many.
    for shape in ((1, 1, 1, 1, 1, 1), (1, 2, 1, 16, 16, 16), (2, 2, 2, 150, 150, 33), (1, 4, 2, 1, 4096, 64)):
        masks = (None, torch.zeros(shape[4]) > 0, torch.zeros(shape[3:5]), torch.zeros(shape[3:5], dtype=dtype))
        for mask in masks:
            for p in (0.0, 0.5):
                _run(lambda *sizes: torch.zeros(sizes, dtype=dtype), shape, mask, p)
                _run(lambda *sizes: torch.zeros(1, dtype=dtype).expand(sizes), shape, mask, p)
    listed = set(attention.variants(architecture))
    for variant, arguments in launches:
        types, special = _specialization(variant, arguments)
        assert types == dict(variant.signature)
        assert not special
        assert variant in listed
    assert len({variant.kernel for variant, _ in launches}) == 7
    by_name = {variant.name: variant for variant, _ in launches}
    assert all(variant is by_name[variant.name] for variant, _ in launches), "a variant made anew is looked up anew"


class _Kernel:
    """A kernel, and what Triton compiles of it."""

    __name__ = "kernel"
    arg_names = ("x", "BLOCK", "n")

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]:
        def first(**arguments: Any) -> "_Compiled":
            self.calls.append(("looked up", grid))
            return _Compiled(self)

        return first


class _Compiled:
    def __init__(self, kernel: _Kernel) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *arguments: self.kernel.calls.append((grid, arguments))


def test_a_variant_is_looked_up_once():
    """Later launches go to what was compiled: with all arguments in the kernel's order and a grid of three."""
    kernel, x = _Kernel(), torch.zeros(1)
    variant = variants.Variant(kernel, (("x", "*fp32"), ("n", "i32")), (("BLOCK", 8),), 4, 1)
    for n in range(3):
        variants.launch(variant, (5, 2), {"n": n, "x": x})
    variants.launch(variant, (5, 0), {"n": 3, "x": x})
    assert [what for what, _ in kernel.calls] == ["looked up", (5, 2, 1), (5, 2, 1)]
    for n, (_, arguments) in enumerate(kernel.calls[1:], start=1):
        assert arguments[0] is x
        assert arguments[1:] == (8, n)


@pytest.mark.parametrize(
    "mask",
    [
        torch.randn(40, 30).t(),
        torch.randn(40, 30).t().expand(6, 8, 30, 40),
        torch.randn(30, 80)[:, ::2],
        torch.randn(1, 8, 40, 30).mT,
    ],
    ids=["transposed", "expanded", "every second", "of heads"],
)
def test_a_mask_is_copied_as_often_as_it_is_there(mask):
    """What kernels cannot read in place is copied, but not once for each head that reads it."""
    layout = attention_mask.attention_mask(mask, torch.empty(6, 8, 30, 16), 40)
    assert layout.tensor.untyped_storage().nbytes() <= 4 * (8 if mask.dim() == 4 and mask.stride(1) > 0 else 1) * 1200
    assert torch.equal(layout.tensor, mask.expand(6, 8, 30, 40))
    heads = torch.arange(48)
    at = heads // layout.inner_heads * layout.outer + heads % layout.inner_heads * layout.inner
    for head in heads.tolist():
        moved = layout.tensor.as_strided((30, 40), (layout.row, layout.column), int(at[head]))
        assert torch.equal(moved, mask.expand(6, 8, 30, 40)[head // 8, head % 8])


def test_precision_follows_either_name_of_the_setting(monkeypatch):
    x = torch.zeros(1, 1, 4, 8)
    problem = attention_problem.attention_problem(x, x, x, None, None, 0.0, False, None)
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        for precision in ("tf32", "ieee"):
            torch.backends.cuda.matmul.fp32_precision = precision
            assert problem.precision == precision
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
