"""What chosen rows of a forward attend to, and what they read there."""

from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sonic_kv.cache.attention import capped


@dataclass
class Probe:
    """Records what chosen query rows attend to, without ever holding a whole map.

    `seen[layer]` is (B, G, R, Q, S): probabilities of the R query heads of each KV head, for the Q
    chosen rows, over all S columns; `outputs[layer]` is what they read there, (B, G, R, Q, D).
    """

    rows: Tensor  # (B, Q) row numbers
    layers: Collection[int] | None = None  # None: all
    seen: dict[int, Tensor] = field(default_factory=dict)
    outputs: dict[int, Tensor] = field(default_factory=dict)

    def observe(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        allowed: Tensor,
        *,
        scale: float,
        softcap: float | None,
    ) -> None:
        """Record a layer. `allowed`: what the chosen rows see. (B, 1 or G, Q, S) bool"""
        heads, groups = query.shape[1], key.shape[1]
        at = self.rows[:, None, :, None].expand(-1, heads, -1, query.shape[-1])
        chosen = query.gather(2, at).unflatten(1, (groups, heads // groups))  # (B, G, R, Q, D)
        logits = capped(torch.einsum("bgrqd,bgsd->bgrqs", chosen, key).float() * scale, softcap)
        self.seen[layer] = logits.masked_fill(~allowed[:, :, None], -torch.inf).softmax(-1)
        self.outputs[layer] = torch.einsum("bgrqs,bgsd->bgrqd", self.seen[layer], value.float())

    def watches(self, layer: int) -> bool:
        return self.layers is None or layer in self.layers
