"""batch_norm and batch_norm_act against float64 math and against native. Hard inputs: test_batch_norm_accuracy.py."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import tilewright.functional as TF
from tilewright.testing import DTYPES, assert_as_accurate, max_error, ops_called, references

from .activations import ACTIVATIONS, PASSES, reach

LAST, LAST_3D = torch.channels_last, torch.channels_last_3d
# Both kernel layouts: less than a vector, tails, several blocks of 4096 (planes) or of rows, more than one tile of 256
# channels, one channel, one value per plane.
SHAPES = {
    "rows": ((5, 3), None),
    "rows, tail": ((70, 33), None),
    "rows, two tiles": ((130, 300), None),
    "planes 1d": ((4, 3, 7), None),
    "planes": ((2, 5, 6, 7), None),
    "channels_last": ((2, 5, 6, 7), LAST),
    "channels_last, blocks": ((9, 4, 33, 31), LAST),
    "planes, blocks": ((2, 3, 70, 75), None),
    "planes 3d": ((3, 17, 4, 5, 6), None),
    "channels_last_3d": ((3, 17, 4, 5, 6), LAST_3D),
    "one channel": ((2, 1, 30, 150), None),
    "one pixel": ((3, 4, 1, 1), LAST),
}


def make_input(kind: str, dtype: torch.dtype) -> Tensor:
    shape, memory_format = SHAPES[kind]
    x = (torch.randn(shape) * 2 + 1).to(dtype)
    return x if memory_format is None else x.contiguous(memory_format=memory_format)


def _statistics(channels: int, dtype: torch.dtype) -> list[Tensor]:
    return [torch.randn(channels).to(dtype), (torch.rand(channels) + 0.5).to(dtype)]


def _native_act(*arguments, activation: str, residual: Tensor | None) -> Tensor:
    y = F.batch_norm(*arguments)
    return ACTIVATIONS[activation](y if residual is None else y + residual)


def run(function, x, parameters, statistics, training, dy, **fused) -> dict[str, Tensor]:
    """Output, gradients and running statistics after a call."""

    def leaf(t):
        return None if t is None else t.detach().clone().requires_grad_()

    x, weight, bias = leaf(x), *[leaf(p) for p in parameters]
    mean, var = [None if s is None else s.clone() for s in statistics]
    if "residual" in fused:
        fused["residual"] = leaf(fused["residual"])
    y = function(x, mean, var, weight, bias, training, 0.1, 1e-5, **fused)
    y.backward(dy.to(y.dtype))
    found = {"y": y.detach(), "dx": x.grad, "running_mean": mean, "running_var": var}
    found |= {name: t.grad for name, t in (("dweight", weight), ("dbias", bias)) if t is not None}
    if fused.get("residual") is not None:
        found["dresidual"] = fused["residual"].grad
    return {name: t for name, t in found.items() if t is not None}


def _compare(ours: dict[str, Tensor], native: dict[str, Tensor], reference: dict[str, Tensor], dy: Tensor) -> None:
    for name, value in ours.items():
        if value.dtype == torch.float64:  # the reference is no more exact than either
            torch.testing.assert_close(value, reference[name], msg=lambda text, name=name: f"{name}: {text}")
        elif name in ("dweight", "dbias") and value.dtype == torch.float32:
            # Terms cancel, so the bar is a rounding of the sum of their sizes (|xhat| is about 1), not of the result.
            terms = dy.double().abs().sum().item() / value.numel()
            assert max_error(value, reference[name]) <= 2 * max_error(native[name], reference[name]) + 2**-23 * terms
        else:
            assert_as_accurate(value, native[name], reference[name], what=name)
        assert value.stride() == native[name].stride(), name


def _wide(tensors) -> list[Tensor | None]:
    return [None if t is None else t.double() for t in tensors]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", SHAPES)
def test_forward_backward_and_running_statistics(isa, kind, dtype, training):
    x = make_input(kind, dtype)
    channels = x.shape[1]
    parameters, statistics = list(torch.randn(2, channels).to(dtype)), _statistics(channels, dtype)
    dy = torch.randn_like(x)
    ours = run(TF.batch_norm, x, parameters, statistics, training, dy)
    native = run(F.batch_norm, x, parameters, statistics, training, dy)
    reference = run(F.batch_norm, x.double(), _wide(parameters), _wide(statistics), training, dy.double())
    assert ours.keys() == native.keys()
    _compare(ours, native, reference, dy)


@pytest.mark.parametrize("residual", [True, False], ids=["residual", "plain"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", ["rows, tail", "planes, blocks", "channels_last"])
def test_fused(isa, kind, activation, training, residual):
    for dtype in (torch.float32, torch.bfloat16):
        x = make_input(kind, dtype)
        parameters = list((reach(activation) * torch.randn(2, x.shape[1])).to(dtype))
        statistics = _statistics(x.shape[1], dtype)
        dy, skip = torch.randn_like(x), torch.randn_like(x) if residual else None
        fused = {"activation": activation, "residual": skip}
        ours = run(TF.batch_norm_act, x, parameters, statistics, training, dy, **fused)
        native = run(_native_act, x, parameters, statistics, training, dy, **fused)
        wide = {"activation": activation, "residual": None if skip is None else skip.double()}
        reference = run(_native_act, x.double(), _wide(parameters), _wide(statistics), training, dy.double(), **wide)
        names = ["y", "running_mean", "running_var"]
        if activation not in PASSES:
            names.append("dx")
        for name in names:
            assert_as_accurate(ours[name], native[name], reference[name], what=name)
        if activation in PASSES:
            # At a kink a rounding of y is a jump of the gradient: it belongs to the y that was given out.
            passes = PASSES[activation](ours["y"])
            assert activation != "relu6" or (ours["y"] == 6).any()
            gradient = torch.where(passes, dy, 0.0)
            if residual:
                torch.testing.assert_close(ours["dresidual"], gradient, rtol=0, atol=0)
            plain = run(TF.batch_norm, x, parameters, statistics, training, gradient)
            for name in ("dx", "dweight", "dbias"):
                torch.testing.assert_close(ours[name], plain[name], rtol=0, atol=0)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(1, 9), min_size=2, max_size=5),
    training=st.booleans(),
    last=st.booleans(),
    affine=st.sampled_from(["both", "weight", "bias", "none"]),
    tracked=st.booleans(),
    low=st.sampled_from([None, torch.bfloat16, torch.float16]),
    stride=st.sampled_from([1, 2]),
    seed=st.integers(0, 99),
)
def test_like_native_for_any_arguments(shape, training, last, affine, tracked, low, stride, seed):
    torch.manual_seed(seed)
    channels, dtype = shape[1], low or torch.float32
    x = (
        torch.randn([*shape[:-1], shape[-1] * stride])[..., ::stride].to(dtype)
        if stride > 1
        else torch.randn(shape).to(dtype)
    )
    channels = x.shape[1]
    if last and x.dim() in (4, 5):
        x = x.contiguous(memory_format=LAST if x.dim() == 4 else LAST_3D)
    if x.numel() // channels < 2:
        x = torch.cat([x, x + 1])
    weight = torch.randn(channels) if affine in ("both", "weight") else None
    bias = torch.randn(channels) if affine in ("both", "bias") else None
    statistics = _statistics(channels, torch.float32) if tracked or not training else [None, None]
    dy = torch.randn_like(x)
    ours = run(TF.batch_norm, x, [weight, bias], statistics, training, dy)
    native = run(F.batch_norm, x, [weight, bias], statistics, training, dy)
    reference = run(F.batch_norm, x.double(), _wide([weight, bias]), _wide(statistics), training, dy.double())
    assert ours.keys() == native.keys()
    if dtype != torch.float32:
        _compare(ours, native, reference, dy)
    for name, value in ours.items():
        # Two nearly equal values in a channel leave few digits to any float32 formula.
        slack = 1e-3 * max(1.0, reference[name].abs().max().item())
        if dtype == torch.float32:
            torch.testing.assert_close(value.double(), reference[name], rtol=1e-3, atol=slack)
        # The stride of a dimension of one element addresses nothing, and native's depends on the path it took.
        steps = [
            [step for step, size in zip(t.stride(), t.shape, strict=True) if size > 1] for t in (value, native[name])
        ]
        assert steps[0] == steps[1]
        assert value.dtype == native[name].dtype


def test_own_kernels_do_the_work():
    x, mean, var = torch.randn(4, 8, 5, 5, requires_grad=True), torch.zeros(8), torch.ones(8)
    called = ops_called(lambda: TF.batch_norm(x, mean, var, training=True).sum().backward())
    assert {"forward", "backward", "update_stats_"} <= {name.removeprefix("tilewright::batch_norm_") for name in called}
    assert not any("native_batch_norm" in name for name in called)
    with torch.device("cpu"):  # a function mode is no reason to leave our kernels
        called = ops_called(lambda: TF.batch_norm_act(x, mean, var))
    assert "tilewright::batch_norm_forward" in called


@pytest.mark.parametrize("kind", ["planes, blocks", "channels_last, blocks"])
def test_misleading_sample(isa, kind):
    """The first values of every block, from which its mean is estimated, lie far from all others."""
    x = make_input(kind, torch.float32)
    flat = (
        x.permute(0, 2, 3, 1).flatten(0, 2) if x.is_contiguous(memory_format=LAST) else x.flatten(2).transpose(1, 2)[0]
    )
    flat[:40] += 3e4
    reference = references.batch_norm(x, None, None, None, None, 1e-5)
    assert_as_accurate(
        TF.batch_norm(x, None, None, training=True), F.batch_norm(x, None, None, training=True), reference
    )


@pytest.mark.parametrize("kind", ["rows", "planes", "channels_last"])
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_not_finite_like_native(isa, kind, value, training):
    x = make_input(kind, torch.float32)
    x[1, 1] = value
    statistics = [_statistics(x.shape[1], torch.float32)] * 2
    (m1, v1), (m2, v2) = ([s.clone() for s in pair] for pair in statistics)
    y1 = TF.batch_norm(x, m1, v1, training=training)
    y2 = F.batch_norm(x, m2, v2, training=training)
    torch.testing.assert_close([y1, m1, v1], [y2, m2, v2], equal_nan=True)


def _strided_inputs() -> dict[str, Tensor]:
    base = torch.randn(6, 5, 4, 8)
    return {
        "transposed": base.transpose(0, 1),
        "strided": base[..., ::2],
        "expanded": torch.randn(1, 5, 1, 8).expand(6, 5, 4, 8),
        "misaligned": torch.randn(6 * 5 * 4 * 8 + 1)[1:].view(6, 5, 4, 8),
        "permuted 1d": torch.randn(6, 9, 5).transpose(1, 2),
    }


@pytest.mark.parametrize("kind", _strided_inputs())
def test_strided_inputs_and_gradients(isa, kind):
    x = _strided_inputs()[kind]
    dy, channels = torch.randn(1).expand(x.shape), x.shape[1]
    parameters, statistics = [torch.randn(2 * channels)[::2], None], _statistics(channels, x.dtype)
    pair = [run(f, x, parameters, statistics, True, dy) for f in (TF.batch_norm, F.batch_norm)]
    torch.testing.assert_close(pair[0]["y"], pair[1]["y"])
    torch.testing.assert_close(pair[0]["dx"], pair[1]["dx"], rtol=1e-4, atol=1e-5)
    assert pair[0]["y"].stride() == pair[1]["y"].stride()
    mean, var = torch.randn(2 * channels)[::2], torch.ones(channels)
    torch.testing.assert_close(TF.batch_norm(x, mean, var), F.batch_norm(x, mean, var))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("shape", [(0, 4), (0, 4, 3, 3), (3, 4, 0)])
def test_empty(shape, training):
    x, dy = torch.randn(shape), torch.randn(shape)
    parameters, statistics = list(torch.randn(2, shape[1])), _statistics(shape[1], torch.float32)
    ours, native = (run(f, x, parameters, statistics, training, dy) for f in (TF.batch_norm, F.batch_norm))
    torch.testing.assert_close(ours, native)
    assert ours["y"].stride() == native["y"].stride()


def test_no_channels():
    x = torch.randn(3, 0, 2)  # forward only: native's backward fails
    for training in (True, False):
        y = TF.batch_norm(x, torch.zeros(0), torch.ones(0), training=training)
        assert y.shape == F.batch_norm(x, torch.zeros(0), torch.ones(0), training=training).shape
