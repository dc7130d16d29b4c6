"""More than 2^31 elements, where offsets do not fit 32 bits: about 9 GB each, left out where that is not free.

And more than 2^24 values a channel, which float32 cannot count.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tilewright.functional as TF
from tilewright.testing import assert_as_accurate

COUNT = 2**31 + 2**12


def _free_gigabytes() -> float:
    with open("/proc/meminfo") as lines:
        values = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return values["MemAvailable"] / 2**20


needs_memory = pytest.mark.skipif(_free_gigabytes() < 11, reason="needs 11 GB of free memory")


def _zeros_with_a_marked_end() -> torch.Tensor:
    x = torch.zeros(COUNT, dtype=torch.bfloat16)
    x[-4096:] = torch.randn(4096).bfloat16()
    return x


@needs_memory
def test_layer_norm():
    x = _zeros_with_a_marked_end()
    y = TF.layer_norm(x.view(-1, 4096), (4096,))
    torch.testing.assert_close(y[-1], TF.layer_norm(x[-4096:], (4096,)), rtol=0, atol=0)
    assert not y[-2].any()


@needs_memory
def test_dropout():
    x = _zeros_with_a_marked_end()
    y = TF.dropout(x, 0.5)
    end, kept = x[-4096:], y[-4096:] != 0
    assert 1500 < kept.sum() < 2600
    torch.testing.assert_close(y[-4096:][kept], (end * 2)[kept], rtol=0, atol=0)


MANY = 2**24 + 17


def _batch_norm(function, x: Tensor, weight: Tensor, bias: Tensor, dy: Tensor) -> dict[str, Tensor]:
    leaves = [t.detach().requires_grad_() for t in (x, weight, bias)]
    mean, var = torch.zeros(x.shape[1]), torch.zeros(x.shape[1])
    y = function(leaves[0], mean, var, *leaves[1:], True, 1.0)
    gradients = torch.autograd.grad(y, leaves, dy)
    return {"y": y.detach(), "mean": mean, "var": var} | dict(zip(("dx", "dweight", "dbias"), gradients, strict=True))


def _exact(x: Tensor, weight: Tensor, bias: Tensor, dy: Tensor) -> dict[str, Tensor]:
    """batch_norm of one channel in float64."""
    x, weight, bias, dy = (t.double() for t in (x, weight, bias, dy))
    n, mean = x.numel(), x.mean()
    x -= mean
    squares = torch.dot(x, x)
    rstd = 1 / torch.sqrt(squares / n + 1e-5)
    x *= rstd
    dbias, dweight = dy.sum(), torch.dot(dy, x)
    y = x * weight + bias
    dx = dy.sub_(dbias / n).sub_(x.mul_(dweight / n)).mul_(weight * rstd)
    return {"y": y, "mean": mean, "var": squares / (n - 1), "dx": dx, "dweight": dweight, "dbias": dbias}


@pytest.mark.parametrize(
    ("shape", "memory_format"),
    [((1, 1, 1, MANY), torch.contiguous_format), ((1, 2, MANY, 1), torch.channels_last)],
    ids=["NCHW", "channels_last"],
)
def test_batch_norm_of_more_values_than_float32_counts(shape, memory_format):
    x, dy = (torch.randn(shape).contiguous(memory_format=memory_format) for _ in range(2))
    x += 10
    weight, bias = torch.randn(2, shape[1])
    ours, native = (_batch_norm(function, x, weight, bias, dy) for function in (TF.batch_norm, F.batch_norm))
    for c in range(shape[1]):
        expected = _exact(x[0, c].flatten(), weight[c], bias[c], dy[0, c].flatten())
        for name, value in expected.items():
            pair = [r[name][0, c].flatten() if r[name].dim() == 4 else r[name][c] for r in (ours, native)]
            assert_as_accurate(*pair, value, what=f"{name} of channel {c}")
