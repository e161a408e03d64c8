"""Models of known shapes with random weights: their speed is that of the real ones, and nothing is downloaded."""

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from sonic_kv.bench.options import Shape
from sonic_kv.model.adapter import Adapter
from sonic_kv.model.model import SonicModel
from sonic_kv.model.options import AdapterConfig

LONGEST = 1 << 17  # positions, so that every length can be timed
_QWEN3 = {
    "model_type": "qwen3",
    "vocab_size": 151936,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": True,
}
SHAPES: dict[Shape, dict[str, Any]] = {
    "qwen3-0.6b": {**_QWEN3, "hidden_size": 1024, "intermediate_size": 3072},
    "qwen3-1.7b": {**_QWEN3, "hidden_size": 2048, "intermediate_size": 6144},
    "qwen2.5-7b": {
        "model_type": "qwen2",
        "vocab_size": 152064,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "hidden_size": 3584,
        "intermediate_size": 18944,
    },
    "llama-8b": {
        "model_type": "llama",
        "vocab_size": 128256,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "hidden_size": 4096,
        "intermediate_size": 14336,
    },
}


def random_model(shape: Shape, device: str, dtype: torch.dtype, tokenizer: Any, seed: int) -> SonicModel:
    """A base and an adapter of `shape` with random weights.

    Args:
        tokenizer: any; timing feeds token ids.
    """
    options = dict(SHAPES[shape])
    kind = CONFIG_MAPPING[options.pop("model_type")]
    config = kind(**options, max_position_embeddings=LONGEST, bos_token_id=0, eos_token_id=1)
    torch.manual_seed(seed)
    with torch.device(device):
        base = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
        adapter = Adapter(base, AdapterConfig(lora_rank=16)).to(dtype).eval()
    return SonicModel(base, tokenizer, adapter)
