"""Rivals: published methods as policies, which score entries when a segment is closed.

All of them keep the same number of entries on average over layers and KV heads. As published, each head keeps as
many as any other, its own best; `shared` compares scores across all layers and heads instead (AdaKV's idea,
arXiv:2407.11550), where each head is sure of a fifth of its equal share.
"""

from abc import abstractmethod
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sonic_kv.compress.policies import FIRST, Closing, Policy
from sonic_kv.eval import scores
from sonic_kv.eval.watch import Newest, Paid, Queries, Recorder, Window
from sonic_kv.model.reread import Reread

SAFE = 0.2  # AdaKV's own share that every head is sure of


@dataclass(frozen=True)
class Head:
    """Memory and open segment of one KV head, in the order of the transcript.

    Attributes:
        stored: scores that the memory was stored with, and zeros. (n,)
        noted: what was recorded of the head while the segment was read; None: nothing.
    """

    closing: Closing
    layer: int
    number: int
    keys: Tensor  # (n, D)
    values: Tensor  # (n, D)
    positions: Tensor  # in the transcript. (n,)
    stored: Tensor
    noted: Tensor | None

    @property
    def end(self) -> int:
        """Position at which the history ends."""
        return self.closing.cache.logical_length

    @property
    def target(self) -> int:
        """Entries that a head keeps, on average."""
        return self.closing.target


class Rival(Policy):
    """A method that scores each entry of a head.

    Args:
        shared: one budget for all layers and heads.
    """

    watch: type[Recorder] | None = None  # what is to be recorded while a segment is read

    def __init__(self, shared: bool = False) -> None:
        self.shared = shared

    @abstractmethod
    def score(self, head: Head) -> Tensor:
        """The higher the sooner kept. (n,)"""

    def reading(self, closing: Closing) -> Reread | None:
        """What must be read again, where it has not been recorded."""
        if self.watch is None:
            return None
        recorder = self.watch(closing.length, closing.model.device)
        offsets = recorder.offsets
        recorder.rows = torch.arange(len(offsets), device=offsets.device)[None]
        opened = closing.token_ids[len(closing.token_ids) - closing.length :]
        return Reread(closing.cache, opened, offsets, probe=recorder)

    @torch.no_grad()
    def scores(self, closing: Closing) -> list[Tensor]:
        found = []
        for layer in closing.layers:
            own = [self._ranked(self.score(head), head) for head in self._heads(closing, layer)]
            found.append(pad_sequence(own, batch_first=True, padding_value=-torch.inf, padding_side="left"))
        return found

    def _ranked(self, score: Tensor, head: Head) -> Tensor:
        """Scores that heads can be compared by: places where all keep as many. (n,)"""
        score = score.float()
        order = score.argsort(descending=True, stable=True)
        if self.shared:
            return score.index_fill(0, order[: max(1, int(SAFE * head.closing.target))], FIRST)
        places = -torch.arange(len(score), device=score.device, dtype=torch.float32)
        return torch.zeros_like(places).scatter(0, order, places)

    def _heads(self, closing: Closing, layer: int) -> list[Head]:
        cache, device = closing.cache, closing.model.device
        prefix, end = cache.lengths.prefix, cache.logical_length
        fresh, zeros = torch.arange(end - closing.length, end, device=device), torch.zeros(closing.length)
        store = cache.layers[layer]
        memory, heads = store.memory(prefix), []
        recorder = closing.read.probe if isinstance(closing.read, Reread) else None
        for number, (keys, values) in enumerate(zip(*store.heads(), strict=True)):
            noted = None
            if isinstance(recorder, Recorder):
                noted = recorder.found[layer][number]
                noted = noted[..., -(len(keys) - prefix) :] if recorder.weighs else noted
            positions = torch.cat((memory.positions[number].long(), fresh))
            stored = torch.cat((memory.scores[number], zeros.to(device)))
            heads.append(
                Head(closing, layer, number, keys[prefix:], values[prefix:], positions, stored, noted)
            )
        return heads


class Random(Rival):
    """Entries drawn at random, anew in each layer and head; the same on every run."""

    def score(self, head: Head) -> Tensor:
        generator = torch.Generator().manual_seed(1000 * head.layer + head.number)
        return torch.rand(head.end, generator=generator).to(head.positions.device)[head.positions]


class Sliding(Rival):
    """The newest entries."""

    def score(self, head: Head) -> Tensor:
        return head.positions


class KeyDiff(Rival):
    """Over the whole cache at once, not block by block as in its paper."""

    def score(self, head: Head) -> Tensor:
        return scores.keydiff(head.keys)


class LagKV(Rival):
    """The lag is an eighth of what there is, 128 at most: its own is made for prompts of thousands of tokens."""

    def score(self, head: Head) -> Tensor:
        lag = max(1, min(scores.LAG, len(head.keys) // 8))
        return scores.lagkv(head.keys, head.values, lag, ranked=not self.shared)


class CUR(Rival):
    def score(self, head: Head) -> Tensor:
        return scores.cur(head.keys, head.values)


class H2O(Rival):
    """Half the newest, half those that received most attention so far (arXiv:2306.14048).

    Attention is summed over all queries so far, as in the paper, and averaged over the query heads of a KV head.
    Entries are dropped when a segment closes, not at every token. What has been paid is kept by position, so that an
    object is good for one dialogue.
    """

    watch = Paid

    def __init__(self, shared: bool = False) -> None:
        super().__init__(shared)
        self._paid: dict[tuple[int, int], Tensor] = {}  # by position in the transcript

    def score(self, head: Head) -> Tensor:
        assert head.noted is not None
        key = head.layer, head.number
        before = self._paid.get(key, head.noted[:0])
        paid = torch.nn.functional.pad(before, (0, head.end - len(before)))
        self._paid[key] = paid.index_add(0, head.positions, head.noted)
        newest = head.positions >= head.end - (head.target - head.target // 2)
        return self._paid[key][head.positions].masked_fill(newest, torch.inf)


class TOVA(Rival):
    """A layer's heads keep the same entries: attention is averaged over all of them."""

    watch = Newest

    def _heads(self, closing: Closing, layer: int) -> list[Head]:
        heads = super()._heads(closing, layer)
        together = torch.cat([head.noted[:, 0] for head in heads if head.noted is not None])
        return [replace(head, noted=together) for head in heads]

    def score(self, head: Head) -> Tensor:
        assert head.noted is not None
        return scores.tova(head.noted)


class SnapKV(Rival):
    """The window is at most half of what a head keeps: its own tokens all stay."""

    watch = Window

    def score(self, head: Head) -> Tensor:
        assert head.noted is not None
        most = max(1, min(head.noted.shape[1], head.target // 2))
        return scores.snapkv(head.noted[:, -most:])


class CriticalSnapKV(SnapKV):
    """SnapKV's scores weighted by what the values write into the residual stream (CriticalKV, arXiv:2502.03805)."""

    def score(self, head: Head) -> Tensor:
        projection = head.closing.model.base.get_decoder().layers[head.layer].self_attn.o_proj.weight
        groups, width = head.closing.model.num_heads, head.keys.shape[-1]
        output = projection.T.unflatten(0, (groups, -1, width))[head.number]  # (R, D, C)
        sure = 0 if self.shared else head.target // 2  # heads that share are sure of a fifth as it is
        return scores.critical(super().score(head), head.values, output, sure)


@dataclass
class Moments:
    """Sums over queries: how many, their sum, the sum of their outer products."""

    count: int = 0
    first: Tensor = field(default_factory=lambda: torch.zeros(()))
    second: Tensor = field(default_factory=lambda: torch.zeros(()))

    def add(self, queries: Tensor) -> None:
        """Take in queries (R, Q, D)."""
        self.count += queries.shape[1]
        exact = queries.double()
        self.first = self.first + exact.sum(1)
        self.second = self.second + exact.transpose(-1, -2) @ exact

    def normal(self) -> tuple[Tensor, Tensor]:
        """Mean (R, D) and covariance (R, D, D)."""
        mean = self.first / self.count
        return mean.float(), (self.second / self.count - mean[:, :, None] * mean[:, None]).float()


class ExpectedAttention(Rival):
    """Queries of all tokens so far, as in a prefill, stand for those to come (arXiv:2510.00636).

    Their moments are kept, so that an object is good for one dialogue.
    """

    watch = Queries

    def __init__(self, shared: bool = False) -> None:
        super().__init__(shared)
        self._moments: dict[tuple[int, int], Moments] = {}

    def score(self, head: Head) -> Tensor:
        assert head.noted is not None
        rope, count = head.closing.model.rope, head.noted.shape[1]
        at = torch.arange(head.end - count, head.end, device=head.noted.device)
        moments = self._moments.setdefault((head.layer, head.number), Moments())
        moments.add(rope.rotate(head.layer, head.noted, -at))
        mean, covariance = moments.normal()
        turn = self._turn(head)
        return scores.expected_attention(head.keys, head.values, mean @ turn, turn.T @ covariance @ turn)

    def _turn(self, head: Head) -> Tensor:
        """The mean rotation over the positions to come; a row vector is turned by multiplying it. (D, D)"""
        rope = head.closing.model.rope
        unit = torch.eye(head.keys.shape[-1], device=head.keys.device)
        once = rope.rotate(head.layer, unit, torch.tensor(1))
        half = int((once != unit).any(-1).sum()) // 2  # partial rotary embeddings leave the rest as it is
        ahead = torch.arange(head.end, head.end + scores.FUTURE, device=unit.device)
        first = unit[:half].sum(0).expand(len(ahead), -1)
        mean = rope.rotate(head.layer, first, ahead).mean(0)
        cos, sin = mean[:half].diag(), mean[half : 2 * half].diag()
        unit[: 2 * half, : 2 * half] = torch.cat((torch.cat((cos, sin), 1), torch.cat((-sin, cos), 1)))
        return unit
