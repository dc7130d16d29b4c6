"""What runs here: versions, instruction set, back ends, threads."""

import importlib.util
import os
import platform
from importlib import metadata
from typing import Any

import torch

from . import _C


def info() -> dict[str, Any]:
    """Describe this installation and machine, in plain values that json can hold.

    Returns:
        dict with the keys
        ``tilewright``, ``torch``, ``python``, ``compiler``: versions (torch: the running one); ``built_for_torch``;
        ``isa``: the instruction set in use, ``isas``: those this build has and this machine runs, slowest first;
        ``backends``: name -> {"available": bool, "detail": str}, for "cpu", "cuda" and "triton";
        ``threads``: torch.get_num_threads(), ``cpu``: the processor's name, ``cpus``: how many this process may use.

    Example:
        >>> tilewright.info()["backends"]["cpu"]["available"]
        True
    """
    from . import __version__

    return {
        "tilewright": __version__,
        "torch": torch.__version__,
        "built_for_torch": _C.torch_version,
        "python": platform.python_version(),
        "compiler": _C.compiler,
        "isa": _C.active_isa(),
        "isas": list(_C.available_isas()),
        "backends": {"cpu": _cpu(), "cuda": _cuda(), "triton": _triton()},
        "threads": torch.get_num_threads(),
        "cpu": _cpu_model(),
        "cpus": len(os.sched_getaffinity(0)),
    }


def _cpu() -> dict[str, Any]:
    return {"available": True, "detail": f"{_C.active_isa()} kernels, {torch.get_num_threads()} threads"}


def _cuda() -> dict[str, Any]:
    if torch.version.cuda is None:
        return {"available": False, "detail": "this torch is a CPU build"}
    if not torch.cuda.is_available():
        return {"available": False, "detail": f"torch is built for CUDA {torch.version.cuda}, but sees no GPU"}
    if not _has_cuda_kernels():
        return {
            "available": False,
            "detail": "this build of tilewright has no CUDA kernels: native PyTorch serves the GPU",
        }
    return {"available": True, "detail": f"CUDA {torch.version.cuda}, {torch.cuda.get_device_name()}"}


def _triton() -> dict[str, Any]:
    if importlib.util.find_spec("triton") is None:
        return {"available": False, "detail": "triton is not installed"}
    version = metadata.version("triton")
    if importlib.util.find_spec("tilewright.triton") is None:
        return {
            "available": False,
            "detail": f"triton {version} is there; this build of tilewright has no Triton kernels",
        }
    if not torch.cuda.is_available():
        return {"available": False, "detail": f"triton {version} is there, but torch sees no GPU"}
    return {"available": True, "detail": f"triton {version}"}


def _has_cuda_kernels() -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key("tilewright::layer_norm_forward", "CUDA")


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
