"""One decode step as a compiled graph, for small models: their step is mostly what it takes to call operations.

The graph's sums are in another order than those of the base's own operations: logits are equal to about 1e-5,
not bit for bit.
"""

from typing import Any

import torch
from torch import Tensor, fx, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from sonic_kv.attention import masked_attention, sonic_attention
from sonic_kv.cache import SessionCache
from sonic_kv.errors import ConfigError


class CompiledStep:
    """Feeds one token to a session's cache. Compiled once, for every length.

    Attributes:
        graphs: how often something had to be compiled.

    Raises:
        ConfigError: it cannot be compiled here.
    """

    def __init__(self, base: PreTrainedModel) -> None:
        self._base = base
        self.graphs = 0
        self._run = torch.compile(self._forward, dynamic=True, fullgraph=True, backend=self._compile)

    def __call__(self, cache: SessionCache, token_id: int) -> Tensor:
        """Logits after the token. (V,)

        Args:
            cache: with at least one entry.
        """
        assert cache.stored
        device, position = self._base.device, cache.next_position
        ids = torch.tensor([[token_id]], device=device)
        positions = torch.tensor([[position]], device=device)
        buffers = []
        for layer in cache.layers:
            buffer = layer.extend(1)
            buffers.append((layer.stacked(buffer.keys), layer.stacked(buffer.values)))
        with torch.no_grad(), sonic_attention(self._base):
            try:
                logits: Tensor = self._run(ids, positions, buffers, cache.stored)
            except Exception as error:
                lines = [line for line in str(error).splitlines() if line and not line.endswith("raised:")]
                reason = lines[0] if lines else type(error).__name__
                raise ConfigError(
                    f"cannot compile the decode step ({reason}): it needs a C++ compiler such as g++; or leave "
                    "compile off"
                ) from error
        return logits

    def _forward(
        self, ids: Tensor, positions: Tensor, buffers: list[tuple[Tensor, Tensor]], end: int
    ) -> Tensor:
        cache = Cache(layers=[_StepLayer(keys, values, end) for keys, values in buffers])
        output = self._base(
            input_ids=ids,
            position_ids=positions,
            attention_mask=ids.new_ones(1, 1, 1, 1, dtype=torch.bool),  # it sees everything
            past_key_values=cache,
            use_cache=True,
            sonic=_OneToken(),
        )
        logits: Tensor = output.logits[0, -1]
        return logits

    def _compile(self, graph: fx.GraphModule, inputs: list[Any]) -> Any:
        self.graphs += 1
        if self._base.device.type == "cpu":
            for node in graph.graph.nodes:
                if node.op == "call_function" and node.target is nn.functional.linear:
                    node.target = _linear
            graph.recompile()
        return torch._dynamo.lookup_backend("inductor")(graph, inputs)


def _linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A linear layer on one row as a sum: compiled, it reads the weights two to three times as fast as a
    matrix product of the BLAS does."""
    product = (rows.unsqueeze(-2) * weight).sum(-1)
    return product if bias is None else product + bias


class _OneToken:
    """Attention of one new token, which sees everything."""

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, _mask: Tensor, **options: Any
    ) -> Tensor:
        return masked_attention(query, key, value, None, **options)


class _StepLayer(DynamicLayer):
    """The buffers of one layer, (1, G, capacity, D); the new entry is the last of the first `end`."""

    keys: Tensor
    values: Tensor

    def __init__(self, keys: Tensor, values: Tensor, end: int) -> None:
        super().__init__()
        self.keys, self.values, self._end, self.is_initialized = keys, values, end, True

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        start, end = self._end - 1, self._end
        self.keys[:, :, start:end] = key_states
        self.values[:, :, start:end] = value_states
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self, *_: object) -> int:
        return self._end - 1
