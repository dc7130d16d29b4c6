"""What autograd keeps between forward and backward, in bytes, beside the inputs and parameters of the call.

Those live anyway: the model holds its parameters and the layer below its output. A storage counts once, whole.
"""

import torch
from torch import Tensor

from . import gate
from .cases import TRAIN, Function, Problem


def saved_bytes(function: Function, problem: Problem) -> int:
    """Bytes that the graph of one call keeps alive."""
    inputs = gate.leaves(problem, TRAIN)
    held = {t.untyped_storage().data_ptr() for t in inputs}
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = function(*inputs)
    del outputs  # only now: a storage that was freed could be another's
    return sum(storages.values())
