"""The Transformer encoder layer: torch's blocks, without its evaluation shortcut."""

import torch
from torch import Tensor

from ._tracing import DropIn, leaf_when_traced


class TransformerEncoderLayer(DropIn, torch.nn.TransformerEncoderLayer):
    """:class:`torch.nn.TransformerEncoderLayer` that always runs its sublayers on the CPU.

    In evaluation without gradients torch's layer reads its sublayers' parameters and computes all at once with native
    kernels, past whatever the sublayers are. This one runs them, so that those on tilewright are used, with the numbers
    of torch's own path for training. Nested tensors and other devices still take torch's shortcut;
    :class:`torch.nn.TransformerEncoder` makes nested tensors of padded batches unless enable_nested_tensor=False.

    Constructor, parameters and state_dict are torch.nn.TransformerEncoderLayer's; its sublayers are torch.nn's until
    :func:`tilewright.accelerate` replaces them.

    Shape:
        src [L, E], [L, N, E] or, batch_first, [N, L, E] -> the same.

    Raises:
        AssertionError, RuntimeError: as its attention raises them, for wrong sizes and masks.

    Example:
        >>> layer = tilewright.accelerate(torch.nn.TransformerEncoderLayer(64, 4, batch_first=True)).eval()
        >>> y = layer(torch.randn(2, 16, 64))
    """

    @leaf_when_traced
    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """Self-attention and feed-forward, each with its residual, normalised before or after."""
        if src.is_nested or src.device.type != "cpu":
            return super().forward(src, src_mask, src_key_padding_mask, is_causal)
        if self.norm_first:
            x = src + self._sa_block(self.norm1(src), src_mask, src_key_padding_mask, is_causal=is_causal)
            return x + self._ff_block(self.norm2(x))
        x = self.norm1(src + self._sa_block(src, src_mask, src_key_padding_mask, is_causal=is_causal))
        return self.norm2(x + self._ff_block(x))
