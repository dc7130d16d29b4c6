"""What scaled_dot_product_attention refuses, and what it leaves to native."""

import pytest
import torch
from torch import Tensor

from .attention_cases import inputs_of, native_sdpa, sdpa


def test_subclasses_and_other_dtypes_go_to_native():
    class Tagged(torch.Tensor):
        pass

    q, k, v = inputs_of((1, 2, 2, 5, 6, 8, 8), torch.float32)
    assert type(sdpa(q.as_subclass(Tagged), k, v)) is Tagged
    with pytest.raises(RuntimeError):
        sdpa(q.int(), k.int(), v.int())


def _qkv(*sizes: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(s) for s in (sizes if len(sizes) == 3 else sizes * 3)]


BAD = {
    "1-D": lambda f: f(*_qkv((8,))),
    "head size": lambda f: f(*_qkv((2, 3, 5, 8), (2, 3, 7, 9), (2, 3, 7, 9))),
    "value length": lambda f: f(*_qkv((2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 6, 9))),
    "heads": lambda f: f(*_qkv((2, 4, 5, 8), (2, 2, 7, 8), (2, 2, 7, 8))),
    "batches": lambda f: f(*_qkv((3, 4, 5, 8), (2, 4, 7, 8), (2, 4, 7, 8))),
    "grouped heads": lambda f: f(*_qkv((2, 4, 5, 8), (2, 3, 7, 8), (2, 3, 7, 8)), enable_gqa=True),
    "grouped without heads": lambda f: f(*_qkv((5, 8)), enable_gqa=True),
    "dtypes": lambda f: f(torch.randn(5, 8), torch.randn(5, 8).double(), torch.randn(5, 8)),
    "mask dtype int": lambda f: f(*_qkv((5, 8)), attn_mask=torch.ones(5, 5, dtype=torch.int32)),
    "mask dtype double": lambda f: f(*_qkv((5, 8)), attn_mask=torch.ones(5, 5).double()),
    "mask sizes": lambda f: f(*_qkv((5, 8)), attn_mask=torch.ones(5, 6)),
    "mask rank": lambda f: f(*_qkv((5, 8)), attn_mask=torch.ones(2, 5, 5)),
    "mask 1-D": lambda f: f(*_qkv((2, 3, 5, 8)), attn_mask=torch.ones(5)),
    "p below 0": lambda f: f(*_qkv((2, 3, 5, 8)), dropout_p=-0.1),
    "p above 1": lambda f: f(*_qkv((2, 3, 5, 8)), dropout_p=1.5),
    "mask and causal": lambda f: f(*_qkv((3, 5, 8)), attn_mask=torch.ones(5, 5).bool(), is_causal=True),
    "not a tensor": lambda f: f(None, *_qkv((5, 8))[:2]),
    "causal int": lambda f: f(*_qkv((2, 3, 5, 8)), is_causal=1),
    "causal None": lambda f: f(*_qkv((2, 3, 5, 8)), is_causal=None),
    "grouped int": lambda f: f(*_qkv((2, 3, 5, 8)), enable_gqa=0),
    "unknown argument": lambda f: f(*_qkv((2, 3, 5, 8)), mask=None),
    "empty mask sizes": lambda f: f(*_qkv((5, 8), (0, 8), (0, 8)), attn_mask=torch.ones(4, 0, dtype=torch.int32)),
    "scale": lambda f: f(*_qkv((5, 8)), scale="x"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_raises_what_native_raises(kind):
    with pytest.raises(Exception) as native:  # noqa: PT011 - native's type is the expectation
        BAD[kind](native_sdpa)
    with pytest.raises(native.type):
        BAD[kind](sdpa)


def test_raw_ops_refuse_what_does_not_fit():
    q, k, v = inputs_of((1, 2, 2, 5, 6, 8, 8), torch.float32)
    forward, backward = torch.ops.tilewright.attention_forward, torch.ops.tilewright.attention_backward
    with pytest.raises(RuntimeError, match="expected"):
        forward(q, k[:, :, :3], v, None, None, 0.0, False, None)
    with pytest.raises(RuntimeError, match="seed"):
        forward(q, k, v, None, None, 0.5, False, None)
    output, logsumexp = forward(q, k, v, None, None, 0.0, False, None)
    wanted = [True, True, True, False]
    with pytest.raises(RuntimeError, match="logsumexp"):
        backward(output, q, k, v, output, logsumexp[..., 1:], None, None, 0.0, False, None, wanted)
    with pytest.raises(RuntimeError, match="grad_output"):
        backward(output[:, :1], q, k, v, output, logsumexp, None, None, 0.0, False, None, wanted)
