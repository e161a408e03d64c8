"""The turn loop and the methods: what they keep, and that a row is what a session is."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from tiny import DIALOGUE, tiny_model
from torch import Tensor

from sonic_kv import Budget, ChatSession, SessionConfig, SonicModel
from sonic_kv.cache.cache import SessionCache
from sonic_kv.compress.policies import Policy, RereadPolicy
from sonic_kv.eval import methods, rivals
from sonic_kv.eval.methods import METHODS, Closer, Method, close_all
from sonic_kv.eval.replay import Outcome, Script, Task, make_script, open_dialogues, replay
from sonic_kv.eval.suites import Case
from sonic_kv.eval.turns import Row, read

CONFIG = SessionConfig(min_segment_tokens=32, max_segment_tokens=64)
RIVALS = [name for name, method in METHODS.items() if method.budgeted and name != "summary"]

OTHER = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "I bought a green bicycle for forty crowns last week"},
    {"role": "assistant", "content": "nice"},
    {"role": "user", "content": "it is too small for me, I fear"},
    {"role": "assistant", "content": "then sell it"},
    {"role": "user", "content": "what colour was it, and what did I pay?"},
    {"role": "assistant", "content": "green, forty crowns"},
]


def scripts(model: SonicModel) -> list[Script]:
    cases = [Case("a", "all", DIALOGUE), Case("b", "all", OTHER)]
    return [s for case in cases if (s := make_script(model, case, CONFIG, 400)) is not None]


def outcomes(model: SonicModel, method: str | Method, ratio: float | None, some: list[Script]) -> list[Any]:
    kind = METHODS[method] if isinstance(method, str) else method
    donors = [s.token_ids[s.prefix :] for s in reversed(scripts(model))][: len(some)]
    openings = open_dialogues(model, some, donors, [kind])
    found = replay(
        model, CONFIG, [Task(kind, Budget(compression_ratio=ratio), opening) for opening in openings]
    )
    assert all(isinstance(outcome, Outcome) for outcome in found), found
    return found


def closer(model: SonicModel, name: str, ratio: float | None, donor: list[int] | None = None) -> Closer:
    return METHODS[name].start(model, Budget(compression_ratio=ratio), CONFIG, donor or [])


def close(closer: Closer, row: Row) -> None:
    (error,) = close_all(closer.model, [(closer, row)])
    if error is not None:
        raise error


def assert_close(found: Outcome, expected: Outcome) -> None:
    torch.testing.assert_close(torch.tensor(found.nll), torch.tensor(expected.nll), atol=2e-5, rtol=0)
    assert found.memory == expected.memory


class Listener(SonicModel):
    """Keeps the logits of every fed token."""

    def feed(self, cache: SessionCache, token_ids: Any, *, all_logits: bool = False) -> Tensor:
        logits = super().feed(cache, token_ids, all_logits=True)
        self.__dict__.setdefault("logits", []).append(logits)
        return logits if all_logits else logits[-1]


def session_nll(
    model: SonicModel,
    messages: list[dict[str, str]],
    ratio: float,
    config: SessionConfig,
    policy: Policy | None = None,
) -> list[float]:
    """Losses of the replies' tokens in a step-by-step session."""
    listener = Listener(model.base, model.tokenizer, model.adapter)
    system = messages[0]["content"] if messages[0]["role"] == "system" else None
    session = ChatSession(listener, Budget(compression_ratio=ratio), system, config, policy=policy)
    session.extend(messages[1:] if system else messages)
    logits = torch.cat(listener.logits).log_softmax(-1)
    script = make_script(model, Case("x", "all", messages), config, 400)
    assert script is not None
    return [-float(logits[i - 1, script.token_ids[i]]) for i in script.scored]


@pytest.mark.parametrize("family", ["qwen3", "gemma2"])
@pytest.mark.parametrize("name", ["sonic", "selection", "recent"])
def test_a_row_equals_a_session(family: str, name: str) -> None:
    model = tiny_model(family)
    found = outcomes(model, name, 0.6, scripts(model))
    plain = SonicModel(model.base, model.tokenizer, None if name == "recent" else model.adapter)
    policy: Any = "recent" if name == "recent" else SessionConfig().policy
    config = SessionConfig(
        min_segment_tokens=32, max_segment_tokens=64, reencode=name == "sonic", policy=policy
    )
    for outcome, messages in zip(found, (DIALOGUE, OTHER), strict=True):
        torch.testing.assert_close(
            torch.tensor(outcome.nll),
            torch.tensor(session_nll(plain, messages, 0.6, config)),
            atol=2e-5,
            rtol=0,
        )


@pytest.mark.parametrize(
    ("name", "policy"),
    [
        ("reread", RereadPolicy),
        ("h2o", rivals.H2O),
        ("expected-attention", rivals.ExpectedAttention),
        ("snapkv-shared", partial(rivals.SnapKV, True)),
        ("keydiff-shared", partial(rivals.KeyDiff, True)),
    ],
)
def test_a_rival_is_a_policy_of_a_session(name: str, policy: Callable[[], Policy]) -> None:
    model = tiny_model("llama", adapter=False)
    for outcome, messages in zip(outcomes(model, name, 0.6, scripts(model)), (DIALOGUE, OTHER), strict=True):
        expected = session_nll(model, messages, 0.6, CONFIG, policy())
        torch.testing.assert_close(torch.tensor(outcome.nll), torch.tensor(expected), atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", [*METHODS])
def test_a_batch_equals_its_dialogues_one_by_one(name: str) -> None:
    model = tiny_model("llama")  # with Qwen3's key norm, Knorm has nothing but ties
    ratio = 0.7 if METHODS[name].budgeted else None
    both = scripts(model)
    together = outcomes(model, name, ratio, both)
    alone = [*outcomes(model, name, ratio, both[:1]), *outcomes(model, name, ratio, both[1:])]
    if name == "other-history":
        alone = [alone[0]]  # donors differ for the second
    for one, other in zip(together, alone, strict=False):
        assert_close(one, other)


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "llama"])
def test_full_context_equals_the_plain_model(family: str) -> None:
    for outcome in outcomes(model := tiny_model(family), "full", None, scripts(model)):
        assert max(outcome.kl) < 1e-5
        assert all(outcome.agree)


@torch.no_grad()
def test_dropped_history_is_the_prefix_and_the_open_segment_alone() -> None:
    model = tiny_model()
    (outcome,) = outcomes(model, "none", None, scripts(model)[:1])
    script = scripts(model)[0]
    expected = []
    for start, stop in script.spans:
        ids = script.token_ids[: script.prefix] + script.token_ids[start:stop]
        positions = [*range(script.prefix), *range(start, stop)]
        logits = (
            model.base(torch.tensor([ids]), position_ids=torch.tensor([positions])).logits[0].log_softmax(-1)
        )
        expected += [
            -float(logits[i - start + script.prefix - 1, script.token_ids[i]])
            for i in script.scored
            if start <= i - 1 < stop  # it is predicted from the token before it
        ]
    torch.testing.assert_close(torch.tensor(outcome.nll), torch.tensor(expected), atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", RIVALS)
def test_every_method_keeps_the_same_number_of_entries(name: str) -> None:
    model = tiny_model()
    expected = [o.memory for o in outcomes(model, "sliding", 0.7, scripts(model))]
    found = [o.memory for o in outcomes(model, name, 0.7, scripts(model))]
    for kept, wanted in zip(found, expected, strict=True):
        assert kept == pytest.approx(wanted, abs=0.5)  # on average over heads, rounded


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.watch is not None])
def test_what_is_recorded_while_reading_is_what_reading_again_finds(name: str) -> None:
    model = tiny_model("gemma2")
    recorded = outcomes(model, name, 0.7, scripts(model))
    again = outcomes(model, Method(METHODS[name].start), 0.7, scripts(model))
    for one, other in zip(recorded, again, strict=True):
        assert_close(one, other)


def test_equal_heads_and_a_shared_budget() -> None:
    model = tiny_model("llama")
    script = scripts(model)[0]
    (opening,) = open_dialogues(model, [script], [[]], [])
    for name, equal in (("keydiff", True), ("keydiff-shared", False)):
        row = opening.row.fork()
        close(closer(model, name, 0.7), row)
        counts = [n for layer in row.cache.layers for n in layer.counts]
        mean = round(0.3 * (script.ends[0] - script.prefix))
        assert sum(counts) == mean * len(counts)
        assert (len(set(counts)) == 1) == equal
        assert min(counts) >= int(0.2 * mean)  # each head is sure of a fifth of its equal share


def test_another_history_is_that_of_the_donor() -> None:
    model = tiny_model()
    script, donor = scripts(model)
    history = donor.token_ids[donor.prefix :]
    (opening,) = open_dialogues(model, [script], [history], [])
    row, other = opening.row.fork(), closer(model, "other-history", None, history)
    for number in (1, 2):
        close(other, row)
        stored, cache = row.cache.stored, SessionCache(model.num_layers)
        model.feed(cache, (script.token_ids[: script.prefix] + history)[:stored])
        assert stored == len(row.token_ids)
        for mine, fresh in zip(row.cache.layers, cache.layers, strict=True):
            torch.testing.assert_close(mine.keys, fresh.keys, atol=1e-5, rtol=0)
        assert row.cache.next_position == len(row.token_ids)
        read(model, [row], [script.token_ids[slice(*script.spans[number])]], [[]])


def test_truncation_reads_the_newest_text_anew() -> None:
    model = tiny_model()
    script = scripts(model)[0]
    (opening,) = open_dialogues(model, [script], [[]], [])
    row = opening.row.fork()
    close(closer(model, "truncation", 0.5), row)
    kept = round(0.5 * (script.ends[0] - script.prefix))
    text = script.token_ids[: script.prefix] + script.token_ids[script.ends[0] - kept : script.ends[0]]
    (logits,) = read(model, [row], [script.token_ids[slice(*script.spans[1])]], [[0]])
    expected = model.base(torch.tensor([text + script.token_ids[slice(*script.spans[1])]])).logits
    torch.testing.assert_close(logits[0], expected[0, len(text)], atol=2e-5, rtol=0)


def test_a_summary_fits_its_entries() -> None:
    model = tiny_model()
    for outcome, sliding in zip(
        outcomes(model, "summary", 0.2, scripts(model)),
        outcomes(model, "sliding", 0.2, scripts(model)),
        strict=True,
    ):
        assert all(mine <= theirs for mine, theirs in zip(outcome.memory, sliding.memory, strict=True))
        assert max(outcome.memory) > 0


# Independent, slow references, written from the papers.


def h2o_reference(attention: Tensor, spans: list[tuple[int, int]], prefix: int, ratio: float) -> Tensor:
    """Which keys each query may see under H2O's rule (arXiv:2306.14048, algorithm 1), applied at turn ends.

    One layer, so that keys do not depend on what was dropped. Of the paper: F_score is the attention a
    key has received so far, summed; the kept set is the newest tokens and the heavy hitters among the others.

    Args:
        attention: unnormalised, exp(q·k). (H, T, T)
    """
    heads, length, _ = attention.shape
    seen = torch.zeros(heads, length, length, dtype=torch.bool)
    for head in range(heads):
        alive, score = set(range(prefix)), [0.0] * length
        for start, stop in [(0, prefix), *spans]:
            for query in range(start, stop):
                alive.add(query)
                visible = sorted(alive)
                total = sum(float(attention[head, query, k]) for k in visible)
                for k in visible:
                    seen[head, query, k] = True
                    score[k] += float(attention[head, query, k]) / total
            if stop > prefix:
                budget = round((1 - ratio) * (stop - prefix))
                recent = set(range(stop - (budget - budget // 2), stop))
                others = sorted(
                    (k for k in alive if k >= prefix and k not in recent), key=lambda k: -score[k]
                )
                alive = set(range(prefix)) | recent | set(others[: budget - len(recent)])
    return seen


def test_h2o_equals_a_slow_reference_from_the_paper() -> None:
    model = tiny_model("llama", adapter=False, num_hidden_layers=1, num_key_value_heads=4)
    script = scripts(model)[0]
    (outcome,) = outcomes(model, "h2o", 0.6, [script])
    ids = torch.tensor([script.token_ids])
    layer, decoder = model.base.model.layers[0].self_attn, model.base.model
    with torch.no_grad():
        states = decoder.layers[0].input_layernorm(decoder.embed_tokens(ids))
        cos, sin = decoder.rotary_emb(states, torch.arange(ids.shape[1])[None])
        query, key = (f(states).view(1, -1, 4, 8).transpose(1, 2) for f in (layer.q_proj, layer.k_proj))

        def turn(x: Tensor) -> Tensor:
            half = torch.cat((-x[..., 4:], x[..., :4]), dim=-1)
            return x * cos[:, None] + half * sin[:, None]

        weights = (turn(query) @ turn(key).transpose(-1, -2) * layer.scaling).double().exp()
        seen = h2o_reference(weights[0], script.spans, script.prefix, 0.6)
        base = tiny_model("llama", adapter=False, num_hidden_layers=1, num_key_value_heads=4).base
        base.set_attn_implementation("eager")
        mask = torch.where(seen, 0.0, torch.finfo(torch.float32).min)[None]
        logits = base(ids, attention_mask=mask).logits[0].log_softmax(-1)
    expected = [-float(logits[i - 1, script.token_ids[i]]) for i in script.scored]
    torch.testing.assert_close(torch.tensor(outcome.nll), torch.tensor(expected), atol=2e-5, rtol=0)


def test_streaming_llm_keeps_the_first_tokens_and_the_newest() -> None:
    model = tiny_model()
    script = scripts(model)[0]
    (opening,) = open_dialogues(model, [script], [[]], [])
    row, method = opening.row.fork(), closer(model, "streaming-llm", 0.7)
    for number, end in enumerate(script.ends):
        close(method, row)
        count = round(0.3 * (end - script.prefix))
        sinks = list(range(script.prefix, 4))  # four sinks, the prefix is one of them
        expected = sinks + list(range(end - count + len(sinks), end))
        for layer in row.cache.layers:
            assert layer.positions[0].tolist() == [expected] * 2
        if number + 1 < len(script.spans):
            read(model, [row], [script.token_ids[slice(*script.spans[number + 1])]], [[]])


def test_a_method_that_fails_stops_no_other_one() -> None:
    class Leaking(methods.Full):
        def close(self, row: Row) -> methods.Steps:
            raise RuntimeError("the reactor is leaking")
            yield

    model = tiny_model()
    both = [Method(Leaking, budgeted=False), METHODS["full"]]
    (opening,) = open_dialogues(model, scripts(model)[:1], [[]], both)
    failed, fine = replay(model, CONFIG, [Task(method, Budget(), opening) for method in both])
    assert isinstance(failed, RuntimeError)
    assert isinstance(fine, Outcome)
