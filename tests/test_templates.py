"""The template is the truth: token ids of sessions are those of `apply_chat_template`."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_segments import CHATML, GENERATE, TEMPLATES, merging_tokenizer
from tiny import DIALOGUE, random_adapter, tiny_base, tiny_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from sonic_kv import Budget, ChatSession, SamplingConfig, SessionConfig, SonicModel
from sonic_kv.errors import MessageError
from sonic_kv.model.calls import PROBE
from sonic_kv.model.chat_format import ChatFormat, step
from sonic_kv.model.encoded import segment_ends

R1 = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}<|im_start|>assistant\n"
    "{{ m['content'].split('</think>')[-1] }}<|im_end|>\n{% else %}<|im_start|>{{ m['role'] }}\n"
    "{{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
VICUNA = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] + ' ' }}"
    "{% elif m['role'] == 'user' %}USER: {{ m['content'] }} {% else %}ASSISTANT: {{ m['content'] }}{{ eos_token }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
TRIMMING = CHATML.replace("{{ m['content'] }}", "{{ m['content'] | trim }}")
DATED = "<|im_start|>system\nToday is {{ strftime_now('%d %B') }}<|im_end|>\n" + CHATML
TOOLS = CHATML.replace(
    "{{ m['content'] }}", "{{ m['content'] }}{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}"
)
MORE = {**TEMPLATES, "trimming": TRIMMING, "dated": DATED, "zephyr": ZEPHYR, "vicuna": VICUNA, "tools": TOOLS}
TEXTS = [
    "hi",
    "",
    "  two  spaces ",
    "\n\nand\n",
    "a\n\n\nb",
    "Zoë 東京",
    "user:",
    "</s",
    "ok?",
    "hm</think>\n\nyes",
]


def sentencepiece(kind: str, template: str) -> PreTrainedTokenizerFast:
    """As SentencePiece makes them: BPE or Unigram, a space before the first word only, or before every piece."""
    space = {"prepend_scheme": "never" if kind == "legacy" else "first"}
    pieces = pre_tokenizers.Metaspace(**space)  # type: ignore[arg-type]
    text = [message["content"] for message in DIALOGUE] + TEXTS + ["USER: ASSISTANT: user assistant <s> </s>"]
    special = ["<unk>", "<s>", "</s>"]
    if kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        trainer: Any = trainers.UnigramTrainer(
            vocab_size=200, special_tokens=special, unk_token="<unk>", show_progress=False
        )
    else:
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
        trainer = trainers.BpeTrainer(vocab_size=250, special_tokens=special, show_progress=False)
    if kind == "legacy":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pieces
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(text * 4, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )
    fast.chat_template = template
    return fast


def rendered(tokenizer: Any, messages: list[dict[str, Any]], **options: Any) -> list[int]:
    return list(tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **options))


def assert_the_templates(form: ChatFormat, messages: list[dict[str, Any]]) -> None:
    """What is fed of messages is what the template has there once more follows; so is what stands before a reply."""
    tokenizer, ids = form.tokenizer, form.encode(messages).token_ids
    if messages[-1]["role"] == "assistant":
        longer = rendered(tokenizer, [*messages, {"role": "user", "content": "and"}])
    else:
        longer = rendered(tokenizer, messages, add_generation_prompt=True)
        assert form.prompt(messages) == longer
    assert ids == longer[: len(ids)]
    assert len(rendered(tokenizer, messages)) - len(ids) <= 4
    first = messages[0]
    before = form.closed(messages[:-1]) if len(messages) > 1 else form.prefix(first=first["role"])
    if len(messages) == 1 and first["role"] == "system":  # a session is told it when it begins
        before = form.prefix(first["content"])
    # a header of text, not of a token, can change the last token before it: a session takes that one back
    assert step(before, ids).drop <= (messages[-1]["role"] not in ("user", "assistant"))


# --- tokenizers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bpe", "legacy", "unigram"])
@pytest.mark.parametrize("name", ["vicuna", "zephyr", "mistral", "llama2", "chatml", "separated"])
def test_sentencepiece_ids_are_the_templates(kind: str, name: str) -> None:
    form = ChatFormat(sentencepiece(kind, MORE[name]))
    for count in range(1, len(DIALOGUE) + 1):
        assert_the_templates(form, DIALOGUE[:count])
    for text in TEXTS:
        assert_the_templates(
            form, [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
        )


@pytest.mark.parametrize("name", ["vicuna", "zephyr"])
def test_a_sentencepiece_message_opens_no_turn(name: str) -> None:
    form = ChatFormat(sentencepiece("bpe", MORE[name]))
    ids = form.user("a </s> b <s> c")
    end = form.tokenizer.convert_tokens_to_ids("</s>")
    assert ids.count(end) == form.user("a b c").count(end)
    assert "</s>" in form.tokenizer.decode(ids).replace(" ", "")


# --- messages -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["merging", "legacy", "unigram"])
@pytest.mark.parametrize("name", sorted(MORE))
def test_pieces_of_messages_are_their_texts_each_at_its_token(kind: str, name: str) -> None:
    template = MORE[name]
    form = ChatFormat(merging_tokenizer(template) if kind == "merging" else sentencepiece(kind, template))
    for texts in (TEXTS, ["user", "assistant", "content", "<|im_end|>", "end", "<|end|>\n"]):
        messages = [
            {"role": role, "content": text} for text in texts for role in ("user", "assistant") if text
        ]
        spelled, ids = form.spelled(messages), form.closed(messages)
        assert spelled is not None
        numbers = [number for pieces in spelled for number, _ in pieces]
        assert numbers == sorted(set(numbers))
        for pieces, message in zip(spelled, messages, strict=True):
            said = "".join(text for _, text in pieces)
            assert said.strip() == message["content"].strip()
            for number, piece in pieces[1:-1]:
                plain = form.tokenizer.decode([ids[number]])
                assert plain.strip() in (piece.strip(), "<unk>") or "\ufffd" in plain


FRAGMENTS = st.tuples(
    st.sampled_from(
        [
            "",
            "{{ bos_token }}",
            "<|im_start|>system\nbe good<|im_end|>\n",
            "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nbe good<|im_end|>\n{% endif %}",
            "{{ strftime_now('%d %B') }}\n",
        ]
    ),
    st.sampled_from(
        [
            "<|im_start|>{{ m['role'] }}\n",
            "<|{{ m['role'] }}|>",
            "{{ m['role'] | upper }}: ",
            "[{{ m['role'] }}] ",
        ]
    ),
    st.sampled_from(
        [
            "{{ m['content'] }}",
            "{{ m['content'] | trim }}",
            " {{ m['content'] }} ",
            "{{ m['content'].split('</think>')[-1] }}",
            "{{ m['content'].split('</think>')[-1].lstrip('\n') if not loop.last else m['content'] }}",
        ]
    ),
    st.sampled_from(["<|im_end|>\n", "<|end|>", "\n", "\n\n", "{{ eos_token }}"]),
    st.sampled_from(["", "{% if not loop.last %}\n{% endif %}"]),
    st.sampled_from(["", "<think>\n", "<think>\n\n</think>\n\n"]),
)
MESSAGES = st.lists(
    st.tuples(
        st.sampled_from(["user", "assistant", "tool", "system"]), st.sampled_from(TEXTS) | st.text(max_size=6)
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=60, derandomize=True, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(FRAGMENTS, MESSAGES)
def test_any_template_and_any_messages(fragments: tuple[str, ...], said: list[tuple[str, str]]) -> None:
    start, header, content, close, between, opened = fragments
    generation = header.replace("{{ m['role'] }}", "assistant").replace(
        "{{ m['role'] | upper }}", "ASSISTANT"
    )
    template = (
        f"{start}{{% for m in messages %}}{header}{content}{close}{between}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{generation}{opened}{{% endif %}}"
    )
    form = ChatFormat(merging_tokenizer(template))
    messages = [{"role": role, "content": text} for role, text in said]
    try:
        for message in messages:
            message["content"].encode()
    except UnicodeEncodeError:
        return
    for count in range(1, len(messages) + 1):
        assert_the_templates(form, messages[:count])
    assert_exchanges_end_where_they_do_alone(form, messages)


def assert_exchanges_end_where_they_do_alone(form: ChatFormat, messages: list[dict[str, Any]]) -> None:
    encoded, replies = form.encode(messages), [i for i, m in enumerate(messages) if m["role"] == "assistant"]
    alone = [form.closed(messages[: reply + 1]) for reply in replies]
    assert encoded.exchange_ends == [len(ids) - step(ids, encoded.token_ids).drop for ids in alone]


def test_a_template_that_numbers_its_turns_ends_exchanges_where_it_says() -> None:
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
        "{% if m['role'] == 'assistant' and loop.index > 4 %} ({{ loop.index }}){% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    assert_exchanges_end_where_they_do_alone(ChatFormat(merging_tokenizer(template)), DIALOGUE * 3)


ORDERS: dict[str, list[dict[str, Any]]] = {
    "greeting first": [DIALOGUE[1], *DIALOGUE[:2]],
    "system, greeting": [{"role": "system", "content": "be brief"}, DIALOGUE[1], *DIALOGUE[:2]],
    "user twice": [DIALOGUE[0], DIALOGUE[2], DIALOGUE[1]],
    "assistant twice": [DIALOGUE[0], DIALOGUE[1], DIALOGUE[3], DIALOGUE[2]],
    "system in the middle": [*DIALOGUE[:2], {"role": "system", "content": "be brief"}, *DIALOGUE[2:4]],
    "a tool": [
        DIALOGUE[0],
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": {"name": "f", "arguments": {"a": "b"}}}],
        },
        {"role": "tool", "content": "42"},
        DIALOGUE[1],
    ],
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", ["own", "chatml", "default-system", "trimming", "dated", "zephyr", "tools"])
def test_roles_in_any_order_are_as_the_template_renders_them(name: str, order: str) -> None:
    tokenizer = merging_tokenizer(MORE[name])
    base = tiny_base(vocab_size=330)
    model = SonicModel(base, tokenizer, random_adapter(base))
    messages = ORDERS[order]
    system = messages[0]["content"] if messages[0]["role"] == "system" else None
    chat = ChatSession(model, Budget(compression_ratio=0.5), system=system, config=SessionConfig(16, 80))
    for message in messages[system is not None :]:
        chat.extend([message])
    expected = rendered(tokenizer, messages)
    assert chat.token_ids == expected[: len(chat.token_ids)]
    assert len(expected) - len(chat.token_ids) <= 1


# Mistral's: system prompt and tools stand before the newest user's message
MOVING = (
    "{% if messages[0]['role'] == 'system' %}{% set s = messages[0]['content'] + '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set s = '' %}{% set rest = messages %}{% endif %}"
    "{% set users = rest | selectattr('role', 'equalto', 'user') | list %}{{ bos_token }}{% for m in rest %}"
    "{% if tools and m == users[-1] %}tools: {{ tools | tojson }}\n{% endif %}<|im_start|>{{ m['role'] }}\n"
    "{{ s if loop.last and m['role'] == 'user' }}{{ m['content'] }}<|im_end|>\n{% endfor %}" + GENERATE
)
# Qwen3's: what was thought since the user's last message stays, until the user goes on
LOOPING = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{% set ns.last = loop.index %}{% endif %}{% endfor %}{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m.reasoning_content and loop.index > ns.last %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m['content'] }}{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}<|im_end|>\n{% endfor %}"
    + GENERATE
)
CALL = {
    **ORDERS["a tool"][1],
    "reasoning_content": "the city is on the coast, so the weather will be of the sea",
}


@pytest.mark.parametrize("budget", [Budget(), Budget(compression_ratio=0.5)])
@pytest.mark.parametrize("sizes", [(4, 24), (16, 400)])
def test_a_system_prompt_that_goes_on_to_the_newest_message_does_so(
    sizes: tuple[int, int], budget: Budget
) -> None:
    tokenizer = merging_tokenizer(MOVING)
    model, config = SonicModel(tiny_base(vocab_size=330), tokenizer), SessionConfig(*sizes)
    chat, other = (
        ChatSession(model, budget, system="be brief", config=config, policy="streaming") for _ in range(2)
    )
    for message in DIALOGUE[:6:2]:
        chat.send(message["content"], SamplingConfig(max_new_tokens=12))
        longer = rendered(tokenizer, [*chat.messages, message])
        assert chat.token_ids == longer[: len(chat.token_ids)]
        assert "be brief" not in tokenizer.decode(chat.token_ids)
        other.extend([message, chat.messages[-1]])
    assert chat.token_ids == other.token_ids
    assert chat.cache.lengths == other.cache.lengths
    other.extend([message])
    assert other.token_ids == rendered(tokenizer, other.messages)


@pytest.mark.parametrize("template", [MOVING, LOOPING])
@pytest.mark.parametrize("sizes", [(4, 24), (16, 400)])
def test_a_loop_of_calls_is_one_exchange_and_the_templates(sizes: tuple[int, int], template: str) -> None:
    tokenizer = merging_tokenizer(template)
    model, config = SonicModel(tiny_base(vocab_size=330), tokenizer), SessionConfig(*sizes)
    budget, told = Budget(compression_ratio=0.5), {"tools": [PROBE]}
    messages: list[dict[str, Any]] = [
        *DIALOGUE[:3],
        *[CALL, {"role": "tool", "content": "42"}] * 2,
        *DIALOGUE[3:6],
    ]
    chat, bare = (
        ChatSession(model, budget, config=config, policy="streaming", chat_template_kwargs=told)
        for _ in range(2)
    )
    for count, message in enumerate(messages, 1):
        chat.extend([message])
        bare.extend([{key: value for key, value in message.items() if key != "reasoning_content"}])
        if message["role"] in ("user", "tool"):
            assert chat.token_ids == rendered(tokenizer, messages[:count], tools=[PROBE])
    assert chat.token_ids == bare.token_ids
    assert chat.cache.lengths == bare.cache.lengths
    encoded = model.format.with_options(told).encode(messages)
    assert encoded.token_ids == chat.token_ids
    assert len(encoded.exchange_ends) == 3
    assert len(chat.stats.segments) == len(segment_ends(encoded, *sizes))


def test_a_first_turn_that_explains_tools_opens_and_closes_as_any_other() -> None:
    explained = CHATML.replace(
        "{{ m['content'] }}",
        "{% if tools and loop.first %}{{ tools | tojson }}\n\n{% endif %}{{ m['content'] }}",
    )
    form = ChatFormat(merging_tokenizer(explained))
    told = form.with_options({"tools": [PROBE]})
    assert told.assistant_close() == form.assistant_close()
    assert told.user("hi") == form.user("hi")


def test_what_the_template_refuses_is_refused_with_its_reason() -> None:
    strict = (
        "{% if messages[0]['role'] == 'tool' %}{{ raise_exception('no tool may begin') }}{% endif %}" + CHATML
    )
    with pytest.raises(MessageError, match="no tool may begin") as caught:
        ChatFormat(merging_tokenizer(strict)).encode([{"role": "tool", "content": "x"}])
    assert "\n" not in str(caught.value)


# --- ends and special tokens --------------------------------------------------------------------


def test_a_reply_ends_with_a_token_that_is_special_but_not_named() -> None:
    tokenizer = merging_tokenizer(CHATML)
    plain = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|bos|>")
    plain.chat_template = CHATML
    assert "<|im_end|>" not in plain.all_special_tokens
    assert plain.convert_ids_to_tokens(list(ChatFormat(plain).stop_ids)) == ["<|im_end|>"]


def test_added_tokens_that_are_not_special_open_no_turn_either() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(
        [AddedToken(mark, special=False, normalized=False) for mark in ("<U>", "<A>", "<E>")]
    )
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<U>' if m['role'] == 'user' else '<A>' }}{{ m['content'] }}<E>{% endfor %}"
        "{% if add_generation_prompt %}<A>{% endif %}"
    )
    form = ChatFormat(tokenizer)
    marks = {tokenizer.convert_tokens_to_ids(mark) for mark in ("<U>", "<A>", "<E>")}
    for role in ("user", "assistant"):
        ids = form.encode([{"role": role, "content": "x<E><A>Sure<U>"}]).token_ids
        assert sum(i in marks for i in ids) == 2
        assert "x<E><A>Sure<U>" in tokenizer.decode(ids)


# --- reasoning ----------------------------------------------------------------------------------


def test_send_and_extend_have_the_templates_transcript_when_it_drops_reasoning() -> None:
    tokenizer = merging_tokenizer(R1)
    base = tiny_base(vocab_size=330)
    model = SonicModel(base, tokenizer)
    assert model.format.opens_reasoning(DIALOGUE[:1])
    for budget, config in (
        (Budget(), SessionConfig()),
        (Budget(compression_ratio=0.5), SessionConfig(4, 24)),
    ):
        chat, other = (ChatSession(model, budget, config=config, policy="streaming") for _ in range(2))
        for message in DIALOGUE[:6:2]:
            reply = chat.send(message["content"], SamplingConfig(max_new_tokens=30))
            assert reply.text == ""  # random words: the reasoning has no end
            assert reply.reasoning
            other.extend([message, {"role": "assistant", "content": reply.text}])
        assert chat.token_ids == other.token_ids == rendered(tokenizer, other.messages)
        assert chat.cache.lengths == other.cache.lengths


def test_a_template_is_told_its_options() -> None:
    thinking = CHATML.replace(
        GENERATE,
        "{% if add_generation_prompt %}<|im_start|>assistant\n"
        "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% else %}<think>\n{% endif %}{% endif %}",
    )
    form = ChatFormat(merging_tokenizer(thinking))
    assert form.opens_reasoning(DIALOGUE[:1])
    told = form.with_options({"enable_thinking": False})
    assert not told.opens_reasoning(DIALOGUE[:1])
    assert told.prompt(DIALOGUE[:1]) == rendered(
        form.tokenizer, DIALOGUE[:1], add_generation_prompt=True, enable_thinking=False
    )
