"""torch.nn.functional's names on tilewright's kernels: same arguments, same results, same errors."""

from .batch_norm import batch_norm, batch_norm_act
from .dropout import dropout
from .dropout_add import dropout_add
from .dropout_add_layer_norm import dropout_add_layer_norm
from .layer_norm import layer_norm
from .masked_scale import masked_scale

__all__ = ["batch_norm", "batch_norm_act", "dropout", "dropout_add", "dropout_add_layer_norm", "layer_norm", "masked_scale"]
