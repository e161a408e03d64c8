"""One decode step as a compiled graph, for small models: their step is mostly what it takes to call operations.

All but the attention is compiled: that is one operation of the graph, which stores and reads entries wherever a
cache has them, so that one graph serves every length and share of heads. Its sums are in another order than those of
the base's own operations: logits are equal to about 1e-5, not bit for bit.
"""

import threading
from typing import Any

import torch
from torch import Tensor, fx, nn
from transformers import PreTrainedModel

from sonic_kv.cache.cache import SessionCache
from sonic_kv.errors import ConfigError
from sonic_kv.model.batch import columns
from sonic_kv.model.forward import forward
from sonic_kv.model.reader import Held, Reader

_step = threading.local()  # `reader`: of the step that this thread is in
_library = torch.library.Library("sonic_kv", "DEF")
_library.define(
    "read(Tensor query, Tensor key, Tensor value, int layer, float scale, float? softcap) -> Tensor"
)


def _read(
    query: Tensor, key: Tensor, value: Tensor, layer: int, scale: float, softcap: float | None
) -> Tensor:
    reader: Reader = _step.reader
    return reader.read(layer, query, key, value, scale=scale, softcap=softcap)


def _like_query(query: Tensor, *_: object) -> Tensor:
    return query.new_empty(query.shape)


_library.impl("read", _read, "CompositeExplicitAutograd")
torch.library.register_fake("sonic_kv::read", _like_query, lib=_library)


class CompiledStep:
    """Feeds one token to a session's cache. Compiled once, for every cache.

    Attributes:
        graphs: how often something had to be compiled.

    Raises:
        ConfigError: it cannot be compiled here.
    """

    def __init__(self, twin: PreTrainedModel) -> None:
        self._twin = twin
        self.graphs = 0
        self._run = torch.compile(self._forward, dynamic=False, fullgraph=True, backend=self._compile)

    @torch.no_grad()
    def __call__(self, cache: SessionCache, token_id: int) -> Tensor:
        """Logits after the token. (V,)"""
        twin = self._twin
        _step.reader = Held([cache], 1, twin.dtype, twin.device)
        try:
            logits: Tensor = self._run(*columns([cache], [token_id], twin.device))
        except Exception as error:
            lines = [line for line in str(error).splitlines() if line and not line.endswith("raised:")]
            reason = lines[0] if lines else type(error).__name__
            raise ConfigError(
                f"cannot compile the decode step ({reason}): it needs a C++ compiler such as g++; or leave "
                "compile off"
            ) from error
        finally:
            del _step.reader
        return logits[0, -1]

    def _forward(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        return forward(self._twin, token_ids, positions, _InOneOperation())

    def _compile(self, graph: fx.GraphModule, inputs: list[Any]) -> Any:
        self.graphs += 1
        if self._twin.device.type == "cpu":
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


class _InOneOperation:
    """The attention of the step's rows, which the compiler does not look into."""

    def read(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, softcap: float | None
    ) -> Tensor:
        found: Tensor = torch.ops.sonic_kv.read(query, key, value, layer, scale, softcap)
        return found
