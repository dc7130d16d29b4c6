"""The exponential inside attention: with values that are the identity, the output is the row of probabilities."""

import math

import pytest
import torch

from .attention_cases import sdpa


@pytest.mark.parametrize("queries", [1, 20], ids=["streamed", "tiles"])
def test_powers_of_two_within_two_units(isa, queries):
    """scale = ln 2 makes the logits' unit a factor of two; probability j over probability 0 is then 2^-x, x exact."""
    exponents = torch.linspace(0, 100, 126 * 64).view(126, 64)
    for x in (exponents, exponents * 2**-10, exponents * 2**-22):
        keys = torch.cat([torch.zeros(126, 1), -x], dim=1).unsqueeze(-1)  # key 0 has the largest logit, 0
        values = torch.eye(65).expand(126, 65, 65)
        output = sdpa(torch.ones(126, queries, 1), keys, values, scale=math.log(2))
        ratio = output[..., 1:].double() / output[..., :1].double()
        expected = torch.exp2(-x.double())[:, None].expand_as(ratio)
        normal = expected * output[..., :1].double() > 2 * torch.finfo(torch.float32).tiny
        unit = torch.exp2(expected.log2().floor()) * torch.finfo(torch.float32).eps
        # Two units for the power, half a unit each for the products with 1 / sum that the ratio divides.
        assert (((ratio - expected).abs() / unit)[normal] <= 3).all()


@pytest.mark.parametrize("queries", [1, 20], ids=["streamed", "tiles"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_underflow_and_infinities(isa, dtype, queries):
    """Far below the largest logit probabilities fall to 0 through denormals, without NaN, whatever the distance."""
    far = torch.tensor([0.0, 100.0, 126.0, 140.0, 148.0, 151.0, 1060.0, 1080.0, 2e4, 1e30], dtype=dtype)
    output = sdpa(
        torch.ones(1, queries, 1, dtype=dtype), -far.view(1, -1, 1), torch.eye(10, dtype=dtype)[None], scale=math.log(2)
    )
    expected = torch.exp2(-far.double())
    tiny = torch.finfo(dtype).smallest_normal
    assert torch.allclose(output[0, 0].double(), expected, rtol=1e-5, atol=tiny)
    assert (output[0, :, -2:] == 0).all()
