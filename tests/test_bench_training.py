"""Segment by segment, with gradients, is what one pass computes: the law once more, backward included."""

import random

import pytest
import torch
from tiny import tiny_model

from sonic_kv.bench.options import BenchTrainingOptions
from sonic_kv.bench.training import draw, measure, segment_by_segment
from sonic_kv.data.mixture import synthetic
from sonic_kv.data.options import SynthConfig
from sonic_kv.errors import ConfigError
from sonic_kv.training.options import PlanConfig


@pytest.mark.parametrize("form", ["anchored", "learned"])
def test_one_pass_has_the_logits_and_gradients_of_segment_by_segment(form: str) -> None:
    model = tiny_model(adapter={"form": form, "lora_rank": 2})
    adapter = model.adapter
    assert adapter is not None
    model.base.requires_grad_(False)
    encoded = next(synthetic(model.format, SynthConfig(min_exchanges=4, max_exchanges=5, seed=3), 480))
    plan = draw(model, adapter, encoded, PlanConfig(raw_share=0.3, shared_share=0.0), random.Random(1))
    assert bool(plan.layout.nexus.any())
    ids = torch.tensor([encoded.token_ids])
    found = []
    for stepwise in (False, True):
        adapter.zero_grad()
        if stepwise:
            logits = segment_by_segment(model, ids, plan.layout, plan.lifetime)
            logits.logsumexp(-1).mean().backward()
        else:
            logits = model.one_pass(ids, plan.layout, plan.lifetime)
            logits.logsumexp(-1).mean().backward()
        gradients = {n: p.grad for n, p in adapter.named_parameters() if p.grad is not None}
        found.append((logits.detach(), {n: g.clone() for n, g in gradients.items()}))
    (once, once_gradients), (steps, steps_gradients) = found
    assert (once - steps).abs().max() < 1e-5
    assert once_gradients.keys() == steps_gradients.keys() != set()
    for name, gradient in once_gradients.items():
        torch.testing.assert_close(steps_gradients[name], gradient, atol=1e-6, rtol=1e-3)


def test_a_training_step_is_timed_both_ways() -> None:
    options = BenchTrainingOptions(batch_size=2, exchanges=2, lora_rank=2, repetitions=2)
    results = list(measure(tiny_model(), options))
    assert [result.name.rpartition("one pass ")[2] for result in results] == ["each", "for all"]
    assert all(result.ms > 0 and result.baseline_ms > 0 for result in results)


def test_training_bench_options_are_checked() -> None:
    with pytest.raises(ConfigError, match="exchanges"):
        BenchTrainingOptions(exchanges=1)
