"""Expected damage: what it costs later predictions, in nats, to drop an entry of the cache.

Let a query t of head h pay attention a to the entries and read o = Σ a v. If entry i is gone, the others share its
attention, and what is read changes by a_i / (1 − a_i) · (o − v_i). To first order the log-probability of a label y
then changes by g · that, where g is its gradient with respect to o. Averaged over labels that the model itself
draws, first-order terms vanish, and half of the mean square is the KL divergence that the drop causes, to second
order (the Fisher information; optimal brain damage, LeCun et al. 1989, with cache entries in the place of weights):

    D_i = ½ Σ_t Σ_{h of the KV head} (g_th · (o_th − v_i) · a_thi / (1 − a_thi))²

Since g · (v_i − o) · a_i is the gradient with respect to the logit of the attention, D comes with an ordinary backward
pass: one forward and one backward of the frozen base a dialogue. Entries of all layers and heads are on one scale.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from sonic_kv.model.forward import forward, head
from sonic_kv.model.model import SonicModel
from sonic_kv.training.teacher import offsets

WEIGHTS = 1 << 21  # attention weights held at once
MOST_ROWS = 256  # query rows, or rows with predictions, at a time
LEAST_LEFT = 1e-3  # what a dropped entry leaves of the attention, at least: 1 − a_i


@dataclass(frozen=True)
class Damage:
    """What one dialogue of K segments, the last one open, has shown of S of its tokens' entries."""

    positions: Tensor  # of the tokens (S,)
    keys: list[Tensor]  # per layer, unrotated (1, G, S, D)
    values: list[Tensor]  # per layer (1, G, S, D)
    by_segment: Tensor  # nats that dropping an entry costs predictions in each segment (layers, G, K, S)

    def after(self, segment: int) -> Tensor:
        """Nats that dropping an entry costs from `segment` (from 0) on. (layers, G, S)"""
        return self.by_segment[:, :, segment:].sum(2)

    def some(self, count: int, seed: int) -> "Damage":
        """The same of so many tokens, drawn at random, in a memory of its own."""
        drawn = torch.randperm(len(self.positions), generator=torch.Generator().manual_seed(seed))
        at = drawn[:count].sort().values.to(self.positions.device)
        return Damage(
            self.positions[at],
            [k[:, :, at] for k in self.keys],
            [v[:, :, at] for v in self.values],
            self.by_segment[..., at],
        )

    def to(self, device: torch.device) -> "Damage":
        keys, values = [k.to(device) for k in self.keys], [v.to(device) for v in self.values]
        return Damage(self.positions.to(device), keys, values, self.by_segment.to(device))


def measure(
    model: SonicModel,
    dialogues: Sequence[Tensor],
    ends: Sequence[Sequence[int]],
    rows: Sequence[Tensor],
    seeds: Sequence[int],
) -> list[Damage]:
    """Damage of all entries of several dialogues, which share one forward and one backward pass.

    Args:
        dialogues: token ids. Each (T,)
        ends: where each dialogue's segments close.
        rows: positions whose predictions count. Each (R,)
        seeds: of the labels that are drawn for each dialogue.
    """
    device, starts = model.device, [0, *offsets([len(ids) for ids in dialogues])[1:]]
    edges = [*starts, sum(len(ids) for ids in dialogues)]
    position = torch.cat([torch.arange(len(ids), device=device) for ids in dialogues])
    members = [_membership(len(ids), stops, device) for ids, stops in zip(dialogues, ends, strict=True)]
    reader = Fisher([slice(a, b) for a, b in pairwise(edges)], members)
    embeddings = model.base.get_input_embeddings()(torch.cat(list(dialogues))[None])
    with torch.enable_grad():
        entered = embeddings.detach().requires_grad_(True)
        hidden = forward(model.twin, entered, position[None], reader, logits=None)
        drawn = torch.cat([_uniform(len(r), seed) for r, seed in zip(rows, seeds, strict=True)])
        at = torch.cat([r.to(device) + start for r, start in zip(rows, starts, strict=True)])
        torch.autograd.backward(hidden, label_gradient(head(model.base), hidden, at, drawn.to(device)))
    found = []
    for number, span in enumerate(reader.spans):
        layers = range(model.num_layers)
        keys = [model.rope.rotate(n, reader.keys[n][:, :, span], -position[span]) for n in layers]
        sums = torch.stack([reader.sums[n][number] for n in layers])
        found.append(Damage(position[span], keys, [reader.values[n][:, :, span] for n in layers], sums))
    return found


def label_gradient(head: Callable[[Tensor], Tensor], hidden: Tensor, rows: Tensor, drawn: Tensor) -> Tensor:
    """Gradient of the log-probability of labels that the model itself draws, with respect to its last hidden states.

    Args:
        head: hidden states (1, n, C) → logits (1, n, V)
        hidden: (1, T, C)
        rows: which of them predict. (R,)
        drawn: for each a uniform number in [0, 1), which picks its label. (R,)

    Returns:
        (1, T, C), 0 at other rows
    """
    gradient = torch.zeros_like(hidden)
    for part, uniform in zip(rows.split(MOST_ROWS), drawn.split(MOST_ROWS), strict=True):
        states = hidden.detach()[:, part].requires_grad_(True)
        log_p = head(states)[0].float().log_softmax(-1)  # (n, V)
        total = log_p.detach().exp().cumsum(-1)
        label = torch.searchsorted(total, uniform[:, None] * total[:, -1:]).clamp_max(log_p.shape[-1] - 1)
        (gradient[:, part],) = torch.autograd.grad(log_p.gather(-1, label).sum(), states)
    return gradient


@dataclass
class Fisher:
    """Causal attention over packed dialogues, whose backward pass sums up each entry's damage.

    Attributes:
        spans: the dialogues.
        members: of each, which segment its tokens belong to. (K, T) float32, 0 or 1
        keys, values: per layer. (1, G, T, D)
        sums: per layer, for each dialogue (G, K, T), once the backward pass has been run.
    """

    spans: Sequence[slice]
    members: Sequence[Tensor]
    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)
    sums: dict[int, list[Tensor]] = field(default_factory=dict)

    def read(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, softcap: float | None
    ) -> Tensor:
        self.keys[layer], self.values[layer] = key.detach(), value.detach()
        self.sums[layer] = []
        output: Tensor = _Attend.apply(query, key, value, self, layer, (scale, softcap))  # type: ignore[no-untyped-call]
        return output


class _Attend(torch.autograd.Function):
    """Attention; on its way back every entry's damage is added to the reader's sums."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        reader: Fisher,
        layer: int,
        options: tuple[float, float | None],
    ) -> Tensor:
        parts = [
            _causal(query[:, :, span], key[:, :, span], value[:, :, span], *options) for span in reader.spans
        ]
        output = parts[0] if len(parts) == 1 else torch.cat(parts, 2)
        ctx.save_for_backward(query, key, value, output)
        ctx.of = reader, layer, options
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        reader, layer, options = ctx.of
        query, key, value, output = ctx.saved_tensors
        found = [torch.empty_like(x) for x in (query, key, value)]
        for span, member in zip(reader.spans, reader.members, strict=True):
            q, k, v, o, g = (x[0, :, span] for x in (query, key, value, output, gradient))
            *gradients, sums = _backward(q, k, v, o, g, member, *options)
            for whole, part in zip(found, gradients, strict=True):
                whole[0, :, span] = part
            reader.sums[layer].append(sums)
        return (*found, None, None, None)


def _causal(query: Tensor, key: Tensor, value: Tensor, scale: float, softcap: float | None) -> Tensor:
    """Causal attention of one dialogue. query (1, H, T, D), key and value (1, G, T, D) → (1, H, T, D)"""
    if softcap is None:
        return nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
        )
    grouped = query[0].unflatten(0, (len(key[0]), -1))
    parts = [
        (paid.to(value.dtype) @ value[0, :, None, : rows.stop])
        for rows, paid, _ in _paid(grouped, key[0], scale, softcap)
    ]
    return torch.cat(parts, 2).flatten(0, 1)[None]


def _paid(
    query: Tensor, key: Tensor, scale: float, softcap: float | None
) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
    """Attention, a block of rows at a time.

    Args:
        query: (G, R, T, D)
        key: (G, T, D)

    Yields:
        the rows, what they pay to the entries up to the last of them (G, R, n, S) float32, and the slope of their
        capped logits, if they are
    """
    groups, shared, length = query.shape[:3]
    count = min(max(WEIGHTS // (groups * shared * length), 16), MOST_ROWS)
    for start in range(0, length, count):
        rows = slice(start, min(start + count, length))
        logits = (
            torch.matmul(query[:, :, rows], key[:, None, : rows.stop].transpose(-1, -2)).float().mul_(scale)
        )
        slope = None
        if softcap is not None:
            bent = logits.div_(softcap).tanh_()
            slope = 1.0 - bent.square()
            logits = bent.mul_(softcap)
        size = rows.stop - start
        later = torch.ones(size, size, dtype=torch.bool, device=logits.device).triu_(1)
        logits[..., start:].masked_fill_(later, -torch.inf)
        yield rows, logits.softmax(-1), slope


def _backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    gradient: Tensor,
    member: Tensor,
    scale: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The backward pass of one dialogue's causal attention.

    Args:
        query, output, gradient: of the output. (H, T, D)
        key, value: (G, T, D)
        member: which segment a row belongs to. (K, T)

    Returns:
        gradients with respect to query (H, T, D), key and value (G, T, D), and the sums of damage (G, K, T)
    """
    groups, length = key.shape[:2]
    query, output, gradient = (x.unflatten(0, (groups, -1)) for x in (query, output, gradient))
    own = (gradient.float() * output.float()).sum(-1, keepdim=True)  # g · o (G, R, T, 1)
    to_query = torch.empty_like(query)
    to_key = torch.zeros(key.shape, dtype=torch.float32, device=key.device)
    to_value = torch.zeros(value.shape, dtype=torch.float32, device=value.device)
    sums = torch.zeros(groups, len(member), length, device=key.device)
    for rows, paid, slope in _paid(query, key, scale, softcap):
        seen = slice(rows.stop)
        q, g = query[:, :, rows].flatten(1, 2), gradient[:, :, rows].flatten(1, 2)  # (G, R * n, D)
        # with respect to the logits: a_i g · (v_i − o)
        moved = torch.bmm(g, value[:, seen].transpose(1, 2)).float().view_as(paid)
        moved.sub_(own[:, :, rows]).mul_(paid)
        to_value[:, seen] += torch.bmm(paid.to(value.dtype).flatten(1, 2).transpose(1, 2), g).float()
        bent = (moved if slope is None else moved * slope).to(key.dtype).flatten(1, 2)
        to_query[:, :, rows] = torch.bmm(bent, key[:, seen]).mul_(scale).view_as(query[:, :, rows])
        to_key[:, seen] += torch.bmm(bent.transpose(1, 2), q).float().mul_(scale)
        moved.div_(paid.neg_().add_(1.0).clamp_min_(LEAST_LEFT)).square_()
        sums[:, :, seen] += torch.matmul(member[:, rows], moved.sum(1))
    return to_query.flatten(0, 1), to_key.to(key.dtype), to_value.to(value.dtype), sums.mul_(0.5)


def _membership(length: int, ends: Sequence[int], device: torch.device) -> Tensor:
    """Which segment a token belongs to. (K, T) float32, 0 or 1"""
    number = torch.bucketize(torch.arange(length), torch.tensor(list(ends), dtype=torch.long), right=True)
    return nn.functional.one_hot(number, len(ends) + 1).T.float().to(device)


def _uniform(count: int, seed: int) -> Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(seed))
