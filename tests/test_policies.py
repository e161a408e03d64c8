"""Laws of policies: what they see, what is made of their scores, and which are kept with a session."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from onepass import one_pass_logits, record
from tiny import DIALOGUE, random_adapter, tiny_base, tiny_model, tiny_tokenizer
from torch import Tensor
from transformers import DynamicCache

from sonic_kv import Budget, ChatSession, Policy, SamplingConfig, SessionConfig, SonicModel
from sonic_kv.compress.compressor import Compressor
from sonic_kv.compress.policies import (
    POLICIES,
    SINKS,
    Closing,
    RecentPolicy,
    RereadPolicy,
    StreamingPolicy,
)
from sonic_kv.errors import ConfigError
from sonic_kv.model.forward import with_cache

HALF = Budget(compression_ratio=0.5)
SMALL = SessionConfig(min_segment_tokens=16, max_segment_tokens=40)
EXAMPLE = Path(__file__).parents[1] / "examples" / "own_policy.py"


class Watched(Policy):
    """Keeps the newest entries, and what it was shown."""

    def __init__(self) -> None:
        self.shown: list[Closing] = []

    def scores(self, closing: Closing) -> list[Tensor]:
        now: dict[str, Any] = {"cache": closing.cache.fork(), "token_ids": list(closing.token_ids)}
        self.shown.append(replace(closing, **now))
        return [closing.positions(layer).float() for layer in closing.layers]


def example() -> Any:
    spec = importlib.util.spec_from_file_location("own_policy", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def talk(model: SonicModel, policy: Any, config: SessionConfig = SMALL, exchanges: int = 4) -> ChatSession:
    chat = ChatSession(model, HALF, "be brief", config, SamplingConfig(max_new_tokens=6), policy=policy)
    chat.extend(DIALOGUE[: 2 * exchanges])
    return chat


def test_a_researchers_policy_decides_what_is_kept() -> None:
    chat = talk(tiny_model(adapter=False), example().LargeValues())
    assert chat.stats.memory == pytest.approx(0.5 * sum(s.tokens for s in chat.stats.segments), abs=1)
    kept = torch.cat([torch.cat(list(layer.values)).norm(dim=-1) for layer in chat.cache.memory()])
    others = talk(tiny_model(adapter=False), "streaming")
    plain = torch.cat([torch.cat(list(layer.values)).norm(dim=-1) for layer in others.cache.memory()])
    assert kept.mean() > 1.1 * plain.mean()


@pytest.mark.parametrize("positions", ["original", "compact"])
def test_a_policy_sees_the_entries_as_a_plain_cache_would_hold_them(positions: Any) -> None:
    base = tiny_base()
    model, policy = SonicModel(base, tiny_tokenizer()), Watched()
    chat = talk(model, policy, SessionConfig(16, 40, positions=positions))
    assert len(policy.shown) >= 3
    raw = DynamicCache(config=base.config)
    with torch.no_grad():
        base(torch.tensor([chat.token_ids]), **with_cache(base, raw))
    first = policy.shown[0]  # before anything was dropped
    start, end = chat.cache.lengths.prefix, chat.cache.lengths.prefix + first.length
    for layer, full in enumerate(raw.layers):
        assert first.positions(layer).tolist() == [list(range(start, end))] * 2
        torch.testing.assert_close(first.values(layer), full.values[0, :, start:end], atol=1e-5, rtol=0)
        torch.testing.assert_close(first.keys(layer), full.keys[0, :, start:end], atol=1e-5, rtol=0)
        turned = model.rope.rotate(layer, full.keys[0, :, start:end], -torch.arange(start, end))
        torch.testing.assert_close(first.keys(layer, rotated=False), turned, atol=1e-5, rtol=0)
        torch.testing.assert_close(first.opened(layer)[0], turned, atol=1e-5, rtol=0)
    assert first.target == round(0.5 * first.length)
    assert [len(closing.token_ids) for closing in policy.shown] == sorted(
        {len(closing.token_ids) for closing in policy.shown}
    )


def test_keys_of_the_memory_are_unrotated_from_where_they_stand() -> None:
    """Whatever the positions are, an entry that was kept raw has the unrotated key that it was computed with."""
    found = {}
    for positions in ("original", "compact"):
        policy = Watched()
        config = SessionConfig(16, 40, positions=positions, allocation="per_head")  # type: ignore[arg-type]
        talk(tiny_model(adapter=False), policy, config, exchanges=2)
        one, two = policy.shown[:2]
        assert two.positions(0).shape[-1] > two.length
        memory = two.positions(0).shape[-1] - two.length
        at = two.positions(0)[0, :memory] - one.positions(0)[0, 0]
        found[positions] = two.keys(0, rotated=False)[:, :memory], one.keys(0, rotated=False)[:, at]
    for then, now in found.values():
        torch.testing.assert_close(then, now, atol=1e-4, rtol=0)


def test_heads_that_hold_fewer_entries_begin_with_absent_ones() -> None:
    class Uneven(Watched):
        def scores(self, closing: Closing) -> list[Tensor]:
            rows = torch.arange(closing.model.num_heads)[:, None] * 1000.0
            return [layer + rows for layer in super().scores(closing)]

    policy = Uneven()
    chat = talk(tiny_model(adapter=False), policy)
    assert not chat.cache.even
    last = policy.shown[-1]
    for layer in last.layers:
        present = last.present(layer)
        assert not bool(present.all())
        assert bool(present[:, -last.length :].all())
        assert bool((last.keys(layer)[~present] == 0).all())
        assert bool((last.keys(layer)[present].abs().sum(-1) > 0).all())
        assert bool((last.stored(layer) > -torch.inf).eq(present[:, : -last.length]).all())


@pytest.mark.parametrize("name", POLICIES)
def test_a_shipped_policy_is_named_saved_and_goes_on(name: str, tmp_path: Path) -> None:
    model = tiny_model(adapter=name == "learned")
    chat = talk(model, name)
    assert chat.policy == POLICIES[name]()
    assert chat.cache.lengths.segments >= 2
    chat.save(tmp_path / "chat.safetensors")
    loaded = ChatSession.load(model, tmp_path / "chat.safetensors")
    assert loaded.policy == chat.policy
    for session in (chat, loaded):
        session.extend(DIALOGUE[:4])
    assert loaded.cache.lengths == chat.cache.lengths
    for mine, theirs in zip(loaded.cache.state().values(), chat.cache.state().values(), strict=True):
        assert torch.equal(mine, theirs)


def test_options_of_a_shipped_policy_are_kept_with_the_session(tmp_path: Path) -> None:
    model = tiny_model(adapter=False)
    talk(model, RecentPolicy(window=3)).save(tmp_path / "chat.safetensors")
    assert ChatSession.load(model, tmp_path / "chat.safetensors").policy == RecentPolicy(window=3)


def test_a_session_kept_by_a_researchers_policy_is_loaded_with_it(tmp_path: Path) -> None:
    model, policy = tiny_model(adapter=False), Watched()
    talk(model, policy).save(tmp_path / "chat.safetensors")
    with pytest.raises(ConfigError, match="'Watched'") as caught:
        ChatSession.load(model, tmp_path / "chat.safetensors")
    assert "\n" not in str(caught.value)
    assert ChatSession.load(model, tmp_path / "chat.safetensors", policy=policy).policy is policy


@pytest.mark.parametrize("name", ["reread", "recent", "h2o", "streaming"])
def test_session_matches_one_pass_forward_whatever_the_policy(name: Any) -> None:
    base = tiny_base()
    config = SessionConfig(16, 40, policy=name)
    _, session = record(base, random_adapter(base), DIALOGUE, [HALF], config)
    assert session.cache.lengths.segments >= 2
    (logits,) = one_pass_logits([session])
    torch.testing.assert_close(
        torch.cat(session.model.logits),  # type: ignore[attr-defined]
        logits,
        atol=1e-5,
        rtol=0,
    )


def test_streaming_keeps_the_first_and_the_newest() -> None:
    tokenizer = tiny_tokenizer("{% for m in messages %}{{ m['content'] }}<|end|>{% endfor %}")  # no prefix
    chat = ChatSession(SonicModel(tiny_base(), tokenizer), HALF, config=SMALL, policy=StreamingPolicy())
    chat.extend(DIALOGUE)
    count = chat.stats.memory
    newest = chat.cache.lengths.closed - (count - SINKS)
    for memory in chat.cache.memory():
        for positions in memory.positions:
            assert positions.tolist() == [*range(SINKS), *range(newest, newest + count - SINKS)]


def test_a_policy_that_is_unknown_or_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="learned, reread, recent, h2o or streaming"):
        ChatSession(tiny_model(), policy="streaming-llm")
    with pytest.raises(ConfigError, match="needs an adapter"):
        ChatSession(tiny_model(adapter=False), policy="learned")
    with pytest.raises(ConfigError, match="window=0"):
        RecentPolicy(window=0)


@pytest.mark.parametrize("wrong", ["shape", "layers", "nan"])
def test_scores_that_make_no_sense_are_one_clear_error(wrong: str) -> None:
    class Wrong(Policy):
        def scores(self, closing: Closing) -> list[Tensor]:
            found = [closing.positions(layer).float() for layer in closing.layers]
            found[-1][0, 0] = torch.nan if wrong == "nan" else 0.0
            return {"shape": [f[:1] for f in found], "layers": found[1:], "nan": found}[wrong]

    chat = ChatSession(tiny_model(adapter=False), HALF, config=SMALL, policy=Wrong())
    with pytest.raises(ConfigError, match="policy 'Wrong' gave scores") as caught:
        chat.extend(DIALOGUE)
    assert "\n" not in str(caught.value)
    assert not chat.messages


@pytest.mark.parametrize("family", ["qwen3", "gemma2"])
def test_a_repeated_segment_is_scored_by_the_most_attention_that_its_entries_get(family: str) -> None:
    """Against the base's own attention over the whole text, written out."""
    base = tiny_base(family)
    model, config = SonicModel(base, tiny_tokenizer()), SessionConfig(16, 80)
    chat = ChatSession(model, HALF, "be brief", config, policy="reread")
    chat.extend(DIALOGUE[:2])
    text = list(chat.token_ids)
    prefix, end = chat.cache.lengths.prefix, len(text)
    request = model.format.user("Repeat the previous context exactly.") + model.format.generation_prompt()
    plain = tiny_base(family, attn_implementation="eager")
    ids = torch.tensor([text + request + text[prefix:]])
    with torch.no_grad():
        paid = plain(ids, output_attentions=True).attentions
    for layer, weights in enumerate(paid):
        groups = weights[0].unflatten(0, (model.num_heads, -1))  # (G, R, T, T)
        expected = groups[:, :, end:, prefix:end].amax((1, 2))
        for head, (positions, scores) in enumerate(
            zip(chat.cache.memory()[layer].positions, chat.cache.memory()[layer].scores, strict=True)
        ):
            torch.testing.assert_close(scores, expected[head, positions - prefix], atol=1e-5, rtol=0)


def test_repetitions_of_several_dialogues_are_those_of_each_alone() -> None:
    model = tiny_model(adapter=False)
    compressor = Compressor(model, SMALL, RereadPolicy())
    alone, together = [], []
    for number in range(3):
        chat = ChatSession(model, Budget(), "be brief", config=SMALL)
        chat.extend(DIALOGUE[: 2 * number + 2])
        alone.append((chat.cache.fork(), chat.token_ids))
        together.append((chat.cache.fork(), chat.token_ids))
    for dialogue in alone:
        compressor.close(*dialogue, HALF)
    compressor.close_all(together, HALF)
    for (one, _), (other, _) in zip(alone, together, strict=True):
        assert one.lengths == other.lengths
        for a, b in zip(one.state().values(), other.state().values(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
