"""Whether a base model can be compressed correctly: tried on four tokens."""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from sonic_kv.cache.attention import masked_attention
from sonic_kv.errors import NumericalError, UnsupportedModelError
from sonic_kv.model.forward import forward
from sonic_kv.model.rotary import Rope


@dataclass
class _Witness:
    """Notes which layers have the registered attention; every row sees all keys of its dialogue."""

    layers: set[int] = field(default_factory=set)

    def read(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, softcap: float | None
    ) -> Tensor:
        self.layers.add(layer)
        return masked_attention(query, key, value, None, scale=scale, softcap=softcap)


@torch.no_grad()
def verify(base: PreTrainedModel, twin: PreTrainedModel, rope: Rope, kv_heads: int, head_dim: int) -> None:
    """Check on four single tokens that it is known how the model attends and where keys stand.

    A token that is alone attends to itself only, wherever it stands: in every layer its value is the
    same at each position, and its key differs by the rotation and nothing else.

    Args:
        twin: of the base, with the registered attention.

    Raises:
        UnsupportedModelError: another attention, interleaved rotations, ALiBi, layers without positions …
        NumericalError: the keys are NaN.
    """
    name = type(base).__name__
    ids = torch.arange(1, 5, device=base.device)[:, None] * (base.get_input_embeddings().weight.shape[0] // 5)
    here, there, witness = DynamicCache(), DynamicCache(), _Witness()
    forward(base, ids, torch.full_like(ids, 5), cache=there)
    try:
        forward(twin, ids, torch.zeros_like(ids), witness, cache=here)
    except (TypeError, ValueError, RuntimeError, KeyError):
        witness.layers.clear()
    if len(witness.layers) != base.config.get_text_config().num_hidden_layers:
        raise UnsupportedModelError(f"{name} has an attention of its own: transformers cannot exchange it")
    for number, (first, second) in enumerate(zip(here.layers, there.layers, strict=True)):
        if first.keys.isnan().any() or second.values.isnan().any():
            raise NumericalError(f"the weights of {name} hold NaN: load or train it again")
        same = first.keys.shape == first.values.shape == (4, kv_heads, 1, head_dim)
        if not (
            same
            and _close(second.keys, rope.rotate(number, first.keys, torch.tensor(5)))
            and _close(second.values, first.values)
        ):
            raise UnsupportedModelError(
                f"{name} encodes positions in its own way (layer {number}): its stored keys are not rotated half "
                "by half, and could not be moved"
            )


def _close(found: Tensor, expected: Tensor) -> bool:
    tolerance = 16 * torch.finfo(found.dtype).eps * float(expected.abs().max())
    return bool(((found - expected).abs() <= tolerance).all())
