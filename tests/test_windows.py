"""Layers with a sliding window slide as the base's do, and the others are compressed: dialogues of any length."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_generate import assert_same_caches
from tiny import DIALOGUE, random_adapter, talkative, tiny_base, tiny_tokenizer

from sonic_kv import Budget, ChatSession, SamplingConfig, SessionConfig, SonicModel, generate, sonic
from sonic_kv.cache.attention import attend_noting, masked_attention, outside
from sonic_kv.cache.cache import SessionCache
from sonic_kv.cli.loading import say_adapter
from sonic_kv.cli.options import PlanOptions
from sonic_kv.cli.plan import Way, dialogue_bytes, plan
from sonic_kv.data.options import SynthConfig
from sonic_kv.errors import FileError, UnsupportedModelError
from sonic_kv.model.adapter import Adapter
from sonic_kv.model.forward import with_cache
from sonic_kv.model.layout import interleave
from sonic_kv.model.nats import DamageScale
from sonic_kv.model.options import AdapterConfig
from sonic_kv.model.shapes import shape_of, windows_of
from sonic_kv.training.options import TrainConfig
from sonic_kv.training.trainer import Trainer

WINDOW = 48
MIXED = ["sliding_attention", "sliding_attention", "full_attention"]
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3": ("gemma3_text", {"layer_types": MIXED}),
    "gemma2": ("gemma2", {}),
    "mistral": ("mistral", {}),  # v0.1: all layers slide
}
SMALL = SessionConfig(16, 40)
GREEDY = SamplingConfig(max_new_tokens=8, temperature=0.0)
HALF, EVERYTHING, NOTHING = Budget(compression_ratio=0.5), Budget(max_entries=9999), Budget()
LONG = DIALOGUE * 2  # 283 tokens


def model_of(name: str, adapter: bool = False, **changes: Any) -> SonicModel:
    family, more = MODELS[name]
    base = talkative(tiny_base(family, sliding_window=WINDOW, **{**more, **changes}))
    return SonicModel(base, tiny_tokenizer(), random_adapter(base) if adapter else None)


def talk(model: SonicModel, budget: Budget, config: SessionConfig = SMALL, **options: Any) -> ChatSession:
    chat = ChatSession(model, budget, config=config, sampling=GREEDY, **options)
    chat.extend(LONG)
    return chat


@torch.no_grad()
def base_logits(chat: ChatSession, more: list[int]) -> torch.Tensor:
    return chat.model.base(torch.tensor([chat.token_ids + more])).logits[0, -len(more) :]


@pytest.mark.parametrize("budget", [NOTHING, EVERYTHING], ids=["never closed", "closed, nothing dropped"])
@pytest.mark.parametrize("name", MODELS)
def test_where_nothing_is_dropped_a_dialogue_of_any_length_is_the_bases(name: str, budget: Budget) -> None:
    chat, more = talk(model_of(name), budget), [70, 71, 72]
    assert chat.cache.logical_length > 4 * WINDOW
    whole = base_logits(chat, more)
    together = chat.model.feed(chat.cache.fork(), more, all_logits=True)
    cache = chat.cache.fork()
    one_by_one = torch.stack([chat.model.feed(cache, [token]) for token in more])
    for found in (together, one_by_one):
        torch.testing.assert_close(found, whole, atol=1e-5, rtol=0)


def test_a_model_that_slides_everywhere_runs_as_the_base_whatever_the_budget() -> None:
    chat, more = talk(model_of("mistral"), Budget(compression_ratio=0.9)), [70, 71, 72]
    found = chat.model.feed(chat.cache.fork(), more, all_logits=True)
    torch.testing.assert_close(found, base_logits(chat, more), atol=1e-5, rtol=0)
    assert all(set(layer.counts) == {WINDOW - 1} for layer in chat.cache.layers)
    assert chat.stats.bytes < 0.3 * chat.cache.logical_length * chat.model.bytes_per_token


@pytest.mark.parametrize("policy", ["reread", "recent", "streaming", "learned"])
@pytest.mark.parametrize("name", ["gemma3", "gemma2"])
def test_full_layers_are_compressed_and_windows_hold_what_they_reach(name: str, policy: Any) -> None:
    chat = talk(model_of(name, adapter=policy == "learned"), HALF, policy=policy)
    closed = chat.cache.lengths.closed
    for layer in chat.cache.layers:
        if layer.window is None:
            assert sum(layer.counts) / 2 <= 0.5 * chat.cache.lengths.history + 1
        else:
            assert layer.positions[0].tolist() == [[*range(closed - WINDOW + 1, closed)]] * 2
    assert chat.cache.lengths.memory <= 0.5 * chat.cache.lengths.history
    assert chat.send("hi").text


@torch.no_grad()
def test_what_windows_hold_are_the_bases_own_keys() -> None:
    """The first layers see no layer that is compressed."""
    chat = talk(model_of("gemma3"), HALF)
    cache = SessionCache(3)
    chat.model.base(torch.tensor([chat.token_ids]), **with_cache(chat.model.base, cache))
    for mine, theirs in zip(chat.cache.layers[:2], cache.layers[:2], strict=True):
        size = WINDOW - 1 + chat.cache.open_length
        torch.testing.assert_close(mine.keys[:, :, -size:], theirs.keys[:, :, -size:], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", MODELS)
def test_re_encoding_that_changes_nothing_is_plain_selection(name: str) -> None:
    """Rows that are read again look through the windows that they had."""
    family, more = MODELS[name]
    base = tiny_base(family, sliding_window=WINDOW, **more)
    model = SonicModel(base, tiny_tokenizer(), Adapter(base, AdapterConfig(lora_rank=4)).eval())
    caches = [
        talk(model, HALF, replace(SMALL, reencode=reencode, candidates=100.0)).cache
        for reencode in (True, False)
    ]
    assert_same_caches(caches[:1], caches[1:])


@pytest.mark.parametrize("adapter", [False, True], ids=["no adapter", "adapter"])
@pytest.mark.parametrize("name", MODELS)
def test_batches_forks_files_and_transformers_go_on_as_the_session(
    name: str, adapter: bool, tmp_path: Path
) -> None:
    model = model_of(name, adapter)
    chat = talk(model, HALF)
    chat.save(tmp_path / "chat")
    again = ChatSession.load(model, tmp_path / "chat")
    ids = torch.tensor([model.format.prompt([*chat.messages, {"role": "user", "content": "hi"}])])
    prompt = ids[0, len(chat.token_ids) :].tolist()
    other = ChatSession(model, NOTHING, config=SMALL)
    other.extend(DIALOGUE)
    batch = generate(model, [prompt, prompt], [chat.fork().cache, other.fork().cache], GREEDY)
    plain = model.base.generate(
        ids, **with_cache(model.base, chat.fork().cache), max_new_tokens=8, do_sample=False
    )
    with sonic(model, HALF, config=SMALL):
        inside = model.base.generate(ids, max_new_tokens=8, do_sample=False)
    written = chat.fork().send("hi").text
    assert written == again.send("hi").text == batch[0].text
    assert written == model.tokenizer.decode(plain[0, ids.shape[1] :])
    assert written == model.tokenizer.decode(inside[0, ids.shape[1] :])
    assert_same_caches([again.cache], [(chat.send("hi"), chat)[1].cache])


def test_few_bits_are_for_what_is_compressed() -> None:
    chat = talk(model_of("gemma3"), HALF, replace(SMALL, bits=4))
    raw = talk(model_of("gemma3"), HALF)
    assert chat.stats.bytes < raw.stats.bytes
    assert torch.equal(chat.cache.layers[0].keys, raw.cache.layers[0].keys)
    assert chat.send("hi").text


def test_a_budget_in_bytes_counts_what_windows_hold() -> None:
    most = 30_000
    chat = talk(model_of("gemma3"), Budget(max_bytes=most), replace(SMALL, min_segment_tokens=1))
    assert 0.7 * most < chat.cache.fork().nbytes <= most


def test_a_lower_budget_leaves_windows_alone() -> None:
    chat = talk(model_of("gemma3"), HALF)
    before = chat.cache.layers[0].keys
    chat.set_budget(Budget(compression_ratio=0.9))
    assert torch.equal(chat.cache.layers[0].keys, before)
    assert chat.cache.lengths.memory <= 0.1 * chat.cache.lengths.history + 1


@pytest.mark.parametrize("name", MODELS)
def test_damage_is_that_of_what_is_compressed(name: str) -> None:
    model = model_of(name, adapter=True)
    assert model.adapter is not None
    model.adapter.scale = DamageScale(factor=2e-3, power=0.8)
    chat = talk(model, Budget(max_damage=0.01))
    if name == "mistral":
        assert chat.stats.predicted_damage is None
        return
    assert chat.stats.predicted_damage is not None
    assert 0.0 < chat.stats.predicted_damage <= 0.01
    chat.set_budget(Budget(max_damage=0.02))
    chat.set_budget(Budget(compression_ratio=0.9))
    assert chat.stats.predicted_damage > 0.01


@pytest.mark.parametrize("name", MODELS)
def test_a_dialogue_outlives_the_models_positions(name: str) -> None:
    chat = talk(model_of(name, max_position_embeddings=160), Budget(compression_ratio=0.8))
    assert chat.cache.logical_length > 160 > chat.cache.next_position
    assert chat.send("hi").text


def test_attention_that_is_noted_looks_through_the_window() -> None:
    torch.manual_seed(0)
    query, keys, values = (torch.randn(1, 2, 20, 8) for _ in range(3))
    own = torch.arange(12, 20)
    far = outside(own, 20, 5) | (torch.arange(20) > own[:, None])
    expected = masked_attention(query[:, :, 12:], keys, values, ~far[None, None], scale=0.3, softcap=None)
    found, largest = attend_noting(
        query[:, :, 12:],
        list(keys[0, :, :12]),
        list(values[0, :, :12]),
        keys[:, :, 12:],
        values[:, :, 12:],
        scale=0.3,
        softcap=None,
        window=5,
    )
    torch.testing.assert_close(found, expected)
    assert all(bool((of[:8] == 0).all() and (of[8:] > 0).all()) for of in largest)


# --- what does not slide ------------------------------------------------------------------------


def test_one_pass_and_training_say_what_they_cannot_do(tmp_path: Path) -> None:
    model = model_of("gemma3", adapter=True)
    ids = torch.arange(40, 40 + WINDOW + 1)[None]
    layout = interleave(ids.shape[1], 1, [], [])
    alive = [layout.default_lifetime()[:, None]] * 3
    with pytest.raises(UnsupportedModelError, match="within the model's window of 48 tokens") as caught:
        model.one_pass(ids, layout, alive)
    assert "\n" not in str(caught.value)
    for rank, longest in ((4, 40), (0, 80)):
        config = replace(TrainConfig(), max_tokens=longest, out=str(tmp_path))
        with pytest.raises(UnsupportedModelError, match="max_tokens to at most 48, and lora_rank to 0"):
            Trainer(model, AdapterConfig(lora_rank=rank), SynthConfig(), config)


def test_a_cache_that_does_not_slide_and_compact_positions_are_refused() -> None:
    model = model_of("gemma3")
    with pytest.raises(UnsupportedModelError, match=r"model\.new_cache\(\)"):
        generate(model, [[40] * WINDOW], [SessionCache(3)], GREEDY)
    assert generate(model, [[40] * WINDOW], None, GREEDY)
    with pytest.raises(UnsupportedModelError, match="positions='original'"):
        ChatSession(model, config=replace(SMALL, positions="compact"))


def test_a_session_whose_windows_were_compressed_is_refused() -> None:
    chat = talk(model_of("gemma3"), HALF)
    header, tensors = chat.state()
    assert ChatSession.from_state(chat.model, header, tensors).send("hi").text == chat.fork().send("hi").text
    tensors["0.positions"] = tensors["0.positions"] - 1
    with pytest.raises(FileError, match="make it again"):
        ChatSession.from_state(chat.model, header, tensors)


# --- what is planned ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_plan_counts_windows_as_a_session_does(name: str) -> None:
    model = model_of(name)
    shape = shape_of(model.config.to_dict(), name)
    assert shape.windows == model.windows
    for tokens in (20, 300):
        assert 2 * dialogue_bytes(shape, tokens, Way(0.0, None)) == model.full_bytes(tokens)


def test_windows_of_files_of_any_version() -> None:
    file: dict[str, Any] = {"num_hidden_layers": 6, "max_position_embeddings": 512, "sliding_window": 64}
    assert windows_of(file) == (64,) * 6
    assert windows_of({**file, "model_type": "gemma3_text"}) == (64,) * 5 + (None,)
    assert windows_of({**file, "sliding_window_pattern": 3}) == (64, 64, None) * 2
    assert windows_of({**file, "use_sliding_window": False}) == (None,) * 6
    assert windows_of({**file, "use_sliding_window": True, "max_window_layers": 4}) == (None,) * 4 + (64,) * 2
    assert windows_of({**file, "sliding_window": 512}) == windows_of({**file, "sliding_window": None})


def test_chat_and_serve_say_that_there_is_nothing_to_compress(capsys: pytest.CaptureFixture[str]) -> None:
    say_adapter(model_of("mistral", adapter=True))
    assert "newest 48 tokens alone" in capsys.readouterr().err
    say_adapter(model_of("gemma3", adapter=True))
    assert not capsys.readouterr().err


def test_plan_says_that_a_model_which_slides_everywhere_saves_nothing(tmp_path: Path) -> None:
    model = model_of("mistral")
    model.base.save_pretrained(tmp_path)
    found = plan(PlanOptions(), str(tmp_path))
    assert found["slower_from_tokens"] is None
    assert len({str(row["bytes"]) for row in found["rows"]}) == 1
