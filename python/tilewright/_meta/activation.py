"""What the gradients of activations read, which decides what an op saves."""

_NEED_NO_INPUT = ("none", "relu", "relu6")


def gradient_reads_input(activation: str) -> bool:
    """Is the gradient read from what the activation is applied to?"""
    return activation not in _NEED_NO_INPUT
