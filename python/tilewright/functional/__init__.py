"""torch.nn.functional's names on tilewright's kernels: same arguments, same results, same errors."""

from .attention import scaled_dot_product_attention
from .dropout import dropout
from .layer_norm import layer_norm

__all__ = ["dropout", "layer_norm", "scaled_dot_product_attention"]
