"""masked_scale on the GPU against Python's expression."""

import pytest
import torch

import tilewright.functional as TF
from tests.gpu.masks import LAYOUTS, layouts
from tilewright.testing import DTYPES, assert_as_accurate, ops_called


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_forward_and_backward(device, dtype):
    for size in (1, 7, 8, 9, 2049, 20007):
        x, dy = torch.randn(2, size, device=device).to(dtype)
        mask = torch.rand(size, device=device) > 0.3
        leaf = x.clone().requires_grad_()
        y = TF.masked_scale(leaf, mask, 1.7)
        y.backward(dy)
        for ours, t in ((y.detach(), x), (leaf.grad, dy)):
            assert_as_accurate(ours, t * mask * 1.7, t.double() * mask * 1.7, what=f"{size}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", LAYOUTS)
def test_any_layout(device, kind, dtype):
    x = layouts(device)[kind].to(dtype)
    mask = torch.rand(x.shape, device=device) > 0.5
    for keep in (mask, mask.transpose(0, -1).contiguous().transpose(0, -1)):
        y = TF.masked_scale(x, keep, 2.0)
        assert torch.equal(y, x * mask * 2.0)
        assert y.stride() == (x * torch.empty_like(x)).stride()


def test_a_misaligned_mask_and_not_finite_values(device):
    x = torch.tensor([float("inf"), float("-inf"), float("nan"), -1.0] * 16, device=device)
    mask = (torch.rand(65, device=device) > 0.5)[1:]
    torch.testing.assert_close(TF.masked_scale(x, mask, 0.5), x * mask * 0.5, equal_nan=True)


def test_own_kernel_and_checks(device):
    x, mask = torch.randn(4, 8, device=device), torch.ones(4, 8, dtype=torch.bool, device=device)
    assert "tilewright::masked_scale_forward" in ops_called(lambda: TF.masked_scale(x, mask, 2.0))
    with pytest.raises(RuntimeError, match="mask must be bool"):
        torch.ops.tilewright.masked_scale_forward(x, mask[:2], 2.0)
    torch.library.opcheck(torch.ops.tilewright.masked_scale_forward.default, (x.t(), mask.t(), 2.0))
