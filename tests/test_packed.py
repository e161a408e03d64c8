"""Packed weights compute what the base computes, beside it; where they cannot, one line says so."""

import pytest
import torch
from test_threads import TOPICS, talk
from tiny import tiny_base, tiny_model, tiny_tokenizer

from sonic_kv import SonicModel
from sonic_kv.errors import ConfigError
from sonic_kv.model.batch import batch_step
from sonic_kv.model.packed import PackedLinear

IDS = torch.randint(256, (40,), generator=torch.Generator().manual_seed(0)).tolist()


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])  # without biases, with them, with caps
def test_packed_weights_give_the_logits_of_the_base(family: str) -> None:
    base = tiny_base(family)
    before = base(torch.tensor([IDS])).logits
    model = SonicModel(base, tiny_tokenizer())
    model.pack()
    cache = model.new_cache()
    found = model.feed(cache, IDS[:30], all_logits=True)
    steps = [model.feed(cache, [token]) for token in IDS[30:-1]]
    rows = batch_step(model.twin, [cache, cache.fork()], IDS[-1:] * 2)
    torch.testing.assert_close(
        torch.cat((found, torch.stack(steps), rows[:1])), before[0], atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(rows[1], rows[0])
    assert torch.equal(base(torch.tensor([IDS])).logits, before)
    assert not any(isinstance(module, PackedLinear) for module in base.modules())
    kinds = {type(child) for child in model.twin.model.layers[0].self_attn.children()}
    assert PackedLinear in kinds
    assert torch.nn.Linear not in kinds


def test_a_packed_session_replies_as_a_plain_one() -> None:
    packed = tiny_model()
    packed.pack()
    assert [talk(packed, topic) for topic in TOPICS] == [talk(tiny_model(), topic) for topic in TOPICS]


def test_a_packed_model_still_learns() -> None:
    model = tiny_model()
    model.pack()
    rows = torch.randn(1, 5, model.config.hidden_size, requires_grad=True)
    layer = model.twin.model.layers[0].mlp
    layer(rows).sum().backward()
    gradient, rows.grad = rows.grad, None
    model.base.model.layers[0].mlp(rows).sum().backward()
    assert gradient is not None
    assert torch.equal(gradient, rows.grad)


def test_what_cannot_be_packed_is_refused() -> None:
    model = tiny_model()
    model.base.double()
    with pytest.raises(ConfigError, match=r"multiplies float64.* leave packed out"):
        model.pack()


def test_prompts_and_steps_of_a_packed_model_go_through_the_same_weights() -> None:
    model = tiny_model()
    model.pack()
    of_prompts = {
        name: child for name, child in model.plain.named_modules() if isinstance(child, PackedLinear)
    }
    of_steps = {name: child for name, child in model.twin.named_modules() if isinstance(child, PackedLinear)}
    assert of_prompts
    assert of_prompts == of_steps
    assert model.plain is not model.base


def test_packing_again_changes_nothing_and_packed_weights_are_not_compiled() -> None:
    model = tiny_model()
    model.pack()
    plain, logits = model.plain, model.feed(model.new_cache(), IDS)
    model.pack()
    assert model.plain is plain
    assert torch.equal(model.feed(model.new_cache(), IDS), logits)
    with pytest.raises(ConfigError, match="leave packed or compile out"):
        model.compile()
