"""Laws of many replies at once: each is the reply it would be alone."""

from typing import Any

import pytest
import torch
from tiny import DIALOGUE, FAMILIES, tiny_model
from torch import Tensor

from sonic_kv.cache.cache import SessionCache
from sonic_kv.compress.options import Budget, SessionConfig
from sonic_kv.errors import ContextLengthError, NumericalError
from sonic_kv.model.model import SonicModel
from sonic_kv.session import engine as engine_module
from sonic_kv.session.engine import Engine, Preparing, Turn
from sonic_kv.session.options import SamplingConfig
from sonic_kv.session.session import ChatSession
from sonic_kv.session.work import drive, run

HALF = Budget(compression_ratio=0.5)
SMALL = SessionConfig(min_segment_tokens=16, max_segment_tokens=40)
QUESTIONS = ["what is the code?", "hi", "and where does my sister live now, do you know that?", "?"]


def new_session(model: SonicModel, exchanges: int, config: SessionConfig = SMALL) -> ChatSession:
    chat = ChatSession(model, HALF, system="be brief", config=config)
    if exchanges:
        chat.extend(DIALOGUE[: 2 * exchanges])
    return chat


def asking(chat: ChatSession, question: str, slice_tokens: int = 16) -> Preparing:
    yield from chat.dialogue.extend([{"role": "user", "content": question}], slice_tokens)
    return chat.dialogue


def turn(model: SonicModel, number: int, length: int = 24, **options: Any) -> Turn:
    chat = new_session(model, number)
    return Turn(asking(chat, QUESTIONS[number]), SamplingConfig(max_new_tokens=length), **options)


def tensors(cache: SessionCache) -> list[Tensor]:
    return [tensor for layer in cache.layers for tensor in layer.state().values()]


@pytest.mark.parametrize("family", FAMILIES)
def test_replies_together_are_the_replies_alone(family: str) -> None:
    model = tiny_model(family)
    engine, turns = Engine(model, slice_tokens=16), [turn(model, number) for number in range(4)]
    for one in turns:
        engine.start(one)
        for _ in range(3):  # the others are already under way
            engine.step()
    engine.run()
    for number, one in enumerate(turns):
        alone = new_session(model, number).send(QUESTIONS[number], SamplingConfig(max_new_tokens=24))
        assert one.error is None
        assert (one.text, one.finish_reason) == (alone.text, alone.finish_reason)
        assert one.completion_tokens == alone.usage.completion_tokens


def test_a_session_depends_on_the_dialogue_alone_and_not_on_how_it_was_generated() -> None:
    model = tiny_model()
    engine, turns = Engine(model, slice_tokens=16), [turn(model, number) for number in range(4)]
    for one in turns:
        engine.start(one)
    engine.run()
    for number, one in enumerate(turns):
        written = new_session(model, number)
        for message in (
            {"role": "user", "content": QUESTIONS[number]},
            {"role": "assistant", "content": one.text},
        ):
            run(model, written.dialogue.extend([message], 16))
        assert one.session is not None
        assert one.session.token_ids == written.token_ids
        assert one.session.cache.lengths == written.cache.lengths
        for mine, theirs in zip(tensors(one.session.cache), tensors(written.cache), strict=True):
            assert torch.equal(mine, theirs)


def test_a_reply_longer_than_a_segment_closes_it_on_the_way() -> None:
    model = tiny_model()
    engine, one = Engine(model, slice_tokens=16), turn(model, 2, length=100)
    engine.start(one)
    engine.run()
    alone = new_session(model, 2)
    assert one.text == alone.send(QUESTIONS[2], SamplingConfig(max_new_tokens=100)).text
    assert one.session is not None
    assert len(one.session.cache.lengths.segment_starts) > 3


def test_slices_are_whole_messages_up_to_rounding() -> None:
    model = tiny_model()
    whole, sliced = new_session(model, 0), new_session(model, 0)
    whole.extend(DIALOGUE)
    pauses = [0 for _ in drive(model, sliced.dialogue.extend(DIALOGUE, 5))]
    assert len(pauses) > 20
    assert sliced.cache.lengths == whole.cache.lengths
    for mine, theirs in zip(tensors(sliced.cache), tensors(whole.cache), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=0)


def test_a_cancelled_turn_leaves_and_the_others_go_on() -> None:
    model = tiny_model()
    engine, ended = Engine(model, slice_tokens=16), list[Turn]()
    turns = [turn(model, number, on_end=ended.append) for number in range(3)]
    for one in turns:
        engine.start(one)
    while engine.decoding < 3:
        engine.step()
    turns[0].cancelled = True
    engine.run()
    assert ended[0] is turns[0]
    assert turns[0].finish_reason is None
    for number in (1, 2):
        alone = new_session(model, number).send(QUESTIONS[number], SamplingConfig(max_new_tokens=24))
        assert turns[number].text == alone.text
    assert engine.nbytes == 0


def test_a_turn_cancelled_while_it_is_prepared_undoes_its_session() -> None:
    model = tiny_model()
    chat = new_session(model, 1)
    before = list(chat.token_ids)
    engine, one = Engine(model, slice_tokens=4), Turn(asking(chat, QUESTIONS[2], 4), SamplingConfig())
    engine.start(one)
    engine.step()
    one.cancelled = True
    assert engine.step() is False
    assert chat.token_ids == before
    chat.send("hi", SamplingConfig(max_new_tokens=2))  # not busy any more


def test_a_row_without_finite_logits_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    engine, turns = Engine(model, slice_tokens=16), [turn(model, number) for number in range(2)]
    step = engine_module.batch_step

    def poisoned(base: Any, caches: list[SessionCache], *arguments: Any) -> Tensor:
        logits = step(base, caches, *arguments)
        if len(caches) == 2:
            logits[0] = float("nan")
        return logits

    monkeypatch.setattr(engine_module, "batch_step", poisoned)
    for one in turns:
        engine.start(one)
    engine.run()
    failed = [one for one in turns if one.error is not None]
    assert len(failed) == 1
    assert isinstance(failed[0].error, NumericalError)
    (other,) = (one for one in turns if one.error is None)
    assert other.finish_reason is not None


def test_a_failing_preparation_ends_the_turn_with_its_error() -> None:
    model = tiny_model()
    engine, ended = Engine(model, slice_tokens=16), list[Turn]()
    chat = ChatSession(model, Budget())
    one = Turn(asking(chat, "word " * 200), SamplingConfig(), on_end=ended.append)
    engine.start(one)
    engine.run()
    assert ended == [one]
    assert isinstance(one.error, ContextLengthError)


def test_a_reply_ends_where_the_dialogue_with_its_closing_is_full() -> None:
    model = tiny_model(max_position_embeddings=128)
    chat = ChatSession(model, Budget(), config=SMALL)
    engine, one = Engine(model, 16), Turn(asking(chat, "word " * 16), SamplingConfig(max_new_tokens=512))
    engine.start(one)
    engine.run()
    assert one.error is None
    assert one.finish_reason == "length"
    assert one.session is None or one.session.cache.logical_length <= 128


def test_seeded_sampling_does_not_depend_on_the_others() -> None:
    model, sampling = tiny_model(), SamplingConfig(max_new_tokens=12, temperature=1.0, seed=7)

    def reply(others: int) -> str:
        engine = Engine(model, slice_tokens=16)
        one = Turn(asking(new_session(model, 1), "hi"), sampling)
        for number in range(others):
            engine.start(turn(model, number))
        engine.start(one)
        engine.run()
        return one.text

    assert reply(0) == reply(3)


def test_only_preparing_ends_without_a_reply() -> None:
    model = tiny_model()
    engine, chat = Engine(model, 16), new_session(model, 1)
    one = Turn(asking(chat, "hi"))
    engine.start(one)
    engine.run()
    assert one.session is chat.dialogue
    assert one.finish_reason is None
