"""Models with batch norms behind convolutions, whose statistics are those of some data, and what ran of them."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

import tilewright
from tilewright.testing import ops_called

from .fusion_cases import BasicBlock, Bottleneck, ResNet, SlottedBlock
from .models import MODELS


def settled(model: nn.Module) -> nn.Module:
    """In evaluation, with statistics and parameters of batch norms as after some training."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor, low, high in ((module.running_mean, -1, 1), (module.running_var, 0.5, 2)):
                if tensor is not None:
                    nn.init.uniform_(tensor, low, high)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -1, 1)
    return model.eval()


def folding(native: nn.Module) -> nn.Module:
    """An accelerated copy that folds."""
    return tilewright.accelerate(copy.deepcopy(native), fold=True)


def pair(**options: object) -> nn.Module:
    """Four channels -> convolution -> norm of six."""
    return settled(nn.Sequential(nn.Conv2d(4, 6, 3, **options), nn.BatchNorm2d(6)))


def norms_ran(model: Callable[..., object], *args: object) -> bool:
    """Whether a call without gradients ran a batch norm as an op of its own."""
    with torch.no_grad():
        called = ops_called(lambda: model(*args))
    return any("batch_norm" in name for name in called)


def same(ours: nn.Module, native: nn.Module, x: Tensor, folds: bool = True) -> None:
    """Both give the same without gradients, ours with or without batch norms."""
    with torch.no_grad():
        y, expected = ours(x), native(x)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    assert y.stride() == expected.stride()
    assert norms_ran(ours, x) == (not folds)


class InvertedResidual(nn.Module):
    """As torchvision's MobileNetV2: expand, filter each channel, project; the sum without an activation behind it."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        hidden = 3 * inner
        self.conv = nn.Sequential(
            *(nn.Conv2d(inner, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6(inplace=True)),
            *(nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False), nn.BatchNorm2d(hidden)),
            nn.ReLU6(inplace=True),
            *(nn.Conv2d(hidden, outer, 1, bias=False), nn.BatchNorm2d(outer)),
        )
        self.shortcut = stride == 1 and inner == outer

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.shortcut else self.conv(x)


def mobile() -> nn.Module:
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(inplace=True))
    blocks = (InvertedResidual(8, 8, 1), InvertedResidual(8, 12, 2), InvertedResidual(12, 12, 1))
    return nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5))


# name -> (model, how many batch norms it has)
NETS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "basic": (lambda: ResNet(BasicBlock), 8),
    "wide basic": (lambda: ResNet(BasicBlock, 24), 8),
    "bottleneck": (lambda: ResNet(Bottleneck), 12),
    "mobile": (mobile, 10),
    "slots": (lambda: SlottedBlock(3), 2),
    "resnet of models.py": (lambda: MODELS["resnet"][0](0.0), 6),
}
