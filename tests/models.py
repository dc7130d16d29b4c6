"""Small whole models in plain torch.nn code, with one batch of data each; dropout probabilities are an argument.

And subclasses of torch.nn's layers as users write them.
"""

import copy
import io
import pickle
from collections.abc import Callable

import torch
from torch import Tensor, nn

import tilewright


def _through_file(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


# How users copy a model.
COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda m: pickle.loads(pickle.dumps(m)), "torch.save": _through_file}


class ResidualBlock(nn.Module):
    """Two convolutions with batch norm around a shortcut, the second block form of ResNet (stride, projection)."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outer)
        self.shortcut = nn.Identity()
        if stride != 1 or inner != outer:
            self.shortcut = nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


def resnet(p: float) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        ResidualBlock(8, 8, 1),
        ResidualBlock(8, 12, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(p),
        nn.Linear(12, 5),
    )


def encoder(p: float) -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 4, 32, p, activation="gelu", batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(16), enable_nested_tensor=False)


class Seq2Seq(nn.Module):
    """A decoder over its own input: causal self-attention, cross-attention, kdim unlike vdim nowhere."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.memory = nn.Linear(16, 16)
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(16, 2, 32, p, batch_first=False), 2)

    def forward(self, x: Tensor) -> Tensor:
        causal = nn.Transformer.generate_square_subsequent_mask(x.shape[0], dtype=x.dtype)
        return self.decoder(x, self.memory(x.flip(0)), tgt_mask=causal, tgt_is_causal=True)


class TiedLanguageModel(nn.Module):
    """Embedding and output layer share one weight; one block of attention with weights asked for; a GRU at the end."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(23, 16)
        self.norm = nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 4, p, batch_first=True, add_bias_kv=True, add_zero_attn=True)
        self.gru = nn.GRU(16, 16, batch_first=True)
        self.head = nn.Linear(16, 23, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        hidden = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).triu(1)
        y, weights = self.attention(self.norm(x), self.norm(x), x, attn_mask=hidden)
        return self.head(self.gru(x + y)[0]) + weights.mean()


# name -> (model for a dropout probability, one batch)
MODELS: dict[str, tuple[Callable[[float], nn.Module], Callable[[], Tensor]]] = {
    "resnet": (resnet, lambda: torch.randn(4, 3, 9, 11)),
    "encoder": (encoder, lambda: torch.randn(3, 7, 16)),
    "decoder": (Seq2Seq, lambda: torch.randn(6, 3, 16)),
    "tied language model": (TiedLanguageModel, lambda: torch.randint(0, 23, (3, 9))),
}


def three_of(name: str) -> tuple[nn.Module, nn.Module, nn.Module, Tensor]:
    """The accelerated model, the native one and a float64 copy, from the same weights, and one batch."""
    make, batch = MODELS[name]
    native = make(0.0)
    return tilewright.accelerate(copy.deepcopy(native)), native, copy.deepcopy(native).double(), batch()


class PlainSubclass(nn.Linear):
    """Overrides nothing that a replacement brings."""

    def __init__(self, size: int, note: str) -> None:
        super().__init__(size, size)
        self.note = note

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, note={self.note}"


class DoublingSubclass(nn.Linear):
    """Overrides forward: must never be replaced."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class StandardizedConv(nn.Conv2d):
    """Overrides what Conv2d's forward calls: must never be replaced either."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, weight - weight.mean(), bias)
