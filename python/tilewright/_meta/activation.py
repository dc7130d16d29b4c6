"""What the gradients of activations read, which decides what an op saves."""

READ_FROM_OUTPUT = ("relu", "relu6")


def gradient_reads_input(activation: str) -> bool:
    """Is the gradient read from what the activation is applied to?"""
    return activation != "none" and activation not in READ_FROM_OUTPUT
