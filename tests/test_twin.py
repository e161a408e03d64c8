"""A twin has the base's weights and its own attention, whatever hangs on the base."""

import threading
from typing import Any

import pytest
import torch
from accelerate.hooks import attach_align_device_hook
from test_adapter import logits, plan
from tiny import DIALOGUE, FAMILIES, random_adapter, tiny_base, tiny_tokenizer
from torch import Tensor

from sonic_kv import Budget, ChatSession, SessionConfig, SonicModel
from sonic_kv.errors import UnsupportedModelError
from sonic_kv.model.attention import NAME, twin


def keys(model: SonicModel) -> list[Tensor]:
    """What a session keeps of a dialogue."""
    chat = ChatSession(model, Budget(compression_ratio=0.5), config=SessionConfig(16, 40))
    chat.extend(DIALOGUE)
    return [head for layer in chat.cache.layers for head in layer.heads()[0]]


def assert_as_before(base: Any, expected: list[Tensor]) -> None:
    found = keys(SonicModel(base, tiny_tokenizer(), random_adapter(base)))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))


@pytest.fixture
def expected() -> list[Tensor]:
    base = tiny_base()
    return keys(SonicModel(base, tiny_tokenizer(), random_adapter(base)))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_twin_has_the_same_tensors_other_modules_and_its_own_config(family: str) -> None:
    base = tiny_base(family, tie_word_embeddings=True)
    before, other = base.config._attn_implementation, twin(base)
    assert [*map(id, other.parameters())] == [*map(id, base.parameters())]
    assert [*map(id, other.buffers())] == [*map(id, base.buffers())]
    assert not {*map(id, other.modules())} & {*map(id, base.modules())}
    assert other.config.get_text_config()._attn_implementation == NAME
    assert base.config._attn_implementation == before != NAME


def test_tensors_outside_of_the_tables_are_shared_too() -> None:
    """As states of quantised weights are, and tables of offloaded ones."""
    base = tiny_base()
    base.model.layers[0].mlp.state = {"scales": [torch.ones(3)], "weight": base.lm_head.weight}
    state = twin(base).model.layers[0].mlp.state
    assert state["scales"][0] is base.model.layers[0].mlp.state["scales"][0]
    assert state["weight"] is base.lm_head.weight


def test_what_becomes_of_the_base_becomes_of_its_twins() -> None:
    base = tiny_base()
    model = SonicModel(base, tiny_tokenizer(), random_adapter(base))
    assert model.adapter is not None
    base.to(torch.float64)
    base.lm_head.weight = torch.nn.Parameter(base.lm_head.weight * 2)
    for other in (model.twin, model.adapter.twin):
        assert {weight.dtype for weight in other.model.embed_tokens.parameters()} == {torch.float64}
        assert other.lm_head.weight is base.lm_head.weight


def test_hooks_on_the_base_are_called_for_its_twins() -> None:
    base, seen = tiny_base(), list[Any]()
    model = SonicModel(base, tiny_tokenizer())
    handle = base.model.layers[1].register_forward_hook(lambda *_: seen.append(1))
    with torch.no_grad():
        logits(model, plan())
        handle.remove()
        logits(model, plan())
    assert seen == [1]


def test_patched_forwards_are_those_of_the_twin(expected: list[Tensor]) -> None:
    """accelerate puts partial functions of a module in place of its forward."""
    base = tiny_base()
    attach_align_device_hook(base, execution_device="cpu")
    assert_as_before(base, expected)


@pytest.mark.parametrize("how", ["module", "forward", "layer"])
def test_a_compiled_base_has_a_twin_that_is_not_compiled(how: str, expected: list[Tensor]) -> None:
    base = tiny_base()
    if how == "module":
        base.compile(backend="eager")
    else:
        part = base if how == "forward" else base.model.layers[1]
        part.forward = torch.compile(part.forward, backend="eager")
    assert_as_before(base, expected)


def test_a_base_that_runs_elsewhere_is_refused() -> None:
    base = tiny_base()
    inner = base.forward
    base.forward = lambda *arguments, **options: inner(
        *arguments, **options
    )  # its twin's would be the base's
    with pytest.raises(UnsupportedModelError, match="attention of its own") as caught:
        SonicModel(base, tiny_tokenizer())
    assert "\n" not in str(caught.value)


def test_a_base_that_cannot_be_copied_is_refused_and_says_why() -> None:
    base = tiny_base()
    base.lock = threading.Lock()
    with pytest.raises(UnsupportedModelError, match="cannot be copied: cannot pickle") as caught:
        SonicModel(base, tiny_tokenizer())
    assert "\n" not in str(caught.value)


def test_soft_caps_are_kept_whatever_attention_the_base_has() -> None:
    """SDPA, which transformers up to 5.2 chooses for Gemma 2, leaves them out."""
    base = tiny_base("gemma2")
    base.config._attn_implementation = "sdpa"
    model = SonicModel(base, tiny_tokenizer())
    assert base.config._attn_implementation == "sdpa"
    eager = tiny_base("gemma2", attn_implementation="eager")
    capped = SonicModel(eager, tiny_tokenizer())
    assert capped.plain is eager
    for mine, theirs in zip(keys(model), keys(capped), strict=True):
        assert torch.equal(mine, theirs)
