"""Sessions of one model in several threads reply as each would alone, and the base stays the base meanwhile."""

import sys
import threading
from collections.abc import Callable, Iterator
from copy import copy
from typing import Any

import pytest
import torch
from test_adapter import assert_untouched, snapshot
from tiny import FAMILIES, tiny_model

from sonic_kv import Budget, ChatSession, SamplingConfig, SessionConfig, SonicModel
from sonic_kv.cache.layers import SessionLayer

TOPICS = ("my sister Ada lives in Oslo", "the door code is 4711", "we meet at noon, bring soup")
HALF = Budget(compression_ratio=0.5)
GREEDY = SamplingConfig(max_new_tokens=3, temperature=0.0)


@pytest.fixture(autouse=True)
def threads_take_turns_often() -> Iterator[None]:
    """A switch between any two steps of Python, as far as it lets us."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def at_once(works: list[Callable[[], Any]]) -> list[Any]:
    """What each of several threads returns; an exception is a result."""
    results: list[Any] = [None] * len(works)
    start = threading.Barrier(len(works))

    def run(number: int) -> None:
        start.wait()
        try:
            results[number] = works[number]()
        except Exception as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def talk(model: SonicModel, topic: str) -> list[str]:
    chat = ChatSession(
        model, HALF, config=SessionConfig(min_segment_tokens=8, max_segment_tokens=24), sampling=GREEDY
    )
    return [chat.send(text).text for text in (topic, "again?")]


def write(base: Any) -> list[int]:
    """What `generate` of the base itself writes."""
    ids = torch.arange(40, 60)[None]
    found: list[int] = base.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=257)[0].tolist()
    return found


@pytest.mark.parametrize("adapter", [True, False], ids=["adapter", "no-adapter"])
def test_sessions_in_threads_reply_as_each_alone(adapter: bool) -> None:
    model = tiny_model(adapter=adapter)
    before, written = snapshot(model.base), write(model.base)
    alone = [talk(model, topic) for topic in TOPICS]
    assert len({tuple(replies) for replies in alone}) == len(TOPICS)
    for _ in range(50):
        works = [lambda topic=topic: talk(model, topic) for topic in TOPICS]
        *replies, meanwhile = at_once([*works, lambda: write(model.base)])
        assert replies == alone
        assert meanwhile == written
        assert_untouched(model.base, before)
    assert write(model.base) == written


@pytest.mark.parametrize("family", FAMILIES)
def test_the_base_is_untouched_while_sessions_run(family: str) -> None:
    model = tiny_model(family)
    before, written = snapshot(model.base), write(model.base)
    going = threading.Event()
    going.set()

    def look() -> None:
        while going.is_set():
            assert_untouched(model.base, before)
            assert write(model.base) == written

    def chat() -> None:
        try:
            talk(model, TOPICS[0])
        finally:
            going.clear()

    assert at_once([look, chat]) == [None, None]
    assert_untouched(model.base, before)
    assert write(model.base) == written


def test_training_in_one_thread_leaves_sessions_in_others_alone() -> None:
    """The rows that LoRA layers act on are a forward's own."""
    from test_adapter import logits, plan

    model, layout = tiny_model(), plan()
    alone, passed = talk(model, TOPICS[0]), logits(model, layout)
    for _ in range(5):
        replies, found = at_once([lambda: talk(model, TOPICS[0]), lambda: logits(model, layout)])
        assert replies == alone
        assert torch.equal(found, passed)


@pytest.mark.parametrize("sizes", [(5, 3), (4, 4)], ids=["uneven", "even"])
def test_layers_that_share_a_buffer_grow_in_different_threads(sizes: tuple[int, ...]) -> None:
    """One of them goes on in the buffer, the others in their own; nobody sees what another appended."""
    for _ in range(50):
        layer = SessionLayer()
        layer.lazy_initialization(torch.zeros(1, 2, 0, 4), torch.zeros(1, 2, 0, 4))
        layer.hold(torch.zeros(sum(sizes), 4), torch.zeros(sum(sizes), 4), sizes)
        layer.append(torch.zeros(1, 2, 1, 4), torch.zeros(1, 2, 1, 4))  # now there is room
        forks = [copy(layer) for _ in range(3)]

        def grow(fork: SessionLayer, number: int) -> None:
            for _ in range(10):
                fork.append(torch.full((1, 2, 1, 4), float(number)), torch.full((1, 2, 1, 4), float(number)))

        assert at_once([lambda f=f, n=n: grow(f, n) for n, f in enumerate(forks, 1)]) == [None] * 3
        for number, fork in enumerate(forks, 1):
            for head, size in zip(fork.heads()[0], sizes, strict=True):
                assert head[:, 0].tolist() == [0.0] * (size + 1) + [number] * 10


@pytest.mark.slow
def test_sessions_of_the_shipped_model_in_threads_reply_as_each_alone() -> None:
    model = SonicModel.from_pretrained("tiny")
    before, written = snapshot(model.base), write(model.base)
    alone = [talk(model, topic) for topic in TOPICS]
    for _ in range(5):
        replies = at_once([lambda topic=topic: talk(model, topic) for topic in TOPICS])
        assert replies == alone
        assert_untouched(model.base, before)
    assert write(model.base) == written
