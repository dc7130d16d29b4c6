"""More than 2^31 elements: offsets do not fit 32 bits. Each needs about 9 GB and is left out where that is not free."""

import pytest
import torch

import tilewright.functional as TF

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
