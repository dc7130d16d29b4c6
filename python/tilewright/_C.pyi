"""The compiled part: build facts, ISA control and short ways to the ops (csrc/bindings.cpp). The ops are in
torch.ops.tilewright."""

from collections.abc import Callable

from torch import Tensor

torch_version: str
compiler: str

def available_isas() -> list[str]: ...
def active_isa() -> str: ...
def force_isa(name: str) -> None: ...
def set_gpu_tables(source: Callable[[int], dict[str, int]] | None) -> None: ...
def split_matmul(items: int, rows: int, cols: int, depth: int, packs: bool) -> tuple[int, int, int]: ...
def measure_fma_peak(dtype: str) -> float: ...

class direct:
    """Positional arguments only; None: not the plain case, call the op in torch.ops (csrc/direct_call.h)."""

    layer_norm: Callable[..., Tensor | None]
    scaled_dot_product_attention: Callable[..., Tensor | None]
    dropout: Callable[..., Tensor | None]
    matmul: Callable[..., Tensor | None]
    bmm: Callable[..., Tensor | None]
    baddbmm: Callable[..., Tensor | None]
    linear: Callable[..., Tensor | None]
    linear_act: Callable[..., Tensor | None]
