"""The turn loop: rows (one dialogue under one method each) are read side by side, segment by segment.

Every row holds an ordinary `SessionCache`. A batch is one forward over all rows' next segments, laid end
to end without padding; each row's attention sees its own cache and its own tokens, so that a batch
gives the same as its rows one by one.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import Any, cast

import torch
from torch import Tensor

from sonic_kv.attention import masked_attention, sonic_attention
from sonic_kv.cache import Lengths, Memory, SessionCache
from sonic_kv.generate import Writer
from sonic_kv.model import SonicModel

WINDOW = 64  # newest queries whose attention is kept apart


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
        last: logits after the newest token. (V,)
        donor: the transcript of another dialogue.
    """

    cache: SessionCache
    token_ids: list[int] = field(default_factory=list)
    absent: list[Tensor] | None = None
    paid: list[Tensor] = field(default_factory=list)
    window: list[Tensor] = field(default_factory=list)
    hidden: list[Tensor] = field(default_factory=list)
    last: Tensor | None = None
    donor: Sequence[int] = ()

    def fork(self) -> "Row":
        """A row that goes on by itself."""
        return replace(
            self,
            cache=self.cache.fork(),
            token_ids=list(self.token_ids),
            paid=list(self.paid),
            window=list(self.window),
            hidden=list(self.hidden),
        )

    def before(self, position: int) -> "Row":
        """A fork as it was when the next token was the transcript's at `position`, in the same open segment."""
        row, count = self.fork(), len(self.token_ids) - position
        row.cache.drop_newest(count)
        row.token_ids = row.token_ids[:position]
        row.paid, row.window, row.hidden = [], [], []  # nothing will be closed
        return row

    @property
    def open_ids(self) -> list[int]:
        """Tokens of the open segment."""
        return self.token_ids[len(self.token_ids) - self.cache.open_length :]

    def closing_lengths(self) -> Lengths:
        """What the cache's lengths become when the open segment closes and everything stays."""
        old, length = self.cache.lengths, self.cache.open_length
        return Lengths(
            prefix=old.prefix,
            memory=old.memory + length,
            segment_starts=(*old.segment_starts, old.closed),
            closed=old.closed + length,
        )

    def entries(self) -> list[Memory]:
        """Per layer memory and open segment."""
        start, result = self.cache.lengths.prefix, []
        for number, layer in enumerate(self.cache.layers):
            scores = torch.nn.functional.pad(layer.scores, (0, self.cache.open_length))
            positions = self.positions(number)[None]
            result.append(Memory(layer.keys[:, :, start:], layer.values[:, :, start:], positions, scores))
        return result

    def positions(self, layer: int) -> Tensor:
        """Transcript positions of `entries()`. (G, n + L) int32"""
        cache, old = self.cache, self.cache.layers[layer].positions[0]
        fresh = torch.arange(cache.lengths.closed, cache.logical_length, dtype=torch.int32, device=old.device)
        return torch.cat((old, fresh.expand(len(old), -1)), dim=-1)

    def present(self, layer: int) -> Tensor:
        """Which of `entries()` hold something. (G, n + L) bool"""
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
        counts = [mask.sum(-1) for mask in kept]
        size = int(max(int(count.max()) for count in counts))
        memory, absent, paid = [], [], []
        for number, (entry, mask, count) in enumerate(zip(self.entries(), kept, counts, strict=True)):
            # kept ones first, each head's in order of the transcript
            index = (~mask).to(torch.uint8).argsort(dim=-1, stable=True)[None, :, :size]
            wide = index[..., None].expand(-1, -1, -1, entry.keys.shape[-1])
            score = scores[number][None] if scores else entry.scores
            memory.append(
                Memory(
                    entry.keys.gather(2, wide),
                    entry.values.gather(2, wide),
                    entry.positions.gather(-1, index),
                    score.gather(-1, index),
                )
            )
            absent.append(torch.arange(size, device=mask.device) >= count[:, None])
            if self.paid:
                start = self.cache.lengths.prefix
                past = self.paid[number]
                paid.append(torch.cat((past[..., :start], past[..., start:].gather(-1, index)), dim=-1))
        lengths = replace(self.closing_lengths(), memory=size)
        self.cache.replace_memory(memory, lengths, drop_open=True)
        self.absent = absent if any(bool(a.any()) for a in absent) else None
        self.paid = paid

    def held(self) -> list[float]:
        """Memory entries of each layer, mean over its KV heads."""
        size = self.cache.lengths.memory
        if self.absent is None:
            return [float(size)] * len(self.cache.layers)
        return [size - float(a.sum(-1).float().mean()) for a in self.absent]


@dataclass
class _Reading:
    """The attention of a forward over the next tokens of several rows, laid end to end.

    Attributes:
        spans: where each row's tokens stand.
        watch: add up the attention that the tokens pay, and keep that of the newest.
    """

    rows: Sequence[Row]
    spans: Sequence[slice]
    watch: bool

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, _mask: Tensor, **options: Any
    ) -> Tensor:
        layer = module.layer_idx
        parts = []
        for row, span in zip(self.rows, self.spans, strict=True):
            store, before = row.cache.layers[layer], row.cache.layers[layer].stored
            keys, values = store.update(key[:, :, span], value[:, :, span])
            new = span.stop - span.start
            mask = torch.ones(new, keys.shape[2], dtype=torch.bool, device=keys.device).tril(before)[
                None, None
            ]
            if row.absent is not None:
                first, held = row.cache.lengths.prefix, row.cache.lengths.memory
                mask = mask.repeat(1, keys.shape[1], 1, 1)
                mask[..., first : first + held] &= ~row.absent[layer][:, None]
            if self.watch:
                self._observe(row, layer, query[:, :, span], keys, mask, **options)
            parts.append(masked_attention(query[:, :, span], keys, values, mask, **options))
        return torch.cat(parts, dim=2)

    def _observe(
        self,
        row: Row,
        layer: int,
        query: Tensor,
        key: Tensor,
        mask: Tensor,
        *,
        scale: float,
        softcap: float | None,
    ) -> None:
        grouped = query.unflatten(1, (key.shape[1], -1))  # (1, G, R, T, D)
        logits = torch.einsum("bgrtd,bgsd->bgrts", grouped, key).float() * scale
        if softcap is not None:
            logits = torch.tanh(logits / softcap) * softcap
        weights = logits.masked_fill(~mask[:, :, None], -torch.inf).softmax(-1)
        paid = weights.sum(3).mean(2)  # (1, G, S + T)
        if layer < len(row.paid):
            old = row.paid[layer]
            row.paid[layer] = paid + torch.nn.functional.pad(old, (0, paid.shape[-1] - old.shape[-1]))
            row.window[layer] = weights[:, :, :, -WINDOW:].flatten(1, 2)
        else:
            row.paid.append(paid)
            row.window.append(weights[:, :, :, -WINDOW:].flatten(1, 2))


@torch.no_grad()
def read(
    model: SonicModel,
    rows: Sequence[Row],
    token_ids: Sequence[Sequence[int]],
    wanted: Sequence[Sequence[int]],
    *,
    attention: bool = False,
    hidden: bool = False,
) -> list[Tensor]:
    """Feed each row its next tokens, in one forward.

    Args:
        token_ids: at least one a row.
        wanted: of each row, offsets of the tokens after which logits are wanted; -1: of the token before.
        attention: add what the tokens pay to each row's `paid`, and set its `window`.
        hidden: add what enters each attention to each row's `hidden`.

    Returns:
        logits, per row (wanted, V)
    """
    edges = list(accumulate((len(ids) for ids in token_ids), initial=0))
    spans = [slice(a, b) for a, b in pairwise(edges)]
    for row, ids in zip(rows, token_ids, strict=True):
        model.check_room(row.cache, len(ids))
    starts = [row.cache.next_position for row in rows]
    positions = [torch.arange(at, at + len(ids)) for at, ids in zip(starts, token_ids, strict=True)]
    # the last token's logits may be wanted with the next segment
    keep = [i for s, offsets in zip(spans, wanted, strict=True) for i in (*_at(s, offsets), s.stop - 1)]
    with _entering(model, hidden) as entered, sonic_attention(model.base):
        fed = torch.tensor([i for ids in token_ids for i in ids], device=model.device)
        output = model.base(
            inputs_embeds=model.base.get_input_embeddings()(fed)[None],
            attention_mask=torch.ones(
                1, 1, 1, 1, dtype=torch.bool, device=model.device
            ),  # each row has its own
            position_ids=torch.cat(positions).to(model.device)[None],
            use_cache=False,
            logits_to_keep=torch.tensor(keep, device=model.device),
            sonic=_Reading(rows, spans, attention),
        )
    found, at = [], 0
    for row, span, new, offsets in zip(rows, spans, token_ids, wanted, strict=True):
        size = len(_at(span, offsets))
        logits = output.logits[0, at : at + size]
        if size < len(offsets):
            assert row.last is not None
            logits = torch.cat((row.last[None], logits))
        found.append(logits)
        row.last = output.logits[0, at + size].clone()
        row.token_ids = [*row.token_ids, *new]
        for layer, states in entered.items():
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
