"""Requests that tell the chat template something, and replies that think."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from serving import HALF, SMALL, Served, assistant, events, serving, user
from tiny import TEMPLATE, random_adapter, talkative, tiny_base, tiny_tokenizer

from sonic_kv import ChatSession, SamplingConfig, SonicModel
from sonic_kv.errors import ConfigError

THINKING = TEMPLATE.replace(
    "<|{{ m['role'] }}|>",
    "<|{{ m['role'] }}|>{% if m['reasoning_content'] and (keep or loop.last) %}<think>\n"
    "{{ m['reasoning_content'] }}\n</think>\n\n{% endif %}",
).replace(
    "<|assistant|>{% endif %}",
    "<|assistant|><think>\n{% if enable_thinking is false %}\n</think>\n\n{% endif %}{% endif %}",
)
TEXTS = ("my sister Ada lives in Oslo", "the door code is 4711, keep it", "and?")
BRIEF = SamplingConfig(max_new_tokens=12)


def thinking_model(**more: Any) -> SonicModel:
    base = talkative(tiny_base(max_position_embeddings=2048))
    return SonicModel(base, tiny_tokenizer(THINKING), random_adapter(base), **more)


@cache
def oracle() -> SonicModel:
    return thinking_model()


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with serving(thinking_model()) as served:
        yield served


def fresh(messages: list[dict[str, Any]], told: dict[str, Any]) -> tuple[str, str]:
    """Text and reasoning of a session's reply that was made for these messages alone."""
    chat = ChatSession(oracle(), HALF, None, SMALL, chat_template_kwargs=told)
    chat.extend(messages)
    reply = chat.send(None, BRIEF)
    return reply.text, reply.reasoning


def said(answer: dict[str, Any]) -> tuple[str, str]:
    message = answer["choices"][0]["message"]
    return message["content"], message.get("reasoning_content", "")


TOLD: list[dict[str, Any]] = [{}, {"enable_thinking": False}, {"enable_thinking": True, "keep": True}]


@pytest.mark.parametrize("told", TOLD)
def test_every_answer_is_that_of_a_fresh_session_that_tells_its_template_the_same(
    server: Served, told: dict[str, Any]
) -> None:
    messages: list[dict[str, Any]] = []
    hits = server.worker.counts["hits"]
    for text in TEXTS:
        messages.append(user(text))
        answer = said(server.chat(messages, chat_template_kwargs=told).json())
        assert answer == fresh(messages, told)
        assert bool(answer[0]) is (told.get("enable_thinking") is False)
        chunks = events(server.chat(messages, chat_template_kwargs=told, stream=True))
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
        streamed = (
            "".join(delta.get(key, "") for delta in deltas) for key in ("content", "reasoning_content")
        )
        assert tuple(streamed) == answer
        messages.append(assistant(answer[0]))
    assert server.worker.counts["hits"] > hits


def test_told_something_else_it_is_another_dialogue(server: Served) -> None:
    messages = [user("one"), assistant("two"), user("three")]
    answers = [said(server.chat(messages, chat_template_kwargs=told).json()) for told in TOLD[:2]]
    assert answers == [fresh(messages, told) for told in TOLD[:2]]
    assert answers[0] != answers[1]


@pytest.mark.parametrize("told", [{"keep": False}, {"keep": True}])
def test_reasoning_that_comes_back_counts_where_the_template_keeps_it(
    server: Served, told: dict[str, Any]
) -> None:
    messages = [user("hm"), {**assistant("yes"), "reasoning_content": "let me see"}, user("so?")]
    first = server.chat(messages, chat_template_kwargs=told).json()
    assert said(first) == fresh(messages, told)
    bare = [messages[0], assistant("yes"), messages[2], assistant(said(first)[0]), user("go on")]
    again = server.chat(bare, chat_template_kwargs=told).json()
    assert said(again) == fresh(bare, told)
    assert (again["usage"]["prompt_tokens_details"]["cached_tokens"] == 0) is told["keep"]


def test_what_the_template_is_told_outlives_the_server(tmp_path: Path) -> None:
    told, named = {"enable_thinking": False}, {"x-session-id": "thinks"}
    messages: list[dict[str, Any]] = []
    for text in TEXTS:
        with serving(thinking_model(), tmp_path) as server:
            messages.append(user(text))
            answer = server.chat(messages, chat_template_kwargs=told, headers=named).json()
            assert said(answer) == fresh(messages, told)
            messages.append(assistant(said(answer)[0]))
            assert server.http.get("/v1/sessions/thinks").json()["messages"] == messages
            assert server.worker.counts["made"] == (len(messages) == 2)


def test_what_every_dialogue_tells_the_template_is_the_models() -> None:
    told = {"enable_thinking": False}
    with serving(thinking_model(chat_template_kwargs=told)) as server:
        assert said(server.chat([user("hi")]).json()) == fresh([user("hi")], told)
        asked = {"chat_template_kwargs": {"enable_thinking": True}}
        assert said(server.chat([user("hi")], **asked).json()) == fresh([user("hi")], {})


def test_a_saved_session_goes_on_as_it_was_told(tmp_path: Path) -> None:
    chat = ChatSession(oracle(), HALF, None, SMALL, BRIEF, chat_template_kwargs={"enable_thinking": False})
    chat.send("hi")
    chat.save(tmp_path / "chat.safetensors")
    loaded = ChatSession.load(oracle(), tmp_path / "chat.safetensors")
    assert loaded.send("and?").text == chat.send("and?").text != ""
    assert loaded.token_ids == chat.token_ids


@pytest.mark.parametrize("name", ["chat_template", "tokenize", "conversation", "bos_token", "a b"])
def test_what_is_not_for_the_template_is_refused(server: Served, name: str) -> None:
    answer = server.chat([user("hi")], chat_template_kwargs={name: "{{ 1 }}"})
    assert answer.status_code == 400
    assert "chat_template_kwargs" in answer.json()["error"]["message"]
    with pytest.raises(ConfigError):
        ChatSession(oracle(), chat_template_kwargs={name: "{{ 1 }}"})


def test_what_the_template_is_told_opens_no_turn() -> None:
    tokenizer = tiny_tokenizer(TEMPLATE.replace("{{ bos_token }}", "{{ bos_token }}{{ greeting or '' }}"))
    form = SonicModel(tiny_base(), tokenizer).format
    spelled = form.with_options({"greeting": "<|user|>hi<|end|>"}).prompt([user("so")])
    plain = form.prompt([user("so")])
    special = set(tokenizer.all_special_ids)
    assert [i for i in spelled if i in special] == [i for i in plain if i in special]
    assert tokenizer.decode(spelled) == "<|bos|><|user|>hi<|end|>" + tokenizer.decode(plain).removeprefix(
        "<|bos|>"
    )
