"""Laws of refitted values: what is kept answers for what was dropped."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import DIALOGUE, tiny_model
from torch import Tensor

from sonic_kv import Budget, ChatSession, SessionConfig, SonicModel
from sonic_kv.compress.refit import RIDGE, change
from sonic_kv.model.reread import ASKED, Repeat

CONFIG = SessionConfig(16, 40)
HALF = Budget(compression_ratio=0.5)


def drawn(queries: int, entries: int = 12) -> tuple[Tensor, Tensor]:
    """What queries attend to, and what they miss."""
    generator = torch.Generator().manual_seed(queries)
    weights = (2.0 * torch.randn(queries, entries, generator=generator)).softmax(-1)
    return weights, torch.randn(queries, 8, generator=generator)


@pytest.mark.parametrize("queries", [1, 5, 40])
def test_no_other_change_balances_error_and_change_better(queries: int) -> None:
    weights, missing = drawn(queries)
    strength = RIDGE * weights.square().sum() / weights.shape[1]

    def cost(found: Tensor) -> Tensor:
        return (missing - weights @ found).square().sum() + strength * found.square().sum()

    found = change(weights, missing).requires_grad_()
    (slope,) = torch.autograd.grad(cost(found), found)
    torch.testing.assert_close(slope, torch.zeros_like(slope), atol=1e-5, rtol=0)
    assert cost(found) < cost(torch.zeros_like(found))


def test_where_nothing_is_missing_values_stay() -> None:
    weights, missing = drawn(5)
    assert not change(weights, torch.zeros_like(missing)).any()
    assert not change(torch.zeros_like(weights), missing).any()  # queries that look at the prefix alone
    assert change(weights[:, :0], missing).shape == (0, 8)


def closed(model: SonicModel, budget: Budget, exchanges: int = 2, **options: Any) -> ChatSession:
    chat = ChatSession(model, budget, "be brief", replace(CONFIG, **options))
    chat.extend(DIALOGUE[: 2 * exchanges])
    return chat


def read_behind(chat: ChatSession) -> Tensor:
    """What the model makes of a text behind a session. (T, V)"""
    ids = chat.model.format.user("what is my cat called, and what did I say of him?")
    return chat.model.feed(chat.fork().cache, ids, all_logits=True)


@pytest.mark.parametrize("policy", ["reread", "recent"])
@pytest.mark.parametrize("family", ["qwen3", "gemma2", "llama"])
def test_keys_positions_and_counts_are_those_of_a_session_without(family: str, policy: Any) -> None:
    model = tiny_model(family, adapter=False)
    fitted, raw = (
        closed(model, HALF, 1, max_segment_tokens=80, policy=policy, refit=on) for on in (True, False)
    )
    assert (
        fitted.cache.lengths.segments == raw.cache.lengths.segments == 1
    )  # those that follow read other values
    for one, other in zip(fitted.cache.memory(), raw.cache.memory(), strict=True):
        torch.testing.assert_close(one.keys, other.keys)
        assert [at.tolist() for at in one.positions] == [at.tolist() for at in other.positions]
        assert any((a - b).abs().max() > 1e-4 for a, b in zip(one.values, other.values, strict=True))
    assert fitted.stats.bytes == raw.stats.bytes


@pytest.mark.parametrize("positions", ["original", "compact"])
def test_later_text_is_read_more_as_with_full_context(positions: Any) -> None:
    model = tiny_model(adapter=False)
    full = read_behind(closed(model, Budget())).log_softmax(-1)
    errors = []
    for on in (True, False):
        options: dict[str, Any] = {"policy": "recent", "positions": positions, "refit": on}
        found = read_behind(closed(model, Budget(compression_ratio=0.8), **options))
        errors.append((full.exp() * (full - found.log_softmax(-1))).sum(-1).mean())
    assert errors[0] < errors[1]


@pytest.mark.parametrize(
    ("policy", "refit", "changed"),
    [("reread", None, True), ("reread", False, False), ("recent", None, False), ("recent", True, True)],
)
def test_values_change_where_the_segment_is_read_again_anyway_or_if_asked(
    policy: Any, refit: bool | None, changed: bool
) -> None:
    model = tiny_model(adapter=False)
    chat, whole = closed(model, HALF, policy=policy, refit=refit), closed(model, Budget())
    full = whole.cache.layers[0].heads()[1][0]  # of the first layer, which reads what was never compressed
    kept = chat.cache.memory()[0].values[0]
    moved = (kept[:, None] - full).abs().amax(-1).amin(-1)  # how far each value is from all that there were
    assert bool(moved.amax() > 1e-4) == changed


def test_of_a_long_segment_pieces_are_read_and_of_a_long_repetition_some_rows_asked() -> None:
    model = tiny_model(adapter=False)
    repeat = Repeat(model.new_cache(), list(range(1000)))
    rows = repeat.asking()
    assert len(rows) == ASKED
    assert rows[0] == 0
    assert rows[-1] == 999
    assert Repeat(model.new_cache(), [1, 2]).asking().tolist() == [0, 1]
