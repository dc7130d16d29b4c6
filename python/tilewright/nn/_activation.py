"""The activations that fused layers know, checked where the layer is made rather than at its first call."""

ACTIVATIONS = ("none", "relu", "relu6", "gelu", "gelu_tanh", "silu")


def checked_activation(layer: str, activation: str) -> str:
    """Return activation, or raise ValueError where it names none of ACTIVATIONS."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"{layer}: activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    return activation
