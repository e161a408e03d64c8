"""Decode steps as CUDA graphs: what a step launches is recorded once and then launched as a whole.

On a GPU a step of one dialogue is mostly the time that Python takes to launch its operations. A graph serves dialogues
of any lengths: where their entries stand, and how many they are, is in tensors (`cache.together`).
"""

import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sonic_kv.cache.cache import SessionCache
from sonic_kv.cache.together import Together
from sonic_kv.model.forward import forward


def rows_of(dialogues: int) -> int:
    """Rows of the graph that decodes so many: one graph serves several batch sizes."""
    return 1 << (dialogues - 1).bit_length() if dialogues <= 8 else -(-dialogues // 8) * 8


class GraphStep:
    """Feeds one token to each of some caches. Recorded once for some batch sizes, each when it is first needed.

    All graphs compute in the same memory: one of them runs at a time, and what it gives is copied.
    """

    def __init__(self, twin: PreTrainedModel) -> None:
        self._twin = twin
        self._graphs: dict[int, _Graph] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self._lock = threading.Lock()  # a graph has one set of inputs

    @torch.no_grad()
    def __call__(self, caches: Sequence[SessionCache], token_ids: Sequence[int]) -> Tensor:
        """Logits after each token. (B, V)"""
        rows = rows_of(len(caches))
        with self._lock, torch.cuda.device(self._twin.device):
            if rows not in self._graphs:
                self._graphs[rows] = _Graph(self._twin, caches, rows, self._pool)
            return self._graphs[rows](caches, token_ids)


class _Graph:
    """A graph of so many rows; the last ones may be nobody's."""

    def __init__(self, twin: PreTrainedModel, caches: Sequence[SessionCache], rows: int, pool: Any) -> None:
        self._twin, self._pool = twin, pool
        self._together = Together(caches, rows)
        self._fed = torch.zeros(2, rows, dtype=torch.int64, device=twin.device)  # token ids and positions
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, caches: Sequence[SessionCache], token_ids: Sequence[int]) -> Tensor:
        fed = torch.tensor([list(token_ids), [cache.next_position for cache in caches]])
        self._fed[:, : len(caches)].copy_(fed)
        self._together.take(caches)
        if self._graph is None:
            self._graph, self._logits = self._record()
        self._graph.replay()
        self._together.settle()  # while the GPU computes
        return self._logits[: len(caches)].clone()

    def _record(self) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # kernels are compiled and libraries get ready
            for _ in range(2):
                self._step()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            logits = self._step()
            self._together.count()
        return graph, logits

    def _step(self) -> Tensor:
        tokens, positions = self._fed[0][:, None], self._fed[1][:, None]
        return forward(self._twin, tokens, positions, self._together)[:, -1]
