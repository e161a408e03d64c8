"""An adapter fits by what its base does: the same is silent, something else is said or refused, with the number."""

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import random_adapter, tiny_base, tiny_tokenizer

from sonic_kv import SonicModel
from sonic_kv.errors import AdapterError, FileError
from sonic_kv.model import likeness, loading
from sonic_kv.model.adapter import Adapter


@pytest.fixture
def base() -> Any:
    return tiny_base()


@pytest.fixture
def path(base: Any, tmp_path: Path) -> Path:
    model = SonicModel(base, tiny_tokenizer(), random_adapter(base))
    assert model.adapter is not None
    return model.adapter.save(tmp_path, model.fingerprint(), behaviour=model.behaviour())


def changed(base: Any, share: float) -> Any:
    """A copy with noise in its matrices, as a share of their deviation."""
    other = copy.deepcopy(base)
    torch.manual_seed(3)
    with torch.no_grad():
        for weight in other.parameters():
            if weight.ndim == 2:
                weight.add_(share * weight.std() * torch.randn_like(weight))
    return other


def share_of(base: Any, least: float, most: float) -> Any:
    """A changed copy whose divergence lies between two bounds."""
    known = likeness.behaviour(base, tiny_tokenizer())
    for number in range(1, 200):
        other = changed(base, 0.01 * number)
        if least < likeness.divergence(other, known) < most:
            return other
    raise AssertionError("no such copy")


def test_divergence_is_the_kl_divergence_of_predictions(base: Any) -> None:
    known, other = likeness.behaviour(base, tiny_tokenizer()), changed(base, 0.1)
    ids = known["ids"].long()[None]
    with torch.no_grad():
        p, q = (model(ids).logits[0].log_softmax(-1) for model in (base, other))
    exact = float((p.exp() * (p - q)).sum(-1).mean())
    assert likeness.divergence(base, known) == pytest.approx(0.0, abs=1e-3)
    assert 0.5 * exact < likeness.divergence(other, known) <= exact + 1e-3


def test_the_same_base_in_another_precision_is_silent(
    base: Any, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rounded = copy.deepcopy(base)
    with torch.no_grad():
        for weight in rounded.parameters():
            weight.copy_((64 * weight).round() / 64)
    assert fingerprints_differ(base, rounded)
    for other in (base, copy.deepcopy(base).to(torch.bfloat16), rounded):
        assert Adapter.load(other, path).digest() == Adapter.load(base, path).digest()
    assert not caplog.records


def fingerprints_differ(one: Any, other: Any) -> bool:
    models = [SonicModel(base, tiny_tokenizer()) for base in (one, other)]
    return models[0].fingerprint() != models[1].fingerprint()


def test_a_base_that_does_something_else_is_said_with_the_number(
    base: Any, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = share_of(base, 1.5 * likeness.SAME, 0.5 * likeness.FAR)
    with caplog.at_level(logging.WARNING):
        Adapter.load(other, path)
    (record,) = caplog.records
    assert "0." in record.getMessage()
    assert "nats" in record.getMessage()


def test_a_base_that_is_far_is_refused_with_the_number(path: Path) -> None:
    with pytest.raises(AdapterError, match=r"differ by \d+\.\d\d nats") as caught:
        Adapter.load(tiny_base(seed=9), path)
    assert "\n" not in str(caught.value)


def test_a_base_of_another_shape_is_refused_by_the_property(path: Path) -> None:
    with pytest.raises(AdapterError, match="num_hidden_layers"):
        Adapter.load(tiny_base(num_hidden_layers=2), path)


def test_an_adapter_without_behaviour_fits_its_own_base_only(base: Any, tmp_path: Path) -> None:
    model = SonicModel(base, tiny_tokenizer())
    path = random_adapter(base).save(tmp_path, model.fingerprint())
    Adapter.load(base, path)
    with pytest.raises(AdapterError, match="weights"):
        Adapter.load(changed(base, 0.01), path)


def test_a_shipped_adapter_is_found_for_any_base_that_does_the_same(
    base: Any, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "SHIPPED", (path,))
    for name, kept in (
        ("same", changed(base, 0.005)),
        ("other", tiny_base("qwen2")),
        ("far", tiny_base(seed=5)),
    ):
        kept.save_pretrained(tmp_path / name)
        tiny_tokenizer().save_pretrained(tmp_path / name)
    models = [SonicModel.from_pretrained(tmp_path / name) for name in ("same", "other", "far")]
    found = [None if model.adapter is None else model.adapter.digest() for model in models]
    expected = Adapter.load(base, path).digest()
    assert found == [expected, None, None]


def test_of_an_adapter_for_another_shape_only_the_header_is_read(base: Any, path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert Adapter.fitting(tiny_base(num_hidden_layers=2), [path]) is None
    with pytest.raises(FileError, match="checksum"):
        Adapter.fitting(base, [path])
