"""Replies that follow a grammar: valid to the last character, whatever the model would say by itself."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from serving import SMALL, Served, assistant, events, serving, user
from tiny import talkative, tiny_base, tiny_model, tiny_tokenizer

from sonic_kv import Budget, ChatSession, SamplingConfig, SonicModel
from sonic_kv.errors import ConfigError
from sonic_kv.model.grammar import json_grammar
from sonic_kv.session.generate import generate

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "lives": {"enum": ["Oslo", "Rome"]},
    },
    "required": ["name", "age", "lives"],
    "additionalProperties": False,
}
LONG = SamplingConfig(max_new_tokens=200)


def check_person(text: str) -> None:
    person = json.loads(text)
    assert set(person) == {"name", "age", "lives"}
    assert len(person["name"]) <= 6
    assert 0 <= person["age"] <= 150
    assert person["lives"] in ("Oslo", "Rome")


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with serving(tiny_model(max_position_embeddings=2048)) as served:
        yield served


def as_schema(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "person", "schema": schema, "strict": True}}


# --- sessions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_reply_is_valid_for_its_schema(temperature: float) -> None:
    sampling = SamplingConfig(200, temperature, seed=1, grammar=json_grammar(PERSON))
    chat = ChatSession(tiny_model(max_position_embeddings=2048), Budget(compression_ratio=0.5), None, SMALL)
    for text in ("who is it?", "and now?", "so?"):  # segments are closed in the middle of replies, too
        reply = chat.send(text, sampling)
        assert reply.finish_reason == "stop"
        check_person(reply.text)


def test_rows_of_a_batch_follow_their_grammar_as_each_alone() -> None:
    model = tiny_model()
    sampling = SamplingConfig(100, 1.0, seed=2, grammar=json_grammar(PERSON))
    alone = [generate(model, [prompt], None, sampling)[0] for prompt in ([1, 2, 3], [4])]
    assert generate(model, [[1, 2, 3], [4]], None, sampling) == alone
    for reply in alone:
        check_person(reply.text)


def test_what_a_grammar_allows_is_chosen_as_without_it() -> None:
    model = SonicModel(talkative(tiny_base()), tiny_tokenizer())  # writes "!" to "~"
    free = ChatSession(model, Budget()).send("hi", LONG).text
    assert ChatSession(model, Budget()).send("hi", replace(LONG, grammar="start: /[!-~]*/")).text == free
    answer = ChatSession(model, Budget()).send("hi", replace(LONG, grammar='start: "yes" | "yes, and no"'))
    assert answer.text in ("yes", "yes, and no")


@pytest.mark.parametrize("grammar", ["nonsense", 'start: %json {"type": "strange"}', "start: other"])
def test_a_grammar_that_cannot_be_read_is_refused(grammar: str) -> None:
    chat = ChatSession(tiny_model())
    with pytest.raises(ConfigError) as caught:
        chat.send("hi", SamplingConfig(grammar=grammar))
    assert "\n" not in str(caught.value)
    assert chat.messages == []


def test_reasoning_is_free() -> None:
    """A grammar holds for the answer; it begins where the reasoning ends."""
    template = (
        "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'].split('</think>')[-1] }}<|end|>"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|><think>{% endif %}"
    )
    tokenizer, base = tiny_tokenizer(template), tiny_base()
    tokenizer.add_tokens(["</think>"])
    base.resize_token_embeddings(263, mean_resizing=False)
    model = SonicModel(base, tokenizer)
    close = tokenizer.convert_tokens_to_ids("</think>")
    grammar = json_grammar(PERSON)
    thinking = ChatSession(model).send(
        "hi", SamplingConfig(40, grammar=grammar, logit_bias=((close, -100.0),))
    )
    assert thinking.text == ""
    assert len(thinking.reasoning) > 5
    done = ChatSession(model).send("hi", SamplingConfig(200, grammar=grammar, logit_bias=((close, 100.0),)))
    assert done.reasoning == ""
    check_person(done.text)


# --- over HTTP ----------------------------------------------------------------------------------


def test_every_choice_and_stream_is_valid(server: Served) -> None:
    asked = {"response_format": as_schema(PERSON), "max_tokens": 200, "temperature": 1.2, "seed": 1, "n": 3}
    choices = server.chat([user("who?")], **asked).json()["choices"]
    assert {choice["finish_reason"] for choice in choices} == {"stop"}
    texts = [choice["message"]["content"] for choice in choices]
    for text in texts:
        check_person(text)
    assert len(set(texts)) > 1
    streamed = dict.fromkeys(range(3), "")
    for chunk in events(server.chat([user("who?")], stream=True, **asked)):
        streamed[chunk["choices"][0]["index"]] += chunk["choices"][0]["delta"].get("content", "")
    assert list(streamed.values()) == texts


def test_replies_with_and_without_a_schema_are_decoded_together(server: Served) -> None:
    """Each as if alone, in dialogues that go on."""

    def converse(number: int) -> list[str]:
        messages, texts = [user(f"I am {number}")], []
        for _ in range(2):
            schema = {"response_format": as_schema(PERSON)} if number % 2 else {}
            answer = server.chat(messages, max_tokens=120, **schema).json()
            texts.append(answer["choices"][0]["message"]["content"])
            messages += [assistant(texts[-1]), user("and?")]
        return texts

    alone = [converse(number) for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(converse, range(4))) == alone
    for text in (*alone[1], *alone[3]):
        check_person(text)


def test_json_mode_is_an_object(server: Served) -> None:
    """An empty one here, of a model that likes to close braces: names may go on for ever."""
    brace = server.worker.model.tokenizer.convert_tokens_to_ids("}")
    asked = {"response_format": {"type": "json_object"}, "logit_bias": {str(brace): 100}}
    answer = server.chat([user("say")], **asked).json()["choices"][0]
    assert json.loads(answer["message"]["content"]) == {}
    assert answer["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"type": "json_schema"}, "response_format: json_schema is missing"),
        ({"type": "xml"}, "response_format.type: must be one of"),
        (as_schema({"type": "strange"}), "strange"),
        (as_schema({"not": {}}), "not"),
        (as_schema(5), "response_format.json_schema.schema: must be an object"),
    ],
)
def test_a_schema_that_cannot_be_followed_is_refused(server: Served, given: Any, says: str) -> None:
    answer = server.chat([user("hi")], response_format=given)
    assert answer.status_code == 400
    assert says in answer.json()["error"]["message"]


def test_a_begun_reply_follows_no_schema(server: Served) -> None:
    begun = [user("hi"), {"role": "assistant", "content": '{"a":'}]
    answer = server.chat(begun, response_format={"type": "json_object"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "response_format"


def test_masks_hide_what_may_not_come_next() -> None:
    model = tiny_model()
    state, scores = model.grammars.state('start: "a" ("b" | "c")'), torch.zeros(262)
    ids = [model.tokenizer.convert_tokens_to_ids(letter) for letter in "abc"]
    assert state.mask(scores).isfinite().nonzero().flatten().tolist() == ids[:1]
    state.take(ids[0])
    assert state.mask(scores).isfinite().nonzero().flatten().tolist() == ids[1:]
    state.take(ids[2])
    assert set(state.mask(scores).isfinite().nonzero().flatten().tolist()) == model.stop_ids
