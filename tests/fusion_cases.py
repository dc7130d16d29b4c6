"""Models in the forms that people write them in, with what accelerate should fuse in each."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .models import MODELS

BN, SUM = "BatchNorm + ReLU", "BatchNorm + add + ReLU"
BN6, SUM6 = "BatchNorm + ReLU6", "BatchNorm + add + ReLU6"
ADD, NORM = "dropout + add", "dropout + add + LayerNorm"


class BasicBlock(nn.Module):
    """As torchvision's: one ReLU for all, in place, += and a downsample that may be None."""

    def __init__(self, inner: int, outer: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outer)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outer)
        self.downsample = None
        if stride != 1 or inner != outer:
            self.downsample = nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.conv1(x)
        out = self.bn1(out)
        out = self.relu(out)
        out = self.conv2(out)
        out = self.bn2(out)
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class Bottleneck(nn.Module):
    """As torchvision's."""

    expansion: int = 4

    def __init__(self, inner: int, width: int, stride: int = 1) -> None:
        super().__init__()
        outer = width * self.expansion
        self.conv1 = nn.Conv2d(inner, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outer, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outer)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inner != outer:
            self.downsample = nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        identity = x if self.downsample is None else self.downsample(x)
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    """As torchvision's, of a few channels."""

    def __init__(self, block: type[nn.Module], width: int = 4) -> None:
        super().__init__()
        outer = width * getattr(block, "expansion", 1)
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(block(width, width), block(outer, width))
        self.layer2 = nn.Sequential(block(outer, width + 2, 2))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear((width + 2) * outer // width, 5)

    def _forward_impl(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer2(self.layer1(x))
        return self.fc(torch.flatten(self.avgpool(x), 1))

    def forward(self, x: Tensor) -> Tensor:
        return self._forward_impl(x)


class FunctionalBlock(nn.Module):
    """The ReLU as functions, the residual as the first operand, batch norms on both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(4))
        self.norms = nn.ModuleDict({name: nn.BatchNorm2d(4) for name in "abcd"})
        self.act = F.relu

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norms["a"](self.convs[0](x)), inplace=True)
        y = (x + self.norms["b"](self.convs[1](y))).relu()
        z = self.norms["c"](self.convs[2](y))
        return self.act(torch.add(z, self.norms["d"](self.convs[3](y))))


class SlottedBlock(nn.Module):
    """As timm's: slots for other layers that hold an Identity or nothing."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels)
        self.drop_block, self.act1, self.aa = nn.Identity(), nn.ReLU(inplace=True), nn.Identity()
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels)
        self.se = self.downsample = None
        self.drop_path, self.act2 = nn.Identity(), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        x = self.aa(self.act1(self.drop_block(self.bn1(self.conv1(x)))))
        x = self.bn2(self.conv2(x))
        if self.se is not None:
            x = self.se(x)
        x = self.drop_path(x)
        if self.downsample is not None:
            shortcut = self.downsample(shortcut)
        x += shortcut
        return self.act2(x)


class MobileBlock(nn.Module):
    """ReLU6 as a layer, in place, and as a function, in both orders of the sum; values on both sides of 6."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU6(inplace=True))
        self.mix = nn.Conv2d(4, 4, 1)
        self.bn1, self.bn2, self.bn3 = (nn.BatchNorm2d(4) for _ in range(3))
        for norm in (self.conv[1], self.bn1, self.bn2, self.bn3):
            nn.init.constant_(norm.weight, 5.0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = F.relu6(self.bn1(self.mix(x)) + x)
        x = nn.functional.relu6(x + self.bn2(self.mix(x)), inplace=True)
        return F.relu6(self.bn3(self.mix(x)), True)


class DenseLayer(nn.Module):
    """As torchvision's: takes a tensor or a list of them, which a graph can not."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(3)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(3, 4, 1)

    def forward(self, input: Tensor | list[Tensor]) -> Tensor:
        features = [input] if isinstance(input, Tensor) else input
        return self.conv1(self.relu1(self.norm1(torch.cat(features, 1))))


class GptBlock(nn.Module):
    """Pre-norm over submodules that end in a dropout of their own, and one dropout between."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(16), nn.LayerNorm(16, elementwise_affine=False)
        self.mix = nn.Linear(16, 16)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.drop = nn.Dropout(p)
        self.end = nn.LayerNorm(16, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop(self.mix(self.ln1(x)))
        x = self.drop(self.mlp(self.ln2(x))) + x
        return self.end(x) + x


class Volume(nn.Module):
    """BatchNorm1d and 3d."""

    def __init__(self) -> None:
        super().__init__()
        self.deep = nn.Sequential(nn.Conv3d(3, 4, 3, bias=False), nn.BatchNorm3d(4), nn.ReLU())
        self.bn = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.deep(x).flatten(2).mean(2)).relu_()


def encoder_layer(p: float, norm_first: bool) -> nn.Module:
    return nn.TransformerEncoderLayer(16, 4, 32, p, batch_first=True, norm_first=norm_first)


class Decoder(nn.Module):
    """A torch decoder layer with masks."""

    def __init__(self, p: float, norm_first: bool) -> None:
        super().__init__()
        self.layer = nn.TransformerDecoderLayer(16, 4, 32, p, batch_first=True, norm_first=norm_first)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        return self.layer(x, x.flip(1), tgt_mask=mask)


def _images() -> Tensor:
    return torch.randn(4, 3, 8, 10)


def _tokens() -> Tensor:
    return torch.randn(3, 7, 16)


# name -> (model for a dropout probability, one batch, what is fused)
CASES: dict[str, tuple[Callable[[float], nn.Module], Callable[[], Tensor], dict[str, int]]] = {
    "basic": (lambda p: ResNet(BasicBlock), _images, {BN: 4, SUM: 3}),
    "bottleneck": (lambda p: ResNet(Bottleneck), _images, {BN: 7, SUM: 3}),
    "functional": (
        lambda p: nn.Sequential(nn.Conv2d(3, 4, 1), FunctionalBlock()),
        _images,
        {BN: 1, SUM: 2},
    ),
    "slots": (lambda p: SlottedBlock(3), _images, {BN: 1, SUM: 1}),
    "mobile": (lambda p: MobileBlock(), _images, {BN6: 2, SUM6: 2}),
    "dense": (lambda p: DenseLayer(), _images, {}),
    "volume": (lambda p: Volume(), lambda: torch.randn(5, 3, 4, 5, 6), {BN: 2}),
    "post-norm": (lambda p: encoder_layer(p, False), _tokens, {NORM: 2}),
    "pre-norm": (lambda p: encoder_layer(p, True), _tokens, {NORM: 1, ADD: 1}),
    "decoder": (lambda p: Decoder(p, False), _tokens, {NORM: 3}),
    "pre-norm decoder": (lambda p: Decoder(p, True), _tokens, {NORM: 2, ADD: 1}),
    "gpt": (GptBlock, _tokens, {NORM: 2}),
    "resnet of models.py": (*MODELS["resnet"], {BN: 3, SUM: 2}),
    "encoder of models.py": (*MODELS["encoder"], {NORM: 2, ADD: 2}),
    "decoder of models.py": (*MODELS["decoder"], {NORM: 6}),
}
