"""Rotary positions: stored keys are moved to other positions, with the model's own frequencies."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sonic_kv.errors import UnsupportedModelError

ATTENTION_LAYERS = (None, "full_attention", "sliding_attention")
STATIC_ROPE = ("default", "linear", "llama3", "yarn")


class Rope:
    """Rotations of stored keys, with the model's own frequencies.

    Rotations compose: a key encoded at position p becomes one at position p + d by rotating it by
    d. The attention scaling that some variants put into cos and sin is already in the key.

    Raises:
        UnsupportedModelError: the model has no rotary embedding, or one that depends on the length.
    """

    def __init__(self, base: PreTrainedModel) -> None:
        config = base.config.get_text_config()
        rotary = next((m for m in base.modules() if type(m).__name__.endswith("RotaryEmbedding")), None)
        if rotary is None:
            raise UnsupportedModelError(
                f"{type(base).__name__} has no rotary position embedding (RoPE): its keys cannot be moved"
            )
        layer_types = getattr(config, "layer_types", None) or [None] * config.num_hidden_layers
        self._inv_freq: list[Tensor] = []
        for layer_type in layer_types[: config.num_hidden_layers]:
            if layer_type not in ATTENTION_LAYERS:
                raise UnsupportedModelError(
                    f"a layer of type {layer_type!r} does not keep every token's key and value: "
                    f"{type(base).__name__} has no cache that could be compressed"
                )
            rope_type = getattr(rotary, "rope_type", "default")
            if isinstance(rope_type, dict):
                rope_type = rope_type[layer_type]
            if rope_type not in STATIC_ROPE:
                raise UnsupportedModelError(
                    f"rope type {rope_type!r} changes with the length of the input: stored keys would go stale; "
                    f"supported are {', '.join(STATIC_ROPE)}"
                )
            inv_freq = getattr(rotary, f"{layer_type}_inv_freq", None)
            self._inv_freq.append(rotary.inv_freq if inv_freq is None else inv_freq)

    def rotate(self, layer: int, keys: Tensor, shift: Tensor) -> Tensor:
        """Move keys by `shift` positions, rotated in fp32.

        Args:
            keys: (..., S, D)
            shift: positions, broadcastable to (..., S)
        """
        # angles in fp64, where the device has it: repeated rotations must not drift
        exact = torch.float32 if keys.device.type == "mps" else torch.float64
        inv_freq = self._inv_freq[layer].to(device=keys.device, dtype=exact)
        width = 2 * inv_freq.shape[0]  # partial rotary embeddings turn the first `width` of D only
        angle = shift.to(keys.device, exact)[..., None] * inv_freq
        cos, sin = angle.cos().float(), angle.sin().float()
        x, y = keys[..., : width // 2].float(), keys[..., width // 2 : width].float()
        turned = torch.cat((x * cos - y * sin, y * cos + x * sin), dim=-1).to(keys.dtype)
        return turned if width == keys.shape[-1] else torch.cat((turned, keys[..., width:]), dim=-1)
