"""What runs here: versions, instruction set, back ends, threads."""

import importlib.util
import os
import platform
from importlib import metadata
from typing import Any

import torch

from . import _C, _backends


def info() -> dict[str, Any]:
    """Describe this installation and machine, in plain values that json can hold.

    Returns:
        dict with the keys
        ``tilewright``, ``torch``, ``python``, ``compiler``: versions (torch: the running one); ``built_for_torch``;
        ``isa``: the instruction set in use, ``isas``: those this build has and this machine runs, slowest first;
        ``backends``: name -> {"available": bool, "detail": str}, for "cpu", "cuda" and "triton";
        ``ops``: op -> {"cpu": instruction set, "cuda": "cuda", "triton" or "native", "why": one sentence};
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
        "ops": _ops(),
        "threads": torch.get_num_threads(),
        "cpu": _cpu_model(),
        "cpus": len(os.sched_getaffinity(0)),
    }


def _cpu() -> dict[str, Any]:
    return {"available": True, "detail": f"{_C.active_isa()} kernels, {torch.get_num_threads()} threads"}


def _cuda() -> dict[str, Any]:
    problem = _backends.cuda_problem()
    if problem is not None:
        built = _backends.architectures_built()
        return {"available": False, "detail": f"{problem} (built: {built})" if built else problem}
    return {"available": True, "detail": f"CUDA {torch.version.cuda}, {torch.cuda.get_device_name()}"}


def _triton() -> dict[str, Any]:
    problem = _backends.triton_problem()
    if importlib.util.find_spec("triton") is None:
        return {"available": False, "detail": problem or ""}
    version = metadata.version("triton")
    return {"available": problem is None, "detail": f"triton {version}" + (f": {problem}" if problem else "")}


def _ops() -> dict[str, dict[str, str]]:
    """Which back end serves each op, per kind of device."""
    isa, names = _C.active_isa(), (*_backends.CUDA_OPS, *_backends.TRITON_OPS)
    try:
        _backends.mode()
        if torch.cuda.is_available():
            on_gpu = _backends.choices(torch.cuda.current_device())
        else:
            on_gpu = dict.fromkeys(names, _backends.Choice("native", _backends.cuda_problem() or ""))
    except ValueError as error:  # of a misspelt variable, which the first op on a GPU raises
        on_gpu = dict.fromkeys(names, _backends.Choice("native", str(error)))
    return {op: {"cpu": isa, "cuda": choice.backend, "why": choice.reason} for op, choice in sorted(on_gpu.items())}


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
