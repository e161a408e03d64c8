"""A conversation that never ends: positions, segments and memory stay within bounds."""

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tiny import DIALOGUE, random_adapter, tiny_base, tiny_model, tiny_tokenizer
from torch import Tensor

from sonic_kv.cache.cache import Lengths, SessionCache
from sonic_kv.compress.closing import MIN_GROUPS
from sonic_kv.compress.options import Bits, Budget, SessionConfig
from sonic_kv.compress.policies import Closing, Policy
from sonic_kv.errors import ContextLengthError
from sonic_kv.model.model import SonicModel
from sonic_kv.session.options import SamplingConfig
from sonic_kv.session.session import ChatSession

CONFIG = SessionConfig(min_segment_tokens=8, max_segment_tokens=40)


class Newest(Policy):
    """Keeps the newest entries."""

    def scores(self, closing: Closing) -> list[Tensor]:
        return [closing.positions(layer).float() for layer in closing.layers]


def exchange(number: int) -> list[dict[str, str]]:
    rng = random.Random(number)
    text = "".join(rng.choice("abcdefgh ") for _ in range(16))
    return [{"role": "user", "content": text}, {"role": "assistant", "content": text[::-1]}]


@pytest.mark.parametrize(("bits", "positions"), [(None, "original"), (None, "compact"), (4, "original")])
def test_five_hundred_turns_take_constant_memory_and_work(
    bits: Bits | None, positions: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(max_position_embeddings=300)
    config = SessionConfig(8, 40, positions=positions, bits=bits)
    chat = ChatSession(model, Budget(max_entries=64), config=config)
    sizes, reads, work = [], [], list[tuple[int, int]]()

    def counted(cache: SessionCache, token_ids: Sequence[int], **options: Any) -> Tensor:
        work.append((len(token_ids), cache.stored))
        return SonicModel.feed(model, cache, token_ids, **options)

    monkeypatch.setattr(model, "feed", counted)
    for turn in range(500):
        work.clear()
        chat.extend(exchange(turn))
        reads.append(sum(new * held for new, held in work))  # keys that the turn's queries read
        sizes.append(chat.stats.bytes)
        assert chat.cache.next_position < 300
    assert chat.stats.logical_tokens > 15_000
    assert set(sizes[50:]) == {sizes[50]}
    assert set(reads[50:]) <= set(reads[50:80])
    assert chat.stats.entries == 64
    assert len(chat.stats.segments) <= MIN_GROUPS
    assert sum(s.tokens for s in chat.stats.segments) + chat.stats.prefix == chat.stats.logical_tokens
    assert sum(s.entries for s in chat.stats.segments) == pytest.approx(chat.stats.memory)
    chat.send("still there?", SamplingConfig(max_new_tokens=4))


def test_the_oldest_segments_count_as_one() -> None:
    lengths = Lengths(prefix=2, segment_starts=(2, 10, 20, 30), closed=40)
    assert lengths.merge_oldest(4) is lengths
    merged = lengths.merge_oldest(2)
    assert merged.segment_starts == (2, 30)
    assert merged.segments == lengths.segments == 4
    assert merged.merge_oldest(1).segment_starts == (2,)


def test_rebased_keys_are_those_of_nearer_positions() -> None:
    """Nothing is re-encoded here, so a kept key is its raw key at another position."""
    base = tiny_base(max_position_embeddings=300)
    model = SonicModel(base, tiny_tokenizer(), random_adapter(base, lora_rank=0))
    free = SonicModel(tiny_base(max_position_embeddings=4096), tiny_tokenizer(), model.adapter)
    budget = Budget(max_entries=60)
    chat, far = (ChatSession(m, budget, config=CONFIG) for m in (model, free))
    turn = 0
    while not chat.cache.lengths.rebased:
        chat.extend(exchange(turn))
        far.extend(exchange(turn))
        turn += 1
    rebased, prefix = chat.cache.lengths.rebased, chat.cache.lengths.prefix
    assert far.cache.lengths.rebased == 0
    assert chat.cache.next_position == far.cache.next_position - rebased
    for number, (mine, theirs) in enumerate(zip(chat.cache.memory(), far.cache.memory(), strict=True)):
        for head, positions in enumerate(theirs.positions):
            assert torch.equal(mine.positions[head], positions)
            torch.testing.assert_close(mine.values[head], theirs.values[head])
            there = (positions - rebased).clamp_min(prefix)
            moved = model.rope.rotate(number, theirs.keys[head], there - positions)
            torch.testing.assert_close(mine.keys[head], moved, atol=1e-5, rtol=0)
        there = (torch.cat(list(theirs.positions)) - rebased).clamp_min(prefix)
        assert bool((there == prefix).any())  # the oldest are as far away as can be
        assert bool((there > prefix).any())


def test_distances_that_fit_are_kept_when_positions_are_rebased(monkeypatch: pytest.MonkeyPatch) -> None:
    """If everything kept is near enough, a rebased session says what one with more positions says."""
    monkeypatch.setattr("sonic_kv.compress.closing.MIN_GROUPS", 1)
    monkeypatch.setattr(
        "sonic_kv.compress.closing.ENTRIES_PER_GROUP", 1000
    )  # no entry is kept for its segment's sake
    chats = []
    for size in (300, 4096):
        # without a prefix, whose distance does change
        tokenizer = tiny_tokenizer("{% for m in messages %}{{ m['content'] }}<|end|>{% endfor %}")
        model = SonicModel(tiny_base(max_position_embeddings=size), tokenizer)
        chat = ChatSession(model, Budget(max_entries=24), config=SessionConfig(8, 40), policy=Newest())
        for turn in range(10):
            chat.extend(exchange(turn))
        chats.append(chat)
    rebased, free = (chat.cache for chat in chats)
    assert rebased.lengths.rebased > 0 == free.lengths.rebased
    logits = [chat.model.feed(chat.cache, [65, 66]) for chat in chats]
    torch.testing.assert_close(*logits, atol=1e-4, rtol=0)


def test_without_a_budget_positions_still_run_out() -> None:
    chat = ChatSession(tiny_model(max_position_embeddings=120), Budget())
    chat.extend(DIALOGUE[:4])
    with pytest.raises(ContextLengthError, match="compact"):
        chat.extend([{"role": "user", "content": "x" * 60}])
