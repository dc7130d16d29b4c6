"""A small Transformer language model of bytes, on text that every machine has: Python's own library sources.

    python examples/language_model.py            accelerated
    python examples/language_model.py --native   the same without tilewright

The model is plain torch.nn; `tilewright.accelerate(model)` is the only line that knows of tilewright.
"""

import argparse
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tilewright

STEPS, BATCH, TOKENS = 120, 16, 128
_VOCABULARY = 256
_TEST_BATCHES = 8


class Block(nn.Module):
    """Causal self-attention and a feed-forward layer, each behind a layer norm and around a residual."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, dropout=dropout, batch_first=True)
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y = self.norm1(x)
        y, _ = self.attention(y, y, y, attn_mask=mask, is_causal=True, need_weights=False)
        x = x + self.dropout(y)
        return x + self.dropout(self.feed_forward(self.norm2(x)))


class LanguageModel(nn.Module):
    """Bytes to logits of the next byte: embeddings, blocks, layer norm, linear."""

    def __init__(self, width: int = 256, layers: int = 4, heads: int = 8, dropout: float = 0.1) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(_VOCABULARY, width), nn.Embedding(TOKENS, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, _VOCABULARY)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(TOKENS), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        length, mask = tokens.shape[1], self.get_buffer("mask")
        x = self.dropout(self.tokens(tokens) + self.positions.weight[:length])
        for block in self.blocks:
            x = block(x, mask[:length, :length])
        return self.head(self.norm(x))


def make_model(dropout: float = 0.1) -> nn.Module:
    """Four layers of width 256: three million parameters."""
    return LanguageModel(dropout=dropout)


class Sources:
    """The standard library's modules as one string of bytes; the last tenth is held out."""

    def __init__(self) -> None:
        folder = Path(sysconfig.get_path("stdlib"))
        text = b"\n".join(path.read_bytes() for path in sorted(folder.glob("*.py")))
        data = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
        self.train, self.test = data[: -len(data) // 10], data[-len(data) // 10 :]

    @staticmethod
    def _draw(data: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        starts = torch.randint(len(data) - TOKENS - 1, (BATCH,), generator=generator)
        rows = torch.stack([data[start : start + TOKENS + 1] for start in starts.tolist()])
        return rows[:, :-1], rows[:, 1:]

    def batches(self, steps: int = STEPS) -> Iterator[tuple[Tensor, Tensor]]:
        """Random windows, the same for everyone: bytes, and the bytes that follow them."""
        generator = torch.Generator().manual_seed(1)
        for _ in range(steps):
            yield self._draw(self.train, generator)

    def test_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Held-out windows."""
        generator = torch.Generator().manual_seed(2)
        for _ in range(_TEST_BATCHES):
            yield self._draw(self.test, generator)

    def steps(self, steps: int = STEPS) -> int:
        """How many batches there are."""
        return steps


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW with the settings of the example."""
    return torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-2)


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross entropy per byte."""
    tokens, following = batch
    return F.cross_entropy(model(tokens).flatten(0, 1), following.flatten())


@torch.no_grad()
def accuracy(model: nn.Module, data: Sources) -> float:
    """Share of held-out bytes that the model names right, given the bytes before them."""
    model.eval()
    hits = [(model(tokens).argmax(-1) == following).float().mean() for tokens, following in data.test_batches()]
    model.train()
    return torch.stack(hits).mean().item()


def main() -> None:
    """Train, print loss and accuracy."""
    parser = argparse.ArgumentParser(description="a small language model of Python sources")
    parser.add_argument("--native", action="store_true", help="without tilewright")
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    data, model = Sources(), make_model()
    if not arguments.native:
        tilewright.accelerate(model)
    optimizer, start = make_optimizer(model), time.perf_counter()
    for step, batch in enumerate(data.batches(arguments.steps), 1):
        value = loss(model, batch)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        if step % 20 == 0 or step == arguments.steps:
            print(f"step {step:4}  loss {value.item():.4f} nats per byte  {time.perf_counter() - start:.1f} s")
    print(f"held-out bytes named right: {accuracy(model, data):.2%}")


if __name__ == "__main__":
    main()
