"""Closing while the user thinks: never waited for, never half done."""

from collections.abc import Callable

import pytest
import torch
from onepass import RecordingModel, one_pass_logits
from test_session import assert_same, state
from tiny import DIALOGUE, random_adapter, tiny_base, tiny_model, tiny_tokenizer

from sonic_kv.compress.options import Budget, SessionConfig
from sonic_kv.errors import MessageError
from sonic_kv.session.options import SamplingConfig
from sonic_kv.session.session import ChatSession

HALF = Budget(compression_ratio=0.5)
IDLE = SessionConfig(min_segment_tokens=16, max_segment_tokens=200, closing="asked")
TURN = SessionConfig(min_segment_tokens=16, max_segment_tokens=200)
BRIEF = SamplingConfig(max_new_tokens=6)


def test_closing_at_leisure_is_closing_at_once() -> None:
    model = tiny_model()
    idle, turn = (ChatSession(model, HALF, config=config) for config in (IDLE, TURN))
    for first in range(0, 8, 2):
        idle.extend(DIALOGUE[first : first + 2])
        turn.extend(DIALOGUE[first : first + 2])
        assert idle.pending is (turn.cache.open_length == 0)
        assert idle.compress() is (turn.cache.open_length == 0)
        assert not idle.pending
        assert_same(state(idle), state(turn))
    assert len(idle.cache.lengths.segment_starts) >= 2


def test_a_message_that_comes_first_finds_the_segment_raw_and_is_closed_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chat = ChatSession(tiny_model(), HALF, config=IDLE, sampling=BRIEF)
    chat.extend(DIALOGUE[:2])
    assert chat.pending
    with monkeypatch.context() as patches:
        patches.setattr(chat.dialogue.compressor, "steps", None)  # nothing is closed while the user waits
        chat.send("and?")
    assert chat.cache.lengths.segments == 0
    assert chat.compress()
    assert chat.cache.lengths.segments == 1
    assert chat.stats.open == 0


def test_what_is_left_open_for_long_is_closed_after_a_reply() -> None:
    chat = ChatSession(tiny_model(), HALF, config=SessionConfig(8, 64, closing="asked"))
    longest = 0
    for _ in range(5):
        chat.extend(DIALOGUE)
        longest = max(longest, chat.stats.open)
    assert chat.cache.lengths.segments > 0
    assert longest < 32 + 64


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_closing_that_is_called_off_has_not_happened(after: int) -> None:
    chat = ChatSession(tiny_model(), HALF, config=IDLE)
    chat.extend(DIALOGUE[:4])
    before, asked = state(chat), iter([False] * after + [True])
    assert not chat.compress(lambda: next(asked))
    assert next(asked, None) is None  # it was asked that often
    assert_same(before, state(chat))
    assert chat.pending
    assert chat.compress()
    assert not chat.compress()


def test_nothing_is_pending_before_a_reply_or_without_a_budget() -> None:
    for budget in (HALF, Budget()):
        chat = ChatSession(tiny_model(), budget, config=IDLE)
        assert not chat.compress()
        chat.extend(DIALOGUE[:1])
        assert not chat.pending
        chat.extend(DIALOGUE[1:2])
        assert chat.pending is (budget == HALF)


def test_a_segment_is_not_closed_while_a_reply_is_streamed() -> None:
    chat = ChatSession(tiny_model(), HALF, config=IDLE, sampling=BRIEF)
    stream = chat.stream("hi there, a first message")
    next(stream)
    with pytest.raises(MessageError, match="stream"):
        chat.compress()


@pytest.mark.parametrize("when", [lambda turn: turn % 2 == 0, lambda turn: turn == 2])
def test_session_matches_one_pass_forward_however_closings_fall(when: Callable[[int], bool]) -> None:
    base = tiny_base()
    model = RecordingModel(base, tiny_tokenizer(), random_adapter(base))
    model.start()
    chat = ChatSession(model, HALF, config=IDLE)
    for turn in range(4):
        chat.extend(DIALOGUE[2 * turn : 2 * turn + 2])
        if when(turn):
            chat.compress()
    assert chat.cache.lengths.segments
    (logits,) = one_pass_logits([chat])
    torch.testing.assert_close(torch.cat(model.logits), logits, atol=1e-5, rtol=0)
