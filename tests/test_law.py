"""The law of the project: one pass over a whole dialogue equals the step-by-step session."""

from typing import Any

import pytest
import torch
from onepass import one_pass_logits, record
from tiny import DIALOGUE, FAMILIES, random_adapter, tiny_base

from sonic_kv.compress.options import Budget, SessionConfig

HALF = Budget(compression_ratio=0.5)
SHORT = [
    {"role": "user", "content": "the cat is called Tom, and he is old"},
    {"role": "assistant", "content": "a fine name for a cat"},
    {"role": "user", "content": "what is he called?"},
    {"role": "assistant", "content": "Tom"},
]


def check(
    base: Any, adapter: Any, budgets: list[Budget], dialogues: list[list[dict[str, str]]], **config: Any
) -> None:
    options = SessionConfig(**{"min_segment_tokens": 16, "max_segment_tokens": 40, "refit": False, **config})
    sessions = []
    for messages in dialogues:
        _, session = record(base, adapter, messages, budgets, options)
        assert len(session.cache.lengths.segment_starts) >= 2
        assert session.cache.stored < session.cache.logical_length
        sessions.append(session)
    for session, logits in zip(sessions, one_pass_logits(sessions), strict=True):
        stepwise = torch.cat(session.model.logits)  # type: ignore[attr-defined]
        assert stepwise.shape == logits.shape
        torch.testing.assert_close(stepwise, logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("family", FAMILIES)
def test_session_matches_one_pass_forward(family: str, positions: str) -> None:
    base = tiny_base(family)
    check(base, random_adapter(base), [HALF], [DIALOGUE], positions=positions)


@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize(
    "adapter",
    [{"form": "learned"}, {"lora_rank": 0}, None],
    ids=["learned", "importance-only", "no-adapter"],
)
def test_session_matches_one_pass_forward_for_every_kind_of_nexus(
    adapter: dict[str, Any] | None, positions: str
) -> None:
    base = tiny_base()
    check(
        base,
        None if adapter is None else random_adapter(base, **adapter),
        [Budget(compression_ratio=0.7)],
        [DIALOGUE],
        positions=positions,
    )


@pytest.mark.parametrize("positions", ["original", "compact"])
def test_session_matches_one_pass_forward_in_a_padded_batch_of_uneven_dialogues(positions: str) -> None:
    base = tiny_base()
    check(base, random_adapter(base), [HALF], [DIALOGUE, SHORT, DIALOGUE[:6]], positions=positions)


@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("allocation", ["shared", "per_head", "segment"])
def test_session_matches_one_pass_forward_after_elastic_drops(allocation: str, positions: str) -> None:
    base = tiny_base("llama")
    budgets = [Budget(compression_ratio=0.3), Budget(max_entries=40), Budget(compression_ratio=0.9)]
    options = {"positions": positions, "allocation": allocation, "min_segment_tokens": 1}
    check(base, random_adapter(base), budgets, [DIALOGUE], **options)
