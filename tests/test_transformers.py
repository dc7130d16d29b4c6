"""attn_implementation="tilewright" in Hugging Face models with random weights, against their eager attention."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import tilewright
from tilewright.integrations.transformers import attention_forward, register
from tilewright.testing import ops_called

VOCABULARY, LENGTH = 96, 17
COMMON = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0}
WIDE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}

MODELS: dict[str, Callable[[], tuple[type, Any]]] = {
    "bert": lambda: (transformers.BertForMaskedLM, transformers.BertConfig(**COMMON, **WIDE)),
    "gpt2": lambda: (
        transformers.GPT2LMHeadModel,
        transformers.GPT2Config(**COMMON, n_embd=64, n_layer=2, n_head=4, n_positions=64),
    ),
    "llama, 2 key heads": lambda: (
        transformers.LlamaForCausalLM,
        transformers.LlamaConfig(**COMMON, **WIDE, num_key_value_heads=2),
    ),
    "t5, position bias": lambda: (
        transformers.T5ForConditionalGeneration,
        transformers.T5Config(
            **COMMON, d_model=64, d_kv=16, d_ff=96, num_layers=2, num_heads=4, decoder_start_token_id=0
        ),
    ),
}
GENERATING = [name for name in MODELS if name != "bert"]


@pytest.fixture(autouse=True)
def _registered() -> None:
    register()


def _model(name: str, implementation: str) -> nn.Module:
    """The same weights for either implementation, dropout off."""
    torch.manual_seed(0)
    kind, config = MODELS[name]()
    model = kind._from_config(config, attn_implementation=implementation).eval()
    assert model.config._attn_implementation == implementation
    return model


def _batch(name: str) -> dict[str, Tensor]:
    """Three sequences, two of them padded: on the left where text is generated."""
    ids = torch.randint(2, VOCABULARY, (3, LENGTH), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, 12:], mask[2, 3:] = 0, 0
    return {"input_ids": ids, "attention_mask": mask.flip(1) if name in GENERATING else mask}


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_gradients_are_eager_attentions(name):
    batch = _batch(name)
    results = []
    for implementation in ("eager", register()):
        model = _model(name, implementation)
        extra = {"labels": batch["input_ids"]} if name.startswith("t5") else {}
        called = ops_called(partial(model, **batch, **extra))
        assert ("tilewright::attention_forward" in called) == (implementation != "eager"), sorted(called)
        assert "aten::scaled_dot_product_attention" not in called
        logits = model(**batch, **extra).logits
        real = logits if extra else logits[batch["attention_mask"].bool()]  # eager attends evenly where all is hidden
        gradients = torch.autograd.grad(real.sin().sum(), list(model.parameters()), allow_unused=True)
        results.append([real, *[g for g in gradients if g is not None]])
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("name", "cache"), [*((name, None) for name in GENERATING), ("gpt2", "static"), ("llama, 2 key heads", "static")]
)
def test_generates_what_eager_generates(name, cache):
    batch = _batch(name)
    options = {"max_new_tokens": 8, "do_sample": False, "cache_implementation": cache, "disable_compile": True}
    expected = _model(name, "eager").generate(**batch, **options)
    assert torch.equal(_model(name, register()).generate(**batch, **options), expected)


def test_dropout_in_training():
    kind, config = MODELS["bert"]()
    model = kind._from_config(config, attn_implementation=register()).train()
    batch = _batch("bert")
    losses = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        losses.append(model(**batch, labels=batch["input_ids"]).loss.item())
    assert losses[0] == losses[1] != losses[2]


def test_can_be_set_on_a_model_that_is_there():
    model, batch = _model("gpt2", "eager"), _batch("gpt2")
    expected = model(**batch).logits[:, -1]
    model.set_attn_implementation(register())
    torch.testing.assert_close(model(**batch).logits[:, -1], expected, rtol=1e-4, atol=2e-5)


def test_beside_accelerate():
    model, batch = _model("bert", register()), _batch("bert")
    expected = model(**batch).logits
    tilewright.accelerate(model)
    torch.testing.assert_close(model(**batch).logits, expected, rtol=1e-4, atol=2e-5)


def test_causal_is_the_modules_own_and_masks_add_up_with_a_bias():
    q, k = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8)
    module = nn.Module()
    module.is_causal = False
    whole, _ = attention_forward(module, q, k, k, None)
    causal, _ = attention_forward(module, q, k, k, None, is_causal=True)
    assert whole.shape == (2, 5, 4, 8)
    torch.testing.assert_close(causal[:, -1], whole[:, -1])
    assert not torch.allclose(causal[:, 0], whole[:, 0])
    bias, hidden = torch.randn(1, 4, 5, 5), torch.ones(5, 5, dtype=torch.bool).triu(1)
    expected, _ = attention_forward(module, q, k, k, bias.masked_fill(hidden, float("-inf")))
    added = torch.zeros(5, 5).masked_fill(hidden, float("-inf"))
    for mask, is_causal in ((None, True), (~hidden, False), (added, False)):
        with_bias, _ = attention_forward(module, q, k, k, mask, is_causal=is_causal, position_bias=bias)
        torch.testing.assert_close(with_bias, expected)


@pytest.mark.parametrize("option", ["softcap", "s_aux"])
def test_refuses_what_it_cannot_compute(option):
    q = torch.randn(1, 2, 3, 4)
    with pytest.raises(ValueError, match=rf"no {option}, which Identity asks for.*eager"):
        attention_forward(nn.Identity(), q, q, q, None, **{option: 1.0})
