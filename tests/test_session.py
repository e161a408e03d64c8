"""Laws of a dialogue whose past is compressed as it grows."""

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import DIALOGUE, FAMILIES, SHAPE, random_adapter, tiny_base, tiny_model, tiny_tokenizer
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import DynamicCache

from sonic_kv.cache.cache import SessionCache
from sonic_kv.cache.growing import SPARE_ENTRIES, SPARE_SHARE
from sonic_kv.compress.compressor import Compressor
from sonic_kv.compress.options import Budget, SessionConfig
from sonic_kv.errors import (
    AdapterError,
    BudgetError,
    ContextLengthError,
    FileError,
    MessageError,
    NumericalError,
    SonicError,
)
from sonic_kv.model.adapter import Adapter
from sonic_kv.model.encoded import segment_ends
from sonic_kv.model.forward import with_cache
from sonic_kv.model.model import SonicModel
from sonic_kv.model.options import AdapterConfig
from sonic_kv.session.options import SamplingConfig
from sonic_kv.session.session import ChatSession

HALF = Budget(compression_ratio=0.5)
SMALL = SessionConfig(min_segment_tokens=16, max_segment_tokens=40)
EVERY_TURN = SessionConfig(min_segment_tokens=1, max_segment_tokens=40)
BRIEF = SamplingConfig(max_new_tokens=6)
KINDS: dict[str, Any] = {
    "anchored": {},
    "learned": {"form": "learned"},
    "importance-only": {"lora_rank": 0},
    "no-adapter": False,
}


def talk(
    model: SonicModel, budget: Budget = HALF, config: SessionConfig = SMALL, exchanges: int = 3
) -> ChatSession:
    """A session over the first gold exchanges."""
    chat = ChatSession(model, budget, system="be brief", config=config, sampling=BRIEF)
    chat.extend(DIALOGUE[: 2 * exchanges])
    return chat


def tensors(cache: SessionCache) -> list[Tensor]:
    return [tensor for layer in cache.layers for tensor in layer.state().values()]


def state(chat: ChatSession) -> dict[str, Any]:
    """Everything that a call may change, copied."""
    return {
        "messages": [dict(message) for message in chat.messages],
        "token_ids": list(chat.token_ids),
        "budget": chat.budget,
        "last_reply": chat.last_reply,
        "lengths": chat.cache.lengths,
        "passed": [layer.passed for layer in chat.cache.layers],
        "tensors": [tensor.clone() for tensor in tensors(chat.cache)],
    }


def assert_same(a: dict[str, Any], b: dict[str, Any], tolerance: float = 0.0) -> None:
    assert {k: v for k, v in a.items() if k != "tensors"} == {k: v for k, v in b.items() if k != "tensors"}
    for x, y in zip(a["tensors"], b["tensors"], strict=True):
        torch.testing.assert_close(x, y, atol=tolerance, rtol=0)


def say(monkeypatch: pytest.MonkeyPatch, *replies: str) -> None:
    """Let the model say these texts, token by token, whatever its logits are."""
    tokenizer = tiny_tokenizer()
    script = iter([i for text in replies for i in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]])
    monkeypatch.setattr("sonic_kv.session.dialogue.choose", lambda *_: next(script))


# --- nothing compressed -------------------------------------------------------------------------


class Chunks(SonicModel):
    """Remembers every chunk fed, its logits, and where it began."""

    def feed(self, cache: SessionCache, token_ids: Sequence[int], *, all_logits: bool = False) -> Tensor:
        self.__dict__.setdefault("starts", []).append(cache.next_position)
        logits = super().feed(cache, token_ids, all_logits=True)
        self.__dict__.setdefault("fed", []).append((list(token_ids), logits))
        return logits if all_logits else logits[-1]


@pytest.mark.parametrize("with_adapter", [False, True], ids=["bare", "adapter"])
@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_compressed_is_the_base_model_bit_for_bit(family: str, with_adapter: bool) -> None:
    base = tiny_base(family)
    model = Chunks(base, tiny_tokenizer(), random_adapter(base) if with_adapter else None)
    chat = ChatSession(model, Budget(), sampling=BRIEF)
    chat.extend(DIALOGUE[:4])
    chat.send("and?")
    plain = DynamicCache(config=base.config)
    with torch.no_grad():
        for start, (ids, logits) in zip(model.starts, model.fed, strict=True):
            if (
                start < plain.get_seq_length()
            ):  # taken back: the template writes it otherwise than it was sampled
                plain.crop(start - plain.get_seq_length())
            expected = base(torch.tensor([ids]), **with_cache(base, plain)).logits[0]
            assert torch.equal(logits, expected)


def test_the_first_token_takes_one_model_run() -> None:
    model = Chunks(tiny_base(), tiny_tokenizer())
    chat = ChatSession(model, HALF, config=SMALL, sampling=SamplingConfig(max_new_tokens=1))
    model.fed = []
    reply = chat.send("where?")
    assert len(model.fed[0][0]) == reply.usage.prompt_tokens
    chat.send("x" * 60)  # more than a segment takes: in pieces, closed on the way
    assert max(len(ids) for ids, _ in model.fed) <= SMALL.max_segment_tokens
    assert chat.cache.logical_length == len(chat.token_ids) == sum(len(ids) for ids, _ in model.fed) + 1


@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("budget", [Budget(), Budget(compression_ratio=0.0), Budget(max_entries=10_000)])
def test_a_budget_that_removes_nothing_changes_nothing(budget: Budget, positions: Any) -> None:
    config = SessionConfig(min_segment_tokens=16, max_segment_tokens=512, positions=positions)
    base = tiny_base()
    model = Chunks(base, tiny_tokenizer(), random_adapter(base))
    ChatSession(model, budget, config=config).extend(DIALOGUE)
    plain = DynamicCache(config=base.config)
    with torch.no_grad():
        for ids, logits in model.fed:
            assert torch.equal(logits, base(torch.tensor([ids]), **with_cache(base, plain)).logits[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_making_and_using_an_adapter_leaves_the_base_bit_identical(family: str) -> None:
    base = tiny_base(family)
    ids = torch.randint(0, 256, (1, 20), generator=torch.Generator().manual_seed(0))
    model = SonicModel(base, tiny_tokenizer())
    with torch.no_grad():
        before = base(ids).logits
        model.adapter = random_adapter(base)
        made = base(ids).logits
        talk(model)
        used = base(ids).logits
    assert torch.equal(before, made)
    assert torch.equal(before, used)


# --- untrained is eviction ----------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_untrained_nexus_is_its_anchors_raw_entry(family: str) -> None:
    base = tiny_base(family)
    model = SonicModel(base, tiny_tokenizer(), Adapter(base, AdapterConfig(lora_rank=4)).eval())
    chat = ChatSession(model, HALF, config=SMALL)
    chat.extend(DIALOGUE[:2])
    assert len(chat.cache.lengths.segment_starts) == 1
    raw = DynamicCache(config=base.config)
    with torch.no_grad():
        base(torch.tensor([chat.token_ids]), **with_cache(base, raw))
    for memory, full in zip(chat.cache.memory(), raw.layers, strict=True):
        for head, at in enumerate(memory.positions):
            torch.testing.assert_close(memory.keys[head], full.keys[0, head, at], atol=1e-5, rtol=0)
            torch.testing.assert_close(memory.values[head], full.values[0, head, at], atol=1e-5, rtol=0)


@pytest.mark.parametrize("positions", ["original", "compact"])
def test_untrained_reencoding_is_plain_selection_over_a_whole_dialogue(positions: Any) -> None:
    base = tiny_base()
    model = SonicModel(base, tiny_tokenizer(), Adapter(base, AdapterConfig(lora_rank=4)).eval())
    sessions = []
    for reencode in (True, False):
        config = SessionConfig(16, 40, positions=positions, reencode=reencode, refit=False, candidates=100.0)
        sessions.append(talk(model, config=config, exchanges=4))
    assert_same(state(sessions[0]), state(sessions[1]), tolerance=1e-5)


# --- save, load, fork ---------------------------------------------------------------------------

CONTINUE = """
import json, sys
from pathlib import Path
from test_session import continued
from tiny import tiny_model
from sonic_kv.session.session import ChatSession
print(json.dumps(continued(ChatSession.load(tiny_model(), sys.argv[1]))))
"""


def continued(chat: ChatSession) -> dict[str, Any]:
    """What a session says and holds after two more turns."""
    texts = [chat.send("where?").text, chat.send("and the code, again?").text]
    sums = [float(tensor.double().abs().sum()) for tensor in tensors(chat.cache)]
    return {"texts": texts, "token_ids": chat.token_ids, "messages": chat.messages, "sums": sums}


def test_save_then_load_in_a_new_process_then_continue_is_uninterrupted(tmp_path: Path) -> None:
    chat = talk(tiny_model())
    chat.save(tmp_path / "chat.safetensors")
    tests = Path(__file__).parent
    run = subprocess.run(
        [sys.executable, "-c", CONTINUE, str(tmp_path / "chat.safetensors")],
        capture_output=True,
        text=True,
        cwd=tests,
        env={**os.environ, "PYTHONPATH": f"{tests}:{tests.parent / 'src'}"},
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == continued(chat)


@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("kind", KINDS)
def test_loading_what_was_saved_is_the_session_itself(kind: str, positions: Any, tmp_path: Path) -> None:
    model = tiny_model(adapter=KINDS[kind])
    chat = talk(model, config=SessionConfig(16, 40, positions=positions))
    chat.save(tmp_path / "chat.safetensors")
    loaded = ChatSession.load(model, tmp_path / "chat.safetensors")
    assert_same(state(chat) | {"last_reply": None}, state(loaded))
    assert loaded.config == chat.config
    assert loaded.sampling == chat.sampling
    assert replace(loaded.stats, bytes=0) == replace(chat.stats, bytes=0)
    assert_no_slack(loaded.cache)  # nor is the file's own storage held
    assert continued(loaded) == continued(chat)


def test_a_session_without_a_message_can_be_saved(tmp_path: Path) -> None:
    model = tiny_model()
    for system in (None, "be brief"):
        chat = ChatSession(model, system=system, sampling=BRIEF)
        chat.save(tmp_path / "chat.safetensors")
        assert continued(ChatSession.load(model, tmp_path / "chat.safetensors")) == continued(chat)


def test_session_of_another_model_or_adapter_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "chat.safetensors"
    talk(tiny_model()).save(path)
    with pytest.raises(AdapterError, match="hidden_size") as caught:
        ChatSession.load(tiny_model(hidden_size=64), path)
    assert "\n" not in str(caught.value)
    with pytest.raises(AdapterError, match="weights"):
        ChatSession.load(tiny_model(seed=3), path)
    with pytest.raises(AdapterError, match="adapter"):
        ChatSession.load(tiny_model(adapter={"seed": 5}), path)
    with pytest.raises(AdapterError, match="adapter"):
        ChatSession.load(tiny_model(adapter=False), path)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "missing", "folder", "text"])
def test_damaged_session_file_is_one_clear_error(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "chat.safetensors"
    model = tiny_model()
    talk(model).save(path)
    data = bytearray(path.read_bytes())
    if damage == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        data[-5] ^= 1
        path.write_bytes(data)
    elif damage in ("empty", "text"):
        path.write_bytes(b"" if damage == "empty" else b"once upon a time\n" * 20)
    else:
        path.unlink()
        if damage == "folder":
            path.mkdir()
    with pytest.raises(FileError) as caught:
        ChatSession.load(model, path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_fork_leaves_the_parent_untouched_and_the_other_way_round() -> None:
    chat = talk(tiny_model())
    before = state(chat)
    fork = chat.fork()
    fork.send("where?")
    fork.set_budget(Budget(compression_ratio=0.9))
    assert_same(before, state(chat))
    forked = state(fork)
    chat.send("something else entirely, at some length?")
    assert_same(forked, state(fork))


def test_fork_continues_as_the_parent_would() -> None:
    chat = talk(tiny_model())
    assert continued(chat.fork()) == continued(chat)


def place(cache: SessionCache) -> int:
    keys = cache.layers[0].heads()[0][0]
    return keys.data_ptr()


def test_a_token_is_appended_in_place_and_a_fork_that_was_overtaken_goes_its_own_way() -> None:
    model = tiny_model()
    chat = talk(model)
    model.feed(chat.cache, [65])
    where = place(chat.cache)
    fork = chat.cache.fork()
    model.feed(chat.cache, [66, 67])
    assert place(chat.cache) == where
    ours = [tensor.clone() for tensor in tensors(chat.cache)]
    model.feed(fork, [68])
    assert place(fork) != where
    assert all(torch.equal(x, y) for x, y in zip(ours, tensors(chat.cache), strict=True))
    expected = chat.cache.fork()
    expected.drop_newest(2)
    model.feed(expected, [68])
    assert all(torch.equal(x, y) for x, y in zip(tensors(fork), tensors(expected), strict=True))


def test_appending_copies_what_is_there_once_in_a_sixteenth() -> None:
    model, cache = tiny_model(), SessionCache(3)
    model.feed(cache, list(range(160)))
    places = set()
    for token in range(150):
        model.feed(cache, [token])
        places.add(cache.layers[1].values.data_ptr())
    assert len(places) <= 150 // SPARE_ENTRIES + 2


# --- budgets ------------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("kind", ["anchored", "importance-only", "no-adapter"])
def test_lowering_the_budget_is_compressing_with_it_in_the_first_place(kind: str, positions: Any) -> None:
    """Exact for one closed segment whose candidates suffice: later segments see less memory from the start.

    Refitted values answer for what was dropped at that time.
    """
    model = tiny_model(adapter=KINDS[kind])
    config = SessionConfig(16, 80, positions=positions, refit=False, candidates=100.0)
    low = Budget(compression_ratio=0.8)
    chat, direct = talk(model, HALF, config, exchanges=1), talk(model, low, config, exchanges=1)
    assert len(chat.cache.lengths.segment_starts) == 1
    chat.set_budget(low)
    assert_same(state(chat), state(direct), tolerance=1e-5)


@pytest.mark.parametrize("kind", ["anchored", "no-adapter"])
def test_lowering_the_budget_in_steps_is_lowering_it_once(kind: str) -> None:
    chat = talk(tiny_model(adapter=KINDS[kind]), Budget(compression_ratio=0.3), exchanges=4)
    once = chat.fork()
    for ratio in (0.5, 0.75, 0.9):
        chat.set_budget(Budget(compression_ratio=ratio))
    once.set_budget(Budget(compression_ratio=0.9))
    assert_same(state(chat), state(once))


@pytest.mark.parametrize("positions", ["original", "compact"])
def test_lowering_the_budget_does_not_run_the_model(positions: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = talk(tiny_model(), config=SessionConfig(16, 40, positions=positions), exchanges=4)
    memory = chat.stats.memory
    monkeypatch.setattr(chat.model.base, "forward", None)
    chat.set_budget(Budget(compression_ratio=0.9))
    assert chat.stats.memory < memory


@pytest.mark.parametrize("budget", [HALF, Budget(max_entries=60), Budget(max_bytes=40_000)])
def test_setting_the_same_budget_again_changes_nothing(budget: Budget) -> None:
    """Also while a segment is open, which comes on top until it is closed."""
    chat = talk(tiny_model(), budget)
    chat.extend([{"role": "user", "content": "still open, and rather long"}])
    before = state(chat)
    chat.set_budget(budget)
    assert_same(before, state(chat))


def test_a_budget_after_none_takes_hold_when_the_dialogue_is_next_closed() -> None:
    chat = talk(tiny_model(), Budget())
    chat.set_budget(Budget(compression_ratio=0.9))
    assert chat.stats.memory == 0
    chat.extend(DIALOGUE[6:])
    stats = chat.stats
    assert stats.memory == pytest.approx(0.1 * sum(s.tokens for s in stats.segments), abs=1)
    assert stats.entries < 0.4 * stats.logical_tokens


def test_raising_the_budget_brings_nothing_back_and_holds_from_then_on() -> None:
    chat = talk(tiny_model(), Budget(compression_ratio=0.9))
    before = [tensor.clone() for tensor in tensors(chat.cache)]
    chat.set_budget(Budget(compression_ratio=0.2))
    assert all(torch.equal(x, y) for x, y in zip(before, tensors(chat.cache), strict=True))
    chat.extend([*DIALOGUE[6:], {"role": "user", "content": "a long one, so that it closes"}, DIALOGUE[1]])
    assert chat.stats.memory > len(before) / len(chat.cache.layers)


@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spare", [1, 2, 15])
def test_limit_in_entries_holds_after_every_turn(kind: str, spare: int, positions: Any) -> None:
    model = tiny_model(adapter=KINDS[kind])
    prefix = len(model.format.prefix())
    config = SessionConfig(1, 40, positions=positions)
    chat = ChatSession(model, Budget(max_entries=prefix + spare), config=config)
    for turn in range(4):
        chat.extend(DIALOGUE[2 * turn : 2 * turn + 2])
        assert chat.stats.entries == prefix + spare
        assert chat.stats.open == 0


@pytest.mark.parametrize("family", ["qwen3", "gemma3_text"])
@pytest.mark.parametrize("limit", [9_000, 20_000])
def test_limit_in_bytes_holds_after_every_turn(limit: int, family: str) -> None:
    chat = ChatSession(tiny_model(family), Budget(max_bytes=limit), config=EVERY_TURN)
    for turn in range(4):
        chat.extend(DIALOGUE[2 * turn : 2 * turn + 2])
        assert chat.stats.bytes <= limit
    assert chat.stats.bytes > 0.9 * limit


def test_set_budget_that_cannot_hold_the_prefix_is_refused() -> None:
    chat = talk(tiny_model())
    before = state(chat)
    for budget in (Budget(max_entries=chat.stats.prefix), Budget(max_bytes=64)):
        with pytest.raises(BudgetError, match="raise the budget"):
            chat.set_budget(budget)
        with pytest.raises(BudgetError, match="raise the budget"):
            ChatSession(chat.model, budget, system="be brief")
    assert_same(before, state(chat))


# --- bytes --------------------------------------------------------------------------------------


def storages(cache: SessionCache) -> list[StorageWeakRef]:
    return [
        StorageWeakRef(tensor.untyped_storage()) for layer in cache.layers for tensor in layer.tensors()[:2]
    ]


def assert_little_slack(cache: SessionCache) -> None:
    """The storages are what is reported, and a sixteenth or 32 entries larger than the tensors at most."""
    held = [tensor for layer in cache.layers for tensor in layer.tensors()]
    assert cache.nbytes == sum(tensor.untyped_storage().nbytes() for tensor in held)
    for layer in cache.layers:
        for tensor in layer.tensors()[:2]:
            spare = (len(tensor) - sum(layer.sizes)) / len(layer.sizes)
            assert spare <= max(SPARE_ENTRIES, layer.longest // SPARE_SHARE)


def assert_no_slack(cache: SessionCache) -> None:
    """Every tensor's storage is as large as the tensor, and the sum is what is reported."""
    held = [tensor for layer in cache.layers for tensor in layer.tensors()]
    assert all(len(layer.tensors()[0]) == sum(layer.sizes) for layer in cache.layers)
    assert all(tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size() for tensor in held)
    assert cache.nbytes == sum(tensor.numel() * tensor.element_size() for tensor in held)


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_closing_a_segment_frees_its_raw_storage(kind: str, heads: int) -> None:
    chat = ChatSession(tiny_model(adapter=KINDS[kind], num_key_value_heads=heads), HALF, config=SMALL)
    chat.extend(DIALOGUE[:1])
    raw, entries = storages(chat.cache), chat.stats.entries
    assert not any(storage.expired() for storage in raw)
    assert_little_slack(chat.cache)
    chat.extend(DIALOGUE[1:2])
    gc.collect()
    assert len(chat.cache.lengths.segment_starts) == 1
    assert all(storage.expired() for storage in raw)
    assert chat.stats.entries < entries
    assert_little_slack(chat.cache)


@pytest.mark.parametrize("ratio", [0.5, 0.8, 0.9])
def test_measured_bytes_fall_as_the_ratio_says(ratio: float) -> None:
    model = tiny_model()
    full = talk(model, Budget(), exchanges=4).stats
    chat = talk(model, Budget(compression_ratio=ratio), EVERY_TURN, exchanges=4)
    stats = chat.stats
    assert stats.full_bytes == full.full_bytes <= full.bytes
    per_entry = full.full_bytes / full.entries
    # 8 bytes of bookkeeping (position and score) beside the 2 × 8 × 4 bytes of an entry of this model
    expected = per_entry * (stats.prefix + (1 - ratio) * (full.entries - stats.prefix) * (64 + 8) / 64)
    assert stats.bytes == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("heads", [1, 2])
def test_taking_back_a_stop_text_frees_its_storage(heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = ChatSession(tiny_model(num_key_value_heads=heads), HALF, config=SMALL)
    say(monkeypatch, "fine STOP")
    chat.send("hi", SamplingConfig(stop=("STOP",)))
    assert_little_slack(chat.cache)


# --- stats --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_stats_add_up(kind: str) -> None:
    chat = ChatSession(tiny_model(adapter=KINDS[kind]), HALF, config=SMALL)
    assert chat.stats.segments == ()
    for message in DIALOGUE:
        chat.extend([message])
        stats = chat.stats
        assert stats.logical_tokens == len(chat.token_ids) == chat.cache.get_seq_length()
        assert stats.entries == stats.prefix + stats.memory + stats.open
        sizes = [len(key) for layer in chat.cache.layers for key in layer.heads()[0]]
        assert stats.entries == sum(sizes) / len(sizes)
        assert stats.bytes == chat.cache.nbytes
        assert stats.logical_tokens == stats.prefix + stats.open + sum(s.tokens for s in stats.segments)
        assert stats.memory == pytest.approx(sum(s.entries for s in stats.segments), abs=1e-4)
    assert len(stats.segments) >= 2


# --- segments -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["anchored", "no-adapter"])
def test_sending_and_extending_the_same_tokens_is_the_same_session(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Segments close at the same places whether a reply is written token by token or fed at once."""
    config = SessionConfig(min_segment_tokens=10, max_segment_tokens=14)
    model = tiny_model(adapter=KINDS[kind])
    sent, fed = (ChatSession(model, HALF, config=config) for _ in range(2))
    say(monkeypatch, *(message["content"] for message in DIALOGUE[1::2]))
    for turn in range(4):
        user, assistant = DIALOGUE[2 * turn : 2 * turn + 2]
        assert sent.send(user["content"]).text == assistant["content"]
        fed.extend([user, assistant])
        assert sent.token_ids == fed.token_ids
        assert sent.cache.lengths == fed.cache.lengths
    assert_same(state(sent) | {"last_reply": None}, state(fed), tolerance=1e-5)


@pytest.mark.parametrize(("least", "most"), [(1, 7), (16, 40), (30, 33), (10, 512)])
def test_a_session_closes_segments_where_segment_ends_says(
    least: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sonic_kv.compress.closing.MIN_GROUPS", 1000)  # the oldest would be counted as one
    model = tiny_model()
    encoded = model.format.encode(DIALOGUE)
    chat = ChatSession(model, HALF, config=SessionConfig(least, most))
    chat.extend(DIALOGUE)
    assert chat.token_ids == encoded.token_ids
    ends = segment_ends(encoded, least, most)
    assert [*chat.cache.lengths.segment_starts, chat.cache.lengths.closed] == [encoded.prefix_length, *ends]


def test_a_template_without_prefix_and_a_session_without_tokens_work(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer("{% for m in messages %}{{ m['content'] }}<|end|>{% endfor %}")
    base = tiny_base()
    model = SonicModel(base, tokenizer, random_adapter(base))
    chat = ChatSession(model, HALF, config=SMALL, sampling=BRIEF)
    assert chat.stats.entries == chat.stats.bytes == 0
    chat.set_budget(Budget(max_bytes=20_000))
    chat.save(tmp_path / "empty.safetensors")
    chat = ChatSession.load(model, tmp_path / "empty.safetensors")
    chat.extend(DIALOGUE[:1])
    chat.send(None)  # nothing to feed but the last token again
    chat.send("and where does she live now, in which street?")
    assert chat.stats.prefix == 0
    assert chat.stats.segments


# --- replies ------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", ["own", "no-generation-prompt"])
def test_answering_an_extended_message_is_sending_it(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "{{ bos_token }}{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    tokenizer = tiny_tokenizer() if template == "own" else tiny_tokenizer(text)
    base = tiny_base()
    model = SonicModel(base, tokenizer, random_adapter(base))
    sent, answered = (ChatSession(model, HALF, config=SMALL, sampling=BRIEF) for _ in range(2))
    first = sent.send("my sister Ada lives in Oslo")
    answered.extend(DIALOGUE[:1])
    assert answered.send(None).text == first.text
    assert answered.token_ids == sent.token_ids
    assert answered.messages == sent.messages
    assert_same(state(sent) | {"last_reply": None}, state(answered) | {"last_reply": None}, tolerance=1e-5)


def test_what_a_session_fed_is_its_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop texts, also across tokens and characters, leave nothing in the cache that is not said."""
    model = tiny_model()
    chat = ChatSession(model, Budget(), system="be brief")
    tokenizer = model.tokenizer
    for reply, said in [
        ("Zoë 東京 🙂STOP and", "Zoë 東京 🙂"),
        ("é##STOP", "é##"),
        ("", ""),
        ("STOP", ""),
        ("plain", "plain"),
    ]:
        say(monkeypatch, reply)
        got = chat.send("hi", SamplingConfig(stop=("STOP",)))
        assert got.text == said
        assert got.finish_reason == "stop"
        assert chat.token_ids == model.format.encode(chat.messages).token_ids
        assert chat.cache.logical_length == len(chat.token_ids)
        assert tokenizer.decode(chat.token_ids).endswith(f"<|assistant|>{said}<|end|>")


def test_a_reply_cut_by_length_is_closed_all_the_same() -> None:
    chat = ChatSession(tiny_model(), Budget(), sampling=BRIEF)
    reply = chat.send("hi")
    assert reply.finish_reason == "length"
    assert reply.usage.completion_tokens == 6
    assert chat.model.tokenizer.decode(chat.token_ids).endswith("<|end|>")


def test_streamed_pieces_are_the_reply() -> None:
    a, b = (talk(tiny_model()) for _ in range(2))
    pieces = list(a.stream("where?", SamplingConfig(max_new_tokens=30)))
    reply = b.send("where?", SamplingConfig(max_new_tokens=30))
    assert "".join(pieces) == reply.text
    assert a.last_reply is not None
    assert a.last_reply.text == reply.text
    assert_same(state(a) | {"last_reply": None}, state(b) | {"last_reply": None})


# --- failures -----------------------------------------------------------------------------------

LONG = {"role": "user", "content": "x" * 700}


def _nan_after(chat: ChatSession, monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    feed, count = chat.model.feed, iter(range(1000))

    def failing(*args: Any, **options: Any) -> Tensor:
        logits = feed(*args, **options)
        return logits * torch.nan if next(count) >= calls else logits

    monkeypatch.setattr(chat.model, "feed", failing)


def _no_rebasing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Compressor, "_rebase", lambda *_: None)


def _raise(error: BaseException) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


def _interrupted(chat: ChatSession, monkeypatch: pytest.MonkeyPatch) -> None:
    feed, count = chat.model.feed, iter(range(1000))
    monkeypatch.setattr(
        chat.model,
        "feed",
        lambda *a, **k: _raise(KeyboardInterrupt())() if next(count) == 3 else feed(*a, **k),
    )


def _abandon(chat: ChatSession, *, delete: bool) -> None:
    stream: Iterator[str] = chat.stream("where?", SamplingConfig(max_new_tokens=60))
    next(stream)
    assert len(chat.token_ids) > 0
    if delete:
        del stream
        gc.collect()
    else:
        stream.close()  # type: ignore[attr-defined]


def _send_long_replies(chat: ChatSession) -> None:
    chat.send("go on", SamplingConfig(max_new_tokens=60))


FAILURES: dict[str, tuple[type[BaseException] | None, Callable[[ChatSession, pytest.MonkeyPatch], Any]]] = {
    "message too long": (ContextLengthError, lambda c, m: (_no_rebasing(m), c.send("x" * 700))),
    "second message too long": (
        ContextLengthError,
        lambda c, m: (_no_rebasing(m), c.extend([*DIALOGUE[:4], LONG])),
    ),
    "half a character": (
        MessageError,
        lambda c, m: c.extend([*DIALOGUE[:2], {**DIALOGUE[0], "content": "\ud83d"}]),
    ),
    "half a character sent": (MessageError, lambda c, m: c.send("\ud83d")),
    "unknown role": (
        MessageError,
        lambda c, m: c.extend([DIALOGUE[0], {"role": "function", "content": "x"}]),
    ),
    "no text": (MessageError, lambda c, m: c.send(7)),  # type: ignore[arg-type]
    "nothing to answer": (MessageError, lambda c, m: c.send(None)),
    "empty": (MessageError, lambda c, m: c.extend([])),
    "budget too small": (BudgetError, lambda c, m: c.set_budget(Budget(max_entries=1))),
    "NaN in a message": (NumericalError, lambda c, m: (_nan_after(c, m, 0), c.extend(DIALOGUE[:2]))),
    "NaN in a reply": (NumericalError, lambda c, m: (_nan_after(c, m, 20), _send_long_replies(c))),
    "interrupt": (KeyboardInterrupt, lambda c, m: (_interrupted(c, m), _send_long_replies(c))),
    "closing fails": (
        ZeroDivisionError,
        lambda c, m: (
            m.setattr(type(c.policy), "scores", _raise(ZeroDivisionError())),
            _send_long_replies(c),
        ),
    ),
    "storing fails": (
        ZeroDivisionError,
        lambda c, m: (
            m.setattr(c.dialogue.compressor, "_store", _raise(ZeroDivisionError())),
            _send_long_replies(c),
        ),
    ),
    "abandoned stream": (None, lambda c, m: _abandon(c, delete=False)),
    "forgotten stream": (None, lambda c, m: _abandon(c, delete=True)),
}


@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("failure", FAILURES)
def test_a_failed_call_leaves_the_session_as_it_was(
    failure: str, positions: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = talk(tiny_model(max_position_embeddings=300), config=SessionConfig(10, 14, positions=positions))
    chat.send("one reply, to be kept")
    before, twin = state(chat), chat.fork()
    expected, call = FAILURES[failure]
    with monkeypatch.context() as patches:
        if expected is None:
            call(chat, patches)
        else:
            with pytest.raises(expected) as caught:
                call(chat, patches)
            if issubclass(expected, SonicError):
                assert str(caught.value)
                assert "\n" not in str(caught.value)
    assert_same(before, state(chat))
    assert continued(chat) == continued(twin)


def test_a_session_whose_stream_is_still_open_refuses_other_calls() -> None:
    chat = talk(tiny_model())
    stream = chat.stream("where?")
    next(stream)
    for call in (
        lambda: chat.send("now?"),
        lambda: chat.extend(DIALOGUE[:2]),
        lambda: chat.set_budget(HALF),
        lambda: chat.fork(),
        lambda: chat.save("never-written"),
    ):
        with pytest.raises(SonicError, match="stream"):
            call()
    rest = list(stream)
    assert rest
    chat.send("now?")


def test_context_length_is_respected_to_the_last_position() -> None:
    model = tiny_model(max_position_embeddings=100)
    chat = ChatSession(model, Budget())
    reply = chat.send("x" * 60, SamplingConfig(max_new_tokens=500))
    assert reply.finish_reason == "length"
    assert chat.cache.logical_length == 100
    before = state(chat)
    with pytest.raises(ContextLengthError, match="compact"):
        chat.send("more")
    assert_same(before, state(chat))


def test_compact_positions_go_on_beyond_the_models_length() -> None:
    model = tiny_model(max_position_embeddings=100)
    config = SessionConfig(1, 30, positions="compact")
    chat = ChatSession(model, Budget(max_entries=40), config=config, sampling=BRIEF)
    for _ in range(6):
        chat.send("x" * 50)
    chat.extend([{"role": "user", "content": "y" * 150}])  # longer than the model at once
    assert chat.stats.logical_tokens > 300
    assert SHAPE["max_position_embeddings"] > chat.cache.next_position


@pytest.mark.parametrize(
    ("saved", "loaded"), [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)]
)
def test_a_saved_session_continues_in_the_dtype_of_the_model_that_loads_it(
    tmp_path: Path, saved: torch.dtype, loaded: torch.dtype
) -> None:
    first = tiny_model()
    path = first.adapter.save(tmp_path, first.fingerprint())  # type: ignore[union-attr]

    def model(dtype: torch.dtype) -> SonicModel:
        base = tiny_base().to(dtype)
        return SonicModel(base, tiny_tokenizer(), Adapter.load(base, path))

    chat = ChatSession(
        model(saved), Budget(compression_ratio=0.5), config=SessionConfig(min_segment_tokens=16)
    )
    chat.extend(DIALOGUE)
    chat.save(tmp_path / "chat.safetensors")
    again = ChatSession.load(model(loaded), tmp_path / "chat.safetensors")
    assert all(key.dtype == loaded for layer in again.cache.layers for key in layer.heads()[0])
    again.send("and now?", SamplingConfig(max_new_tokens=3))
    assert again.stats.segments[: len(chat.stats.segments)][0].tokens == chat.stats.segments[0].tokens


@pytest.mark.parametrize("bad", [{"compression_ratio": "0.8"}, {"max_entries": True}, {"max_bytes": 1.5}])
def test_a_budget_of_the_wrong_type_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(BudgetError):
        Budget(**bad)


def test_something_that_is_no_list_of_messages_is_refused() -> None:
    chat = ChatSession(tiny_model())
    for bad in (3, "hello"):
        with pytest.raises(MessageError, match="list of messages"):
            chat.extend(bad)  # type: ignore[arg-type]
