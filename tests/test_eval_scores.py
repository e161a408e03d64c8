"""Scores of published methods: each is kvpress's, where kvpress is installed (`make test-oldest`)."""

import contextlib
import io
import warnings
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sonic_kv.eval import scores

if find_spec("kvpress") is None:
    pytest.skip("needs kvpress: make test-oldest", allow_module_level=True)
with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
    warnings.simplefilter("ignore")
    import kvpress

GROUPS, QUERIES, LENGTH, WIDTH = 2, 3, 70, 8  # KV heads, query heads of each, entries


@pytest.fixture
def entries() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(GROUPS, LENGTH, WIDTH), torch.randn(GROUPS, LENGTH, WIDTH)


def theirs(
    press: Any, entries: tuple[Tensor, Tensor], attention: Tensor | None = None, **module: Any
) -> Tensor:
    """kvpress's scores. (G, n)"""
    config = SimpleNamespace(
        num_attention_heads=GROUPS * QUERIES,
        num_key_value_heads=GROUPS,
        head_dim=WIDTH,
        hidden_size=12,
    )
    keys, values = (x[None] for x in entries)
    hidden = torch.zeros(1, LENGTH, 12)
    layer = SimpleNamespace(config=config, head_dim=WIDTH, num_key_value_groups=QUERIES, **module)
    found: Tensor = press.score(layer, hidden, keys, values, attention, {})
    return found[0]


def test_keydiff(entries: tuple[Tensor, Tensor]) -> None:
    mine = torch.stack([scores.keydiff(keys) for keys in entries[0]])
    torch.testing.assert_close(mine, theirs(kvpress.KeyDiffPress(), entries))


@pytest.mark.parametrize("ranked", [True, False])
def test_lagkv(entries: tuple[Tensor, Tensor], ranked: bool) -> None:
    press = kvpress.LagKVPress(n_sink=0, lag_size=16, cross_scoring=not ranked)
    mine = torch.stack([scores.lagkv(k, v, 16, ranked=ranked) for k, v in zip(*entries, strict=True)])
    torch.testing.assert_close(mine, theirs(press, entries))


def test_cur(entries: tuple[Tensor, Tensor]) -> None:
    mine = torch.stack([scores.cur(k, v) for k, v in zip(*entries, strict=True)])
    torch.testing.assert_close(mine, theirs(kvpress.CURPress(num_sinks=0), entries))


def attention() -> Tensor:
    """Causal attention weights. (1, H, T, T)"""
    logits = 3 * torch.randn(1, GROUPS * QUERIES, LENGTH, LENGTH)
    return logits.masked_fill(torch.ones(LENGTH, LENGTH).triu(1).bool(), -torch.inf).softmax(-1)


def test_snapkv(entries: tuple[Tensor, Tensor]) -> None:
    paid, window = attention(), 9
    expected = theirs(kvpress.SnapKVPress(window_size=window), entries, paid)
    own = paid[0, :, -window:].unflatten(0, (GROUPS, QUERIES))
    mine = torch.stack([scores.snapkv(of) for of in own])
    torch.testing.assert_close(mine[:, :-window], expected[:, :-window])
    assert (mine[:, -window:] > mine[:, :-window].max()).all()


def test_tova(entries: tuple[Tensor, Tensor]) -> None:
    paid = attention()
    expected = theirs(kvpress.TOVAPress(), entries, paid)
    mine = scores.tova(paid[0, :, -1])
    torch.testing.assert_close(mine[:-1], expected[0, :-1])
    assert mine[-1] > mine[:-1].max()


def test_expected_attention(entries: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    press = kvpress.ExpectedAttentionPress(n_sink=0)
    mean = torch.randn(GROUPS * QUERIES, WIDTH)
    root = torch.randn(GROUPS * QUERIES, WIDTH, WIDTH) / 3
    covariance = root @ root.transpose(-1, -2)
    monkeypatch.setattr(press, "get_query_statistics", lambda *_: (mean[None], covariance[None]))
    mine = [
        scores.expected_attention(k, v, mean[g : g + QUERIES], covariance[g : g + QUERIES])
        for g, k, v in zip(range(0, GROUPS * QUERIES, QUERIES), *entries, strict=True)
    ]
    torch.testing.assert_close(torch.stack(mine), theirs(press, entries))


def test_critical_kv(entries: tuple[Tensor, Tensor]) -> None:
    paid, window = attention(), 9
    projection = torch.nn.Linear(GROUPS * QUERIES * WIDTH, 12, bias=False)
    press = kvpress.CriticalKVPress(kvpress.SnapKVPress(window_size=window))
    press.compression_ratio = 0.5
    expected = theirs(press, entries, paid, o_proj=projection).topk(LENGTH // 2).indices.sort().values
    output = projection.weight.T.view(GROUPS, QUERIES, WIDTH, 12)
    own = paid[0, :, -window:].unflatten(0, (GROUPS, QUERIES))
    for group in range(GROUPS):
        mine = scores.critical(scores.snapkv(own[group]), entries[1][group], output[group], LENGTH // 4)
        assert mine.topk(LENGTH // 2).indices.sort().values.tolist() == expected[group].tolist()
