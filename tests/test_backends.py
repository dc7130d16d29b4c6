"""Who serves an op on a GPU, on a machine without one: what Python decides and what the C++ side makes of it."""

import logging
import os
import subprocess
import sys
import warnings

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import tilewright
import tilewright.functional as TF
from tilewright import _C, _backends
from tilewright.triton import register

OPS = {*_backends.CUDA_OPS, *_backends.TRITON_OPS}


@pytest.fixture
def gpu(monkeypatch):
    """As if the machine had an H200 and both back ends; the tables are forgotten before and after."""
    monkeypatch.setattr(_backends, "cuda_problem", lambda: None)
    monkeypatch.setattr(_backends, "triton_problem", lambda: None)
    monkeypatch.setattr(_backends, "architectures_built", lambda: "80;90a;100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.delenv(_backends.VARIABLE, raising=False)
    _backends._warn_of_missing.cache_clear()
    _backends.forget()
    yield monkeypatch
    _backends.forget()


def test_both_back_ends_serve_their_ops(gpu):
    chosen = _backends.choices(0)
    assert {op for op, choice in chosen.items() if choice.backend == "cuda"} == set(_backends.CUDA_OPS)
    assert {op for op, choice in chosen.items() if choice.backend == "triton"} == set(_backends.TRITON_OPS)


def test_the_variable_gives_everything_to_native(gpu):
    gpu.setenv(_backends.VARIABLE, "native")
    assert {choice.backend for choice in _backends.choices(0).values()} == {"native"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert set(_backends._table(0).values()) == {0}


def test_an_unknown_value_is_an_error_that_names_the_known_ones(gpu):
    gpu.setenv(_backends.VARIABLE, "triton")
    with pytest.raises(ValueError, match="TILEWRIGHT_CUDA_BACKEND must be one of auto, native, got 'triton'"):
        _backends.choices(0)


def test_a_missing_back_end_warns_once_and_leaves_its_ops_to_native(gpu):
    gpu.setattr(_backends, "triton_problem", lambda: "triton is not installed")
    with pytest.warns(RuntimeWarning, match="triton is not installed"):
        table = _backends._table(0)
    assert all((table[op] == 0) == (op in _backends.TRITON_OPS) for op in OPS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _backends._table(1)


def test_an_old_card_is_left_to_native(gpu):
    gpu.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    chosen = _backends.choices(0)
    assert {choice.backend for choice in chosen.values()} == {"native"}
    assert "7.5" in chosen["layer_norm"].reason


def test_a_library_for_other_cards_is_not_used(gpu):
    gpu.setattr(_backends, "architectures_built", lambda: "90a")
    gpu.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))
    chosen = _backends.choices(0)
    assert chosen["layer_norm"].backend == "native"
    assert chosen["matmul"].backend == "triton"


def test_what_the_library_has_is_not_overridden(gpu):
    gpu.setattr(torch.cuda, "device_count", lambda: 2)
    assert _backends._library_serves_every_device()
    gpu.setattr(_backends, "architectures_built", lambda: "80")
    gpu.setattr(torch.cuda, "get_device_capability", lambda device=None: ((8, 0), (7, 0))[device or 0])
    assert _backends._library_serves_every_device()  # the older card is native's
    gpu.setattr(_backends, "architectures_built", lambda: "100")
    assert not _backends._library_serves_every_device()
    library = register("CUDA", ["linear"], without=_backends._BOTH)
    try:
        has = torch._C._dispatch_has_kernel_for_dispatch_key
        assert has("tilewright::linear_forward", "CUDA")
        assert not has("tilewright::activation_backward", "CUDA")
    finally:
        library._destroy()


@pytest.mark.parametrize(
    ("built", "capability", "expected"),
    [
        ("80;90a;100", (8, 0), True),
        ("80;90a;100", (8, 9), True),
        ("80;90a;100", (9, 0), True),
        ("80;90a;100", (10, 3), True),
        ("80;90a;100", (12, 0), True),  # the last one's PTX
        ("80;90a;100", (7, 5), False),
        ("90a", (9, 0), True),
        ("90a", (10, 0), False),
        ("90a", (8, 0), False),
        ("86", (8, 0), False),
        ("80", (9, 0), True),  # by PTX
        ("", (9, 0), False),
    ],
)
def test_which_cards_a_library_covers(built, capability, expected):
    assert _backends.covers(built, capability) is expected


def test_a_served_op_reaches_our_op_and_another_dtype_native(gpu, caplog):
    def called(function, *shapes, dtype=torch.float32):
        with FakeTensorMode(), caplog.at_level(logging.INFO, logger="tilewright"):
            tensors = [torch.empty(shape, dtype=dtype, device="cuda") for shape in shapes]
            graph = make_fx(function)(*tensors)
        return {str(node.target) for node in graph.graph.nodes if node.op == "call_function"}

    norm = called(lambda x: TF.layer_norm(x, (8,)), (4, 8))
    assert any("tilewright.layer_norm" in name for name in norm)
    wide = called(lambda x: TF.layer_norm(x, (8,)), (4, 8), dtype=torch.float64)
    assert any("tilewright.layer_norm" in name for name in wide)
    assert any("tilewright" in name for name in called(TF.matmul, (4, 8), (8, 4)))
    assert not any("tilewright" in name for name in called(TF.matmul, (4, 8), (8, 4), dtype=torch.float64))
    assert "cuda:0 layer_norm: cuda" in caplog.text
    gpu.setenv(_backends.VARIABLE, "native")
    _backends.forget()
    assert not any("tilewright" in name for name in called(lambda x: TF.layer_norm(x, (8,)), (4, 8)))


def test_attention_beyond_the_registers_is_natives(gpu, capfd):
    with FakeTensorMode():
        q = torch.empty(1, 2, 16, 512, device="cuda")
        called = make_fx(lambda q: TF.scaled_dot_product_attention(q, q, q))(q)
    assert not any("tilewright" in str(node.target) for node in called.graph.nodes)
    assert "head sizes above 256 are computed by native PyTorch" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("shape", "channels", "options"),
    [
        ((1, 1, 1 << 15, 1 << 15), 1, {}),
        ((1, 2, 1, 1 << 20), 1, {"padding": (1 << 8, 0), "groups": 2}),
        ((1, 1, 8, 8), 1, {"stride": 1 << 29}),
        ((1, 1 << 15, 1 << 15), 1, {}),
    ],
    ids=["plane", "padded plane, depthwise", "stride", "unbatched"],
)
def test_convolutions_beyond_32_bit_places_are_natives(gpu, shape, channels, options):
    def called(x):
        filters = options.get("groups", 1)
        weight = torch.empty(filters, channels, 1, 1, device="cuda")
        graph = make_fx(lambda x, w: TF.conv2d_act(x, w, **options))(x, weight)
        return any("tilewright" in str(node.target) for node in graph.graph.nodes)

    with FakeTensorMode():
        assert not called(torch.empty(shape, device="cuda"))
        assert called(torch.empty(*shape[:-2], 4, 4, device="cuda")) == ("stride" not in options)


def test_a_traced_depthwise_convolution_is_conv2ds_own_op(gpu):
    """Which every device has, unlike the one that the CUDA C++ library serves."""
    with FakeTensorMode():
        x, weight = torch.empty(2, 4, 8, 8, device="cuda"), torch.empty(4, 1, 3, 3, device="cuda")
        graph = make_fx(lambda x, w: TF.conv2d(x, w, groups=4))(x, weight)
    assert any("tilewright.conv2d" in str(node.target) for node in graph.graph.nodes)


def test_tables_are_asked_for_once_per_device():
    asked: list[int] = []

    def source(device: int) -> dict[str, int]:
        asked.append(device)
        return {"layer_norm": 1}

    _C.set_gpu_tables(source)
    try:
        with FakeTensorMode():
            for _ in range(3):
                TF.layer_norm(torch.empty(4, 8, device="cuda:0"), (8,))
            TF.layer_norm(torch.empty(4, 8, device="cuda:1"), (8,))
    finally:
        _backends.forget()
    assert asked == [0, 1]


def test_info_names_a_back_end_for_every_op():
    ops = tilewright.info()["ops"]
    assert set(ops) == OPS
    for row in ops.values():
        assert row["cpu"] == _C.active_isa()
        assert row["cuda"] in ("cuda", "triton", "native")
        assert row["why"]


def test_importing_tilewright_imports_neither_triton_nor_cuda():
    code = "import sys, tilewright, torch; print('triton' in sys.modules, torch.cuda.is_initialized())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert run.stdout.split() == ["False", "False"], run.stderr


def test_the_cuda_library_loads_beside_a_cpu_build_of_torch():
    assert _backends.LIBRARY.exists() == bool(_backends.architectures_built())
    if not _backends.LIBRARY.exists():  # no nvcc here: then there is nothing to load, and info says why
        assert tilewright.info()["backends"]["cuda"]["available"] is False
        return
    code = (
        "import torch; from tilewright import _backends as b; print(b._load_library(), "
        "torch._C._dispatch_has_kernel_for_dispatch_key('tilewright::layer_norm_forward', 'CUDA'))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert run.stdout.split() == ["None", "True"], run.stderr


def test_info_says_when_the_variable_is_misspelt(monkeypatch):
    monkeypatch.setenv(_backends.VARIABLE, "nativ")
    reasons = {op["why"] for op in tilewright.info()["ops"].values()}
    assert reasons == {"TILEWRIGHT_CUDA_BACKEND must be one of auto, native, got 'nativ'"}
