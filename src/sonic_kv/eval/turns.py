"""Rows, one dialogue under one method each, are read side by side, segment by segment.

Every row holds an ordinary `SessionCache`, and closes its segments as a session does. A forward goes over the next
tokens of many rows, laid end to end without padding; each row sees its own cache and its own tokens.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import cast

import torch
from torch import Tensor

from sonic_kv.cache.cache import SessionCache
from sonic_kv.eval.watch import Recorder
from sonic_kv.model.forward import forward
from sonic_kv.model.model import SonicModel
from sonic_kv.model.reader import AttentionOptions, Held, Reader
from sonic_kv.model.reread import portions
from sonic_kv.session.generate import Writer

Watch = Callable[[int, torch.device], Recorder]  # of a segment's number of tokens


@dataclass
class Row:
    """One dialogue under one method, as far as it has been read.

    Attributes:
        cache: prefix, memory, open segment.
        token_ids: the transcript so far.
        watches: what is recorded while a segment is read.
        noted: what was recorded of the open segment, by kind of recorder.
        last: logits after the newest token. (V,)
        seconds: wall time of its closings, and its tokens' share of the forwards.
    """

    cache: SessionCache
    token_ids: list[int] = field(default_factory=list)
    watches: tuple[Watch, ...] = ()
    noted: Mapping[type, Recorder] = field(default_factory=dict)
    last: Tensor | None = None
    seconds: float = 0.0

    def fork(self, watches: tuple[Watch, ...] = ()) -> "Row":
        """A row that goes on by itself, and is watched as it is asked for."""
        return replace(
            self, cache=self.cache.fork(), token_ids=list(self.token_ids), watches=watches, seconds=0.0
        )

    def before(self, position: int) -> "Row":
        """A fork as it was when the next token was the transcript's at `position`, in the same open segment."""
        row, count = self.fork(), len(self.token_ids) - position
        row.cache.drop_newest(count)
        row.token_ids = row.token_ids[:position]
        return row

    @property
    def open_ids(self) -> list[int]:
        """Tokens of the open segment."""
        return self.token_ids[len(self.token_ids) - self.cache.open_length :]

    def kept(self) -> float:
        """Memory entries, mean over layers and KV heads."""
        counts = [n for layer in self.cache.kept_layers for n in layer.counts]
        return sum(counts) / len(counts)


class Watched:
    """A row that goes on in its cache, and what its tokens do is recorded."""

    def __init__(self, row: Row, count: int, model: SonicModel) -> None:
        self._held = Held([row.cache], count, model.dtype, model.device)
        self._layers, self._recorders = row.cache.layers, row.noted.values()
        columns = torch.arange(row.cache.longest + count, device=model.device)
        self._seen = (columns <= columns[-count:, None])[None, None]  # (1, 1, T, S)

    def read(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, softcap: float | None
    ) -> Tensor:
        options: AttentionOptions = {"scale": scale, "softcap": softcap}
        found = self._held.read(layer, query, key, value, **options)
        store = self._layers[layer]
        keys, values = store.padded()
        for recorder in self._recorders:
            seen = store.present(self._seen[:, :, recorder.offsets])
            recorder.observe(layer, query, keys, values, seen, **options)
        return found


@dataclass
class SideBySide:
    """Several readers, each over its own tokens of a forward, which are laid end to end."""

    parts: Sequence[tuple[slice, Reader]]

    def read(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, softcap: float | None
    ) -> Tensor:
        found = [
            reader.read(
                layer, query[:, :, span], key[:, :, span], value[:, :, span], scale=scale, softcap=softcap
            )
            for span, reader in self.parts
        ]
        return torch.cat(found, dim=2)


@torch.no_grad()
def read(
    model: SonicModel,
    rows: Sequence[Row],
    token_ids: Sequence[Sequence[int]],
    wanted: Sequence[Sequence[int]],
) -> list[Tensor]:
    """Feed each row its next tokens, as many rows in one forward as fit.

    Args:
        token_ids: at least one a row.
        wanted: of each row, offsets of the tokens after which logits are wanted; -1: of the token before.

    Returns:
        logits, per row (wanted, V)
    """
    for row, ids in zip(rows, token_ids, strict=True):
        model.check_room(row.cache, len(ids))
    found: list[Tensor] = []
    for numbers in portions(range(len(rows)), lambda n: len(token_ids[n])):
        begun = time.perf_counter()
        part = slice(numbers[0], numbers[-1] + 1)
        found += _forward(model, rows[part], token_ids[part], wanted[part])
        share = (time.perf_counter() - begun) / sum(len(token_ids[n]) for n in numbers)
        for n in numbers:
            rows[n].seconds += share * len(token_ids[n])
    return found


def _reader(model: SonicModel, row: Row, count: int) -> Reader:
    """How a row reads its next tokens."""
    recorders = [watch(count, model.device) for watch in row.watches]
    row.noted = {type(recorder): recorder for recorder in recorders}
    if row.noted:
        return Watched(row, count, model)
    return Held([row.cache], count, model.dtype, model.device)


def _forward(
    model: SonicModel,
    rows: Sequence[Row],
    token_ids: Sequence[Sequence[int]],
    wanted: Sequence[Sequence[int]],
) -> list[Tensor]:
    """`read`, in one forward."""
    edges = list(accumulate((len(ids) for ids in token_ids), initial=0))
    spans = [slice(a, b) for a, b in pairwise(edges)]
    starts = [row.cache.next_position for row in rows]
    positions = [torch.arange(at, at + len(ids)) for at, ids in zip(starts, token_ids, strict=True)]
    # the last token's logits may be wanted with the next segment
    keep = [i for s, offsets in zip(spans, wanted, strict=True) for i in (*_at(s, offsets), s.stop - 1)]
    parts = [(s, _reader(model, row, s.stop - s.start)) for s, row in zip(spans, rows, strict=True)]
    logits = forward(
        model.twin,
        torch.tensor([[i for ids in token_ids for i in ids]], device=model.device),
        torch.cat(positions).to(model.device)[None],
        SideBySide(parts),
        logits=torch.tensor(keep, device=model.device),
    )[0]
    found, at = [], 0
    for row, span, new, offsets in zip(rows, spans, token_ids, wanted, strict=True):
        size = len(_at(span, offsets))
        own = logits[at : at + size]
        if size < len(offsets):
            assert row.last is not None
            own = torch.cat((row.last[None], own))
        found.append(own)
        row.last = logits[at + size].clone()
        row.token_ids = [*row.token_ids, *new]
        at += size + 1
    return found


def _at(span: slice, offsets: Sequence[int]) -> list[int]:
    return [span.start + i for i in offsets if i >= 0]


def write(model: SonicModel, rows: Sequence[Row], max_new_tokens: int) -> list[str]:
    """The replies that greedy decoding gives behind each row, all rows at once; the rows take them in.

    No segment is closed meanwhile, however long the open one grows.
    """
    prompt = model.format.generation_prompt()
    read(model, rows, [prompt] * len(rows), [[]] * len(rows))
    texts = [""] * len(rows)
    writers = [Writer(model, (), min(max_new_tokens, model.room(row.cache))) for row in rows]
    going = list(range(len(rows)))
    while going:
        tokens = torch.stack([cast(Tensor, rows[n].last) for n in going]).argmax(-1).tolist()
        pieces = [writers[n].add(token) for n, token in zip(going, tokens, strict=True)]
        for n, piece in zip(going, pieces, strict=True):
            texts[n] += piece.text
        left = [
            (n, piece.token_id) for n, piece in zip(going, pieces, strict=True) if piece.finish_reason is None
        ]
        going = [n for n, _ in left]
        if left:
            read(model, [rows[n] for n in going], [[token] for _, token in left], [[]] * len(left))
    return texts
