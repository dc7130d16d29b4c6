"""tilewright inside the rest of PyTorch: checkpointing, export, inductor, data-parallel training."""

import copy
import os
import socket
from pathlib import Path

import pytest
import torch
import torch._dynamo.testing
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import tilewright


class Block(nn.Module):
    """One layer of every kind."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(dropout)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.layer_norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(images)))
        tokens = self.drop(x.flatten(2).transpose(1, 2))
        attended, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        return self.head(self.layer_norm(tokens + attended)).mean(1)


def _pair(dropout: float = 0.0) -> tuple[nn.Module, nn.Module]:
    native = Block(dropout)
    return native, tilewright.accelerate(copy.deepcopy(native))


def _assert_same_gradients(first: nn.Module, second: nn.Module) -> None:
    for (name, a), (_, b) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint_recomputes_the_same_dropout(reentrant):
    _, model = _pair(dropout=0.4)
    images = torch.randn(4, 3, 6, 6, requires_grad=True)
    model.train()
    grads = []
    for run in (lambda: model(images), lambda: checkpoint(model, images, use_reentrant=reentrant)):
        model.zero_grad()
        torch.manual_seed(3)
        run().square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_export_runs_and_agrees():
    native, model = _pair()
    native.eval()
    model.eval()
    images = torch.randn(2, 3, 6, 6)
    exported = torch.export.export(model, (images,))
    torch.testing.assert_close(exported.module()(images), native(images), rtol=1e-4, atol=1e-5)


def test_inductor_training_step_equals_native():
    native, model = _pair()
    images = torch.randn(2, 3, 6, 6)
    compiled = torch.compile(model, fullgraph=True)
    for step in (native, compiled):
        step(images).square().sum().backward()
    _assert_same_gradients(native, model)


def test_dynamic_batch_compiles_no_more_often_than_native():
    frames = []
    for model in _pair():
        torch._dynamo.reset()
        counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counter)
        for batch in (5, 4, 7):
            images = torch.randn(batch, 3, 6, 6)
            torch.testing.assert_close(compiled(images), model(images), rtol=1e-4, atol=1e-5)
        frames.append(counter.frame_count)
    native, ours = frames
    assert ours <= native


def test_autocast_gives_natives_dtypes():
    native, model = _pair()
    images = torch.randn(2, 3, 6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, expected = model(images), native(images)
    assert ours.dtype == expected.dtype
    torch.testing.assert_close(ours, expected, rtol=5e-2, atol=5e-2)
    ours.float().sum().backward()
    expected.float().sum().backward()
    for a, b in zip(model.parameters(), native.parameters(), strict=True):
        assert a.grad.dtype == b.grad.dtype


def _train_sharded(rank: int, port: int, folder: str, kind: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    native, model = _pair()
    images = torch.randn(4, 3, 6, 6)[rank * 2 : rank * 2 + 2]
    for name, module in (("native", native), ("ours", model)):
        if kind == "ddp":
            wrapped = nn.parallel.DistributedDataParallel(module)
        else:
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard

            wrapped = fully_shard(module, mesh=init_device_mesh("cpu", (2,)))
        optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
        losses = []
        for _ in range(3):
            loss = wrapped(images).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        torch.save(torch.stack(losses), Path(folder) / f"{name}{rank}.pt")
    dist.destroy_process_group()
    # Without destructors: a DDP module that outlives the group takes gloo's down with it while it holds the GIL, and
    # joins a thread that may be waiting for the GIL (seen once in many runs, with torch 2.13).
    os._exit(0)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_data_parallel_training_equals_native(tmp_path, kind):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_train_sharded, args=(port, str(tmp_path), kind), nprocs=2)
    for rank in (0, 1):
        ours, native = (torch.load(tmp_path / f"{name}{rank}.pt") for name in ("ours", "native"))
        torch.testing.assert_close(ours, native, rtol=1e-4, atol=1e-6)
