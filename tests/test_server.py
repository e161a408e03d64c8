"""Laws of the server: whatever it remembers, answers are those of a fresh run over the same messages."""

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from serving import (
    HALF,
    NO_OPS,
    REFUSED,
    Served,
    assistant,
    check_front,
    events,
    fresh,
    oracle,
    serving,
    user,
)
from tiny import DIALOGUE, talkative, tiny_base, tiny_model, tiny_tokenizer
from torch.nn.modules.module import register_module_forward_pre_hook

from sonic_kv.compress.options import Budget
from sonic_kv.model.model import SonicModel
from sonic_kv.model.nats import DamageScale
from sonic_kv.model.tokens import spelled
from sonic_kv.session.generate import generate
from sonic_kv.session.options import SamplingConfig

TEXTS = [
    "my sister Ada lives in Oslo",
    "the door code is 4711, keep it",
    "hi",
    "where does Ada live?",
    "and?",
]


@pytest.fixture(scope="module")
def model() -> SonicModel:
    return tiny_model(max_position_embeddings=2048)


@pytest.fixture(scope="module")
def talker() -> SonicModel:
    """A model whose replies are as long as they may be."""
    return SonicModel(talkative(tiny_base(max_position_embeddings=2048)), tiny_tokenizer())


@pytest.fixture(scope="module")
def server(model: SonicModel) -> Iterator[Served]:
    with serving(model) as served:
        yield served


def grow(server: Served, model: SonicModel, messages: list[dict[str, str]], texts: list[str]) -> None:
    """Say `texts` one after the other, and compare every reply with a fresh run."""
    for text in texts:
        messages.append(user(text))
        reply = server.reply(messages)
        assert reply == fresh(messages)
        messages.append(assistant(reply))


# --- answers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("system", [None, "be brief"])
def test_every_answer_is_that_of_a_fresh_run(server: Served, model: SonicModel, system: str | None) -> None:
    messages = [] if system is None else [{"role": "system", "content": system}]
    before = server.worker.counts["hits"]
    grow(server, model, messages, TEXTS)
    assert server.worker.counts["hits"] == before + len(TEXTS) - 1  # each turn went on from the one before


def test_a_session_is_fed_only_what_is_new(server: Served) -> None:
    first = server.chat([user("one")]).json()
    messages = [user("one"), assistant(first["choices"][0]["message"]["content"]), user("two")]
    second = server.chat(messages).json()["usage"]
    assert second["prompt_tokens_details"]["cached_tokens"] == first["usage"]["sonic"]["logical_tokens"]
    assert second["sonic"]["session_id"] == first["usage"]["sonic"]["session_id"]


def test_history_that_nobody_has_seen_is_fed_whole(server: Served, model: SonicModel) -> None:
    messages = [*DIALOGUE, user("so?")]
    made = server.worker.counts["made"]
    assert server.reply(messages) == fresh(messages)
    assert server.worker.counts["made"] == made + 1


def test_another_try_goes_on_from_the_state_before(server: Served, model: SonicModel) -> None:
    messages: list[dict[str, str]] = [{"role": "system", "content": "again"}]
    grow(server, model, messages, TEXTS[:3])
    hits = server.worker.counts["hits"]
    for text in (TEXTS[2], "something else"):
        other = [*messages[:-2], user(text)]
        assert server.reply(other) == fresh(other)
    assert server.worker.counts["hits"] == hits + 2
    grow(server, model, messages, TEXTS[3:4])  # and the first branch goes on too
    assert server.worker.counts["hits"] == hits + 3


def test_an_edited_history_is_answered_as_edited(server: Served, model: SonicModel) -> None:
    messages: list[dict[str, str]] = [{"role": "system", "content": "edit"}]
    grow(server, model, messages, TEXTS[:3])
    messages[1] = user("my sister Ada lives in Rome")
    grow(server, model, messages, TEXTS[3:4])


def test_a_reply_that_the_client_rewrote_counts_as_rewritten(server: Served, model: SonicModel) -> None:
    messages = [user("strip"), assistant(server.reply([user("strip")]) + " really"), user("hm")]
    assert server.reply(messages) == fresh(messages)


def test_many_conversations_at_once_are_each_as_if_alone(server: Served, model: SonicModel) -> None:
    def converse(number: int) -> None:
        messages = [{"role": "system", "content": f"you are number {number}"}]
        grow_replies = []
        for text in TEXTS[: 2 + number % 3]:
            messages.append(user(text * (1 + number % 2)))
            grow_replies.append((list(messages), server.reply(messages)))
            messages.append(assistant(grow_replies[-1][1]))
        replies.extend(grow_replies)

    replies: list[tuple[list[dict[str, str]], str]] = []
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(converse, range(12)))
    for messages, reply in replies:
        assert reply == fresh(messages)


def test_a_stream_is_the_whole_reply_in_pieces(server: Served, model: SonicModel) -> None:
    messages = [user("tell me more")]
    response = server.chat(messages, stream=True, stream_options={"include_usage": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    chunks = events(response)
    text = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"])
    assert text == fresh(messages) == server.reply(messages)
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert chunks[-2]["choices"][0]["finish_reason"] in ("stop", "length")
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] >= 1
    assert "usage" not in events(server.chat(messages, stream=True))[-1]


def test_stop_seed_and_length_are_respected(server: Served, model: SonicModel) -> None:
    messages = [user("tell me more")]
    whole = fresh(messages)
    assert server.reply(messages, stop=whole[3:5]) == whole[: whole.index(whole[3:5])]
    assert server.reply(messages, max_tokens=2) == fresh(messages, length=2)
    assert server.reply(messages, logit_bias={"65": 100, "261": -100}, max_tokens=5) == "b" * 5
    sampled = {server.reply(messages, temperature=1.5, seed=seed) for seed in (1, 1, 2, 3)}
    assert 1 < len(sampled) <= 3


def test_logprobs_are_the_models_own(server: Served, model: SonicModel) -> None:
    """Of the tokens of the reply, whatever chose them; streamed as in one piece."""
    messages = [user("tell me more")]
    asked = {"logprobs": True, "top_logprobs": 3, "temperature": 2.0, "seed": 5, "max_tokens": 8}
    choice = server.chat(messages, **asked).json()["choices"][0]
    told = choice["logprobs"]["content"]
    written = bytes(byte for token in told for byte in token["bytes"])
    assert written.decode(errors="replace") == choice["message"]["content"]
    known = {spelled(oracle().tokenizer, number)[1]: number for number in range(262)}
    ids = oracle().format.prompt(messages)
    for token in told:
        with torch.no_grad():
            logprobs = oracle().base(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        for one in (token, *token["top_logprobs"]):
            assert one["logprob"] == pytest.approx(float(logprobs[known[tuple(one["bytes"])]]), abs=1e-3)
        best = [one["logprob"] for one in token["top_logprobs"]]
        assert best == pytest.approx(logprobs.topk(3).values.tolist(), abs=1e-3)
        ids.append(known[tuple(token["bytes"])])
    streamed = events(server.chat(messages, stream=True, **asked))
    found = [t for c in streamed for t in (c["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert found == told


def test_logprobs_end_where_the_text_does(server: Served) -> None:
    """A stop text takes its tokens with it, also those that were known before it was complete."""
    messages = [user("tell me more")]
    letters = {str(number): 100 for number in range(64, 90)}
    asked = {"logprobs": True, "temperature": 1.5, "seed": 3, "max_tokens": 12, "logit_bias": letters}
    whole = server.chat(messages, **asked).json()["choices"][0]
    tokens = [token["token"] for token in whole["logprobs"]["content"]]
    for first, last in ((3, 4), (2, 6), (0, 3)):
        stop = "".join(tokens[first:last])
        choice = server.chat(messages, stop=stop, **asked).json()["choices"][0]
        told = [token["token"] for token in choice["logprobs"]["content"]]
        assert "".join(told) == choice["message"]["content"] == "".join(tokens).partition(stop)[0]
        streamed = events(server.chat(messages, stream=True, stop=stop, **asked))
        pieces = [
            t["token"] for c in streamed for t in (c["choices"][0]["logprobs"] or {"content": []})["content"]
        ]
        assert pieces == told


def completed(server: Served, prompt: Any, **more: Any) -> httpx.Response:
    return server.http.post("/v1/completions", json={"model": "tiny", "prompt": prompt, **more})


@pytest.mark.parametrize("text", ["Ada lives in", "A", "<|bos|><|user|>hi<|end|>" + "so " * 60])
def test_a_text_that_is_no_dialogue_is_gone_on_with(server: Served, text: str) -> None:
    """As the base itself goes on, of tokens as of text; more than fits into a slice or a segment, too."""
    ids, before = oracle().tokenizer(text)["input_ids"], server.http.get("/v1/sessions").json()
    expected = generate(oracle(), [ids], None, SamplingConfig(max_new_tokens=60))[0]
    answer = completed(server, text, max_tokens=60).json()
    assert answer["object"] == "text_completion"
    assert answer["choices"][0]["text"] == expected.text
    assert answer["choices"][0]["finish_reason"] == expected.finish_reason
    assert answer["usage"]["prompt_tokens"] == len(ids)
    assert completed(server, ids, max_tokens=60).json()["choices"] == answer["choices"]
    streamed = completed(server, text, max_tokens=60, stream=True, stream_options={"include_usage": True})
    chunks = events(streamed)
    assert "".join(c["choices"][0]["text"] for c in chunks if c["choices"]) == expected.text
    assert chunks[-2]["choices"][0]["finish_reason"] == expected.finish_reason
    assert chunks[-1]["usage"] == answer["usage"]
    assert server.http.get("/v1/sessions").json() == before  # nothing is kept of it


def test_several_prompts_and_choices_are_each_as_if_alone(server: Served) -> None:
    asked = {"temperature": 1.5, "seed": 3, "max_tokens": 6}
    both = completed(server, ["one", "two"], n=2, **asked).json()["choices"]
    assert [choice["index"] for choice in both] == [0, 1, 2, 3]
    alone = [completed(server, text, n=2, **asked).json()["choices"] for text in ("one", "two")]
    assert [one["text"] for one in both] == [one["text"] for choices in alone for one in choices]
    assert both[0]["text"] != both[1]["text"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"prompt": ""}, "prompt: is empty"),
        ({"prompt": []}, "prompt: must be a text"),
        ({"prompt": None}, "prompt: is missing"),
        ({"prompt": [262]}, "the model's tokens are 0 to 261"),
        ({"prompt": "word " * 500}, "2500 tokens, and the model 2048 positions"),
        ({"prompt": ["a"] * 9, "n": 2}, "n: must be at most 16"),
        ({"suffix": "b"}, "suffix"),
        ({"echo": True}, "echo"),
        ({"best_of": 2}, "best_of"),
        ({"logprobs": 1}, "logprobs"),
        ({"sonic": {"compression_ratio": 0.9}}, "sonic"),
        ({"tools": [{"type": "function", "function": {"name": "a"}}]}, "tools"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "chat_template_kwargs"),
        ({"model": "gpt-5"}, "gpt-5"),
    ],
)
def test_what_cannot_be_gone_on_with_is_refused_by_name(
    server: Served, change: dict[str, Any], says: str
) -> None:
    answer = completed(server, **{"prompt": "hi", **change})
    assert answer.status_code in (400, 404)
    assert says in answer.json()["error"]["message"]


def test_content_in_parts_and_nulls_are_accepted(server: Served) -> None:
    parts = [{"type": "text", "text": "tell me "}, {"type": "text", "text": "more"}]
    body = {"role": "user", "content": parts, "name": None}
    assert server.reply([body], tools=None, stop=None, logprobs=False) == server.reply([user("tell me more")])  # type: ignore[list-item]


# --- compression --------------------------------------------------------------------------------


def test_a_request_may_ask_for_its_own_compression(server: Served, model: SonicModel) -> None:
    messages = [*DIALOGUE, user("so?")]
    for ratio in (0.0, 0.9):
        response = server.chat(messages, sonic={"compression_ratio": ratio}).json()
        expected = fresh(messages, Budget(compression_ratio=ratio))
        assert response["choices"][0]["message"]["content"] == expected
        assert response["usage"]["sonic"]["compression_ratio"] == ratio


def test_the_servers_cap_wins(model: SonicModel) -> None:
    messages = [*DIALOGUE, user("so?")]
    with serving(model, min_compression_ratio=0.8) as capped:
        response = capped.chat(messages, sonic={"compression_ratio": 0.1}).json()
        expected = fresh(messages, Budget(compression_ratio=0.8))
        assert response["choices"][0]["message"]["content"] == expected


def test_a_named_session_can_be_compressed_at_once(server: Served) -> None:
    headers = {"x-session-id": "slider"}
    messages = [*DIALOGUE, user("so?")]
    reply = server.chat(messages, headers=headers, sonic={"compression_ratio": 0.0})
    assert reply.headers["x-session-id"] == "slider"
    whole = server.http.get("/v1/sessions/slider").json()
    assert whole["messages"][:-1] == messages
    server.chat([*whole["messages"], user("on")], headers=headers, sonic={"compression_ratio": 0.5})
    half = server.http.get("/v1/sessions/slider").json()
    small = server.http.patch("/v1/sessions/slider", json={"compression_ratio": 0.9}).json()
    assert small["entries"] < half["entries"] <= whole["entries"] + 60
    assert small["bytes"] < half["bytes"]
    assert (
        sum(segment["tokens"] for segment in small["segments"]) + small["prefix"] + small["open"]
        == (small["logical_tokens"])
    )
    again = server.chat([*small["messages"], user("go on")], headers=headers).json()["usage"]["sonic"]
    assert again["compression_ratio"] == 0.9


def test_a_budget_in_nats_is_kept_by_every_way_to_ask_for_it(tmp_path: Path) -> None:
    model = tiny_model(adapter={"lora_rank": 0}, max_position_embeddings=4096)
    assert model.adapter is not None
    headers, messages = {"x-session-id": "nats"}, [*DIALOGUE, user("so?")]
    with serving(model) as unknown:
        refused = unknown.chat(messages, sonic={"max_damage": 0.02})
        assert (refused.status_code, "max_damage needs" in refused.text) == (400, True)
        assert unknown.chat(messages).json()["usage"]["sonic"]["predicted_damage"] is None
    model.adapter.scale = DamageScale(2e-3, 0.8)
    with serving(model, tmp_path / "store") as server:
        usage = server.chat(messages, headers=headers, sonic={"max_damage": 0.005}).json()["usage"]["sonic"]
        assert (usage["compression_ratio"], usage["max_damage"]) == (0.0, 0.005)
        assert 0.0 < usage["predicted_damage"] <= 0.005
        small = server.http.patch("/v1/sessions/nats", json={"max_damage": 0.05}).json()
        assert small["entries"] < usage["entries"]
        assert 0.005 < small["predicted_damage"] <= 0.05
        assert server.http.patch("/v1/sessions/nats", json={}).status_code == 400
    with serving(model, tmp_path / "store") as again:  # read from the store
        assert again.http.get("/v1/sessions/nats").json() == small
    with serving(model, min_compression_ratio=0.5) as capped:
        refused = capped.chat(messages, sonic={"max_damage": 0.02})
        assert (refused.status_code, "removes 0.5 at least" in refused.text) == (400, True)


# --- access -------------------------------------------------------------------------------------


def test_sessions_of_one_key_are_out_of_reach_of_another(model: SonicModel) -> None:
    with serving(model, keys=("key-one", "key-two")) as server:
        other = {"authorization": "Bearer key-two", "x-session-id": "mine"}
        messages = [user("my secret is 4711")]
        reply = server.reply(messages, headers={"x-session-id": "mine"})
        assert server.http.get("/v1/sessions/mine").status_code == 200
        assert server.http.get("/v1/sessions/mine", headers=other).status_code == 404
        assert server.http.patch(
            "/v1/sessions/mine", json={"compression_ratio": 0.9}, headers=other
        ).status_code == (404)
        made = server.worker.counts["made"]
        messages += [assistant(reply), user("and?")]
        theirs = server.chat(messages, headers=other).json()
        assert theirs["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
        assert server.worker.counts["made"] == made + 1
        mine = server.chat(messages, headers={"x-session-id": "mine"}).json()
        assert mine["usage"]["prompt_tokens_details"]["cached_tokens"] > 0


@pytest.mark.parametrize(
    "header", [None, "Bearer", "Bearer wrong", "Basic key-one", "key-one", "Bearer key-one x"]
)
def test_without_a_valid_key_nothing_is_answered(model: SonicModel, header: str | None) -> None:
    with serving(model, keys=("key-one",)) as server:
        server.http.headers.pop("authorization")
        headers = {} if header is None else {"authorization": header}
        for path in ("/v1/models", "/metrics", "/v1/sessions/x"):
            refused = server.http.get(path, headers=headers)
            assert refused.status_code == 401
            assert "API key" in refused.json()["error"]["message"]
        assert server.http.get("/healthz").status_code == 200
        assert server.http.get("/").status_code == 200


def test_other_names_for_this_machine_are_refused(server: Served) -> None:
    assert server.http.get("/v1/models", headers={"host": "evil.example"}).status_code == 400


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "status", "says"),
    [
        *REFUSED,
        ({"messages": [user("word " * 3000)], "sonic": {"compression_ratio": 0.0}}, 400, "positions"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, 400, "does not know tools"),
        ({"logit_bias": {"300": 1}}, 400, "the model's tokens are 0 to 261"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(server: Served, change: Any, status: int, says: str) -> None:
    body = json.dumps({"model": "tiny", "messages": [user("hi")], **change})
    response = server.http.post(
        "/v1/chat/completions", content=body, headers={"content-type": "application/json"}
    )
    assert response.status_code == status
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert says in error["message"]


@pytest.mark.parametrize("change", NO_OPS)
def test_what_changes_nothing_is_accepted(model: SonicModel, server: Served, change: Any) -> None:
    """What real clients send beside the text."""
    body = {"model": "tiny", "messages": [user("hi")], **change}
    response = server.http.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    if "messages" not in change and not any(name.startswith(("max", "stop")) for name in change):
        assert response.json()["choices"][0]["message"]["content"] == fresh([user("hi")])


SYSTEM = {"role": "system", "content": "be brief"}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}


@pytest.mark.parametrize(
    "messages",
    [
        [SYSTEM, {"role": "system", "content": "and kind"}, user("hi")],
        [SYSTEM, {"role": "developer", "content": "and kind"}, user("hi")],
        [user("hi"), assistant("yes"), {"role": "system", "content": "be kind"}, user("so?")],
        [assistant("welcome"), user("hi")],
        [user("hi"), user("there")],
    ],
)
def test_roles_may_come_in_any_order_that_the_template_takes(server: Served, messages: list[Any]) -> None:
    named = [{**message, "role": message["role"].replace("developer", "system")} for message in messages]
    messages.append(assistant(server.reply(messages)))
    assert messages[-1]["content"] == fresh(named)
    messages.append(user("go on"))
    hits = server.worker.counts["hits"]
    assert server.reply(messages) == fresh([*named, *messages[-2:]])
    assert server.worker.counts["hits"] == hits + 1


@pytest.mark.parametrize(
    "messages",
    [
        [SYSTEM],
        [
            user("hi"),
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c1", "content": "42"},
        ],
    ],
)
def test_system_alone_and_tools_are_answered(server: Served, messages: list[Any]) -> None:
    first = server.chat(messages)
    assert first.status_code == 200, first.text
    reply = first.json()["choices"][0]["message"]
    name = first.headers["x-session-id"]
    assert server.http.get(f"/v1/sessions/{name}").json()["messages"][-1]["content"] == reply["content"]
    cached = server.chat([*messages, reply, user("so?")]).json()["usage"]["prompt_tokens_details"]
    assert cached["cached_tokens"] == first.json()["usage"]["sonic"]["logical_tokens"]


def test_a_reply_that_was_begun_is_continued(server: Served) -> None:
    for stream in (False, True):
        asked = [user(f"tell me, {stream}"), assistant("Well, once upon")]
        answer = server.chat(asked, stream=stream)
        if stream:
            deltas = [chunk["choices"][0]["delta"] for chunk in events(answer)]
            rest = "".join(delta.get("content", "") for delta in deltas)
        else:
            rest = answer.json()["choices"][0]["message"]["content"]
        assert not rest.startswith("Well")
        whole = [asked[0], assistant("Well, once upon" + rest), user("and then?")]
        hits = server.worker.counts["hits"]
        assert server.reply(whole) == fresh(whole)
        assert server.worker.counts["hits"] == hits + 1


def test_penalties_change_what_repeats(server: Served) -> None:
    plain = server.reply([user("tell me")], max_tokens=40)
    assert server.reply([user("tell me")], max_tokens=40, presence_penalty=2, frequency_penalty=2) != plain


def test_several_choices_are_replies_of_their_own(server: Served) -> None:
    alone = [server.reply([user("tell me")], temperature=1.5, seed=seed) for seed in (5, 6, 7)]
    asked = {"temperature": 1.5, "seed": 5, "n": 3}
    whole = server.chat([user("tell me")], **asked).json()
    assert [choice["message"]["content"] for choice in whole["choices"]] == alone
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2]
    texts = ["", "", ""]
    for chunk in events(server.chat([user("tell me")], stream=True, **asked)):
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == alone


def test_every_answer_tells_its_session(server: Served) -> None:
    for stream in (False, True):
        first = server.chat([user("who?")], stream=stream, stream_options={"include_usage": True})
        name = first.headers["x-session-id"]
        assert server.http.get(f"/v1/sessions/{name}").json()["messages"][0] == user("who?")
        usage = events(first)[-1]["usage"] if stream else first.json()["usage"]
        assert usage["sonic"]["session_id"] == name


def test_tokens_are_those_of_the_dialogue(server: Served, model: SonicModel) -> None:
    answer = server.http.post("/tokenize", json={"messages": DIALOGUE}).json()
    expected = model.format.encode(DIALOGUE).token_ids + model.format.generation_prompt()
    assert (answer["tokens"], answer["count"]) == (expected, len(expected))
    text = server.http.post("/tokenize", json={"prompt": "my sister", "add_special_tokens": False}).json()
    assert text["tokens"] == model.tokenizer("my sister", add_special_tokens=False)["input_ids"]


def test_the_server_tells_how_it_is(server: Served) -> None:
    assert server.http.get("/health").content == b""
    assert server.http.get("/readyz").json() == {"status": "ok"}
    assert server.http.get("/version").json()["version"]


def test_a_model_may_have_other_names(model: SonicModel) -> None:
    with serving(model, served_model_name=("gpt-4o", "default")) as server:
        for name in ("tiny", "gpt-4o", "default"):
            assert server.chat([user("hi")], model=name, max_tokens=1).status_code == 200
        assert server.chat([user("hi")], model="gpt-5", max_tokens=1).status_code == 404


def test_a_body_that_is_too_large_or_no_json_is_refused(server: Served) -> None:
    path = "/v1/chat/completions"
    assert server.http.post(path, content=b" " * (5 << 20)).status_code == 413
    chunks = (b" " * 65536 for _ in range(100))
    assert server.http.post(path, content=chunks).status_code == 413
    assert (
        server.http.post(path, content=b"{", headers={"content-type": "application/json"}).status_code == 400
    )
    assert server.http.post(path, content=b"[" * 100_000).status_code == 400
    assert server.http.get("/nowhere").status_code == 404
    assert server.http.get("/v1/sessions/nobody").status_code == 404
    assert server.http.get("/v1/sessions/..%2f..%2fetc").status_code in (400, 404)


def test_beyond_the_queue_requests_are_refused_and_may_come_again(talker: SonicModel) -> None:
    with serving(talker, max_batch=1, max_waiting=2, max_waiting_per_key=1, keys=("a", "b", "c")) as server:
        results: dict[str, list[httpx.Response]] = {"a": [], "b": [], "c": []}

        def ask(key: str, number: int) -> None:
            headers = {"authorization": f"Bearer {key}"}
            results[key].append(server.chat([user(f"{number} go on")], max_tokens=200, headers=headers))

        threads = []
        for number in range(4):
            for key in results:
                threads.append(threading.Thread(target=ask, args=(key, number)))
                threads[-1].start()
                time.sleep(0.02)
        for thread in threads:
            thread.join()
        answers = [response for mine in results.values() for response in mine]
        refused = [response for response in answers if response.status_code != 200]
        assert {response.status_code for response in refused} == {429, 503}
        assert all(response.headers["retry-after"] for response in refused)
        assert server.chat([user("hi")]).status_code == 200


def test_a_client_that_leaves_frees_its_place(talker: SonicModel) -> None:
    runs = Counter[type]()
    counting = register_module_forward_pre_hook(lambda module, _: runs.update([type(module)]))
    with counting, serving(talker, max_batch=1) as server:
        with server.http.stream(
            "POST",
            "/v1/chat/completions",
            json={"model": "tiny", "messages": [user("go")], "max_tokens": 1000, "stream": True},
        ) as response:
            next(response.iter_lines())
        with pytest.raises(httpx.ReadTimeout):  # one that did not even stream
            server.http.post(
                "/v1/chat/completions",
                json={"model": "tiny", "messages": [user("go")], "max_tokens": 1000},
                timeout=0.2,
            )
        assert server.chat([user("hi")], max_tokens=2).status_code == 200
        assert server.worker.gauges()["requests_running"] == 0
    assert 0 < runs[torch.nn.Embedding] < 1000  # of the two replies' 2000 tokens


def test_figures_are_told(server: Served) -> None:
    server.reply([user("count me")])
    text = server.http.get("/metrics").text
    assert 'sonic_kv_requests_total{route="/v1/chat/completions",status="200"}' in text
    assert "sonic_kv_kv_limit_bytes 6.7108864e+07" in text
    document = server.http.get("/openapi.json").json()
    assert "/v1/chat/completions" in document["paths"]
    assert HALF.compression_ratio == 0.5


def test_whatever_decodes_clients_may_count_on_the_same(server: Served) -> None:
    check_front(server.http)


# --- sessions and shares ------------------------------------------------------------------------


def test_sessions_are_listed_and_erased_by_their_owner_alone(model: SonicModel, tmp_path: Path) -> None:
    other = {"authorization": "Bearer two"}
    with serving(model, tmp_path, keys=("one", "two"), store_after=0.0) as server:
        for name in ("a", "b"):
            server.reply([user(f"I am {name}")], headers={"x-session-id": name})
        server.chat([user("theirs")], headers={**other, "x-session-id": "a"})
        time.sleep(0.3)
        listed = server.http.get("/v1/sessions").json()["data"]
        assert {(one["id"], one["title"]) for one in listed} == {("a", "I am a"), ("b", "I am b")}
        files = set(tmp_path.rglob("*.safetensors"))
        assert server.http.delete("/v1/sessions/a").json()["deleted"] is True
        assert server.http.delete("/v1/sessions/a").status_code == 404
        assert server.http.get("/v1/sessions/a").status_code == 404
        assert [one["id"] for one in server.http.get("/v1/sessions").json()["data"]] == ["b"]
        assert server.http.get("/v1/sessions/a", headers=other).json()["messages"][0] == user("theirs")
        while len(left := set(tmp_path.rglob("*.safetensors"))) > len(files) - 2:
            time.sleep(0.02)
        assert not [path for path in left if b"I am a" in path.read_bytes()]


def test_what_is_kept_of_every_token_is_told_to_its_owner(model: SonicModel) -> None:
    with serving(model, keys=("one", "two")) as server:
        messages: list[dict[str, str]] = []
        for text in TEXTS:
            messages.append(user(text))
            messages.append(assistant(server.reply(messages, headers={"x-session-id": "mine"})))

        def shares() -> torch.Tensor:
            told = server.http.get("/v1/sessions/mine/kept").json()["messages"]
            said = [{"role": m["role"], "content": "".join(t["text"] for t in m["tokens"])} for m in told]
            assert said == messages
            return torch.tensor([token["share"] for message in told for token in message["tokens"]])

        before = shares()
        assert before.min() >= 0
        assert before.max() == 1  # the open segment is whole
        node = max(server.worker.shelf, key=lambda node: len(node.steps))
        assert float(node.session.cache.shares().sum()) == pytest.approx(node.session.cache.stored, abs=0.5)
        server.http.patch("/v1/sessions/mine", json={"compression_ratio": 0.9})
        after = shares()
        assert (after <= before).all()
        assert after.sum() < before.sum()
        other = {"authorization": "Bearer two"}
        assert server.http.get("/v1/sessions/mine/kept", headers=other).status_code == 404


def test_sessions_are_listed_without_a_store_too(model: SonicModel) -> None:
    with serving(model) as server:
        server.reply([user("hello")], headers={"x-session-id": "mine"})
        assert [one["id"] for one in server.http.get("/v1/sessions").json()["data"]] == ["mine"]
        assert server.http.delete("/v1/sessions/mine").status_code == 200
        assert server.http.get("/v1/sessions").json()["data"] == []


def test_a_dialogue_that_is_too_long_is_refused_at_once(model: SonicModel) -> None:
    with serving(model, max_dialogue_tokens=100) as server:
        assert server.chat([user("word " * 15)], max_tokens=1).status_code == 200
        start = time.monotonic()
        answer = server.chat([user("hi"), assistant("yes"), user("word " * 400_000)])
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "context_length_exceeded"
        assert time.monotonic() - start < 2.0


def test_a_key_with_many_long_replies_does_not_keep_another_waiting(model: SonicModel) -> None:
    with serving(model, max_batch=4, keys=("one", "two")) as server, ThreadPoolExecutor(8) as pool:
        long = [pool.submit(server.chat, [user(f"{n} go on")], max_tokens=600) for n in range(8)]
        while server.worker.engine.decoding < 4:
            time.sleep(0.01)
        headers = {"authorization": "Bearer two"}
        assert server.chat([user("hi")], max_tokens=4, headers=headers).status_code == 200
        assert sum(one.done() for one in long) < 4
        assert {one.result().status_code for one in long} == {200}


def test_a_short_reply_costs_no_more_than_full_context(server: Served) -> None:
    messages: list[dict[str, str]] = []
    for text in ("hi", "so?", "and then?"):
        messages.append(user(text))
        answer = server.chat(messages, max_tokens=4).json()
        messages.append(assistant(answer["choices"][0]["message"]["content"]))
        sonic = answer["usage"]["sonic"]
        assert sonic["bytes"] <= sonic["full_bytes"]
        assert messages[-1]["content"] == fresh(messages[:-1], length=4)


def test_bytes_that_are_being_read_are_counted(model: SonicModel) -> None:
    with serving(model, slice_tokens=1) as server, ThreadPoolExecutor(1) as pool:
        reply = pool.submit(server.chat, [user("word " * 40)], max_tokens=1)
        most = 0.0
        while not reply.done():
            if not server.worker.engine.decoding and not len(server.worker.shelf):
                most = max(most, server.worker.gauges()["kv_bytes"])
        assert most > 0


def test_a_body_that_is_not_said_to_be_json_is_told_so(server: Served) -> None:
    body = json.dumps({"model": "tiny", "messages": [user("hi")]})
    for kind in ("application/x-www-form-urlencoded", "text/plain"):  # curl's own, a web form's
        answer = httpx.post(f"{server.url}/v1/chat/completions", content=body, headers={"content-type": kind})
        assert answer.status_code == 400
        assert "Content-Type: application/json" in answer.json()["error"]["message"]
