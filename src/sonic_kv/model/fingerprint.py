"""Which base model something was made for: its shapes, and a digest of sampled weights.

Needs neither transformers nor the model in memory: the fingerprint of a checkpoint's files is that of the
model loaded from them.
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sonic_kv.errors import AdapterError, FileError

SAMPLE = 64  # the first numbers of every weight


def head_dim(config: Any) -> int:
    """Width of one attention head, which many configs leave to be computed."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def kv_heads(config: Any) -> int:
    """Number of KV heads, which configs without grouped queries leave out."""
    return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)


def describe(config: Any, weights: Iterable[tuple[str, Sequence[int], Tensor]]) -> dict[str, Any]:
    """The fingerprint. Samples are taken in bf16, so that the same checkpoint has the same digest in any dtype.

    Args:
        config: the text model's.
        weights: name, shape and first `SAMPLE` numbers of each.
    """
    digest = hashlib.sha256()
    for name, shape, sample in sorted(weights, key=lambda weight: weight[0]):
        digest.update(f"{name}:{tuple(shape)}".encode())
        digest.update(sample.to("cpu", torch.bfloat16).view(torch.uint8).numpy().tobytes())
    return {
        "model_type": config.model_type,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": kv_heads(config),
        "vocab_size": config.vocab_size,
        "weights": digest.hexdigest()[:16],
    }


def checkpoint_fingerprint(config: Any, folder: str | Path) -> dict[str, Any]:
    """The fingerprint of a checkpoint whose safetensors files lie in `folder`.

    It is the loaded model's where the files name weights as the model does: dense Llama, Qwen and Mistral
    do; files of quantised models, and of experts that transformers merges, do not.

    Raises:
        FileError: a file is damaged.
    """
    tied = {"lm_head.weight"} if getattr(config, "tie_word_embeddings", False) else set()
    weights = []
    for path in sorted(Path(folder).glob("model*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                for name in {*file.keys()} - tied:
                    weight = file.get_slice(name)
                    shape = weight.get_shape()
                    rows = SAMPLE if len(shape) == 1 else SAMPLE // shape[-1] + 1
                    weights.append((name, shape, weight[:rows].flatten()[:SAMPLE]))
        except (SafetensorError, OSError) as error:
            raise FileError(f"{path} is damaged or not a safetensors file: {error}") from error
    return describe(config, weights)


def check_fingerprint(found: Any, base: dict[str, Any], what: str) -> None:
    """Raise `AdapterError` naming the first property in which `found` is not the base model's."""
    found = found if isinstance(found, dict) else {}
    for name, value in base.items():
        if found.get(name) != value:
            raise AdapterError(
                f"{what} was made for another model: {name} is {found.get(name)!r} there and {value!r} here; "
                "load it with the model it was made for"
            )
