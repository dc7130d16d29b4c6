"""torch.nn.functional's names on tilewright's kernels: same arguments, same results, same errors."""

from .batch_norm import batch_norm, batch_norm_act
from .dropout import dropout
from .layer_norm import layer_norm

__all__ = ["batch_norm", "batch_norm_act", "dropout", "layer_norm"]
