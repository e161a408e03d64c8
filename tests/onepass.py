"""A session that remembers what it did, and the one-pass forward of the same thing."""

from collections.abc import Sequence

import torch
from tiny import tiny_tokenizer
from torch import Tensor

from sonic_kv.cache.cache import SessionCache
from sonic_kv.compress.options import Budget, SessionConfig
from sonic_kv.model import layout as lay
from sonic_kv.model.model import SonicModel
from sonic_kv.model.reread import Reading, Reread
from sonic_kv.session.session import ChatSession


class RecordingModel(SonicModel):
    """Keeps the logits of every fed token and what every head held at that time."""

    def start(self) -> None:
        self.logits: list[Tensor] = []
        self.kept: dict[int, list[list[Tensor]]] = {}  # open segment number → per layer and head (n,)
        self.nexus: dict[int, Tensor] = {}  # segment number → transcript positions of its Nexus tokens
        self.ends: list[int] = []  # transcript positions at which segments were closed

    def reread(self, requests: Sequence[Reading]) -> None:
        for request in requests:
            if isinstance(request, Reread) and request.encode:
                lengths = request.cache.lengths
                self.nexus[lengths.segments + 1] = lengths.closed + request.offsets
        super().reread(requests)

    def feed(self, cache: SessionCache, token_ids: Sequence[int], *, all_logits: bool = False) -> Tensor:
        number = cache.lengths.segments + 1
        if number > 1:
            if number > len(self.ends) + 1:
                self.ends.append(cache.lengths.closed)
            self.kept[number] = [
                [head[head >= 0].long() for head in layer.positions[0]] for layer in cache.layers
            ]
        logits = super().feed(cache, token_ids, all_logits=True)
        self.logits.append(logits)
        return logits if all_logits else logits[-1]


def record(
    base: object,
    adapter: object,
    messages: list[dict[str, str]],
    budgets: list[Budget],
    config: SessionConfig,
) -> tuple[RecordingModel, ChatSession]:
    """Run a session over gold messages, with `budgets[i]` from exchange i on."""
    model = RecordingModel(base, tiny_tokenizer(), adapter)  # type: ignore[arg-type]
    model.start()
    session = ChatSession(model, budgets[0], config=config)
    for turn in range(len(messages) // 2):
        if turn < len(budgets):
            session.set_budget(budgets[turn])
        session.extend(messages[2 * turn : 2 * turn + 2])
    return model, session


def plan(session: ChatSession) -> tuple[lay.Layout, list[Tensor]]:
    """Layout and per-layer lifetimes under which one pass equals `session`."""
    model, lengths = session.model, session.cache.lengths
    assert isinstance(model, RecordingModel)
    ends = [*model.ends, *[lengths.closed][len(model.ends) == lengths.segments :]]
    segments = len(ends)
    nexus = [model.nexus.get(number, torch.empty(0, dtype=torch.long)) for number in range(1, segments + 1)]
    counts = [0] + [len(model.kept[n][0][0]) if n in model.kept else 0 for n in range(2, segments + 2)]
    layout = lay.interleave(
        len(session.token_ids),
        lengths.prefix,
        ends,
        nexus,
        whole_segment=model.whole_segment,
        memory_lengths=counts if session.cache.compact else None,
    )
    last = max(model.kept, default=1)
    lifetimes = [
        lay.lifetimes(layout, [model.kept[n][layer] for n in range(2, last + 1)])
        for layer in range(model.num_layers)
    ]
    return layout, lifetimes


def one_pass_logits(sessions: list[ChatSession]) -> list[Tensor]:
    """Logits of every transcript token of several sessions, from a single padded one-pass forward."""
    model = sessions[0].model
    plans = [plan(session) for session in sessions]
    layout = lay.pad([p[0] for p in plans])
    width = layout.index.shape[-1]
    lifetime = [
        torch.cat(
            [
                torch.nn.functional.pad(p[1][n], (0, width - p[1][n].shape[-1]), value=lay.PADDING)
                for p in plans
            ]
        )
        for n in range(model.num_layers)
    ]
    longest = max(len(s.token_ids) for s in sessions)
    ids = torch.tensor([s.token_ids + [0] * (longest - len(s.token_ids)) for s in sessions])
    compact = sessions[0].cache.compact
    with torch.no_grad():
        logits = model.one_pass(ids, layout, lifetime, compact=compact)
    return [
        logits[row, ~layout.nexus[row] & (layout.segment[row] != lay.PADDING)] for row in range(len(sessions))
    ]
