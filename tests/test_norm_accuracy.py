"""layer_norm and dropout_add_layer_norm on hard inputs: at most twice native's error against float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tilewright.functional as TF
from tilewright.testing import philox, references

from .norm_inputs import (
    CONSTANTS,
    FINITE,
    PLACES,
    Function,
    Problem,
    assert_equal,
    assert_same_finite,
    assert_same_places,
    check,
    populations,
    put,
    run,
)

# Rows of one vector and less, odd widths, a width of models, and more columns than stay in L1.
ROWS = ((5, 1), (9, 2), (7, 3), (6, 33), (5, 257), (70, 768), (3, 100_000))


# --- layer_norm ---
def _parameters(size: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {"weight": torch.randn(size).to(dtype), "bias": torch.randn(size).to(dtype)}


def _ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return TF.layer_norm(x, weight.shape, weight, bias)


def _native(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, weight.shape, weight, bias)


def _reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return references.layer_norm(x, 1, weight, bias, 1e-5)


def _problem(x: Tensor) -> Problem:
    inputs = {"x": x, **_parameters(x.shape[-1], x.dtype)}
    return _ours, _native, _reference, inputs, torch.randn(x.shape).to(x.dtype)


@pytest.mark.parametrize("kind", FINITE)
def test_layer_norm(isa, kind):
    for rows, cols in ROWS:
        check(lambda rows=rows, cols=cols: _problem(populations(kind, rows, cols)), cols, f"{rows}x{cols}")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["offset", "outlier last", "alternating", "largest"])
def test_layer_norm_of_16_bits(isa, kind, dtype):
    for rows, cols in ROWS:

        def problem(rows: int = rows, cols: int = cols) -> Problem:
            # float16 ends at 65504: nothing between x and the statistics may be of that type.
            x = 6e4 + 2e3 * torch.randn(rows, cols) if kind == "largest" else populations(kind, rows, cols)
            return _problem(x.clamp(-65504, 65504).to(dtype))

        check(problem, cols, f"{rows}x{cols}")


@pytest.mark.parametrize("value", CONSTANTS)
def test_layer_norm_of_constant_rows_is_the_bias(isa, value):
    for rows, cols in ROWS:
        x, parameters = torch.full((rows, cols), value), _parameters(cols)
        assert_equal(_ours(x, **parameters), parameters["bias"].expand(rows, cols), f"{rows}x{cols}")


@pytest.mark.parametrize("value", CONSTANTS[:3])
def test_layer_norm_gradients_of_constant_rows(isa, value):
    for rows, cols in ROWS:
        check(lambda rows=rows, cols=cols: _problem(torch.full((rows, cols), value)), cols, f"{rows}x{cols}")


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("place", PLACES)
def test_layer_norm_of_values_not_finite(isa, place, value):
    for rows, cols in ROWS[1:]:
        inputs = {"x": put(torch.randn(rows, cols), place, value), **_parameters(cols)}
        dy = torch.randn(rows, cols)
        assert_same_places(run(_ours, inputs, dy), run(_native, inputs, dy), f"{rows}x{cols}")


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("place", PLACES)
def test_layer_norm_of_gradients_not_finite(isa, place, value):
    for rows, cols in ROWS[1:]:
        inputs = {"x": torch.randn(rows, cols), **_parameters(cols)}
        dy = put(torch.randn(rows, cols), place, value)
        assert_same_finite(run(_ours, inputs, dy), run(_native, inputs, dy), f"{rows}x{cols}")


# --- dropout_add_layer_norm ---
def _dropped(rows: int, cols: int) -> tuple[Function, Function, Function]:
    """Ours, native's separate ops and float64 math under the mask that the next call draws.

    With p = 0.5 the scale is 2, so the sum is the same float32 number on both sides: the norm alone is judged, on that.
    """
    seed = philox.drawn_seed()
    mask = philox.keep_mask(seed, 0.5, rows * cols).view(rows, cols)

    def ours(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return TF.dropout_add_layer_norm(x, residual, weight.shape, weight, bias, p=0.5)

    def native(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return _native(residual + x * mask * 2, weight, bias)

    def reference(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        z = residual + x * mask * 2
        return _reference(z + (z.detach().float().double() - z.detach()), weight, bias)

    return ours, native, reference


@pytest.mark.parametrize("kind", FINITE)
def test_dropout_add_layer_norm(isa, kind):
    for rows, cols in ROWS[1:]:

        def problem(rows: int = rows, cols: int = cols) -> Problem:
            x = torch.randn(rows, cols) * {"tiny": 1e-30, "denormal": 1e-39}.get(kind, 1)
            inputs = {"x": x, "residual": populations(kind, rows, cols), **_parameters(cols)}
            dy = torch.randn(rows, cols)
            return *_dropped(rows, cols), inputs, dy

        check(problem, cols, f"{rows}x{cols}")


@pytest.mark.parametrize("value", CONSTANTS)
def test_dropout_add_layer_norm_of_constant_rows_is_the_bias(isa, value):
    for rows, cols in ROWS:
        parameters = _parameters(cols)
        ours, _, _ = _dropped(rows, cols)
        y = ours(torch.zeros(rows, cols), torch.full((rows, cols), value), **parameters)
        assert_equal(y, parameters["bias"].expand(rows, cols), f"{rows}x{cols}")


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("where", ["x", "residual"])
def test_dropout_add_layer_norm_of_values_not_finite(isa, where, place, value):
    for rows, cols in ROWS[1:]:
        inputs = {"x": torch.randn(rows, cols), "residual": torch.randn(rows, cols), **_parameters(cols)}
        inputs[where] = put(inputs[where], place, value)
        dy = torch.randn(rows, cols)
        ours, native, _ = _dropped(rows, cols)
        assert_same_places(run(ours, inputs, dy), run(native, inputs, dy), f"{rows}x{cols}")
