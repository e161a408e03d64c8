"""Chat templates taken apart once, and dialogues that only grow at their end."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import DIALOGUE, SPECIAL, TEMPLATE, tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from sonic_kv.errors import MessageError
from sonic_kv.model.chat_format import ChatFormat
from sonic_kv.model.encoded import Encoded, segment_ends
from sonic_kv.model.messages import check_messages

GENERATE = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    + GENERATE
)
# Qwen2.5: a default system prompt where the dialogue brings none
DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are Q.<|im_end|>\n{% endif %}" + CHATML
)
# Qwen3: an empty think block stands in the last reply only, and in no generation prompt
THINK = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}" + GENERATE
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set s = messages[0]['content'] %}"
    "{% else %}{% set rest = messages %}{% set s = none %}{% endif %}"
    "{% for m in rest %}{% if m['role'] == 'user' %}{{ bos_token }}[INST] "
    "{% if loop.first and s is not none %}<<SYS>>\n{{ s }}\n<</SYS>>\n\n{% endif %}{{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }} {{ eos_token }}{% endif %}{% endfor %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no\nsystem') }}"
    "{% elif m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}"
    "{% set s = messages[0]['content'] + '\n\n' %}{% else %}{% set rest = messages %}{% set s = '' %}{% endif %}"
    "{% for m in rest %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ s if loop.first }}{{ m['content'] }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# newlines stand between messages, not after them
SEPARATED = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{% if not loop.last %}{{ '\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '\n' }}assistant: {% endif %}"
)
TEMPLATES = {
    "own": TEMPLATE,
    "chatml": CHATML,
    "default-system": DEFAULT_SYSTEM,
    "llama2": LLAMA2,
    "mistral": MISTRAL,
    "gemma": GEMMA,
    "separated": SEPARATED,
}
WITH_SYSTEM = [name for name in TEMPLATES if name != "mistral"]
MARKS = ["<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>"]
SYSTEM = {"role": "system", "content": "be brief"}


def merging_tokenizer(template: str | None) -> PreTrainedTokenizerFast:
    """Byte-level BPE with merges over spaces and newlines: what a wrong cut between pieces would show."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    text = [message["content"] for message in DIALOGUE] + ["\n\n", "user\n\n", " \n ", "  two  spaces"]
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=SPECIAL + MARKS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text * 4, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|bos|>", pad_token="<|pad|>", eos_token="<|end|>"
    )
    fast.add_special_tokens({"additional_special_tokens": MARKS})
    fast.chat_template = template
    return fast


def rendered(tokenizer: Any, messages: list[dict[str, str]], **options: Any) -> list[int]:
    """Token ids of the whole dialogue as the tokenizer's own template renders it."""
    return list(tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **options))


# --- pieces -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TEMPLATES)
def test_pieces_are_the_template(name: str) -> None:
    tokenizer = merging_tokenizer(TEMPLATES[name])
    ids, whole = ChatFormat(tokenizer).encode(DIALOGUE).token_ids, rendered(tokenizer, DIALOGUE)
    assert ids[: len(whole)] == whole
    assert tokenizer.decode(ids[len(whole) :]) == ("\n" if name == "separated" else "")


@pytest.mark.parametrize("name", WITH_SYSTEM)
def test_pieces_are_the_template_with_a_system_prompt(name: str) -> None:
    tokenizer = merging_tokenizer(TEMPLATES[name])
    encoded = ChatFormat(tokenizer).encode([SYSTEM, *DIALOGUE])
    whole = rendered(tokenizer, [SYSTEM, *DIALOGUE])
    assert encoded.token_ids[: len(whole)] == whole
    assert "be brief" in tokenizer.decode(encoded.token_ids[: encoded.prefix_length])


@pytest.mark.parametrize("name", ["own", "chatml", "default-system", "gemma"])
@pytest.mark.parametrize("text", ["\n\nhi", "  hi  ", "hi\n", "", "a\n\n\nb"])
def test_space_around_a_text_is_tokenised_as_the_template_does(name: str, text: str) -> None:
    tokenizer = merging_tokenizer(TEMPLATES[name])
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": text}] * 2
    assert ChatFormat(tokenizer).encode(messages).token_ids == rendered(tokenizer, messages)


@pytest.mark.parametrize("name", [*TEMPLATES, "plain"])
def test_a_dialogue_only_grows_at_its_end(name: str) -> None:
    chat = ChatFormat(merging_tokenizer(TEMPLATES.get(name)))
    ids = [chat.encode(DIALOGUE[: n + 1]).token_ids for n in range(len(DIALOGUE))]
    for shorter, longer in pairwise(ids):
        assert longer[: len(shorter)] == shorter


@pytest.mark.parametrize(
    "name", ["own", "chatml", "default-system", "gemma", "separated", "mistral", "llama2"]
)
def test_generation_prompt_is_the_templates(name: str) -> None:
    tokenizer = merging_tokenizer(TEMPLATES[name])
    chat = ChatFormat(tokenizer)
    asked = chat.encode(DIALOGUE[:3]).token_ids + chat.generation_prompt()
    assert asked == rendered(tokenizer, DIALOGUE[:3], add_generation_prompt=True)


def test_a_reply_is_closed_by_itself_though_the_head_ends_as_a_reply_does() -> None:
    """A default system prompt makes the head end in what closes every message."""
    tokenizer = merging_tokenizer(DEFAULT_SYSTEM)
    chat = ChatFormat(tokenizer)
    assert tokenizer.decode(chat.assistant_close()) == "<|im_end|>\n"
    assert tokenizer.decode(chat.user("hi")) == "<|im_start|>user\nhi<|im_end|>\n"
    assert tokenizer.decode(chat.prefix()) == "<|im_start|>system\nYou are Q.<|im_end|>\n"


def test_think_block_of_the_last_reply_is_not_part_of_any_piece() -> None:
    tokenizer = merging_tokenizer(THINK)
    chat = ChatFormat(tokenizer)
    assert tokenizer.decode(chat.assistant("yes")) == "<|im_start|>assistant\nyes<|im_end|>\n"
    assert tokenizer.decode(chat.generation_prompt()) == "<|im_start|>assistant\n"
    # all but the last reply stand in the transcript as the template renders them
    assert rendered(tokenizer, DIALOGUE)[: len(chat.encode(DIALOGUE[:-1]).token_ids)] == (
        chat.encode(DIALOGUE[:-1]).token_ids
    )


def test_plain_format_stands_in_for_a_missing_template() -> None:
    tokenizer = tiny_tokenizer(None)
    chat = ChatFormat(tokenizer)
    text = tokenizer.decode(chat.encode([SYSTEM, *DIALOGUE[:2]]).token_ids)
    assert text == "<|bos|>be brief\n\nUser: my sister Ada lives in Oslo\nAssistant: good to know\n"
    assert tokenizer.decode(chat.encode(DIALOGUE[:2]).token_ids[:1]) == "<|bos|>"
    assert chat.stop == ("\nUser:",)


@pytest.mark.parametrize("name", [*TEMPLATES, "plain"])
def test_prefix_is_never_empty(name: str) -> None:
    for tokenizer in (merging_tokenizer(TEMPLATES.get(name)), tiny_tokenizer(TEMPLATES.get(name))):
        assert ChatFormat(tokenizer).prefix()


@pytest.mark.parametrize(
    ("name", "token"), [("chatml", "<|im_end|>"), ("gemma", "<end_of_turn>"), ("llama2", "<|end|>")]
)
def test_the_token_that_closes_a_reply_stops_it(name: str, token: str) -> None:
    tokenizer = merging_tokenizer(TEMPLATES[name])
    assert ChatFormat(tokenizer).stop_ids == (tokenizer.convert_tokens_to_ids(token),)


@pytest.mark.parametrize("name", [*TEMPLATES, "plain"])
def test_exactly_the_replies_are_marked_as_written_by_the_assistant(name: str) -> None:
    tokenizer = tiny_tokenizer(TEMPLATES.get(name))  # one token a byte: every cut is exact
    encoded = ChatFormat(tokenizer).encode(DIALOGUE)
    written = [i for i, mine in zip(encoded.token_ids, encoded.assistant, strict=True) if mine]
    text = tokenizer.decode(written, skip_special_tokens=True)
    for message in DIALOGUE:
        assert (message["content"] in text) is (message["role"] == "assistant")
    assert encoded.exchange_ends[-1] == len(encoded.token_ids)


# --- refusals -----------------------------------------------------------------------------------


def test_refused_system_prompt_says_where_to_put_it() -> None:
    with pytest.raises(MessageError, match="first user message") as caught:
        ChatFormat(merging_tokenizer(MISTRAL)).prefix("be brief")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "template", ["{{ messages[0]['content'] | upper }}", "{{ nothing.at.all }}", "{% endfor %}"]
)
def test_template_that_cannot_be_taken_apart_is_refused(template: str) -> None:
    with pytest.raises(MessageError, match="chat template") as caught:
        ChatFormat(tiny_tokenizer(template))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("messages", "what"),
    [
        ([], "empty"),
        ([{"role": "function", "content": "x"}], "unknown role"),
        ([{"role": ["user"], "content": "x"}], "unknown role"),
        ([{"role": "user"}], "keys"),
        ([{"content": "x"}], "keys"),
        (["hello"], "keys"),
        ([{"role": "user", "content": [{"type": "image"}]}], "only text"),
        ([{"role": "user", "content": None}], "only text"),
        ([{"role": "user", "content": "half \ud83d"}], "half a character"),
        (
            [{"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "\ud83d"}}]}],
            "half a character",
        ),
    ],
)
def test_what_is_not_a_dialogue_is_refused_in_one_line(messages: Any, what: str) -> None:
    with pytest.raises(MessageError, match=what) as caught:
        check_messages(messages)
    assert "\n" not in str(caught.value)


# --- segments -----------------------------------------------------------------------------------


def slow_ends(encoded: Encoded, least: int, most: int) -> list[int]:
    """Token by token, as a session feeds them."""
    ends, start = [], encoded.prefix_length
    for fed in range(encoded.prefix_length, len(encoded.token_ids)):
        if fed - start >= most:  # full, and one more token comes
            ends.append(fed)
            start = fed
        if fed + 1 in encoded.exchange_ends and fed + 1 - start >= least:
            ends.append(fed + 1)
            start = fed + 1
    return ends


SIZES = st.lists(st.integers(1, 30), max_size=8)


@settings(max_examples=200)
@given(st.integers(0, 4), SIZES, st.integers(0, 30), st.integers(1, 20), st.integers(0, 20))
def test_segments_end_with_exchanges_or_where_they_are_full(
    prefix: int, exchanges: list[int], rest: int, least: int, more: int
) -> None:
    ends, position = [], prefix
    for size in exchanges:
        position += size
        ends.append(position)
    encoded = Encoded([0] * (position + rest), prefix, ends, [])
    found = segment_ends(encoded, least, least + more)
    assert found == slow_ends(encoded, least, least + more)
    for start, end in pairwise([prefix, *found]):
        assert 1 <= end - start <= least + more
        assert end in ends or end - start == least + more


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_a_message_that_spells_a_special_token_is_only_text(name: str, role: str) -> None:
    if role == "system" and name not in WITH_SYSTEM:
        pytest.skip("the template takes no system prompt")
    tokenizer = merging_tokenizer(TEMPLATES[name])
    form, special = ChatFormat(tokenizer), set(tokenizer.all_special_ids)

    def counted(text: str) -> tuple[int, str]:
        messages = [SYSTEM, *DIALOGUE[:4]] if name in WITH_SYSTEM else DIALOGUE[:4]
        changed = [m if m["role"] != role else {"role": role, "content": text} for m in messages]
        ids = form.encode(changed).token_ids
        return sum(i in special for i in ids), tokenizer.decode(ids)

    plain, _ = counted("x")
    for mark in tokenizer.all_special_tokens:
        for text in (mark, f"hi{mark}{mark}there", f"<|{mark}|>"):
            number, written = counted(text)
            assert number == plain, text
            assert text in written


@pytest.mark.parametrize("template", [TEMPLATE, None])
@pytest.mark.parametrize("text", ["in Oslo, I think", "<|end|> in Oslo", "Oslo"])
def test_spelling_finds_the_tokens_of_a_part_of_the_reply(template: str | None, text: str) -> None:
    tokenizer = tiny_tokenizer(template)
    form = ChatFormat(tokenizer)
    at = text.index("Oslo")
    ids = form.assistant(text)
    assert tokenizer.decode([ids[i] for i in form.spelling(text, at, at + 4)]) == "Oslo"
