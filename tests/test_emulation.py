"""The SIMT emulation itself: right kernels give right numbers, and each planted bug is found."""

import ctypes
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.emulation import build
from tests.sanitizer import sanitizer_environment

ROOT = Path(__file__).parent.parent
SEEDS = ["0", "1", "2", "3"]
INVALID_CONFIGURATION = 9


@dataclass
class Result:
    status: int  # a cudaError_t, -1 for a violation
    message: str
    out: torch.Tensor


def launch(
    name: str, data: torch.Tensor, out: int, grid=(1, 1, 1), block=(32, 1, 1), *, shared=0, opt_in=0, n=0, option=0
) -> Result:
    library = ctypes.CDLL(str(build.build("selftest")))
    result = torch.full((out,), -1.0)
    message = ctypes.create_string_buffer(2000)
    status = library.selftest_run(
        name.encode(),
        (ctypes.c_uint * 3)(*grid),
        (ctypes.c_uint * 3)(*block),
        shared,
        opt_in,
        ctypes.c_void_p(data.data_ptr()),
        ctypes.c_void_p(result.data_ptr()),
        n,
        option,
        message,
        ctypes.c_size_t(len(message)),
    )
    return Result(status, message.value.decode(), result)


@pytest.fixture(params=SEEDS)
def seed(request, monkeypatch):
    """Every order of blocks, warps and lanes must give the same."""
    monkeypatch.setenv("TILEWRIGHT_EMULATION_SEED", request.param)
    return request.param


@pytest.mark.usefixtures("seed")
class TestRightKernels:
    def test_block_sum(self):
        data = torch.randn(5, 1000, dtype=torch.float64).float()
        result = launch("block_sum", data, 5, (5, 1, 1), (256, 1, 1), n=1000)
        assert result.status == 0, result.message
        torch.testing.assert_close(result.out.double(), data.double().sum(1), rtol=1e-5, atol=1e-5)

    def test_vectors_through_dynamic_shared_memory(self):
        data = torch.randn(7, 600)
        result = launch("reverse", data, 4200, (7, 1, 1), (64, 1, 1), shared=2400, n=600)
        assert result.status == 0, result.message
        assert torch.equal(result.out, data.flip(1).flatten())

    def test_indices(self):
        result = launch("where_am_i", torch.zeros(1), 2 * 3 * 4 * 5 * 6 * 7, (2, 3, 4), (5, 6, 7))
        blocks, threads = torch.arange(2 * 3 * 4), torch.arange(5 * 6 * 7)
        assert torch.equal(result.out, (blocks[:, None] * 10000 + threads).float().flatten())

    def test_warp_functions(self):
        x = torch.randn(32)
        result = launch("warp_functions", x, 9 * 32)
        assert result.status == 0, result.message
        lane = torch.arange(32)
        segment = lane // 8 * 8
        even = torch.where(lane % 2 == 0, x[lane ^ 2], 0.0)
        expected = [
            torch.where(lane >= 3, x[(lane - 3).clamp(min=0)], x),
            torch.where(lane % 16 + 3 < 16, x[(lane + 3).clamp(max=31)], x),
            x[segment + 5],
            x[lane ^ 3],
            torch.full((32,), 7.0),
            torch.ones(32),
            torch.zeros(32),
            x[lane ^ 1],
            even,
        ]
        assert torch.equal(result.out.view(9, 32), torch.stack(expected))

    def test_syncwarp_orders_lanes(self):
        x = torch.randn(32)
        assert torch.equal(launch("has_syncwarp", x, 32).out, x.flip(0))


@pytest.mark.parametrize(("option", "dtype"), [(0, torch.bfloat16), (1, torch.float16)])
def test_conversions_round_as_torch(option, dtype):
    """Both ways, for patterns of every exponent, ties and their neighbours, and what is not finite."""
    high = torch.arange(0, 1 << 16, dtype=torch.int64) << 16
    low = torch.tensor([0, 1, 0x0FFF, 0x1000, 0x1001, 0x2FFF, 0x3000, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
    bits = (high[:, None] + low).flatten().to(torch.uint32 if hasattr(torch, "uint32") else torch.int64)
    x = bits.view(torch.float32)
    blocks = (x.numel() + 255) // 256
    result = launch("round_trip", x, x.numel(), (blocks, 1, 1), (256, 1, 1), n=x.numel(), option=option)
    expected = x.to(dtype).float()
    assert torch.equal(result.out.isnan(), expected.isnan())
    assert torch.equal(result.out.nan_to_num(nan=0.0), expected.nan_to_num(nan=0.0))


PLANTED = [
    ("barrier_in_a_branch", "has left the kernel, while thread"),
    ("different_barriers", "in another one at kernels.cu"),
    ("shuffle_in_a_branch", "__shfl_xor_sync at kernels.cu.* for lane 20, which has left the kernel"),
    ("shuffle_against_barrier", "for lane 20, which waits in __syncthreads"),
    ("mask_lacks_caller", "__shfl_sync with the mask 0x0000ffff, which lacks the caller"),
    ("reads_lane_outside_mask", "reads lane 20, which is not in the mask 0x0000ffff"),
    ("different_masks", "with the mask 0x.* meets thread .* with the mask 0x"),
    ("misaligned", "a misaligned access"),
]


@pytest.mark.usefixtures("seed")
@pytest.mark.parametrize(("name", "message"), PLANTED)
def test_violation_is_found(name, message):
    result = launch(name, torch.randn(64), 64, block=(64, 1, 1))
    assert result.status == -1
    with pytest.raises(RuntimeError, match=message):
        raise RuntimeError(result.message)


def test_a_warp_without_all_its_lanes_lacks_them():
    result = launch("block_sum", torch.randn(20), 1, block=(20, 1, 1), n=20)
    assert "0xffffffff names lanes that the warp lacks" in result.message


def test_write_behind_dynamic_shared_memory_is_found():
    fits = launch("writes_behind_dynamic_shared", torch.randn(64), 64, block=(64, 1, 1), shared=256, option=0)
    assert fits.status == 0, fits.message
    beyond = launch("writes_behind_dynamic_shared", torch.randn(64), 64, block=(64, 1, 1), shared=256, option=1)
    assert "a write 0 bytes behind the dynamic shared memory of 256 bytes" in beyond.message


def test_unwritten_shared_memory_reads_as_nan():
    for _ in range(2):  # the second block's memory is not what the first one left
        out = launch("reads_unwritten_shared", torch.zeros(1), 256, (2, 1, 1), (256, 1, 1)).out
        assert torch.equal(out.isnan(), torch.arange(256) % 2 == 1)


@pytest.mark.parametrize(
    ("name", "threads"), [("lacks_barrier", 256), ("lacks_second_barrier", 256), ("lacks_syncwarp", 32)]
)
def test_missing_barrier_gives_other_numbers(name, threads, monkeypatch):
    x = torch.randn(threads)
    index = torch.arange(threads)
    right = {
        "lacks_barrier": x.flip(0),
        "lacks_second_barrier": x[(index + 33) % threads] * 3,
        "lacks_syncwarp": x.flip(0),
    }[name]
    for seed in SEEDS:
        monkeypatch.setenv("TILEWRIGHT_EMULATION_SEED", seed)
        out = launch(name, x, threads, block=(threads, 1, 1)).out
        assert not torch.allclose(out, right), f"seed {seed}"


def test_order_of_blocks_shows(monkeypatch):
    last = set()
    for seed in SEEDS:
        monkeypatch.setenv("TILEWRIGHT_EMULATION_SEED", seed)
        last.add(launch("depends_on_block_order", torch.zeros(1), 1, (50, 1, 1)).out.item())
    assert len(last) > 1


@pytest.mark.parametrize(
    "shape",
    [
        {"grid": (0, 1, 1)},
        {"grid": (1, 65536, 1)},
        {"grid": (1, 1, 65536)},
        {"grid": (1 << 31, 1, 1)},
        {"block": (1025, 1, 1)},
        {"block": (32, 33, 1)},
        {"block": (1, 1, 65)},
        {"shared": 48 * 1024 + 16},
        {"shared": 96 * 1024, "opt_in": 64 * 1024},
    ],
)
def test_launch_beyond_the_limits_is_refused(shape):
    assert launch("reverse", torch.zeros(1), 1, **shape).status == INVALID_CONFIGURATION


def test_shared_memory_up_to_the_device_limit():
    data = torch.randn(56 * 1024)
    shape = {"block": (32, 1, 1), "n": data.numel()}
    result = launch("reverse", data, data.numel(), shared=224 * 1024, opt_in=224 * 1024, **shape)
    assert result.status == 0, result.message
    assert torch.equal(result.out, data.flip(0))
    assert launch("reverse", data, data.numel(), opt_in=228 * 1024, **shape).status != 0


SANITIZED = [
    ("reads_behind_tensor", "heap-buffer-overflow"),
    ("writes_behind_dynamic_shared", "use-after-poison"),
    ("writes_behind_static_shared", "global-buffer-overflow"),
]


@pytest.mark.parametrize(("name", "finding"), [*SANITIZED, ("block_sum", None), ("reverse", None)])
def test_address_sanitizer_sees_through_the_fibers(name, finding):
    """In a process of its own, because the first finding ends it."""
    library = build.build("selftest", "sanitized")
    script = f"""
import ctypes
library = ctypes.CDLL({str(library)!r})
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
data, out = ctypes.c_void_p(libc.malloc(64 * 4)), ctypes.c_void_p(libc.malloc(64 * 4))
ctypes.memset(data, 0, 256)
message = ctypes.create_string_buffer(2000)
three = ctypes.c_uint * 3
status = library.selftest_run({name.encode()!r}, three(1, 1, 1), three(64, 1, 1), 256, 0, data, out, 64, 40, message,
                              ctypes.c_size_t(2000))
print("status", status, message.value.decode())
"""
    run = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | sanitizer_environment(), capture_output=True, text=True
    )
    if finding is None:
        assert run.returncode == 0, run.stderr[-3000:]
        assert "status 0" in run.stdout
    else:
        assert run.returncode != 0
        assert finding in run.stderr
