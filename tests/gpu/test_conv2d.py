"""conv2d's Triton kernels against float64 math and native: on a GPU, or in Triton's interpreter."""

import itertools

import pytest
import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

import tilewright.functional as TF
from tests.activations import ACTIVATIONS
from tilewright.testing import assert_as_accurate
from tilewright.triton import conv2d, conv2d_product, conv2d_schedule, conv2d_weight_gradient
from tilewright.triton.variants import architecture_of, observed

from ..conv2d_cases import FORMATS, reference, run

# name: input, weight, options. Both formats, each with all the gradients, so small: edges of tiles, taps and classes.
CASES = {
    "one of everything": ((1, 1, 1, 1), (1, 1, 1, 1), {}),
    "3x3": ((2, 5, 9, 11), (7, 5, 3, 3), {"padding": 1}),
    "aligned channels": ((2, 16, 7, 7), (24, 16, 3, 3), {"padding": 1}),
    "deep steps": ((1, 72, 5, 6), (64, 72, 3, 3), {"padding": 1}),
    "stem": ((1, 3, 17, 19), (16, 3, 7, 7), {"padding": 3, "stride": 2}),
    "1x1": ((2, 16, 6, 7), (40, 16, 1, 1), {}),
    "1x1 stride 2": ((2, 8, 9, 10), (32, 8, 1, 1), {"stride": 2}),
    "1x1 with padding": ((1, 4, 5, 5), (3, 4, 1, 1), {"padding": 1}),
    "5x5 kernel on one channel": ((2, 1, 12, 12), (6, 1, 5, 5), {}),
    "uneven strides": ((2, 4, 13, 17), (5, 4, 3, 4), {"padding": (1, 2), "stride": (3, 2)}),
    "stride 2": ((2, 16, 9, 8), (16, 16, 3, 3), {"padding": 1, "stride": 2}),
    "dilation and stride": ((1, 4, 15, 16), (5, 4, 3, 2), {"padding": 2, "dilation": (2, 3), "stride": (2, 2)}),
    "common factor": ((1, 3, 17, 17), (4, 3, 3, 3), {"dilation": 4, "stride": 6, "padding": 4}),
    "stride beyond the kernel": ((2, 3, 14, 15), (4, 3, 2, 2), {"stride": 5}),
    "stride beyond the image": ((2, 3, 3, 2), (4, 3, 1, 1), {"stride": 7}),
    "kernel beyond the image": ((2, 3, 2, 2), (4, 3, 5, 5), {"padding": 2}),
    "3x200": ((1, 3, 3, 200), (4, 3, 3, 3), {"padding": (0, 1)}),
    "513 channels": ((1, 513, 4, 4), (8, 513, 3, 3), {"padding": 1}),
    "groups": ((2, 40, 7, 7), (60, 20, 3, 3), {"padding": 1, "groups": 2}),
    "small groups": ((2, 36, 6, 6), (24, 3, 3, 3), {"padding": 1, "groups": 12}),
    "small aligned groups": ((1, 32, 6, 6), (32, 4, 3, 3), {"padding": 1, "groups": 8, "stride": 2}),
    "depthwise multiplier": ((2, 6, 9, 9), (18, 1, 3, 3), {"padding": 1, "groups": 6, "stride": 2}),
}


def make(device: torch.device, dtype: torch.dtype, case: str, memory_format: torch.memory_format) -> tuple:
    x_shape, weight_shape, options = CASES[case]
    x = torch.randn(x_shape, dtype=dtype, device=device).contiguous(memory_format=memory_format)
    weight = torch.randn(weight_shape, dtype=dtype, device=device).contiguous(memory_format=memory_format)
    return x, weight, torch.randn(weight_shape[0], dtype=dtype, device=device), options


def compare(x: Tensor, weight: Tensor, bias: Tensor | None, options: dict) -> None:
    """Output and gradients as accurate as native's, in its strides, by our kernels and by no variant unlisted."""
    native, dy = run(F.conv2d, [x, weight, bias], None, **options)
    with observed() as launched:
        ours, _ = run(TF.conv2d, [x, weight, bias], dy, **options)
    kernels = {variant.kernel.__name__ for variant in launched}
    # On a card depthwise convolutions never come here, but go to the CUDA C++ library.
    if not (x.is_cuda and weight.shape[1] == 1 and options.get("groups", 1) > 1):
        assert {"product", "weight_sums", "add_chunks"} <= kernels
    assert set(launched) <= set(conv2d.variants(architecture_of(x.device)))
    wide = [None if t is None else t.double() for t in (x, weight, bias)]
    exact, _ = run(reference, wide, dy, **options)
    # Of a card's native kernels some ignore the memory format, so the CPU's say what is promised.
    promised = run(F.conv2d, [None if t is None else t.cpu() for t in (x, weight, bias)], dy.cpu(), **options)[0]
    for name, a, b, c, d in zip(("y", "dx", "dweight", "dbias"), ours, native, exact, promised, strict=False):
        assert_as_accurate(a, b, c, what=name)
        assert a.stride() == d.stride() or 1 in a.shape, f"{name}: strides {a.stride()}, native {d.stride()}"


@pytest.fixture
def no_depthwise(monkeypatch):
    """Depthwise convolutions by the grouped kernel, whether the CUDA C++ library is there or not."""
    monkeypatch.setattr(conv2d, "_depthwise_op", lambda *_: None)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("case", CASES)
def test_forward_and_backward(device, gpu_dtypes, case, memory_format, no_depthwise):
    for dtype in gpu_dtypes:
        compare(*make(device, dtype, case, FORMATS[memory_format]))


@pytest.fixture
def _tf32_for_rnns_only():
    conv = torch.backends.cudnn.conv
    before, conv.fp32_precision = conv.fp32_precision, "ieee"
    yield
    conv.fp32_precision = before


@pytest.mark.usefixtures("_tf32_for_rnns_only")
def test_float32_without_tf32(device):
    for case in ("aligned channels", "stem", "small groups", "stride 2"):
        compare(*make(device, torch.float32, case, torch.channels_last))


def test_mixed_memory_formats(device):
    for kinds in itertools.permutations(FORMATS.values()):
        x, weight, _, options = make(device, torch.float32, "uneven strides", kinds[0])
        compare(x, weight.contiguous(memory_format=kinds[1]), None, options)


@pytest.fixture
def small_tiles(monkeypatch):
    """The tables' smallest tiles and short chunks: many tiles in every direction on little data."""
    monkeypatch.setattr(
        conv2d_schedule, "choose_tile", lambda _, tiles, *rest: [tile for tile in tiles if tile.depth == rest[-1]][-1]
    )
    monkeypatch.setattr(conv2d_schedule, "choose_weight_tile", lambda tiles, *_: tiles[-1])
    for plan in ("plan_product", "plan_weight"):  # not those remembered
        monkeypatch.setattr(conv2d_schedule, plan, getattr(conv2d_schedule, plan).__wrapped__)
    monkeypatch.setattr(conv2d_schedule, "split_pixels", lambda _, __, pixels, ___: (64, -(-pixels // 64)))
    monkeypatch.setattr(conv2d_schedule, "split_rows", lambda pixels, *_: (64, -(-pixels // 64)))


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(
    ("x_shape", "weight_shape", "options"),
    [
        ((3, 72, 5, 9), (72, 72, 2, 2), {"padding": 1}),
        ((4, 72, 11, 11), (72, 72, 2, 1), {"stride": 2, "dilation": (1, 2)}),
        ((2, 7, 9, 9), (70, 7, 3, 3), {"stride": (2, 1)}),
        ((2, 60, 6, 6), (40, 3, 3, 3), {"padding": 1, "groups": 20}),
    ],
    ids=["taps", "taps, strided", "flat", "merged"],
)
def test_many_tiles(device, x_shape, weight_shape, options, memory_format, small_tiles):
    x = torch.randn(x_shape, device=device).contiguous(memory_format=FORMATS[memory_format])
    weight, bias = torch.randn(weight_shape, device=device), torch.randn(weight_shape[0], device=device)
    native, dy = run(F.conv2d, [x, weight, bias], None, **options)
    ours, _ = run(TF.conv2d, [x, weight, bias], dy, **options)
    again, _ = run(TF.conv2d, [x, weight, bias], dy, **options)
    exact, _ = run(reference, [x.double(), weight.double(), bias.double()], dy, **options)
    for name, a, b, c, d in zip(("y", "dx", "dweight", "dbias"), ours, native, exact, again, strict=True):
        assert_as_accurate(a, b, c, what=name)
        assert torch.equal(a, d), f"{name} is not the same twice"


@pytest.mark.parametrize("filters", [16, 10])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_fused(device, gpu_dtypes, memory_format, filters):
    for dtype, (activation, act) in itertools.product(gpu_dtypes, ACTIVATIONS.items()):
        x = torch.randn(2, 8, 5, 6, dtype=dtype, device=device).contiguous(memory_format=FORMATS[memory_format])
        weight, bias = (
            torch.randn(filters, 8, 3, 3, dtype=dtype, device=device),
            torch.randn(filters, dtype=dtype, device=device),
        )
        residual = torch.randn(2, filters, 5, 6, dtype=dtype, device=device)

        def native(x, weight, bias, residual, act=act):
            return act(F.conv2d(x, weight, bias, padding=1) + residual)

        def exact(x, weight, bias, residual, act=act):
            return act(reference(x, weight, bias, padding=1) + residual.double())

        def ours(x, weight, bias, residual, activation=activation):
            return TF.conv2d_act(x, weight, bias, padding=1, activation=activation, residual=residual)

        leaves = [x, weight, bias, residual]
        expected, dy = run(native, leaves, None)
        results, _ = run(ours, leaves, dy)
        exacts, _ = run(exact, [t.double() for t in leaves], dy)
        for name, a, b, c in zip(("y", "dx", "dweight", "dbias", "dresidual"), results, expected, exacts, strict=True):
            # Native rounds between its ops, we do once: where relu's input is near zero, signs may differ.
            if dtype == torch.float32 or name == "y":
                assert_as_accurate(a, b, c, what=f"{activation}: {name}")
        inference = TF.conv2d_act(x, weight, None, activation=activation)
        assert_as_accurate(inference, act(F.conv2d(x, weight)), act(reference(x, weight, None)), what=activation)


def test_unbatched(device):
    x, weight, bias = (torch.randn(s, device=device) for s in ((4, 9, 9), (6, 4, 3, 3), (6,)))
    native, dy = run(F.conv2d, [x, weight, bias], None)
    ours, _ = run(TF.conv2d, [x, weight, bias], dy)
    for a, b in zip(ours, native, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def _strided_inputs(device: torch.device) -> dict[str, Tensor]:
    base = torch.randn(2, 16, 6, 8, device=device)
    last = base.contiguous(memory_format=torch.channels_last)
    return {
        "every second column": base[..., ::2],
        "some channels of channels_last": last[:, 2:10],
        "cropped channels_last": last[:, :, 1:8, 2:9],
        "every second pixel of channels_last": last[:, :, ::2, ::2],
        "expanded batch": torch.randn(1, 8, 6, 8, device=device).expand(3, -1, -1, -1),
        "expanded channels": torch.randn(3, 1, 6, 8, device=device).expand(-1, 8, -1, -1),
        "misaligned": torch.randn(2 * 8 * 36 + 1, device=device)[1:].view(2, 8, 6, 6),
        "misaligned channels_last": torch.randn(2 * 8 * 36 + 1, device=device)[1:].view(2, 6, 6, 8).permute(0, 3, 1, 2),
    }


@pytest.mark.parametrize("kind", _strided_inputs(torch.device("cpu")))
def test_strided_tensors(device, kind):
    x = _strided_inputs(device)[kind]
    weights = (
        torch.randn(8, x.shape[1], 3, 3, device=device),
        torch.randn(x.shape[1], 8, 3, 3, device=device).transpose(0, 1),
        torch.randn(8, 1, 3, 3, device=device).expand(-1, x.shape[1], -1, -1),
    )
    for weight in weights:
        ours, native = TF.conv2d(x, weight), F.conv2d(x, weight)
        torch.testing.assert_close(ours, native, rtol=1e-4, atol=1e-3)
        assert ours.stride() == native.stride()
    dy = torch.randn(native.shape[1:], device=device).expand_as(native)  # as it comes from sum() and the like
    leaves = [x.clone().requires_grad_(), weights[0].requires_grad_()]
    grads = [torch.autograd.grad(f.conv2d(*leaves), leaves, dy) for f in (TF, F)]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-3)


def test_strided_residual_and_bias(device):
    x, weight = torch.randn(2, 4, 6, 6, device=device), torch.randn(8, 4, 3, 3, device=device)
    bias, residual = torch.randn(16, device=device)[::2], torch.randn(2, 1, 4, 1, device=device)
    ours = TF.conv2d_act(x, weight, bias, activation="silu", residual=residual)
    torch.testing.assert_close(ours, F.silu(F.conv2d(x, weight, bias) + residual), rtol=1e-4, atol=1e-4)


def test_only_the_wanted_gradients(device):
    x, weight, bias = (torch.randn(s, device=device) for s in ((2, 4, 6, 6), (4, 4, 3, 3), (4,)))
    kernels = ({"product"}, {"weight_sums", "add_chunks"}, {"column_sums", "add_chunks"})
    for wanted in range(3):
        leaves = [x.clone(), weight.clone(), bias.clone()]
        leaves[wanted].requires_grad_()
        y = TF.conv2d(*leaves)
        with observed() as launched:
            grad = torch.autograd.grad(y.square().sum(), leaves[wanted])[0]
        assert {variant.kernel.__name__ for variant in launched} == kernels[wanted]
        native = torch.autograd.grad(F.conv2d(*leaves).square().sum(), leaves[wanted])[0]
        torch.testing.assert_close(grad, native, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_zero_batch(device, memory_format):
    x = torch.randn(0, 4, 8, 8, device=device).contiguous(memory_format=FORMATS[memory_format])
    leaves = [x, torch.randn(6, 4, 3, 3, device=device), torch.randn(6, device=device)]
    native, dy = run(F.conv2d, leaves, None)
    ours, _ = run(TF.conv2d, leaves, dy)
    for a, b in zip(ours, native, strict=True):
        assert torch.equal(a, b)
        assert a.stride() == b.stride()


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("case", ["3x3", "aligned channels", "small groups", "small aligned groups"])
def test_not_finite_stays_in_its_window_and_group(device, case, value):
    x, weight, bias, options = make(device, torch.float32, case, torch.channels_last)
    x[0, 2, 3, 4] = value
    native, dy = run(F.conv2d, [x, weight, bias], None, **options)
    dy[0, 3, 1, 2] = value
    native, _ = run(F.conv2d, [x, weight, bias], dy, **options)
    ours, _ = run(TF.conv2d, [x, weight, bias], dy, **options)
    for name, a, b in zip(
        ("y", "dx", "dbias"), (ours[0], ours[1], ours[3]), (native[0], native[1], native[3]), strict=True
    ):
        torch.testing.assert_close(a, b, equal_nan=True, rtol=1e-3, atol=1e-3, msg=lambda m, name=name: f"{name}: {m}")


def test_fake_kernels_tell_the_strides(device):
    for case, memory_format in itertools.product(("3x3", "stride 2", "1x1"), FORMATS.values()):
        x, weight, bias, options = make(device, torch.float32, case, memory_format)
        filled = {"stride": 1, "padding": 0, "dilation": 1} | options
        pairs = [v if isinstance(v, tuple) else (v, v) for v in (filled[k] for k in ("stride", "padding", "dilation"))]
        forward = (x, weight, bias, *pairs, 1, "gelu", True, None)
        torch.library.opcheck(torch.ops.tilewright.conv2d_forward.default, forward, test_utils="test_faketensor")
        dy = torch.randn_like(F.conv2d(x, weight, **options))
        backward = (dy, x, weight, *pairs, 1, [True, True, True])
        torch.library.opcheck(torch.ops.tilewright.conv2d_backward.default, backward, test_utils="test_faketensor")


@pytest.mark.parametrize(
    "change",
    [
        {"weight": torch.zeros(4, 3, 3, 3)},
        {"weight": torch.zeros(4, 4, 9, 3)},
        {"bias": torch.zeros(5)},
        {"stride": (0, 1)},
        {"padding": (-1, 0)},
        {"dilation": (1, 0)},
        {"groups": 0},
        {"groups": 3},
        {"activation": "tanh"},
        {"residual": torch.zeros(1, 4, 3, 3)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_bad_arguments_of_the_raw_op(device, change):
    arguments = {
        "input": torch.zeros(1, 4, 6, 6), "weight": torch.zeros(4, 4, 3, 3), "bias": None, "stride": (1, 1),
        "padding": (0, 0), "dilation": (1, 1), "groups": 1, "activation": "none", "saves": False, "residual": None,
    } | change  # fmt: skip
    on_device = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in arguments.items()}
    with pytest.raises(RuntimeError, match="conv2d"):
        torch.ops.tilewright.conv2d_forward(**on_device)


def test_depthwise_goes_to_the_op_that_is_there(device, monkeypatch):
    library = torch.library.Library("tilewright_conv2d_test", "DEF")
    library.define("depthwise(Tensor input, Tensor weight, SymInt[2] stride, str activation) -> (Tensor, Tensor)")
    calls = []

    def depthwise(input, weight, stride, activation):
        calls.append((stride, activation))
        return input + 1, weight + 1

    library.impl("depthwise", depthwise, torch._C._dispatch_key_for_device(device.type))
    op = torch.ops.tilewright_conv2d_test.depthwise.default
    monkeypatch.setattr(conv2d, "_depthwise_op", lambda name, _: op if name == "depthwise_forward" else None)
    x, weight = torch.randn(1, 4, 5, 5, device=device), torch.randn(4, 1, 3, 3, device=device)
    forward = torch.ops.tilewright.conv2d_forward
    output, _ = forward(x, weight, None, (2, 2), (0, 0), (1, 1), 4, "silu", False, None)
    assert torch.equal(output, x + 1)
    assert calls == [([2, 2], "silu")]
    TF.conv2d(x, torch.randn(4, 4, 3, 3, device=device))
    assert len(calls) == 1


@triton.jit
def _classes(out, residue, stride, padding, dilation, kernel, spacing):
    first, count = conv2d_product.first_and_count(residue, stride, padding, dilation, kernel, spacing)
    tl.store(out, first)
    tl.store(out + 1, count)


def test_classes_on_the_device(device):
    out = torch.empty(2, dtype=torch.int32, device=device)
    for stride, dilation, kernel, padding in itertools.product((1, 2, 3, 4), (1, 2, 4, 5), (1, 2, 5), (0, 3)):
        for residue in {0, stride // 2, stride - 1}:
            spacing = conv2d_schedule.tap_spacing(stride, dilation)
            _classes[(1,)](out, residue, stride, padding, dilation, kernel, spacing)
            expected = conv2d_schedule.class_taps(residue, stride, padding, dilation, kernel)
            assert tuple(out.tolist()) == expected


@triton.jit
def _steps(out, step_images, step_rows, step_columns, height, width, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    image, y, x = conv2d_weight_gradient.step_pixels(
        at // (height * width), at // width % height, at % width, step_images, step_rows, step_columns, height, width
    )
    tl.store(out + at, (image * height + y) * width + x)


def test_pixel_steps_on_the_device(device):
    out = torch.empty(64, dtype=torch.int32, device=device)
    for height, width, depth in itertools.product((1, 2, 5), (1, 3, 7), (1, 16, 64)):
        _steps[(1,)](out, *conv2d_schedule.pixel_step(depth, height, width), height, width, SIZE=64)
        assert out.tolist() == [at + depth for at in range(64)]
