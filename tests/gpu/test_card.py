"""What only a GPU can show: streams, CUDA graphs, no synchronisation, big tensors. Collected only there."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tilewright
import tilewright.functional as TF
from tilewright.testing import ops_called

CALLS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "layer_norm": lambda x, w: TF.layer_norm(x, (64,), w[0], w[1]),
    "dropout_add_layer_norm": lambda x, w: TF.dropout_add_layer_norm(x, x, (64,), w[0], w[1], p=0.0),
    "batch_norm": lambda x, w: TF.batch_norm(x.flatten(0, -2), None, None, w[0], w[1], True),
    "matmul": lambda x, w: TF.matmul(x, w),
    "linear_act": lambda x, w: TF.linear_act(x, w, w[0], activation="gelu"),
    "conv2d": lambda x, w: TF.conv2d(x[:, :, None, :32], w[: x.shape[1], : x.shape[1], None, None]),
    "depthwise": lambda x, w: TF.conv2d(x[:, :, None], w[: x.shape[1], None, None, :3], groups=x.shape[1]),
    "attention": lambda x, w: TF.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], is_causal=True),
}
RANDOM: dict[str, Callable[[Tensor], Tensor]] = {
    "dropout": lambda x: TF.dropout(x, 0.4),
    "dropout_add": lambda x: TF.dropout_add(x, x, 0.4),
    "dropout_add_layer_norm": lambda x: TF.dropout_add_layer_norm(x, x, (64,), p=0.4),
    "attention": lambda x: TF.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], dropout_p=0.4),
}


def _inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    x, w = torch.randn(4, 24, 64, device="cuda"), torch.randn(64, 64, device="cuda")
    return x.to(dtype).requires_grad_(), w.to(dtype).requires_grad_()


def _step(name: str, x: Tensor, w: Tensor) -> list[Tensor]:
    y = CALLS[name](x, w)
    grads = torch.autograd.grad(y, (x, w), torch.ones_like(y), allow_unused=True)
    return [y.detach(), *(g for g in grads if g is not None)]


def test_every_op_is_served_by_a_kernel_of_ours():
    assert {op: row["why"] for op, row in tilewright.info()["ops"].items() if row["cuda"] == "native"} == {}
    x, w = _inputs()
    for name in CALLS:
        assert any(op.startswith("tilewright::") for op in ops_called(lambda name=name: _step(name, x, w))), name


def test_raw_ops_refuse_tensors_of_another_device():
    x, w, cpu = torch.randn(4, 64, device="cuda"), torch.randn(64, device="cuda"), torch.randn(64)
    images = torch.randn(2, 4, 5, 5, device="cuda")
    seed = torch.zeros(1, dtype=torch.int64, device="cuda")
    ops, pairs = torch.ops.tilewright, [(1, 1), (0, 0), (1, 1)]
    _, mean, rstd = ops.layer_norm_forward(x, (64,), w, None, 1e-5)
    channels = images[0, :, 0, 0]
    for call in (
        lambda: ops.layer_norm_forward(x, (64,), cpu, None, 1e-5),
        lambda: ops.layer_norm_backward(x, x, (64,), mean, rstd.cpu(), w, [True, True, True]),
        lambda: ops.dropout_add_forward(x, x, cpu, seed, 0.5),
        lambda: ops.dropout_add_layer_norm_forward(x, x.cpu(), (64,), w, None, 1e-5, seed, 0.5, True),
        lambda: ops.masked_scale_forward(x, x.cpu() > 0, 2.0),
        lambda: ops.batch_norm_forward(images, cpu[:4], None, None, None, 1e-5, None, "none", False),
        lambda: ops.batch_norm_backward(
            images, images.cpu(), channels, channels, None, None, 1e-5, True, [True, True, True, False]
        ),
        lambda: ops.depthwise_forward(images, cpu[:36].view(4, 1, 3, 3), None, *pairs, "none", False, None),
        lambda: ops.activation_backward(x, x.cpu(), "relu"),
    ):
        with pytest.raises(RuntimeError, match="same device"):
            call()


@pytest.mark.parametrize("name", CALLS)
def test_graph_replay_equals_eager(name):
    x, w = _inputs()
    with torch.cuda.stream(torch.cuda.Stream()):
        _step(name, x, w)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            captured = _step(name, x, w)
        with torch.no_grad():
            x.copy_(torch.randn_like(x))
        graph.replay()
        eager = _step(name, x, w)
        torch.cuda.current_stream().synchronize()
    for a, b in zip(captured, eager, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("name", RANDOM)
def test_graph_replays_draw_new_masks(name):
    x, _ = _inputs()
    with torch.cuda.stream(torch.cuda.Stream()), torch.no_grad():
        RANDOM[name](x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            y = RANDOM[name](x)
        seen = []
        for _ in range(2):
            graph.replay()
            seen.append(y.clone())
        torch.cuda.current_stream().synchronize()
    assert not torch.equal(*seen)


@pytest.mark.parametrize("name", [*CALLS, *RANDOM])
def test_no_call_waits_for_the_device(name):
    x, w = _inputs()
    run = (lambda: _step(name, x, w)) if name in CALLS else (lambda: RANDOM[name](x).sum().backward())
    run()  # compiles, and fills caches
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("index", range(torch.cuda.device_count()))
@pytest.mark.parametrize("name", CALLS)
def test_runs_on_the_tensors_device_and_stream(name, index):
    x, w = _inputs()
    expected = _step(name, x, w)
    with torch.cuda.device(0):  # not the tensors'
        there = [t.detach().to(f"cuda:{index}").requires_grad_() for t in (x, w)]
        with torch.cuda.device(index), torch.cuda.stream(torch.cuda.Stream(index)):
            torch.cuda.current_stream().wait_stream(torch.cuda.default_stream(index))
            for a, b in zip(_step(name, *there), expected, strict=True):
                torch.testing.assert_close(a.to(b.device), b, rtol=0, atol=0)


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_masks_are_those_of_the_cpu(p):
    seed = torch.tensor([12345678901234567])
    like = torch.empty(3, 7, 1001)
    expected = torch.ops.tilewright.dropout_mask(like, seed, p)
    got = torch.ops.tilewright.dropout_mask(like.cuda(), seed.cuda(), p)
    assert torch.equal(got.cpu(), expected)


@pytest.mark.parametrize("name", CALLS)
def test_compiled_equals_eager(name):
    x, w = _inputs()
    torch._dynamo.reset()
    y = torch.compile(CALLS[name], fullgraph=True)(x, w)
    got = torch.autograd.grad(y, x, torch.ones_like(y))[0]
    expected = _step(name, x, w)
    torch.testing.assert_close(y.detach(), expected[0])
    torch.testing.assert_close(got, expected[1])


def test_autocast_gives_natives_dtypes():
    x, w = _inputs()
    kernel = w[:24, :24, None, :1]
    pairs = [
        (lambda: TF.layer_norm(x, (64,), w[0], w[1]), lambda: F.layer_norm(x, (64,), w[0], w[1])),
        (lambda: TF.linear(x, w), lambda: F.linear(x, w)),
        (lambda: TF.matmul(x, w), lambda: torch.matmul(x, w)),
        (lambda: TF.conv2d(x[:, :, None], kernel), lambda: F.conv2d(x[:, :, None], kernel)),
        (lambda: TF.dropout(x.half(), 0.5), lambda: F.dropout(x.half(), 0.5)),
    ]
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cuda", dtype=dtype):
            assert [ours().dtype for ours, _ in pairs] == [native().dtype for _, native in pairs]


def test_tensors_on_different_devices_raise_as_natives():
    x, w = _inputs()
    for ours, native in (
        (lambda: TF.layer_norm(x, (64,), w[0].cpu()), lambda: F.layer_norm(x, (64,), w[0].cpu())),
        (lambda: TF.linear(x, w.cpu()), lambda: F.linear(x, w.cpu())),
        (lambda: TF.matmul(x.cpu(), w), lambda: torch.matmul(x.cpu(), w)),
    ):
        with pytest.raises(RuntimeError) as theirs:
            native()
        with pytest.raises(type(theirs.value)):
            ours()


def test_more_than_2_to_31_elements():
    rows = 2**21 + 3
    x = torch.randn(rows, 1024, device="cuda", dtype=torch.bfloat16)
    ours, native = TF.layer_norm(x, (1024,)), F.layer_norm(x, (1024,))
    assert (ours.float() - native.float()).abs().max() <= 2**-6
    dropped = TF.dropout(x, 0.5)
    kept = (dropped[-4096:] != 0).float().mean()
    assert abs(kept.item() - 0.5) < 0.01


@pytest.mark.parametrize("name", ["layer_norm", "dropout_add_layer_norm", "batch_norm"])
def test_gradcheck_in_float64(name):
    x = torch.randn(2, 3, 64, device="cuda", dtype=torch.float64, requires_grad=True)
    w = torch.randn(64, 64, device="cuda", dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(CALLS[name], (x, w), fast_mode=True)


def test_the_variable_gives_the_gpu_to_native():
    code = (
        "import torch, tilewright.functional as TF; from tilewright.testing import ops_called; "
        "x = torch.randn(4, 64, device='cuda'); "
        "print(any(op.startswith('tilewright::layer_norm_f') for op in ops_called(lambda: TF.layer_norm(x, (64,)))))"
    )
    environment = {**os.environ, "TILEWRIGHT_CUDA_BACKEND": "native"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert run.stdout.strip() == "False", run.stderr
