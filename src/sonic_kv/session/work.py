"""Work that a dialogue's operations ask for, as data, and what does it.

An operation is a generator. It yields what it needs of the model and is sent what came of it; it yields pieces of a
reply as they come, and nothing (None) where it may pause. `run` drives one operation, an `Engine` those of many
dialogues at once.
"""

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from sonic_kv.cache.cache import SessionCache
from sonic_kv.errors import NumericalError
from sonic_kv.model.model import SonicModel
from sonic_kv.model.reread import Reading
from sonic_kv.session.generate import Piece
from sonic_kv.session.sampling import NAN_LOGITS, Sampler

T = TypeVar("T")


@dataclass(frozen=True)
class Feed:
    """Append tokens to a cache; what comes of it is a `Next`."""

    cache: SessionCache
    token_ids: Sequence[int]


@dataclass(frozen=True)
class Decode:
    """Append a token of a reply to a cache, in one forward with those of others; what comes of it is a `Next`."""

    cache: SessionCache
    token_id: int


@dataclass(frozen=True)
class Next:
    """What may follow a token: logits, (V,), the largest of them (NaN if any is), and whose that is."""

    logits: Tensor
    largest: float
    greedy: int


Work = Feed | Decode | Reading
Operation = Generator[Work | Piece | None, Any, T]


def perform(model: SonicModel, work: Work) -> Next | None:
    """Do what was asked for."""
    if not isinstance(work, (Feed, Decode)):
        model.reread([work])
        return None
    token_ids = work.token_ids if isinstance(work, Feed) else [work.token_id]
    logits = model.feed(work.cache, token_ids)
    largest, greedy = logits.max(-1)
    return Next(logits, float(largest), int(greedy))


def drive(model: SonicModel, operation: Operation[T]) -> Generator[Piece | None, None, T]:
    """Do an operation's work; its pieces and pauses are yielded. Left there, the operation is called off."""
    with closing(operation):  # if the work fails, the operation undoes what it has begun
        answer: Next | None = None
        while True:
            try:
                item = operation.send(answer)
            except StopIteration as end:
                done: T = end.value
                return done
            answer = None
            if item is None or isinstance(item, Piece):
                yield item
            else:
                answer = perform(model, item)


def run(model: SonicModel, operation: Operation[T]) -> T:
    """What an operation returns."""
    driving = drive(model, operation)
    while True:
        try:
            next(driving)
        except StopIteration as end:
            done: T = end.value
            return done


def choose(following: Next, sampler: Sampler) -> int:
    """The next token of a reply.

    Raises:
        NumericalError: the logits are not finite.
    """
    if not abs(following.largest) < torch.inf:
        raise NumericalError(NAN_LOGITS)
    return following.greedy if sampler.plain else sampler(following.logits)
