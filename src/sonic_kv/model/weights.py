"""A base with the weights of its files: all of them, or an error."""

from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, PreTrainedModel

from sonic_kv.errors import ModelError


def read_weights(place: str | Path, name: str | Path, **options: Any) -> PreTrainedModel:
    """What `AutoModelForCausalLM` makes of a folder or hub id; weights that are missing there would be random.

    Args:
        name: what the user calls it.
        options: of `from_pretrained`.

    Raises:
        ModelError: weights are missing.
    """
    found = AutoModelForCausalLM.from_pretrained(place, output_loading_info=True, **options)
    base: PreTrainedModel = found[0]
    missing = sorted(found[1]["missing_keys"])
    if missing:
        raise ModelError(
            f"cannot load model '{name}': {len(missing)} of its weights are missing, {missing[0]} for one"
        )
    return base
