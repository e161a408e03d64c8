"""Shapes of models: what a configuration says about the size of weights and cache, without loading anything."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sonic_kv.errors import ConfigError

EVERY = {
    "gemma2": 2,
    "gemma3": 6,
    "gemma3_text": 6,
}  # every so many-th layer sees all, where a file does not say so


@dataclass(frozen=True)
class ModelShape:
    """What decides how much memory a model and its cache take.

    Attributes:
        parameters: number of weights, from the configuration: norms and biases are left out.
        positions: longest dialogue that the model was made for, in tokens.
        windows: of every layer, how many of its newest tokens a token sees; None: all. Empty: all layers see all.
    """

    layers: int
    query_heads: int
    kv_heads: int
    head_dim: int
    parameters: int
    positions: int
    windows: tuple[int | None, ...] = ()

    @property
    def heads(self) -> int:
        """KV heads of all layers together."""
        return self.layers * self.kv_heads

    @property
    def compressed_heads(self) -> int:
        """KV heads of the layers that see all of the past."""
        return (self.layers - len(self._reached)) * self.kv_heads

    @property
    def _reached(self) -> list[int]:
        """How many tokens layers with a sliding window keep."""
        return [window - 1 for window in self.windows if window is not None]

    def window_bytes(self, tokens: int, number_bytes: int) -> int:
        """Bytes of a dialogue in the layers with a sliding window."""
        kept = sum(min(tokens, reached) for reached in self._reached)
        return 2 * kept * self.kv_heads * self.head_dim * number_bytes

    def token_bytes(self, number_bytes: int) -> int:
        """Bytes of one token's keys and values over all layers, `number_bytes` each number."""
        return 2 * self.heads * self.head_dim * number_bytes


def shape_of(config: Mapping[str, Any], name: str) -> ModelShape:
    """The shape that a model's `config.json` describes; `name` is what errors call it.

    Raises:
        ConfigError: it is not the configuration of a decoder-only language model.
    """
    text = config.get("text_config", config)
    try:
        query_heads, hidden, layers = (
            text["num_attention_heads"],
            text["hidden_size"],
            text["num_hidden_layers"],
        )
        head_dim = text.get("head_dim") or hidden // query_heads
        kv_heads = text.get("num_key_value_heads") or query_heads
        tables = 1 if text.get("tie_word_embeddings", config.get("tie_word_embeddings", True)) else 2
        attention = 2 * hidden * head_dim * (query_heads + kv_heads)
        block = attention + 3 * hidden * text["intermediate_size"] * text.get("num_local_experts", 1)
        parameters = tables * text["vocab_size"] * hidden + layers * block
        positions, windows = text["max_position_embeddings"], windows_of(text)
        return ModelShape(layers, query_heads, kv_heads, head_dim, parameters, positions, windows)
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise ConfigError(f"{name} is not the configuration of a causal language model ({error})") from error


def windows_of(text: Mapping[str, Any]) -> tuple[int | None, ...]:
    """Of every layer of a configuration, how many of its newest tokens a token sees; None: all."""
    window, count = text.get("sliding_window"), int(text["num_hidden_layers"])
    if window is None or text.get("use_sliding_window") is False or window >= text["max_position_embeddings"]:
        return (None,) * count
    types, every = text.get("layer_types"), text.get("sliding_window_pattern")
    if types is None:  # files of older versions
        every = every or EVERY.get(text.get("model_type", ""))
        first = text.get("max_window_layers", 0) if text.get("use_sliding_window") else 0
        slides = [n >= first and not (every and (n + 1) % every == 0) for n in range(count)]
    else:
        slides = [kind == "sliding_attention" for kind in types[:count]]
    return tuple(int(window) if sliding else None for sliding in slides)


def _config(
    layers: int,
    hidden: int,
    heads: int,
    kv: int,
    width: int,
    inner: int,
    vocabulary: int,
    length: int,
    tied: bool,
) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "head_dim": width,
        "intermediate_size": inner,
        "vocab_size": vocabulary,
        "max_position_embeddings": length,
        "tie_word_embeddings": tied,
    }


# As their authors publish them, under the names they have on the hub.
KNOWN: dict[str, dict[str, Any]] = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": _config(30, 576, 9, 3, 64, 1536, 49152, 8192, True),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": _config(24, 2048, 32, 32, 64, 8192, 49152, 8192, True),
    "Qwen/Qwen2.5-0.5B-Instruct": _config(24, 896, 14, 2, 64, 4864, 151936, 32768, True),
    "Qwen/Qwen2.5-1.5B-Instruct": _config(28, 1536, 12, 2, 128, 8960, 151936, 32768, True),
    "Qwen/Qwen2.5-7B-Instruct": _config(28, 3584, 28, 4, 128, 18944, 152064, 32768, False),
    "Qwen/Qwen3-0.6B": _config(28, 1024, 16, 8, 128, 3072, 151936, 40960, True),
    "Qwen/Qwen3-1.7B": _config(28, 2048, 16, 8, 128, 6144, 151936, 40960, True),
    "Qwen/Qwen3-4B": _config(36, 2560, 32, 8, 128, 9728, 151936, 40960, True),
    "Qwen/Qwen3-8B": _config(36, 4096, 32, 8, 128, 12288, 151936, 40960, False),
    "meta-llama/Llama-3.2-1B-Instruct": _config(16, 2048, 32, 8, 64, 8192, 128256, 131072, True),
    "meta-llama/Llama-3.2-3B-Instruct": _config(28, 3072, 24, 8, 128, 8192, 128256, 131072, True),
    "meta-llama/Llama-3.1-8B-Instruct": _config(32, 4096, 32, 8, 128, 14336, 128256, 131072, False),
    "meta-llama/Llama-3.1-70B-Instruct": _config(80, 8192, 64, 8, 128, 28672, 128256, 131072, False),
    "mistralai/Mistral-7B-Instruct-v0.3": _config(32, 4096, 32, 8, 128, 14336, 32768, 32768, False),
}
