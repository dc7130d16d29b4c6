"""Convolutions of published networks, as data: bench_conv2d.py measures them in float32 in both layouts.

The most telling layers of each: left out are those that another network has too, and one of two in a network whose
kernel and stride are the same and of which one size alone differs. The networks' own sizes, not rounded ones: 27
pixels, 112 channels or 2 filters are what a kernel's tiles do not divide.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Layer:
    """A convolution: image is CxH (squares); padding None keeps the size at stride 1."""

    network: str
    image: str
    out: int
    kernel: int
    stride: int = 1
    padding: int | None = None
    groups: int = 1
    first: bool = False  # its input is the image, which needs no gradient
    batches: tuple[int, ...] = (1, 8)
    quick: tuple[int, ...] = ()  # batches that --quick takes

    def options(self) -> dict[str, Any]:
        """What a case takes by name."""
        names = ("network", "stride", "padding", "groups", "first")
        return {name: getattr(self, name) for name in names}


LAYERS = [
    Layer("LeNet", "1x28", 6, 5, padding=0, first=True, batches=(1, 8, 64), quick=(64,)),
    Layer("LeNet", "6x12", 16, 5, padding=0, batches=(1, 8, 64)),
    Layer("AlexNet", "3x224", 64, 11, stride=4, padding=2, first=True),
    Layer("AlexNet", "96x27", 256, 5, groups=2),
    Layer("AlexNet", "256x13", 384, 3),
    Layer("VGG", "64x224", 64, 3),
    Layer("VGG", "128x112", 128, 3, batches=(8,)),
    Layer("VGG", "512x14", 512, 3),
    Layer("NiN", "96x26", 256, 5),
    Layer("NiN", "256x26", 256, 1),
    Layer("GoogLeNet", "512x14", 24, 1),
    Layer("GoogLeNet", "112x14", 224, 3),
    Layer("GoogLeNet", "16x28", 32, 5),
    Layer("ResNet", "3x224", 64, 7, stride=2, first=True, quick=(8,)),
    Layer("ResNet", "64x56", 64, 3, quick=(1, 8)),
    Layer("ResNet", "128x28", 128, 3, batches=(8,), quick=(8,)),
    Layer("ResNet", "256x14", 256, 3),
    Layer("ResNet", "512x7", 512, 3),
    Layer("ResNet", "128x56", 128, 3, stride=2),
    Layer("ResNet", "64x56", 256, 1, quick=(8,)),
    Layer("ResNet", "1024x14", 256, 1),
    Layer("ResNet", "512x7", 2048, 1, batches=(8,)),
    Layer("ResNet", "256x56", 512, 1, stride=2),
    Layer("ResNeXt", "128x56", 128, 3, groups=32),
    Layer("ResNeXt", "512x14", 512, 3, groups=32, batches=(8,)),
    Layer("ShuffleNet", "240x28", 60, 1, groups=3),
    Layer("MobileNet", "3x224", 32, 3, stride=2, first=True),
    Layer("MobileNet", "96x112", 96, 3, stride=2, groups=96),
    Layer("MobileNet", "96x56", 96, 3, groups=96, batches=(8,), quick=(8,)),
    Layer("MobileNet", "576x14", 576, 3, stride=2, groups=576, batches=(8,)),
    Layer("MobileNet", "384x14", 384, 3, groups=384),
    Layer("MobileNet", "24x56", 144, 1, batches=(8,)),
    Layer("MobileNet", "384x14", 64, 1),
    Layer("ConvNeXt", "3x224", 96, 4, stride=4, padding=0, first=True),
    Layer("ConvNeXt", "96x56", 96, 7, groups=96),
    Layer("ConvNeXt", "192x28", 192, 7, groups=192, batches=(8,)),
    Layer("ConvNeXt", "96x56", 192, 2, stride=2, padding=0),
    Layer("ViT", "3x224", 768, 16, stride=16, padding=0, first=True, batches=(8,)),
    Layer("U-Net", "64x256", 64, 3),
    Layer("U-Net", "64x256", 2, 1),
]
