"""Laws of damage in nats: what was dropped is counted, budgets hold, and the scale is fitted to what was measured."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import DIALOGUE, random_adapter, tiny_base, tiny_model, tiny_tokenizer

from sonic_kv.compress.closing import Account
from sonic_kv.compress.compressor import Compressor
from sonic_kv.compress.options import Allocation, Budget, SessionConfig
from sonic_kv.errors import BudgetError, DataError, FileError
from sonic_kv.files import read_sealed
from sonic_kv.model.adapter import Adapter, with_scale
from sonic_kv.model.model import SonicModel
from sonic_kv.model.nats import DamageScale
from sonic_kv.session.engine import Engine, Turn
from sonic_kv.session.options import SamplingConfig
from sonic_kv.session.session import ChatSession
from sonic_kv.training.nats import Trial, fit, measured, try_out

SMALL = SessionConfig(min_segment_tokens=16, max_segment_tokens=40)
SCALE = DamageScale(factor=2e-3, power=0.8)
DAMAGES = (1e-4, 0.003, 0.02, 0.1)


def scaled(scale: DamageScale | None = SCALE, *, recency: bool = True, **adapter: Any) -> SonicModel:
    model = tiny_model(adapter={"lora_rank": 0, **adapter})
    assert model.adapter is not None
    model.adapter.scale = scale
    if not recency:  # distance then adds nothing
        with torch.no_grad():
            model.adapter.scorer.log_rate.fill_(-200.0)
            model.adapter.scorer.linear_rate.fill_(-200.0)
    return model


def talk(model: SonicModel, budget: Budget, exchanges: int = 4, **config: Any) -> ChatSession:
    options = {"min_segment_tokens": 16, "max_segment_tokens": 40, **config}
    chat = ChatSession(model, budget, system="be brief", config=SessionConfig(**options))
    chat.extend(DIALOGUE[: 2 * exchanges])
    return chat


def damage(chat: ChatSession, budget: Budget | None = None) -> float:
    found = chat.predicted_damage(budget)
    assert found is not None
    return found


def positions(chat: ChatSession) -> list[set[tuple[int, int, int]]]:
    return [
        {
            (layer, head, int(at))
            for layer, one in enumerate(chat.cache.layers)
            for head, row in enumerate(one.positions[0])
            for at in row
            if at >= 0
        }
    ]


# --- budgets -----------------------------------------------------------------------------------


@pytest.mark.parametrize("allocation", ["shared", "per_head", "segment"])
@pytest.mark.parametrize("adapter", [{}, {"lora_rank": 4}], ids=["raw", "re-encoded"])
def test_predicted_damage_stays_below_its_budget_and_a_smaller_one_keeps_more(
    allocation: Allocation, adapter: dict[str, Any]
) -> None:
    model, kept = scaled(**adapter), []
    for most in DAMAGES:
        chat = ChatSession(
            model, Budget(max_damage=most), config=SessionConfig(16, 40, allocation=allocation)
        )
        for number in range(0, 8, 2):
            chat.extend(DIALOGUE[number : number + 2])
            assert damage(chat) <= most * (1 + 1e-6)
        kept.append(chat.stats.memory)
    assert kept == sorted(kept, reverse=True)
    assert kept[0] > kept[-1]


def test_a_budget_in_nats_keeps_what_a_ratio_of_the_same_damage_keeps() -> None:
    model = scaled()
    chat = talk(model, Budget(compression_ratio=0.6), min_segment_tokens=100, max_segment_tokens=400)
    assert chat.stats.memory < chat.cache.lengths.history
    assert chat.cache.lengths.segments == 1
    budget = Budget(max_damage=damage(chat) * (1 + 1e-5))
    same = talk(model, budget, min_segment_tokens=100, max_segment_tokens=400)
    assert positions(same) == positions(chat)
    assert damage(same) == pytest.approx(damage(chat))


def test_a_budget_without_end_keeps_one_entry_a_segment_and_one_of_next_to_nothing_all() -> None:
    model = scaled()
    chat = talk(model, Budget(max_damage=1e9))
    assert chat.stats.memory == len(chat.stats.segments) > 1
    whole = talk(model, Budget(max_damage=1e-30))
    assert whole.stats.memory == whole.cache.lengths.history
    assert damage(whole) == 0.0


def test_a_lower_budget_costs_what_was_foretold_and_foretelling_changes_nothing() -> None:
    chat = talk(scaled(), Budget(max_damage=0.003))
    before = positions(chat)
    budgets = [Budget(compression_ratio=r) for r in (0.5, 0.8, 0.9)] + [Budget(max_damage=0.05)]
    foretold = [damage(chat, budget) for budget in budgets]
    assert foretold[:3] == sorted(foretold[:3])
    assert positions(chat) == before
    for budget, expected in zip(budgets, foretold, strict=True):
        other = chat.fork()
        other.set_budget(budget)
        assert damage(other) == pytest.approx(expected)
    assert damage(chat) <= 0.003
    assert damage(chat, Budget(max_damage=0.001)) == damage(chat)  # what is dropped does not come back


# --- what was dropped ---------------------------------------------------------------------------


def test_what_was_dropped_in_steps_counts_what_its_entries_count() -> None:
    model = scaled(DamageScale(1.0, 1.0), recency=False)
    chat = talk(model, Budget(max_damage=1e-30))
    every = torch.cat([layer.scores.flatten() for layer in chat.cache.layers]).double().mul(2).exp().sum()
    for ratio in (0.3, 0.6, 0.9):
        chat.set_budget(Budget(compression_ratio=ratio))
        kept = torch.cat([layer.scores.flatten() for layer in chat.cache.layers]).double().mul(2).exp().sum()
        assert damage(chat) == pytest.approx(float(every - kept), rel=1e-5)


def test_an_account_counts_what_goes_and_allows_what_is_left() -> None:
    torch.manual_seed(0)
    scores, gone = [torch.randn(2, 9) for _ in range(3)], torch.full((3, 2), -torch.inf)
    account = Account(DamageScale(1.0, 1.0), gone)
    masks = [layer > 0.0 for layer in scores]
    counts = torch.stack(scores).double().mul(2).exp()
    assert account.damage() == 0.0
    assert account.damage(scores, masks) == pytest.approx(float(counts[~torch.stack(masks)].sum()))
    assert math.exp(account.allowance(7.0)) == pytest.approx(7.0)
    spent = Account(DamageScale(1.0, 1.0), torch.zeros(3, 2))  # each head has dropped what counts one
    assert spent.damage() == pytest.approx(6.0)
    assert math.exp(spent.allowance(7.0)) == pytest.approx(1.0)
    assert spent.allowance(6.0) == spent.allowance(1e-3) == -math.inf


def test_damage_fades_as_the_dialogue_goes_on() -> None:
    chat = talk(scaled(), Budget(compression_ratio=0.8), 3)
    dropped = damage(chat)
    chat.set_budget(Budget(max_damage=1e-30))  # segments are closed, and nothing more is dropped
    chat.extend(DIALOGUE[6:8])
    assert 0.0 < damage(chat) < dropped


def test_saved_forked_and_batched_sessions_count_alike(tmp_path: Path) -> None:
    model, budget = scaled(), Budget(max_damage=0.02)
    chat = talk(model, budget)
    chat.save(tmp_path / "chat")
    loaded, fork = ChatSession.load(model, tmp_path / "chat"), chat.fork()
    turns = []
    for copy in (chat.fork(), talk(model, Budget(max_damage=0.001))):
        turns.append(Turn(asking(copy), SamplingConfig(max_new_tokens=20, temperature=0.0)))
    engine = Engine(model, slice_tokens=16)
    for turn in turns:
        engine.start(turn)
    engine.run()
    for other in (chat, loaded, fork):
        other.send("what is the code?", SamplingConfig(max_new_tokens=20, temperature=0.0))
        assert positions(other) == positions(chat)
        assert damage(other) == damage(chat) > 0.0
    assert turns[0].session is not None
    assert turns[0].session.stats.predicted_damage == pytest.approx(damage(chat))


def asking(chat: ChatSession) -> Any:
    yield from chat.dialogue.extend([{"role": "user", "content": "what is the code?"}], 16)
    return chat.dialogue


def test_nats_that_nobody_knows_are_none_and_their_budgets_refused(tmp_path: Path) -> None:
    unscaled, scaled_ = scaled(None), scaled()
    for model, options in ((unscaled, {}), (scaled_, {"policy": "recent"}), (tiny_model(adapter=False), {})):
        with pytest.raises(BudgetError, match="max_damage needs"):
            ChatSession(model, Budget(max_damage=0.1), **options)
        chat = ChatSession(model, Budget(compression_ratio=0.5), config=SMALL, **options)
        chat.extend(DIALOGUE)
        assert chat.stats.predicted_damage is None
        with pytest.raises(BudgetError, match="max_damage needs"):
            chat.set_budget(Budget(max_damage=0.1))
    counted = talk(scaled_, Budget(max_damage=0.1))
    counted.save(tmp_path / "counted")
    with pytest.raises(BudgetError, match="max_damage needs"):
        ChatSession.load(unscaled, tmp_path / "counted")
    uncounted = talk(unscaled, Budget(compression_ratio=0.5))
    uncounted.save(tmp_path / "uncounted")
    late = ChatSession.load(scaled_, tmp_path / "uncounted")  # what it dropped was not counted
    assert late.stats.predicted_damage is None
    with pytest.raises(BudgetError, match="before damage was counted"):
        late.set_budget(Budget(max_damage=0.1))


# --- the scale ----------------------------------------------------------------------------------


def test_an_adapter_keeps_its_scale_and_gets_one_without_a_change(tmp_path: Path) -> None:
    base = tiny_base()
    adapter = random_adapter(base)
    plain = adapter.save(tmp_path / "plain", SonicModel(base, tiny_tokenizer()).fingerprint())
    assert Adapter.load(base, plain).scale is None
    found = Adapter.load(base, with_scale(plain, SCALE, tmp_path / "scaled"))
    assert found.scale == SCALE
    assert found.digest() == adapter.digest()
    header, tensors = read_sealed(tmp_path / "scaled" / "adapter.safetensors", "adapter")
    before, same = read_sealed(plain, "adapter")
    assert {**before, "damage": SCALE.as_json()} == header
    assert all(torch.equal(tensor, same[name]) for name, tensor in tensors.items())
    with_scale(plain, DamageScale(-1.0, 1.0), tmp_path / "bad")
    with pytest.raises(FileError, match="damage scale"):
        Adapter.load(base, tmp_path / "bad")


def test_a_scale_and_its_inverse_agree() -> None:
    for log_sum in (-90.0, -3.0, 0.0, 5.0):
        assert SCALE.log_sum(SCALE.nats(log_sum)) == pytest.approx(log_sum)
    assert SCALE.nats(-math.inf) == 0.0


def test_a_fit_finds_the_scale_that_trials_follow() -> None:
    trials = [Trial(total, SCALE.nats(math.log(total))) for total in (0.001, 0.02, 0.3, 9.0)]
    found = fit(trials)
    assert (found.factor, found.power) == pytest.approx((SCALE.factor, SCALE.power))
    with pytest.raises(DataError, match="long enough"):
        fit(trials[:1])


def test_trials_measure_what_sessions_lose_and_the_more_is_dropped_the_more() -> None:
    model = scaled(None)
    encoded = model.format.encode(DIALOGUE)
    trials = try_out(model, encoded, (0.2, 0.5, 0.9), SMALL)
    dropped = [trial.dropped for trial in trials]
    assert dropped == sorted(dropped)
    assert 0.0 < dropped[0] < dropped[-1]
    assert all(trial.divergence > 0.0 for trial in trials)
    (nothing,) = try_out(model, encoded, (0.0,), SMALL)
    assert nothing.dropped == 0.0
    assert nothing.divergence == pytest.approx(0.0, abs=1e-6)
    chat = ChatSession(scaled(DamageScale(1.0, 1.0)), Budget(compression_ratio=0.9), config=SMALL)
    chat.extend(DIALOGUE[:-2])
    assert 0.0 < trials[-1].dropped < 2 * damage(chat)
    assert measured(model, [encoded] * 2).power > 0.0
    assert Compressor(model, SMALL).scale is None  # trials leave the adapter as it is
