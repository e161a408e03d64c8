"""Tiny random models of every family and a byte-level tokenizer, built in the process."""

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedTokenizerFast

from sonic_kv.model.adapter import Adapter
from sonic_kv.model.model import SonicModel
from sonic_kv.model.options import AdapterConfig

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|bos|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]

SHAPE: dict[str, Any] = {
    "vocab_size": 262,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 256,
    "pad_token_id": 257,
    "eos_token_id": 261,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"head_dim": 8},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "mistral": {"head_dim": 8, "sliding_window": None},
    "gemma2": {
        "head_dim": 8,
        "sliding_window": 512,
        "query_pre_attn_scalar": 8,
        "attn_logit_softcapping": 2.0,
    },
    "gemma3_text": {"head_dim": 8, "sliding_window": 512, "query_pre_attn_scalar": 8},
    "phi3": {},
    "phi3-partial": {"partial_rotary_factor": 0.5},
}


def tiny_tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """One token a byte, and the special tokens of the default model."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|bos|>", pad_token="<|pad|>", eos_token="<|end|>"
    )
    fast.add_special_tokens({"additional_special_tokens": SPECIAL[2:5]})
    fast.chat_template = template
    return fast


def tiny_base(family: str = "qwen3", *, seed: int = 0, **changes: Any) -> Any:
    """A random base model with weights large enough that attention is far from uniform."""
    torch.manual_seed(seed)
    config = CONFIG_MAPPING[family.split("-")[0]](**{**SHAPE, **FAMILIES[family], **changes})
    # SDPA, which transformers up to 5.2 chooses for Gemma 2, leaves soft caps out
    attention = changes.get("attn_implementation", "eager" if family == "gemma2" else None)
    base = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    for name, weight in base.named_parameters():
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.2 if "embed" not in name else 0.3)
    return base.float().eval()


def talkative(base: Any) -> Any:
    """Let `base` write nothing but ASCII: a reply is as long as it may be, and its text says which tokens it has."""
    with torch.no_grad():
        base.get_output_embeddings().weight[94:] = 0.0  # the first 94 of `tiny_tokenizer` are "!" to "~"
    return base


def random_adapter(base: Any, *, seed: int = 1, **config: Any) -> Adapter:
    """An adapter whose every tensor is random: nothing is a no-op."""
    torch.manual_seed(seed)
    adapter = Adapter(base, AdapterConfig(**{"lora_rank": 4, "scorer_hidden": 8, **config}))
    with torch.no_grad():
        for weight in adapter.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return adapter.eval()


def tiny_model(family: str = "qwen3", *, adapter: bool | dict[str, Any] = True, **changes: Any) -> SonicModel:
    """A `SonicModel` on a tiny random base, with a random adapter unless told otherwise."""
    base = tiny_base(family, **changes)
    options = adapter if isinstance(adapter, dict) else {}
    return SonicModel(
        base, tiny_tokenizer(), random_adapter(base, **options) if adapter is not False else None
    )


DIALOGUE = [
    {"role": "user", "content": "my sister Ada lives in Oslo"},
    {"role": "assistant", "content": "good to know"},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "hello, how are you today?"},
    {"role": "user", "content": "the door code is 4711, keep it"},
    {"role": "assistant", "content": "ok"},
    {"role": "user", "content": "where does Ada live?"},
    {"role": "assistant", "content": "in Oslo"},
]
