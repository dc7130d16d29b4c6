"""tilewright: hand-written kernels for PyTorch. The same numbers as native, in less time."""

import torch

from . import _build

__version__ = "0.1.0"


def _refuse_other_torch() -> None:
    """C++ extensions of PyTorch fit one minor version: a mismatch crashes later, so say it now."""
    built = _build.TORCH_VERSION.split("+")[0].split(".")[:2]
    running = torch.__version__.split("+")[0].split(".")[:2]
    if built != running:
        raise ImportError(
            f"tilewright was built for torch {_build.TORCH_VERSION}, but torch {torch.__version__} is installed. "
            "Build it again against this torch: pip install --no-build-isolation --force-reinstall --no-deps ."
        )


_refuse_other_torch()

from . import _C, _backends, _meta, functional, nn, testing  # noqa: E402
from ._accelerate import accelerate, restore  # noqa: E402
from ._info import info  # noqa: E402
from ._summary import Summary, SummaryRow, summary  # noqa: E402

__all__ = [
    "_C",
    "Summary",
    "SummaryRow",
    "__version__",
    "_backends",
    "_meta",
    "accelerate",
    "functional",
    "info",
    "nn",
    "restore",
    "summary",
    "testing",
]
