"""Expected damage: equal to a slow computation, and near to what dropping an entry does to a model's predictions."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tiny import tiny_base, tiny_model
from torch import Tensor

from sonic_kv.model.forward import forward, head
from sonic_kv.training import damage
from sonic_kv.training.damage import Damage, label_gradient, measure

IDS = torch.randint(0, 255, (2, 40), generator=torch.Generator().manual_seed(5))
ENDS = [10, 22, 31]
ROWS = torch.tensor([11, 12, 20, 27, 33, 38])


def measured(model: Any, ids: Sequence[Tensor] = (IDS[0],)) -> list[Damage]:
    return measure(model, ids, [ENDS] * len(ids), [ROWS] * len(ids), list(range(len(ids))))


def labels_of(model: Any, ids: Tensor) -> Tensor:
    """The labels that `measure` draws with seed 0."""
    with torch.no_grad():
        p = model.base(ids[None]).logits[0, ROWS].softmax(-1).cumsum(-1)
    drawn = torch.rand(len(ROWS), generator=torch.Generator().manual_seed(0))
    return torch.searchsorted(p, drawn[:, None] * p[:, -1:])[:, 0]


class Observed:
    """Plain causal attention that keeps its whole maps, and the gradients of what is read."""

    def __init__(self) -> None:
        self.paid: list[Tensor] = []
        self.read_there: list[Tensor] = []
        self.values: list[Tensor] = []

    def read(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, softcap: float | None
    ) -> Tensor:
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
        logits = query @ key.transpose(-1, -2) * scale
        if softcap is not None:
            logits = torch.tanh(logits / softcap) * softcap
        later = torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1)
        self.paid.append(logits.masked_fill(later, -torch.inf).softmax(-1))
        output = self.paid[-1] @ value
        output.retain_grad()
        self.read_there.append(output)
        self.values.append(value)
        return output


def slow(model: Any, ids: Tensor) -> Tensor:
    """`Damage.by_segment` from its definition, one query at a time. (layers, G, K, T)"""
    reader, length = Observed(), len(ids)
    rows = model.base.get_input_embeddings()(ids[None]).detach().requires_grad_(True)
    log_p = forward(model.twin, rows, torch.arange(length)[None], reader)[0].log_softmax(-1)
    log_p[ROWS].gather(-1, labels_of(model, ids)[:, None]).sum().backward()
    found = torch.zeros(model.num_layers, model.num_heads, len(ENDS) + 1, length)
    for n, (paid, read, value) in enumerate(zip(reader.paid, reader.read_there, reader.values, strict=True)):
        assert read.grad is not None
        for at in range(paid.shape[1]):
            for t in range(length):
                g, o, a = read.grad[0, at, t], read[0, at, t], paid[0, at, t]
                moved = ((o - value[0, at]) @ g) * a / (1 - a).clamp_min(damage.LEAST_LEFT)
                segment = sum(end <= t for end in ENDS)
                found[n, at * model.num_heads // paid.shape[1], segment] += 0.5 * moved.detach() ** 2
    return found


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma2", "phi3-partial"])
def test_damage_is_what_its_definition_says(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(damage, "MOST_ROWS", 7)
    model = tiny_model(family, adapter=False)
    (found,) = measured(model)
    expected = slow(model, IDS[0])
    assert expected.sum() > 0
    torch.testing.assert_close(found.by_segment, expected, rtol=1e-3, atol=1e-9)
    torch.testing.assert_close(found.after(2), expected[:, :, 2:].sum(2), rtol=1e-3, atol=1e-9)


def test_gradients_that_pass_through_are_those_of_plain_attention() -> None:
    found = []
    for softcap in (None, 2.0):
        query, key, value = (
            torch.randn(1, heads, 40, 8, generator=torch.Generator().manual_seed(n), requires_grad=True)
            for n, heads in enumerate((4, 2, 2))
        )
        weight = torch.randn(1, 4, 40, 8, generator=torch.Generator().manual_seed(9))
        whole = torch.ones(1, 40)
        for reader in (damage.Fisher([slice(0, 40)], [whole]), Observed()):
            output = reader.read(0, query, key, value, scale=0.7, softcap=softcap)
            gradients = torch.autograd.grad((output * weight).sum(), (query, key, value))
            found.append((output, *gradients))
        for one, other in zip(*found[-2:], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_packed_dialogues_have_the_damage_of_single_ones() -> None:
    model = tiny_model(adapter=False)
    together = measured(model, list(IDS))
    for number, ids in enumerate(IDS):
        (alone,) = measure(model, [ids], [ENDS], [ROWS], [number])
        torch.testing.assert_close(together[number].by_segment, alone.by_segment, rtol=1e-3, atol=1e-9)
        for mine, other in zip(together[number].keys, alone.keys, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_the_head_gives_the_logits_of_the_base(family: str) -> None:
    base = tiny_base(family)
    if family == "gemma2":
        base.config.final_logit_softcapping = 3.0
    with torch.no_grad():
        hidden = base.get_decoder()(IDS).last_hidden_state
        torch.testing.assert_close(head(base)(hidden), base(IDS).logits)


def test_labels_are_drawn_from_the_predictions() -> None:
    """Averaged over draws the gradient is 0, and it does not depend on how many rows go at a time."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(6, 9, bias=False)
    hidden = torch.randn(1, 1, 6).expand(1, 20_000, 6).contiguous()
    rows, drawn = torch.arange(20_000), torch.rand(20_000)
    found = label_gradient(linear, hidden, rows, drawn)
    assert float(found.mean(1).abs().max()) < 0.02 < float(found.abs().mean())
    some = label_gradient(linear, hidden, rows[:300], drawn[:300])
    torch.testing.assert_close(some[:, :300], found[:, :300])
    assert not some[:, 300:].any()


class Without:
    """Attention in which later queries of one KV head no longer see one entry."""

    def __init__(self, layer: int, group: int, entry: int, first: int) -> None:
        self.at = layer, group, entry, first

    def read(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, softcap: float | None
    ) -> Tensor:
        dropped, group, entry, first = self.at
        shared = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(shared, 1) for x in (key, value))
        logits = query @ key.transpose(-1, -2) * scale
        hidden = torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1).repeat(logits.shape[1], 1, 1)
        if layer == dropped:
            hidden[group * shared : (group + 1) * shared, first:, entry] = True
        return logits.masked_fill(hidden, -torch.inf).softmax(-1) @ value


def test_damage_is_near_the_divergence_that_dropping_an_entry_causes() -> None:
    """Mean over many draws against brute force: every entry of the first segment dropped by itself."""
    model = tiny_model("llama", adapter=False, seed=3)
    ids, end, last = IDS[0], ENDS[0], torch.arange(ENDS[0], 40)
    draws = [measure(model, [ids], [[end]], [last], [seed])[0].after(1) for seed in range(300)]
    expected = torch.stack(draws).mean(0)[:, :, 1:end]  # (layers, G, entries)
    position, actual = torch.arange(40)[None], torch.zeros_like(expected)
    with torch.no_grad():
        full = model.base(ids[None]).logits[0, end:].log_softmax(-1)
        for layer in range(model.num_layers):
            for group in range(model.num_heads):
                for entry in range(1, end):
                    reader = Without(layer, group, entry, end)
                    less = forward(model.twin, ids[None], position, reader)[0, end:].log_softmax(-1)
                    actual[layer, group, entry - 1] = (full.exp() * (full - less)).sum()
    ranks = [x.flatten().argsort().argsort().double() for x in (expected, actual)]
    correlation = float(torch.corrcoef(torch.stack(ranks))[0, 1])
    assert correlation > 0.95
    ratio = (expected / actual).log().flatten()
    assert abs(float(ratio.median())) < math.log(1.3)
