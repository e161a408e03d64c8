"""The turn loop: rows (one dialogue under one method each) are read side by side, segment by segment.

Every row holds an ordinary `SessionCache`. A forward goes over the next segments of many rows, laid end to
end without padding; each row's attention sees its own cache and its own tokens, so that a batch gives the
same as its rows one by one. Rows that hold as many entries, as all methods do of one dialogue at one ratio,
share one call of the attention.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import accumulate, groupby, pairwise
from typing import Any, cast

import torch
from torch import Tensor

from sonic_kv.cache.attention import masked_attention
from sonic_kv.cache.cache import SessionCache
from sonic_kv.cache.layers import Memory
from sonic_kv.model.forward import forward
from sonic_kv.model.model import SonicModel
from sonic_kv.model.reader import Held, Reader
from sonic_kv.model.reread import portions
from sonic_kv.session.generate import Writer

WINDOW = 64  # newest queries whose attention is kept apart
WEIGHTS = 1 << 20  # attention weights held at once


@dataclass
class Row:
    """One dialogue under one method, as far as it has been read.

    Attributes:
        cache: prefix, memory, open segment.
        token_ids: the transcript so far.
        absent: per layer, memory slots that hold nothing, where heads or layers keep different numbers;
            None: every slot is taken. (G, n)
        paid: per layer, attention that each entry has received from all queries so far, summed over
            queries, mean over the query heads of its KV head. (1, G, S)
        window: per layer, attention that the newest queries of the open segment pay. (1, H, W, S)
        hidden: per layer, what entered the attention, of every token so far. (1, T, C)
        watched: `paid` and `window` are kept up.
        entered: `hidden` is.
        last: logits after the newest token. (V,)
        donor: the transcript of another dialogue.
        aside: what a method had read apart to close the open segment.
        seconds: wall time of its closings, and its tokens' share of the forwards.
    """

    cache: SessionCache
    token_ids: list[int] = field(default_factory=list)
    absent: list[Tensor] | None = None
    paid: list[Tensor] = field(default_factory=list)
    window: list[Tensor] = field(default_factory=list)
    hidden: list[Tensor] = field(default_factory=list)
    watched: bool = False
    entered: bool = False
    last: Tensor | None = None
    donor: Sequence[int] = ()
    aside: "Row | None" = None
    seconds: float = 0.0

    def fork(self, *, watched: bool = False, entered: bool = False) -> "Row":
        """A row that goes on by itself, and keeps up what it is asked to."""
        return replace(
            self,
            cache=self.cache.fork(),
            token_ids=list(self.token_ids),
            paid=list(self.paid) if watched else [],
            window=list(self.window) if watched else [],
            hidden=list(self.hidden) if entered else [],
            watched=watched,
            entered=entered,
            seconds=0.0,
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

    def scores(self, layer: int) -> Tensor:
        """Scores that memory and open segment, which has none yet (0), are stored with. (G, n + L)"""
        return torch.nn.functional.pad(self.cache.layers[layer].scores[0], (0, self.cache.open_length))

    def positions(self, layer: int) -> Tensor:
        """Transcript positions of memory and open segment. (G, n + L) int32"""
        cache, old = self.cache, self.cache.layers[layer].positions[0]
        fresh = torch.arange(cache.lengths.closed, cache.logical_length, dtype=torch.int32, device=old.device)
        return torch.cat((old, fresh.expand(len(old), -1)), dim=-1)

    def present(self, layer: int) -> Tensor:
        """Which slots of memory and open segment hold something. (G, n + L) bool"""
        keys, cache = self.cache.layers[layer].keys, self.cache
        size = (keys.shape[1], cache.stored - cache.lengths.prefix)
        held = torch.ones(size, dtype=torch.bool, device=keys.device)
        if self.absent is not None:
            held[:, : cache.lengths.memory] = ~self.absent[layer]
        return held

    def keep(self, kept: Sequence[Tensor], scores: Sequence[Tensor] = ()) -> None:
        """Close the open segment; of memory and open segment only `kept` stays.

        Args:
            kept: per layer, a subset of `present`. (G, n + L) bool
            scores: to be stored with the entries, for closings to come. (G, n + L)
        """
        masks, cache = torch.stack(list(kept)), self.cache  # (layers, G, n + L)
        counts, start = masks.sum(-1), cache.lengths.prefix
        size = int(counts.max())
        # kept ones first, each head's in order of the transcript
        order = (~masks).to(torch.uint8).argsort(dim=-1, stable=True)[..., :size]
        first = torch.arange(masks.shape[1], device=masks.device)[:, None] * cache.stored + start
        held = []
        for number, layer in enumerate(cache.layers):
            at, index = (order[number] + first).flatten(), order[number]
            # whole vectors are copied; `gather` goes number by number
            keys, values = (
                x.flatten(0, 2).index_select(0, at).unflatten(0, index.shape)
                for x in (layer.keys, layer.values)
            )
            score = scores[number] if scores else self.scores(number)
            position = self.positions(number)
            held.append(
                Memory(*map(list, (keys, values, position.gather(-1, index), score.gather(-1, index))))
            )
            if self.paid:
                paid, prefix = self.paid[number], self.paid[number][..., :start]
                self.paid[number] = torch.cat((prefix, paid[..., start:].gather(-1, index[None])), dim=-1)
        cache.keep(held, cache.lengths.closing(cache.open_length))
        absent = torch.arange(size, device=masks.device) >= counts[..., None]
        self.absent = list(absent) if bool(absent.any()) else None

    def held(self) -> list[float]:
        """Memory entries of each layer, mean over its KV heads."""
        size = self.cache.lengths.memory
        if self.absent is None:
            return [sum(layer.counts) / len(layer.counts) for layer in self.cache.layers]
        return [size - float(a.sum(-1).float().mean()) for a in self.absent]


@dataclass
class _Group:
    """Rows of one forward that have as many entries and as many new tokens, and stand side by side in it.

    Attributes:
        watch: add up the attention that the tokens pay, and keep that of the newest.
    """

    rows: Sequence[Row]
    watch: bool
    _same: Tensor | None = None  # the mask, if it is the same in all layers

    def read(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, softcap: float | None
    ) -> Tensor:
        """The rows take the new entries in. query (B, H, T, D), key and value (B, G, T, D) → (B, H, T, D)"""
        stores = [row.cache.layers[layer] for row in self.rows]
        for store, *new in zip(stores, key.split(1), value.split(1), strict=True):
            store.append(*new)
        keys, values = (torch.cat(held) for held in zip(*((s.keys, s.values) for s in stores), strict=True))
        shared = query.shape[1] // keys.shape[1]
        mask = self._mask(layer, keys, query.shape[2], shared)
        # the query heads of a KV head read its entries one behind the other: nothing is repeated
        grouped = query.unflatten(1, (keys.shape[1], shared)).flatten(2, 3)  # (B, G, R * T, D)
        if not self.watch:
            read = masked_attention(grouped, keys, values, mask, scale=scale, softcap=softcap)
        else:
            logits = (grouped @ keys.transpose(-1, -2)).float() * scale
            if softcap is not None:
                logits = torch.tanh(logits / softcap) * softcap
            weights = logits.add_(mask).softmax(-1)
            self._note(layer, weights.unflatten(2, (shared, -1)))
            read = weights.to(values.dtype) @ values
        output: Tensor = read.unflatten(2, (shared, -1)).flatten(1, 2)
        return output

    def _mask(self, layer: int, keys: Tensor, new: int, shared: int) -> Tensor:
        """What is added to the logits of each new token, for `shared` query heads. (1 or B, 1 or G, R * T, S)"""
        if self._same is not None:
            return self._same
        _, heads, stored, _ = keys.shape
        seen = torch.ones(1, 1, new, stored, dtype=torch.bool, device=keys.device).tril(stored - new)
        everywhere = all(row.absent is None for row in self.rows)
        if not everywhere:
            seen = seen.repeat(len(self.rows), heads, 1, 1)
            for own, row in zip(seen, self.rows, strict=True):
                if row.absent is not None:
                    first, held = row.cache.lengths.prefix, row.cache.lengths.memory
                    own[..., first : first + held] &= ~row.absent[layer][:, None]
        mask = (
            torch.zeros_like(seen, dtype=keys.dtype).masked_fill_(~seen, -torch.inf).repeat(1, 1, shared, 1)
        )
        self._same = mask if everywhere else None
        return mask

    def _note(self, layer: int, weights: Tensor) -> None:
        """weights: (B, G, R, T, S)"""
        paid = weights.sum(3).mean(2)  # (B, G, S)
        window = weights[:, :, :, -WINDOW:].flatten(1, 2)
        for number, row in enumerate(self.rows):
            now, newest = paid[number : number + 1], window[number : number + 1].clone()
            if layer < len(row.paid):
                old = row.paid[layer]
                row.paid[layer] = now + torch.nn.functional.pad(old, (0, now.shape[-1] - old.shape[-1]))
                row.window[layer] = newest
            else:
                row.paid.append(now)
                row.window.append(newest)


@dataclass
class _Reading:
    """The attention of a forward over the next tokens of several rows, laid end to end.

    Attributes:
        groups: where tokens stand, of how many rows, and how they read.
    """

    groups: Sequence[tuple[slice, int, Reader]]

    def read(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, softcap: float | None
    ) -> Tensor:
        parts = []
        for span, count, reader in self.groups:
            own = (x[0, :, span].unflatten(1, (count, -1)).transpose(0, 1) for x in (query, key, value))
            read = reader.read(layer, *own, scale=scale, softcap=softcap)
            parts.append(read.transpose(0, 1).flatten(1, 2))  # (H, rows * T, D)
        return torch.cat(parts, dim=1)[None]


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
    found: dict[int, Tensor] = {}
    waiting = sorted(range(len(rows)), key=lambda n: _likeness(rows[n], token_ids[n]))
    for numbers in portions(waiting, lambda n: len(token_ids[n])):
        begun = time.perf_counter()
        logits = _forward(
            model, [rows[n] for n in numbers], [token_ids[n] for n in numbers], [wanted[n] for n in numbers]
        )
        found.update(zip(numbers, logits, strict=True))
        share = (time.perf_counter() - begun) / sum(len(token_ids[n]) for n in numbers)
        for n in numbers:
            rows[n].seconds += share * len(token_ids[n])
    return [found[n] for n in range(len(rows))]


def _likeness(row: Row, token_ids: Sequence[int]) -> tuple[bool, bool, int, int]:
    return row.cache.even, row.watched, len(token_ids), row.cache.stored


def _groups(
    model: SonicModel, rows: Sequence[Row], token_ids: Sequence[Sequence[int]], spans: Sequence[slice]
) -> Iterator[tuple[slice, int, Reader]]:
    """Neighbours that are alike, at most so many that their attention weights fit: where, how many, their reader."""
    heads = model.config.num_attention_heads
    for (even, watch, new, stored), alike in groupby(
        range(len(rows)), lambda n: _likeness(rows[n], token_ids[n])
    ):
        members = list(alike)
        if not even:
            for n in members:
                yield spans[n], 1, Held([rows[n].cache], new, model.dtype, model.device)
            continue
        most = max(1, WEIGHTS // (heads * new * (stored + new)))
        for at in range(0, len(members), most):
            part = slice(members[at], members[at : at + most][-1] + 1)
            span = slice(spans[part][0].start, spans[part][-1].stop)
            yield span, len(rows[part]), _Group(rows[part], watch)


def _forward(
    model: SonicModel,
    rows: Sequence[Row],
    token_ids: Sequence[Sequence[int]],
    wanted: Sequence[Sequence[int]],
) -> list[Tensor]:
    """`read`, in one forward; rows that are alike are neighbours."""
    edges = list(accumulate((len(ids) for ids in token_ids), initial=0))
    spans = [slice(a, b) for a, b in pairwise(edges)]
    starts = [row.cache.next_position for row in rows]
    positions = [torch.arange(at, at + len(ids)) for at, ids in zip(starts, token_ids, strict=True)]
    # the last token's logits may be wanted with the next segment
    keep = [i for s, offsets in zip(spans, wanted, strict=True) for i in (*_at(s, offsets), s.stop - 1)]
    fed = torch.tensor([i for ids in token_ids for i in ids], device=model.device)
    with _entering(model, any(row.entered for row in rows)) as entered:
        output = forward(
            model.twin,
            fed[None],
            torch.cat(positions).to(model.device)[None],
            _Reading(list(_groups(model, rows, token_ids, spans))),
            logits=torch.tensor(keep, device=model.device),
        )
    found, at = [], 0
    for row, span, new, offsets in zip(rows, spans, token_ids, wanted, strict=True):
        size = len(_at(span, offsets))
        logits = output[0, at : at + size]
        if size < len(offsets):
            assert row.last is not None
            logits = torch.cat((row.last[None], logits))
        found.append(logits)
        row.last = output[0, at + size].clone()
        row.token_ids = [*row.token_ids, *new]
        for layer, states in entered.items() if row.entered else ():
            if layer < len(row.hidden):
                row.hidden[layer] = torch.cat((row.hidden[layer], states[:, span]), dim=1)
            else:
                row.hidden.append(states[:, span].clone())
        at += size + 1
    return found


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


def _at(span: slice, offsets: Sequence[int]) -> list[int]:
    return [span.start + i for i in offsets if i >= 0]


@contextmanager
def _entering(model: SonicModel, wanted: bool) -> Iterator[dict[int, Tensor]]:
    """What enters the attention of each layer, if it is wanted."""
    entered: dict[int, Tensor] = {}

    def note(module: Any, _arguments: Any, options: dict[str, Any]) -> None:
        entered[module.layer_idx] = options["hidden_states"]

    hooks = [
        layer.self_attn.register_forward_pre_hook(note, with_kwargs=True)
        for layer in (model.base.get_decoder().layers if wanted else ())
    ]
    try:
        yield entered
    finally:
        for hook in hooks:
            hook.remove()
