"""Dialogues whose replies a model writes anew: what its sessions hold is text of its own."""

import logging
import random
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sonic_kv.compress.compressor import Compressor
from sonic_kv.compress.options import Budget
from sonic_kv.errors import ContextLengthError, MessageError
from sonic_kv.model.messages import Message
from sonic_kv.model.model import SonicModel
from sonic_kv.session.dialogue import Dialogue
from sonic_kv.session.engine import Engine, Preparing, Turn
from sonic_kv.session.options import SamplingConfig

log = logging.getLogger(__name__)
SLICE_TOKENS = 256


@dataclass
class _Rewriting:
    """A dialogue under way.

    Attributes:
        waiting: what is still to be replied to.
        said: what has been said so far.
    """

    number: int
    dialogue: Dialogue
    waiting: list[list[Message]]
    said: list[dict[str, Any]] = field(default_factory=list)
    ended: bool = False


def own_replies(
    model: SonicModel,
    dialogues: Iterable[Sequence[Message]],
    sampling: SamplingConfig,
    *,
    max_tokens: int,
    first: int = 0,
    together: int = 16,
) -> Iterator[list[dict[str, Any]]]:
    """What dialogues become if the model replies to their users, with full context.

    A dialogue is empty if nothing in it can be replied to: if no user speaks, or tools take part. One that has no
    room for a reply, or whose next message the chat template refuses, ends before it.

    Args:
        sampling: a seed is one for all; every reply has its own that follows from it.
        first: number of the first dialogue, where these are not all.
        max_tokens: a dialogue that has so many gets no further reply.
        together: dialogues that are decoded side by side.

    Returns:
        messages of each dialogue, in the order of `dialogues`.
    """
    engine, source = Engine(model, SLICE_TOKENS), enumerate(dialogues, first)
    going: deque[_Rewriting] = deque()
    while True:
        while sum(not one.ended for one in going) < together and (found := next(source, None)) is not None:
            session = Dialogue.new(Compressor(model), Budget(compression_ratio=0.0))
            going.append(_Rewriting(found[0], session, _asked(found[1])))
            _go_on(going[-1], engine, sampling, max_tokens)
        while going and going[0].ended:
            yield going.popleft().said
        if not going:
            return
        engine.step()


def _go_on(one: _Rewriting, engine: Engine, sampling: SamplingConfig, max_tokens: int) -> None:
    """Have the next reply of a dialogue made, and then those after it."""
    if not one.waiting:
        one.ended = True
        return
    asked, of_all = one.waiting.pop(0), sampling
    if sampling.seed is not None:
        seed = random.Random(f"{sampling.seed}-{one.number}-{len(one.said)}").getrandbits(32)
        sampling = replace(sampling, seed=seed)

    def end(turn: Turn) -> None:
        if turn.error is None:
            one.said += [*(dict(message) for message in asked), dict(turn.reply(turn.text, turn.reasoning))]
        elif isinstance(turn.error, MessageError):
            log.warning(
                "dialogue %d ends before message %d: %s", one.number + 1, len(one.said) + 1, turn.error
            )
        elif not isinstance(turn.error, ContextLengthError):
            raise turn.error
        if turn.error or turn.session is None or turn.session.cache.logical_length >= max_tokens:
            one.waiting.clear()
        _go_on(one, engine, of_all, max_tokens)

    engine.start(Turn(_ask(one.dialogue, asked), sampling, on_end=end))


def _asked(messages: Sequence[Message]) -> list[list[Message]]:
    """What stands before each reply to a user: the user's messages, and system prompts and greetings before them."""
    groups: list[list[Message]] = [[]]
    for message in messages:
        if message["role"] == "tool" or message.get("tool_calls"):
            return []
        if message["role"] != "assistant" or (len(groups) == 1 and not _speaks(groups[0])):
            groups[-1].append(message)
        elif _speaks(groups[-1]):
            groups.append([])
    return [group for group in groups if _speaks(group)]


def _speaks(messages: Sequence[Message]) -> bool:
    return any(message["role"] == "user" for message in messages)


def _ask(dialogue: Dialogue, messages: list[Message]) -> Preparing:
    """Tell a dialogue what is to be replied to."""
    if not dialogue.token_ids:
        system = messages[0]["content"] if messages[0]["role"] == "system" else None
        yield from dialogue.begin(system, SLICE_TOKENS)
        messages = messages[system is not None :]
    yield from dialogue.extend(messages, SLICE_TOKENS)
    return dialogue
