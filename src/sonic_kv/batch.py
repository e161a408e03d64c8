"""Decoding many dialogues at once: rows join and leave between steps, each with its own entries.

The batch is scratch: it copies what a row's cache holds and never writes to it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from sonic_kv.attention import masked_attention, sonic_attention
from sonic_kv.cache import SessionCache

COLUMNS = 128  # buffers grow by so many entries


class BatchLayer(DynamicLayer):
    """One layer: buffers (rows, G, columns, D) that are written in place, row by row at its own length."""

    keys: Tensor
    values: Tensor
    is_initialized: bool

    def __init__(self, batch: "BatchCache") -> None:
        super().__init__()
        self._batch = batch

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        count, end = len(self._batch), self._batch.longest + 1
        rows, at = torch.arange(count, device=self.keys.device), self._batch.columns
        self.keys[rows, :, at] = key_states[:, :, 0]
        self.values[rows, :, at] = value_states[:, :, 0]
        return self.keys[:count, :, :end], self.values[:count, :, :end]

    def get_seq_length(self, *_: object) -> int:
        return self._batch.longest

    def resize(self, rows: int, columns: int, held: int, like: Tensor) -> None:
        """Make room for so many rows and columns; the first `held` rows keep their entries."""
        old = (self.keys, self.values) if self.is_initialized else ()
        shape = (rows, like.shape[1], columns, like.shape[3])
        # zeros: what no row has written is masked, but must be finite
        fresh = [torch.zeros(shape, dtype=like.dtype, device=like.device) for _ in range(2)]
        for source, target in zip(old, fresh, strict=False):
            width = min(source.shape[2], columns)
            target[:held, :, :width] = source[:held, :, :width]
        self.keys, self.values = fresh
        self.is_initialized = True


class BatchCache(Cache):
    """Caches of several dialogues side by side for decoding.

    A row's entries stand at its first columns, in the order of its session cache; its next one is
    written behind them. Rows are numbered 0, 1, …; when one leaves, the last takes its number.

    Attributes:
        lengths: entries of each row.
        positions: RoPE position of each row's next token.
    """

    layers: list[BatchLayer]

    def __init__(self, num_layers: int) -> None:
        super().__init__(layers=[BatchLayer(self) for _ in range(num_layers)])
        self.lengths: list[int] = []
        self.positions: list[int] = []
        self.columns = torch.empty(0, dtype=torch.long)  # where the entries of a step go
        self._rows = self._columns = 0  # of the buffers

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def longest(self) -> int:
        """Entries of the longest row."""
        return max(self.lengths, default=0)

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers."""
        return sum(2 * layer.keys.nbytes for layer in self.layers if layer.is_initialized)

    @staticmethod
    def buffer_shape(rows: int, longest: int) -> tuple[int, int]:
        """Rows and columns of the buffers for `rows` rows, the longest of which has `longest` entries."""
        return 1 << (rows - 1).bit_length(), (longest // COLUMNS + 1) * COLUMNS

    def join(self, cache: SessionCache) -> int:
        """Add a dialogue with what its cache holds; returns its row."""
        row, stored = len(self), cache.stored
        self._fit(row + 1, max(self.longest, stored), cache.layers)
        for mine, theirs in zip(self.layers, cache.layers, strict=True):
            mine.keys[row, :, :stored] = theirs.keys[0]
            mine.values[row, :, :stored] = theirs.values[0]
        self.lengths.append(stored)
        self.positions.append(cache.next_position)
        return row

    def leave(self, row: int) -> None:
        """Remove a row; the last one takes its number."""
        last, length = len(self) - 1, self.lengths[-1]
        if row != last:
            for layer in self.layers:
                layer.keys[row, :, :length] = layer.keys[last, :, :length]
                layer.values[row, :, :length] = layer.values[last, :, :length]
            self.lengths[row], self.positions[row] = length, self.positions[last]
        self.lengths.pop()
        self.positions.pop()
        if not self.lengths:
            self.layers = [BatchLayer(self) for _ in self.layers]
            self._rows = self._columns = 0

    def give_back(self, row: int, cache: SessionCache) -> None:
        """Hand a row's entries to the cache that it joined from: its own, and those decoded since."""
        length = self.lengths[row]
        for mine, theirs in zip(self.layers, cache.layers, strict=True):
            theirs.keys = mine.keys[row : row + 1, :, :length].clone()
            theirs.values = mine.values[row : row + 1, :, :length].clone()

    @torch.no_grad()
    def step(self, base: PreTrainedModel, token_ids: Sequence[int]) -> Tensor:
        """Feed one token a row; the logits after each. (B, V)"""
        device = base.device
        if self.longest >= self._columns:
            self._fit(len(self), self.longest, self.layers)
        self.columns = torch.tensor(self.lengths, device=device)  # where each row's new entry goes
        seen = torch.arange(self.longest + 1, device=device) <= self.columns[:, None]
        with sonic_attention(base):
            output = base(
                input_ids=torch.tensor(token_ids, device=device)[:, None],
                position_ids=torch.tensor(self.positions, device=device)[:, None],
                attention_mask=seen[:, None, None],  # (B, 1, 1, S)
                past_key_values=self,
                use_cache=True,
                sonic=ONE_TOKEN,
            )
        self.lengths = [length + 1 for length in self.lengths]
        self.positions = [position + 1 for position in self.positions]
        logits: Tensor = output.logits[:, -1]
        return logits

    def _fit(self, rows: int, longest: int, like: Sequence[Any]) -> None:
        """Buffers for so many rows and one more entry than `longest`; far too large ones are let go.

        Args:
            like: layers whose keys are of the model's shape and kind.
        """
        rows, columns = self.buffer_shape(rows, longest)
        if rows <= self._rows and columns <= self._columns <= 2 * columns:
            return
        self._rows, self._columns = max(rows, self._rows), columns
        for mine, theirs in zip(self.layers, like, strict=True):
            mine.resize(self._rows, columns, len(self), theirs.keys)


class _OneToken:
    """Attention of one new token a row: the query heads of a KV head read its entries side by side.

    Nothing is repeated for grouped queries, which would copy the whole cache at every step.
    """

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **options: Any
    ) -> Tensor:
        batch, heads, _, width = query.shape
        grouped = query.view(batch, key.shape[1], heads // key.shape[1], width)  # (B, G, R, D)
        return masked_attention(grouped, key, value, mask, **options).view(batch, heads, 1, width)


ONE_TOKEN = _OneToken()
