"""A convolutional classifier of handwritten digits: scikit-learn's 1,797 real images, 360 of them held out.

    python examples/digits.py            accelerated
    python examples/digits.py --native   the same without tilewright

The model is plain torch.nn; `tilewright.accelerate(model)` is the only line that knows of tilewright.
"""

import argparse
import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import tilewright

EPOCHS, BATCH = 12, 64
_TEST_IMAGES = 360


def make_model(dropout: float = 0.2) -> nn.Module:
    """Three convolutions with batch norm on 8 x 8 pixels, a hidden layer, ten classes."""

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

    return nn.Sequential(
        *block(1, 64),
        *block(64, 128),
        nn.MaxPool2d(2),
        nn.Dropout(dropout),
        *block(128, 128),
        nn.Flatten(),
        nn.Linear(128 * 4 * 4, 256),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(256, 10),
    )


class Digits:
    """The images, split once: the same split and the same order of batches for everyone."""

    def __init__(self) -> None:
        data = load_digits()
        images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
        labels = torch.tensor(data.target)
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        test, train = order[:_TEST_IMAGES], order[_TEST_IMAGES:]
        self.train = images[train], labels[train]
        self.test = images[test], labels[test]

    def batches(self, epochs: int = EPOCHS) -> Iterator[tuple[Tensor, Tensor]]:
        """Shuffled batches of the training images, epoch after epoch."""
        images, labels = self.train
        generator = torch.Generator().manual_seed(1)
        for _ in range(epochs):
            order = torch.randperm(len(labels), generator=generator)
            for chosen in order.split(BATCH)[: len(labels) // BATCH]:
                yield images[chosen], labels[chosen]

    def steps(self, epochs: int = EPOCHS) -> int:
        """How many batches there are."""
        return epochs * (len(self.train[1]) // BATCH)


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW with the settings of the example."""
    return torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-2)


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross entropy of a batch."""
    images, labels = batch
    return F.cross_entropy(model(images), labels)


@torch.no_grad()
def accuracy(model: nn.Module, data: Digits) -> float:
    """Share of the held-out images that are classified right."""
    model.eval()
    images, labels = data.test
    share = (model(images).argmax(-1) == labels).float().mean().item()
    model.train()
    return share


def main() -> None:
    """Train, print loss and accuracy."""
    parser = argparse.ArgumentParser(description="a classifier of handwritten digits")
    parser.add_argument("--native", action="store_true", help="without tilewright")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    data, model = Digits(), make_model()
    if not arguments.native:
        tilewright.accelerate(model)
    optimizer = make_optimizer(model)
    per_epoch, start = data.steps(1), time.perf_counter()
    for step, batch in enumerate(data.batches(arguments.epochs), 1):
        value = loss(model, batch)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        if step % per_epoch == 0:
            seconds = time.perf_counter() - start
            share = accuracy(model, data)
            print(f"epoch {step // per_epoch:3}  loss {value.item():.4f}  held-out {share:.2%}  {seconds:.1f} s")


if __name__ == "__main__":
    main()
