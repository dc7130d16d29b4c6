"""Who computes what on a GPU, and why: decided once per device, when its first tensor arrives.

Two back ends fill the CUDA slot of the ops: the CUDA C++ library beside this file (built where nvcc was there), and the
Triton kernels in :mod:`tilewright.triton`. What neither can serve is native PyTorch's, as if tilewright were not there.
``TILEWRIGHT_CUDA_BACKEND`` overrides: ``auto`` (the default) or ``native``.
"""

import importlib.util
import logging
import os
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from . import _C, _build

logger = logging.getLogger("tilewright")

VARIABLE = "TILEWRIGHT_CUDA_BACKEND"
MODES = ("auto", "native")
LIBRARY = Path(__file__).parent / "_cuda.so"

# Ops by the back end that has their kernels; the names are those of csrc/ops/<op>.
CUDA_OPS = ("batch_norm", "dropout", "dropout_add", "dropout_add_layer_norm", "layer_norm", "masked_scale")
TRITON_OPS = ("attention", "conv2d", "linear", "matmul")

# Bits of csrc/ops/gpu.h. Triton's products leave float64 to native.
_FLOAT32, _FLOAT64, _BFLOAT16, _FLOAT16 = 1, 2, 4, 8
_DTYPES = {"cuda": _FLOAT32 | _FLOAT64 | _BFLOAT16 | _FLOAT16, "triton": _FLOAT32 | _BFLOAT16 | _FLOAT16, "native": 0}

# Ops of a Triton family that the CUDA C++ library has as well: in float64 too, which batch_norm_act needs, and for less
# time of the host.
_BOTH = ("activation_backward",)

_OLDEST = (8, 0)  # compute capability: bfloat16 arithmetic, asynchronous copies
_OLDEST_TRITON = (3, 6)


@dataclass(frozen=True)
class Choice:
    """The back end of an op on a device: "cuda", "triton" or "native", and one sentence that says why."""

    backend: str
    reason: str


def mode() -> str:
    """The value of TILEWRIGHT_CUDA_BACKEND.

    Raises:
        ValueError: it is none of ``auto`` and ``native``.
    """
    value = os.environ.get(VARIABLE, "auto")
    if value not in MODES:
        raise ValueError(f"{VARIABLE} must be one of {', '.join(MODES)}, got {value!r}")
    return value


def cuda_problem() -> str | None:
    """Why the CUDA C++ kernels cannot be used on any GPU here, or None. Loads the library."""
    if torch.version.cuda is None:
        return "this torch is a CPU build"
    if not torch.cuda.is_available():
        return f"torch is built for CUDA {torch.version.cuda}, but sees no GPU"
    if not LIBRARY.exists():
        return "tilewright was built without nvcc: build it again where the CUDA toolkit is"
    return _load_library()


def triton_problem() -> str | None:
    """Why the Triton kernels cannot be used on any GPU here, or None. Registers them."""
    if torch.version.cuda is None:
        return "this torch is a CPU build"
    if not torch.cuda.is_available():
        return f"torch is built for CUDA {torch.version.cuda}, but sees no GPU"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (a CUDA build of torch brings it)"
    return _register_triton()


@cache
def _load_library() -> str | None:
    try:
        torch.ops.load_library(str(LIBRARY))
    except OSError as error:
        return f"{LIBRARY.name} does not load: {error}"
    return None


_registered: list[torch.library.Library] = []  # a registration lives as long as its Library


def _library_serves_every_device() -> bool:
    """Every one that Triton's kernels serve."""
    capabilities = [torch.cuda.get_device_capability(device) for device in range(torch.cuda.device_count())]
    covered = (covers(architectures_built(), capability) for capability in capabilities if capability >= _OLDEST)
    return cuda_problem() is None and all(covered)


@cache
def _register_triton() -> str | None:
    try:
        import triton

        version = tuple(int(part) for part in triton.__version__.split(".")[:2])
        if version < _OLDEST_TRITON:
            return f"triton {triton.__version__} is older than {'.'.join(map(str, _OLDEST_TRITON))}"
        from . import triton as kernels

        _registered.append(kernels.register("CUDA", without=_BOTH if _library_serves_every_device() else ()))
    except Exception as error:  # a broken Triton must not take native PyTorch away from the user
        logger.debug("the Triton kernels cannot be registered", exc_info=True)
        return f"the Triton kernels cannot be registered: {type(error).__name__}: {error}"
    return None


def covers(built: str, capability: tuple[int, int]) -> bool:
    """Does a library built for the architectures ``built`` ("80;90a;100") run on a GPU of this compute capability?

    Machine code runs on the same major version from its minor version on, but with a suffix on that one chip only; the
    last architecture, if it has no suffix, is there as PTX too, which the driver compiles for every newer chip.
    """
    major, minor = capability
    names = built.split(";") if built else []
    for name in names:
        number = int(name.rstrip("af"))
        exact = name != str(number)
        if number // 10 == major and (number % 10 == minor if exact else number % 10 <= minor):
            return True
    return bool(names) and names[-1].isdigit() and int(names[-1]) <= 10 * major + minor


def choices(device: int) -> dict[str, Choice]:
    """The back end of each op on a CUDA device, by its index."""
    ops = (*CUDA_OPS, *TRITON_OPS)
    if mode() == "native":
        return {op: Choice("native", f"{VARIABLE}=native") for op in ops}
    problems = {"cuda": cuda_problem(), "triton": triton_problem()}
    if problems["cuda"] is None or problems["triton"] is None:
        capability = torch.cuda.get_device_capability(device)
        if capability < _OLDEST:
            old = f"compute capability {capability[0]}.{capability[1]} is below {_OLDEST[0]}.{_OLDEST[1]}"
            problems = {"cuda": old, "triton": old}
        elif problems["cuda"] is None and not covers(architectures_built(), capability):
            problems["cuda"] = (
                f"tilewright was built for {architectures_built()}, not for compute capability "
                f"{capability[0]}.{capability[1]}"
            )
    chosen = {}
    for backend, members in (("cuda", CUDA_OPS), ("triton", TRITON_OPS)):
        problem = problems[backend]
        serves = "CUDA C++ kernels" if backend == "cuda" else "Triton kernels; float64 is native's"
        choice = Choice(backend, serves) if problem is None else Choice("native", problem)
        chosen.update(dict.fromkeys(members, choice))
    return chosen


def _table(device: int) -> dict[str, int]:
    chosen = choices(device)
    for op, choice in chosen.items():
        logger.info("cuda:%d %s: %s (%s)", device, op, choice.backend, choice.reason)
    if mode() == "auto":
        _warn_of_missing(frozenset(choice.reason for choice in chosen.values() if choice.backend == "native"))
    return {op: _DTYPES[choice.backend] for op, choice in chosen.items()}


@cache
def _warn_of_missing(reasons: frozenset[str]) -> None:
    if reasons:
        warnings.warn(
            f"tilewright: native PyTorch serves some ops on this GPU: {'; '.join(sorted(reasons))}. "
            f"`tilewright info` lists them; {VARIABLE}=native silences this.",
            RuntimeWarning,
            stacklevel=3,
        )


def forget() -> None:
    """Decide anew on the next call, after TILEWRIGHT_CUDA_BACKEND has changed."""
    _C.set_gpu_tables(_table)


def architectures_built() -> str:
    """The GPU architectures of the CUDA library beside this file; empty without one."""
    return getattr(_build, "CUDA_ARCHITECTURES", "") if LIBRARY.exists() else ""


forget()
