"""What a budget keeps, learned from what it costs to lose the rest.

`damage` says what a single drop costs, but drops add up. Here dialogues are read as sessions leave them: at every
closing the entries that a budget has no room for are hidden from all later segments. (Their scores are those of a
full context, which is read before.) The KL divergence of later replies from full context is then followed back through
the choice. An entry's gate g multiplies its weight, so

    ∂L/∂g_i = Σ_t w_ti · (∂L/∂o_t · (v_i − o_t)) / (1 + (1 − g_i) · w_ti)

with w the weight that it has, or would have if it came back among the kept ones: for these the right side is the exact
change of o. A gate is 0 or 1 by rank; its gradient is that of a sigmoid whose threshold moves so that as much is kept
(a straight-through estimator, Bengio et al. 2013). Scores thereby learn of all drops together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sonic_kv.cache.attention import capped, masked_attention
from sonic_kv.model.adapter import ImportanceScorer
from sonic_kv.model.forward import forward, head
from sonic_kv.model.model import SonicModel
from sonic_kv.training.damage import WEIGHTS
from sonic_kv.training.losses import CHUNK, kl

MOST_WEIGHTS = 1 << 28  # attention weights held at once on a GPU
WIDTH = 0.3  # of the sigmoid whose gradient a gate has, in units of the score
LARGEST = 6.0  # log of the largest weight that a dropped entry is taken to have, next to all that are kept


@dataclass(frozen=True)
class Told:
    """A dialogue, and what is done with it.

    Attributes:
        prefix: tokens that always stay.
        ends: where segments close.
        rows: positions whose predictions count. (R,)
        ratio: share of history that is dropped at every closing.
        alike: all heads keep as many entries; else one budget is shared by all.
        noise: logistic, on the scores: what is near the threshold is tried both ways.
        seed: of the noise.
    """

    ids: Tensor  # (T,)
    prefix: int
    ends: Sequence[int]
    rows: Tensor
    ratio: float
    alike: bool = False
    noise: float = 0.0
    seed: int = 0


def divergence(model: SonicModel, scorer: ImportanceScorer, dialogues: Sequence[Told]) -> Tensor:
    """KL divergence from full context under each dialogue's budget, mean over its rows, in nats. Differentiable in the
    scorer's weights. (B,)

    Dialogues are read side by side, as long as the longest: best give some of about the same length.
    """
    batch = _Batch(model, dialogues)
    with torch.no_grad():
        witness = _Witness()
        full = batch.read(model, witness)
        keys = [model.rope.rotate(n, key, -batch.positions[:, None]) for n, key in enumerate(witness.keys)]
    # a session drops nothing of layers with a window (of a model that has no others, nothing at all)
    layers = model.compressed_layers or range(model.num_layers)
    scores = torch.stack([scorer(n, keys[n], witness.values[n]) for n in layers], 1)
    gates = torch.stack(batch.gates(scorer, layers, scores), 3)  # (B, layers, G, K + 1, T)
    chosen, whole = dict(zip(layers, gates.unbind(1), strict=True)), torch.ones_like(gates[:, 0])
    by_layer = [chosen.get(n, whole) for n in range(model.num_layers)]
    hidden = batch.read(model, Gated(by_layer, batch.member))
    logits = head(model.base)

    def loss(some: Tensor, wanted: Tensor) -> Tensor:
        with torch.no_grad():
            log_p = logits(wanted[None])[0].float().log_softmax(-1)
        return kl(log_p, logits(some[None])[0].float().log_softmax(-1))

    parts = zip(hidden.split(CHUNK), full.split(CHUNK), strict=True)
    losses = torch.cat([checkpoint(loss, *part, use_reentrant=False) for part in parts])
    return torch.stack([part.mean() for part in losses.split([len(told.rows) for told in dialogues])])


class _Batch:
    """Dialogues side by side, filled up to the longest.

    Attributes:
        member: which segment a row belongs to. (B, T, K + 1) 0 or 1
    """

    def __init__(self, model: SonicModel, dialogues: Sequence[Told]) -> None:
        device, self.dialogues = model.device, dialogues
        length, closings = max(len(t.ids) for t in dialogues), max(len(t.ends) for t in dialogues)
        self.ids = nn.utils.rnn.pad_sequence([t.ids for t in dialogues], batch_first=True).to(device)
        self.index = torch.arange(length, device=device)
        self.positions = self.index.expand(len(dialogues), -1)
        self.sizes = torch.tensor([[len(t.ids)] for t in dialogues], device=device)
        self.prefix = torch.tensor([[t.prefix] for t in dialogues], device=device)
        stops = [[*t.ends, *[length] * (closings - len(t.ends))] for t in dialogues]
        self.ends = torch.tensor(stops, device=device)  # (B, K)
        segment = (self.index[:, None] >= self.ends[:, None]).sum(-1)
        self.member = nn.functional.one_hot(segment, closings + 1).float()
        self.rows = torch.cat([t.rows.to(device) + n * length for n, t in enumerate(dialogues)])

    def read(self, model: SonicModel, reader: Any) -> Tensor:
        """Last hidden states of the rows that count. (R, C)"""
        entered = model.base.get_input_embeddings()(self.ids).detach()
        entered.requires_grad_(torch.is_grad_enabled())
        hidden = forward(model.twin, entered, self.positions, reader, logits=None)
        return hidden.flatten(0, 1)[self.rows]

    def gates(self, scorer: ImportanceScorer, layers: Sequence[int], scores: Tensor) -> list[Tensor]:
        """What the rows of each segment see of the history before it: 1 or 0. Each (B, layers, G, T)

        Args:
            layers: whose entries are chosen from.
            scores: of these, recency apart. (B, layers, G, T)
        """
        ratio = torch.tensor([told.ratio for told in self.dialogues], device=scores.device)
        alike = torch.tensor([told.alike for told in self.dialogues], device=scores.device)
        scores = scores + torch.stack([self._noise(t, scores.shape[1:]) for t in self.dialogues]).to(scores)
        found = [torch.ones_like(scores)]
        for end in self.ends.T:
            distance = (end[:, None] - self.index).clamp_min(0)[:, None]
            recency = torch.stack([scorer.recency(n, distance) for n in layers], 1)
            history = (self.index >= self.prefix) & (self.index < end[:, None]) & (self.index < self.sizes)
            gate = choose(scores + recency, history, found[-1] > 0.5, 1.0 - ratio, alike)
            # what is gone stays gone
            found.append(gate if len(found) == 1 else torch.minimum(gate, found[-1]))
        return found

    @staticmethod
    def _noise(told: Told, shape: torch.Size) -> Tensor:
        """A dialogue's, whatever it is read with. (layers, G, T)"""
        layers, heads, length = shape
        uniform = torch.rand(len(told.ids), layers, heads, generator=torch.Generator().manual_seed(told.seed))
        noise = told.noise * uniform.clamp(1e-6, 1.0 - 1e-6).logit().movedim(0, -1)
        return nn.functional.pad(noise, (0, length - noise.shape[-1]))


def choose(ranks: Tensor, history: Tensor, held: Tensor, keep: Tensor, alike: Tensor) -> Tensor:
    """Gates of entries, 1 or 0, with the gradient of a sigmoid.

    Args:
        ranks: (B, layers, G, T)
        history: entries that budgets are about; all others stay. (B, T) bool
        held: what no earlier choice has dropped: no other entry takes a place. (B, layers, G, T) bool
        keep: share of the history that stays. (B,)
        alike: of which dialogues every head keeps as many. (B,) bool

    Returns:
        (B, layers, G, T)
    """
    layers, heads = ranks.shape[1:3]
    inside, alike = history[:, None, None], alike[:, None, None, None]
    found = ranks.detach().masked_fill(~(inside & held), -torch.inf)
    count = (history.sum(1) * keep).round().long().clamp_min(1)
    best = found.flatten(1).sort(1, descending=True).values
    threshold = best.gather(1, count[:, None] * (layers * heads) - 1)[:, :, None, None]
    of_head = (count - 1)[:, None, None, None].expand(-1, layers, heads, 1)
    threshold = torch.where(alike, found.sort(-1, descending=True).values.gather(-1, of_head), threshold)
    soft = torch.sigmoid((ranks.detach() - threshold) / WIDTH)
    slope = soft * (1.0 - soft) * inside
    sums = (slope * ranks).sum(-1, keepdim=True), slope.sum(-1, keepdim=True)
    all_sums = [part.sum((1, 2), keepdim=True) for part in sums]
    moved, weight = (torch.where(alike, *both) for both in zip(sums, all_sums, strict=True))
    gradient = slope / WIDTH * (ranks - moved / weight.clamp_min(1e-6))
    hard = (ranks.detach() >= threshold).float()
    return torch.where(inside, hard + (gradient - gradient.detach()), 1.0)


class _Witness:
    """Causal attention, whose keys and values are kept. Per layer (B, G, T, D)"""

    def __init__(self) -> None:
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def read(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, softcap: float | None
    ) -> Tensor:
        self.keys.append(key)
        self.values.append(value)
        mask = _before(slice(0, query.shape[2]), query.device)
        return masked_attention(query, key, value, mask[None, None], scale=scale, softcap=softcap)


@dataclass(frozen=True)
class Gated:
    """Attention among entries whose gates are open.

    Attributes:
        gates: per layer, what the rows of each segment see. (B, G, K + 1, T)
        member: which segment a row belongs to. (B, T, K + 1)
    """

    gates: Sequence[Tensor]
    member: Tensor

    def read(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, softcap: float | None
    ) -> Tensor:
        gates, options = self.gates[layer], (scale, softcap)
        output: Tensor = _Attend.apply(query, key, value, gates, self.member, options)  # type: ignore[no-untyped-call]
        return output


class _Attend(torch.autograd.Function):
    """Attention under gates; on its way back they get their gradients, closed ones too."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        gates: Tensor,
        member: Tensor,
        options: tuple[float, float | None],
    ) -> Tensor:
        scale, softcap = options
        parts = []
        for rows in _blocks(query):
            held = key[:, :, : rows.stop], value[:, :, : rows.stop]
            seen = _seen(gates, member, rows)
            parts.append(masked_attention(query[:, :, rows], *held, seen, scale=scale, softcap=softcap))
        output = torch.cat(parts, 2)
        ctx.save_for_backward(query, key, value, output, gates, member)
        ctx.options = options
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, gates, member = ctx.saved_tensors
        groups = key.shape[1]
        q, o, g = (x.unflatten(1, (groups, -1)).float() for x in (query, output, gradient))  # (B, G, R, T, D)
        k, v = key.float(), value.float()
        own = (g * o).sum(-1, keepdim=True)
        to_query, to_key, to_value = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        to_gates = torch.zeros(gates.shape, device=gates.device)
        for rows in _blocks(query):
            visible = slice(rows.stop)
            weights, to_logits, to_gate = _weigh(
                q[..., rows, :],
                g[..., rows, :],
                own[..., rows, :],
                k[:, :, visible],
                v[:, :, visible],
                _seen(gates, member, rows),
                *ctx.options,
            )
            flat, back = to_logits.flatten(2, 3), weights.flatten(2, 3).transpose(-1, -2)
            to_query[..., rows, :] = (flat @ k[:, :, visible]).view_as(q[..., rows, :])
            to_key[:, :, visible] += flat.transpose(-1, -2) @ q[..., rows, :].flatten(2, 3)
            to_value[:, :, visible] += back @ g[..., rows, :].flatten(2, 3)
            to_gates[..., visible] += member[:, None, rows].transpose(-1, -2) @ to_gate
        return (
            to_query.flatten(1, 2).to(query.dtype),
            to_key.to(key.dtype),
            to_value.to(value.dtype),
            to_gates.to(gates.dtype),
            None,
            None,
        )


def _blocks(query: Tensor) -> list[slice]:
    """Rows that are looked at together."""
    batch, heads, length = query.shape[:3]
    most = MOST_WEIGHTS if query.is_cuda else WEIGHTS
    count = max(most // (batch * heads * length), 16)
    return [slice(start, min(start + count, length)) for start in range(0, length, count)]


def _seen(gates: Tensor, member: Tensor, rows: slice) -> Tensor:
    """What rows see of the entries up to the last of them. (B, G, n, S) bool"""
    seen = member[:, None, rows] @ gates.detach()[..., : rows.stop] > 0.5
    return seen & _before(rows, gates.device)


def _before(rows: slice, device: torch.device) -> Tensor:
    """Which entries up to the last of some rows each of them comes after, its own included. (n, S) bool"""
    return torch.ones(rows.stop - rows.start, rows.stop, dtype=torch.bool, device=device).tril(rows.start)


def _weigh(
    query: Tensor,
    gradient: Tensor,
    own: Tensor,
    key: Tensor,
    value: Tensor,
    seen: Tensor,
    scale: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights of a block of rows, and gradients.

    Args:
        query, gradient: of the output. (B, G, R, n, D)
        own: gradient · output. (B, G, R, n, 1)
        key, value: (B, G, S, D)
        seen: (B, G, n, S) bool

    Returns:
        weights, gradients of query · key (B, G, R, n, S), and of the gates (B, G, n, S)
    """
    shape = (*query.shape[:4], key.shape[2])
    logits = capped((query.flatten(2, 3) @ key.transpose(-1, -2)).view(shape) * scale, softcap)
    slope = scale if softcap is None else scale * (1.0 - (logits / softcap).square())
    count, size = seen.shape[2:]
    before = _before(slice(size - count, size), key.device)
    shown = seen[:, :, None]
    total = logits.masked_fill(~shown, -torch.inf).logsumexp(-1, keepdim=True)
    raw = (logits - total).clamp_max_(LARGEST).exp_() * before
    weights = raw * shown
    change = (gradient.flatten(2, 3) @ value.transpose(-1, -2)).view(shape) - own  # g · (v − o)
    to_weights = weights * change
    to_gates = torch.where(shown, to_weights, raw / (1.0 + raw) * change).sum(2)
    return weights, to_weights * slope, to_gates
