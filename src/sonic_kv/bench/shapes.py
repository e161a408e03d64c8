"""Models of known shapes with random weights: their speed is that of the real ones, and nothing is downloaded."""

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from sonic_kv.bench.options import Shape
from sonic_kv.model.adapter import Adapter
from sonic_kv.model.model import SonicModel
from sonic_kv.model.options import AdapterConfig
from sonic_kv.model.shapes import KNOWN

LONGEST = 1 << 17  # positions, so that every length can be timed
SHAPES: dict[Shape, dict[str, Any]] = {
    "smollm2-135m": {"model_type": "llama", **KNOWN["HuggingFaceTB/SmolLM2-135M-Instruct"]},
    "qwen3-0.6b": {"model_type": "qwen3", **KNOWN["Qwen/Qwen3-0.6B"]},
    "qwen3-1.7b": {"model_type": "qwen3", **KNOWN["Qwen/Qwen3-1.7B"]},
    "qwen2.5-7b": {"model_type": "qwen2", **KNOWN["Qwen/Qwen2.5-7B-Instruct"]},
    "llama-8b": {"model_type": "llama", **KNOWN["meta-llama/Llama-3.1-8B-Instruct"]},
}


def random_model(shape: Shape, device: str, dtype: torch.dtype, tokenizer: Any, seed: int) -> SonicModel:
    """A base and an adapter of `shape` with random weights.

    Args:
        tokenizer: any; timing feeds token ids.
    """
    options = {**SHAPES[shape], "max_position_embeddings": LONGEST, "bos_token_id": 0, "eos_token_id": 1}
    config = CONFIG_MAPPING[options.pop("model_type")](**options)
    torch.manual_seed(seed)
    with torch.device(device):
        base = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
        adapter = Adapter(base, AdapterConfig()).to(dtype).eval()
    return SonicModel(base, tokenizer, adapter)
