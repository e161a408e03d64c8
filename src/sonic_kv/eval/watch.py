"""What rivals look at while a segment is read: attention that queries pay, and the queries themselves.

A recorder is a probe of its own kind, which keeps what its method needs and never a whole map. A row that is
watched records while it is read; in a session the same recorder is filled by reading the segment again.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from sonic_kv.cache.attention import capped
from sonic_kv.model.probe import Probe

WINDOW = 64  # newest queries that SnapKV looks at


class Recorder(Probe, ABC):
    """Records what the newest queries of a segment do.

    Args:
        count: tokens of the segment.
        most: queries to look at, the newest; None: all.
    """

    most: int | None = None
    weighs = True  # attention weights are wanted

    def __init__(self, count: int, device: torch.device) -> None:
        first = 0 if self.most is None else max(0, count - self.most)
        self.offsets = torch.arange(first, count, device=device)  # the queries' places in the segment
        super().__init__(rows=self.offsets[None])
        self.found: list[Tensor] = []  # per layer

    @abstractmethod
    def note(self, query: Tensor, weights: Tensor) -> None:
        """Keep what is needed of a layer. query (G, R, Q, D), attention weights (G, R, Q, S)"""

    def observe(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        allowed: Tensor,
        *,
        scale: float,
        softcap: float | None,
    ) -> None:
        heads, groups = query.shape[1], key.shape[1]
        chosen = query[0, :, self.rows[0]].unflatten(0, (groups, heads // groups))  # (G, R, Q, D)
        if not self.weighs:
            self.note(chosen, chosen[..., :0])
            return
        logits = capped((chosen.flatten(1, 2) @ key[0].transpose(-1, -2)).float() * scale, softcap)
        logits = logits.unflatten(1, chosen.shape[1:3])
        seen = self.narrowed(allowed[0][:, None, -chosen.shape[2] :])
        self.note(chosen, logits.masked_fill_(~seen, -torch.inf).softmax(-1))

    def narrowed(self, seen: Tensor) -> Tensor:
        """Which of the columns that queries see compete for their attention. (1 or G, 1, Q, S)"""
        return seen


class Paid(Recorder):
    """Attention that each entry receives from all queries: sum over queries, mean over query heads. (G, S) each"""

    def note(self, query: Tensor, weights: Tensor) -> None:
        self.found.append(weights.sum(2).mean(1))


class Window(Recorder):
    """Attention of the newest queries. (G, R, Q, S) each"""

    most = WINDOW

    def note(self, query: Tensor, weights: Tensor) -> None:
        self.found.append(weights)


class Newest(Window):
    """Attention of the last query. (G, R, 1, S) each"""

    most = 1


class Queries(Recorder):
    """The queries, rotated as the model asked with them. (G, R, Q, D) each"""

    weighs = False

    def note(self, query: Tensor, weights: Tensor) -> None:
        self.found.append(query)


class Repeated(Recorder):
    """The largest attention that each entry of a segment receives while it is repeated. (G, L) each

    Args:
        length: entries of the segment, the last ones before the repetition.
        sinks: first entries of a head, which alone compete with the segment and its repetition for attention.
    """

    def __init__(self, count: int, device: torch.device, *, length: int, sinks: int) -> None:
        super().__init__(count, device)
        self._length, self._sinks = length, sinks

    def narrowed(self, seen: Tensor) -> Tensor:
        held = seen[..., -1:, :]  # the last query sees all that a head has
        place, left = held.cumsum(-1), held.flip(-1).cumsum(-1).flip(-1)
        return seen & ((place <= self._sinks) | (left <= self._length + seen.shape[-2]))

    def note(self, query: Tensor, weights: Tensor) -> None:
        behind = weights.shape[-1] - weights.shape[2]
        self.found.append(weights[..., behind - self._length : behind].amax((1, 2)))
