"""Who computes a call: our kernels for plain dense floating-point tensors, native for everything else."""

import threading

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

import tilewright.functional as TF
from tilewright.testing import ops_called

FORWARD = "tilewright::layer_norm_forward"


def _calls_ours(x: Tensor) -> bool:
    return FORWARD in ops_called(lambda: TF.layer_norm(x, (8,)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_plain_tensors_are_ours(dtype):
    assert _calls_ours(torch.randn(4, 8, dtype=dtype))
    assert _calls_ours(torch.randn(4, 8, dtype=dtype, requires_grad=True))
    assert _calls_ours(torch.nn.Parameter(torch.randn(4, 8, dtype=dtype)))
    with torch.inference_mode():
        assert _calls_ours(torch.randn(4, 8, dtype=dtype))


class _Logged(Tensor):
    """A wrapper subclass with its own dispatch, as DTensor is: it knows aten's ops only."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> "_Logged":
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, dtype=inner.dtype, requires_grad=inner.requires_grad
        )

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    __torch_function__ = torch._C._disabled_torch_function_impl
    seen: list[str] = []  # noqa: RUF012

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        cls.seen.append(str(func))

        def unwrap(t):
            return t.inner if isinstance(t, cls) else t

        result = func(*tree_map(unwrap, args), **tree_map(unwrap, kwargs or {}))
        return tree_map(lambda t: cls(t) if isinstance(t, Tensor) else t, result)


def test_dispatching_subclass_sees_aten_ops():
    x = torch.randn(4, 8)
    y = TF.layer_norm(_Logged(x), (8,))
    assert isinstance(y, _Logged)
    assert _Logged.seen
    assert not any("tilewright" in name for name in _Logged.seen)
    torch.testing.assert_close(y.inner, F.layer_norm(x, (8,)))


class _Named(Tensor):
    """A subclass with __torch_function__: it must be asked about torch's function, by torch's name."""

    asked: list[object] = []  # noqa: RUF012

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.asked.append(func)
        return super().__torch_function__(func, types, args, kwargs or {})


def test_torch_function_subclass_is_asked_for_natives_function():
    y = TF.layer_norm(torch.randn(4, 8).as_subclass(_Named), (8,))
    assert isinstance(y, _Named)
    assert F.layer_norm in _Named.asked


def test_fake_and_meta_tensors_keep_shape_and_strides():
    from torch._subclasses.fake_tensor import FakeTensorMode

    y = TF.layer_norm(torch.empty(4, 8, device="meta"), (8,))
    assert y.device.type == "meta"
    assert y.shape == (4, 8)
    with FakeTensorMode():
        assert TF.layer_norm(torch.empty(4, 8), (8,)).shape == (4, 8)


def test_other_layouts_and_dtypes_give_natives_answer_or_error():
    for make in (lambda: torch.randint(5, (4, 8)), lambda: torch.randn(4, 8, dtype=torch.complex64)):
        with pytest.raises(Exception) as native:  # noqa: PT011
            F.layer_norm(make(), (8,))
        with pytest.raises(native.type):
            TF.layer_norm(make(), (8,))
    negative = torch.randn(4, 8, dtype=torch.complex64).conj().imag
    assert negative.is_neg()
    torch.testing.assert_close(TF.layer_norm(negative, (8,)), F.layer_norm(negative, (8,)))


def test_python_threads_may_call_at_once():
    x = torch.randn(200, 300)
    expected = TF.layer_norm(x, (300,))
    wrong = []

    def work() -> None:
        for _ in range(50):
            if not torch.equal(TF.layer_norm(x, (300,)), expected):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


class _Normalised(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Tensor:
        generator = torch.Generator().manual_seed(index)
        return TF.layer_norm(torch.randn(300, 300, generator=generator), (300,))


def test_data_loader_workers_after_fork():
    TF.layer_norm(torch.randn(500, 500), (500,))  # threads are up before the fork
    loader = torch.utils.data.DataLoader(_Normalised(), num_workers=2, batch_size=2, timeout=60)
    batches = torch.cat(list(loader))
    for index in range(8):
        torch.testing.assert_close(batches[index], _Normalised()[index])


NONE_CALLS = {
    "layer_norm": lambda f: f.layer_norm(None, (3,)),
    "dropout": lambda f: f.dropout(None),
    "linear": lambda f: f.linear(None, torch.ones(2, 2)),
    "conv2d": lambda f: f.conv2d(None, None),
    "attention": lambda f: f.scaled_dot_product_attention(None, None, None),
}


@pytest.mark.parametrize("name", NONE_CALLS)
def test_none_for_a_tensor_is_a_type_error(name):
    for functional in (F, TF):
        with pytest.raises(TypeError):
            NONE_CALLS[name](functional)


def test_layer_norm_refuses_the_mixed_dtypes_that_native_refuses():
    cases = [(torch.float32, torch.float64), (torch.float32, torch.bfloat16), (torch.bfloat16, torch.float16)]
    for dtype, parameter_dtype in cases:
        x, weight = torch.randn(4, 8).to(dtype), torch.randn(8).to(parameter_dtype)
        for function in (F.layer_norm, TF.layer_norm):
            with pytest.raises(RuntimeError):
                function(x, (8,), weight)


def test_running_statistics_count_no_version_as_natives_do_not():
    for functional in (F, TF):
        mean, var = torch.zeros(3), torch.ones(3)
        functional.batch_norm(torch.randn(5, 3), mean, var, training=True)
        assert mean._version == 0
        assert var._version == 0


@pytest.mark.parametrize(
    "name", ["matmul", "linear", "conv2d", "layer_norm", "batch_norm", "dropout", "linear_act", "attention"]
)
def test_tangents_of_incoming_gradients_pass(name):
    x, w = torch.randn(4, 4, requires_grad=True), torch.randn(4, 4)
    functions = {
        "matmul": lambda: TF.matmul(x, w),
        "linear": lambda: TF.linear(x, w),
        "conv2d": lambda: TF.conv2d(x[None, None], w[None, None, :3, :3]),
        "layer_norm": lambda: TF.layer_norm(x, (4,)),
        "batch_norm": lambda: TF.batch_norm(x, None, None, training=True),
        "dropout": lambda: TF.dropout(x),
        "linear_act": lambda: TF.linear_act(x, w),
        "attention": lambda: TF.scaled_dot_product_attention(x, w, w),
    }
    y = functions[name]()
    with torch.autograd.forward_ad.dual_level():
        direction = torch.randn_like(y)
        dual = torch.autograd.forward_ad.make_dual(torch.ones_like(y), direction)
        (gradient,) = torch.autograd.grad(y, x, dual, retain_graph=True)
        tangent = torch.autograd.forward_ad.unpack_dual(gradient).tangent
    assert not gradient.requires_grad
    # A gradient is linear in the one that comes in.
    torch.testing.assert_close(tangent, torch.autograd.grad(y, x, direction)[0], rtol=1e-4, atol=1e-5)
