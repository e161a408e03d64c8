"""The law of the project on drawn dialogues, budgets and settings: one pass equals the session."""

import random
from typing import Any

import pytest
import torch
from onepass import one_pass_logits, record
from tiny import random_adapter, tiny_base

from sonic_kv.compress.options import Budget, SessionConfig

KINDS: list[dict[str, Any] | None] = [{}, {"form": "learned"}, {"lora_rank": 0}, None]


def drawn_dialogue(rng: random.Random) -> list[dict[str, str]]:
    """Two to four exchanges of 0–40 characters a message."""
    return [
        {"role": role, "content": "".join(rng.choice("abc xyz") for _ in range(rng.randint(0, 40)))}
        for _ in range(rng.randint(2, 4))
        for role in ("user", "assistant")
    ]


def drawn_budgets(rng: random.Random) -> list[Budget]:
    """One to three, in force from one exchange to the next."""
    ratio, entries = (rng.choice([0.2, 0.5, 0.8, 0.95]) for _ in range(3)), rng.randint(3, 80)
    options = [Budget(compression_ratio=r) for r in ratio]
    options += [Budget(max_entries=entries), Budget(max_bytes=rng.randint(1500, 40000))]
    return [rng.choice(options) for _ in range(rng.randint(1, 3))]


@pytest.mark.parametrize("seed", range(30))
def test_session_matches_one_pass_forward_on_a_drawn_case(seed: int) -> None:
    rng = random.Random(seed)
    base, kind = tiny_base(rng.choice(["qwen3", "gemma2"])), KINDS[seed % len(KINDS)]
    adapter = None if kind is None else random_adapter(base, seed=seed, **kind)
    budgets = drawn_budgets(rng)
    # a budget that changes while a segment is open has no counterpart in one pass
    least = 1 if len(budgets) > 1 else rng.randint(1, 40)
    config = SessionConfig(
        least,
        least + rng.randint(0, 40),
        positions=rng.choice(["original", "compact"]),
        allocation=rng.choice(["shared", "per_head", "segment"]),
        reencode=kind == {"form": "learned"} or rng.random() < 0.7,
        refit=False,  # one pass has the raw values
        candidates=rng.choice([1.0, 2.0, 50.0]),
    )
    model, session = record(base, adapter, drawn_dialogue(rng), budgets, config)
    (logits,) = one_pass_logits([session])
    torch.testing.assert_close(torch.cat(model.logits), logits, atol=1e-5, rtol=0)
