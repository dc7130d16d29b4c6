"""What a product is made of: operands with strides, and the few dimensions that the kernel sees of them.

Batch dimensions that no operand needs apart become one, batch dimensions over which B does not change become rows of
A, reduced dimensions become part of K, and a product of few columns is turned on its side, so that few columns and few
rows are the same case.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

KERNEL_BATCH_DIMS = 3
FEW = 16  # so many columns or fewer are turned into rows


class Layout(NamedTuple):
    """Strides in elements; batch has one for every batch dimension; is_aligned: the first element is, to 16 bytes."""

    row: int
    col: int
    batch: tuple[int, ...]
    is_aligned: bool


@dataclass
class Operand:
    """A matrix, or a batch of them: a tensor whose first element is the matrix's, and strides in elements.

    batch has a stride for every batch dimension of the product, 0 where the operand is broadcast or the result reduced.
    """

    tensor: Tensor
    row: int
    col: int
    batch: list[int]

    def turned(self) -> "Operand":
        return Operand(self.tensor, self.col, self.row, self.batch)

    def view(self, sizes: Sequence[int], rows: int, cols: int) -> Tensor:
        """[*sizes, rows, cols] as a tensor."""
        strides = [*self.batch, self.row, self.col]
        return self.tensor.as_strided([*sizes, rows, cols], strides, self.tensor.storage_offset())

    @property
    def layout(self) -> Layout:
        return Layout(self.row, self.col, tuple(self.batch), self.tensor.data_ptr() % 16 == 0)


def matrix(tensor: Tensor, batch_dims: int, *, is_left: bool = True) -> Operand:
    """The matrices in a tensor's last two dimensions, its batch dimensions aligned to the last of `batch_dims`.

    A vector is a row on the left and a column on the right.
    """
    strides, sizes, rank = tensor.stride(), tensor.shape, tensor.dim()
    if rank == 1:
        row, col = (0, strides[0]) if is_left else (strides[0], 0)
        return Operand(tensor, row, col, [0] * batch_dims)
    batch = [0] * (batch_dims - rank + 2) + [0 if sizes[d] == 1 else strides[d] for d in range(rank - 2)]
    return Operand(tensor, strides[-2], strides[-1], batch)


@dataclass
class Product:
    """C = act(alpha A B + beta addend), batch dimension d summed where is_reduced[d].

    `pre`, laid out like C, gets what the activation (a code of activation.CODES) is applied to.
    """

    M: int
    N: int
    K: int
    sizes: list[int]
    is_reduced: list[bool]
    a: Operand
    b: Operand
    c: Operand
    addend: Operand | None = None
    pre: Tensor | None = None
    alpha: float = 1.0
    beta: float = 1.0
    activation: int = 0

    @property
    def layout(self) -> "ProductLayout":
        addend = self.addend.layout if self.addend is not None else None
        sizes, is_reduced = tuple(self.sizes), tuple(self.is_reduced)
        return ProductLayout(
            self.M, self.N, self.K, sizes, is_reduced, self.a.layout, self.b.layout, self.c.layout, addend
        )

    def make_dense(self) -> None:
        """Copy operands whose batch dimensions are too many: reduced ones last and all in one piece."""
        order = sorted(range(len(self.sizes)), key=lambda d: self.is_reduced[d])
        sizes = [self.sizes[d] for d in order]

        def copied(operand: Operand, rows: int, cols: int) -> Operand:
            ordered = Operand(operand.tensor, operand.row, operand.col, [operand.batch[d] for d in order])
            return matrix(ordered.view(sizes, rows, cols).contiguous(), len(sizes))

        self.a = copied(self.a, self.M, self.K)
        self.b = copied(self.b, self.K, self.N)
        if self.addend is not None:
            self.addend = copied(self.addend, self.M, self.N)
        self.c.batch = [self.c.batch[d] for d in order]
        self.sizes, self.is_reduced = sizes, [self.is_reduced[d] for d in order]

    def align(self, copies: tuple[bool, bool], unit: int) -> None:
        """Copy A, B or both so that every row begins at a multiple of 16 bytes, `unit` elements."""

        def aligned(operand: Operand, rows: int, cols: int) -> Operand:
            if operand.row == 1 and operand.col != 1:
                return aligned(operand.turned(), cols, rows).turned()
            sizes = [size if stride != 0 else 1 for size, stride in zip(self.sizes, operand.batch, strict=True)]
            copy = operand.tensor.new_empty([*sizes, rows, -(-cols // unit) * unit])[..., :cols]
            return matrix(copy.copy_(operand.view(sizes, rows, cols)), len(sizes))

        self.a = aligned(self.a, self.M, self.K) if copies[0] else self.a
        self.b = aligned(self.b, self.K, self.N) if copies[1] else self.b


class ProductLayout(NamedTuple):
    """Everything about a product that its launch depends on, except dtype and device."""

    M: int
    N: int
    K: int
    sizes: tuple[int, ...]
    is_reduced: tuple[bool, ...]
    a: Layout
    b: Layout
    c: Layout
    addend: Layout | None


_Dim = tuple[int, tuple[int, ...]]  # size, stride in each operand


def _joined(dims: list[_Dim]) -> list[_Dim]:
    """Dimensions, outermost first, with neighbours made one where all operands allow it."""
    out: list[_Dim] = []
    for size, strides in dims:
        if size == 1:
            continue
        if out and all(outer == inner * size for outer, inner in zip(out[-1][1], strides, strict=True)):
            out[-1] = (out[-1][0] * size, strides)
        else:
            out.append((size, strides))
    return out


def _fold(dims: list[_Dim], size: int, steps: tuple[int, ...], still: int | None) -> tuple[int, tuple[int, ...]]:
    """Move dimensions out of `dims` into a matrix dimension of `size` whose strides are `steps`.

    still: an operand that must not change along them (it has no such matrix dimension).
    """
    changed = True
    while changed:
        changed = False
        for dim in reversed(dims):
            count, strides = dim
            moves = [d for d in range(len(steps)) if d != still]
            if still is not None and strides[still] != 0:
                continue
            if size == 1 or all(strides[d] == size * steps[d] for d in moves):
                steps = steps if size > 1 else tuple(0 if d == still else strides[d] for d in range(len(steps)))
                size *= count
                dims.remove(dim)
                changed = True
                break
    return size, steps


@dataclass
class Flat:
    """A product with at most KERNEL_BATCH_DIMS batch dimensions and one reduced one; strides of size 1 are 0."""

    M: int
    N: int
    K: int
    kept: list[_Dim]  # strides of a, b, c, addend
    reduced: _Dim  # strides of a, b
    a: tuple[int, int]  # row, col
    b: tuple[int, int]
    c: tuple[int, int]
    addend: tuple[int, int]

    @property
    def batch(self) -> int:
        count = 1
        for size, _ in self.kept:
            count *= size
        return count

    def swap(self) -> None:
        """C^T = B^T A^T."""
        self.M, self.N = self.N, self.M
        self.a, self.b = self.b[::-1], self.a[::-1]
        self.c, self.addend = self.c[::-1], self.addend[::-1]
        self.kept = [(size, (b, a, c, d)) for size, (a, b, c, d) in self.kept]
        self.reduced = (self.reduced[0], self.reduced[1][::-1])


def flatten(product: ProductLayout) -> Flat | None:
    """The product in the kernel's dimensions; None where there are too many of them."""
    addend = product.addend if product.addend is not None else Layout(0, 0, (0,) * len(product.sizes), True)
    kept_dims: list[_Dim] = []
    reduced_dims: list[_Dim] = []
    for d, size in enumerate(product.sizes):
        pair = (product.a.batch[d], product.b.batch[d])
        if product.is_reduced[d]:
            reduced_dims.append((size, pair))
        else:
            kept_dims.append((size, (*pair, product.c.batch[d], addend.batch[d])))
    kept, reduced = _joined(kept_dims), _joined(reduced_dims)
    M, rows = _fold(kept, product.M, (product.a.row, 0, product.c.row, addend.row), 1)
    K, depth = _fold(reduced, product.K, (product.a.col, product.b.row), None)
    kept = _joined(kept)
    if len(kept) > KERNEL_BATCH_DIMS or len(reduced) > 1:
        return None
    one = {1: 0}
    a = (one.get(M, rows[0]), one.get(K, depth[0]))
    b = (one.get(K, depth[1]), one.get(product.N, product.b.col))
    c = (one.get(M, rows[2]), one.get(product.N, product.c.col))
    other = (one.get(M, rows[3]), one.get(product.N, addend.col))
    return Flat(M, product.N, K, kept, reduced[0] if reduced else (1, (0, 0)), a, b, c, other)
