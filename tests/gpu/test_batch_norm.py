"""The CUDA C++ kernels of batch_norm against float64 math and against native: on the card, or emulated."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tilewright.functional as TF
from tests.activations import ACTIVATIONS, PASSES, reach
from tests.test_batch_norm import run
from tilewright.testing import DTYPES, assert_as_accurate, max_error, references

LAST, LAST_3D = torch.channels_last, torch.channels_last_3d
# Rows and planes, wide and scalar accesses, channels of one part (one launch) and of several (three launches).
SHAPES = {
    "rows": ((5, 3), None),
    "rows, one channel": ((40, 1), None),
    "rows, many channels": ((70, 513), None),
    "rows, wide tiles": ((9, 272), None),
    "rows, parts": ((2101, 40), None),
    "rows, odd parts": ((2300, 37), None),
    "planes 1d": ((4, 3, 7), None),
    "planes": ((2, 5, 6, 8), None),
    "planes, odd": ((3, 4, 7, 7), None),
    "planes, many channels": ((2, 513, 2, 4), None),
    "planes, parts": ((2, 3, 130, 128), None),
    "planes, odd parts": ((3, 2, 53, 57), None),
    "planes 3d": ((3, 17, 4, 5, 6), None),
    "channels_last": ((2, 5, 6, 7), LAST),
    "channels_last, parts": ((3, 8, 29, 31), LAST),
    "channels_last_3d": ((3, 16, 4, 5, 6), LAST_3D),
    "one channel": ((2, 1, 30, 150), LAST),
    "one pixel": ((3, 4, 1, 1), LAST),
}
PARTS = ["rows, parts", "planes, parts", "planes, odd parts", "channels_last, parts"]


def make_input(kind: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    shape, memory_format = SHAPES[kind]
    x = (torch.randn(shape, device=device) * 2 + 1).to(dtype)
    return x if memory_format is None else x.contiguous(memory_format=memory_format)


def parameters_of(x: Tensor) -> list[Tensor]:
    return list(torch.randn(2, x.shape[1], device=x.device).to(x.dtype))


def statistics_of(x: Tensor) -> list[Tensor]:
    channels = x.shape[1]
    return [t.to(x.device, x.dtype) for t in (torch.randn(channels), torch.rand(channels) + 0.5)]


def _on_cpu(value):
    """The same on the CPU, whose native kernels say what layout is promised: some of a card's ignore the format."""
    if isinstance(value, Tensor):
        return value.cpu()
    return [_on_cpu(item) for item in value] if isinstance(value, list) else value


def _wide(tensors) -> list[Tensor | None]:
    return [None if t is None else t.double() for t in tensors]


def _native_act(*arguments, activation: str, residual: Tensor | None) -> Tensor:
    y = F.batch_norm(*arguments)
    return ACTIVATIONS[activation](y if residual is None else y + residual)


def _compare(ours: dict[str, Tensor], native: dict[str, Tensor], reference: dict[str, Tensor], dy: Tensor) -> None:
    assert ours.keys() == native.keys()
    for name, value in ours.items():
        if value.dtype == torch.float64:  # the reference is no more exact than either
            torch.testing.assert_close(value, reference[name], msg=lambda text, name=name: f"{name}: {text}")
        elif name in ("dweight", "dbias") and value.dtype == torch.float32:
            # Terms cancel, so the bar is a rounding of the sum of their sizes (|xhat| is about 1), not of the result.
            terms = dy.double().abs().sum().item() / value.numel()
            assert max_error(value, reference[name]) <= 2 * max_error(native[name], reference[name]) + 2**-23 * terms
        else:
            assert_as_accurate(value, native[name], reference[name], what=name)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", SHAPES)
def test_forward_backward_and_running_statistics(device, kind, dtype, training):
    x = make_input(kind, dtype, device)
    parameters, statistics, dy = parameters_of(x), statistics_of(x), torch.randn_like(x)
    ours = run(TF.batch_norm, x, parameters, statistics, training, dy)
    native = run(F.batch_norm, x, parameters, statistics, training, dy)
    reference = run(F.batch_norm, x.double(), _wide(parameters), _wide(statistics), training, dy.double())
    _compare(ours, native, reference, dy)
    promised = run(F.batch_norm, *map(_on_cpu, (x, parameters, statistics, training, dy)))
    assert ours["y"].stride() == promised["y"].stride()
    assert ours["dx"].stride() == promised["dx"].stride()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["planes", "channels_last, parts"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_float32_parameters_beside_16_bits(device, kind, dtype, training):
    x = make_input(kind, dtype, device)
    parameters, statistics = parameters_of(x.float()), statistics_of(x.float())
    dy = torch.randn_like(x)
    ours = run(TF.batch_norm, x, parameters, statistics, training, dy)
    native = run(F.batch_norm, x, parameters, statistics, training, dy)
    reference = run(F.batch_norm, x.double(), _wide(parameters), _wide(statistics), training, dy.double())
    _compare(ours, native, reference, dy)


@pytest.mark.parametrize("residual", [True, False], ids=["residual", "plain"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", ["rows, wide tiles", "planes, odd", "channels_last", "planes, odd parts"])
def test_fused(device, kind, activation, training, residual):
    for dtype in (torch.float32, torch.bfloat16):
        x = make_input(kind, dtype, device)
        statistics, dy = statistics_of(x), torch.randn_like(x)
        parameters = [reach(activation) * parameter for parameter in parameters_of(x)]
        skip = torch.randn_like(x) if residual else None
        fused = {"activation": activation, "residual": skip}
        ours = run(TF.batch_norm_act, x, parameters, statistics, training, dy, **fused)
        native = run(_native_act, x, parameters, statistics, training, dy, **fused)
        wide = {"activation": activation, "residual": None if skip is None else skip.double()}
        reference = run(_native_act, x.double(), _wide(parameters), _wide(statistics), training, dy.double(), **wide)
        for name in ["y", "running_mean", "running_var", *(["dx"] if activation not in PASSES else [])]:
            assert_as_accurate(ours[name], native[name], reference[name], what=name)
        if activation not in PASSES:
            continue
        # At a kink a rounding of y is a jump of the gradient: it belongs to the y that was given out.
        gradient = torch.where(PASSES[activation](ours["y"]), dy, 0.0)
        if residual:
            torch.testing.assert_close(ours["dresidual"], gradient, rtol=0, atol=0)
        plain = run(TF.batch_norm, x, parameters, statistics, training, gradient)
        for name in ("dx", "dweight", "dbias"):
            torch.testing.assert_close(ours[name], plain[name], rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(2, 5, 1, 1), (5, 6, 7), (1,)], ids=str)
def test_broadcast_residual(device, shape):
    x, residual = make_input("channels_last", torch.float32, device), torch.randn(shape, device=device)
    dy = torch.randn_like(x)
    pair = [
        run(f, x, parameters_of(x), [None, None], True, dy, activation="none", residual=residual)
        for f in (TF.batch_norm_act, _native_act)
    ]
    torch.testing.assert_close(pair[0]["dresidual"], pair[1]["dresidual"])
    assert pair[0]["dresidual"].shape == torch.Size(shape)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("kind", ["planes", "planes, odd parts", "channels_last, parts"])
def test_each_gradient_alone(device, kind, training):
    """Any choice of gradients gives the bits of all of them together."""
    backward = torch.ops.tilewright.batch_norm_backward.default
    x = make_input(kind, torch.float32, device)
    dy, y, weight = torch.randn_like(x), torch.randn_like(x), torch.randn(x.shape[1], device=device)
    var, mean = torch.var_mean(x, [d for d in range(x.dim()) if d != 1], correction=0)
    whole = backward(dy, x, mean, var, weight, y, 1e-5, training, [True] * 4)
    for mask in itertools.product([True, False], repeat=4):
        part = backward(dy, x, mean, var, weight, y, 1e-5, training, list(mask))
        for wanted, value, expected in zip(mask, part, whole, strict=True):
            if wanted:
                torch.testing.assert_close(value, expected, rtol=0, atol=0)
            else:
                assert value is None


@pytest.mark.parametrize("kind", ["rows, many channels", *PARTS])
def test_large_offset_keeps_the_variance(device, kind):
    x = make_input(kind, torch.float32, device) + 1e4
    reference = references.batch_norm(x, None, None, None, None, 1e-5)
    ours, native = (f(x, None, None, training=True) for f in (TF.batch_norm, F.batch_norm))
    assert_as_accurate(ours, native, reference)


@pytest.mark.parametrize("kind", PARTS)
def test_misleading_first_values(device, kind):
    """The first values, which all others of their part are taken relative to, lie far from them."""
    x = make_input(kind, torch.float32, device)
    x[0] = x[0] + 3e4
    reference = references.batch_norm(x, None, None, None, None, 1e-5)
    ours, native = (f(x, None, None, training=True) for f in (TF.batch_norm, F.batch_norm))
    assert_as_accurate(ours, native, reference)


@pytest.mark.parametrize("kind", ["rows", "planes, odd", *PARTS])
def test_constant_channel_gives_the_bias(device, kind):
    x = torch.full_like(make_input(kind, torch.float32, device), 0.1).requires_grad_()
    bias, var = torch.randn(x.shape[1], device=device), torch.ones(x.shape[1], device=device)
    y = TF.batch_norm(x, torch.zeros_like(var), var, None, bias, True, 1.0)
    expected = bias.view(-1, *[1] * (x.dim() - 2)).expand_as(y)
    torch.testing.assert_close(y.detach(), expected, rtol=0, atol=1e-6)
    assert not var.any()  # exactly: equal values have no variance, in however many parts
    y.backward(torch.randn_like(y))
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("kind", ["rows", "planes", "planes, odd parts", "channels_last, parts"])
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_not_finite_like_native(device, kind, value, training):
    x = make_input(kind, torch.float32, device)
    x[1, 1] = value
    x[0, 0].view(-1)[0] = value  # the first of all
    statistics = statistics_of(x)
    found = []
    for function in (TF.batch_norm, F.batch_norm):
        mean, var = (s.clone() for s in statistics)
        results = [function(x, mean, var, training=training), mean, var]
        if device.type == "cuda":  # whose native kernels find NaN for a mean that is infinite
            results = [torch.where(t.isfinite(), t, float("nan")) for t in results]
        found.append(results)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("kind", ["transposed", "strided", "expanded", "misaligned", "misaligned rows", "permuted 1d"])
def test_any_strides(device, kind):
    def make(*shape):
        return torch.randn(*shape, device=device)

    x = {
        "transposed": lambda: make(6, 5, 4, 8).transpose(0, 1),
        "strided": lambda: make(6, 5, 4, 8)[..., ::2],
        "expanded": lambda: make(1, 5, 1, 8).expand(6, 5, 4, 8),
        "misaligned": lambda: make(4 * 3 * 96 * 96 + 1)[1:].view(4, 3, 96, 96),
        "misaligned rows": lambda: make(2200 * 8 + 1)[1:].view(2200, 8),
        "permuted 1d": lambda: make(6, 9, 5).transpose(1, 2),
    }[kind]()
    dy, channels = make(1).expand(x.shape), x.shape[1]
    parameters, statistics = [make(2 * channels)[::2], None], statistics_of(x)
    pair = [run(f, x, parameters, statistics, True, dy) for f in (TF.batch_norm, F.batch_norm)]
    torch.testing.assert_close(pair[0]["y"], pair[1]["y"])
    torch.testing.assert_close(pair[0]["dx"], pair[1]["dx"], rtol=1e-4, atol=1e-5)
    promised = run(F.batch_norm, *map(_on_cpu, (x, parameters, statistics, True, dy)))
    assert pair[0]["y"].stride() == promised["y"].stride()
    mean, var = make(2 * channels)[::2], torch.ones(channels, device=device)
    torch.testing.assert_close(TF.batch_norm(x, mean, var), F.batch_norm(x, mean, var))


@pytest.mark.parametrize("kind", ["planes, odd", *PARTS])
def test_same_bits_every_time(device, kind, monkeypatch):
    x, found = make_input(kind, torch.float32, device), []
    residual, dy, parameters = torch.randn_like(x), torch.randn_like(x), parameters_of(x)
    for seed in ("1", "2"):  # of the emulation's order of blocks, warps and lanes
        monkeypatch.setenv("TILEWRIGHT_EMULATION_SEED", seed)
        fused = {"activation": "relu", "residual": residual}
        found.append(run(TF.batch_norm_act, x, parameters, [None, None], True, dy, **fused))
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("momentum", [0.1, 1.0])
def test_running_statistics_of_any_stride(device, dtype, momentum):
    channels = 300
    accumulation = torch.float64 if dtype == torch.float64 else torch.float32
    batch = [
        torch.randn(channels, device=device).to(accumulation),
        torch.rand(channels, device=device).to(accumulation),
    ]
    base = torch.randn(3 * channels, device=device).to(dtype)
    running = [base[::3], base[1::3]]
    unbiased = [batch[0].double(), batch[1].double() * 7 / 6]
    expected = [(1 - momentum) * r.double() + momentum * b for r, b in zip(running, unbiased, strict=True)]
    untouched = base[2::3].clone()
    torch.ops.tilewright.batch_norm_update_stats_(*running, *batch, 7, momentum)
    # A few roundings of the sum in `accumulation`, then one to dtype.
    bound = {"rtol": torch.finfo(dtype).eps, "atol": 4 * torch.finfo(accumulation).eps}
    torch.testing.assert_close(running, [e.to(dtype) for e in expected], **bound)
    assert torch.equal(base[2::3], untouched)
    before = base.clone()
    torch.ops.tilewright.batch_norm_update_stats_(*running, *batch, 0, momentum)
    assert torch.equal(base, before)


def test_training_between_forward_and_backward_leaves_the_gradient(device):
    """What evaluation saved is a copy, not the running statistics."""
    x = make_input("planes", torch.float32, device).requires_grad_()
    mean, var = statistics_of(x)
    expected = 3 / torch.sqrt(var.view(-1, 1, 1) + 1e-5).expand_as(x)
    y = TF.batch_norm(x, mean, var)
    TF.batch_norm(x.detach(), mean, var, training=True)
    y.backward(torch.full_like(x, 3.0))
    torch.testing.assert_close(x.grad, expected)


def test_saved_output_is_guarded(device):
    x = make_input("channels_last", torch.float32, device).requires_grad_()
    y = TF.batch_norm_act(x, None, None, training=True, activation="relu")
    with torch.no_grad():
        y.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, LAST], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_opcheck(device, activation, training, memory_format):
    ops = torch.ops.tilewright

    def make(*shape):
        return torch.randn(*shape, dtype=torch.float64, device=device)

    x, residual = (make(3, 2, 2, 2).contiguous(memory_format=memory_format) for _ in range(2))
    w, b, mean, var = make(2), make(2), make(2), make(2).square() + 1
    # The fake kernel takes an emulated tensor for one of the CPU's kernels, which save relu's bits.
    saves = activation != "relu" or device.type == "cuda"
    arguments = (x, w, b, *([None, None] if training else (mean, var)), 1e-5, residual, activation, saves)
    torch.library.opcheck(ops.batch_norm_forward.default, arguments)
    y, used_mean, used_var, _ = ops.batch_norm_forward.default(*arguments)
    arguments = (torch.randn_like(y), x, used_mean, used_var, w, y, 1e-5, training, [True] * 4)
    torch.library.opcheck(ops.batch_norm_backward.default, arguments)
    torch.library.opcheck(ops.batch_norm_update_stats_.default, (mean, var, used_mean, used_var, 12, 0.1))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("shape", [(0, 4), (0, 4, 3, 3), (3, 4, 0)], ids=str)
def test_empty(device, shape, training):
    x = torch.randn(shape, device=device)
    pair = [
        run(
            f,
            x,
            [torch.ones(4, device=device)] * 2,
            [torch.zeros(4, device=device), torch.ones(4, device=device)],
            training,
            torch.randn_like(x),
        )
        for f in (TF.batch_norm, F.batch_norm)
    ]
    torch.testing.assert_close(*pair)


def test_errors_name_the_argument(device):
    x, channel = torch.randn(3, 4, 5, device=device), torch.ones(4, device=device)
    forward, backward = torch.ops.tilewright.batch_norm_forward, torch.ops.tilewright.batch_norm_backward
    with pytest.raises(RuntimeError, match="residual must have input's shape"):
        forward(x, None, None, None, None, 1e-5, x[:2], "none", False)
    with pytest.raises(RuntimeError, match="mean and var must hold one"):
        backward(x, x, channel[:2], channel, None, None, 1e-5, True, [True] * 3 + [False])
    with pytest.raises(RuntimeError, match="where neither relu nor relu6 was applied"):
        backward(x, x, channel, channel, None, None, 1e-5, True, [True] * 4)
    with pytest.raises(RuntimeError, match="running_mean and running_var must be"):
        torch.ops.tilewright.batch_norm_update_stats_(channel[:2], channel, channel, channel, 3, 0.1)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_strides_that_suggest_another_format(device, training):
    x = torch.randn(5, 4, 3, device=device).permute(2, 0, 1)[None].requires_grad_()  # channels_last but for its strides
    mean, var = torch.randn(3, device=device), torch.rand(3, device=device) + 0.5
    dy = torch.randn(x.shape, device=device).contiguous(memory_format=torch.channels_last)
    (dx,) = torch.autograd.grad(TF.batch_norm(x, mean.clone(), var.clone(), training=training), x, dy)
    plain = x.detach().double().contiguous().requires_grad_()
    y = F.batch_norm(plain, mean.double(), var.double(), training=training)
    torch.testing.assert_close(dx.double(), torch.autograd.grad(y, plain, dy.double())[0], rtol=1e-5, atol=1e-5)
