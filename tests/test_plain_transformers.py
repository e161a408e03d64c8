"""Plain transformers over a session's cache: `generate`, `pipeline`, a model's own forwards."""

from typing import Any

import pytest
import torch
from test_adapter import assert_untouched, snapshot
from tiny import DIALOGUE, FAMILIES, random_adapter, talkative, tiny_base, tiny_model, tiny_tokenizer
from transformers import pipeline

from sonic_kv import Budget, ChatSession, SamplingConfig, SessionConfig, SonicModel
from sonic_kv.errors import ModelError
from sonic_kv.model.forward import cache_name, with_cache

GREEDY = SamplingConfig(max_new_tokens=8, temperature=0.0)
ONES: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False}
CONFIGS = {
    "shared": SessionConfig(16, 40),
    "per_head": SessionConfig(16, 40, allocation="per_head"),
    "packed": SessionConfig(16, 40, bits=4),
}


def talk(model: SonicModel, config: SessionConfig = CONFIGS["shared"]) -> ChatSession:
    chat = ChatSession(model, Budget(compression_ratio=0.7), config=config, sampling=GREEDY)
    chat.extend(DIALOGUE)
    return chat


def asked(chat: ChatSession, text: str = "and the code?") -> torch.Tensor:
    """The transcript up to where a reply to `text` begins. (1, T)"""
    form = chat.model.format
    return torch.tensor([form.prompt([*chat.messages, {"role": "user", "content": text}])])


def written(chat: ChatSession, transcript: torch.Tensor, **options: Any) -> list[int]:
    """What transformers' own `generate` writes over the session's cache."""
    base = chat.model.base
    found = base.generate(transcript, **with_cache(base, chat.cache), **ONES, **options)
    return list(found[0, transcript.shape[1] :].tolist())


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_generate_continues_as_the_session(family: str, config: str) -> None:
    chat = talk(SonicModel(talkative(tiny_base(family)), tiny_tokenizer()), CONFIGS[config])
    assert chat.cache.even == (config == "per_head")
    before, other = snapshot(chat.model.base), chat.fork()
    theirs = written(chat, asked(chat))
    assert_untouched(chat.model.base, before)
    assert len(theirs) == 8
    assert chat.model.tokenizer.decode(theirs) == other.send("and the code?").text


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("count", [1, 7])
def test_a_models_own_attention_reads_heads_of_different_lengths(
    family: str, attention: str, count: int
) -> None:
    if (family, attention) == ("gemma2", "sdpa"):
        pytest.skip("SDPA has no soft caps")
    base = tiny_base(family, attn_implementation=attention)
    chat = talk(SonicModel(base, tiny_tokenizer(), random_adapter(base)))
    assert not chat.cache.even
    mine = chat.model.feed(chat.cache.fork(), range(40, 40 + count), all_logits=True)
    with torch.no_grad():
        rows = torch.arange(40, 40 + count)[None]
        theirs = base(rows, **with_cache(base, chat.cache.fork())).logits[0]
    torch.testing.assert_close(mine, theirs, atol=1e-5 if attention == "eager" else 0, rtol=0)


def test_a_pipeline_answers_as_the_session() -> None:
    model = SonicModel(talkative(tiny_base()), tiny_tokenizer())
    chat = talk(model)
    pipe: Any = pipeline("text-generation", model=model.base, tokenizer=model.tokenizer)
    messages = [*chat.messages, {"role": "user", "content": "hi"}]
    options = {cache_name(model.base): chat.fork().cache}
    (found,) = pipe(messages, **options, **ONES)
    assert found["generated_text"][-1]["content"] == chat.send("hi").text


def test_the_session_goes_on_whoever_used_its_cache() -> None:
    model = SonicModel(talkative(tiny_base()), tiny_tokenizer())
    chat, other = talk(model), talk(model)
    text = model.tokenizer.decode(written(chat, asked(chat)))
    exchange = [{"role": "user", "content": "and the code?"}, {"role": "assistant", "content": text}]
    assert chat.cache.logical_length > len(chat.token_ids)
    for session in (chat, other):
        session.extend(exchange)
    assert chat.token_ids == other.token_ids
    assert chat.cache.lengths == other.cache.lengths
    assert chat.send("hi").text == other.send("hi").text
    written(chat, asked(chat, "again"))
    assert chat.fork().cache.logical_length == len(chat.token_ids)


def test_tokens_are_taken_back_as_transformers_does() -> None:
    chat = talk(tiny_model())
    for cut in (-3, chat.cache.get_seq_length()):
        cache = chat.cache.fork()
        chat.model.feed(cache, [40, 41, 42])
        cache.crop(cut)
        assert cache.get_seq_length() == chat.cache.get_seq_length()
        assert torch.equal(chat.model.feed(cache, [43]), chat.model.feed(chat.cache.fork(), [43]))
    with pytest.raises(ModelError, match="closed segments cannot be taken back"):
        chat.cache.fork().crop(-len(chat.token_ids))


@pytest.mark.parametrize("options", [{"num_beams": 2}, {"num_return_sequences": 2}])
def test_a_cache_of_one_dialogue_is_not_several(options: dict[str, int]) -> None:
    chat = talk(tiny_model())
    more = {"do_sample": True} if "num_return_sequences" in options else {}
    with pytest.raises(ModelError, match="one dialogue") as caught:
        chat.model.base.generate(
            asked(chat), **with_cache(chat.model.base, chat.cache.fork()), **{**ONES, **options, **more}
        )
    assert "\n" not in str(caught.value)


def test_what_cannot_be_read_side_by_side_is_refused() -> None:
    layer, new = talk(tiny_model()).cache.fork().layers[0], torch.zeros(1, 2, 1, 8)
    key, value = layer.update(new, new)
    assert key.shape == value.shape == (1, 2, layer.width, 8)
    assert (key.dtype, key.device) == (torch.float32, torch.device("cpu"))
    for use in (lambda: layer.keys, lambda: key + 1, lambda: value.sum(), lambda: torch.cat((key, key), 2)):
        with pytest.raises(ModelError, match="allocation='per_head'") as caught:
            use()
        assert "\n" not in str(caught.value)
