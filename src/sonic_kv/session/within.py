"""`sonic`: compression for those who have a model of transformers and a generation loop, and want nothing else."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from sonic_kv.cache.cache import SessionCache
from sonic_kv.compress.compressor import Compressor
from sonic_kv.compress.options import Budget, PolicyName, SessionConfig
from sonic_kv.compress.policies import Policy
from sonic_kv.errors import MessageError
from sonic_kv.model.common import same
from sonic_kv.model.intercept import intercepted
from sonic_kv.model.model import SonicModel
from sonic_kv.options import require
from sonic_kv.session.dialogue import Dialogue
from sonic_kv.session.stats import SessionStats
from sonic_kv.session.work import Operation, run


class Inside:
    """What has been read inside a `sonic` block: a dialogue for each cache."""

    def __init__(self, first: Dialogue) -> None:
        self._first = first
        self._dialogues: WeakKeyDictionary[Any, Dialogue] = WeakKeyDictionary()
        self._newest: Dialogue | None = None

    @property
    def stats(self) -> SessionStats:
        """Entries, bytes and segments of the dialogue that was read last.

        Raises:
            MessageError: there is none yet.
        """
        if self._newest is None:
            raise MessageError("nothing has been read yet: run the model inside the block")
        return self._newest.stats

    def feed(self, cache: Any, token_ids: list[int], last: int) -> SessionCache | None:
        """Feed all but the `last` tokens to the dialogue of a cache, and count these as fed."""
        dialogue = self._dialogues.get(cache)
        if dialogue is None:
            if cache.get_seq_length():
                return None
            dialogue = self._dialogues[cache] = self._first.copy()
        self._newest = dialogue
        del dialogue.token_ids[dialogue.cache.logical_length :]  # taken back since
        if len(token_ids) > last:
            with dialogue.transaction():
                run(dialogue.model, _read(dialogue, token_ids, last))
        dialogue.token_ids += token_ids[len(token_ids) - last :]
        return dialogue.cache


def _read(dialogue: Dialogue, token_ids: list[int], last: int) -> Operation[None]:
    """Feed all but the `last` tokens, and close exchanges where users' turns begin."""
    form, ids = dialogue.format, [*dialogue.token_ids, *token_ids]
    begun, end = len(dialogue.token_ids), len(ids) - last
    turns = form.turns(ids)
    if not begun:
        begun = min((turns[0] if turns else 0) or same(form.prefix(), ids) or 1, end)
        yield from dialogue.feed_prefix(ids[:begun])
    for turn in turns:
        if begun < turn <= end:
            yield from dialogue.feed(ids[len(dialogue.token_ids) : turn])
            yield from dialogue.end_exchange()
    yield from dialogue.feed(ids[len(dialogue.token_ids) : end])
    yield from dialogue.close_if_full()


@contextmanager
def sonic(
    model: Any,
    budget: Budget | None = None,
    *,
    tokenizer: Any = None,
    config: SessionConfig | None = None,
    policy: Policy | PolicyName | None = None,
) -> Iterator[Inside]:
    """Compress what a model of transformers reads: `with sonic(model, Budget(max_entries=500)): model.generate(…)`.

    A prompt's past is kept within the budget: exchanges that are complete (by the chat template), and of a message
    that is longer than a segment all but its end. Logits are those of the prompt's last token. The cache that the
    model is given or makes holds what is kept, and can be gone on with inside the block. Where the block ends the
    model is as before; other threads notice nothing at any time, and do not compress.

    Args:
        model: of transformers, or a `SonicModel`, as one with an adapter.
        budget: default: half of the past is removed, with an adapter 80 %.
        tokenizer: the model's; None: the one where transformers loaded the model from.
        config: segments and selection; positions are the original ones.
        policy: which entries are kept; None: what `config` names.

    Raises:
        ConfigError: an argument is something else, or there is no tokenizer.
        UnsupportedModelError: the architecture cannot be compressed correctly.
    """
    ours = model if isinstance(model, SonicModel) else SonicModel(model, tokenizer)
    first = Dialogue.new(Compressor(ours, config, policy), budget)
    require(
        first.config.positions == "original", "sonic() needs positions='original': the model's own are those"
    )
    inside = Inside(first)
    with intercepted(ours.base, inside.feed):
        yield inside
