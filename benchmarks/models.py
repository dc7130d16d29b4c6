"""The networks that bench_models.py trains, in plain torch.nn code, by the layers of their papers.

ResNet-18 and -50 (stride in the 3x3 convolution, as most trained weights have it), MobileNetV2 at width 1, and a U-Net
of three levels with batch norm. torchvision's code would do, but is no dependency.
"""

import torch
from torch import Tensor, nn

# What the batch norm before a residual sum starts from. At 1, rounding errors of a fresh network grow with its depth
# until gradients in bfloat16 are noise whose accuracy nothing can be said of; at 0, as often chosen, the body has none.
_BRANCH_SCALE = 0.2


def _conv_norm(
    inner: int, outer: int, kernel: int, stride: int = 1, groups: int = 1, scale: float = 1.0
) -> list[nn.Module]:
    norm = nn.BatchNorm2d(outer)
    nn.init.constant_(norm.weight, scale)
    return [nn.Conv2d(inner, outer, kernel, stride, kernel // 2, groups=groups, bias=False), norm]


class _Residual(nn.Module):
    """Convolutions around a shortcut: two of 3x3, or 1x1, 3x3 and 1x1 to four times the channels."""

    def __init__(self, inner: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        outer = 4 * width if bottleneck else width
        if bottleneck:
            layers = [*_conv_norm(inner, width, 1), nn.ReLU(inplace=True), *_conv_norm(width, width, 3, stride)]
        else:
            layers = _conv_norm(inner, width, 3, stride)
        last, self.norm = _conv_norm(width, outer, 1 if bottleneck else 3, scale=_BRANCH_SCALE)
        self.body = nn.Sequential(*layers, nn.ReLU(inplace=True), last)
        self.relu = nn.ReLU(inplace=True)
        same = stride == 1 and inner == outer
        self.shortcut = nn.Identity() if same else nn.Sequential(*_conv_norm(inner, outer, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.body(x))
        return self.relu(y + self.shortcut(x))


def _resnet(blocks: tuple[int, ...], bottleneck: bool, classes: int) -> nn.Module:
    layers = [*_conv_norm(3, 64, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for stage, count in enumerate(blocks):
        width = 64 << stage
        for block in range(count):
            stride = 2 if stage and not block else 1
            layers.append(_Residual(channels, width, stride, bottleneck))
            channels = 4 * width if bottleneck else width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def resnet18(classes: int) -> nn.Module:
    """3x3 convolutions."""
    return _resnet((2, 2, 2, 2), False, classes)


def resnet50(classes: int) -> nn.Module:
    """Bottlenecks: two thirds of the convolutions are 1x1."""
    return _resnet((3, 4, 6, 3), True, classes)


class _Inverted(nn.Module):
    """MobileNetV2's block: expand by 1x1, depthwise 3x3, project by 1x1."""

    def __init__(self, inner: int, outer: int, stride: int, expand: int) -> None:
        super().__init__()
        wide = inner * expand
        self.residual = stride == 1 and inner == outer
        layers = [*_conv_norm(inner, wide, 1), nn.ReLU6(inplace=True)] if expand != 1 else []
        layers += [*_conv_norm(wide, wide, 3, stride, wide), nn.ReLU6(inplace=True)]
        scale = _BRANCH_SCALE if self.residual else 1.0
        self.body = nn.Sequential(*layers, *_conv_norm(wide, outer, 1, scale=scale))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.residual else self.body(x)


# (expansion, channels, blocks, stride of the first), table 2 of the paper.
_MOBILE = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def mobilenet_v2(classes: int) -> nn.Module:
    """Depthwise and 1x1 convolutions."""
    layers, channels = [*_conv_norm(3, 32, 3, 2), nn.ReLU6(inplace=True)], 32
    for expand, outer, count, stride in _MOBILE:
        for block in range(count):
            layers.append(_Inverted(channels, outer, stride if block == 0 else 1, expand))
            channels = outer
    layers += [*_conv_norm(channels, 1280, 1), nn.ReLU6(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Dropout(0.2), nn.Linear(1280, classes))


class UNet(nn.Module):
    """Three levels from 32 channels: skips are concatenated, transposed convolutions go up, a class for each pixel."""

    def __init__(self, classes: int, width: int = 32) -> None:
        super().__init__()
        widths = [width << level for level in range(3)]

        def double(inner: int, outer: int) -> nn.Module:
            layers = [*_conv_norm(inner, outer, 3), nn.ReLU(inplace=True)]
            return nn.Sequential(*layers, *_conv_norm(outer, outer, 3), nn.ReLU(inplace=True))

        self.down = nn.ModuleList(double(a, b) for a, b in zip([3, *widths[:-1]], widths, strict=True))
        self.bottom = double(widths[-1], 2 * widths[-1])
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, 2) for w in reversed(widths))
        self.merge = nn.ModuleList(double(2 * w, w) for w in reversed(widths))
        self.pool, self.head = nn.MaxPool2d(2), nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for down in self.down:
            skips.append(down(x))
            x = self.pool(skips[-1])
        x = self.bottom(x)
        for up, merge, skip in zip(self.up, self.merge, reversed(skips), strict=True):
            x = merge(torch.cat([skip, up(x)], 1))
        return self.head(x)
