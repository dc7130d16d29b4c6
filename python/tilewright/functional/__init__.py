"""torch.nn.functional's names on tilewright's kernels: same arguments, same results, same errors."""

from .layer_norm import layer_norm

__all__ = ["layer_norm"]
