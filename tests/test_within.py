"""Inside `sonic`, a model of transformers compresses what it reads, and only there."""

from typing import Any

import pytest
import torch
from test_adapter import assert_untouched, snapshot
from test_threads import at_once
from tiny import DIALOGUE, random_adapter, talkative, tiny_base, tiny_tokenizer
from transformers import DynamicCache, pipeline

from sonic_kv import Budget, ChatSession, SamplingConfig, SessionConfig, SonicModel, sonic
from sonic_kv.errors import ConfigError, ContextLengthError, MessageError
from sonic_kv.model.forward import cache_name

HALF, SMALL = Budget(compression_ratio=0.5), SessionConfig(16, 40)
GREEDY = SamplingConfig(max_new_tokens=8, temperature=0.0)
ONES: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False}
QUESTION = {"role": "user", "content": "and the code?"}
SYSTEM = {"role": "system", "content": "be brief"}


def model_of(**changes: Any) -> SonicModel:
    base = talkative(tiny_base(**changes))
    return SonicModel(base, tiny_tokenizer(), random_adapter(base))


def ids_of(model: SonicModel, messages: list[dict[str, str]]) -> torch.Tensor:
    return torch.tensor([model.format.prompt(messages)])


def session(model: SonicModel, system: str | None = None, **options: Any) -> ChatSession:
    chat = ChatSession(model, HALF, system, SMALL, GREEDY, **options)
    chat.extend(DIALOGUE)
    return chat


@pytest.mark.parametrize("start", [[], [SYSTEM]], ids=["no system", "system"])
def test_generate_writes_what_a_session_of_the_same_messages_says(start: list[dict[str, str]]) -> None:
    model = model_of()
    chat = session(model, start[0]["content"] if start else None)
    ids = ids_of(model, [*start, *DIALOGUE, QUESTION])
    before, whole = snapshot(model.base), model.base.generate(ids, **ONES)
    with sonic(model, HALF, config=SMALL) as inside:
        found = model.base.generate(ids, **ONES)
        assert inside.stats.entries == chat.fork().stats.entries + ids.shape[1] - len(chat.token_ids) + 7
    assert_untouched(model.base, before)
    assert model.tokenizer.decode(found[0, ids.shape[1] :]) == chat.send(QUESTION["content"]).text
    assert torch.equal(model.base.generate(ids, **ONES), whole)


@pytest.mark.parametrize("given", [True, False], ids=["a cache of the loop's", "the model's own cache"])
def test_a_loop_of_ones_own_goes_on_turn_by_turn(given: bool) -> None:
    """The cache stays compressed over several prompts, whoever made it."""
    model = model_of()
    base, name, chat = model.base, cache_name(model.base), session(model)
    cache: Any = DynamicCache() if given else None
    messages, fed = [*DIALOGUE], 0
    with sonic(model, HALF, config=SMALL) as inside, torch.no_grad():
        for text in ("and the code?", "who is Ada, then?"):
            messages.append({"role": "user", "content": text})
            ids = ids_of(model, messages)
            rows, reply = ids[:, fed:], list[int]()
            while len(reply) < 8:
                out = base(rows, **{name: cache}, use_cache=True)
                cache, fed = out[name], fed + rows.shape[1]
                rows = out.logits[:, -1:].argmax(-1)
                reply.append(int(rows))
            messages.append({"role": "assistant", "content": model.tokenizer.decode(reply)})
            assert chat.send(text).text == messages[-1]["content"]
            assert cache.get_seq_length() == fed
        # the newest exchange is open until another comes
        assert len(inside.stats.segments) == len(chat.stats.segments) - 1


def test_a_long_prompt_is_compressed_whatever_it_is() -> None:
    model = model_of()
    ids = torch.arange(40, 220)[None]
    with sonic(model.base, HALF, tokenizer=model.tokenizer, config=SMALL) as inside:
        model.base.generate(ids, **ONES)
        assert len(inside.stats.segments) == 4
        assert inside.stats.entries < 0.7 * inside.stats.logical_tokens


def test_without_a_budget_the_model_is_as_ever() -> None:
    model = model_of()
    ids = ids_of(model, [*DIALOGUE, QUESTION])
    whole = model.base.generate(ids, **ONES, output_logits=True, return_dict_in_generate=True)
    with sonic(model, Budget(), config=SMALL):
        found = model.base.generate(ids, **ONES, output_logits=True, return_dict_in_generate=True)
    assert torch.equal(found.sequences, whole.sequences)
    torch.testing.assert_close(found.logits, whole.logits, atol=1e-5, rtol=0)


def test_a_pipeline_compresses_inside() -> None:
    model = model_of()
    pipe: Any = pipeline("text-generation", model=model.base, tokenizer=model.tokenizer)
    with sonic(model, HALF, config=SMALL):
        (found,) = pipe([*DIALOGUE, QUESTION], **ONES)
    assert found["generated_text"][-1]["content"] == session(model).send(QUESTION["content"]).text


def test_other_threads_and_other_caches_are_left_alone() -> None:
    model = model_of()
    base, ids, chat = model.base, ids_of(model, [*DIALOGUE, QUESTION]), session(model)
    whole = base.generate(ids, **ONES)
    own = base.generate(ids, **{cache_name(base): chat.fork().cache}, **ONES)
    with sonic(model, Budget(compression_ratio=0.9), config=SMALL):
        assert torch.equal(at_once([lambda: base.generate(ids, **ONES)])[0], whole)
        assert torch.equal(base.generate(ids, **{cache_name(base): chat.fork().cache}, **ONES), own)
        with torch.no_grad():
            assert torch.equal(base(ids, use_cache=False).logits, base(ids, use_cache=False).logits)


def test_the_model_is_as_before_whatever_happens_inside() -> None:
    model = model_of()
    before = snapshot(model.base)
    with pytest.raises(RuntimeError, match="oops"), sonic(model, HALF):
        raise RuntimeError("oops")
    assert_untouched(model.base, before)
    assert not model.base._forward_pre_hooks


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"num_beams": 2}, "one dialogue at a time"),
        ({"cache_implementation": "static"}, "default cache"),
        ({"attention_mask": torch.arange(20)[None].clamp_max(1)}, "no padding"),
    ],
)
def test_what_cannot_be_compressed_is_refused(options: dict[str, Any], reason: str) -> None:
    model = model_of()
    with sonic(model, HALF), pytest.raises(ConfigError, match=reason) as caught:
        model.base.generate(torch.arange(40, 60)[None], **{**ONES, **options})
    assert "\n" not in str(caught.value)


def test_a_prompt_that_fails_can_be_given_again() -> None:
    model, name = model_of(max_position_embeddings=300), cache_name(model_of().base)
    ids, cache = ids_of(model, [*DIALOGUE, QUESTION]), DynamicCache()
    with sonic(model, Budget(), config=SMALL), torch.no_grad():
        with pytest.raises(ContextLengthError):
            model.base(torch.arange(40, 260).repeat(2)[None], **{name: cache})
        found = model.base(ids, **{name: cache}).logits
    torch.testing.assert_close(found[:, -1], model.base(ids).logits[:, -1], atol=1e-5, rtol=0)


def test_wrong_arguments_are_refused_at_the_entrance() -> None:
    model = model_of()
    cases: list[tuple[Any, str]] = [
        (((model.base, HALF), {}), "no tokenizer is found"),
        (((model, 0.5), {}), "budget must be a Budget"),
        ((("tiny", HALF), {}), "SonicModel takes a loaded model"),
        (((model,), {"config": SessionConfig(positions="compact")}), "positions='original'"),
    ]
    for (args, options), reason in cases:
        with pytest.raises(ConfigError, match=reason), sonic(*args, **options):
            raise AssertionError
    with sonic(model) as inside, pytest.raises(MessageError, match="nothing has been read yet"):
        _ = inside.stats
