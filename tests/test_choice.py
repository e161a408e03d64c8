"""Choice: what it reads is what a session would read, and gates get the gradient that their definition says."""

import math
from typing import Any

import pytest
import torch
from tiny import tiny_model
from torch import Tensor, nn

from sonic_kv.cache.cache import Lengths
from sonic_kv.compress.closing import close
from sonic_kv.compress.compressor import Compressor
from sonic_kv.compress.options import Budget, SessionConfig
from sonic_kv.training import choice
from sonic_kv.training.choice import Gated, Told, _Batch, choose, divergence
from sonic_kv.training.losses import kl

IDS = torch.randint(0, 255, (3, 60), generator=torch.Generator().manual_seed(5))
ENDS = [15, 30, 44]


def told(number: int, length: int = 60, **changes: Any) -> Told:
    ends = [end for end in ENDS if end < length - 1]
    options: dict[str, Any] = {"prefix": 3, "ends": ends, "ratio": 0.6, **changes}
    rows = torch.arange(options["ends"][0], length, 3)
    return Told(ids=IDS[number, :length], rows=rows, **options)


def gradients(scorer: nn.Module) -> list[Tensor]:
    found = [p.grad.clone() for p in scorer.parameters() if p.grad is not None]
    scorer.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize(
    ("family", "window"),
    [("llama", None), ("qwen3", None), ("gemma2", None), ("gemma2", 64), ("phi3-partial", None)],
)
@pytest.mark.parametrize("alike", [False, True])
def test_it_costs_what_it_costs_a_session(family: str, window: int | None, alike: bool) -> None:
    model = tiny_model(family, **({"sliding_window": window} if window else {}))
    one = told(0, ends=[30], alike=alike)
    cost = divergence(model, model.adapter.scorer, [one])
    with torch.no_grad():
        full = model.base(one.ids[None]).logits[0, one.rows].log_softmax(-1)
    assert cost.item() > 0.0

    cache = model.new_cache()
    model.feed(cache, one.ids[: one.prefix].tolist())
    cache.mark_prefix()
    read, rest = one.ids[: one.ends[0]].tolist(), one.ids[one.ends[0] :].tolist()
    model.feed(cache, read[one.prefix :])
    options = SessionConfig(allocation="per_head" if alike else "shared", reencode=False)
    Compressor(model, options).close(cache, read, Budget(compression_ratio=one.ratio))
    logits = model.feed(cache, rest, all_logits=True)[one.rows - one.ends[0]]
    expected = kl(full, logits.log_softmax(-1)).mean()
    assert cost.item() == pytest.approx(expected.item(), rel=1e-3)


@pytest.mark.parametrize("alike", [False, True])
def test_what_is_kept_at_every_closing_is_what_a_session_keeps(alike: bool) -> None:
    """By the same scores: what is gone takes no other entry's place."""
    model, one = tiny_model("qwen3"), told(0, alike=alike)
    scorer = model.adapter.scorer
    # the oldest are best, but fade quickly: much of what is gone would be among the best again
    scores = torch.randn(1, 3, 2, 60, generator=torch.Generator().manual_seed(1)) * torch.linspace(9, 1, 60)
    with torch.no_grad():
        scorer.log_rate.uniform_(-4.0, 4.0, generator=torch.Generator().manual_seed(2))
        _, *gates = _Batch(model, [one]).gates(scorer, range(3), scores)
    lengths, memory, before = Lengths(prefix=3, closed=3), scores[0, ..., 3:3], 3
    for end, gate in zip(one.ends, gates, strict=True):
        lengths = lengths.closing(end - before)
        memory = torch.cat([memory, scores[0, ..., before:end]], -1)
        at = torch.arange(3, end).expand(2, -1)
        ranks = [layer + scorer.recency(n, end - at) for n, layer in enumerate(memory)]
        budget = Budget(compression_ratio=one.ratio)
        kept = close(ranks, [at] * 3, lengths, budget, "per_head" if alike else "shared")
        lengths, before = kept.lengths, end
        memory = memory.where(torch.stack(kept.masks), -torch.inf)
        assert torch.equal(gate[0, ..., 3:end] > 0.5, memory > -torch.inf)


def test_nothing_dropped_costs_nothing() -> None:
    model = tiny_model("qwen3")
    assert divergence(model, model.adapter.scorer, [told(0, ratio=0.0)]).item() == pytest.approx(
        0.0, abs=1e-5
    )


def test_a_batch_is_its_dialogues_one_by_one() -> None:
    model = tiny_model("qwen3")
    scorer = model.adapter.scorer
    some = [told(0, noise=0.2, seed=3), told(1, 40, ratio=0.3, noise=0.2), told(2, alike=True)]
    together = divergence(model, scorer, some)
    together.sum().backward()
    expected = gradients(scorer)
    alone = torch.cat([divergence(model, scorer, [one]) for one in some])
    alone.sum().backward()
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)
    for one, other in zip(expected, gradients(scorer), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_blocks_of_rows_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("gemma2")
    scorer, found = model.adapter.scorer, []
    for weights in (1 << 21, 1):  # all rows together; 16 at a time
        monkeypatch.setattr(choice, "WEIGHTS", weights)
        divergence(model, scorer, [told(0)]).sum().backward()
        found.append(gradients(scorer))
    assert found[0]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_gradients_of_attention_and_gates(softcap: float | None) -> None:
    """Open gates multiply weights. A closed one's gradient is what its entry would change, were it back."""
    size, options = 12, {"scale": 0.5, "softcap": softcap}
    query, key, value = (
        torch.randn(1, heads, size, 8, generator=torch.Generator().manual_seed(n)).requires_grad_()
        for n, heads in enumerate((4, 2, 2))
    )
    member = nn.functional.one_hot(torch.arange(size) // 6, 2).float()[None]
    gates = torch.ones(1, 2, 2, size)
    gates[0, :, 1, [1, 4]] = 0.0
    gates.requires_grad_()
    wanted = torch.randn(1, 4, size, 8, generator=torch.Generator().manual_seed(9))

    def plain(gate: Tensor) -> Tensor:
        keys, values = (x.repeat_interleave(2, 1) for x in (key, value))
        logits = query @ keys.transpose(-1, -2) * 0.5
        logits = logits if softcap is None else torch.tanh(logits / softcap) * softcap
        seen = member @ gate.repeat_interleave(2, 1)  # (1, H, T, S)
        weights = logits.exp() * seen * torch.ones(size, size).tril()
        return (weights / weights.sum(-1, keepdim=True)) @ values

    output = Gated([gates], member).read(0, query, key, value, **options)
    torch.testing.assert_close(output, plain(gates))
    found = torch.autograd.grad(output, (query, key, value, gates), wanted)
    expected = torch.autograd.grad(plain(gates), (query, key, value, gates), wanted)
    for one, other in zip(found[:3], expected[:3], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    is_open = gates.detach() > 0.5
    torch.testing.assert_close(found[3][is_open], expected[3][is_open], rtol=1e-4, atol=1e-5)
    for group, entry in [(g, i) for g in range(2) for i in (1, 4)]:
        back = gates.detach().clone()
        back[0, group, 1, entry] = 1.0
        change = ((plain(back) - plain(gates.detach())) * wanted).sum()
        assert found[3][0, group, 1, entry].item() == pytest.approx(change.item(), rel=1e-3, abs=1e-4)


def test_a_choice_keeps_the_best_and_its_gradient_only_moves_them() -> None:
    ranks = torch.randn(2, 3, 2, 20, generator=torch.Generator().manual_seed(1)).requires_grad_()
    history = torch.arange(20).expand(2, -1) >= torch.tensor([[2], [0]])
    gates = choose(
        ranks, history, torch.ones_like(ranks) > 0, torch.tensor([0.5, 0.25]), torch.tensor([False, True])
    )
    assert set(gates.unique().tolist()) == {0.0, 1.0}
    assert bool((gates[0, ..., :2] == 1.0).all())  # no history
    kept = gates[0, ..., 2:] == 1.0
    assert int(kept.sum()) == 9 * 6
    assert ranks[0, ..., 2:][kept].min() > ranks[0, ..., 2:][~kept].max()
    assert gates[1].sum(-1).eq(5.0).all()
    weights = torch.randn(gates.shape, generator=torch.Generator().manual_seed(2))
    (gradient,) = torch.autograd.grad((gates * weights).sum(), ranks)
    assert gradient.abs().sum() > 0.0
    # to raise all ranks that compete changes nothing
    assert gradient[0].sum().item() == pytest.approx(0.0, abs=1e-4)
    torch.testing.assert_close(gradient[1].sum(-1), torch.zeros(3, 2), rtol=0.0, atol=1e-4)
    assert math.isclose(float(gradient[0, ..., :2].abs().sum()), 0.0)


def test_scores_learn_to_cost_less() -> None:
    model = tiny_model("qwen3")
    scorer = model.adapter.scorer.requires_grad_(True)
    optimizer = torch.optim.Adam(scorer.parameters(), lr=3e-3)
    some, costs = [told(n, ratio=0.8) for n in range(3)], []
    for _ in range(30):
        optimizer.zero_grad()
        cost = divergence(model, scorer, some).mean()
        cost.backward()
        costs.append(cost.item())
        optimizer.step()
    assert sum(costs[-5:]) < 0.8 * sum(costs[:5])
