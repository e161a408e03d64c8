"""The compiled decode step is the base's own, for every length; where nothing can be compiled, one line says so."""

import shutil

import pytest
import torch
from test_threads import TOPICS, at_once, talk
from tiny import tiny_model

from sonic_kv import Budget, ChatSession, SamplingConfig, SessionConfig
from sonic_kv.cache.cache import SessionCache
from sonic_kv.errors import ConfigError
from sonic_kv.model.compiled import CompiledStep

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of torch itself, while it compiles
]
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")


@needs_compiler
@pytest.mark.parametrize("allocation", ["per_head", "shared"])
def test_one_graph_is_the_base_at_every_length_and_share_of_heads(allocation: str) -> None:
    model = tiny_model()
    step = CompiledStep(model.twin)
    ids = torch.randint(256, (140,), generator=torch.Generator().manual_seed(0)).tolist()
    chat = ChatSession(model, Budget(compression_ratio=0.5), config=SessionConfig(allocation=allocation))
    for text in ("the first message of some length", "a second one", "a third"):
        chat.send(text, sampling=SamplingConfig(max_new_tokens=12))
    assert chat.cache.lengths.memory > 0
    assert chat.cache.even == (allocation == "per_head")
    for start in (SessionCache(model.num_layers), chat.cache):
        ours, theirs = start.fork(), start.fork()
        for token in ids:
            found, expected = step(ours, token), model.feed(theirs, [token])
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        for mine, plain in zip(ours.layers, theirs.layers, strict=True):
            torch.testing.assert_close(mine.heads(), plain.heads(), atol=1e-5, rtol=1e-5)
    assert step.graphs == 1


@needs_compiler
def test_a_compiled_session_replies_as_a_plain_one() -> None:
    replies = []
    for compiled in (False, True):
        model = tiny_model()
        if compiled:
            model.compile()
        chat = ChatSession(model, Budget(compression_ratio=0.5), sampling=SamplingConfig(max_new_tokens=24))
        replies.append([chat.send(text).text for text in ("first", "second", "third")])
        fork = chat.fork()  # shares buffers: one goes on in place, the other in its own
        replies[-1] += [chat.send("on").text, fork.send("on").text]
    assert replies[0] == replies[1]


@needs_compiler
def test_compiled_sessions_in_threads_reply_as_each_alone() -> None:
    model = tiny_model()
    model.compile()
    alone = [talk(model, topic) for topic in TOPICS]
    for _ in range(5):
        assert at_once([lambda topic=topic: talk(model, topic) for topic in TOPICS]) == alone


def test_without_a_compiler_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    monkeypatch.setattr("torch._inductor.config.force_disable_caches", True)
    torch._dynamo.reset()
    with pytest.raises(ConfigError, match=r"cannot compile .* needs a C\+\+ compiler") as caught:
        tiny_model().compile()
    assert "\n" not in str(caught.value)
