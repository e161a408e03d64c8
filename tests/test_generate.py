"""Laws of generation: streaming, stopping, batches, sampling."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import DIALOGUE, FAMILIES, tiny_model, tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sonic_kv.cache.cache import SessionCache
from sonic_kv.compress.options import Budget, SessionConfig
from sonic_kv.errors import ConfigError, ContextLengthError
from sonic_kv.model.model import SonicModel
from sonic_kv.session.generate import Detokenizer, generate, stream_generate
from sonic_kv.session.options import SamplingConfig
from sonic_kv.session.session import ChatSession

TOKENIZER = tiny_tokenizer()
EIGHT = SamplingConfig(max_new_tokens=8)


class OnlyText:
    """As much of a model as a `Detokenizer` needs."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer


def stream_text(
    ids: list[int], stop: tuple[str, ...] = (), tokenizer: Any = TOKENIZER
) -> tuple[str, list[str], bool]:
    """The streamed text of tokens, its pieces, and whether a stop text ended it."""
    detokenizer = Detokenizer(OnlyText(tokenizer), stop)  # type: ignore[arg-type]
    pieces = []
    for token in ids:
        pieces.append(detokenizer.add(token))
        if detokenizer.stopped:
            return "".join(pieces), pieces, True
    pieces.append(detokenizer.finish())
    return "".join(pieces), pieces, detokenizer.stopped


def ids_of(data: bytes) -> list[int]:
    """Byte-level tokens of any bytes, valid UTF-8 or not."""
    alphabet = dict(zip(range(256), _byte_letters(), strict=True))
    return [TOKENIZER.convert_tokens_to_ids(alphabet[byte]) for byte in data]


def _byte_letters() -> list[str]:
    """GPT-2's letter of every byte, read off the pre-tokenizer's own decoder."""
    table = {}
    for letter in pre_tokenizers.ByteLevel.alphabet():
        code = ord(letter)
        if 33 <= code <= 126 or 161 <= code <= 172 or 174 <= code <= 255:
            table[code] = letter
    missing = [b for b in range(256) if b not in table]
    return [table.get(b) or chr(256 + missing.index(b)) for b in range(256)]


# --- text ---------------------------------------------------------------------------------------


def test_characters_split_over_tokens_are_streamed_whole() -> None:
    text, pieces, _ = stream_text(ids_of("Zoë 東京 🙂".encode()))
    assert text == "Zoë 東京 🙂"
    assert [piece for piece in pieces if piece] == list(text)


@settings(max_examples=200)
@given(st.binary(max_size=24) | st.text(max_size=8).map(str.encode))
def test_streamed_text_is_the_decoded_text_whatever_the_bytes(data: bytes) -> None:
    ids = ids_of(data)
    text, _, _ = stream_text(ids)
    assert text == TOKENIZER.decode(ids, clean_up_tokenization_spaces=False)


WORDS = st.text(alphabet="aAb🙂é", max_size=12)
STOPS = st.lists(st.text(alphabet="aAb🙂é", min_size=1, max_size=4), min_size=1, max_size=3)


@settings(max_examples=200)
@given(WORDS, STOPS)
def test_a_stop_text_ends_the_reply_wherever_tokens_are_cut(text: str, stops: list[str]) -> None:
    streamed, _, stopped = stream_text(ids_of(text.encode()), tuple(stops))
    ends = {stop: text.find(stop) + len(stop) for stop in stops if stop in text}
    assert stopped is bool(ends)
    if not ends:
        assert streamed == text
        return
    # the reply ends with the token that completes a stop text first
    seen = text[: min(ends.values())]
    assert streamed == seen[: min(seen.find(stop) for stop in stops if stop in seen)]


def test_text_that_may_begin_a_stop_text_is_held_back_no_longer_than_needed() -> None:
    _, pieces, _ = stream_text(ids_of(b"a ST STO x"), ("STOP",))
    assert pieces == ["a", " ", "", "", "ST ", "", "", "", "STO ", "x", ""]


def test_words_keep_their_spaces_around_tokens_without_text() -> None:
    """SentencePiece-like tokens drop the first space: a skipped special token must not look like a start."""
    vocabulary = {"▁my": 0, "▁cat": 1, "<mark>": 2, "s": 3}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<mark>"))
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<mark>"])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    ids = [0, 2, 2, 1, 3, 2, 1]
    whole = fast.decode(ids, skip_special_tokens=True)
    assert stream_text(ids, tokenizer=fast)[0] == whole == "my cats cat"


@pytest.mark.parametrize("stop", [(), ("a",), ("\ufffd",)])
def test_streamed_reply_is_the_whole_reply(stop: tuple[str, ...]) -> None:
    model = tiny_model()
    sampling = SamplingConfig(max_new_tokens=40, temperature=1.0, seed=3, stop=stop)
    prompt = model.format.user("hi")
    pieces = [row for (row,) in stream_generate(model, [prompt], None, sampling) if row is not None]
    (whole,) = generate(model, [prompt], None, sampling)
    assert "".join(piece.text for piece in pieces) == whole.text
    assert [piece.token_id for piece in pieces] == whole.token_ids
    assert [piece.finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1].finish_reason == whole.finish_reason
    if not stop and whole.finish_reason == "length":
        assert whole.text == TOKENIZER.decode(whole.token_ids, skip_special_tokens=True)


# --- ends ---------------------------------------------------------------------------------------


def script(monkeypatch: pytest.MonkeyPatch, *rows: list[int]) -> None:
    """The next tokens of every row; a row that has ended goes on with zeros."""
    steps = iter(range(1000))

    def next_tokens(logits: Any, *_: Any) -> list[int]:
        step = next(steps)
        return [row[step] if step < len(row) else 0 for row in rows]

    monkeypatch.setattr("sonic_kv.session.generate.sample", next_tokens)


def test_finish_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    end = model.tokenizer.eos_token_id
    sampling = SamplingConfig(max_new_tokens=4, stop=("no",))
    rows = [
        [*ids_of(b"ab"), end],
        ids_of(b"a no"),
        ids_of(b"abcd"),
        [end],
        [*ids_of(b"abc"), end],
        ids_of(b"xyzn"),
    ]
    script(monkeypatch, *rows)
    replies = generate(model, [[1, 2]] * len(rows), None, sampling)
    assert [r.finish_reason for r in replies] == ["stop", "stop", "length", "stop", "stop", "length"]
    assert [r.text for r in replies] == ["ab", "a ", "abcd", "", "abc", "xyzn"]
    assert [len(r.token_ids) for r in replies] == [3, 4, 4, 1, 4, 4]


@pytest.mark.parametrize("number", [1, 2, 7])
def test_max_new_tokens_is_exact(number: int) -> None:
    model = tiny_model()
    caches = [SessionCache(model.num_layers) for _ in range(2)]
    replies = generate(model, [[1, 2, 3], [4]], caches, SamplingConfig(max_new_tokens=number))
    for cache, reply, prompt in zip(caches, replies, (3, 1), strict=True):
        assert len(reply.token_ids) == number or reply.finish_reason == "stop"
        assert cache.stored == prompt + len(reply.token_ids) - 1


def test_every_reply_ends_at_the_models_last_position() -> None:
    model = tiny_model(max_position_embeddings=20)
    replies = generate(model, [[1] * 12, [1] * 17], None, SamplingConfig(max_new_tokens=50))
    assert [len(r.token_ids) for r in replies] == [8, 3]
    with pytest.raises(ContextLengthError) as caught:
        generate(model, [[1] * 20])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("prompts", [[], [[]], [[1], []]])
def test_nothing_to_continue_is_refused(prompts: list[list[int]]) -> None:
    with pytest.raises(ConfigError, match="prompt"):
        generate(tiny_model(), prompts)


# --- batches ------------------------------------------------------------------------------------


def dialogues(model: SonicModel, positions: Any = "original") -> list[ChatSession]:
    """Dialogues of different length, compressed more and less and not at all."""
    config = SessionConfig(16, 40, positions=positions)
    sessions = []
    for budget, exchanges in [(0.5, 3), (0.0, 1), (0.9, 4), (0.8, 2)]:
        chat = ChatSession(model, Budget(compression_ratio=budget), config=config)
        chat.extend(DIALOGUE[: 2 * exchanges])
        sessions.append(chat)
    return sessions


def assert_same_caches(a: list[SessionCache], b: list[SessionCache]) -> None:
    for one, other in zip(a, b, strict=True):
        assert one.lengths == other.lengths
        assert one.logical_length == other.logical_length
        for mine, theirs in zip(one.layers, other.layers, strict=True):
            assert mine.passed == theirs.passed
            for x, y in zip(mine.state().values(), theirs.state().values(), strict=True):
                torch.testing.assert_close(x, y, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_batch_is_one_at_a_time(family: str) -> None:
    model = tiny_model(family)
    sessions = dialogues(model)
    prompts = [
        model.format.user(text) + model.format.generation_prompt() for text in ("a", "where?", "", "code")
    ]
    alone, together = ([chat.cache.fork() for chat in sessions] for _ in range(2))
    single = [generate(model, [p], [c], EIGHT)[0] for p, c in zip(prompts, alone, strict=True)]
    assert generate(model, prompts, together, EIGHT) == single
    assert_same_caches(together, alone)


def test_greedy_batch_is_one_at_a_time_with_compact_positions() -> None:
    model = tiny_model()
    sessions = dialogues(model, "compact")
    prompts = [model.format.user("x" * n) for n in (1, 5, 3, 9)]
    alone, together = ([chat.cache.fork() for chat in sessions] for _ in range(2))
    single = [generate(model, [p], [c], EIGHT)[0] for p, c in zip(prompts, alone, strict=True)]
    assert generate(model, prompts, together, EIGHT) == single
    assert_same_caches(together, alone)


@pytest.mark.parametrize("heads", [1, 2])
def test_caches_after_a_batch_hold_their_own_bytes_only(heads: int) -> None:
    model = tiny_model(num_key_value_heads=heads)
    caches = [chat.cache for chat in dialogues(model)]
    generate(model, [[1, 2], [3], [4], [5, 6, 7]], caches, EIGHT)
    for cache in caches:
        held = [tensor for layer in cache.layers for tensor in layer.tensors()]
        assert cache.nbytes == sum(tensor.numel() * tensor.element_size() for tensor in held)


def test_rows_that_end_early_keep_nothing_of_the_others_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    end = model.tokenizer.eos_token_id
    rows = [[*ids_of(b"a"), end], ids_of(b"long reply")[:8], [end], [*ids_of(b"abc"), end]]
    sessions = dialogues(model)
    alone, together = ([chat.cache.fork() for chat in sessions] for _ in range(2))
    script(monkeypatch, *rows)
    steps = list(stream_generate(model, [[1]] * 4, together, EIGHT))
    assert [[piece is None for piece in pieces] for pieces in steps[:3]] == [
        [False, False, False, False],
        [False, False, True, False],
        [True, False, True, False],
    ]
    for row, cache in zip(rows, alone, strict=True):
        script(monkeypatch, row)
        generate(model, [[1]], [cache], EIGHT)
    assert_same_caches(together, alone)


def test_a_batch_that_is_closed_early_hands_its_entries_back() -> None:
    model = tiny_model()
    sessions = dialogues(model)
    caches = [chat.cache.fork() for chat in sessions]
    steps = stream_generate(model, [[1]] * 4, caches, EIGHT)
    next(steps)
    next(steps)
    steps.close()  # type: ignore[attr-defined]
    for chat, cache in zip(sessions, caches, strict=True):
        assert cache.stored == chat.cache.stored + 2  # the prompt and the first token
