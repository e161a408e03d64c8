"""Laws of memory in few bits."""

from pathlib import Path

import pytest
import torch
from tiny import DIALOGUE, tiny_model
from torch import Tensor

from sonic_kv.cache.bits import channel_factors, pack, unpack, vector_bytes
from sonic_kv.compress.options import Bits, Budget, SessionConfig
from sonic_kv.errors import ConfigError
from sonic_kv.session.options import SamplingConfig
from sonic_kv.session.session import ChatSession

HALF = Budget(compression_ratio=0.5)
BRIEF = SamplingConfig(max_new_tokens=6)


def vectors(dtype: torch.dtype, width: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    scale = torch.exp(torch.randn(1, 2, 50, 1, generator=generator))
    return (torch.randn(1, 2, 50, width, generator=generator) * scale).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bits", [8, 4])
def test_what_has_been_rounded_is_rounded_to_itself(bits: int, dtype: torch.dtype) -> None:
    once = unpack(pack(vectors(dtype), bits), dtype)
    factors = channel_factors(vectors(dtype))
    assert torch.equal(unpack(pack(once, bits), dtype), once)
    moved = unpack(pack(vectors(dtype) / factors, bits), dtype) * factors
    assert torch.equal(unpack(pack(moved / factors, bits), dtype) * factors, moved)


@pytest.mark.parametrize("bits", [8, 4])
def test_rounding_errs_by_half_a_level_at_most(bits: int) -> None:
    found = vectors(torch.float32)
    packed = pack(found, bits)
    level = found.abs().amax(-1, keepdim=True) / ((1 << (bits - 1)) - 1)
    error = (unpack(packed, torch.float32) - found).abs()
    assert bool((error <= 0.5 * level + 0.005 * found.abs().amax(-1, keepdim=True)).all())
    assert packed.codes.nbytes + packed.peak.nbytes == 100 * vector_bytes(16, bits)


def test_a_vector_of_zeros_stays_one() -> None:
    assert torch.equal(unpack(pack(torch.zeros(1, 1, 2, 4), 4), torch.float32), torch.zeros(1, 1, 2, 4))


def test_a_channel_far_larger_than_the_others_does_not_drown_them() -> None:
    keys = vectors(torch.float32).clone()
    keys[..., 3] *= 100
    factors = channel_factors(keys)
    assert torch.equal(factors[..., :8], factors[..., 8:])  # a rotary pair shares one
    others = [c for c in range(16) if c not in (3, 11)]
    plain = (unpack(pack(keys, 4), torch.float32) - keys)[..., others].square().mean()
    ours = (unpack(pack(keys / factors, 4), torch.float32) * factors - keys)[..., others].square().mean()
    assert ours < 0.1 * plain


def talk(bits: Bits | None, exchanges: int = 4, budget: Budget = HALF) -> ChatSession:
    config = SessionConfig(16, 40, bits=bits)
    chat = ChatSession(tiny_model(), budget, system="be brief", config=config, sampling=BRIEF)
    chat.extend(DIALOGUE[: 2 * exchanges])
    return chat


@pytest.mark.parametrize("bits", [8, 4])
def test_memory_rests_in_few_bits_and_the_bytes_are_those_of_its_tensors(bits: Bits) -> None:
    chat = talk(bits)
    stats = chat.stats
    assert stats.memory > 0
    raw = (stats.prefix + stats.open) * chat.model.bytes_per_token
    memory = stats.memory * 3 * 2 * (2 * vector_bytes(8, bits) + 8)
    channels = 3 * 2 * 8 * 4
    assert stats.bytes == raw + memory + channels
    assert (
        sum(t.untyped_storage().nbytes() for layer in chat.cache.layers for t in layer.tensors())
        == stats.bytes
    )
    assert chat.cache.logical_length == len(chat.token_ids)  # asking does not unpack
    assert chat.stats.bytes == stats.bytes
    working = chat.cache.fork()
    chat.model.feed(working, [65])
    assert working.nbytes > stats.bytes
    assert chat.stats.bytes == stats.bytes


def test_rest_changes_nothing() -> None:
    """A dialogue fed in one call, which never packs in between, is the one fed in eight."""
    at_once, stepwise = talk(4), talk(4, exchanges=1)
    for message in DIALOGUE[2:]:
        stepwise.extend([message])
    for one, other in zip(at_once.cache.layers, stepwise.cache.layers, strict=True):
        for a, b in zip(one.state().values(), other.state().values(), strict=True):
            assert torch.equal(a, b)
    assert at_once.send("where?").text == stepwise.send("where?").text


def test_without_removal_everything_closed_is_rounded_all_the_same() -> None:
    chat, plain = talk(8, budget=Budget()), talk(None, budget=Budget())
    assert chat.stats.entries == plain.stats.entries
    assert chat.stats.memory > 0 == plain.stats.memory
    assert chat.stats.bytes < plain.stats.bytes
    for a, b in zip(chat.cache.layers, plain.cache.layers, strict=True):
        torch.testing.assert_close(a.values, b.values, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_packed_session_is_saved_packed_and_goes_on(bits: Bits, tmp_path: Path) -> None:
    chat = talk(bits)
    chat.save(tmp_path / "chat.safetensors")
    loaded = ChatSession.load(chat.model, tmp_path / "chat.safetensors")
    assert loaded.stats == chat.stats
    assert loaded.send("where?").text == chat.send("where?").text
    for one, other in zip(loaded.cache.layers, chat.cache.layers, strict=True):
        for a, b in zip(one.state().values(), other.state().values(), strict=True):
            assert torch.equal(a, b)


def test_a_failed_call_leaves_packed_memory_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    chat = talk(4)
    before = [tensor.clone() for layer in chat.cache.layers for tensor in layer.state().values()]
    with monkeypatch.context() as patches:
        patches.setattr(chat.dialogue.compressor, "_store", None)
        with pytest.raises(TypeError):
            chat.extend([{"role": "user", "content": "x" * 60}, {"role": "assistant", "content": "ok"}])
    after = [tensor for layer in chat.cache.layers for tensor in layer.state().values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    fork = chat.fork()
    fork.send("where?")
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("bits", [8, 4])
def test_a_limit_in_bytes_holds_and_keeps_more_entries(bits: Bits) -> None:
    config = SessionConfig(1, 40, bits=bits)
    limit = 3_500
    chat = ChatSession(tiny_model(), Budget(max_bytes=limit), config=config)
    plain = ChatSession(tiny_model(), Budget(max_bytes=limit), config=SessionConfig(1, 40))
    for turn in range(4):
        for session in (chat, plain):
            session.extend(DIALOGUE[2 * turn : 2 * turn + 2])
            assert session.stats.bytes <= limit
    assert chat.stats.bytes > limit - chat.dialogue.compressor.bytes_per_entry()
    assert chat.stats.memory > plain.stats.memory


def test_few_bits_and_compact_positions_do_not_go_together() -> None:
    with pytest.raises(ConfigError, match="positions='original'"):
        SessionConfig(bits=4, positions="compact")
